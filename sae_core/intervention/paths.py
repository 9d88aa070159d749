"""By which way an edit reaches the logits: straight through the residual stream, or by what later blocks make of it.

The change of the state before the final norm is a sum: what the edit puts into the residual stream, and for each later
block how much more or less it adds than in the clean pass. The final norm is taken to first order at the clean state and the
head is linear, so that the change of the logits is the same sum, and projecting each part on the whole gives shares
that add up to 1.

Letters in shapes: n edited tokens, P parts (direct, then each later block), D width of the stream, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sae_core.errors import SubjectError, UnknownNameError
from sae_core.hookpoints import Hookpoint, block_index, block_list_name, edited_at, first_tensor
from sae_core.intervention.divergence import Unembedding
from sae_core.intervention.measure import Reference
from sae_core.intervention.resume import UpperLayers
from sae_core.subject import SubjectModel

DIRECT = -1
"""Stands for the direct path where others are named by their block."""


class Paths:
    """Takes edits' changes of the logits apart, for edits at the hookpoints of one :class:`UpperLayers`."""

    def __init__(self, subject: SubjectModel, upper: UpperLayers, unembedding: Unembedding) -> None:
        """Look up the places to watch; a subject whose final norm is not known gets no ``places`` and no shares."""
        self._subject = subject
        self._upper = upper
        self._unembedding = unembedding
        self._list = block_list_name(subject.base)
        depth = len(subject.base.get_submodule(self._list))
        self.blocks: tuple[int, ...] = tuple(range(upper.first_block, depth))
        """The blocks that run above the edits, in their order."""
        try:
            self._norm: nn.Module | None = subject.final_norm
            last = Hookpoint(subject.hookpoint("ln_final.hook_out").module, "input")
            self.places: tuple[Hookpoint, ...] = (*(Hookpoint(self._block(b), "input") for b in self.blocks), last)
            """Where the stream is looked at: as it enters each of the blocks, and the final norm."""
        except SubjectError:
            self._norm, self.places = None, ()
        widths = subject.widths(upper.hookpoints)
        self._widths = [widths[hookpoint] for hookpoint in upper.hookpoints]
        self._gram: Tensor | None = None

    @property
    def names(self) -> tuple[int, ...]:
        """P parts: :data:`DIRECT` and the blocks."""
        return (DIRECT, *self.blocks)

    def _block(self, block: int) -> str:
        return f"{self._list}.{block}"

    @contextmanager
    def watched(self, tokens_n: Tensor, found: dict[Hookpoint, Tensor]) -> Iterator[None]:
        """While this is open, a packed run leaves the states of its ``tokens_n`` at the places in ``found``."""

        def keep(place: Hookpoint, value: object) -> None:
            found[place] = first_tensor(value)[0].index_select(0, tokens_n)

        with self._subject.hooks(set(self.places), keep):
            yield

    @torch.inference_mode()
    def parts(
        self,
        references: Sequence[Reference],
        reference_n: NDArray[np.integer],
        position_n: NDArray[np.integer],
        edited: Mapping[Hookpoint, Tensor],
        delta_nD: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Each part's projection on the whole [n, P] and the whole's square [n], in logits squared, float64.

        ``edited`` holds the states [n, D] at the places (:meth:`watched`) of tokens that stand at ``position_n`` of the contexts
        ``reference_n``; ``delta_nD`` is what was added at the hookpoints, which lie side by side. The logits are centred:
        what moves all of them alike changes no prediction.
        """
        place_n = torch.from_numpy(position_n).to(delta_nD.device)
        order = np.argsort(reference_n, kind="stable")
        inverse = torch.from_numpy(np.argsort(order, kind="stable")).to(delta_nD.device)
        bounds = np.searchsorted(reference_n[order], np.arange(len(references) + 1))
        clean: dict[Hookpoint, Tensor] = {}
        for place in self.places:
            states = [
                r.clean.captured[place][place_n[torch.from_numpy(order[a:b]).to(place_n.device)]]
                for r, (a, b) in zip(references, itertools.pairwise(bounds), strict=True)
                if b > a
            ]
            clean[place] = torch.cat(states)[inverse]
        change = [edited[place].float() - clean[place].float() for place in self.places]
        parts_nPD = self._split(change, delta_nD.float())
        logits = self._through_norm(clean[self.places[-1]], parts_nPD)
        whole = logits.sum(1) @ self._centred_gram()
        return (logits * whole[:, None]).sum(-1).double(), (logits.sum(1) * whole).sum(-1).double()

    def _split(self, change: Sequence[Tensor], delta_nD: Tensor) -> Tensor:
        """[n, P, D] the parts of the last of the stream's ``change``s [n, D]."""
        direct = change[0]
        own = [after - before for before, after in itertools.pairwise(change)]
        pieces = torch.split(delta_nD, self._widths, dim=-1)
        made = [
            (block - self._upper.first_block, hookpoint, piece)
            for hookpoint, piece in zip(self._upper.hookpoints, pieces, strict=True)
            # what was made before the first of these blocks is in what enters that
            if (block := block_index(self._subject.base, hookpoint)) is not None and block >= self._upper.first_block
        ]
        for at, hookpoint, piece in sorted(made, key=lambda one: one[0]):
            if self._is_stream(hookpoint) and hookpoint in self._upper.kept:
                # the stream was put to the clean one and this: what came before is gone
                direct = piece
                own[: at + 1] = [torch.zeros_like(piece) for _ in range(at + 1)]
                if hookpoint.io == "input":  # between attention and MLP: the block's MLP comes after it
                    own[at] = change[at + 1] - piece
            elif self._is_stream(hookpoint) or self._adds_to_stream(hookpoint):
                direct = direct + piece
                own[at] = own[at] - piece
            else:  # inside of a block: what the block hands on counts as put there
                direct = direct + own[at]
                own[at] = torch.zeros_like(own[at])
        return torch.stack([direct, *own], dim=1)

    def _is_stream(self, hookpoint: Hookpoint) -> bool:
        """Whether what passes is the residual stream itself."""
        block = block_index(self._subject.base, hookpoint)
        middle = edited_at(self._subject.model, hookpoint) != hookpoint
        return middle or hookpoint == Hookpoint(self._block(block or 0))

    def _adds_to_stream(self, hookpoint: Hookpoint) -> bool:
        """Whether what passes is added to the residual stream as it is."""
        block = block_index(self._subject.base, hookpoint)
        for name, projection in (("hook_attn_out", "attn.hook_z"), ("hook_mlp_out", "mlp.hook_post")):
            try:
                added = self._subject.hookpoint(f"blocks.{block}.{name}")
                last = Hookpoint(self._subject.hookpoint(f"blocks.{block}.{projection}").module)
            except UnknownNameError:
                continue
            if hookpoint == added or (hookpoint == last and last.module.startswith(f"{added.module}.")):
                return True
        return False

    def _through_norm(self, state_nD: Tensor, parts_nPD: Tensor) -> Tensor:
        """What the final norm makes of each part, to first order at ``state_nD``; times the head's scale."""
        norm = self._norm
        assert norm is not None
        # Forward differentiation wants ordinary tensors and no inference mode.
        with torch.inference_mode(False), torch.no_grad():
            at = state_nD.clone()[:, None].expand(parts_nPD.shape).contiguous()
            moved: Tensor = torch.func.jvp(norm, (at,), (parts_nPD.clone().to(at.dtype),))[1]
        return moved.float() * self._unembedding.scale

    def _centred_gram(self) -> Tensor:
        """[D, D] inner products of the head's columns: of two changes, the product of the changes of all logits."""
        if self._gram is None:
            self._gram = self._unembedding.centred.T @ self._unembedding.centred
        return self._gram
