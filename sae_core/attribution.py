"""A cheap screen of all latents: activation times direction times gradient (METHODS 5, attribution).

One forward pass a batch, and one backward pass for each of two metrics that ends at the lowest place where a coder writes,
say for every latent at every token where it fires what its ablation there does to first order: the gradient is the
same for all of them. Labels drawn from the subject's own predictions make of it a second-order estimate of a KL, see
:class:`sae_core.attribution_evidence.AttributionEvidence`.

Letters in shapes: B contexts of a batch, T tokens of its longest, N = B T, C tokens of it that count, D width of all
places together, L latents, P pairs of a token and a latent that fires there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_core.attachment import AttachedCoder, side_by_side
from sae_core.attribution_evidence import AttributionEvidence
from sae_core.batches import context_batches, padded
from sae_core.editing import added, put
from sae_core.errors import SubjectError
from sae_core.hashing import hash64
from sae_core.hookpoints import Hookpoint, first_tensor
from sae_core.intervention.divergence import Unembedding
from sae_core.subject import SubjectModel
from sae_core.tokens import TokenCorpus

_TOKENS = 256
"""Tokens whose logits are held at a time."""
_PAIRS = 1 << 15
"""Pairs whose decoder rows are held at a time."""


class PairAttributions(NamedTuple):
    """What ablating latents does at the tokens of a batch where they fire, to first order."""

    context: NDArray[np.int64]
    """[P] ordinal of the context."""
    position: NDArray[np.int64]
    """[P]"""
    latent: NDArray[np.int64]
    """[P]"""
    ce: NDArray[np.float64]
    """[P] change of the true next tokens' cross-entropy, summed over the context; positive = ablation hurts."""
    drawn: NDArray[np.float64]
    """[P] the same of labels that were drawn from the predictions; half of its square estimates a KL."""

    def only(self, kept: NDArray[np.bool_]) -> PairAttributions:
        """Some of the pairs, by ``kept`` [P]."""
        return PairAttributions(
            self.context[kept], self.position[kept], self.latent[kept], self.ce[kept], self.drawn[kept]
        )


@dataclass
class _Batch:
    """Some contexts, and how many of them could be used."""

    ordinals: NDArray[np.int64]
    """[B]"""
    tokens: NDArray[np.int32]
    """[B, T], -1 where a row is padded."""
    finite: NDArray[np.bool_]
    """[B] contexts on which all activations and gradients of all coders are finite."""


@dataclass(frozen=True)
class _Pass:
    """Coders whose gradients come from one forward pass."""

    coders: tuple[int, ...]
    """Places in the caller's list."""
    places: tuple[Hookpoint, ...]
    """Where they write."""
    clamped: bool
    """Whether an edit puts something at each place, as one of a crosscoder does, rather than adding to what is there."""


def attribute(
    subject: SubjectModel,
    coders: Sequence[AttachedCoder],
    corpus: TokenCorpus,
    contexts: Sequence[int] | NDArray[np.int64],
    *,
    only: Mapping[int, Collection[int]] | None = None,
    seed: int = 0,
    batch_tokens: int = 2048,
    progress: Callable[[int], None] = lambda tokens: None,
) -> list[AttributionEvidence]:
    """The screen of every latent of ``coders`` over some contexts of a corpus, one for each coder.

    Args:
        subject: the model.
        coders: on that subject; those that add to what is at their places share one forward pass.
        corpus: what is read.
        contexts: ordinals of the contexts.
        only: latents that count in each context, of every coder; None for all everywhere.
        seed: of the labels drawn; a label depends on it and on its place in the corpus, not on batches.
        batch_tokens: of a pass, which holds the activations of all layers above the coders.
        progress: gets the tokens read so far, those of the contexts' BOS among them.

    Raises:
        SubjectError: the subject's head is not linear, or memory does not hold one context.
    """
    special = np.array(sorted(subject.special_ids), dtype=np.int64)
    passes = _passes(coders)
    unembedding = Unembedding(subject)
    widths = subject.widths({place for one in passes for place in one.places})
    totals = [_Totals(attached.coder.num_latents) for attached in coders]
    run = _Run(subject, coders, widths, unembedding, special, seed)
    num_tokens, num_contexts, num_skipped, done = 0, 0, 0, 0
    for batch, found in _batches(run, passes, corpus, np.asarray(contexts, dtype=np.int64), batch_tokens):
        for total, pairs in zip(totals, found, strict=True):
            total.add(_kept(pairs, only))
        used = batch.tokens[batch.finite]
        num_tokens += int(((used >= 0) & ~np.isin(used, special)).sum())
        num_contexts += int(batch.finite.sum())
        num_skipped += int((~batch.finite).sum())
        done += int((batch.tokens >= 0).sum())
        progress(done)
    return [total.evidence(num_tokens, num_contexts, num_skipped, seed) for total in totals]


def _passes(coders: Sequence[AttachedCoder]) -> list[_Pass]:
    """Edits of a crosscoder of several places stand for what is there and cut the way from one place to the next."""
    together: list[int] = []
    alone: dict[tuple[Hookpoint, ...], list[int]] = {}
    for number, attached in enumerate(coders):
        if len(attached.write) > 1 and attached.read == attached.write:
            alone.setdefault(attached.write, []).append(number)
        else:
            together.append(number)
    found = [_Pass(tuple(numbers), places, clamped=True) for places, numbers in alone.items()]
    if together:
        places = tuple(dict.fromkeys(place for number in together for place in coders[number].write))
        found.append(_Pass(tuple(together), places, clamped=False))
    return found


def _kept(pairs: PairAttributions, only: Mapping[int, Collection[int]] | None) -> PairAttributions:
    if only is None:
        return pairs
    kept = np.zeros(len(pairs.context), dtype=bool)
    for context in np.unique(pairs.context).tolist():
        here = pairs.context == context
        kept[here] = np.isin(pairs.latent[here], np.fromiter(only.get(context, ()), dtype=np.int64))
    return pairs.only(kept)


class _Totals:
    """Sums of one coder, [L] each."""

    def __init__(self, num_latents: int) -> None:
        self.count = np.zeros(num_latents, dtype=np.int64)
        self.ce, self.abs_ce, self.kl = (np.zeros(num_latents) for _ in range(3))

    def add(self, pairs: PairAttributions) -> None:
        size = len(self.count)
        self.count += np.bincount(pairs.latent, minlength=size)
        for total, values in ((self.ce, pairs.ce), (self.abs_ce, np.abs(pairs.ce)), (self.kl, pairs.drawn**2 / 2)):
            total += np.bincount(pairs.latent, weights=values, minlength=size)

    def evidence(self, num_tokens: int, num_contexts: int, num_skipped: int, seed: int) -> AttributionEvidence:
        fired = np.flatnonzero(self.count)
        return AttributionEvidence(
            latent=fired.astype(np.int32),
            count=self.count[fired],
            sum_ce=self.ce[fired],
            sum_abs_ce=self.abs_ce[fired],
            sum_kl=self.kl[fired],
            num_latents=len(self.count),
            num_tokens=num_tokens,
            num_contexts=num_contexts,
            num_skipped=num_skipped,
            seed=seed,
        )


def _batches(
    run: _Run, passes: Sequence[_Pass], corpus: TokenCorpus, contexts: NDArray[np.int64], batch_tokens: int
) -> Iterator[tuple[_Batch, list[PairAttributions]]]:
    """Batches with the attributions of each coder; where memory does not hold one, its halves."""
    waiting = context_batches(corpus, contexts, batch_tokens)[::-1]
    while waiting:
        ordinals = waiting.pop()
        tokens = padded([corpus.context(int(ordinal)) for ordinal in ordinals])
        batch = _Batch(ordinals, tokens, np.ones(len(ordinals), dtype=bool))
        try:
            found = run.attributions(passes, batch)
        except torch.OutOfMemoryError as error:
            if len(ordinals) == 1:
                raise SubjectError(
                    f"the memory of {run.subject.device} does not hold the backward pass of one context of {tokens.shape[1]} "
                    "tokens: lower extraction.context_length, or choose another subject.dtype or device."
                ) from error
            found = None
        if found is None:  # outside of the handler, whose traceback keeps the failed batch's tensors alive
            if run.subject.device.type == "cuda":
                torch.cuda.empty_cache()
            waiting += [ordinals[len(ordinals) // 2 :], ordinals[: len(ordinals) // 2]]
            continue
        yield batch, found


class _Run:
    """What all batches of one call share."""

    def __init__(
        self,
        subject: SubjectModel,
        coders: Sequence[AttachedCoder],
        widths: Mapping[Hookpoint, int],
        unembedding: Unembedding,
        special: NDArray[np.int64],
        seed: int,
    ) -> None:
        self.subject = subject
        self.coders = coders
        self.widths = widths
        self.unembedding = unembedding
        self.special = special
        self.seed = seed

    def attributions(self, passes: Sequence[_Pass], batch: _Batch) -> list[PairAttributions]:
        """Of each coder. Contexts with NaN or infinite values are noted in the batch, and left out."""
        found: dict[int, PairAttributions] = {}
        for one in passes:
            captured, gradients = self._gradients(one, batch)
            for number in one.coders:
                found[number] = self._pairs(self.coders[number], captured, gradients, batch)
        usable = batch.ordinals[batch.finite]
        for number, pairs in found.items():  # what one coder cannot use is left out of all
            kept = np.isin(pairs.context, usable)
            found[number] = pairs.only(kept)
        return [found[number] for number in range(len(self.coders))]

    def _gradients(self, one: _Pass, batch: _Batch) -> tuple[dict[Hookpoint, Tensor], list[dict[Hookpoint, Tensor]]]:
        """Activations [B, T, D] where the coders read, and the two metrics' gradients where they write."""
        subject = self.subject
        ids = torch.from_numpy(np.maximum(batch.tokens, 0)).long().to(subject.device)
        read = {place for number in one.coders for place in self.coders[number].read}
        captured: dict[Hookpoint, Tensor] = {}
        with torch.enable_grad(), ExitStack() as stack:
            deltas = {
                place: torch.zeros(
                    *ids.shape, self.widths[place], dtype=subject.dtype, device=subject.device, requires_grad=True
                )
                for place in one.places
            }
            if one.clamped:
                captured = {place: value.clone() for place, value in subject.capture(ids, list(one.places)).items()}
                stack.enter_context(put(subject, {place: captured[place] + deltas[place] for place in one.places}))
            else:
                stack.enter_context(added(subject, deltas))

                def keep(place: Hookpoint, value: object) -> None:
                    captured[place] = first_tensor(value).detach()

                stack.enter_context(subject.hooks(read, keep))
            final = subject.base(input_ids=ids, use_cache=False).last_hidden_state
        wanted = [deltas[place] for place in one.places]
        starts = self._starts(final.detach(), batch)
        gradients = []
        for number, start in enumerate(starts):
            parts = torch.autograd.grad(final, wanted, start, retain_graph=number + 1 < len(starts), allow_unused=True)
            gradients.append(
                {
                    place: torch.zeros_like(delta) if part is None else part
                    for place, delta, part in zip(one.places, wanted, parts, strict=True)
                }
            )
        return captured, gradients

    @torch.no_grad()
    def _starts(self, final_BTD: Tensor, batch: _Batch) -> list[Tensor]:
        """Gradients [B, T, D] of the two metrics with respect to the final hidden states.

        That of ``log p(y)`` is the unembedding's row of y less the rows' mean under p, each row times the slope of the cap where
        logits are capped.
        """
        tokens, head = batch.tokens, self.unembedding
        positions = np.arange(tokens.shape[1])
        following = np.concatenate([tokens[:, 1:], np.full((len(tokens), 1), -1, tokens.dtype)], axis=1)
        uniform = hash64(self.seed, batch.ordinals[:, None], positions).astype(np.float64) / 2.0**64
        real = np.flatnonzero(tokens >= 0)
        flat = final_BTD.reshape(-1, final_BTD.shape[-1])
        starts = [torch.zeros_like(flat), torch.zeros_like(flat)]
        for begin in range(0, len(real), _TOKENS):
            rows = real[begin : begin + _TOKENS]
            at = torch.from_numpy(rows).to(flat.device)
            p_NV = head.probabilities(flat[at])
            before_cap = head.before_cap(flat[at])
            slope_NV = None if before_cap is None or head.cap is None else 1 - torch.tanh(before_cap / head.cap) ** 2
            rows_VD = head.centred if slope_NV is None else head.weight
            mean = (p_NV if slope_NV is None else p_NV * slope_NV) @ rows_VD
            true = torch.from_numpy(following.reshape(-1)[rows].astype(np.int64)).to(flat.device)
            sums = p_NV.cumsum(-1, dtype=torch.float64)
            drawn = torch.from_numpy(uniform.reshape(-1)[rows, None]).to(flat.device) * sums[:, -1:]
            labels = torch.searchsorted(sums, drawn, right=True).squeeze(-1).clamp_max(p_NV.shape[1] - 1)
            for start, label in zip(starts, (true, labels), strict=True):
                named = label.clamp_min(0)
                own = rows_VD[named] if slope_NV is None else rows_VD[named] * slope_NV.gather(1, named[:, None])
                start[at] = (head.scale * torch.where((label >= 0)[:, None], own - mean, 0.0)).to(flat.dtype)
        return [start.view_as(final_BTD) for start in starts]

    @torch.no_grad()
    def _pairs(
        self,
        attached: AttachedCoder,
        captured: Mapping[Hookpoint, Tensor],
        gradients: Sequence[Mapping[Hookpoint, Tensor]],
        batch: _Batch,
    ) -> PairAttributions:
        coder, tokens = attached.coder, batch.tokens
        hidden = attached.inputs(captured)
        by_metric = [side_by_side(attached.write, gradient) for gradient in gradients]
        real = torch.from_numpy(tokens >= 0).to(hidden.device)
        for values in (hidden, *by_metric):
            bad = (~torch.isfinite(values).all(-1) & real).any(-1)
            batch.finite &= ~bad.cpu().numpy()
        counts = (tokens >= 0) & ~np.isin(tokens, self.special) & batch.finite[:, None]
        at = np.flatnonzero(counts)
        rows = torch.from_numpy(at).to(hidden.device)
        x_CD = hidden.reshape(-1, hidden.shape[-1])[rows]
        acts = coder.encode_sparse(x_CD)
        scale = coder.output_scale(x_CD)
        strength = acts.value.float()
        if scale is not None:
            strength = strength * scale.float()[acts.token]
        flat = [values.reshape(-1, values.shape[-1])[rows].float() for values in by_metric]
        changes = [torch.empty_like(strength) for _ in flat]
        for begin in range(0, len(strength), _PAIRS):
            part = slice(begin, begin + _PAIRS)
            direction = coder.directions.index_select(0, acts.latent[part]).float()
            for change, gradient in zip(changes, flat, strict=True):
                change[part] = strength[part] * (direction * gradient[acts.token[part]]).sum(-1)
        token = at[acts.token.cpu().numpy()]
        ce, drawn = (change.double().cpu().numpy() for change in changes)
        row, position = np.divmod(token, tokens.shape[1])
        return PairAttributions(batch.ordinals[row], position, acts.latent.cpu().numpy(), ce, drawn)
