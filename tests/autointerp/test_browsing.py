"""Columns and words of a dictionary, against pandas on the dictionary itself."""

from __future__ import annotations

import math
import operator
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autointerp
from autointerp.browsing import Cursor, DictionaryColumns, RowQuery, build_columns, open_columns, query_rows
from autointerp.browsing.words import WordIndex
from autointerp.export.filters import Bound, RowFilter
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.exporting import ExportOptions, export_run
from sae_core.errors import InputError, MissingFileError, UnknownNameError
from tests.autointerp.export_world import make_world, open_world

SOURCES = ("a.first", "b")
FIGURES = (
    "f1_low",
    "precision",
    "fire_rate",
    "fire_count",
    "causal_effect",
    "detection_score",
    "num_judged",
    "cost_usd",
)

COMPARE = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunContext, Path]:
    folder = tmp_path_factory.mktemp("browsing")
    make_world(folder / "run", 700, sources=SOURCES)
    context = open_world(folder / "run")
    export_run(context, folder / "dictionary")
    return context, folder / "dictionary"


@pytest.fixture(scope="module")
def columns(world: tuple[RunContext, Path], tmp_path_factory: pytest.TempPathFactory) -> DictionaryColumns:
    return build_columns(world[1], tmp_path_factory.mktemp("columns"))


@pytest.fixture(scope="module")
def frame(world: tuple[RunContext, Path]) -> pd.DataFrame:
    return autointerp.load_dictionary(world[1])


bounds = st.lists(
    st.builds(
        Bound,
        st.sampled_from(FIGURES),
        st.sampled_from((">=", "<=", "==", "!=", "<", ">")),
        st.sampled_from((0.0, 0.001, 0.25, 0.5, 0.9, 1.0, 40.0, 42.0)),
    ),
    max_size=3,
)
queries = st.builds(
    RowQuery,
    source=st.sampled_from((None, *SOURCES)),
    statuses=st.sampled_from(((), ("labelled",), ("dead", "rare"), ("failed",))),
    bounds=bounds.map(tuple),
    words=st.sampled_from(("", "word", "the WORD numb", "13", "likelier", "output zebra", '" OR *')),
    sort=st.sampled_from(("latent", *FIGURES)),
    descending=st.booleans(),
    limit=st.sampled_from((1, 7, 50, 200)),
)


def brute(frame: pd.DataFrame, query: RowQuery) -> list[int]:
    """Row numbers by the plainest means."""
    found: list[tuple[Any, int]] = []
    words = re.findall(r"\w+", query.words.lower())
    for number, row in enumerate(frame.to_dict("records")):
        if query.source is not None and row["source"] != query.source:
            continue
        if query.statuses and row["status"] not in query.statuses:
            continue
        values = {bound.column: row[bound.column] for bound in query.bounds}
        if any(pd.isna(value) for value in values.values()):
            continue
        if not all(COMPARE[bound.op](float(values[bound.column]), bound.number) for bound in query.bounds):
            continue
        texts = [text for text in (row["label"], row["label_output"]) if isinstance(text, str)]
        has = re.findall(r"\w+", " ".join(texts).lower())
        if words and not (all(word in has for word in words[:-1]) and any(w.startswith(words[-1]) for w in has)):
            continue
        key = 0.0 if query.sort == "latent" else row[query.sort]
        sign = -1 if query.descending else 1
        if query.sort == "latent":
            found.append(((sign * number,), number))
        else:
            found.append(((1, 0.0, number) if pd.isna(key) else (0, sign * float(key), number), number))
    return [number for _, number in sorted(found)]


@settings(max_examples=40, deadline=None)
@given(query=queries)
def test_pages_are_those_of_a_plain_search(columns: DictionaryColumns, frame: pd.DataFrame, query: RowQuery) -> None:
    expected, walked = brute(frame, query), []
    asked = query
    for _ in range(5):
        page = query_rows(columns, asked)
        assert page.num_found == len(expected)
        walked += page.rows.tolist()
        if page.next is None:
            assert walked == expected
            return
        # what a link has
        asked = RowQuery(
            **{name: getattr(query, name) for name in query.__slots__} | {"after": Cursor.parse(str(page.next))}
        )  # type: ignore[attr-defined]
    assert walked == expected[: len(walked)]
    assert len(walked) == 5 * query.limit


def test_rows_hold_what_the_dictionary_says(columns: DictionaryColumns, frame: pd.DataFrame) -> None:
    numbers = np.array([0, 1, 2, 3, 5, 699, 700, 1399])
    for row, said in zip(columns.rows(numbers), frame.iloc[numbers].to_dict("records"), strict=True):
        for name, value in row.items():
            assert value == said[name], name
        kept = {*columns.outline.numbers, *columns.outline.categories, *columns.outline.texts}
        missing = {name for name in kept - set(row) if not pd.isna(said[name])}
        assert not missing
    assert [columns.row_of(source, 13) for source in SOURCES] == [13, 713]
    assert columns.row_of("b", 700) is None
    assert columns.source_of(699) == "a.first"
    assert columns.source_of(700) == "b"


def test_partitions_filters_and_empty_dictionaries_have_columns_too(
    world: tuple[RunContext, Path], columns: DictionaryColumns, tmp_path: Path
) -> None:
    context, _ = world
    export_run(context, tmp_path / "parts", ExportOptions(by_source=True))
    parts = open_columns(tmp_path / "parts", tmp_path / "columns")
    assert parts.outline.sources == columns.outline.sources
    query = RowQuery(sort="f1_low", descending=True)
    assert query_rows(parts, query).rows.tolist() == query_rows(columns, query).rows.tolist()
    few = RowFilter.of(("b",), ("labelled",), ("f1_low>=0.9",), ("label", "f1_low"))
    export_run(context, tmp_path / "few", ExportOptions(filter=few))
    found = open_columns(tmp_path / "few", tmp_path / "few-columns")
    assert found.num_rows == query_rows(columns, RowQuery("b", ("labelled",), (Bound("f1_low", ">=", 0.9),))).num_found
    assert 0 < found.num_rows < 700
    none = RowFilter.of((), (), ("f1_low>=2",), ())
    export_run(context, tmp_path / "none", ExportOptions(filter=none))
    empty = open_columns(tmp_path / "none", tmp_path / "none-columns")
    assert query_rows(empty, RowQuery(words="word")).rows.tolist() == []


def test_columns_are_made_anew_for_a_new_export(world: tuple[RunContext, Path], tmp_path: Path) -> None:
    context, _ = world
    dictionary, place = tmp_path / "dictionary", tmp_path / "columns"
    export_run(context, dictionary)
    first = open_columns(dictionary, place)
    assert open_columns(dictionary, place).outline == first.outline
    made = (place / "columns.json").stat().st_mtime_ns
    assert open_columns(dictionary, place).num_rows == 1400
    assert (place / "columns.json").stat().st_mtime_ns == made, "nothing is made twice"
    export_run(context, dictionary, ExportOptions(filter=RowFilter.of(("b",))))
    second = open_columns(dictionary, place)
    assert second.num_rows == 700
    (place / "columns.json").write_text("{")
    assert open_columns(dictionary, place).outline == second.outline
    (dictionary / "_manifest.json").unlink()
    with pytest.raises(MissingFileError):
        open_columns(dictionary, place)
    assert query_rows(first, RowQuery(sort="f1_low")).num_found == 1400, "who has them open goes on reading"


def test_what_is_not_there_is_said(columns: DictionaryColumns) -> None:
    for wrong, kind in (
        (RowQuery(sort="f1_lwo"), UnknownNameError),
        (RowQuery(sort="label"), UnknownNameError),
        (RowQuery(source="c"), UnknownNameError),
        (RowQuery(statuses=("happy",)), UnknownNameError),
        (RowQuery(bounds=(Bound("status", ">", 1.0),)), UnknownNameError),
        (RowQuery(limit=0), InputError),
        (RowQuery(limit=10_000), InputError),
    ):
        with pytest.raises(kind) as caught:
            query_rows(columns, wrong)
        assert str(caught.value).count("\n") == 0
    for text in ("", "~", "1", "x~3", "1~-3", "inf~2", "1~2~3"):
        with pytest.raises(InputError):
            Cursor.parse(text)
    assert math.isnan(Cursor.parse(str(Cursor(math.nan, 3))).value)


def test_words_alone_are_counted_only_so_far(tmp_path: Path) -> None:
    """The pages are those of a whole count; a page behind a cursor begins behind it."""
    folder = tmp_path / "words"
    folder.mkdir()
    texts = [(row, f"the word {row % 7}") for row in range(0, 90, 2)]
    WordIndex.build(folder / "words.db", texts)
    index = WordIndex(folder / "words.db")
    whole = index.find("the word")
    assert whole.tolist() == list(range(0, 90, 2))
    assert index.find("the word", limit=10).tolist() == whole[:10].tolist()
    assert index.find("the word", after=40, limit=3).tolist() == [42, 44, 46]
    assert index.find("word 3", after=30).tolist() == [row for row, text in texts if row > 30 and text.endswith("3")]
