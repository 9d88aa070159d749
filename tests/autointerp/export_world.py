"""Stored runs of any size, made up row by row and written in bulk: what exports and imports are tried on.

What stands in a row follows from the latent's number alone. Every kind of row is among the first sixty latents: dead, rare
and failed ones, labels that were counted and judged, screened ones with several estimates, output labels, causal effects,
people's reviews, failures of judges, lost calls.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from autointerp.config import parse_config
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.folder import RunFolder, RunNote
from autointerp.pipeline.starting import open_run
from autointerp.store import LabelStore, open_store
from autointerp.store.models import Run
from autointerp.store.opening import sqlite_url
from sae_core.records import HISTOGRAM_EDGES, Side, Source
from sae_core.tensor_file import create

RUN_ID = "world-1"
MADE = "2026-03-01T12:00:00.000000+00:00"
FINGERPRINT = "ab" * 32
CORPUS = "cd" * 32
WINDOWS = 12
"""Windows that a judge was asked about for a label."""


def config_of(num_latents: int, sources: Sequence[str]) -> dict[str, Any]:
    """A configuration with judges, which nobody has to reach."""
    return {
        "subject": {"model": "m"},
        "coders": [{"path": "c", "name": name} for name in sources],
        "corpus": {"path": "python-stdlib"},
        "endpoints": [{"name": "judge", "kind": "scripted", "replies": ["{}"]}],
        "explainers": [{"kind": "contrastive"}, {"kind": "pattern"}],
        "scorers": [{"kind": "pattern"}, {"kind": "intervention"}, {"kind": "detection"}, {"kind": "fuzz"}],
        "latents": "all",
    }


def status_of(latent: int) -> str:
    return {0: "dead", 1: "rare", 2: "failed"}.get(latent % 20, "labelled")


def explainer_of(latent: int) -> str | None:
    """Whose text is the label."""
    return None if status_of(latent) != "labelled" else "pattern" if latent % 7 == 3 else "contrastive"


def figure(latent: int, salt: int) -> float:
    """A figure between 0 and 1 with as many digits as real ones have."""
    return ((latent * 2654435761 + salt * 40503) % 1_000_003) / 1_000_003


def text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def label_rows(source: str, latents: range) -> Iterator[dict[str, Any]]:
    for n in latents:
        status = status_of(n)
        yield {
            "run_id": RUN_ID,
            "source": source,
            "latent": n,
            "status": status,
            "text": f"the word number {n}, also after a colon" if status == "labelled" else None,
            "text_output": f"makes word {n} likelier" if n % 5 == 0 and status == "labelled" else None,
            "explainer": explainer_of(n),
            "decided_by": "configuration order",
            "failure_kind": {"rare": "too_few_windows", "failed": "unparseable"}.get(status),
            "failure_message": f"fires in {n % 9} windows." if status in ("rare", "failed") else None,
            "created_at": MADE,
        }


def explanation_rows(source: str, latents: range) -> Iterator[dict[str, Any]]:
    for n in latents:
        if status_of(n) == "dead":
            continue
        kinds = [("contrastive", "input")]
        if n % 7 == 3:
            kinds.append(("pattern", "input"))
        if n % 5 == 0:
            kinds.append(("token_change", "output"))
        for kind, side in kinds:
            failed = status_of(n) == "failed"
            yield {
                "run_id": RUN_ID,
                "source": source,
                "latent": n,
                "explainer": kind,
                "side": side,
                "text": "" if failed else f"makes word {n} likelier" if side == "output" else f"the word number {n}",
                "payload": "{}",
                "exemplar_ids": "[]",
                "prompt_hash": "ef" * 32 if kind != "pattern" else None,
                "model": "some/model" if kind != "pattern" else None,
                "input_tokens": 900 + n % 100 if kind != "pattern" else 0,
                "output_tokens": 20,
                "cost_usd": 0.0001 * (n % 13),
                "failure_kind": "unparseable" if failed else None,
                "failure_message": "no JSON" if failed else None,
                "created_at": MADE,
            }


def _judged(n: int, kind: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        f"{kind}_{what}": figure(n, salt)
        for salt, what in enumerate(("score", "auroc", "tpr", "fpr", "fpr_neighbour", "fpr_bulk"))
    }
    values |= {f"{kind}_judged": 40 + n % 5, f"{kind}_failed": n % 3, f"{kind}_probabilities": 40}
    return values | {f"{kind}_calls": 8, "judge_model": "other/model, some/model" if n % 2 else "some/model"}


def score_rows(source: str, latents: range) -> Iterator[dict[str, Any]]:
    for n in latents:
        found: list[tuple[str, str, dict[str, Any], str | None]] = []
        if n % 7 == 3 and status_of(n) != "dead":
            values: dict[str, Any] = {
                name: figure(n, salt)
                for salt, name in enumerate(
                    (
                        "precision",
                        "precision_low",
                        "precision_high",
                        "recall",
                        "recall_low",
                        "recall_high",
                        "f1",
                        "f1_low",
                    )
                )
            }
            values |= {"precision_method": "counted", "precision_basis": "counted", "token_rule_f1": figure(n, 20)}
            values |= {"num_judged": 15_000, "num_windows_predicted": n % 300, "natural_rate": figure(n, 21)}
            found.append(("pattern", "pattern", values | {"correlation": None}, None))
        # no run of a million ablates many of them
        if n % (4 if n < 1000 else 40) == (1 if n < 1000 else 9) and status_of(n) not in ("dead", "rare"):
            effect = figure(n, 30) * 3 - 1
            values = {
                "causal_effect": effect,
                "causal_effect_low": effect - 0.5,
                "causal_effect_high": effect + 0.5,
                "causal_effect_isotropic": effect + 0.01,
                "causal_effect_typical": effect - 0.2,
                "causal_spread_isotropic": 0.2 + figure(n, 31),
                "causal_spread_typical": 0.3 + figure(n, 32),
                "causal_num_controls": 16,
                "causal_push_norm": 1.0 + figure(n, 33),
                "ablation_kl": figure(n, 34),
                "causal_chosen": "all",
                "top_promoted_tokens": ["a", "é"],
                "steering_failure": "unreachable" if n % 8 == 1 else None,
            }
            found.append(("intervention", "", values, None))
        if status_of(n) == "labelled" or n % 40 == 1:
            for kind in ("detection", "fuzz"):
                broken = kind == "fuzz" and n % 11 == 0
                values = {"fuzz_judged": 0, "fuzz_failed": 40} if broken else _judged(n, kind)
                found.append((kind, "contrastive", values, "truncated" if broken else None))
                if n % 7 == 3:
                    found.append((kind, "pattern", _judged(n + 1, kind), None))
        if n % 15 == 0 and n % 20:
            values = {"output_label_steered_choice_score": figure(n, 40), "steered_choice_judged": 12}
            found.append(("steered_choice", "token_change", values, None if n % 30 else "collapsed"))
        for scorer, explainer, values, failure in found:
            yield {
                "run_id": RUN_ID,
                "source": source,
                "latent": n,
                "scorer": scorer,
                "explainer": explainer,
                "values": text(values),
                "failure_kind": failure,
                "failure_message": failure and "the answer was cut off",
                "created_at": MADE,
            }


_ESTIMATED = (
    "precision", "precision_low", "precision_high", "precision_own_low", "precision_own_high", "best_precision",
    "natural_rate", "recall", "recall_low", "recall_high", "near_precision", "near_precision_low", "near_precision_high",
    "f1", "f1_low", "f1_high",
)  # fmt: skip


def estimate_rows(source: str, latents: range, rounds: Sequence[int] = (1, 2)) -> Iterator[dict[str, Any]]:
    for n in latents:
        if status_of(n) != "labelled":
            continue
        for number in rounds:
            for explainer in ("contrastive", *(("shuffled/contrastive",) if n % 50 == 9 else ())):
                failed = n % 23 == 4
                values = {} if failed else {name: figure(n + number, salt) for salt, name in enumerate(_ESTIMATED)}
                if not failed:
                    values |= {"precision_method": "judged", "precision_basis": "own", "prior_num_latents": 900}
                yield {
                    "run_id": RUN_ID,
                    "source": source,
                    "latent": n,
                    "stage": f"estimate_{number}",
                    "explainer": explainer,
                    "values": text(values),
                    "failure_kind": "too_few_windows" if failed else None,
                    "failure_message": "3 windows were judged" if failed else None,
                    "created_at": MADE,
                }


def verdict_rows(source: str, latents: range) -> Iterator[dict[str, Any]]:
    for n in latents:
        if status_of(n) != "labelled":
            continue
        truths = [w % 3 == 0 for w in range(WINDOWS)]
        answers = [None if (n + w) % 17 == 0 else (n + w) % 3 == 0 for w in range(WINDOWS)]
        items: dict[str, Any] = {
            "windows": [f"{(n * 7 + w) % 4096}:{32 * (w % 8)}" for w in range(WINDOWS)],
            "strata": "".join("f" if true else "nteb"[w % 4] for w, true in enumerate(truths)),
            "truths": "".join("1" if true else "0" for true in truths),
            "answers": "".join("-" if said is None else "1" if said else "0" for said in answers),
            "pool": {"neighbour": 9, "token": 9, "near": 9, "bulk": 900},
            "rate": 0.01,
        }
        if None in answers:
            items["failures"] = ["truncated" if said is None else None for said in answers]
        if n % 3:
            items["probabilities"] = [
                None if said is None else round(figure(n, w), 4) for w, said in enumerate(answers)
            ]
        if n % 4 == 2:
            items["again"] = "".join(
                "0" if said and not true else "-" for said, true in zip(answers, truths, strict=True)
            )
        yield {
            "run_id": RUN_ID,
            "source": source,
            "latent": n,
            "scorer": "detection",
            "explainer": "contrastive",
            "items": text(items),
            "created_at": MADE,
        }


def call_rows(source: str, latents: range) -> Iterator[dict[str, Any]]:
    for n in latents:
        if status_of(n) == "dead":
            continue
        for purpose in ("contrastive", "detection"):
            lost = n % 37 == 5 and purpose == "detection"
            yield {
                "key": None if lost else f"{source}/{n}/{purpose}",
                "run_id": RUN_ID,
                "endpoint": "judge",
                "model": "some/model",
                "purpose": purpose,
                "source": source,
                "latent": n,
                "outcome": "lost" if lost else "reply",
                "input_tokens": 1000 + n % 7,
                "cached_tokens": 0,
                "output_tokens": 30,
                "cost_nano_usd": None if n % 41 == 6 else 1234 * (n % 97),
                "reply": None if lost else b"{}",
                "seconds": 0.5,
                "created_at": MADE,
            }


def review_rows(source: str, latents: range) -> Iterator[dict[str, Any]]:
    """A few: an edit, a rejection, an acceptance, and an edit that was edited again."""
    for n in latents:
        said = {24: [("edit", "better")], 25: [("reject", None)], 26: [("accept", None)]}.get(n, [])
        if n == 27:
            said = [("edit", "better"), ("reject", None), ("edit", "best")]
        for action, words in said:
            yield {
                "run_id": RUN_ID,
                "source": source,
                "latent": n,
                "action": action,
                "text": words,
                "by": "ann",
                "note": None,
                "created_at": MADE,
            }


TABLES = {
    "explanation": explanation_rows,
    "score": score_rows,
    "label": label_rows,
    "estimate": estimate_rows,
    "llm_call": call_rows,
    "review": review_rows,
    "verdict": verdict_rows,
}


def fill(store: LabelStore, source: str, num_latents: int, tables: Sequence[str] = tuple(TABLES)) -> None:
    """Insert the rows of all latents, ten thousand latents at a time, with the drivers' own bulk ways."""
    for start in range(0, num_latents, 10_000):
        latents = range(start, min(start + 10_000, num_latents))
        for name in tables:
            rows = list(TABLES[name](source, latents))
            if rows:
                _insert(store, name, rows)


def _insert(store: LabelStore, name: str, rows: list[dict[str, Any]]) -> None:
    columns = list(rows[0])
    quoted = ", ".join(f'"{column}"' for column in columns)
    values = [tuple(row[column] for column in columns) for row in rows]
    with store.writing() as connection:
        driver: Any = connection.connection.dbapi_connection
        if connection.dialect.name == "postgresql":
            with driver.cursor() as cursor, cursor.copy(f'COPY "{name}" ({quoted}) FROM STDIN') as copy:
                for row in values:
                    copy.write_row(row)
        else:
            marks = ", ".join("?" * len(columns))
            driver.executemany(f'INSERT INTO "{name}" ({quoted}) VALUES ({marks})', values)


def write_exemplars(folder: Path, source: Source) -> None:
    """An exemplar store of statistics, with one window a side and no exemplar."""
    folder.mkdir(parents=True)
    size, sides = source.num_latents, len(Side)
    arrays = create(
        folder / "statistics.safetensors",
        {
            "num_tokens": (np.int64, (sides,)),
            "num_windows": (np.int64, (sides,)),
            "fire_count": (np.int64, (sides, size)),
            "num_windows_firing": (np.int64, (sides, size)),
            "max_activation": (np.float32, (sides, size)),
            "sum_activation": (np.float64, (sides, size)),
            "histogram": (np.int64, (sides, size, len(HISTOGRAM_EDGES) + 1)),
        },
    )
    number = np.arange(size)
    arrays["num_tokens"][:] = [400_000, 200_000, 400_000]
    arrays["num_windows"][:] = [12_500, 6_250, 12_500]
    arrays["fire_count"][:] = np.where(number % 20 == 0, 0, number % 977 + 1)
    arrays["num_windows_firing"][:] = np.where(number % 20 == 0, 0, number % 311 + 1)
    arrays["max_activation"][:] = np.where(number % 20 == 0, 0, (number % 89) / 7 - 3)
    index = {
        "format_version": 2,
        "source": {name: getattr(source, name) for name in Source.__slots__},
        "settings": {},
        "corpus_fingerprint": CORPUS,
        "skipped_contexts": 0,
        "skipped_tokens": 0,
        "slice_latents": 32_768,
        "windows_of_side": [1, 1, 1],
    }
    (folder / "index.json").write_text(json.dumps(index))
    window = {name: np.zeros(1, np.int32) for name in ("first_token", "document", "context", "position")}
    entries = {"entry_window": np.int32, "entry_column": np.uint8, "entry_value": np.float32}
    for side in Side:
        pool = {"tokens": np.zeros((1, 64), np.int32), "latent_start": np.zeros(size + 1, np.int64), **window}
        save_file(
            pool | {name: np.zeros(0, kind) for name, kind in entries.items()},
            folder / f"pool-{side.name.lower()}.safetensors",
        )
    nothing = {"row_length": np.zeros(0, np.int32), "origin": np.zeros(0, np.uint8)}
    groups = {"group_start": np.zeros(32_768 * sides + 1, np.int64)}
    for number in range(-(-size // 32_768)):
        save_file(nothing | groups, folder / f"exemplars-{number:05d}.safetensors")


def make_world(
    folder: Path,
    num_latents: int,
    *,
    url: str | None = None,
    sources: Sequence[str] = ("layers.2",),
    tables: Sequence[str] = tuple(TABLES),
) -> None:
    """The output folder of a finished run with its store at ``url`` (by default the folder's own database)."""
    folder.mkdir(parents=True, exist_ok=True)
    store = open_store(url or sqlite_url(folder / "autointerp.db"))
    config = parse_config(config_of(num_latents, sources), "made up")
    store.create_run(
        Run(
            id=RUN_ID,
            name="world",
            digest=config.digest,
            ordinal=1,
            config=config.stored(),
            state="done",
            folder=str(folder),
            code_version="1.2.3",
        )
    )
    records = [Source(name, "m", "0", "layers.2", "c", FINGERPRINT, num_latents) for name in sources]
    store.add_sources(RUN_ID, records)
    for record in records:
        write_exemplars(RunFolder(folder).exemplars(record.name), record)
        fill(store, record.name, num_latents, tables)
    RunFolder(folder).write_note(RunNote(RUN_ID, config.digest, url))
    store.close()


def open_world(folder: Path, url: str | None = None) -> RunContext:
    """The run as a command finds it."""
    return open_run(open_store(url or sqlite_url(folder / "autointerp.db"), create=False), RUN_ID, folder)
