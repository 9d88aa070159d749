"""What the scorers share that give each window a number (simulation, surprisal, embedding), on windows as they come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from autointerp.evidence import LatentEvidence
from autointerp.explanation import Explanation
from autointerp.failure import Failure
from autointerp.judging.batching import Asked
from autointerp.judging.outcome import failed_of, spent, too_few
from autointerp.judging.supposed import SupposedLabel
from autointerp.sampling.natural import NaturalSample, natural_sample
from autointerp.sampling.window import ShownWindow
from autointerp.score import Score, ScoreValue, defined
from autointerp.scorers.base import Scorer
from autointerp.statistics.ranking import document_auroc
from sae_core.hashing import seed_for


class NaturalJudge(Scorer):
    """A scorer of uniformly drawn windows, firing and silent ones apart."""

    firing: int = Field(default=10, ge=1)
    """Activating windows, drawn uniformly."""
    silent: int = Field(default=10, ge=1)
    """Non-activating windows, drawn uniformly."""
    min_windows: int = Field(default=5, ge=1)
    """Windows of either kind that must be there."""
    seed: int = 0
    """Seed of the sample of windows and of the intervals."""

    def draw(self, evidence: LatentEvidence) -> NaturalSample:
        """The windows that are judged."""
        return natural_sample(evidence, self.firing, self.silent, self.seed)

    def shortage(
        self, sample: NaturalSample, explanation: Explanation, evidence: LatentEvidence, least_silent: int
    ) -> Score | None:
        """The failed score of a latent with too few windows; None where there are enough."""
        if len(sample.firing) >= self.min_windows and len(sample.silent) >= least_silent:
            return None
        found = (
            f"{len(sample.firing)} activating and {len(sample.silent)} non-activating windows may be judged, "
            f"{self.min_windows} and {least_silent} are needed"
        )
        values: dict[str, ScoreValue] = {f"{self.kind}_share_skipped": sample.share_skipped}
        return too_few(self.kind, evidence, explanation, found, values)

    def ranked(
        self,
        explanation: Explanation,
        sample: NaturalSample,
        found: Sequence[float | Failure],
        values: dict[str, ScoreValue],
    ) -> Score:
        """The score of a number for each of the sample's windows: the area under its ROC curve, with its interval."""
        judged = [(w, x) for w, x in zip(sample.windows, found, strict=True) if not isinstance(x, Failure)]
        rng = np.random.default_rng(seed_for(self.seed, f"{self.kind} interval", explanation.latent))
        ranking = document_auroc(
            [x for _, x in judged], [w.fires for w, _ in judged], [w.document for w, _ in judged], rng
        )
        scored: dict[str, ScoreValue] = {
            f"{self.kind}_score": ranking.auroc,
            f"{self.kind}_low": ranking.low,
            f"{self.kind}_high": ranking.high,
        }
        scored |= self.counted(sample, found) | values
        failure = None if ranking.auroc is not None else unjudged(found, [w for w, _ in judged])
        return Score(
            latent=explanation.latent,
            scorer=self.kind,
            explainer=explanation.explainer,
            values=defined(scored),
            failure=failure,
        )

    def ranked_if(self, labels: Sequence[SupposedLabel], evidence: LatentEvidence) -> list[Score]:
        """The scores of labels that are worth 1 in each window in which they hold and 0 in every other, drawn as ever."""
        sample = self.draw(evidence)
        scores = []
        for label in labels:
            short = self.shortage(sample, label.explanation, evidence, self.min_windows)
            numbers = label.holds(sample.windows).astype(np.float64).tolist()
            scores.append(short or self.ranked(label.explanation, sample, numbers, {}))
        return scores

    def counted(self, sample: NaturalSample, found: Sequence[object]) -> dict[str, ScoreValue]:
        """Windows with a number and without, ``found`` being one or a failure for each of the sample's."""
        judged = [w for w, one in zip(sample.windows, found, strict=True) if not isinstance(one, Failure)]
        return {
            f"{self.kind}_judged": len(judged),
            **failed_of(self.kind, (one.kind for one in found if isinstance(one, Failure))),
            f"{self.kind}_firing": sum(window.fires for window in judged),
            f"{self.kind}_silent": sum(not window.fires for window in judged),
            f"{self.kind}_share_skipped": sample.share_skipped,
        }

    def spent(self, asked: Asked[Any], asked_model: str) -> dict[str, ScoreValue]:
        """Who judged, and what it took."""
        return spent(self.kind, asked, asked_model)


def unjudged(found: Sequence[object], judged: Sequence[ShownWindow]) -> Failure:
    """Why there is no score: the most common failure of the windows (the first one, on ties)."""
    failures = [one for one in found if isinstance(one, Failure)]
    assert failures, "a window without a number carries a failure"
    kind = Counter(failure.kind for failure in failures).most_common(1)[0][0]
    said = next(failure.message for failure in failures if failure.kind is kind)
    num_firing = sum(window.fires for window in judged)
    return Failure(
        kind=kind,
        message=f"{num_firing} activating and {len(judged) - num_firing} non-activating windows of {len(found)} were judged, "
        f"{len(failures)} failed ({kind.value}: {said})",
    )
