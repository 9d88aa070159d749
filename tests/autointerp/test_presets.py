"""Presets say the numbers of the protocols that they are named after, and the scorers follow their formulas."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autointerp.config import RunConfig, load_config
from autointerp.evidence import LatentEvidence
from autointerp.explainers.max_activating import MaxActivatingExplainer
from autointerp.explanation import Explanation
from autointerp.failure import FailureKind
from autointerp.judging import Verdicts
from autointerp.llm.protocol import CompletionRequest
from autointerp.llm.scripted import ScriptedLLMs
from autointerp.presets import preset, presets
from autointerp.sampling.all_sides import without_sides
from autointerp.sampling.importance import importance_weighted
from autointerp.sampling.quantiles import by_quantiles
from autointerp.sampling.window import ShownWindow, Stratum
from autointerp.scorers.base import Scorer
from autointerp.scorers.detection import DetectionScorer
from autointerp.scorers.fuzz import FuzzScorer
from autointerp.scorers.saebench import SaebenchScorer
from sae_core.errors import ConfigError
from sae_core.records import Origin, Side
from tests.autointerp.pools import HandStore, letters, make_pool
from tests.autointerp.test_review import exemplar_at

WORDS = ["<bos>", *"abcdefghijklmnopqrst"]
LABEL = Explanation(latent=0, explainer="max_activating", text="the letter a")


def strength(context: Sequence[int], at: int) -> float:
    """An a fires with a strength from 1 to 100 that its neighbours decide."""
    return float(context[at] == 1) * (1 + (7 * at + 13 * sum(context)) % 100)


def store_of(contexts: int = 500) -> HandStore:
    pools = {}
    for side in Side:
        rng = np.random.default_rng(int(side))
        texts = [[0, *rng.integers(1, 21, 31).tolist()] for _ in range(contexts)]
        # contexts are numbered over the whole corpus, so that no place stands on two sides
        pool = make_pool(side, texts, list(range(contexts)), [strength, lambda c, at: 0.0])
        pool.context[:] = pool.context + 10_000 * int(side)
        pools[side] = pool
    store = HandStore(pools, letters(WORDS))
    for side, pool in pools.items():
        rows = np.unique(pool.activations(0)[0])
        found = sorted((exemplar_at(pool, row, 0, Origin.TOP) for row in rows), key=lambda e: -e.max_activation)
        store.exemplars_by_key[(0, side, Origin.TOP)] = found[:12]
        store.exemplars_by_key[(0, side, Origin.SAMPLED)] = [
            exemplar_at(pool, r, 0, Origin.SAMPLED) for r in rows[:100]
        ]
    return store


@pytest.fixture(scope="module")
def store() -> HandStore:
    return store_of()


def quoted(request: CompletionRequest) -> list[str]:
    lines = re.findall(r'^\d+ (".*")$', request.messages[-1].content, re.MULTILINE)
    return [json.loads(line) for line in lines]


def judge(says: Callable[[str], bool]) -> ScriptedLLMs:
    return ScriptedLLMs(lambda request: json.dumps({"matches": [int(says(text)) for text in quoted(request)]}))


def user_file(folder: Path, text: str) -> RunConfig:
    path = folder / "run.toml"
    path.write_text(
        'subject.model = "m/s"\ncorpus.path = "m/t"\n' + text + '\n[[coders]]\npath = "m/c"\nname = "s"\n'
        '[[endpoints]]\nkind = "scripted"\nmodel = "m"\nreplies = ["x"]\n'
    )
    return load_config(path)


def test_every_preset_is_a_configuration_and_the_users_keys_win(tmp_path: Path) -> None:
    assert presets() == ["delphi", "saebench"]
    for name in presets():
        config = user_file(tmp_path, f'preset = "{name}"')
        assert config.extraction.window_length == preset(name)["extraction"]["window_length"]
    changed = user_file(tmp_path, 'preset = "delphi"\nextraction.num_tokens = 1000')
    assert (changed.extraction.num_tokens, changed.extraction.window_length) == (1000, 32)
    # half of a protocol is none
    with pytest.raises(ConfigError, match="brings its own"):
        user_file(tmp_path, 'preset = "delphi"\nscorers = [{kind = "pattern"}]')
    with pytest.raises(ConfigError, match="there is no preset 'delhpi': did you mean 'delphi'"):
        user_file(tmp_path, 'preset = "delhpi"')


def test_delphis_numbers(tmp_path: Path) -> None:
    config = user_file(tmp_path, 'preset = "delphi"')
    assert (config.extraction.num_tokens, config.extraction.context_length) == (10_000_000, 256)
    [explainer] = config.build_explainers()
    assert isinstance(explainer, MaxActivatingExplainer)
    assert (explainer.exemplars, explainer.selection) == (40, "spread")
    detection, fuzz = config.build_scorers()
    assert isinstance(detection, DetectionScorer)
    assert isinstance(fuzz, FuzzScorer)
    assert (detection.firing, detection.silent, detection.per_call, detection.firing_quantiles) == (50, 50, 5, 10)
    assert (fuzz.firing, fuzz.per_call, fuzz.firing_quantiles) == (50, 5, 10)


def test_saebenchs_numbers(tmp_path: Path) -> None:
    config = user_file(tmp_path, 'preset = "saebench"')
    assert (config.extraction.num_tokens, config.extraction.window_length) == (2_000_000, 21)
    [explainer], [scorer] = config.build_explainers(), config.build_scorers()
    assert isinstance(explainer, MaxActivatingExplainer)
    assert isinstance(scorer, SaebenchScorer)
    assert (explainer.exemplars, explainer.selection, explainer.mark_share) == (15, "importance", 0.01)
    assert (scorer.top, scorer.weighted, scorer.random) == (2, 2, 10)


def score(scorer: Scorer, store: HandStore, llms: ScriptedLLMs, **changes: Any) -> Any:
    return asyncio.run(scorer.score(LABEL, LatentEvidence(0, store, **changes), llms))


def test_delphis_detection_takes_five_windows_from_each_tenth_and_balances_the_rates(
    tmp_path: Path, store: HandStore
) -> None:
    scorer = user_file(tmp_path, 'preset = "delphi"').build_scorers()[0]
    llms = judge(lambda text: "a" in text and "b" not in text)
    found = score(scorer, store, llms)
    assert len(llms.asked) == 20
    assert {len(quoted(request)) for request in llms.asked} == {5}
    texts = [text for request in llms.asked for text in quoted(request)]
    firing = [text for text in texts if "a" in text]
    assert len(firing) == 50
    # balanced accuracy by hand: silent windows hold no a, so all of them are right
    assert found.values["detection_score"] == pytest.approx((sum("b" not in text for text in firing) / 50 + 1) / 2)
    assert "detection_leak" not in found.values
    pool = store.pool(Side.SCORE)
    windows, _, values = pool.activations(0)
    peaks = {row: values[windows == row].max() for row in np.unique(windows)}
    edges = np.quantile(list(peaks.values()), np.linspace(0, 1, 11)[1:-1])
    places = {f"{pool.context[row]}:{pool.position[row]}": peak for row, peak in peaks.items()}
    judged = [places[item.window] for item in Verdicts.from_json(found.verdicts).items if item.truth]
    assert all(3 <= count <= 7 for count in Counter(np.searchsorted(edges, judged).tolist()).values())


def test_delphis_fuzz_asks_about_fifty_right_and_fifty_wrong_ones(tmp_path: Path, store: HandStore) -> None:
    scorer = user_file(tmp_path, 'preset = "delphi"').build_scorers()[1]
    llms = judge(lambda text: re.search("<<a+>>", text) is not None)
    found = score(scorer, store, llms)
    assert (found.values["fuzz_judged"], found.values["fuzz_score"]) == (100, 1.0)
    assert {len(quoted(request)) for request in llms.asked} == {4}


def test_delphis_explainer_sees_forty_windows_of_all_strengths(tmp_path: Path, store: HandStore) -> None:
    [explainer] = user_file(tmp_path, 'preset = "delphi"').build_explainers()
    llms = ScriptedLLMs(lambda request: json.dumps({"label": "the letter a"}))
    explanation = asyncio.run(explainer.explain(LatentEvidence(0, store), llms))
    assert len(explanation.exemplar_ids) == 40
    assert llms.asked[0].messages[-1].content.count("\n") >= 40
    sampled = store.exemplars(0, Side.EXPLAIN, Origin.SAMPLED)
    peak = {f"{e.context}:{e.position}": e.max_activation for e in sampled}
    shown = sorted(peak[name] for name in explanation.exemplar_ids)
    assert abs(np.median(shown) - np.median(list(peak.values()))) < 5  # as strong as the sample, not as the top


def test_saebenchs_explainer_sees_ten_strongest_and_five_weaker_ones(tmp_path: Path, store: HandStore) -> None:
    [explainer] = user_file(tmp_path, 'preset = "saebench"').build_explainers()
    llms = ScriptedLLMs(lambda request: json.dumps({"label": "the letter a"}))
    explanation = asyncio.run(explainer.explain(LatentEvidence(0, store), llms))
    top = [f"{e.context}:{e.position}" for e in store.exemplars(0, Side.EXPLAIN, Origin.TOP)[:10]]
    assert list(explanation.exemplar_ids[:10]) == top
    assert len(explanation.exemplar_ids) == 15


@pytest.mark.parametrize(
    ("says", "right"), [(lambda text: False, 10), (lambda text: True, 4), (lambda text: "a" in text, None)]
)
def test_saebenchs_score_is_the_share_of_fourteen_windows_told_right(
    store: HandStore, says: Callable[[str], bool], right: int | None
) -> None:
    llms = judge(says)
    found = score(SaebenchScorer(), store, llms)
    [request] = llms.asked
    texts = quoted(request)
    assert len(texts) == 14
    firing_at_random = sum("a" in text for text in texts) - 4
    assert found.values["saebench_random_firing"] == firing_at_random
    # random windows count as silent even where the latent fires in them
    expected = 14 - firing_at_random if right is None else right
    assert found.values["saebench_score"] == pytest.approx(expected / 14)
    assert found.values["saebench_never_yes"] == pytest.approx(10 / 14)


def test_saebench_judges_no_window_that_was_seen(store: HandStore) -> None:
    """All but the last 50 contexts of the score side were shown to somebody: neither strong nor random windows are of them."""
    pool = store.pool(Side.SCORE)
    first = 10_000 * int(Side.SCORE) + 450
    places = zip(pool.context.tolist(), pool.position.tolist(), strict=True)
    seen = frozenset((context, position) for context, position in places if context < first)
    found = score(SaebenchScorer(), store, judge(lambda text: True), excluded=seen)
    assert found.failure is None
    windows = Verdicts.from_json(found.verdicts).windows
    assert len(windows) == 14
    assert min(int(name.split(":")[0]) for name in windows) >= first


def test_saebenchs_strong_windows_are_strong_and_its_weighted_ones_weaker(store: HandStore) -> None:
    top = [f"{e.context}:{e.position}" for e in store.exemplars(0, Side.SCORE, Origin.TOP)]
    for seed in range(5):
        found = score(SaebenchScorer(seed=seed), store, judge(lambda text: True))
        firing = [item.window for item in Verdicts.from_json(found.verdicts).items if item.truth]
        assert set(firing[:2]) <= set(top[:5])
        assert not set(firing[2:]) & set(top[:5])


def test_few_windows_are_a_failure_with_the_numbers() -> None:
    pools = {side: make_pool(side, [[0, *([2] * 100), 1]], [0], [strength]) for side in Side}
    failure = score(SaebenchScorer(), HandStore(pools, letters(WORDS)), judge(lambda text: True)).failure
    assert failure.kind is FailureKind.TOO_FEW_WINDOWS
    assert "4 and 10 are needed" in failure.message


@pytest.mark.parametrize("kind", [DetectionScorer, FuzzScorer, SaebenchScorer])
def test_without_sides_what_was_explained_is_scored_and_the_result_says_so(
    store: HandStore, kind: type[DetectionScorer | FuzzScorer | SaebenchScorer]
) -> None:
    def sides(**fields: Any) -> set[Side]:
        scorer = kind(**fields)
        found = score(scorer, store, judge(lambda text: True))
        assert found.values.get(f"{scorer.kind}_leak") == (None if scorer.leak_free else 1)
        windows = Verdicts.from_json(found.verdicts).windows
        return {Side(int(name.split(":")[0]) // 10_000) for name in windows}

    assert sides() == {Side.SCORE}
    assert sides(leak_free=False) == set(Side)


def test_what_chooses_keeps_to_its_side_also_without_sides(store: HandStore) -> None:
    found = score(DetectionScorer(leak_free=False), store, judge(lambda text: True), scored_side=Side.CHOOSE)
    windows = Verdicts.from_json(found.verdicts).windows
    assert {int(name.split(":")[0]) // 10_000 for name in windows} == {int(Side.CHOOSE)}


def test_the_joined_pool_has_every_window_with_its_activations(store: HandStore) -> None:
    joined = without_sides(LatentEvidence(0, store)).store
    pool = joined.pool(Side.EXPLAIN)
    assert without_sides(LatentEvidence(0, store)).store is joined
    dense = np.zeros(pool.tokens.shape)
    windows, columns, values = pool.activations(0)
    assert (np.diff(windows) >= 0).all()
    dense[windows, columns] = values
    parts = []
    for side in Side:
        part = store.pool(side)
        block = np.zeros(part.tokens.shape)
        w, c, v = part.activations(0)
        block[w, c] = v
        parts.append(block)
    np.testing.assert_array_equal(dense, np.concatenate(parts))
    np.testing.assert_array_equal(pool.tokens, np.concatenate([store.pool(side).tokens for side in Side]))
    expected = store.statistics.num_windows_firing.sum(axis=0)
    np.testing.assert_array_equal(joined.statistics.num_windows_firing.sum(axis=0), expected)
    top = joined.exemplars(0, Side.EXPLAIN, Origin.TOP)
    assert len(top) == 36
    assert [e.max_activation for e in top] == sorted((e.max_activation for e in top), reverse=True)


def window_of(*values: float, context: int = 0) -> ShownWindow:
    found = np.array(values, dtype=np.float32)
    tokens = np.ones(len(values), dtype=np.int32)
    return ShownWindow(tokens, found, tokens[:0], context, context, 0, Stratum.FIRING)


def test_importance_is_the_squared_activation() -> None:
    windows = [window_of(1.0), window_of(2.0), window_of(-3.0, 0.0), window_of(0.0)]
    rng = np.random.default_rng(0)
    drawn = Counter(id(importance_weighted(windows, 1, rng)[0]) for _ in range(14_000))
    counts = [drawn[id(window)] for window in windows]
    # 1 : 4 : 9 of 14 parts; three standard deviations of a count are at most 180
    assert all(abs(count - 1000 * weight) < 180 for count, weight in zip(counts, (1, 4, 9, 0), strict=True))
    assert importance_weighted(windows, 3, rng, below=2.0) == [windows[0]]
    assert importance_weighted([], 3, rng) == []


def test_quantiles_are_equally_filled() -> None:
    windows = [window_of(float(n), context=n) for n in range(1, 101)]
    chosen = by_quantiles(windows, 20, 10, np.random.default_rng(1))
    assert Counter((int(window.max_activation) - 1) // 10 for window in chosen) == dict.fromkeys(range(10), 2)
    assert len(by_quantiles(windows, 25, 10, np.random.default_rng(1))) == 25
    assert by_quantiles(windows[:5], 20, 10, np.random.default_rng(1)) == windows[:5]
