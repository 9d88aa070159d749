"""Counted figures against brute force, window by window and token by token."""

from __future__ import annotations

from asyncio import run

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp.evidence import LatentEvidence
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.patterns import Pattern, PatternTrie
from autointerp.pipeline.stages.controls import null_answers
from autointerp.score import Score
from autointerp.scorers.pattern import PatternScorer
from sae_core.records import Side
from tests.autointerp.pools import HandStore, Rule, letters, make_pool

WORDS = ["<bos>", *"abcd"]


def rule_of(firing: set[tuple[int, int]]) -> Rule:
    return lambda context, at: float(1 + context[at]) if (context[at], context[at - 1]) in firing else 0.0


rows_strategy = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=20), min_size=2, max_size=5)


@settings(max_examples=60, deadline=None)
@given(rows_strategy, st.sets(st.tuples(st.integers(1, 4), st.integers(0, 4)), max_size=8), st.sets(st.integers(1, 4)))
def test_counts_equal_brute_force(rows: list[list[int]], firing: set[tuple[int, int]], said: set[int]) -> None:
    pool = make_pool(Side.SCORE, [[0, *r] for r in rows], [i // 2 for i in range(len(rows))], [rule_of(firing)])
    shown = make_pool(Side.EXPLAIN, [[0, 1]], [99], [rule_of(firing)])
    trie = PatternTrie(tuple(Pattern((t,), True, 2.0 * t, 1, 1) for t in sorted(said)))
    store = HandStore({Side.SCORE: pool, Side.EXPLAIN: shown}, letters(WORDS))
    explanation = Explanation(latent=0, explainer="pattern", text="x", payload=trie.to_payload())
    values = run(PatternScorer().score(explanation, LatentEvidence(0, store))).values

    truth, yes, true_tokens, said_tokens = [], [], [], []
    dense = np.zeros(pool.tokens.shape)
    window, column, value = pool.activations(0)
    dense[window, column] = value
    for w in range(len(pool.tokens)):
        own = [c for c in range(pool.tokens.shape[1]) if pool.counts[w, c]]
        truth.append(any(dense[w, c] for c in own))
        yes.append(any(int(pool.tokens[w, c]) in said for c in own))
        true_tokens += [float(dense[w, c]) for c in own]
        said_tokens += [2.0 * int(pool.tokens[w, c]) * (int(pool.tokens[w, c]) in said) for c in own]
    both = sum(t and y for t, y in zip(truth, yes, strict=True))

    def share(part: float, whole: float) -> float | None:
        return pytest.approx(part / whole) if whole else None

    assert values["precision"] == share(both, sum(yes))
    assert values["recall"] == share(both, sum(truth))
    assert values["f1"] == share(2 * both, sum(yes) + sum(truth))
    assert values["predicts_nothing"] == int(not any(yes))
    pi = sum(truth) / len(truth)
    assert values["always_yes_f1"] == pytest.approx(2 * pi / (1 + pi))
    assert values["always_yes_precision"] == pytest.approx(pi)
    assert values["num_windows_scored"] == len(truth)
    assert values["num_documents"] == len(set(pool.document.tolist()))
    if np.std(true_tokens) > 0 and np.std(said_tokens) > 0:
        assert values["correlation"] == pytest.approx(np.corrcoef(true_tokens, said_tokens)[0, 1])
    else:
        assert values["correlation"] in (None, 0.0)
    silent = len(truth) - sum(truth)
    if silent and sum(truth):
        expected = (both / sum(truth) + 1 - (sum(yes) - both) / silent) / 2
        assert values["balanced_accuracy"] == pytest.approx(expected)
    if pi > 0.2:
        fires, tells = np.array(true_tokens) > 0, np.array(said_tokens) > 0
        assert values["token_precision"] == share(int((fires & tells).sum()), int(tells.sum()))
        assert values["token_recall"] == share(int((fires & tells).sum()), int(fires.sum()))
    else:
        assert values["token_precision"] is None

    answers = null_answers(0, Score(latent=0, scorer="pattern", values=values))
    everything, nothing = answers["null_everything"].values, answers["null_nothing"].values
    assert everything["precision"] == pytest.approx(pi)
    assert everything["f1"] == pytest.approx(2 * pi / (1 + pi))
    assert nothing["precision"] is None
    assert everything["recall"] == (1.0 if pi else None)
    assert nothing["recall"] == (0.0 if pi else None)


def test_windows_that_repeat_the_explain_side_are_left_out() -> None:
    header = [1, 2, 3, 4] * 4
    rule = rule_of({(1, 4)})
    shown = make_pool(Side.EXPLAIN, [[0, *header]], [0], [rule], window=16)
    pool = make_pool(Side.SCORE, [[0, *header], [0, 4, 1, 4, 1], [0, 3, 3]], [1, 2, 3], [rule], window=32)
    store = HandStore({Side.SCORE: pool, Side.EXPLAIN: shown}, letters(WORDS))
    explanation = Explanation(
        latent=0, explainer="pattern", text="a", payload=PatternTrie((Pattern((1,), True, 1.0, 1, 1),)).to_payload()
    )
    values = run(PatternScorer().score(explanation, LatentEvidence(0, store))).values
    assert values["num_windows_scored"] == 2
    assert values["num_windows_firing_scored"] == 1
    assert values["share_skipped"] == pytest.approx(1 / 3)
    kept = run(PatternScorer(skip_repeated=False).score(explanation, LatentEvidence(0, store))).values
    assert kept["num_windows_scored"] == 3


def test_without_a_label_the_failure_is_kept_and_the_token_rule_still_stands() -> None:
    rule = rule_of({(1, 4)})
    pools = {s: make_pool(s, [[0, 4, 1, 2], [0, 2, 2]], [int(s), 9], [rule]) for s in (Side.EXPLAIN, Side.SCORE)}
    evidence = LatentEvidence(0, HandStore(pools, letters(WORDS)))
    failed = Explanation(
        latent=0, explainer="pattern", failure=Failure(kind=FailureKind.NO_PATTERN, message="nothing predicts it")
    )
    score = run(PatternScorer().score(failed, evidence))
    assert score.failure is not None
    assert score.failure.kind is FailureKind.NO_EXPLANATION
    assert "nothing predicts it" in score.failure.message
    assert "precision" not in score.values
    assert score.values["token_rule_f1"] == 1.0
    assert run(PatternScorer().score(None, evidence)).failure is not None
