"""The output folder of a finished run with any number of latents, which no model made: a base for runs that reuse its exemplars.

Latent ``n`` fires on two words: strongly on the first word ``n % 1024``, weakly on the second word ``n // 1024``, and nowhere else.
Every word stands in the corpus ``OCCURRENCES[side]`` times, each time in another window, so all latents fire in equally many windows, and
what each fires on is known. A million latents take about half a gigabyte and half a minute.

python -m tests.made_up_world FOLDER [--latents 1000000]         makes the folder
python -m tests.made_up_world --serve [--ledger FILE] [--latency-ms 0]   answers what runs on it ask; prints its URL
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from autointerp.config import parse_config
from autointerp.llm.server import LLMServer, PlainAnswerer, Reply
from autointerp.llm.server.answers import schema_of
from autointerp.pipeline.context import extraction_settings
from autointerp.pipeline.folder import RunFolder, RunNote
from autointerp.store import open_store
from autointerp.store.models import Run
from autointerp.store.opening import sqlite_url
from sae_core.corpus_writer import TOKENIZER, CorpusWriter
from sae_core.exemplar_store import FORMAT_VERSION, compact_tokens
from sae_core.hashing import hash64
from sae_core.records import HISTOGRAM_EDGES, Side, Source
from sae_core.tensor_file import create
from sae_core.token_corpus import FORMAT_VERSION as CORPUS_VERSION
from sae_core.token_corpus import TokenCorpus

RUN_ID = "made-up-1"
SOURCE = "made-up"
FIRST_WORDS = 1024
MOST_LATENTS = FIRST_WORDS * FIRST_WORDS
OCCURRENCES: Mapping[Side, int] = {Side.EXPLAIN: 3, Side.CHOOSE: 2, Side.SCORE: 3}
"""Windows of a side in which each word stands; a latent fires in twice as many."""
CONTEXT, WINDOW = 16, 8
"""Tokens of a context, the BOS counted, and of a window."""
_SLICE = 32_768
"""Latents of one file of exemplars."""
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


def word_of(number: int) -> str:
    """One of the 2048 words; those on which latents fire strongly come first."""
    syllables = [c + v for c in _CONSONANTS for v in _VOWELS]
    first, second = divmod(number * 397 % 4900, 70)  # 397 and 4900 share no factor: no word comes twice
    return syllables[first] + syllables[second] + ("n" if number < FIRST_WORDS else "s")


def words_of(latent: int) -> tuple[str, str]:
    """The word on which a latent fires strongly, and that on which it does weakly."""
    return word_of(latent % FIRST_WORDS), word_of(FIRST_WORDS + latent // FIRST_WORDS)


def base_settings() -> dict[str, Any]:
    """What a run must share with the base in order to reuse its exemplars."""
    return {
        "subject": {"model": "made-up-subject"},
        "coders": [{"path": "made-up-coder", "hookpoint": "layers.0", "name": SOURCE}],
        "corpus": {"path": "made-up-corpus"},
        "extraction": {
            "num_tokens": 40_000,
            "context_length": CONTEXT,
            "window_length": WINDOW,
            "top_exemplars": 3,
            "sampled_exemplars": 3,
        },
        "controls": {"random_directions": 0},
    }


def make_base(folder: Path, num_latents: int) -> Path:
    """Write the base, a run that is done, and return its folder."""
    assert 1 <= num_latents <= MOST_LATENTS, f"{num_latents} latents cannot be told apart by two words"
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    where = RunFolder(folder)
    settings = base_settings()
    config = parse_config(settings | {"explainers": [{"kind": "pattern"}]}, "the made-up base")
    source = Source(SOURCE, "made-up-subject", "0" * 40, "layers.0", "made-up-coder", "f" * 64, num_latents)
    corpus, occurrences = _write_corpus(where.corpus)
    _write_exemplars(where.exemplars(SOURCE), source, config, corpus, occurrences)
    store = open_store(sqlite_url(where.database))
    run = Run(id=RUN_ID, name="made up", digest=config.digest, ordinal=1, config=config.stored(), state="done")
    run.folder, run.code_version = str(folder), "0"
    store.create_run(run)
    store.add_sources(RUN_ID, [source])
    facts = {
        "fingerprint": corpus.fingerprint,
        "num_documents": corpus.num_documents,
        "num_contexts": corpus.num_contexts,
        "num_tokens": corpus.num_tokens,
    }
    store.add_artefact(RUN_ID, "corpus", facts)
    store.close()
    where.write_note(RunNote(RUN_ID, config.digest, None))
    return folder


class _Occurrences:
    """Where words stand on one side: [1024, occurrences] each, the words of one kind in their order."""

    def __init__(self) -> None:
        self.context: list[NDArray[np.int64]] = []
        self.place: list[NDArray[np.int64]] = []

    def stacked(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return np.stack(self.context, 1), np.stack(self.place, 1)


def _write_corpus(folder: Path) -> tuple[TokenCorpus, dict[tuple[Side, int], tuple[NDArray[np.int64], ...]]]:
    """Each repetition of a kind of words is a shuffle of them, cut into contexts that are documents of their own.

    Contexts of first words come before those of second words on each side, so that a latent's windows ascend.
    """
    rng = np.random.default_rng(0)
    vocabulary = {"<s>": 0} | {f"▁{word_of(number)}": number + 1 for number in range(2 * FIRST_WORDS)}
    facts = {"format_version": CORPUS_VERSION, "bos_id": 0}
    found: dict[tuple[Side, int], tuple[NDArray[np.int64], ...]] = {}
    body, number = CONTEXT - 1, 0
    with CorpusWriter(folder, "<u2", facts) as writer:
        for side, kind in itertools.product(Side, range(2)):
            places = _Occurrences()
            for _ in range(OCCURRENCES[side]):
                order = rng.permutation(FIRST_WORDS)
                starts = range(0, FIRST_WORDS, body)
                parts = [order[start : start + body] for start in starts]
                tokens = np.concatenate([np.concatenate([[0], part + 1 + kind * FIRST_WORDS]) for part in parts])
                lengths = np.array([1 + len(part) for part in parts])
                documents = np.arange(number, number + len(parts))
                uid = hash64(documents, 7)
                writer.add(tokens.astype(np.int32), lengths, documents, np.full(len(parts), side, np.uint8), uid)
                at = np.argsort(order)  # of each word its place in the shuffle
                places.context.append(number + at // body)
                places.place.append(1 + at % body)
                number += len(parts)
            found[side, kind] = places.stacked()
        (folder / TOKENIZER).write_text(_tokenizer(vocabulary), encoding="utf-8")
        num_tokens = 2 * FIRST_WORDS * sum(OCCURRENCES.values())
        writer.finish(number, num_tokens, hashlib.sha256(b"made up").hexdigest())
    return TokenCorpus.open(folder), found


def _tokenizer(vocabulary: Mapping[str, int]) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(dict(vocabulary), unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer.to_str()


def _activation(latent: NDArray[np.int64], kind: int, occurrences: int) -> NDArray[np.float32]:
    """[latents, occurrences] a bit more at each occurrence, and a bit different for each latent."""
    own = (latent * 7919 % 997 / 997)[:, None]
    return ((6.0 if kind == 0 else 2.0) + 0.5 * np.arange(occurrences) + own).astype(np.float32)


def _write_exemplars(
    folder: Path,
    source: Source,
    config: Any,
    corpus: TokenCorpus,
    occurrences: Mapping[tuple[Side, int], tuple[NDArray[np.int64], ...]],
) -> None:
    settings = extraction_settings(config)
    folder.mkdir(parents=True)
    size, sides = source.num_latents, len(Side)
    start = np.asarray(corpus.context_start)
    lengths, side_of = np.diff(start), np.asarray(corpus.context_side)
    # every window of the corpus: two of a context, one of a context that is short
    context = np.repeat(np.arange(corpus.num_contexts), 1 + (lengths > WINDOW))
    second = np.concatenate([[False], context[1:] == context[:-1]])
    position = np.where(second, WINDOW, 0)
    previous = np.where(second, np.arange(len(context)) - 1, -1)
    text = _text_of(corpus, start[context] + position, np.minimum(lengths[context] - position, WINDOW))
    whole = np.concatenate([np.where(previous[:, None] >= 0, text[previous], -1), text], axis=1)
    ordinal = np.zeros((corpus.num_contexts, 2), np.int64)
    ordinal[context, second.astype(int)] = np.arange(len(context))
    windows_of = [np.flatnonzero(side_of[context] == side) for side in Side]

    latents = np.arange(size)
    words = (latents % FIRST_WORDS, latents // FIRST_WORDS)
    totals = {side: 2 * OCCURRENCES[side] for side in Side}
    pools = {}
    for side in Side:
        rows = windows_of[side]
        arrays = create(
            folder / f"pool-{side.name.lower()}.safetensors",
            {
                "tokens": (np.int32, (len(rows), 2 * WINDOW)),
                **dict.fromkeys(("first_token", "document", "context", "position"), (np.int32, (len(rows),))),
                "latent_start": (np.int64, (size + 1,)),
                "entry_window": (np.int32, (size * totals[side],)),
                "entry_column": (np.uint8, (size * totals[side],)),
                "entry_value": (np.float32, (size * totals[side],)),
            },
        )
        arrays["tokens"][:] = whole[rows]
        arrays["first_token"][:] = np.where(second[rows], WINDOW, WINDOW + 1)
        arrays["document"][:] = arrays["context"][:] = context[rows]
        arrays["position"][:] = position[rows]
        arrays["latent_start"][:] = np.arange(size + 1) * totals[side]
        pools[side] = arrays
    tables = {
        "window_tokens": compact_tokens(text),
        "window_previous": previous.astype(np.int32),
        "window_context": context.astype(np.int32),
        "window_position": position.astype(np.int32),
        "window_document": context.astype(np.int32),
    }
    origin = {side: [1] * OCCURRENCES[side] + [2] * OCCURRENCES[side] for side in Side}  # the strong ones, the others
    for begin in range(0, size, _SLICE):
        mine = slice(begin, min(begin + _SLICE, size))
        window, column, value = [], [], []
        for side in Side:
            count = OCCURRENCES[side]
            found = [occurrences[side, kind] for kind in range(2)]
            ctx, place = (np.concatenate([f[i][words[k][mine]] for k, f in enumerate(found)], 1) for i in range(2))
            window.append(ordinal[ctx, place // WINDOW])
            column.append((place % WINDOW).astype(np.uint8))
            value.append(np.concatenate([_activation(latents[mine], kind, count) for kind in range(2)], 1))
            cells = slice(mine.start * totals[side], mine.stop * totals[side])
            pool = pools[side]
            pool["entry_window"][cells] = np.searchsorted(windows_of[side], window[-1]).ravel()
            pool["entry_column"][cells] = column[-1].ravel() + WINDOW
            pool["entry_value"][cells] = value[-1].ravel()
        groups = np.tile([totals[side] for side in Side], mine.stop - mine.start)
        rows = np.concatenate(window, 1).ravel()
        save_file(
            {
                "group_start": np.concatenate([[0], np.cumsum(groups)]).astype(np.int64),
                "exemplar_window": rows.astype(np.int32),
                "origin": np.tile(np.concatenate([origin[s] for s in Side]), mine.stop - mine.start).astype(np.uint8),
                "row_length": np.ones(len(rows), np.uint8),
                "position": np.concatenate(column, 1).ravel(),
                "value": np.concatenate(value, 1).ravel(),
                **tables,
            },
            folder / f"exemplars-{begin // _SLICE:05d}.safetensors",
        )
    statistics = create(
        folder / "statistics.safetensors",
        {
            "num_tokens": (np.int64, (sides,)),
            "num_windows": (np.int64, (sides,)),
            "fire_count": (np.int64, (sides, size)),
            "num_windows_firing": (np.int64, (sides, size)),
            "max_activation": (np.float32, (sides, size)),
            "sum_activation": (np.float64, (sides, size)),
            # left empty, and so takes no room: nobody reads it of one latent, and it would be 800 bytes of each
            "histogram": (np.int64, (sides, size, len(HISTOGRAM_EDGES) + 1)),
        },
    )
    for side in Side:
        statistics["num_tokens"][side] = 2 * FIRST_WORDS * OCCURRENCES[side]
        statistics["num_windows"][side] = len(windows_of[side])
        statistics["fire_count"][side] = statistics["num_windows_firing"][side] = totals[side]
        values = pools[side]["entry_value"].reshape(size, totals[side])
        statistics["max_activation"][side] = values.max(axis=1)
        statistics["sum_activation"][side] = values.sum(axis=1, dtype=np.float64)
    (folder / TOKENIZER).write_bytes((corpus.folder / TOKENIZER).read_bytes())
    index = {
        "format_version": FORMAT_VERSION,
        "source": asdict(source),
        "settings": asdict(settings),
        "corpus_fingerprint": corpus.fingerprint,
        "windows_of_side": [len(rows) for rows in windows_of],
        "skipped_contexts": 0,
        "skipped_tokens": 0,
        "slice_latents": _SLICE,
    }
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


def _text_of(corpus: TokenCorpus, first: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.int32]:
    """[W, T] tokens of windows, -1 after the end of a short one."""
    columns = np.arange(WINDOW)
    inside = columns < length[:, None]
    return np.where(inside, corpus.tokens[np.where(inside, first[:, None] + columns, 0)], -1).astype(np.int32)


SCRIPTED = {
    "kind": "scripted",
    "rules": [{"contains": "You check a label", "reply": json.dumps({"matches": [1, 0] * 6})}],
    "replies": [json.dumps({"label": f"the word {word_of(number)}"}) for number in range(64)],
}
"""An endpoint that answers inside of the worker, at no cost, the same to the same prompt."""


def endpoint_of(url: str, **more: Any) -> dict[str, Any]:
    """An endpoint at a test server, with prices; ``more``: further settings of it."""
    prices = {"usd_per_million_input_tokens": 1.0, "usd_per_million_output_tokens": 2.0}
    return {"kind": "openai", "base_url": url, "model": "test", "timeout_s": 20.0, **prices, **more}


def run_settings(
    base: Path,
    endpoint: Mapping[str, Any] | None = None,
    *,
    latents: int | None = None,
    chunk_latents: int = 128,
    judged: bool = False,
) -> dict[str, Any]:
    """A configuration that labels the base's latents (the first ones, or all) by one call each, and where ``judged`` one more.

    ``endpoint``: SCRIPTED unless given.
    """
    settings = base_settings()
    settings["extraction"]["reuse"] = str(base.absolute())
    settings |= {"chunk_latents": chunk_latents, "endpoints": [dict(endpoint or SCRIPTED)]}
    settings |= {"explainers": [{"kind": "max_activating", "exemplars": 6}], "precision": {"by": ""}}
    settings |= {"latents": "all" if latents is None else f"0:{latents}"}
    detection = {"kind": "detection", "firing": 6, "silent": 6, "per_call": 12, "neighbour_share": 0.0}
    settings["scorers"] = [detection | {"confirm": False}] if judged else []
    return settings


def write_config(path: Path, settings: Mapping[str, Any]) -> Path:
    """The configuration as TOML."""
    lines: list[str] = []
    tables = [(name, value) for name, value in settings.items() if isinstance(value, dict)]
    lists = [(name, value) for name, value in settings.items() if isinstance(value, list)]
    lines += _pairs({n: v for n, v in settings.items() if not isinstance(v, (dict, list))})
    for name, table in tables:
        lines += [f"[{name}]", *_pairs(table)]
    for name, items in lists:
        lines += [] if items else [f"{name} = []"]
        for item in items:
            lines += [f"[[{name}]]", *_pairs(item)]
    empty = [line for line in lines if line.endswith(" = []") and line.split(" ")[0] in settings]
    lines = [*empty, *(line for line in lines if line not in empty)]  # keys of the file come before its tables
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _pairs(table: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {_toml(value)}" for name, value in table.items()]


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(_pairs(value)) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


_MARKED = re.compile(r"<<\s*([a-z]+)>>")
_LABEL = re.compile(r'^Label: "(?:[^"]*?) ([a-z]+)"', re.MULTILINE)
_WINDOWS = re.compile(r'^\d+ "(.*)"$', re.MULTILINE)


class MadeUpAnswerer(PlainAnswerer):
    """Labels a latent by the word that is marked first, and says of a window that a label fits where it holds that word."""

    def answer(self, request: dict[str, Any]) -> Reply:
        """The answer, the same to the same request."""
        properties = (schema_of(request) or {}).get("properties", {})
        asked = str(request["messages"][-1]["content"]) if request.get("messages") else ""
        if "label" in properties and (marked := _MARKED.search(asked)):
            return Reply(json.dumps({"label": f"the word {marked[1]}"}))
        if "matches" in properties and (label := _LABEL.search(asked)):
            windows = _WINDOWS.findall(asked)
            return Reply(json.dumps({"matches": [int(label[1] in window.split()) for window in windows]}))
        return super().answer(request)


async def _serve(ledger: Path | None, latency_s: float) -> None:
    server = LLMServer(MadeUpAnswerer(), ledger=ledger, latency_s=latency_s)
    await server.start()
    print(server.url, flush=True)
    listening = server.http.listening
    assert listening is not None
    await listening.wait_closed()


def main(arguments: Sequence[str] | None = None) -> None:
    """Make a base, or serve."""
    parser = argparse.ArgumentParser(prog="python -m tests.made_up_world")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--latents", type=int, default=1_000_000)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--ledger", type=Path)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    given = parser.parse_args(arguments)
    if given.serve:
        asyncio.run(_serve(given.ledger, given.latency_ms / 1000))
    else:
        make_base(given.folder, given.latents)


if __name__ == "__main__":
    main()
