"""Which errors of a label the scorers of a run can see, with the run's own latents and windows (METHODS 6).

Each scorer is asked about labels of which no more is known than where they hold, so no language model is. It should say less of one
that has lost half of its true windows, and of one with as many false windows as true ones; where it does not, its figures say nothing
of that error.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from autointerp.config import PrecisionConfig
from autointerp.evidence import LatentEvidence, ScreenedWindows
from autointerp.judging.supposed import NATURAL_RATE, LabelError, SupposedLabel, supposed_labels
from autointerp.judging.tally import LabelTally, Tally, counts_of, pool_counts
from autointerp.judging.window_judge import WindowJudge
from autointerp.pipeline.natural_rate.screening import group_rows
from autointerp.pipeline.stage import Progress
from autointerp.sampling.natural import firing_rate
from autointerp.sampling.silent import silent_strata
from autointerp.sampling.window import Stratum
from autointerp.score import Score
from autointerp.scorers.base import Scorer
from autointerp.statistics.falls import Falls, GroupFall, label_falls
from autointerp.statistics.natural_rate import estimate_natural_rates
from sae_core.errors import NonFiniteError
from sae_core.hashing import seed_for
from sae_core.records import Side

_WORSE = (LabelError.MISSING, LabelError.EXTRA)
_NO_WINDOWS = "no latent has as many windows as it needs"


@dataclass(slots=True)
class _Tested:
    """What one scorer said, a row a latent."""

    rates: list[float] = field(default_factory=list)
    """pi."""
    scores: list[list[float]] = field(default_factory=list)
    """By the errors in their order."""

    def block(self, headline: str, chance: float) -> dict[str, Any]:
        """What follows, as JSON."""
        if len(self.rates) < 2:
            few = _NO_WINDOWS if not self.rates else "no more than one latent has as many windows as it needs"
            return {"not_tested": few}
        columns = dict(zip(LabelError, np.asarray(self.scores, dtype=np.float64).T, strict=True))
        perfect = columns[LabelError.NONE]
        falls = {error: label_falls(perfect, columns[error], self.rates, chance) for error in _WORSE}
        return {
            "headline": headline,
            "chance": chance,
            "num_latents": len(self.rates),
            "perfect": float(perfect.mean()),
            **{error.value: _json(fall) for error, fall in falls.items()},
        }


def self_test(
    scorers: Sequence[Scorer],
    latents: Iterable[LatentEvidence],
    settings: PrecisionConfig,
    seed: int,
    progress: Progress,
    judge: WindowJudge | None = None,
) -> dict[str, Any]:
    """What each of ``scorers`` sees, by its kind, as JSON; latents that never or always fire are passed over.

    ``judge`` is the one whose verdicts are turned into precision and recall at the natural rate: with it that F1 is tested too, on
    verdicts as the scorer and the first round of the screen (``settings``) would give them, under ``<kind>_natural_rate``.
    """
    tested = {scorer.kind: _Tested() for scorer in scorers if scorer.NOT_TESTED is None and scorer.judges_explanation}
    natural = _NaturalRates(settings, seed) if judge is not None and judge.kind in tested else None
    silent: set[str] = set()
    for done, evidence in enumerate(latents, start=1):
        rate = firing_rate(evidence, silent_strata(evidence, Side.SCORE))
        if 0 < rate < 1:
            labels = supposed_labels(evidence.latent, rate, seed)
            for scorer in scorers:
                if scorer.kind not in tested or scorer.kind in silent:
                    continue
                estimated = natural if judge is not None and scorer.kind == judge.kind else None
                shown = evidence if estimated is None else estimated.screened(evidence, labels)
                scores = _scores(scorer, labels, shown)
                if scores is None:
                    silent.add(scorer.kind)
                    continue
                _note(tested[scorer.kind], scorer, scores, rate)
                if estimated is not None:
                    estimated.note(scores)
        progress(done)
    blocks: dict[str, Any] = {}
    for scorer in scorers:
        if scorer.NOT_TESTED is not None:
            blocks[scorer.kind] = {"not_tested": scorer.NOT_TESTED}
        elif not scorer.judges_explanation:
            blocks[scorer.kind] = _blind("it tests the latent, not its label")
        elif scorer.kind in silent:
            blocks[scorer.kind] = {"not_tested": "it cannot be told what it would say without asking"}
        else:
            blocks[scorer.kind] = tested[scorer.kind].block(scorer.headline, scorer.CHANCE or 0.0)
            if natural is not None and judge is not None and scorer.kind == judge.kind:
                blocks[scorer.kind + NATURAL_RATE] = natural.block()
    return blocks


def _scores(scorer: Scorer, labels: Sequence[SupposedLabel], evidence: LatentEvidence) -> list[Score] | None:
    """What the scorer says; nothing of a latent whose activations are no numbers."""
    try:
        return scorer.scores_if(labels, evidence)
    except NonFiniteError:
        return []


def _note(tested: _Tested, scorer: Scorer, scores: Sequence[Score], rate: float) -> None:
    """Keep the headlines of a latent that can be scored; where only a worse label has none, it has found nothing."""
    if not scores or any(score.failure is not None for score in scores):
        return
    found = [score.values.get(scorer.headline) for score in scores]
    if not isinstance(found[0], (int, float)):
        return
    floor = scorer.CHANCE or 0.0
    tested.rates.append(rate)
    tested.scores.append([float(value) if isinstance(value, (int, float)) else floor for value in found])


class _NaturalRates:
    """Precision, recall and F1 of the supposed labels of a source, estimated as those of real ones are."""

    def __init__(self, settings: PrecisionConfig, seed: int) -> None:
        self._settings, self._seed = settings, seed
        self._num_asked = 0
        self._shown: dict[LabelError, tuple[int, int]] = {}
        """Windows that the screen shows with the labels of the latent at hand, and those of them that it flags."""
        self._tallies: dict[LabelError, list[LabelTally]] = {error: [] for error in LabelError}

    def screened(self, evidence: LatentEvidence, labels: Sequence[SupposedLabel]) -> LatentEvidence:
        """The evidence with what a screen without fault says of each label, by the name of its error."""
        self._shown = {}
        if not self._settings.screen_windows:
            return evidence
        pool = evidence.store.pool(Side.SCORE)
        group = self._num_asked // self._settings.screen_labels
        self._num_asked += 1
        sample = ("self_test", 0, group, self._settings.screen_windows)
        rows = group_rows(evidence, self._seed, sample)
        rows = rows[np.isin(rows, silent_strata(evidence, Side.SCORE).rows[Stratum.BULK])]
        if not len(rows):
            return evidence
        found: dict[str, ScreenedWindows] = {}
        for label in labels:
            flagged = rows[label.holds_at(pool.context[rows], pool.position[rows], np.zeros(len(rows), dtype=np.bool_))]
            self._shown[label.error] = len(rows), len(flagged)
            windows = ScreenedWindows(tuple(rows.tolist()), tuple(flagged.tolist()), self._settings.verified)
            found[label.explanation.explainer] = windows
        return replace(evidence, screened=found)

    def note(self, scores: Sequence[Score]) -> None:
        """Count the verdicts on the latent at hand, where all of its labels have some."""
        rows = [score.verdicts for score in scores if score.verdicts is not None and score.failure is None]
        if len(rows) < len(LabelError):
            return
        for error, items in zip(LabelError, rows, strict=True):
            screened, flagged = self._shown.get(error, (0, 0))
            tally = LabelTally(
                float(items["rate"]), pool_counts(items), (Tally.of(items),), screened=screened, flagged=flagged
            )
            self._tallies[error].append(tally)

    def block(self) -> dict[str, Any]:
        """What follows, as JSON."""
        found = _Tested()
        if self._tallies[LabelError.NONE]:
            seed = seed_for(self._seed, "self-test")
            columns = [
                estimate_natural_rates(counts_of(tallies), seed, audit=False).f1.median
                for tallies in self._tallies.values()
            ]
            found.scores = np.stack(columns, axis=1).tolist()
            found.rates = [tally.rate for tally in self._tallies[LabelError.NONE]]
        return found.block("f1", 0.0)


def _blind(why: str) -> dict[str, Any]:
    """Of a scorer that no error of a label can move."""
    return {error.value: {"sees": False, "fall": 0.0, "by_decade": [], "why": why} for error in _WORSE}


def _json(falls: Falls) -> dict[str, Any]:
    return {
        "sees": falls.sees,
        "fall": falls.whole.fall,
        "error": falls.whole.error,
        "by_decade": [_group_json(group) for group in falls.groups],
    }


def _group_json(group: GroupFall) -> dict[str, Any]:
    return {
        "rate_from": group.rate_from,
        "rate_below": group.rate_below,
        "num_latents": group.num_latents,
        "perfect": group.perfect,
        "worse": group.worse,
        "fall": group.fall,
        "error": group.error,
        "decides": group.decides,
    }
