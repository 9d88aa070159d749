"""What a label is worth in its latent's place: the share of the subject's behaviour that its predictions keep.

``substitution = 1 - (pi_f K_f + pi_s K_s) / (pi_f K_ablated)``: KLs of the windows in which the latent fires, and of the silent
ones in which the label predicts an activation, each at its natural rate. 1: the label's predictions do what the latent does;
0: they are worth no more than silence; below 0: the subject would be better off without them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from autointerp.evidence import EvidenceRequest, LatentEvidence, SubstitutionRequest
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.llm.asking import NO_LLMS, LLMs
from autointerp.score import Score, ScoreValue, defined
from autointerp.scorers.base import Scorer
from autointerp.statistics.effect import MIN_FLOOR
from autointerp.statistics.recovered import Recovered, recovered_share

if TYPE_CHECKING:
    from sae_core.intervention.substitution_evidence import SubstitutionEvidence

_OWN, _CONTROL = 0, 1
"""Arms of :class:`sae_core.intervention.substitution_evidence.SubstitutionEvidence`."""
MIN_SILENT = 4
"""Silent windows, as they were seen in a sample, below which there is no figure where one stands for more than one firing window."""


class SubstitutionScorer(Scorer):
    """Share of a latent's effect that the predictions of its chosen label keep.

    It is scored once labels are chosen, from what the ``substitute`` stage has left, and not with the scorers that judge every
    draft: :meth:`can_judge` is always false.
    """

    NOT_TESTED: ClassVar[str | None] = (
        "it runs the subject with what a label predicts, which a supposed label does not say"
    )

    kind: Literal["substitution"] = "substitution"
    """Name in the config file."""
    latents: int = Field(default=256, ge=0)
    """Size of the random sample of labelled latents of each coder that are replaced one by one; 0 for none."""
    windows: int = Field(default=16, ge=2)
    """Firing windows of the score side to replace each latent in, and as many silent ones in which its label predicts something."""
    contexts: int = Field(default=64, ge=0)
    """Contexts of the score side in which all labelled latents are replaced at once; 0 for none."""
    min_windows: int = Field(default=2, ge=2)
    """Firing windows below which there is no figure."""

    @property
    def headline(self) -> str:
        """The share kept."""
        return "substitution"

    def can_judge(self, explanation: Explanation) -> bool:
        """False: see the class."""
        return False

    def needs(self) -> list[EvidenceRequest]:
        """Substitution, unless nothing is to be replaced."""
        if not self.latents and not self.contexts:
            return []
        return [SubstitutionRequest(latents=self.latents, windows=self.windows, contexts=self.contexts)]

    async def score(self, explanation: Explanation | None, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Score:
        """See :meth:`scored`."""
        return self.scored(explanation, evidence)

    def scored(self, explanation: Explanation | None, evidence: LatentEvidence) -> Score:
        """The score of the chosen label; nobody is asked.

        Failures: ``no_explanation``, ``no_evidence``, ``no_effect_rows``, ``too_few_windows``, ``no_effect`` (ablation itself does
        nothing, so that there is nothing to keep).
        """
        latent, rows = evidence.latent, evidence.substitution
        values: dict[str, ScoreValue] = {}
        failure: Failure | None
        if explanation is None or explanation.failure is not None:
            failure = Failure(
                kind=FailureKind.NO_EXPLANATION, message="there is no label whose predictions could stand in"
            )
        elif rows is None or latent not in rows.latents:
            failure = Failure(kind=FailureKind.NO_EVIDENCE, message="the substitute stage has not replaced this latent")
        else:
            values, failure = self._values(rows, latent)
        name = None if explanation is None else explanation.explainer
        return Score(latent=latent, scorer=self.kind, explainer=name, values=defined(values), failure=failure)

    def _values(self, rows: SubstitutionEvidence, latent: int) -> tuple[dict[str, ScoreValue], Failure | None]:
        place = rows.latents.tolist().index(latent)
        firing, silent = rows.rows_of(latent, _OWN, True), rows.rows_of(latent, _OWN, False)
        share_firing, share_silent = float(rows.share_firing[place]), float(rows.share_silent[place, _OWN])
        values: dict[str, ScoreValue] = {
            "substitution_windows": len(firing),
            "substitution_silent_windows": len(silent),
            "substitution_share_silent": share_silent,
        }
        if not len(firing):
            lost = int(rows.num_lost[place])
            message = f"fires in no window of the score side that can be edited ({lost} fell silent when run again)"
            return values, Failure(kind=FailureKind.NO_EFFECT_ROWS, message=message)
        if len(firing) < self.min_windows:
            message = f"replaced in {len(firing)} firing windows of the score side, {self.min_windows} are needed"
            return values, Failure(kind=FailureKind.TOO_FEW_WINDOWS, message=message)
        if (unknown := _unknown(rows, latent, place, _OWN)) is not None:
            return values, Failure(kind=FailureKind.TOO_FEW_WINDOWS, message=unknown)
        ablated = float(rows.kl_ablated[firing].mean())
        own = _figure(rows, latent, place, _OWN)
        values |= {
            "substitution_ablation_kl": ablated,
            "substitution_kl": None if own.value is None else (1 - own.value) * ablated,
            "substitution_kl_firing": float(rows.kl[firing].mean()),
            "substitution_kl_silent": float(rows.kl[silent].mean()) if len(silent) else None,
            "substitution_odds": share_silent / share_firing,
            "substitution_delta_ce": float(rows.delta_ce[firing].mean()),
            "substitution_ablation_delta_ce": float(rows.delta_ce_ablated[firing].mean()),
        }
        if ablated <= MIN_FLOOR:
            message = f"taking the latent out changes the subject by {ablated:.1e} nats a window, which is rounding"
            return values, Failure(kind=FailureKind.NO_EFFECT, message=message)
        values |= {
            "substitution": own.value,
            "substitution_low": own.low,
            "substitution_high": own.high,
        }
        if len(rows.rows_of(latent, _CONTROL, True)) and _unknown(rows, latent, place, _CONTROL) is None:
            control = _figure(rows, latent, place, _CONTROL)
            values |= {
                "substitution_shuffled": control.value,
                "substitution_shuffled_low": control.low,
                "substitution_shuffled_high": control.high,
            }
        return values, None


def _unknown(rows: SubstitutionEvidence, latent: int, place: int, arm: int) -> str | None:
    """Why an arm's silent windows cannot be counted in, None where they can."""
    firing, silent = float(rows.share_firing[place]), float(rows.share_silent[place, arm])
    if silent > 0 and not len(rows.rows_of(latent, arm, False)):
        return f"{silent:.1%} of the windows are silent ones that the label speaks of, and none of them was judged"
    if not firing:
        return "how often the latent fires in windows that may be scored is not known: its firing windows were all held back"
    one = float(rows.share_of_one[place])
    if one > firing and round(silent / one) < MIN_SILENT:
        # a mean over the draws would be right, but most draws hold no such window and would show a perfect label
        return (
            f"what the label says where the latent is silent is seen in {round(silent / one)} windows, and one stands for "
            f"{one / firing:.3g} firing ones: too few for a figure (raise extraction.pool_windows, or a judge's windows)"
        )
    return None


def _figure(rows: SubstitutionEvidence, latent: int, place: int, arm: int) -> Recovered:
    firing, silent = rows.rows_of(latent, arm, True), rows.rows_of(latent, arm, False)
    share = float(rows.share_firing[place])
    odds = float(rows.share_silent[place, arm]) / share if len(silent) else 0.0
    spread = float(rows.share_spread[place, arm])
    of_one = float(rows.share_of_one[place]) / share
    return recovered_share(rows.kl[firing], rows.kl_ablated[firing], rows.kl[silent], odds, spread, odds_of_one=of_one)
