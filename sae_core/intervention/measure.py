"""One batch of edited rows, measured token by token against the clean pass.

Letters in shapes: N packed tokens, P positions, T tokens of a context, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_core.errors import NonFiniteError
from sae_core.intervention.divergence import Unembedding
from sae_core.intervention.resume import CleanContext, Rows, UpperLayers

_MOST_KEPT = 1 << 22
"""Probabilities of a context that are kept (16 MiB): steering holds many contexts, and vocabularies may be large."""


class Reference(NamedTuple):
    """A clean context with its predictions at the positions that are measured."""

    clean: CleanContext
    following: NDArray[np.int64]
    """[T] next token of each position, -1 after the context's last."""
    probabilities: Tensor | None
    """[P, V] at the positions that are measured; None where they would take too much memory: then batches make theirs."""
    line: Tensor
    """[T] row of ``probabilities`` of each position that is measured."""
    before_cap: Tensor | None
    """[P, V] clean logits before the cap, of a subject that caps them, where ``probabilities`` are kept."""


def reference(
    unembedding: Unembedding,
    clean: CleanContext,
    tokens: NDArray[np.integer[Any]],
    spans: Iterable[tuple[int, int]],
) -> Reference:
    """Clean predictions at the positions that some span (start, stop) covers; ``tokens`` is the whole context."""
    used = torch.zeros(len(clean.tokens), dtype=torch.bool, device=clean.tokens.device)
    for start, stop in spans:
        used[start:stop] = True
    following = np.append(tokens[1:], -1).astype(np.int64)
    line = torch.cumsum(used, 0) - 1
    if int(used.sum()) * len(unembedding.weight) > _MOST_KEPT:
        return Reference(clean, following, None, line, None)
    final = clean.final[used]
    return Reference(clean, following, unembedding.probabilities(final), line, unembedding.before_cap(final))


class CleanPredictions(NamedTuple):
    """What a subject predicts at some positions of a clean context."""

    probabilities: Tensor
    """[P, V]"""
    line: Tensor
    """[n] row of ``probabilities`` of each position asked for."""
    before_cap: Tensor | None
    """[P, V] logits before the cap, of a subject that caps them."""


def clean_predictions(unembedding: Unembedding, of: Reference, position_n: Tensor) -> CleanPredictions:
    """Clean predictions at measured positions, kept or made here."""
    if of.probabilities is not None:
        return CleanPredictions(of.probabilities, of.line[position_n], of.before_cap)
    used, line = torch.unique(position_n, return_inverse=True)
    final = of.clean.final[used]
    return CleanPredictions(unembedding.probabilities(final), line, unembedding.before_cap(final))


class Measured(NamedTuple):
    """What edited rows do, in packed order."""

    kl: NDArray[np.float64]
    """[N] KL(clean || edited), nats."""
    delta_ce: NDArray[np.float64]
    """[N] change of the true next token's cross-entropy, nats; 0 where there is none."""
    has_next: NDArray[np.bool_]
    """[N] whether there is one."""
    difference: Tensor
    """[N, D] float32, edited minus clean final hidden state."""


def measure(
    upper: UpperLayers,
    unembedding: Unembedding,
    references: Sequence[Reference],
    rows: Rows,
    delta_ND: Tensor,
    *,
    overflow_is_far: bool = False,
) -> Measured:
    """Run ``rows`` (their ``context`` counts in ``references``) with ``delta_ND`` and compare with the clean pass.

    The clean pass, not a clean row of the same batch, is the reference: with differences of hidden states in float32
    the two agree to about 1e-11 nats (callers measure that with unedited rows), and no batch pays for a clean row.

    Args:
        upper: the layers that run again.
        unembedding: the subject's head.
        references: the clean contexts.
        rows: what is edited.
        delta_ND: added to the hookpoints' activations.
        overflow_is_far: where an edit leaves what the subject's dtype can hold, say an infinite KL: for those who look
            for a push of the right size and try large ones. ``delta_ce`` and ``difference`` mean nothing there.

    Raises:
        NonFiniteError: a KL is NaN or infinite; with ``overflow_is_far`` only where no edit is to blame.
    """
    final = upper.run([r.clean for r in references], rows, delta_ND.to(upper.subject.dtype))
    position = rows.position
    place = torch.from_numpy(position).to(final.device)
    bounds = np.searchsorted(rows.context[rows.row], np.arange(len(references) + 1)).tolist()
    kl, delta_ce = np.empty(len(position)), np.empty(len(position))
    has_next = np.zeros(len(position), dtype=bool)
    difference = torch.empty(final.shape, dtype=torch.float32, device=final.device)
    for part, a, b in zip(references, bounds[:-1], bounds[1:], strict=True):
        if a == b:
            continue
        torch.sub(final[a:b].float(), part.clean.final[place[a:b]].float(), out=difference[a:b])
        following = part.following[position[a:b]]
        has_next[a:b] = following >= 0
        clean = clean_predictions(unembedding, part, place[a:b])
        result = unembedding.divergence(
            clean.probabilities,
            clean.line,
            difference[a:b],
            torch.from_numpy(following).to(final.device),
            clean.before_cap,
        )
        kl[a:b] = result.kl.double().cpu().numpy()
        delta_ce[a:b] = result.delta_ce.double().cpu().numpy()
    broken = ~(np.isfinite(kl) & np.isfinite(delta_ce))
    if overflow_is_far and broken.any() and _finite_without_edit(references):
        kl[broken] = np.inf
    elif broken.any():
        raise NonFiniteError(
            f"The subject {upper.subject.name} gave NaN or infinite values under an edit at {', '.join(map(str, upper.hookpoints))}; "
            "use dtype float32."
        )
    return Measured(kl, delta_ce, has_next, difference)


def _finite_without_edit(references: Sequence[Reference]) -> bool:
    return all(bool(torch.isfinite(part.clean.final).all()) for part in references)
