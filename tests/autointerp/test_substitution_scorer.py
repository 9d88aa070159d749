"""From substitution rows to values: which rows, which rates, which state."""

from __future__ import annotations

from asyncio import run
from typing import Any

import numpy as np
import pytest

from autointerp.evidence import LatentEvidence, SubstitutionRequest
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.pipeline.substitution_record import of_all_at_once, of_latents
from autointerp.score import Score
from autointerp.scorers.comparing import can_compare
from autointerp.scorers.substitution import SubstitutionScorer
from autointerp.statistics.recovered import recovered_share
from sae_core.intervention.substitution_evidence import (
    CONTROL,
    OWN,
    WAYS,
    JointSubstitutionEvidence,
    SubstitutionEvidence,
)
from sae_core.records import Side
from tests.autointerp.pools import HandStore, letters, make_pool

LABEL = Explanation(latent=1, explainer="pattern", text="a")


@pytest.fixture
def store() -> HandStore:
    rules = [lambda c, i: 1.0] * 3
    return HandStore({s: make_pool(s, [[0, 1, 2]], [int(s)], rules) for s in Side}, letters(["<bos>", *"ab"]))


def table(
    latent: int,
    rows: list[tuple[int, int, float, float]],
    silent: tuple[float, float] = (0.2, 0.4),
    lost: int = 0,
    firing: float = 0.1,
    of_one: float = 0.0,
) -> SubstitutionEvidence:
    """Rows (arm, fires, kl, kl ablated) of one latent that fires in a share of the windows; another one has none."""
    m = len(rows)
    arm, fires, kl, ablated = (np.array([row[i] for row in rows]) for i in range(4)) if m else [np.zeros(0)] * 4
    some = np.arange(m, dtype=np.int32)
    return SubstitutionEvidence(
        latent=np.full(m, latent, dtype=np.int32), arm=arm.astype("u1"), fires=fires.astype("u1"), document=some,
        context=some, position=some, kl=kl.astype(float), kl_ablated=ablated.astype(float),
        delta_ce=0.5 * kl.astype(float), delta_ce_ablated=0.5 * ablated.astype(float),
        latents=np.array([latent, latent + 1], dtype=np.int32), explainer=np.zeros(2, "i4"),
        donor=np.full(2, 5, "i4"), share_firing=np.full(2, firing), share_silent=np.array([silent, (0.0, np.nan)]),
        share_spread=np.full((2, 2), 0.01), share_of_one=np.full(2, of_one),
        num_lost=np.full(2, lost, "i4"), explainers=["pattern"],
    )  # fmt: skip


def scored(
    store: HandStore, evidence: SubstitutionEvidence | None, label: Explanation | None = LABEL, **of: Any
) -> Score:
    return run(SubstitutionScorer(**of).score(label, LatentEvidence(1, store, substitution=evidence)))


def test_firing_and_silent_windows_count_at_their_rates(store: HandStore) -> None:
    rows = [(OWN, 1, 0.1, 1.0), (OWN, 1, 0.3, 3.0), (OWN, 0, 0.2, 0.0), (OWN, 0, 0.0, 0.0)]
    rows += [(CONTROL, 1, 2.0, 1.0), (CONTROL, 1, 3.0, 3.0), (CONTROL, 0, 0.5, 0.0)]
    got = scored(store, table(1, rows))
    assert got.failure is None
    assert got.explainer == "pattern"
    # (0.1 * 0.2 + 0.2 * 0.1) / (0.1 * 2) by hand
    assert got.values["substitution"] == pytest.approx(0.8)
    # (0.1 * 2.5 + 0.4 * 0.5) / (0.1 * 2): worse than silence
    assert got.values["substitution_shuffled"] == pytest.approx(-1.25)
    want = recovered_share([0.1, 0.3], [1.0, 3.0], [0.2, 0.0], 2.0, 0.01)
    assert got.values["substitution_low"] == want.low
    assert got.values["substitution_high"] == pytest.approx(want.high)
    assert got.values["substitution_kl"] == pytest.approx(0.4)
    assert got.values["substitution_ablation_kl"] == 2.0
    assert got.values["substitution_odds"] == pytest.approx(2.0)


def test_a_label_without_silent_windows_and_without_control(store: HandStore) -> None:
    got = scored(store, table(1, [(OWN, 1, 0.0, 1.0), (OWN, 1, 0.0, 1.0)], silent=(0.0, np.nan)))
    assert got.values["substitution"] == 1.0
    assert "substitution_shuffled" not in got.values


@pytest.mark.parametrize(
    ("evidence", "kind"),
    [
        (None, FailureKind.NO_EVIDENCE),
        (table(7, [(OWN, 1, 0.0, 1.0)]), FailureKind.NO_EVIDENCE),
        (table(1, [], lost=3), FailureKind.NO_EFFECT_ROWS),
        (table(1, [(OWN, 1, 0.1, 1.0)]), FailureKind.TOO_FEW_WINDOWS),
        # the judge answered for no silent window, and there are such
        (table(1, [(OWN, 1, 0.1, 1.0)] * 2, silent=(0.9, np.nan)), FailureKind.TOO_FEW_WINDOWS),
        # firing windows were found among exemplars, and none in the pool may be scored: no odds
        (table(1, [(OWN, 1, 0.1, 1.0)] * 2, silent=(0.0, np.nan), firing=0.0), FailureKind.TOO_FEW_WINDOWS),
        (table(1, [(OWN, 1, 0.0, 1e-9), (OWN, 1, 0.0, 1e-9)], silent=(0.0, 0.0)), FailureKind.NO_EFFECT),
    ],
)
def test_what_cannot_be_said_is_a_failure_and_no_number(
    store: HandStore, evidence: SubstitutionEvidence | None, kind: FailureKind
) -> None:
    got = scored(store, evidence)
    assert got.failure is not None
    assert got.failure.kind is kind
    assert "substitution" not in got.values
    assert "substitution_low" not in got.values


def test_a_pool_too_small_for_a_rare_latent_gives_no_figure(store: HandStore) -> None:
    """Of 1,000 windows none is a silent one with a prediction, and the latent fires in one of 10,000."""
    hits = [(OWN, 1, 0.1, 1.0)] * 8
    got = scored(store, table(1, hits, silent=(0.0, np.nan), firing=1e-4, of_one=1e-3))
    assert got.failure is not None
    assert got.failure.kind is FailureKind.TOO_FEW_WINDOWS
    assert "seen in 0 windows, and one stands for 10 firing ones" in got.failure.message
    assert "substitution" not in got.values
    for share, failed in ((0.003, True), (0.004, False)):
        some = [(OWN, 0, 0.1, 0.0)] * int(share * 1000)
        got = scored(store, table(1, hits + some, silent=(share, np.nan), firing=1e-4, of_one=1e-3))
        assert (got.failure is not None) is failed
    # where the pool holds firing windows, one that it does not hold is in the interval
    sample, census = (
        scored(store, table(1, hits, silent=(0.0, np.nan), firing=2e-3, of_one=one)) for one in (1e-3, 0.0)
    )
    assert sample.failure is census.failure is None
    want = recovered_share([0.1] * 8, [1.0] * 8, odds_of_one=0.5)
    assert sample.values["substitution_low"] == pytest.approx(want.low)
    assert sample.values["substitution_low"] < census.values["substitution_low"]


def test_a_control_that_cannot_be_counted_is_left_out(store: HandStore) -> None:
    rows = [(arm, 1, 0.1, 1.0) for arm in (OWN, CONTROL) for _ in range(4)] + [(OWN, 0, 0.1, 0.0)] * 5
    got = scored(store, table(1, rows, silent=(5e-3, 1e-3), firing=1e-4, of_one=1e-3))
    assert got.failure is None
    assert "substitution_shuffled" not in got.values


def test_a_failed_explanation_has_nothing_to_put_in_place(store: HandStore) -> None:
    failed = Explanation(latent=1, explainer="pattern", failure=Failure(kind=FailureKind.NO_PATTERN, message="none"))
    for label in (None, failed):
        got = scored(store, table(1, [(OWN, 1, 0.0, 1.0)] * 2), label)
        assert got.failure is not None
        assert got.failure.kind is FailureKind.NO_EXPLANATION


def test_it_is_asked_of_chosen_labels_only() -> None:
    scorer = SubstitutionScorer(latents=5, windows=4, contexts=3)
    assert not scorer.can_judge(LABEL)
    assert not can_compare(scorer)
    assert scorer.needs() == [SubstitutionRequest(latents=5, windows=4, contexts=3)]
    assert SubstitutionScorer(latents=0, contexts=0).needs() == []


def test_the_block_of_latents_counts_failures_and_gives_order_statistics() -> None:
    def score(value: float | None, control: float | None, low: float | None) -> Score:
        failure = None if value is not None else Failure(kind=FailureKind.NO_EFFECT, message="none")
        values = {"substitution": value, "substitution_shuffled": control, "substitution_low": low}
        return Score(latent=0, scorer="substitution", values=values, failure=failure)

    block = of_latents([score(x / 10, 0.0, x / 10 - 0.35) for x in range(-2, 7)] + [score(None, None, None)])
    assert (block["num"], block["num_scored"]) == (10, 9)
    assert block["median"] == pytest.approx(0.2)
    # of 9 draws the 2nd and the 8th hold the median with probability 1 - 2 * 10 / 512 = .961
    assert (block["median_low"], block["median_high"]) == (pytest.approx(-0.1), pytest.approx(0.5))
    assert block["share_above_shuffled"] == pytest.approx(3 / 9)
    assert block["share_below_zero"] == pytest.approx(2 / 9)
    assert block["failures"] == {"no_effect": 1}


def joint(
    kl: np.ndarray, document: list[int], change: np.ndarray | None = None, latents: int = 3
) -> JointSubstitutionEvidence:
    count = len(document)
    return JointSubstitutionEvidence(
        context=np.arange(count, dtype="i4"), document=np.array(document, "i4"), num_tokens=np.full(count, 10, "i4"),
        clean_ce=np.full(count, 20.0), kl=kl, delta_ce=kl if change is None else change, ways=list(WAYS),
        num_latents=latents, num_left=1,
    )  # fmt: skip


def test_what_was_not_edited_is_null_and_not_zero() -> None:
    nobody = of_all_at_once(joint(np.zeros((3, 4)), [0, 0, 1], latents=0))
    assert (nobody["num_latents"], nobody["clean_ce"]) == (0, 2.0)
    for name in ("kl", "delta_ce", "ce_recovered"):
        assert set(nobody[name].values()) == {None}
    assert all(found["value"] is found["high"] is None for found in nobody["recovered"].values())
    one = of_all_at_once(joint(np.ones((3, 4)) * [1.0, 4.0, 1.0, 2.0], [0, 0, 1], latents=1))
    assert one["kl"]["zero"] == pytest.approx(0.4)
    assert one["kl"]["shuffled"] is one["recovered"]["shuffled"]["value"] is one["ce_recovered"]["shuffled"] is None
    assert one["recovered"]["substituted"]["value"] == pytest.approx(0.75)


def test_an_interval_without_a_lower_end_says_so() -> None:
    kl = np.array([[1.0, 1.0, 1.0, 1.0], [0.0, 0.01, 0.01, 0.01], [0.0, 0.01, 0.01, 0.01]])
    found = of_all_at_once(joint(kl, [0, 1, 2]))["recovered"]["substituted"]
    assert found["no_lower_end"]
    assert found["low"] is None
    sure = of_all_at_once(joint(np.ones((3, 4)) * [1.0, 4.0, 5.0, 2.0], [0, 1, 2]))["recovered"]["substituted"]
    assert not sure["no_lower_end"]
    alone = of_all_at_once(joint(np.ones((2, 4)), [0, 0]))["recovered"]["substituted"]
    assert alone["low"] is None
    assert not alone["no_lower_end"], "one document has no interval at all"


def test_the_block_of_all_at_once_sums_documents() -> None:
    kl = np.array([[1.0, 4.0, 5.0, 2.0], [1.0, 4.0, 5.0, 2.0], [2.0, 8.0, 7.0, 4.0]])
    block = of_all_at_once(joint(kl, [0, 0, 1], change=-kl))
    assert (block["contexts"], block["documents"], block["tokens"]) == (3, 2, 30)
    assert (block["num_latents"], block["num_left"]) == (3, 1)
    assert block["clean_ce"] == 2.0
    assert block["kl"]["substituted"] == pytest.approx(4 / 30)
    assert block["kl"]["zero"] == pytest.approx(16 / 30)
    assert block["recovered"]["substituted"]["value"] == pytest.approx(0.75)
    assert block["recovered"]["shuffled"]["value"] == pytest.approx(-1 / 16)
    assert block["recovered"]["mean"]["value"] == pytest.approx(0.5)
    # both documents say exactly a quarter: the interval is that point, by documents and not by contexts
    assert block["recovered"]["substituted"]["low"] == pytest.approx(0.75)
    assert block["ce_recovered"]["substituted"] is None, "zero-ablation makes the text likelier: no share of that"
    assert "zero" not in block["recovered"]


def test_the_interval_of_all_at_once_covers_over_documents() -> None:
    """Documents of different lengths and levels, three contexts each: 90 contexts are not 90 draws."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(300):
        level = np.exp(0.5 * rng.standard_normal(30))
        share = np.clip(0.3 + 0.15 * rng.standard_normal(30), 0.01, None)
        size = np.repeat(level, 3) * (1 + 0.1 * rng.standard_normal(90))
        kl = np.stack([size * np.repeat(share, 3), size, size, size], axis=1)
        got = of_all_at_once(joint(kl, np.repeat(np.arange(30), 3).tolist()))["recovered"]["substituted"]
        covered += got["low"] <= 0.7 <= got["high"]
    assert 0.92 <= covered / 300 <= 0.98
