"""What interventions leave behind for those who score: raw rows, no verdicts. Torch-free.

Letters in shapes: M rows of ablation, Q rows of steering, R control directions, F latents, K tokens of a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from sae_core.evidence_file import EvidenceTable

POOL = 64
"""Control directions that a run draws, half of each kind; every latent is compared with a few of them."""


class ControlKind(IntEnum):
    """Where a control direction comes from."""

    ISOTROPIC = 0
    """Uniform on the sphere: most of these point where the subject is blind."""
    TYPICAL = 1
    """The difference of the activations at two random tokens."""


@dataclass(frozen=True, eq=False)
class AblationEvidence(EvidenceTable):
    """Ablation of latents on their firing windows: ``h' = h - z d`` at the firing tokens (METHODS 5).

    A row is one window of one latent; all of one latent's rows stand together. Measured from the first firing token
    to the window's end. The control is the same displacement ``|z| |d|`` at the same tokens along random directions:
    each latent's own R of a pool that the run shares, the same R for all of its rows.
    """

    _KIND = "ablation evidence"
    _SHARED = ("control_kind", "control_seed", "path_block", "block_list")
    _LARGEST = ("noise_floor",)
    _SUMMED = ("num_noise_tokens",)

    latent: NDArray[np.int32]
    """[M]"""
    document: NDArray[np.int32]
    """[M] ordinal of the document."""
    context: NDArray[np.int32]
    """[M] ordinal of the context."""
    position: NDArray[np.int32]
    """[M] position of the window's first token in its context."""
    num_firing_tokens: NDArray[np.int32]
    """[M] tokens of the window on which the latent fires, at least 1."""
    push_norm: NDArray[np.float64]
    """[M] mean displacement |z| |d| over the firing tokens, in units of the hookpoint's activations."""
    kl_firing: NDArray[np.float64]
    """[M] mean KL(clean || ablated) over the firing tokens, nats."""
    kl_rest: NDArray[np.float64]
    """[M] the same over the window's silent tokens from the first firing one on; 0 where there is none."""
    count_rest: NDArray[np.int32]
    """[M] how many these are."""
    delta_ce: NDArray[np.float64]
    """[M] mean change of the true next token's cross-entropy over the firing tokens, nats; positive = ablation hurts."""
    count_ce: NDArray[np.int32]
    """[M] firing tokens with a next token in the context."""
    control_kl_firing: NDArray[np.float64]
    """[M, R] ``kl_firing`` of each control direction."""
    control_kl_rest: NDArray[np.float64]
    """[M, R] ``kl_rest`` of each control direction."""
    control_delta_ce: NDArray[np.float64]
    """[M, R] ``delta_ce`` of each control direction."""
    control_kind: NDArray[np.uint8]
    """[R] :class:`ControlKind` of each direction, the same for all latents."""
    latents: NDArray[np.int32]
    """[F] every latent that was asked for, with or without rows."""
    control_direction: NDArray[np.int32]
    """[F, R] which directions of the pool each latent is compared with."""
    num_windows: NDArray[np.int32]
    """[F] rows of each."""
    num_windows_silent: NDArray[np.int32]
    """[F] windows left out because the latent did not fire there when it was run again (rounding at a threshold)."""
    tokens_raised: NDArray[np.int32]
    """[F, K] tokens whose logit the ablation raises most (mean over the firing tokens), strongest first; -1: no rows."""
    logits_raised: NDArray[np.float32]
    """[F, K] by how much."""
    tokens_lowered: NDArray[np.int32]
    """[F, K] tokens whose logit it lowers most: what the latent promotes, with all its indirect effects."""
    logits_lowered: NDArray[np.float32]
    """[F, K] by how much (negative)."""
    path_share: NDArray[np.float32]
    """[F, P] share of the change of the centred logits at the firing tokens (final norm to first order) that comes by each
    path; they add up to 1. NaN: no rows, no change at all, or a subject whose final norm is not known."""
    path_block: NDArray[np.int32]
    """[P] -1: direct, what the latent's push puts into the residual stream; otherwise the later block that answers to it."""
    block_list: str
    """What the subject calls its list of blocks."""
    noise_floor: float
    """Largest KL between a clean row and the clean pass, nats: what no edit at all shows."""
    num_noise_tokens: int
    """Tokens that the noise floor was measured on."""
    control_seed: int
    """Seed that the control directions were drawn from."""

    @property
    def epsilon(self) -> float:
        """Nats to add before taking logs: max(1e-6, 10 x the noise floor)."""
        return max(1e-6, 10 * self.noise_floor)

    def rows_of(self, latent: int) -> NDArray[np.intp]:
        """Indices of a latent's rows."""
        return np.flatnonzero(self.latent == latent)


KL_DIRECTION = "KL(clean || steered)"
"""What ``kl`` means in :class:`SteeringEvidence`."""
KL_POSITIONS = (
    "mean over prompts of the mean over the prompt's tokens from the first firing token on, "
    "up to the window's end and SteeringSettings.max_positions of them (16) at most"
)
"""Where it is measured (and steered)."""


@dataclass(frozen=True, eq=False)
class SteeringEvidence(EvidenceTable):
    """Steering to a KL target: ``h' = h + alpha d`` (METHODS 5).

    A row is one latent at one target. ``alpha`` was fitted on prompts of the explain side; everything with ``score``
    in its name was measured at that alpha on prompts of the score side. KL is :data:`KL_DIRECTION`, nats,
    :data:`KL_POSITIONS`. Control directions have the length of the latent's direction, so that alphas compare; each latent
    has its own R of the pool that ablation deals from.
    Numbers that do not exist are NaN, and the flags say why.
    """

    _KIND = "steering evidence"
    _SHARED = ("control_kind", "control_seed", "tolerance", "recall_at")

    latent: NDArray[np.int32]
    """[Q]"""
    target: NDArray[np.float64]
    """[Q] KL aimed at, nats."""
    unreachable: NDArray[np.uint8]
    """[Q] 1: no alpha tried met the target within the tolerance."""
    num_prompts_fit: NDArray[np.int32]
    """[Q] prompts of the explain side; 0: none fires, hence nothing was fitted."""
    num_prompts_score: NDArray[np.int32]
    """[Q] prompts of the score side; 0: nothing could be measured there."""
    alpha: NDArray[np.float64]
    """[Q] alpha that meets the target: the first one met going up from a push of half the length of the hookpoint's mean
    activation (or of what the target before suggests), or down where that does too much. NaN where unreachable."""
    direction_norm: NDArray[np.float64]
    """[Q] length of d, so that ``alpha * direction_norm`` is the displacement."""
    kl_fit: NDArray[np.float64]
    """[Q] KL met on the explain side; where unreachable, the one that came nearest, NaN where every push overflowed."""
    kl_score_mean: NDArray[np.float64]
    """[Q] mean over the score side's prompts."""
    kl_score_median: NDArray[np.float64]
    """[Q] median over them."""
    kl_score_largest_share: NDArray[np.float64]
    """[Q] the largest prompt's share of their sum."""
    control_unreachable: NDArray[np.uint8]
    """[Q, R]"""
    control_alpha: NDArray[np.float64]
    """[Q, R] the alpha of each control direction on the same prompts."""
    control_kl_fit: NDArray[np.float64]
    """[Q, R]"""
    control_kl_score: NDArray[np.float64]
    """[Q, R] mean over the score side's prompts."""
    tokens_raised: NDArray[np.int32]
    """[Q, K] tokens whose logit rises most on the score side (mean over tokens), strongest first; -1: none."""
    tokens_lowered: NDArray[np.int32]
    """[Q, K] tokens whose logit falls most."""
    lens_auroc: NDArray[np.float64]
    """[Q] AUROC over the vocabulary: do the direction's logit-lens tokens rise on the score side?"""
    lens_auroc_se: NDArray[np.float64]
    """[Q] its standard error over the score side's prompts, by a jackknife: the prompts are what is sampled, lists and vocabulary
    are given. NaN below 3 prompts."""
    lens_recall: NDArray[np.float64]
    """[Q] share of these tokens among the ``recall_at`` that rise most."""
    control_lens_auroc: NDArray[np.float64]
    """[Q, R] the AUROC for each control direction with *its own* lens tokens: they rise too, by the direct path."""
    control_lens_recall: NDArray[np.float64]
    """[Q, R] the share for each control direction with its own."""
    output_auroc: NDArray[np.float64]
    """[Q] AUROC of the tokens that the latent promises elsewhere (what an output label is written from); NaN without a list."""
    output_auroc_se: NDArray[np.float64]
    """[Q] its standard error, as of ``lens_auroc_se``."""
    output_recall: NDArray[np.float64]
    """[Q] share of these tokens among the ``recall_at`` that rise most."""
    control_output_auroc: NDArray[np.float64]
    """[Q, C] AUROC of other latents' lists on the same change: what rises whatever is promised; NaN where there are fewer."""
    control_output_recall: NDArray[np.float64]
    """[Q, C] their shares."""
    control_kind: NDArray[np.uint8]
    """[R] :class:`ControlKind` of each direction."""
    tolerance: float
    """Largest relative distance from the target that counts as met."""
    recall_at: int
    """How many of the tokens that rise most a recall looks at; it is NaN where the vocabulary has no more."""
    control_seed: int
    """Seed that the control directions were drawn from."""

    @property
    def log_alpha_ratio(self) -> NDArray[np.float64]:
        """[Q, R] ln(control alpha / alpha): above 0 where the latent needs a smaller push than the control direction.

        NaN where either cannot reach the target.
        """
        return np.asarray(np.log(self.control_alpha) - np.log(self.alpha)[:, None], dtype=np.float64)

    def rows_of(self, latent: int) -> NDArray[np.intp]:
        """Indices of a latent's rows."""
        return np.flatnonzero(self.latent == latent)
