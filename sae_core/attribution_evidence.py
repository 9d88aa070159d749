"""What attribution leaves behind about latents: sums over firing tokens, no verdicts. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sae_core.errors import InputError
from sae_core.evidence_file import EvidenceTable


@dataclass(frozen=True, eq=False)
class AttributionEvidence(EvidenceTable):
    """First-order effects of ablating latents, one firing token at a time, on everything that the subject predicts after it.

    Of a latent with activation z and direction d at a token where a metric has the gradient g, ``a = z d·g`` is what the metric
    loses by the ablation, to first order. Two metrics: the log-probability of the true next token, summed over the context's
    positions, and the same of labels drawn from the subject's own predictions. The latter's mean of ``a² / 2`` is, to second order, the
    KL(clean || ablated) of that token's ablation, summed over all positions of the context from the token on: scores of
    different positions are uncorrelated, and their covariance at one position is the Fisher information of its prediction.
    """

    _KIND = "attribution evidence"
    _SHARED = ("num_latents", "seed")
    _SUMMED = ("num_tokens", "num_contexts", "num_skipped")

    latent: NDArray[np.int32]
    """[F] latents that fired in the tokens read; more than one row of a latent where parts were joined."""
    count: NDArray[np.int64]
    """[F] firing tokens that were read."""
    sum_ce: NDArray[np.float64]
    """[F] nats that ablation adds to the cross-entropy of the true next tokens, to first order; positive = ablation hurts."""
    sum_abs_ce: NDArray[np.float64]
    """[F] the same with each firing token's share taken without its sign."""
    sum_kl: NDArray[np.float64]
    """[F] nats of KL, to second order."""
    num_latents: int
    """Latents of the coder."""
    num_tokens: int
    """Tokens read that count (no BOS, EOS or padding)."""
    num_contexts: int
    """Contexts they stood in."""
    num_skipped: int
    """Contexts left out because activations or gradients were NaN or infinite."""
    seed: int
    """Of the labels that were drawn."""

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """One row for each latent of the coder, over all parts; parts must be of different contexts or latents.

        Raises:
            InputError: no parts, or parts of different coders or seeds.
        """
        rows = cls.concatenate(parts)
        size = rows.num_latents
        if len(rows.latent) and not 0 <= int(rows.latent.min()) <= int(rows.latent.max()) < size:
            raise InputError(f"The parts of {cls._KIND} hold latents outside of 0 to {size - 1}; make them again.")

        def added(values: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.bincount(rows.latent, weights=values, minlength=size).astype(np.float64)

        return cls(
            latent=np.arange(size, dtype=np.int32),
            count=np.rint(added(rows.count.astype(np.float64))).astype(np.int64),
            sum_ce=added(rows.sum_ce),
            sum_abs_ce=added(rows.sum_abs_ce),
            sum_kl=added(rows.sum_kl),
            num_latents=size,
            num_tokens=rows.num_tokens,
            num_contexts=rows.num_contexts,
            num_skipped=rows.num_skipped,
            seed=rows.seed,
        )

    @property
    def ce(self) -> NDArray[np.float64]:
        """[F] ``sum_ce`` per firing token; NaN where none was read."""
        return self._per_token(self.sum_ce)

    @property
    def abs_ce(self) -> NDArray[np.float64]:
        """[F] ``sum_abs_ce`` per firing token; NaN where none was read."""
        return self._per_token(self.sum_abs_ce)

    @property
    def kl(self) -> NDArray[np.float64]:
        """[F] ``sum_kl`` per firing token; NaN where none was read."""
        return self._per_token(self.sum_kl)

    def _per_token(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.count > 0, sums / self.count, np.nan)
