"""A finished run whose every window is known from its corpus: what exports in other tools' formats are tried on.

It is a base of ``tests.made_up_world``: latent ``n`` fires on the words ``words_of(n)``. Some latents are made special:

====== ==============================================================================
latent is
====== ==============================================================================
4      dead: no window, no activation
5      negative wherever it fires
6      rare: a status without a label
7      failed, with a message
8      labelled with hostile text, by an explainer with a hostile model's name
9      labelled by what it does too
====== ==============================================================================

Words 0 to 3, on which latents 0 to 3 fire strongly, have texts that are not seen or that break formats. Beside the source
stands a control.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from sqlalchemy import insert

from autointerp.pipeline.context import RunContext
from autointerp.pipeline.folder import RunFolder
from autointerp.pipeline.starting import open_run
from autointerp.store import LabelStore, open_store
from autointerp.store.models import ExplanationRow, LabelRow, ScoreRow
from autointerp.store.opening import sqlite_url
from sae_core.lens_evidence import LensEvidence
from sae_core.records import Side, Source
from sae_core.token_corpus import TokenCorpus
from tests.made_up_world import OCCURRENCES, RUN_ID, SOURCE, WINDOW, make_base, word_of

NUM_LATENTS = 12
DEAD, NEGATIVE, RARE, FAILED, HOSTILE, OUTPUT = 4, 5, 6, 7, 8, 9
STRANGE = {0: "\x00nul", 1: "\u200b\u202e", 2: '\\u0000"<script>', 3: "\u2028|`\n"}
"""Texts of words; a space stands before each as before all words."""
HOSTILE_LABEL = 'line one\n---\n# Heading </p><script>alert(1)</script> | `code` "quoted" \\u0000 \u202eevil {{x}} [a](javascript:b)'
HOSTILE_MODEL = "org/evil\nmodel: |"
PROMOTED, SUPPRESSED = [11, 1, -1], [12, 13, -1]
"""Token ids; token 1 is word 0."""


def make_run(folder: Path, num_latents: int = NUM_LATENTS) -> RunContext:
    """Write the run and open it."""
    make_base(folder, num_latents)
    where = RunFolder(folder)
    _change_store(where.exemplars(SOURCE), num_latents)
    _write_lens(where.lens(SOURCE), num_latents)
    store = open_store(sqlite_url(where.database))
    control = Source("random", "made-up-subject", "0" * 40, "layers.0", "random", "0" * 64, 4, control=True)
    store.add_sources(RUN_ID, [control])
    _write_rows(store, SOURCE, range(num_latents))
    _write_rows(store, "random", range(4))
    store.close()
    return open_run(open_store(sqlite_url(where.database), create=False), RUN_ID, folder)


def _change_store(folder: Path, num_latents: int) -> None:
    path = folder / "tokenizer.json"
    layout = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = layout["model"]["vocab"]
    for number, text in STRANGE.items():
        vocabulary[f"▁{text}"] = vocabulary.pop(f"▁{word_of(number)}")
    path.write_text(json.dumps(layout), encoding="utf-8")

    for number in range(-(-num_latents // 32_768)):
        path = folder / f"exemplars-{number:05d}.safetensors"
        if number == 0:
            _change_exemplars(path)
    for side in Side:
        path = folder / f"pool-{side.name.lower()}.safetensors"
        pool = dict(load_file(path))
        start = pool["latent_start"]
        pool["entry_value"][start[NEGATIVE] : start[NEGATIVE + 1]] *= -1
        gone = np.arange(start[DEAD], start[DEAD + 1])
        for name in ("entry_window", "entry_column", "entry_value"):
            pool[name] = np.delete(pool[name], gone)
        pool["latent_start"] = start - np.where(np.arange(len(start)) > DEAD, len(gone), 0)
        save_file(pool, path)
    path = folder / "statistics.safetensors"
    statistics = dict(load_file(path))
    for name in ("fire_count", "num_windows_firing", "max_activation", "sum_activation"):
        statistics[name][:, DEAD] = 0
    statistics["max_activation"][:, NEGATIVE] *= -1
    save_file(statistics, path)


def _change_exemplars(path: Path) -> None:
    table = dict(load_file(path))
    starts, sides = table["group_start"], len(Side)
    mine = slice(starts[NEGATIVE * sides], starts[(NEGATIVE + 1) * sides])
    table["value"][mine] *= -1  # each row has one activation
    gone = np.arange(starts[DEAD * sides], starts[(DEAD + 1) * sides])
    for name in ("exemplar_window", "origin", "row_length", "position", "value"):
        table[name] = np.delete(table[name], gone)
    after = np.arange(len(starts)) - DEAD * sides
    table["group_start"] = starts - np.array([np.count_nonzero(gone < start) for start in starts]) * (after > 0)
    save_file(table, path)


def _write_lens(path: Path, num_latents: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)

    def rows(values: Sequence[float], kind: Any) -> Any:
        return np.tile(np.array(values, kind), (num_latents, 1))

    LensEvidence(
        rows([1, 2, -1], np.int32),
        rows([0.5, 0.25, 0], np.float32),
        rows(PROMOTED, np.int32),
        rows([3.5, 1.25, 0], np.float32),
        rows(SUPPRESSED, np.int32),
        rows([-2.5, -0.125, 0], np.float32),
    ).save(path)


def status_of(latent: int) -> str:
    return {DEAD: "dead", RARE: "rare", FAILED: "failed"}.get(latent, "labelled")


def label_of(latent: int) -> str | None:
    if status_of(latent) != "labelled":
        return None
    return HOSTILE_LABEL if latent == HOSTILE else f"label {latent}"


def _write_rows(store: LabelStore, source: str, latents: range) -> None:
    common = {"run_id": RUN_ID, "source": source}
    labels, explanations, scores = [], [], []
    for latent in latents:
        text, failed = label_of(latent), status_of(latent) == "failed"
        labels.append(
            {
                **common,
                "latent": latent,
                "status": status_of(latent),
                "text": text,
                "text_output": "does something" if latent == OUTPUT else None,
                "explainer": "contrastive" if text else None,
                "decided_by": "configuration order",
                "failure_kind": "unparseable" if failed else None,
                "failure_message": "could not be parsed" if failed else None,
            }
        )
        if text is not None:
            explanations.append(
                {
                    **common,
                    "latent": latent,
                    "explainer": "contrastive",
                    "side": "input",
                    "text": text,
                    "payload": {},
                    "exemplar_ids": [],
                    "model": HOSTILE_MODEL if latent == HOSTILE else "some/model",
                    "input_tokens": 1,
                    "output_tokens": 1,
                    "cost_usd": 0.0,
                }
            )
        if latent == 0:
            values = {"precision": 0.75, "precision_low": 0.5, "precision_high": 0.9, "precision_method": "counted"}
            values |= {"recall": 0.25, "f1": 0.375}
            scores.append({**common, "latent": 0, "scorer": "pattern", "explainer": "contrastive", "values": values})
    with store.writing() as connection:
        for table, rows in ((LabelRow, labels), (ExplanationRow, explanations), (ScoreRow, scores)):
            if rows:
                connection.execute(insert(table), rows)


def text_of(token: int) -> str:
    """A token's text, by the vocabulary of the world."""
    if token == 0:
        return "<s>"
    return " " + STRANGE.get(token - 1, word_of(token - 1))


def firing(folder: Path, latent: int) -> list[tuple[Side, int, list[int], list[float]]]:
    """Side, kind (0 strong, 1 weak), token ids and activations of every window in which a latent fires, by a walk over the corpus."""
    corpus = TokenCorpus.open(RunFolder(folder).corpus)
    own = np.float32(latent * 7919 % 997 / 997)
    found = []
    seen: dict[tuple[Side, int], int] = {}
    wanted = {1 + latent % 1024: 0, 1 + 1024 + latent // 1024: 1}
    for number in range(corpus.num_contexts):
        tokens = np.asarray(corpus.tokens[corpus.context_start[number] : corpus.context_start[number + 1]]).tolist()
        side = Side(int(corpus.context_side[number]))
        for place, token in enumerate(tokens):
            if token in wanted and latent != DEAD:
                kind = wanted[token]
                count = seen.get((side, kind), 0)
                seen[side, kind] = count + 1
                value = np.float32((6.0 if kind == 0 else 2.0) + 0.5 * count) + own
                first = place // WINDOW * WINDOW
                window = tokens[first : first + WINDOW]
                values = [0.0] * len(window)
                values[place - first] = float(-value if latent == NEGATIVE else value)
                found.append((side, kind, window, values))
    assert latent == DEAD or sum(seen.values()) == 2 * sum(OCCURRENCES.values())
    return found
