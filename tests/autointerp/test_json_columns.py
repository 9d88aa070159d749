"""Objects read by Arrow, against Python's own parser value by value."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp.pipeline.json_columns import ObjectReader
from sae_core.errors import InputError

WANTED = {
    "count": pa.int64(),
    "share": pa.float64(),
    "word": pa.string(),
    "holds": pa.bool_(),
    "words": pa.list_(pa.string()),
}
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "count": st.integers(-(2**63), 2**63 - 1),
    "share": st.floats(allow_nan=False, allow_infinity=False),
    "word": st.text(),
    "holds": st.booleans(),
    "words": st.lists(st.text(), max_size=3),
    "unasked": st.one_of(
        st.text(), st.integers(-5, 5), st.floats(-1, 1), st.booleans(), st.lists(st.text(), max_size=2)
    ),
}
OBJECTS = st.fixed_dictionaries({}, optional={name: st.none() | values for name, values in VALUES.items()})


@given(st.lists(st.lists(OBJECTS, min_size=1, max_size=6), min_size=1, max_size=5), st.booleans())
def test_every_page_is_what_json_says(pages: list[list[dict[str, Any]]], plain: bool) -> None:
    reader = ObjectReader(WANTED)
    for rows in pages:
        columns = reader.columns([json.dumps(row, ensure_ascii=not plain) for row in rows])
        assert columns.keys() <= WANTED.keys()
        for name in WANTED:
            values = columns[name].to_pylist() if name in columns else [None] * len(rows)
            assert [repr(value) for value in values] == [repr(row.get(name)) for row in rows], name


def test_arrow_reads_what_is_known_and_python_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    by_arrow: list[bool] = []
    read = ObjectReader._read

    def watched(self: ObjectReader, texts: list[str]) -> pa.Table | None:
        table = read(self, texts)
        by_arrow.append(table is not None)
        return table

    monkeypatch.setattr(ObjectReader, "_read", watched)
    reader = ObjectReader(WANTED)
    for text in (
        '{"count":1,"other":"a"}',
        '{"count":2,"other":"b"}',
        '{"count":3}',
        '{"share":0.5}',
        '{"share":1}',
        "{}",
    ):
        reader.columns([text])
    assert by_arrow == [False, True, True, False, True, True]


@pytest.mark.parametrize("text", ['{"count":"many"}', '{"count":1.5}', '{"word":3}', '{"share":"high"}'])
def test_a_value_that_does_not_fit_is_said(text: str) -> None:
    reader = ObjectReader(WANTED)
    for _ in range(2):
        with pytest.raises(InputError, match="does not fit"):
            reader.columns([text])
    reader.columns(['{"count":1,"word":"a","share":0.5}'])
    with pytest.raises(InputError, match="does not fit"):
        reader.columns([text])
