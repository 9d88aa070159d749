"""What latents' directions write, read through the final norm and the unembedding, and which directions lie near each other.

No text is read for it: decoder rows, final norm and unembedding say it all (METHODS 1).

Letters in shapes: L latents, D width of all output places together, d width of one, N neighbours, K tokens of a list,
V vocabulary, R rows of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_core.attachment import AttachedCoder
from sae_core.errors import NonFiniteError, SubjectError, UnknownNameError
from sae_core.hookpoints import Hookpoint, block_index
from sae_core.lens_evidence import LensEvidence
from sae_core.subject import SubjectModel

_CELLS = {"cpu": 1 << 24, "cuda": 1 << 28}
"""Logits or cosines that are held at a time: 64 MiB on a host, 1 GiB on a GPU."""


@torch.inference_mode()
def lens(
    subject: SubjectModel,
    attached: AttachedCoder,
    neighbours: int = 10,
    tokens: int = 10,
    block: int = 4096,
    progress: Callable[[int], None] = lambda done: None,
) -> LensEvidence:
    """Nearest decoder rows by cosine, and the tokens that ``W_U · norm(d)`` raises and lowers most, of every latent.

    Several output places lie side by side in a decoder row: neighbours are near in all of them together, the tokens are those
    of the place nearest the unembedding. Where no place writes vectors of the residual stream's width, or the subject's final
    norm is not known, there are no tokens; a row of zeros has neither tokens nor neighbours. ``block`` bounds the rows that are
    worked at a time, ``progress`` is told the latents done.

    Raises:
        NonFiniteError: a decoder row is NaN or infinite.
    """
    rows_LD = attached.coder.decoder_weight
    norms_L = _norms(rows_LD, block)
    near, cosines = _neighbours(rows_LD, norms_L, neighbours, block)
    read = LensReader(subject, attached.write, tokens)
    parts = []
    for start in range(0, len(rows_LD), read.rows(block)):
        part = slice(start, start + read.rows(block))
        parts.append(read.tokens(rows_LD[part]))
        progress(min(part.stop, len(rows_LD)))
    promoted, suppressed = (
        TopTokens(*map(np.concatenate, zip(*side, strict=True))) for side in zip(*parts, strict=True)
    )
    return LensEvidence(near, cosines, *promoted, *suppressed)


def known_tokens(subject: SubjectModel) -> Tensor:
    """[V] rows of the unembedding that stand for a token that a text can hold: known to the tokenizer, and not special."""
    known = torch.zeros(subject.vocab_size, dtype=torch.bool, device=subject.device)
    ids = set(subject.tokenizer.get_vocab(with_added_tokens=True).values()) - subject.special_ids
    known[torch.tensor(sorted(ids), dtype=torch.long, device=subject.device)] = True
    return known


class TopTokens(NamedTuple):
    """The tokens at one end of each of R rows of logits."""

    ids: NDArray[np.int32]
    """[R, K] strongest first; -1 for none."""
    logits: NDArray[np.float32]
    """[R, K] 0 for none."""

    def without(self, rows_R: NDArray[np.bool_]) -> TopTokens:
        """The same with none in some rows."""
        return TopTokens(np.where(rows_R[:, None], -1, self.ids), np.where(rows_R[:, None], 0, self.logits))


def top_tokens(logits_RV: Tensor, known_V: Tensor, count: int) -> tuple[TopTokens, TopTokens]:
    """The ``count`` known tokens that are raised most, and those that are lowered most."""
    taken = min(count, int(known_V.sum()))

    def end(sign: int) -> TopTokens:
        values, best = (logits_RV * sign).masked_fill(~known_V, -math.inf).topk(taken, dim=-1)
        ids = np.full((len(logits_RV), count), -1, dtype=np.int32)
        logits = np.zeros((len(logits_RV), count), dtype=np.float32)
        ids[:, :taken] = best.cpu().numpy()
        logits[:, :taken] = values.float().cpu().numpy() * sign
        return TopTokens(ids, logits)

    return end(1), end(-1)


def _norms(rows_LD: Tensor, block: int) -> Tensor:
    """[L] lengths of the rows, float32. Raises NonFiniteError."""
    parts = [rows_LD[start : start + block].float().norm(dim=-1) for start in range(0, len(rows_LD), block)]
    norms_L = torch.cat(parts) if parts else torch.zeros(0, device=rows_LD.device)
    if bad := torch.nonzero(~torch.isfinite(norms_L)).flatten().tolist():
        raise NonFiniteError(
            f"The decoder row of latent {bad[0]} (and {len(bad) - 1} others) is NaN or infinite: give weights that are finite."
        )
    return norms_L


def _neighbours(
    rows_LD: Tensor, norms_L: Tensor, count: int, block: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """``neighbours [L, N], cosines [L, N]``: the best of each block of columns are merged with the best so far."""
    num_latents = len(rows_LD)
    near = np.full((num_latents, count), -1, dtype=np.int32)
    cosines = np.zeros((num_latents, count), dtype=np.float32)
    size = max(1, min(block, math.isqrt(_cells(rows_LD))))
    for start in range(0, num_latents, size):
        own = slice(start, min(start + size, num_latents))
        unit_RD = _unit(rows_LD[own], norms_L[own])
        best = torch.full((len(unit_RD), count), -math.inf, device=rows_LD.device)
        best_ids = torch.full(best.shape, -1, dtype=torch.long, device=rows_LD.device)
        for begin in range(0, num_latents, size):
            other = slice(begin, min(begin + size, num_latents))
            similar = unit_RD @ _unit(rows_LD[other], norms_L[other]).T
            similar[:, norms_L[other] == 0] = -math.inf
            if begin == start:
                similar.fill_diagonal_(-math.inf)
            ids = torch.arange(other.start, other.stop, device=rows_LD.device).expand_as(similar)
            best, order = torch.cat([best, similar], dim=-1).topk(count, dim=-1)
            best_ids = torch.cat([best_ids, ids], dim=-1).gather(-1, order)
        there = torch.isfinite(best) & (norms_L[own] > 0)[:, None]
        near[own] = torch.where(there, best_ids, -1).cpu().numpy()
        cosines[own] = torch.where(there, best.clamp(-1, 1), 0.0).cpu().numpy()
    return near, cosines


def _unit(rows_RD: Tensor, norms_R: Tensor) -> Tensor:
    """[R, D] float32 rows of length 1; zeros stay zeros."""
    return rows_RD.float() / norms_R.clamp_min(torch.finfo(torch.float32).tiny)[:, None]


def _cells(tensor: Tensor) -> int:
    return _CELLS.get(tensor.device.type, _CELLS["cpu"])


class LensReader:
    """Reads directions at some places through the final norm and the unembedding."""

    def __init__(self, subject: SubjectModel, places: Sequence[Hookpoint], count: int) -> None:
        """``count`` tokens are taken at each end; of several places, side by side in a direction, the last one is read."""
        self._subject = subject
        self._count = count
        self._known_V = known_tokens(subject)
        widths = subject.widths(places)
        last = _last_place(subject, places)
        width = widths[places[last]]
        before = sum(widths[place] for place in places[:last])
        self._columns = slice(before, before + width)
        self._through_norm = not _is_final_norm(subject, places[last])
        self._reads = width == subject.model.get_output_embeddings().weight.shape[1] and _has_final_norm(subject)

    def rows(self, block: int) -> int:
        """Rows whose logits are held at a time."""
        return max(1, min(block, _cells(self._known_V) // self._subject.vocab_size))

    def tokens(self, rows_RD: Tensor) -> tuple[TopTokens, TopTokens]:
        """Tokens that each direction raises and lowers most."""
        if not self._reads:
            shape = len(rows_RD), self._count
            none = TopTokens(np.full(shape, -1, dtype=np.int32), np.zeros(shape, dtype=np.float32))
            return none, none
        part_Rd = rows_RD[:, self._columns].float()
        silent = (part_Rd == 0).all(dim=-1).cpu().numpy()
        raised, lowered = top_tokens(self._logits(part_Rd), self._known_V, self._count)
        return raised.without(silent), lowered.without(silent)

    def _logits(self, part_Rd: Tensor) -> Tensor:
        """[R, V] float32."""
        if self._through_norm:
            return self._subject.unembed(part_Rd)
        # the direction lies behind the norm already; its size there is that of a norm's output
        scale = math.sqrt(part_Rd.shape[-1]) / part_Rd.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        weight: Tensor = self._subject.model.get_output_embeddings().weight
        logits: Tensor = (part_Rd * scale).to(self._subject.device) @ weight.float().T
        return logits


def _last_place(subject: SubjectModel, places: Sequence[Hookpoint]) -> int:
    """Index of the place that lies nearest the unembedding."""

    def depth(number: int) -> tuple[float, int]:
        block = block_index(subject.base, places[number])
        outside = math.inf if _is_final_norm(subject, places[number]) else -math.inf
        return (outside if block is None else block, number)

    return max(range(len(places)), key=depth)


def _is_final_norm(subject: SubjectModel, place: Hookpoint) -> bool:
    """Whether the place is the output of the norm before the unembedding."""
    try:
        return place == subject.hookpoint("ln_final.hook_out")
    except UnknownNameError:
        return False


def _has_final_norm(subject: SubjectModel) -> bool:
    try:
        return subject.final_norm is not None
    except SubjectError:
        return False
