"""What a latent does: its ablation and its steering against random pushes of the same size (METHODS 5)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from autointerp.evidence import (
    AblationChoice,
    AblationRequest,
    AttributionRequest,
    EvidenceRequest,
    LatentEvidence,
    SteeringRequest,
)
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.llm.asking import NO_LLMS, LLMs
from autointerp.score import Score, ScoreValue, defined
from autointerp.scorers.base import Scorer
from autointerp.statistics.effect import causal_effect, mean_interval

if TYPE_CHECKING:
    from sae_core.attribution_evidence import AttributionEvidence
    from sae_core.intervention.evidence import AblationEvidence, SteeringEvidence
    from sae_core.records import LatentStatistics
    from sae_core.token_text import TokenText

_KINDS = ("isotropic", "typical")
"""Names of :class:`sae_core.intervention.evidence.ControlKind`, in order."""
_MOST_TOKENS = 10


class InterventionScorer(Scorer):
    """Causal effect by ablation of every latent, or of so many, and by steering of a random sample of them."""

    NOT_TESTED: ClassVar[str | None] = "it measures what the latent does, which no label of what it fires on can change"

    kind: Literal["intervention"] = "intervention"
    """Name in the config file."""
    windows: int = Field(default=16, ge=2)
    """Firing windows of the score side to ablate in for each latent (50 for figures to publish; ``sampled_exemplars`` must hold them)."""
    control_directions: int = Field(default=8, ge=2)
    """Random directions of the same norm that each latent's ablation is compared with."""
    max_positions: int | None = Field(default=None, ge=1)
    """Most tokens ablated and measured from a window's first firing one on; None for all to the window's end."""
    min_windows: int = Field(default=2, ge=2)
    """Windows below which there is no causal effect."""
    attribution_tokens: int = Field(default=131_072, ge=0)
    """Tokens of the score side on which every latent's effect is estimated from gradients (``attribution_kl``); 0 for no estimate."""
    latents: int | None = Field(default=None, ge=1)
    """Most latents of a coder that are ablated; None for all. A random part is, then those with the largest ``attribution_kl``."""
    random_share: float = Field(default=0.05, gt=0, le=1)
    """Share of the latents that is ablated whatever their attribution (32 at least, and half of ``latents`` at most), where not all are."""
    steered_latents: int = Field(default=256, ge=0)
    """Size of the random sample of latents that is steered; 0 for none."""
    steering_targets: tuple[Annotated[float, Field(gt=0)], ...] = (0.1, 0.33, 1.0)
    """Mean KL divergences in nats that steering aims at; the first one is the headline."""
    steering_prompts: int = Field(default=16, ge=2)
    """Prompts that fit the strength, and as many that report what it reaches."""
    steering_control_directions: int = Field(default=4, ge=2)
    """Random directions that steering is compared with."""

    @model_validator(mode="after")
    def _a_budget_needs_an_order(self) -> Self:
        if self.latents is not None and not self.attribution_tokens:
            raise ValueError(
                f"latents is {self.latents} and attribution_tokens 0: give tokens to choose the latents by, or leave latents out."
            )
        return self

    @property
    def headline(self) -> str:
        """The effect of ablation."""
        return "causal_effect"

    @property
    def judges_explanation(self) -> bool:
        """False: what a latent does is measured whatever its label says."""
        return False

    def needs(self) -> list[EvidenceRequest]:
        """Ablation, attribution, and steering, the last two unless they are switched off."""
        needs: list[EvidenceRequest] = [
            AblationRequest(
                windows=self.windows,
                control_directions=self.control_directions,
                max_positions=self.max_positions,
                latents=self.latents,
                random_share=self.random_share,
            )
        ]
        if self.attribution_tokens:
            needs.append(AttributionRequest(tokens=self.attribution_tokens))
        if not self.steered_latents or not self.steering_targets:
            return needs
        steering = SteeringRequest(
            latents=self.steered_latents,
            targets=self.steering_targets,
            prompts=self.steering_prompts,
            control_directions=self.steering_control_directions,
        )
        return [*needs, steering]

    async def score(self, explanation: Explanation | None, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Score:
        """Effects of one latent; ``dead``, ``no_evidence``, ``no_effect_rows`` and ``too_few_windows`` are its failures.

        A KL target that steering cannot reach is no failure of the score: ``steering_failure`` says ``unreachable``. Nor is it one that
        there was no room to ablate a latent: ``causal_chosen`` is not defined then, and its attribution stands alone.
        """
        latent = evidence.latent
        values: dict[str, ScoreValue] = {}
        if evidence.attribution is not None:
            values |= attribution_values(evidence.attribution, latent, evidence.store.statistics)
        failure: Failure | None
        if evidence.is_dead:
            failure = Failure(kind=FailureKind.DEAD, message="never fires in the corpus")
        elif evidence.ablation_choice == AblationChoice.LEFT_OUT:
            failure = None
        elif evidence.ablation is None or not np.any(evidence.ablation.latents == latent):
            failure = Failure(kind=FailureKind.NO_EVIDENCE, message="the intervene stage has not ablated this latent")
        else:
            failure = self._ablation_failure(evidence.ablation, latent)
            values["causal_chosen"] = None if evidence.ablation_choice is None else evidence.ablation_choice.value
            values |= ablation_values(evidence.ablation, latent, self.min_windows, evidence.store.pieces)
        if evidence.steering is not None:
            values |= steering_values(evidence.steering, latent)
        return Score(latent=latent, scorer=self.kind, values=defined(values), failure=failure)

    def _ablation_failure(self, ablation: AblationEvidence, latent: int) -> Failure | None:
        num_windows = len(ablation.rows_of(latent))
        silent = int(ablation.num_windows_silent[np.flatnonzero(ablation.latents == latent)[0]])
        if not num_windows:
            message = f"fires in no window of the score side that can be ablated ({silent} fell silent when run again)"
            return Failure(kind=FailureKind.NO_EFFECT_ROWS, message=message)
        if num_windows < self.min_windows:
            message = f"ablated in {num_windows} windows of the score side, {self.min_windows} are needed"
            return Failure(kind=FailureKind.TOO_FEW_WINDOWS, message=message)
        return None


def attribution_values(
    attribution: AttributionEvidence, latent: int, statistics: LatentStatistics
) -> dict[str, ScoreValue]:
    """Values from the sums of one latent (row ``latent``); empty where it fires in nothing that was read."""
    count = int(attribution.count[latent])
    if not count:
        return {}
    kl = float(attribution.sum_kl[latent]) / count
    return {
        "attribution": float(attribution.sum_ce[latent]) / count,
        "attribution_abs": float(attribution.sum_abs_ce[latent]) / count,
        "attribution_kl": kl,
        "attribution_kl_total": kl * int(statistics.fire_count[:, latent].sum()),
        "attribution_count": count,
    }


def ablation_values(
    ablation: AblationEvidence, latent: int, min_windows: int, pieces: TokenText
) -> dict[str, ScoreValue]:
    """Values from the ablation rows of one latent; no effect below ``min_windows`` rows, no KL without rows."""
    rows = ablation.rows_of(latent)
    kl, control, floor = ablation.kl_firing[rows], ablation.control_kl_firing[rows], ablation.epsilon
    values: dict[str, ScoreValue] = {"causal_num_windows": len(rows)}
    place = int(np.flatnonzero(ablation.latents == latent)[0])
    # What falls when the latent is taken away is what it promotes.
    values["top_promoted_tokens"] = _texts(ablation.tokens_lowered[place], pieces)
    values["top_suppressed_tokens"] = _texts(ablation.tokens_raised[place], pieces)
    if not len(rows):
        return values
    effect = causal_effect(kl, control, floor)
    values |= {
        "ablation_kl": effect.ablation_kl,
        "ablation_kl_rest": _weighted_mean(ablation.kl_rest[rows], ablation.count_rest[rows]),
        "ablation_share": effect.share_above_floor,
        "delta_ce": _weighted_mean(ablation.delta_ce[rows], np.minimum(ablation.count_ce[rows], 1)),
        "control_kl": effect.control_kl,
        "control_kl_rest": _mean_over_directions(ablation.control_kl_rest[rows], ablation.count_rest[rows]),
        "control_delta_ce": _mean_over_directions(
            ablation.control_delta_ce[rows], np.minimum(ablation.count_ce[rows], 1)
        ),
        "causal_control_log_kl": float(np.log(np.maximum(control, 0) + floor).mean()) if control.size else None,
        "causal_floor": floor,
    }
    values |= _paths(ablation, place, effect.ablation_kl)
    if len(rows) < min_windows:
        return values
    values |= _typical(kl, control, floor)
    values |= _bounds("delta_ce", mean_interval(ablation.delta_ce[rows][ablation.count_ce[rows] > 0]))
    values |= {
        "causal_effect": effect.value,
        "causal_effect_low": effect.low,
        "causal_effect_high": effect.high,
        "causal_effect_se": effect.standard_error,
        "causal_effect_df": effect.degrees_of_freedom,
        "causal_num_controls": effect.num_directions,
        "causal_push_norm": float(ablation.push_norm[rows].mean()),
    }
    means = np.log(np.maximum(control, 0) + floor).mean(axis=0)
    for code, name in enumerate(_KINDS):
        own = ablation.control_kind == code
        # One kind's effect stands beside the whole: isotropic directions lie where the subject is blind.
        values[f"causal_effect_{name}"] = causal_effect(kl, control[:, own], floor).value if own.any() else None
        # How its directions differ among themselves: what one more of them might do (see causal_random_low).
        values[f"causal_spread_{name}"] = float(means[own].std(ddof=1)) if own.sum() > 1 else None
    return values


def _typical(kl: NDArray[np.float64], control: NDArray[np.float64], floor: float) -> dict[str, ScoreValue]:
    """KL of the typical window: e to the mean of the logarithms, whose t interval holds where that of the mean KL does not.

    Of one latent ln KL has a standard deviation of 2 to 3 over windows: a mean is then the largest window's, and no interval of it
    from some tens of windows covers.
    """
    logs = np.log(np.maximum(kl, 0.0) + floor)
    found = mean_interval(logs)
    bounds = None if found is None else (math.exp(found[0]), math.exp(found[1]))
    values: dict[str, ScoreValue] = {"ablation_kl_typical": math.exp(logs.mean())}
    values |= _bounds("ablation_kl_typical", bounds)
    if control.size:
        values["control_kl_typical"] = math.exp(np.log(np.maximum(control, 0.0) + floor).mean())
    return values


def _bounds(name: str, interval: tuple[float, float] | None) -> dict[str, ScoreValue]:
    return {} if interval is None else {f"{name}_low": interval[0], f"{name}_high": interval[1]}


def _paths(ablation: AblationEvidence, place: int, kl: float | None) -> dict[str, ScoreValue]:
    """Which way the latent acts; nothing for a latent whose effect is no more than rounding, which has no way."""
    share = ablation.path_share[place]
    if kl is None or kl <= ablation.epsilon or not np.isfinite(share).all():
        return {}
    block = int(ablation.path_block[int(np.argmax(share))])
    direct = float(share[np.flatnonzero(ablation.path_block < 0)[0]])
    return {"direct_share": direct, "acts_at": "direct" if block < 0 else f"{ablation.block_list}.{block}"}


def steering_values(steering: SteeringEvidence, latent: int) -> dict[str, ScoreValue]:
    """Values from the steering rows of one latent: of the first target by plain names, of others with ``_at_<nats>``.

    Empty where the latent was not steered.
    """
    values: dict[str, ScoreValue] = {}
    for number, row in enumerate(steering.rows_of(latent).tolist()):
        own = _steering_row(steering, row)
        suffix = f"_at_{float(steering.target[row]):g}" if number else ""
        values |= {name + suffix: value for name, value in own.items()}
    return values


def _steering_row(steering: SteeringEvidence, row: int) -> dict[str, ScoreValue]:
    values: dict[str, ScoreValue] = {"steering_target": float(steering.target[row])}
    if not steering.num_prompts_fit[row] or not steering.num_prompts_score[row]:
        return values | {"steering_failure": FailureKind.TOO_FEW_WINDOWS.value}
    if steering.unreachable[row]:
        nearest = _finite(steering.kl_fit[row])
        return values | {"steering_failure": FailureKind.UNREACHABLE.value, "steering_kl_fit": nearest}
    ratios = steering.log_alpha_ratio[row]
    reached = ratios[np.isfinite(ratios)]
    return values | {
        "steering_alpha": _finite(steering.alpha[row]),
        "steering_norm": _finite(steering.alpha[row] * steering.direction_norm[row]),
        "steering_kl_fit": _finite(steering.kl_fit[row]),
        "steering_kl": _finite(steering.kl_score_mean[row]),
        "steering_kl_median": _finite(steering.kl_score_median[row]),
        "steering_kl_largest_share": _finite(steering.kl_score_largest_share[row]),
        "steering_num_controls": len(reached),
        "steering_controls_unreachable": len(ratios) - len(reached),
        **(_steering_effect(reached) if 2 * len(reached) >= len(ratios) else {}),
        **_promised(steering, row),
    }


def _steering_effect(ratios: NDArray[np.float64]) -> dict[str, ScoreValue]:
    """Of the directions that reach the target. The others need a larger push than any that was tried: where they are the
    most, a mean of the rest would say that random directions do nearly as well as the latent."""
    if not len(ratios):
        return {}
    error = float(ratios.std(ddof=1)) / math.sqrt(len(ratios)) if len(ratios) > 1 else None
    return {
        "steering_effect": float(ratios.mean()),
        "steering_effect_se": error,
        **_bounds("steering_effect", mean_interval(ratios)),
    }


def _promised(steering: SteeringEvidence, row: int) -> dict[str, ScoreValue]:
    """Whether the tokens rise that the lens and the output label's lists promise, with standard errors and controls."""
    at = steering.recall_at
    return {
        "lens_auroc": _finite(steering.lens_auroc[row]),
        "lens_auroc_se": _finite(steering.lens_auroc_se[row]),
        "lens_auroc_control": _mean_of_known(steering.control_lens_auroc[row]),
        f"lens_recall{at}": _finite(steering.lens_recall[row]),
        f"lens_recall{at}_control": _mean_of_known(steering.control_lens_recall[row]),
        "output_tokens_auroc": _finite(steering.output_auroc[row]),
        "output_tokens_auroc_se": _finite(steering.output_auroc_se[row]),
        "output_tokens_auroc_control": _mean_of_known(steering.control_output_auroc[row]),
        f"output_tokens_recall{at}": _finite(steering.output_recall[row]),
        f"output_tokens_recall{at}_control": _mean_of_known(steering.control_output_recall[row]),
    }


def _mean_of_known(values: NDArray[np.float64]) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _weighted_mean(values: NDArray[np.float64], weights: NDArray[np.int32]) -> float | None:
    """Mean over what the rows stand for (tokens, or rows that have a value at all); None where that is nothing."""
    total = int(weights.sum())
    return float((values * weights).sum() / total) if total else None


def _mean_over_directions(values: NDArray[np.float64], weights: NDArray[np.int32]) -> float | None:
    """The mean over control directions [., R] of their :func:`_weighted_mean`."""
    return _weighted_mean(values.mean(axis=1), weights) if values.shape[1] else None


def _texts(token_ids: NDArray[np.int32], pieces: TokenText) -> tuple[str, ...] | None:
    """Readable tokens, strongest first; None where there were no rows to rank them by."""
    known = [int(token) for token in token_ids[:_MOST_TOKENS] if token >= 0]
    return tuple(pieces.visible(token) for token in known) or None
