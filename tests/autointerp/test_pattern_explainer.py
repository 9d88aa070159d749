"""Planted latents: what the explainer must find, what it may read, and what a latent without patterns becomes."""

from __future__ import annotations

import json
from asyncio import run

import numpy as np
import pytest

from autointerp.components import parse_component
from autointerp.evidence import LatentEvidence, SuffixRequest
from autointerp.explainers.pattern import PatternExplainer
from autointerp.failure import FailureKind, LatentStatus
from autointerp.patterns import WILDCARD, PatternTrie, pool_index, token_rule
from autointerp.patterns.probes import probed_patterns
from autointerp.scorers.pattern import PatternScorer
from sae_core.records import Side, SuffixProbe
from tests.autointerp.pools import HandStore, Rule, letters, make_pool

WORDS = ["<bos>", "self", "(", ",", "cls", "\n", " ", "x", "=", "def", *"0123456789"]
SELF, OPEN, COMMA, CLS, NEWLINE, X = 1, 2, 3, 4, 5, 7
DIGITS = range(10, 20)


def self_after_open(context: list[int], at: int) -> float:
    return 2.0 if at and context[at] == SELF and context[at - 1] == OPEN else 0.0


def self_not_after_comma(context: list[int], at: int) -> float:
    return 3.0 if at and context[at] == SELF and context[at - 1] != COMMA else 0.0


def digit(context: list[int], at: int) -> float:
    return 1.0 + context[at] / 10 if context[at] in DIGITS else 0.0


def anything_after_def(context: list[int], at: int) -> float:
    return 1.5 if at and context[at - 1] == 9 else 0.0


def two_before(context: list[int], at: int) -> float:
    return 1.0 if at > 1 and context[at] == X and context[at - 2] == NEWLINE else 0.0


def never(context: list[int], at: int) -> float:
    return 0.0


RULES: list[Rule] = [self_after_open, self_not_after_comma, digit, anything_after_def, two_before, never]  # type: ignore[list-item]


def noise(seed: int) -> Rule:
    rng = np.random.default_rng(seed)
    table = rng.random(4000)
    return lambda context, at: float(table[(hash(tuple(context)) + at) % 4000] < 0.05)


@pytest.fixture(scope="module")
def store() -> HandStore:
    rng = np.random.default_rng(0)
    pools = {}
    for side, count in ((Side.EXPLAIN, 60), (Side.CHOOSE, 30), (Side.SCORE, 60)):
        contexts = []
        for _ in range(count):
            body = rng.integers(1, len(WORDS), 63)
            # As often as not "self" follows one of the two tokens that matter.
            for at in rng.integers(1, 63, 12):
                body[at], body[at - 1] = SELF, rng.choice([OPEN, COMMA])
            contexts.append([0, *body.tolist()])
        pools[side] = make_pool(
            side, contexts, [100 * int(side) + i // 2 for i in range(count)], [*RULES, noise(int(side))]
        )
    return HandStore(pools, letters(WORDS))


def blind(store: HandStore) -> HandStore:
    """The same store without a score side: reading it raises."""
    pools = {side: pool for side, pool in store.pools.items() if side is not Side.SCORE}
    return HandStore(pools, store.pieces)


@pytest.mark.parametrize("latent", range(5))
def test_planted_latents_are_recovered_and_beat_the_token_rule(store: HandStore, latent: int) -> None:
    explanation = run(PatternExplainer().explain(LatentEvidence(latent, blind(store))))
    values = run(PatternScorer().score(explanation, LatentEvidence(latent, store))).values
    assert (values["precision"], values["recall"], values["f1"]) == (1.0, 1.0, 1.0)
    assert isinstance(values["correlation"], float)
    assert values["correlation"] > 0.95
    rule = values["token_rule_f1"]
    assert isinstance(rule, float)
    assert rule == 1.0 if latent == 2 else rule < 0.9


def test_labels_read_well(store: HandStore) -> None:
    explainer = PatternExplainer()
    texts = [run(explainer.explain(LatentEvidence(latent, blind(store)))).text for latent in range(5)]
    assert texts[0] == '"self" after "("'
    assert texts[1] == '"self" but not after ","'
    assert all(f'"{d}"' in texts[2] for d in range(10))
    assert texts[3] == 'any token after "def"'
    assert texts[4] == '"x" after "⏎" _'
    assert max(map(len, texts)) <= 160


def test_long_labels_say_how_much_is_left_out(store: HandStore) -> None:
    text = run(PatternExplainer(longest_label=40).explain(LatentEvidence(2, blind(store)))).text
    assert len(text) <= 40
    shown = text.count('"') // 2
    assert text.endswith(f"and {10 - shown} more patterns")


def test_payload_is_json_and_restores_the_trie(store: HandStore) -> None:
    explanation = run(PatternExplainer().explain(LatentEvidence(1, blind(store))))
    payload = json.loads(json.dumps(explanation.payload))
    trie = PatternTrie.from_payload(payload)
    assert trie.to_payload() == explanation.payload
    exception = next(p for p in trie.patterns if p.symbols == (SELF, COMMA))
    assert not exception.fires
    assert exception.hits == 0


def test_dead_latent_and_silent_explain_side_are_typed(store: HandStore) -> None:
    dead = run(PatternExplainer().explain(LatentEvidence(5, blind(store))))
    assert dead.failure is not None
    assert (dead.failure.kind, dead.failure.status) == (FailureKind.DEAD, LatentStatus.DEAD)
    quiet = make_pool(Side.EXPLAIN, [[0, 7, 7]], [0], RULES)
    rare_store = HandStore({**store.pools, Side.EXPLAIN: quiet}, store.pieces)
    rare = run(PatternExplainer().explain(LatentEvidence(0, rare_store)))
    assert rare.failure is not None
    assert (rare.failure.kind, rare.failure.status) == (FailureKind.TOO_FEW_WINDOWS, LatentStatus.RARE)
    firing = len(np.unique(store.pools[Side.SCORE].activations(0)[0]))
    assert f"{firing} on score" in rare.failure.message
    assert rare.text == ""


def test_noise_still_gets_an_honest_label(store: HandStore) -> None:
    explanation = run(PatternExplainer().explain(LatentEvidence(6, blind(store))))
    assert explanation.failure is None
    values = run(PatternScorer().score(explanation, LatentEvidence(6, store))).values
    assert isinstance(values["f1"], float)
    assert values["f1"] < 0.7


def test_a_latent_seen_once_gets_its_pattern() -> None:
    explain = make_pool(Side.EXPLAIN, [[0, 7, 8, 4, 7], [0, 8, 8, 7]], [0, 1], [lambda c, i: float(c[i] == CLS)])
    choose = make_pool(Side.CHOOSE, [[0, 7, 8]], [2], [never])
    explanation = run(
        PatternExplainer().explain(
            LatentEvidence(0, HandStore({Side.EXPLAIN: explain, Side.CHOOSE: choose}, letters(WORDS)))
        )
    )
    assert '"cls"' in explanation.text


def test_probed_suffix_becomes_a_pattern_with_wildcards() -> None:
    probe = SuffixProbe(
        0, np.array([9, 3, 8, 7], np.int32), np.array([0.9, 0.0, 0.05, 1.0], np.float32), 2.0, 1.5, False, True
    )
    assert list(probed_patterns([probe], 0.1, 4, 0)) == [(0, 3)]
    start = SuffixProbe(0, np.array([8, 7], np.int32), np.array([0.0, 1.0], np.float32), 2.0, 1.5, True, True)
    found = probed_patterns([start], 0.1, 4, 0)
    assert found[(0, 2)].literals().tolist() == [[7, 0]]
    lost = SuffixProbe(0, np.array([7], np.int32), np.array([1.0], np.float32), 2.0, 0.1, False, False)
    assert probed_patterns([lost], 0.1, 4, 0) == {}


def test_a_probe_alone_explains_what_the_pool_does_not_hold(store: HandStore) -> None:
    """A pattern that stands nowhere in the explain pool, but that a probe has run."""
    rule: Rule = lambda c, i: 2.0 if i >= 3 and c[i] == X and c[i - 3] == NEWLINE and c[i - 1] == OPEN else 0.0  # noqa: E731
    quiet = make_pool(Side.EXPLAIN, [[0, 7, 8, 7, 3], [0, 8, 8]], [0, 1], [rule])
    busy = make_pool(Side.CHOOSE, [[0, NEWLINE, 8, OPEN, X, 8, NEWLINE, 9, OPEN, X]], [2], [rule])
    probe = SuffixProbe(
        0, np.array([NEWLINE, 8, OPEN, X], np.int32), np.array([1, 0, 1, 1], np.float32), 2.0, 2.0, False, True
    )
    hand = HandStore({Side.EXPLAIN: quiet, Side.CHOOSE: busy}, letters(WORDS))
    explanation = run(PatternExplainer().explain(LatentEvidence(0, hand, [probe])))
    trie = PatternTrie.from_payload(explanation.payload)
    assert {p.symbols for p in trie.patterns} == {(X, OPEN, WILDCARD, NEWLINE)}
    assert explanation.text == '"x" after "⏎" _ "("'


def test_token_rule_equals_brute_force(store: HandStore) -> None:
    pool = store.pool(Side.EXPLAIN)
    for latent in range(len(RULES)):
        window, column, _ = pool.activations(latent)
        firing = set(zip(window.tolist(), column.tolist(), strict=True))
        seen: dict[int, list[bool]] = {}
        for cell in zip(*np.nonzero(pool.counts), strict=True):
            seen.setdefault(int(pool.tokens[cell]), []).append((int(cell[0]), int(cell[1])) in firing)
        expected = {token for token, fires in seen.items() if 2 * sum(fires) > len(fires)}
        assert token_rule(LatentEvidence(latent, store)) == expected


def test_explaining_twice_gives_the_same(store: HandStore) -> None:
    first, second = (run(PatternExplainer().explain(LatentEvidence(6, blind(store)))) for _ in range(2))
    assert first == second


def test_needs_follow_the_config() -> None:
    explainer = parse_component("explainers", {"kind": "pattern", "exemplars": 4})
    assert explainer.needs() == [SuffixRequest(exemplars=4)]
    assert PatternExplainer(exemplars=0).needs() == []
    assert explainer.llm_needs() == []


def test_index_counts_every_position(store: HandStore) -> None:
    pool = store.pool(Side.SCORE)
    index = pool_index(pool)
    assert index.num_positions == int(pool.counts.sum())
    assert int(index.table((0, 1)).count.sum()) == index.num_positions
