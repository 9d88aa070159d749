"""Scorers asked about labels with known errors: what they must say is worked out by hand, or said by a judge that reads the text."""

from __future__ import annotations

import json
import re
from asyncio import run
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from autointerp.config import PrecisionConfig
from autointerp.evidence import LatentEvidence
from autointerp.explanation import Explanation
from autointerp.judging.supposed import LabelError, SupposedLabel, supposed_labels
from autointerp.llm.asking import NO_LLMS, LLMs
from autointerp.llm.protocol import CompletionRequest
from autointerp.llm.scripted import ScriptedLLMs
from autointerp.llm.server import RunningServer
from autointerp.pipeline.self_testing import self_test
from autointerp.report.self_test import self_test_note
from autointerp.report.terminal import print_summary
from autointerp.sampling import silent_strata
from autointerp.sampling.window import Stratum, of_pool
from autointerp.score import Score
from autointerp.scorers.base import Scorer
from autointerp.scorers.detection import DetectionScorer
from autointerp.scorers.discrimination import DiscriminationScorer
from autointerp.scorers.embedding import EmbeddingScorer
from autointerp.scorers.fuzz import FuzzScorer
from autointerp.scorers.intervention import InterventionScorer
from autointerp.scorers.intruder import IntruderScorer
from autointerp.scorers.pattern import PatternScorer
from autointerp.scorers.saebench import SaebenchScorer
from autointerp.scorers.simulation import SimulationScorer
from autointerp.scorers.surprisal import SurprisalScorer
from autointerp.statistics.falls import label_falls
from sae_core.errors import InputError
from sae_core.lens_evidence import LensEvidence
from sae_core.records import LatentStatistics, Side, WindowPool
from tests import planted_world
from tests.autointerp.pools import HandStore, letters
from tests.autointerp.test_llm_runs import oracle, write_config
from tests.cli_process import run_cli

NUM_LATENTS = 60
WINDOW, BEFORE = 16, 4
FILLERS = 400
RATES = 10 ** np.linspace(-2.5, -1.05, NUM_LATENTS)
"""pi of latent l, which fires with activation 1 to 3 on the word ``w<l>`` and on nothing else."""
MEANING = re.compile(r"\bw(\d+)\b")


class Store(HandStore):
    """With statistics that are counted once."""

    _counted: LatentStatistics | None = None

    @property
    def statistics(self) -> LatentStatistics:
        if self._counted is None:
            self._counted = super().statistics
        return self._counted


def pool_of(side: Side, num_windows: int) -> WindowPool:
    rng = np.random.default_rng(100 + int(side))
    tokens = rng.integers(1 + NUM_LATENTS, 1 + NUM_LATENTS + FILLERS, (num_windows, BEFORE + WINDOW)).astype(np.int32)
    for latent, rate in enumerate(RATES):
        rows = np.flatnonzero(rng.random(num_windows) < rate)
        tokens[rows, rng.integers(BEFORE, BEFORE + WINDOW, len(rows))] = 1 + latent
    found = [np.nonzero(np.where(np.arange(BEFORE + WINDOW) < BEFORE, 0, tokens) == 1 + n) for n in range(NUM_LATENTS)]
    windows = np.concatenate([rows for rows, _ in found])
    return WindowPool(
        side=side,
        num_windows_side=num_windows,
        tokens=tokens,
        first_token=np.full(num_windows, BEFORE, dtype=np.int32),
        document=(np.arange(num_windows) // 8).astype(np.int32),
        context=np.arange(num_windows, dtype=np.int32),
        position=np.zeros(num_windows, dtype=np.int32),
        latent_start=np.cumsum([0, *(len(rows) for rows, _ in found)]).astype(np.int64),
        entry_window=windows.astype(np.int32),
        entry_column=np.concatenate([columns for _, columns in found]).astype(np.uint8),
        entry_value=rng.integers(1, 4, len(windows)).astype(np.float32),
        context_tokens=BEFORE,
    )


@pytest.fixture(scope="module")
def latents() -> list[LatentEvidence]:
    pools = {side: pool_of(side, 6000 if side is Side.SCORE else 500) for side in Side}
    words = ["<s>", *(f" w{n}" for n in range(NUM_LATENTS)), *(f" filler{n}" for n in range(FILLERS))]
    others = (np.arange(NUM_LATENTS)[:, None] + np.arange(1, 6)) % NUM_LATENTS
    zeros = np.zeros(others.shape, dtype=np.float32)
    near = others.astype(np.int32)
    lens = LensEvidence(near, zeros, near, zeros, near, zeros)
    store = Store(pools, letters(words))
    return [LatentEvidence(latent, store, lens=lens) for latent in range(NUM_LATENTS)]


def outcome_of(
    scorers: Sequence[Scorer], latents: Sequence[LatentEvidence], judge: DetectionScorer | None = None, seed: int = 3
) -> dict[str, Any]:
    heard: list[int] = []
    found = self_test(scorers, latents, PrecisionConfig(), seed, heard.append, judge)
    assert heard == list(range(1, len(latents) + 1))
    json.dumps(found, allow_nan=False)  # it is stored
    return found


def seen(block: dict[str, Any]) -> tuple[bool, bool]:
    return block["missing"]["sees"], block["extra"]["sees"]


def mean_of(block: dict[str, Any], error: str) -> float:
    """The mean score of the worse labels, over all decades."""
    groups = block[error]["by_decade"]
    return float(np.average([g["worse"] for g in groups], weights=[g["num_latents"] for g in groups]))


# the labels


def test_where_a_supposed_label_holds_and_how_often() -> None:
    fires = np.arange(200_000) < 20_000
    context, position = np.arange(200_000) // 5, np.arange(200_000) % 5 * 32
    perfect, missing, extra = (label.holds_at(context, position, fires) for label in supposed_labels(7, 0.1, 1))
    assert (perfect == fires).all()
    assert missing[fires].mean() == pytest.approx(0.5, abs=0.02)
    assert not missing[~fires].any()
    assert extra[fires].all()
    # as many false ones as true ones: 20,000 of 180,000
    assert extra[~fires].sum() == pytest.approx(20_000, rel=0.04)
    other = SupposedLabel(LabelError.EXTRA, 8, 0.1, 1).holds_at(context, position, fires)
    assert (extra & other)[~fires].mean() == pytest.approx(1 / 81, rel=0.15)  # of another latent others


def test_a_supposed_label_holds_whatever_the_order_it_is_asked_in(latents: list[LatentEvidence]) -> None:
    label = SupposedLabel(LabelError.EXTRA, 59, 0.4, 5)
    pool = latents[59].store.pool(Side.SCORE)
    windows = [of_pool(pool, row, 59, Stratum.BULK) for row in range(200)]
    fires = np.array([window.fires for window in windows])
    whole = label.holds(windows)
    assert 0 < whole.sum() < 200
    assert (label.holds(windows[::-1])[::-1] == whole).all()
    assert [bool(label.holds([window])[0]) for window in windows] == whole.tolist()
    rows = np.zeros(len(pool.tokens), dtype=np.bool_)
    rows[:200] = fires
    assert (label.holds_in(pool, rows)[:200] == whole).all()
    # one that fires nearly everywhere cannot have as many false windows
    assert SupposedLabel(LabelError.EXTRA, 0, 0.9, 5).holds(windows).all()


# the falls


def test_falls_worked_out_by_hand() -> None:
    # 20 latents at 2e-3 fall from .9 to .7, 30 at 2e-2 from .8 to .79, 3 at .2 do not fall; chance is .5
    rates = np.repeat([2e-3, 2e-2, 0.2], [20, 30, 3])
    perfect, worse = np.repeat([0.9, 0.8, 0.9], [20, 30, 3]), np.repeat([0.7, 0.79, 0.9], [20, 30, 3])
    falls = label_falls(perfect, worse, rates, chance=0.5)
    assert [group.fall for group in falls.groups] == pytest.approx([0.5, 1 / 30, 0.0])
    assert [group.decides for group in falls.groups] == [True, True, False]
    assert [(group.rate_from, group.rate_below) for group in falls.groups] == [
        pytest.approx((0.001, 0.01)),
        pytest.approx((0.01, 0.1)),
        pytest.approx((0.1, 1.0)),
    ]
    assert [group.sees for group in falls.groups] == [True, False, False]
    assert not falls.sees  # one decade is enough to be blind
    assert not falls.whole.decides
    assert falls.whole.fall == pytest.approx((20 * 0.2 + 30 * 0.01) / 53 / ((20 * 0.9 + 30 * 0.8 + 3 * 0.9) / 53 - 0.5))

    worse[20:50] = 0.78  # .02 of .3
    assert label_falls(perfect, worse, rates, chance=0.5).sees
    worse[20:50] = 0.786
    assert not label_falls(perfect, worse, rates, chance=0.5).sees


def test_few_latents_are_one_group_and_a_fall_by_luck_is_none() -> None:
    rates = np.repeat([2e-3, 2e-2], [12, 12])
    falls = label_falls(np.ones(24), np.repeat([0.88, 1.0], 12), rates, chance=0.0)
    assert falls.whole.decides
    assert not any(group.decides for group in falls.groups)
    assert falls.whole.fall == pytest.approx(0.06)
    assert falls.sees
    # one latent of 24 in which a false window happened to be drawn: its score is gone, and that is 5%, but luck
    lucky = np.ones(24)
    lucky[3] = -0.3
    falls = label_falls(np.ones(24), lucky, rates, chance=0.0)
    assert falls.whole.fall == pytest.approx(1.3 / 24)
    assert falls.whole.error == pytest.approx(1.3 / 24)
    assert not falls.sees
    nowhere = label_falls(np.full(24, 0.5), np.full(24, 0.5), rates, chance=0.5)
    assert nowhere.whole.fall is None
    assert not nowhere.sees
    with pytest.raises(InputError, match="leave such latents out"):
        label_falls([1.0, np.nan], [1.0, 1.0], [0.1, 0.1], 0.0)
    with pytest.raises(InputError, match="one latent at least"):
        label_falls([], [], [], 0.0)


# the scorers


def test_counted_ratios_see_both_errors(latents: list[LatentEvidence]) -> None:
    found = outcome_of([PatternScorer()], latents)["pattern"]
    assert (found["headline"], found["num_latents"], found["perfect"]) == ("f1", NUM_LATENTS, 1.0)
    assert seen(found) == (True, True)
    # precision 1 and recall 1/2, precision 1/2 and recall 1: F1 = 2/3 both times
    assert mean_of(found, "missing") == pytest.approx(2 / 3, abs=0.02)
    assert mean_of(found, "extra") == pytest.approx(2 / 3, abs=0.02)
    tokens = latents[0].store.pool(Side.SCORE).tokens[:, BEFORE:]
    rare = sum(float((tokens == 1 + n).any(axis=1).mean()) < 0.01 for n in range(NUM_LATENTS))
    assert [(group["num_latents"], group["decides"]) for group in found["extra"]["by_decade"]] == [
        (rare, True),
        (NUM_LATENTS - rare, True),
    ]


def test_detection_is_blind_to_extra_firing_and_its_estimate_is_not(latents: list[LatentEvidence]) -> None:
    judge = DetectionScorer()
    found = outcome_of([judge], latents, judge)
    balanced, natural = found["detection"], found["detection_natural_rate"]
    assert balanced["perfect"] == 1.0
    assert seen(balanced) == (True, False)
    assert mean_of(balanced, "missing") == pytest.approx(0.75, abs=0.02)  # (1/2 + 1) / 2
    # a share pi / (1 - pi) of the silent windows is lost, and half of that of the score
    assert mean_of(balanced, "extra") == pytest.approx(1 - float(np.mean(RATES / (1 - RATES))) / 2, abs=0.006)
    assert seen(natural) == (True, True)
    assert natural["perfect"] > 0.95
    assert mean_of(natural, "missing") == pytest.approx(2 / 3, abs=0.06)
    assert mean_of(natural, "extra") == pytest.approx(2 / 3, abs=0.15)
    assert (natural["headline"], natural["chance"]) == ("f1", 0.0)
    assert "detection_natural_rate" not in outcome_of([judge], latents[:3])
    assert outcome_of([judge], latents, judge) == found  # nothing hangs on chance


class WatchedScorer(DetectionScorer):
    """Keeps what it is given."""

    GIVEN: ClassVar[list[tuple[Sequence[SupposedLabel], LatentEvidence]]] = []

    def scores_if(self, labels: Sequence[SupposedLabel], evidence: LatentEvidence) -> list[Score] | None:
        self.GIVEN.append((labels, evidence))
        return super().scores_if(labels, evidence)


def test_a_screen_without_fault_stands_before_the_estimated_judge(latents: list[LatentEvidence]) -> None:
    judge = WatchedScorer()
    outcome_of([judge], latents[-5:], judge)
    assert len(judge.GIVEN) == 5
    num_flagged = 0
    for labels, evidence in judge.GIVEN:
        pool, latent = evidence.store.pool(Side.SCORE), evidence.latent
        bulk = set(silent_strata(evidence, Side.SCORE).rows[Stratum.BULK].tolist())
        assert set(evidence.screened) == {"perfect", "missing", "extra"}
        for label in labels:
            windows = evidence.screened[label.error.value]
            assert windows.shown == evidence.screened["perfect"].shown
            assert 200 < len(set(windows.shown) & bulk) == len(windows.shown) <= 500
            holding = label.holds([of_pool(pool, row, latent, Stratum.BULK) for row in windows.shown])
            assert windows.flagged == tuple(np.array(windows.shown)[holding])
            assert windows.verify == PrecisionConfig().verified
            num_flagged += len(windows.flagged)
    assert num_flagged > 20


def test_the_other_scorers_by_what_they_see(latents: list[LatentEvidence]) -> None:
    rare = latents[:25]  # pi from .003 to .012
    found = outcome_of(
        [
            FuzzScorer(),
            DiscriminationScorer(),
            SaebenchScorer(),
            SimulationScorer(),
            SurprisalScorer(),
            EmbeddingScorer(),
        ],
        rare,
    )
    assert {kind: seen(block) for kind, block in found.items()} == dict.fromkeys(found, (True, False))
    assert {kind: block["num_latents"] for kind, block in found.items() if block["num_latents"] < 15} == {}
    assert mean_of(found["fuzz"], "missing") == pytest.approx(0.75, abs=0.03)
    # the own set has none of three windows left in one question of eight, and is then one of four
    assert mean_of(found["discrimination"], "missing") == pytest.approx(7 / 8 + 1 / 8 / 4, abs=0.04)
    # two of the four strong windows of fourteen
    assert found["saebench"]["perfect"] - mean_of(found["saebench"], "missing") == pytest.approx(2 / 14, abs=0.03)
    # half of the activating windows are tied with all others
    assert mean_of(found["surprisal"], "missing") == pytest.approx(0.75, abs=0.05)
    assert mean_of(found["embedding"], "missing") == pytest.approx(0.75, abs=0.03)
    assert found["simulation"]["perfect"] == pytest.approx(1.0)
    # half of the (equally strong) activations foretold: a correlation of about sqrt(1/2)
    assert mean_of(found["simulation"], "missing") == pytest.approx(0.5**0.5, abs=0.06)


def test_a_scorer_of_many_windows_sees_what_few_cannot(latents: list[LatentEvidence]) -> None:
    """The correlation over windows as they come falls with false firing, if there are enough windows to meet it."""
    many = outcome_of([SimulationScorer(firing=100, silent=1000)], latents[35:])["simulation"]  # pi from .02 to .09
    assert seen(many) == (True, True)
    # as many false activations as true ones, about as strong: sqrt(1/2) again
    assert mean_of(many, "extra") == pytest.approx(0.5**0.5, abs=0.06)


class LabelBlindScorer(Scorer):
    """Draws and counts, and never looks at the label."""

    kind: Literal["label_blind"] = "label_blind"

    async def score(self, explanation: Explanation | None, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Score:
        raise AssertionError("nobody is asked")

    def scores_if(self, labels: Sequence[SupposedLabel], evidence: LatentEvidence) -> list[Score] | None:
        value = 0.8 + evidence.latent / 1000
        return [Score(latent=evidence.latent, scorer=self.kind, values={"label_blind_score": value}) for _ in labels]


class UnknownScorer(LabelBlindScorer):
    """Cannot say what it would say."""

    kind: Literal["unknown"] = "unknown"  # type: ignore[assignment]

    def scores_if(self, labels: Sequence[SupposedLabel], evidence: LatentEvidence) -> list[Score] | None:
        return None


class StrictScorer(LabelBlindScorer):
    """Fails on all latents but one."""

    kind: Literal["strict"] = "strict"  # type: ignore[assignment]

    def scores_if(self, labels: Sequence[SupposedLabel], evidence: LatentEvidence) -> list[Score] | None:
        value = 1.0 if evidence.latent == 4 else None
        return [Score(latent=evidence.latent, scorer=self.kind, values={"strict_score": value}) for _ in labels]


class SilencedScorer(LabelBlindScorer):
    """Says nothing of labels that are missing firing."""

    CHANCE: ClassVar[float | None] = 0.25

    kind: Literal["silenced"] = "silenced"  # type: ignore[assignment]

    def scores_if(self, labels: Sequence[SupposedLabel], evidence: LatentEvidence) -> list[Score] | None:
        values = [None if label.error is LabelError.MISSING else 1.0 for label in labels]
        return [Score(latent=evidence.latent, scorer=self.kind, values={"silenced_score": value}) for value in values]


def test_a_score_that_is_not_there_is_worth_chance(latents: list[LatentEvidence]) -> None:
    found = outcome_of([SilencedScorer()], latents)["silenced"]
    assert mean_of(found, "missing") == 0.25
    assert found["missing"]["fall"] == 1.0
    assert seen(found) == (True, False)


def test_scorers_that_ignore_the_label_are_named_and_so_are_those_that_cannot_be_tested(
    latents: list[LatentEvidence],
) -> None:
    scorers = [LabelBlindScorer(), IntruderScorer(), InterventionScorer(), UnknownScorer(), StrictScorer()]
    found = outcome_of(scorers, latents)
    assert list(found) == ["label_blind", "intruder", "intervention", "unknown", "strict"]
    assert seen(found["label_blind"]) == (False, False)
    assert found["label_blind"]["missing"]["fall"] == 0.0
    assert seen(found["intruder"]) == (False, False)
    assert found["intruder"]["extra"]["why"] == "it tests the latent, not its label"
    assert "what the latent does" in found["intervention"]["not_tested"]
    assert "without asking" in found["unknown"]["not_tested"]
    assert "no more than one latent" in found["strict"]["not_tested"]
    assert set(found["unknown"]) == {"not_tested"}
    nothing = outcome_of([PatternScorer(), DetectionScorer()], [], DetectionScorer())
    assert {kind: block["not_tested"] for kind, block in nothing.items()} == dict.fromkeys(
        ("pattern", "detection", "detection_natural_rate"), "no latent has as many windows as it needs"
    )


# against judges that read


BLOCK = re.compile(r"<(DATA-[0-9a-f]{8})>\n(.*?)\n</\1>", re.DOTALL)
LINE = re.compile(r'^\d+ (".*")$', re.MULTILINE)


@dataclass
class Reader:
    """Reads the windows out of prompts and finds one latent's word, or its marks at it, in those that ``sees`` names."""

    latent: int
    holds: dict[str, bool]
    """By a window's text without marks."""

    def __call__(self, request: CompletionRequest) -> str:
        text = request.messages[-1].content
        if "Question 1, set 1" in text:
            blocks = [[self.says(line) for line in map(json.loads, LINE.findall(b))] for _, b in BLOCK.findall(text)]
            counts = np.array([sum(block) for block in blocks]).reshape(-1, 4)
            assert all((row == row.max()).sum() == 1 for row in counts), "the test has no use for ties"
            return json.dumps({"sets": [int(row.argmax()) + 1 for row in counts]})
        return json.dumps({"matches": [int(self.says(json.loads(line))) for line in LINE.findall(text)]})

    def says(self, line: str) -> bool:
        if "<<" in line:
            marked = re.search(rf"<<\s*w{self.latent}\s*>>", line) is not None
            plain = line.replace("<<", "").replace(">>", "")
            return self.holds[plain] and (marked or not self.fires(plain))
        return self.holds[line]

    def fires(self, text: str) -> bool:
        return str(self.latent) in MEANING.findall(text)


def read_holds(evidence: LatentEvidence, label: SupposedLabel) -> dict[str, bool]:
    """Whether the label holds in each window of the score side, by its text, the latent's word being looked for in it."""
    store = evidence.store
    pool = store.pool(Side.SCORE)
    texts = ["".join(store.pieces.pieces(int(t) for t in row[BEFORE:])) for row in pool.tokens]
    fires: NDArray[np.bool_] = np.array([str(label.latent) in MEANING.findall(text) for text in texts])
    return dict(zip(texts, label.holds_at(pool.context, pool.position, fires).tolist(), strict=True))


@pytest.mark.parametrize("scorer", [DetectionScorer(), FuzzScorer(), SaebenchScorer()], ids=lambda scorer: scorer.kind)
@pytest.mark.parametrize("error", list(LabelError))
def test_supposed_scores_are_those_of_a_judge_that_reads_so(
    scorer: Scorer, error: LabelError, latents: list[LatentEvidence]
) -> None:
    evidence = latents[55]
    label = SupposedLabel(error, 55, float(RATES[55]), 2)
    supposed = scorer.scores_if([label], evidence)
    assert supposed is not None
    holds = read_holds(evidence, label)
    read = run(scorer.score(label.explanation, evidence, ScriptedLLMs(Reader(55, holds))))
    for name in (scorer.headline, f"{scorer.kind}_tpr", f"{scorer.kind}_fpr", f"{scorer.kind}_judged"):
        assert supposed[0].values[name] == read.values[name], name
    assert supposed[0].verdicts == read.verdicts
    if error is LabelError.EXTRA and scorer.kind == "detection":
        assert 0 < float(str(supposed[0].values["detection_fpr"])) < 1  # latent 55 fires in 7% of the windows


def by_window(score: Score) -> dict[str, tuple[str, tuple[str, ...]]]:
    """What was said of each question and which windows stood in it."""
    found = score.verdicts
    assert found is not None
    company = [tuple(windows) for windows in found["company"]]
    return dict(zip(found["windows"], zip(found["answers"], company, strict=True), strict=True))


def test_supposed_choices_are_those_of_a_judge_that_reads_so(latents: list[LatentEvidence]) -> None:
    scorer, evidence = DiscriminationScorer(), latents[40]
    label = SupposedLabel(LabelError.NONE, 40, float(RATES[40]), 2)
    supposed = scorer.scores_if([label], evidence)
    assert supposed is not None
    read = run(scorer.score(label.explanation, evidence, ScriptedLLMs(Reader(40, read_holds(evidence, label)))))
    assert [by_window(score) for score in supposed] == [by_window(read)]
    assert supposed[0].values["discrimination_score"] == read.values["discrimination_score"] == 1.0


def test_a_perfect_label_is_told_apart_in_every_stratum(latents: list[LatentEvidence]) -> None:
    """The windows that detection is asked about in the self-test are those of a run, neighbours' windows among them."""
    strata = silent_strata(latents[50], Side.SCORE)
    assert strata.counts[Stratum.NEIGHBOUR] > 20
    (score,) = DetectionScorer().scores_if([SupposedLabel(LabelError.NONE, 50, 0.1, 2)], latents[50]) or []
    assert score.verdicts is not None
    assert set(score.verdicts["strata"]) == set("fnb")


# the line and the run


def sees(missing: bool, extra: bool, **decades: int) -> dict[str, Any]:
    """Of a scorer, with latents by the exponents of their decades of pi."""
    groups = [
        {"rate_from": 10.0**-d, "rate_below": 10.0 ** (1 - d), "decides": count >= 20, "num_latents": count}
        for d, count in ((int(name.removeprefix("e")), count) for name, count in decades.items())
    ]
    found = [{"sees": error, "by_decade": groups} for error in (missing, extra)]
    return dict(zip(("missing", "extra"), found, strict=True))


def test_the_line_names_who_is_blind_to_what() -> None:
    one = {
        "detection": sees(True, False, e4=3, e3=20, e2=200),
        "detection_natural_rate": sees(True, True, e3=20, e2=200),
        "pattern": sees(True, True),
        "intruder": sees(False, False),
        "written": {"not_tested": "it asks for texts"},
    }
    assert str(self_test_note({"a": one})) == (
        "Self-test of the scorers (on latents that fire in 0.1% to 10% of the windows): sees both errors: detection at the "
        "natural rate, pattern; blind to extra firing: detection (balanced accuracy); blind to both: intruder."
    )
    other = {"pattern": sees(False, True, e3=2, e1=7), "fuzz": sees(True, False)}
    line = str(self_test_note({"a": one, "b": other}))
    assert "0.1% to 100% of" in line
    assert "blind to missing firing: pattern" in line
    assert self_test_note({}) is None
    assert self_test_note({"a": {"written": {"not_tested": "it asks for texts"}}}) is None


LABELS = """
[[explainers]]
kind = "max_activating"
[[explainers]]
kind = "pattern"
[[scorers]]
kind = "detection"
[[scorers]]
kind = "fuzz"
[[scorers]]
kind = "pattern"
[[scorers]]
kind = "intruder"
"""


@pytest.mark.long
def test_a_run_says_which_of_its_scorers_are_blind(tmp_path: Path) -> None:
    planted_world.build(tmp_path)
    with RunningServer(oracle(tmp_path)) as server:
        config = write_config(tmp_path, "tested", server.url, LABELS)
        done = run_cli(
            ["run", str(config), "--out", str(tmp_path / "out")], {"PLANTED_KEY": "sk", "OMP_NUM_THREADS": "1"}
        )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    block = summary["self_test"]
    assert list(block) == ["planted"]  # random directions are no source to be tested with
    assert set(block["planted"]) == {"detection", "detection_natural_rate", "fuzz", "pattern", "intruder"}
    assert seen(block["planted"]["pattern"]) == (True, True)
    assert block["planted"]["pattern"]["perfect"] == 1.0
    assert seen(block["planted"]["intruder"]) == (False, False)
    for kind in ("detection", "fuzz"):
        assert block["planted"][kind]["perfect"] == 1.0
        assert block["planted"][kind]["missing"]["sees"]
    assert "self_test" in summary["timings_s"]
    assert not any("self" in row["purpose"] for row in summary["llm"])
    console = Console(record=True, width=110, force_terminal=False)
    print_summary(summary, console)
    words = " ".join(re.sub(r"[│\s]+", " ", console.export_text()).split())
    assert str(self_test_note(block)) in words
    assert "on latents that fire in 10% to 100% of the windows" in words  # where anybody sees extra firing
    assert "blind to both: intruder." in words
