"""Accumulated, cut into shards and ranges of latents and merged in any order: always what plain loops give, to the bit."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from sae_core import exemplar_store
from sae_core.accumulation import Accumulator, Windows, pool_rows
from sae_core.errors import ConfigError
from sae_core.exemplar_store import ExemplarStore, compact_tokens
from sae_core.fixed_point import LARGEST, as_float
from sae_core.hashing import hash64, seed_for
from sae_core.merging import merge_partials
from sae_core.partial import ExtractionSettings, Partial
from sae_core.pool_sample import PoolSample, pool_keys, window_uids
from sae_core.records import HISTOGRAM_EDGES, Origin, Side, Source
from sae_core.tensor_file import mapped
from sae_core.tokens import CorpusSpec, TokenCorpus, build_corpus
from tests.sae_core.corpus_world import grown

LATENTS = 9
BOS = 0
SETTINGS = ExtractionSettings(
    context_length=21,
    window_length=8,
    context_tokens=8,
    top_exemplars=2,
    sampled_exemplars=3,
    pool_windows=20,
    tau=0.25,
    seed=3,
)
PER_CONTEXT = SETTINGS.windows_per_context


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TokenCorpus:
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = [" ".join(rng.choice(list("bcdefgh"), rng.integers(1, 60))) for _ in range(60)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate("abcdefgh")}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return build_corpus(CorpusSpec(str(folder / "text.jsonl"), 1200, 21), tokenizer, BOS, folder / "tokens")


def activations(corpus: TokenCorpus, seed: int) -> list[NDArray[np.float32]]:
    """[T, L] of each context: sparse, signed, many of them equal, some below tau."""
    rng = np.random.default_rng(seed)
    rates = np.array([0.9, 0.5, 0.3, 0.1, 0.1, 0.05, 0.02, 0.01, 0.0])
    out = []
    for context in range(corpus.num_contexts):
        length = len(corpus.context(context))
        values = rng.choice(np.array([-3, -1, 0.1, 0.25, 0.5, 1, 1.1, 7e4], np.float32), (length, LATENTS))
        out.append(np.where(rng.random((length, LATENTS)) < rates, values, 0).astype(np.float32))
    return out


def shard(
    corpus: TokenCorpus,
    acts: list[NDArray[np.float32]],
    contexts: range,
    accumulators: list[Accumulator],
    kept: range,
    rng: np.random.Generator,
    seen: int,
) -> Partial:
    """One shard in batches of random contexts, as :mod:`sae_core.extraction` feeds them, when ``seen`` contexts are there."""
    order = rng.permutation(np.arange(contexts.start, contexts.stop))
    pool = PoolSample(grown(corpus, seen // 2), SETTINGS, frozenset({BOS}))
    pool.follow(grown(corpus, seen))
    tokens, windows_of = np.zeros(3, np.int64), np.zeros(3, np.int64)
    rows = []
    for batch in np.array_split(order, max(1, len(order) // 5)):
        if not len(batch):
            continue
        width = max(len(acts[c]) for c in batch)
        counts = np.zeros((len(batch), width), bool)
        dense = np.zeros((len(batch), width, LATENTS), np.float32)
        for b, c in enumerate(batch):
            counts[b, 1 : len(acts[c])] = True
            dense[b, : len(acts[c])] = acts[c]
        token, latent = np.nonzero(dense.reshape(-1, LATENTS))
        value = dense.reshape(-1, LATENTS)[token, latent]
        sides = corpus.context_side[batch].astype(np.int64)
        windows = Windows(batch, sides, window_uids(corpus, batch, PER_CONTEXT), counts, SETTINGS.window_length)
        for accumulator in accumulators:
            accumulator.add(token, latent, value, windows)
        exist = windows.exist
        tokens += np.bincount(sides, counts.sum(1), 3).astype(np.int64)
        windows_of += np.bincount(sides, exist.sum(1), 3).astype(np.int64)
        chosen = exist & pool.holds(windows.uid, sides)
        rows.append(pool_rows(token, latent, value, windows, chosen, kept, SETTINGS.tau))
    parts = [
        a.end_shard(
            contexts.start * PER_CONTEXT,
            contexts.stop * PER_CONTEXT,
            tokens,
            windows_of,
            np.zeros(2, np.int64),
            rows[0],
        )
        for a in accumulators
    ]
    firings = type(parts[0].firings).concatenate([p.firings for p in parts])
    names = ("fire_count", "num_windows_firing", "max_activation", "sum_high", "sum_low", "histogram")
    joined = {name: np.concatenate([getattr(p, name) for p in parts]) for name in names}
    return Partial(
        kept.start,
        tokens,
        windows_of,
        np.zeros(2, np.int64),
        firings=firings,
        pool=type(rows[0]).concatenate(rows),
        **joined,
    )


def store_of(
    corpus: TokenCorpus,
    acts: list[NDArray[np.float32]],
    folder: Path,
    cuts: list[int],
    ranges: list[int],
    seed: int,
    grows: bool = False,
) -> ExemplarStore:
    """Everything through shards between ``cuts`` and latents between ``ranges``, some shards by a process of their own.

    Where the corpus ``grows``, a shard knows of itself and of some of the rest.
    """
    rng = np.random.default_rng(seed)
    edges, bounds = [0, *cuts, corpus.num_contexts], [0, *ranges, LATENTS]
    paths = []
    folder.mkdir(exist_ok=True)
    for first, last in itertools.pairwise(bounds):
        kept = range(first, last)
        accumulators: list[Accumulator] = []
        for start, stop in rng.permutation(list(itertools.pairwise(edges))).tolist():
            if not accumulators or rng.random() < 0.5:  # another process
                middle = int(rng.integers(first, last + 1))
                accumulators = [Accumulator(r, SETTINGS) for r in (range(first, middle), range(middle, last))]
            paths.append(folder / f"{len(paths)}.safetensors")
            seen = int(rng.integers(stop, corpus.num_contexts + 1)) if grows else corpus.num_contexts
            shard(corpus, acts, range(start, stop), accumulators, kept, rng, seen).save(paths[-1])
    source = Source("s", "subject", "rev", "h.0", "coder", "print", LATENTS)
    pool = PoolSample(corpus, SETTINGS, frozenset({BOS})) if grows else None
    shuffled = [paths[i] for i in rng.permutation(len(paths))]
    return merge_partials(shuffled, source, SETTINGS, corpus, folder / "store", pool)


def check(store: ExemplarStore, corpus: TokenCorpus, acts: list[NDArray[np.float32]]) -> None:
    every: dict[tuple[int, int], NDArray[np.float32]] = {}
    for c, dense in enumerate(acts):
        dense = np.where(np.abs(dense) > SETTINGS.tau, dense, 0)
        dense[0] = 0
        for w in range(PER_CONTEXT):
            part = dense[w * 8 : w * 8 + 8]
            if len(part) > (w == 0):
                every[c, w] = part
    found = store.statistics
    firing: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for (c, w), part in every.items():
        for latent in np.flatnonzero((part != 0).any(0)):
            firing[int(corpus.context_side[c]), int(latent)].append((c, w))
    uids = window_uids(corpus, np.arange(corpus.num_contexts), PER_CONTEXT)
    for side, latent in itertools.product(Side, range(LATENTS)):
        mine = firing[side, latent]
        values = [every[key][:, latent] for key in mine]
        peaks = [float(np.abs(v).max()) for v in values]
        assert found.num_windows_firing[side, latent] == len(mine)
        assert found.fire_count[side, latent] == sum(int((v != 0).sum()) for v in values)
        assert found.max_activation[side, latent] == max(peaks, default=0)
        exact = sum((Fraction(float(x)) for v in values for x in v), Fraction(0))
        assert found.sum_activation[side, latent] == pytest.approx(float(exact), rel=1e-12, abs=2e-8 * len(mine))
        cells = np.bincount([int((np.float32(p) >= HISTOGRAM_EDGES).sum()) for p in peaks], minlength=34)
        np.testing.assert_array_equal(found.histogram[side, latent], cells)
        keys = hash64(
            seed_for(SETTINGS.seed, "exemplars"), latent, np.array([uids[k] for k in mine], np.uint64).view(np.int64)
        )
        order = sorted(range(len(mine)), key=lambda i: (-peaks[i], int(keys[i])))
        for origin, chosen in (
            (Origin.TOP, order[: SETTINGS.top_exemplars]),
            (Origin.SAMPLED, sorted(order, key=lambda i: int(keys[i]))[: SETTINGS.sampled_exemplars]),
        ):
            got = store.exemplars(latent, side, origin)
            assert [(e.context, e.position // 8) for e in got] == [mine[i] for i in chosen]
            for exemplar, i in zip(got, chosen, strict=True):
                c, w = mine[i]
                np.testing.assert_array_equal(exemplar.activations, values[i])
                text = corpus.context(c).tolist()
                assert exemplar.token_ids.tolist() == text[w * 8 : w * 8 + 8]
                assert exemplar.context_ids.tolist() == text[max(0, w * 8 - 8) : w * 8]
                assert exemplar.document == corpus.context_document[c]
    shown = {
        (e.context, e.position) for f in range(LATENTS) for s in Side for o in Origin for e in store.exemplars(f, s, o)
    }
    before = {(c, position - 8) for c, position in shown if position}
    files = sorted(store.folder.glob("exemplars-*"))
    if len(files) == 1:  # each window once, with the one before it in its context, and nothing else
        table = mapped(files[0])
        stored = list(zip(table["window_context"].tolist(), table["window_position"].tolist(), strict=True))
        assert sorted(stored) == sorted(shown | before)
    for side in Side:
        mine = [key for key in every if corpus.context_side[key[0]] == side]
        assert found.num_windows[side] == len(mine)
        order = np.argsort(pool_keys(np.array([uids[k] for k in mine]), SETTINGS.seed))[: SETTINGS.pool_windows]
        chosen = sorted(mine[i] for i in order)
        pool = store.pool(side)
        assert list(zip(pool.context.tolist(), (pool.position // 8).tolist(), strict=True)) == chosen
        assert pool.is_census == (len(mine) <= SETTINGS.pool_windows)
        for latent in range(LATENTS):
            window, column, value = pool.activations(latent)
            expected = [
                (i, int(t) + SETTINGS.context_tokens, float(every[k][t, latent]))
                for i, k in enumerate(chosen)
                for t in np.flatnonzero(every[k][:, latent])
            ]
            assert list(zip(window.tolist(), column.tolist(), value.tolist(), strict=True)) == expected


@pytest.mark.long
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 80), unique=True, max_size=4).map(sorted),
    st.lists(st.integers(1, LATENTS - 1), unique=True, max_size=2).map(sorted),
    st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_any_cut_in_any_order_gives_what_plain_loops_give(
    corpus: TokenCorpus,
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    cuts: list[int],
    ranges: list[int],
    grows: bool,
) -> None:
    acts = activations(corpus, seed % 7)
    cuts = [c for c in cuts if c < corpus.num_contexts]
    store = store_of(corpus, acts, tmp_path_factory.mktemp("cut"), cuts, ranges, seed, grows)
    check(store, corpus, acts)


def test_stores_of_other_cuts_are_equal_to_the_byte(
    corpus: TokenCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts = activations(corpus, 1)
    first = store_of(corpus, acts, tmp_path / "one", [], [], 0)
    second = store_of(corpus, acts, tmp_path / "two", [10, 33, 61], [4], 1)
    for path in sorted(first.folder.iterdir()):
        assert path.read_bytes() == (second.folder / path.name).read_bytes(), path.name
    for seed in range(5):
        other = store_of(corpus, acts, tmp_path / f"grown-{seed}", [10, 33, 61], [4], seed, grows=True)
        sizes = [len(Partial.load(path).pool.window) for path in (tmp_path / f"grown-{seed}").glob("*.safetensors")]
        assert sum(sizes) > 2 * sum(len(first.pool(side).context) for side in Side), "some knew too little to leave out"
        for path in sorted(first.folder.iterdir()):
            assert path.read_bytes() == (other.folder / path.name).read_bytes(), path.name
    monkeypatch.setattr("sae_core.merging.SLICE_LATENTS", 4)
    sliced = store_of(corpus, acts, tmp_path / "three", [20], [], 2)
    assert len(list(sliced.folder.glob("exemplars-*"))) == 3
    check(sliced, corpus, acts)


@pytest.mark.parametrize("length", [32, 128])
def test_the_largest_activations_add_up(length: int) -> None:
    accumulator = Accumulator(range(2), ExtractionSettings(context_length=length, window_length=length))
    windows = Windows(
        np.arange(1), np.zeros(1, np.int64), np.zeros((1, 1), np.uint64), np.ones((1, length), bool), length
    )
    largest = np.nextafter(np.float32(LARGEST), np.float32(0))
    token = np.repeat(np.arange(length), 2)
    value = np.tile(np.array([largest, -largest], np.float32), length)
    accumulator.add(token, np.tile(np.arange(2), length), value, windows)
    nothing = np.zeros(3, np.int64)
    empty = pool_rows(token[:0], token[:0], value[:0], windows, np.zeros((1, 1), bool), range(2), 0.0)
    partial = accumulator.end_shard(0, 1, nothing, nothing, np.zeros(2, np.int64), empty)
    assert as_float(partial.sum_high, partial.sum_low)[:, 0].tolist() == [
        length * float(largest),
        -length * float(largest),
    ]
    assert partial.firings.row_length.tolist() == [length, length]


@pytest.mark.parametrize(
    "wrong", [{"top_exemplars": 0}, {"sampled_exemplars": 0}, {"window_length": 129}, {"window_length": 0}]
)
def test_settings_that_nothing_could_be_extracted_with(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"give 1 "):
        ExtractionSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("largest", "dtype"), [(65_533, np.uint16), (65_534, np.uint16), (65_535, np.int32), (70_000, np.int32)]
)
def test_tokens_in_sixteen_bits_where_they_fit(largest: int, dtype: type[np.generic]) -> None:
    tokens = np.array([[0, -1, largest]], np.int32)
    stored = compact_tokens(tokens)
    assert stored.dtype == dtype
    np.testing.assert_array_equal(exemplar_store._tokens(stored), tokens)


def test_a_million_additions_lose_nothing() -> None:
    """In float32 the sum of a million tenths is off in the third place."""
    accumulator = Accumulator(range(1), ExtractionSettings())
    count = 2048
    windows = Windows(np.arange(8), np.zeros(8, np.int64), np.zeros((8, 8), np.uint64), np.ones((8, 256), bool), 32)
    for _ in range(500):
        accumulator.add(np.arange(count), np.zeros(count, np.int64), np.full(count, 0.1, np.float32), windows)
    empty = pool_rows(
        np.empty(0, np.int64),
        np.empty(0, np.int64),
        np.empty(0, np.float32),
        windows,
        np.zeros((8, 8), bool),
        range(1),
        0.0,
    )
    nothing = np.zeros(3, np.int64)
    partial = accumulator.end_shard(0, 64, nothing, nothing, np.zeros(2, np.int64), empty)
    total = as_float(partial.sum_high, partial.sum_low)[0, 0]
    assert total == pytest.approx(500 * count * float(np.float32(0.1)), rel=3e-7)
    assert partial.fire_count[0, 0] == 500 * count
