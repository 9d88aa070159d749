"""Do promised tokens rise? Where some tokens stand when the vocabulary is ranked by how much its logits changed.

Letters in shapes: X rankings, K tokens of a list, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Rankings:
    """Ranks of tokens among those that a text can hold."""

    def __init__(self, change_XV: Tensor, known_V: Tensor) -> None:
        """``change_XV`` of the logits; ``known_V`` says which tokens take part."""
        self._change_XV = change_XV
        self._known_V = known_V
        self._ascending = change_XV[:, known_V].contiguous().sort(dim=-1).values
        self.size = int(known_V.sum())
        """Tokens that take part."""

    def ranks(self, tokens_XK: Tensor) -> Tensor:
        """[X, K] float64, 1 for what fell most, ``size`` for what rose most, ties at their mean; NaN for -1 and unknown tokens."""
        valid = (tokens_XK >= 0) & self._known_V[tokens_XK.clamp_min(0)]
        own = self._change_XV.gather(-1, tokens_XK.clamp_min(0)).contiguous()
        below = torch.searchsorted(self._ascending, own)
        up_to = torch.searchsorted(self._ascending, own, right=True)
        return torch.where(valid, (below + up_to + 1).double() / 2, torch.nan)

    def auroc(self, tokens_XK: Tensor) -> NDArray[np.float64]:
        """[X] share of (token of the list, other token) pairs in which the listed one rose more; NaN for an empty list."""
        ranks = self.ranks(tokens_XK)
        count = (~ranks.isnan()).sum(-1)
        pairs = (count * (self.size - count)).double()
        share = (ranks.nansum(-1) - count * (count + 1) / 2) / torch.where(pairs > 0, pairs, torch.nan)
        return np.asarray(share.cpu().numpy(), dtype=np.float64)

    def recall(self, tokens_XK: Tensor, at: int) -> NDArray[np.float64]:
        """[X] share of the list that is among the ``at`` tokens that rose most.

        NaN for an empty list, and where the vocabulary holds no more than ``at`` tokens, all of which are then among them.
        """
        ranks = self.ranks(tokens_XK)
        count = (~ranks.isnan()).sum(-1)
        found = (ranks > self.size - at).sum(-1) / torch.where(count > 0, count.double(), torch.nan)
        return np.asarray(found.cpu().numpy() if self.size > at else np.full(len(found), np.nan), dtype=np.float64)


def jackknife_error(left_out: NDArray[np.float64]) -> float:
    """Standard error of a statistic from its values with one sampled unit left out each time; NaN below 3 units, or where one is NaN.

    (n - 1)/n times the sum of squares around their mean, as a variance (Tukey 1958).
    """
    count = len(left_out)
    if count < 3:
        return float("nan")
    return float(np.sqrt((count - 1) / count * np.square(left_out - left_out.mean()).sum()))
