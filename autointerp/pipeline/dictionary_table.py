"""A page of the labelled dictionary as columns: what of all that is stored stands in a latent's row. Torch-free.

Scores are *layers*, one a scorer and one more where it scores the latent itself: each layer is made columns as it is, and of several
layers that say the same column the first counts, where it says something. So nothing is merged row by row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic_core import from_json

from autointerp.export.checks import columns_of, fitting_array
from autointerp.judging.steered_judge import OUTPUT_LABEL
from autointerp.pipeline.dictionary_pages import Page, Row, SourceReading, StoredLabel
from autointerp.pipeline.json_columns import ObjectReader
from autointerp.pipeline.label_figures import TAKEN_OVER, is_about_a_text
from autointerp.review.recording import is_human
from sae_core.lens_evidence import LensEvidence

_TOKENS = (("top_promoted_tokens", "promoted"), ("top_suppressed_tokens", "suppressed"))
_EXPLAINED = (("explainer_model", "model"), ("prompt_hash", "prompt_hash"))
_SPENT = ("input_tokens", "output_tokens", "cost_usd")
_NO_TEXT = pa.scalar(None, pa.string())
_JUDGED, _FAILED = "_judged", "_failed"
Columns = dict[str, pa.Array]


def page_table(page: Page, schema: pa.Schema) -> pa.Table:
    """One page's rows; of many, :class:`PageTables` makes them faster. Errors: InputError for a value that does not fit its column."""
    return PageTables(schema).of(page)


class PageTables:
    """Makes tables of one schema."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._readers: dict[tuple[str, bool] | None, ObjectReader] = {}

    def of(self, page: Page) -> pa.Table:
        """A page's rows. Errors: InputError for a value that does not fit its column."""
        num, schema = len(page.labels), self._schema
        columns = _certain(page, schema)
        left = [field for field in schema if field.name not in columns]
        figures = self._values(page, left)
        figures = _first_of(_output_values(page, left), figures)
        figures |= _provenance(page, left)
        figures = _first_of(_causal(page), figures)
        if page.reading.lens is not None:
            figures |= _lens_columns(page.reading, page.reading.lens, page.latents, figures)
        columns = figures | columns
        return pa.table([columns.get(field.name, pa.nulls(num, field.type)) for field in schema], schema=schema)

    def _values(self, page: Page, fields: Sequence[pa.Field]) -> Columns:
        """What scorers and the estimate say of the published text and of the latent."""
        labels, otherwise = page.labels, page.reading.otherwise
        layers: dict[tuple[str, bool], tuple[list[int], list[str]]] = {}
        broken: dict[int, Row] = {}
        for place, scorer, explainer, values, failure, message in page.scores:
            if explainer is None or explainer == (labels[place].explainer or otherwise):
                places, texts = layers.setdefault((scorer, explainer is not None), ([], []))
                places.append(place)
                texts.append(values)
                if failure is not None:
                    said = broken.setdefault(place, {})
                    said.setdefault(f"{scorer}_failure", failure)
                    said.setdefault(f"{scorer}_failure_message", message or "")
        untold = pa.array([label.explainer is None for label in labels])
        columns: Columns = {}
        judges: list[pa.Array] = []
        for (scorer, of_a_text), (places, texts) in sorted(layers.items()):
            layer = _spread(page, places, self._read((scorer, of_a_text), texts, fields))
            if of_a_text and untold.true_count:
                for name in [name for name in layer if is_about_a_text(name, scorer)]:
                    layer[name] = pc.if_else(untold, pa.scalar(None, layer[name].type), layer[name])
            if (judge := layer.get("judge_model")) is not None:
                judges.append(pc.if_else(untold, _NO_TEXT, judge) if of_a_text else judge)
            columns = _first_of(columns, layer)
        # a label has one method: what was counted over the corpus is not mixed with what was judged
        method = columns.get("precision_method")
        free = np.ones(len(labels), bool) if method is None else method.is_null().to_numpy(zero_copy_only=False)
        estimated = [place for place in page.estimates if free[place]]
        if estimated:
            texts = [page.estimates[place] for place in estimated]
            columns = _first_of(columns, _spread(page, estimated, self._read(None, texts, fields)))
        judged = _judged(columns)
        columns = _first_of(columns, _columns(page, broken, fields))
        return _first_of(_judge_models(judges), columns | judged)

    def _read(self, layer: tuple[str, bool] | None, texts: Sequence[str], fields: Sequence[pa.Field]) -> Columns:
        """A layer's objects as columns, windows judged and failed to be judged among them where they are no column; None: estimates."""
        if layer not in self._readers:
            wanted = {field.name: field.type for field in fields}
            if layer is not None:
                for name in (f"{layer[0]}{_JUDGED}", f"{layer[0]}{_FAILED}"):
                    wanted.setdefault(name, pa.int64())
            self._readers[layer] = ObjectReader(wanted)
        return self._readers[layer].columns(texts)


def _certain(page: Page, schema: pa.Schema) -> Columns:
    """What every row has, whatever was scored: where the latent comes from, its label and its firing statistics."""
    num, labels = len(page.labels), page.labels
    columns = {
        name: pa.repeat(pa.scalar(value), num) for name, value in page.reading.common.items() if value is not None
    }
    columns["created_at"] = pa.array([label.created_at for label in labels]).cast(schema.field("created_at").type)
    said: dict[str, list[Any]] = {
        "latent": [label.latent for label in labels],
        "status": [label.status for label in labels],
        "failure": [label.failure_kind if label.status == "failed" else None for label in labels],
        "failure_message": [label.failure_message for label in labels],
        "label": [label.text for label in labels],
        "label_output": [label.text_output for label in labels],
        "explainer": [label.explainer for label in labels],
    }
    columns |= {name: fitting_array(values, schema.field(name)) for name, values in said.items()}
    return columns | {
        name: pa.array(array, schema.field(name).type)
        for name, array in _statistics(page.reading, page.latents).items()
    }


def _output_values(page: Page, fields: Sequence[pa.Field]) -> Columns:
    """What scorers say of the label of what a latent does, in columns of its own: it is never mixed with that of what it fires on."""
    found: dict[int, Row] = {}
    for place, scorer, explainer, values, failure, message in page.scores:
        if explainer is None or explainer != page.outputs.get(place):
            continue
        said = found.setdefault(place, {})
        said |= {name: value for name, value in from_json(values).items() if name.startswith(OUTPUT_LABEL)}
        if failure is not None:
            said |= {
                f"{OUTPUT_LABEL}{scorer}_failure": failure,
                f"{OUTPUT_LABEL}{scorer}_failure_message": message or "",
            }
    return _columns(page, found, fields)


def _judged(columns: Columns) -> Columns:
    """Windows that language models judged, where none were counted, and failed to judge."""
    names = [name for name in columns if name.endswith(_JUDGED)]
    if not names:
        return {}
    answered = _sum(columns, names)
    any_judged = pc.invert(pc.is_null(answered))
    failed = _sum(columns, [f"{name.removesuffix(_JUDGED)}{_FAILED}" for name in names])
    own = columns.get("num_judged", pa.nulls(len(answered), pa.int64()))
    own_failed = columns.get("num_failed", pa.nulls(len(answered), pa.int64()))
    return {
        "num_judged": pc.coalesce(own, answered),
        "num_failed": pc.if_else(any_judged, pc.fill_null(failed, 0), own_failed),
    }


def _sum(columns: Columns, names: Iterable[str]) -> pa.Array:
    """Row by row over those that say something; null where none does."""
    there = [columns[name].cast(pa.int64()) for name in names if name in columns]
    if not there:
        return pa.nulls(len(next(iter(columns.values()))), pa.int64())
    total = there[0]
    for one in there[1:]:
        total = pc.coalesce(pc.add(total, pc.fill_null(one, 0)), one)
    return total


def _judge_models(said: Sequence[pa.Array]) -> Columns:
    """Models that judged the published text, as they name themselves, joined by ", "; ``said``: by layer."""
    if not said:
        return {}
    # pyarrow's own null_handling="skip" leaves out rows in which all are null
    lists = pc.binary_join_element_wise(*(pc.fill_null(one, "") for one in said), ", ").dictionary_encode()
    names = [_joined(names) for names in lists.dictionary.to_pylist()]
    return {"judge_model": pa.array(names, pa.string()).take(lists.indices)}


@lru_cache(maxsize=64)
def _joined(names: str) -> str | None:
    """The same names sorted, each once."""
    return ", ".join(sorted(set(names.split(", ")) - {""})) or None


def _provenance(page: Page, fields: Sequence[pa.Field]) -> Columns:
    """Who wrote the label, from what and for how much; the ledger knows better what it cost than the explainer."""
    num = len(page.labels)
    found: dict[str, list[Any]] = {
        name: [None] * num for name in (*(name for name, _ in _EXPLAINED), *_SPENT, "label_sides")
    }
    own = [label.explainer or "" for label in page.labels]
    models, hashes = found["explainer_model"], found["prompt_hash"]
    spent = [found[name] for name in _SPENT]
    for place, (_, explainer, side, _, imported, failure, model, prompt, read, written, cost) in page.explained:
        if side != "input":
            continue
        if explainer == own[place]:
            models[place], hashes[place] = model, prompt
            spent[0][place], spent[1][place], spent[2][place] = read, written, cost
        if explainer == TAKEN_OVER:
            found["label_sides"][place] = _sides(page.labels[place], imported, failure)
    for place, said in page.spend.items():
        for column, name in zip(spent, _SPENT, strict=True):
            column[place] = said[name]
    return {field.name: fitting_array(found[field.name], field) for field in fields if field.name in found}


def _sides(label: StoredLabel, imported: str | None, failure: str | None) -> str | None:
    """How a label from elsewhere stands to the run's sides; an edit of one stands as it does."""
    if label.text is None or failure is not None:
        return None
    if label.explainer != TAKEN_OVER and not is_human(label.explainer or ""):
        return None
    return str(json.loads(imported or "{}").get("imported", {}).get("sides", "unknown"))


def _causal(page: Page) -> Columns:
    causal, latents = page.reading.causal, page.latents
    place = np.searchsorted(causal.latents, latents)
    place[place == len(causal.latents)] = 0
    there = causal.latents[place] == latents if len(causal.latents) else np.zeros(len(latents), bool)
    if not there.any():
        return {}
    found: Columns = {}
    for name, column in causal.values.items():
        values = np.where(there, column[place], np.nan)
        found[name] = pa.array(values, pa.float64(), mask=~np.isfinite(values))
    return found


def _columns(page: Page, rows: Mapping[int, Row], fields: Sequence[pa.Field]) -> Columns:
    """Some rows, by place, as columns over all places."""
    if not rows:
        return {}
    names: set[str] = set().union(*rows.values())
    places = sorted(rows)
    return _spread(page, places, columns_of([rows[place] for place in places], [f for f in fields if f.name in names]))


def _spread(page: Page, places: Sequence[int], columns: Columns) -> Columns:
    """Columns over some places, ascending, as columns over all places, null elsewhere."""
    num = len(page.labels)
    if len(places) == num:
        return columns
    at = np.full(num, -1, np.int64)
    at[places] = np.arange(len(places))
    indices = pa.array(at, mask=at < 0)
    return {name: column.take(indices) for name, column in columns.items()}


def _first_of(columns: Columns, others: Columns) -> Columns:
    """Both, and of a column that both have the first's values where it has some."""
    both = {name: pc.coalesce(columns[name], other) for name, other in others.items() if name in columns}
    return columns | others | both


def _statistics(reading: SourceReading, latents: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """[R] columns of the firing statistics; no rate where no token counts."""
    statistics = reading.exemplars.statistics
    first, last = int(latents[0]), int(latents[-1]) + 1
    at, num = latents - first, len(latents)
    num_tokens = int(statistics.num_tokens.sum())
    fire_count = statistics.fire_count[:, first:last].sum(axis=0)[at]
    peaks = statistics.max_activation[:, first:last][:, at]
    return {
        "num_tokens": np.full(num, num_tokens),
        "fire_count": fire_count,
        **({"fire_rate": fire_count / num_tokens} if num_tokens else {}),
        "num_windows": np.full(num, int(statistics.num_windows.sum())),
        "num_windows_firing": statistics.num_windows_firing[:, first:last].sum(axis=0)[at],
        "max_activation": peaks[np.argmax(np.abs(peaks), axis=0), np.arange(num)].astype(np.float64),
    }


def _lens_columns(
    reading: SourceReading, lens: LensEvidence, latents: NDArray[np.int64], columns: Mapping[str, pa.Array]
) -> dict[str, pa.Array]:
    """The same for all rows of a page."""
    found = {"neighbours": _lists(lens.neighbours[latents], lambda ids: pa.array(ids.astype(np.int64)))}
    pieces = reading.exemplars.pieces

    def texts(tokens: NDArray[np.int64]) -> pa.Array:
        distinct, place = np.unique(tokens, return_inverse=True)
        return pa.array([pieces.visible(int(token)) for token in distinct], pa.string()).take(pa.array(place))

    for name, field in _TOKENS:
        own = _lists(getattr(lens, field)[latents], texts)
        found[name] = own if name not in columns else pc.coalesce(columns[name], own)
    return found


def _lists(table_RK: NDArray[Any], values: Callable[[NDArray[Any]], pa.Array]) -> pa.Array:
    """[R] lists of the entries that are no -1."""
    there = table_RK >= 0
    offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values(table_RK[there]))
