"""Shards cut the corpus once, at the same places while it grows as when it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autointerp.config import CoderConfig, CorpusConfig, ExtractionConfig, RunConfig, SubjectConfig
from autointerp.pipeline.shards import shard_contexts, shard_units
from sae_core.token_corpus import TokenCorpus
from sae_core.tokens import CorpusSpec, build_corpus
from tests.sae_core.corpus_world import BOS, EOS, TEXTS, grown, json_lines, letters


def config(num_tokens: int, shard_tokens: int) -> RunConfig:
    return RunConfig(
        subject=SubjectConfig(model="x"),
        coders=(CoderConfig(path="x"),),
        corpus=CorpusConfig(path="x"),
        extraction=ExtractionConfig(
            num_tokens=num_tokens, context_length=8, window_length=4, shard_tokens=shard_tokens
        ),
        explainers=(),
        scorers=(),
    )


@pytest.mark.parametrize("shard_tokens", [1, 3, 50, 64, 270, 280, 1000])
@pytest.mark.parametrize("cut", [{}, {"bos_id": BOS}, {"bos_id": BOS, "packed": True}])
def test_every_context_is_in_one_shard_and_stays_there(tmp_path: Path, shard_tokens: int, cut: dict[str, Any]) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(TEXTS))
    packed = cut.get("packed", False)
    spec = CorpusSpec(str(tmp_path / "a.jsonl"), 280, 8, "body", packed=packed)
    corpus = build_corpus(spec, letters(), cut.get("bos_id"), tmp_path / "out", eos_id=EOS if packed else None)
    settings = config(280, shard_tokens)
    units = shard_units(settings)
    assert sum(units) == 280
    whole = [shard_contexts(corpus, shard, settings) for shard in range(len(units))]
    assert [context for contexts in whole for context in contexts or ()] == list(range(corpus.num_contexts))
    there = 0
    for contexts in range(corpus.num_contexts + 1):
        so_far = grown(corpus, contexts)
        for shard, final in enumerate(whole):
            now = shard_contexts(so_far, shard, settings)
            assert now in (None, final)
            assert now is None or now.stop <= contexts
            there += now is not None
        assert shard_contexts(so_far, len(units) - 1, settings) is None, "the last one has all the rest"
    assert (there > 0) == (len(units) > 1)
    if not packed and shard_tokens >= 50:
        for contexts, tokens in zip(whole, units, strict=True):
            assert contexts is not None
            assert abs(sum(len(corpus.context(c)) - (corpus.bos_id is not None) for c in contexts) - tokens) < 8


def test_the_digest_tells_texts_and_places_apart(tmp_path: Path) -> None:
    def corpus(rows: list[str], name: str) -> TokenCorpus:
        (tmp_path / f"{name}.jsonl").write_bytes(json_lines(rows))
        return build_corpus(
            CorpusSpec(str(tmp_path / f"{name}.jsonl"), 200, 8, "body"), letters(), BOS, tmp_path / name
        )

    one, same = corpus(TEXTS, "one"), corpus(TEXTS, "same")
    later = corpus([*TEXTS[:10], "a b c d", *TEXTS[10:]], "later")
    first, second = range(10), range(20, 24)
    assert one.digest(first) == same.digest(first) == grown(one, 12).digest(first) == later.digest(first)
    assert one.digest(second) == same.digest(second) != later.digest(second)
    assert one.digest(range(10, 10)) != one.digest(range(11, 11))
    assert len({one.digest(range(start, start + 2)) for start in range(20)}) == 20
