"""Run only what lies above a hookpoint, for many edited rows of a few contexts at once.

One clean pass of a context keeps what enters the first block that has to run again and the keys and values of every
block from there on. A *row* is one edit of that context: a span of positions, with a displacement of the hookpoint's
activation at each. Rows are packed into one sequence without padding, so that linear layers see real tokens only, and
a packed attention lets every token attend to the clean keys before its row's start and to its own row's tokens: rows
of many latents share one prefix that is never copied. The attention is put in through the interface for attention
functions that Hugging Face models have; blocks below the hookpoint are replaced by one that hands the kept state over.

Letters in shapes: T tokens of a context, N packed tokens, R rows, S longest row, P prefix, D width, H heads,
G key/value heads, C width of a head.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sae_core.editing import added, put
from sae_core.errors import SubjectError
from sae_core.hookpoints import (
    Hookpoint,
    block_index,
    block_list_name,
    first_tensor,
)
from sae_core.subject import SubjectModel

_ATTENTION = "autointerp_packed_rows"


@dataclass(frozen=True)
class CleanContext:
    """What one unedited pass of a context leaves for the edited ones."""

    tokens: Tensor
    """[T] int64."""
    entering: Tensor | None
    """[T, D] what enters the first block that runs again; ``None`` where the whole model does."""
    keys: dict[int, Tensor]
    """Block -> [G, T, C], positions already rotated in."""
    values: dict[int, Tensor]
    """Block -> [G, T, C]."""
    final: Tensor
    """[T, D] after the final norm: what the unembedding reads."""
    captured: dict[Hookpoint, Tensor]
    """[T, D] activations at the hookpoints that were asked for."""


@dataclass(frozen=True)
class Rows:
    """The spans of positions that edited rows cover, packed one after the other."""

    start: NDArray[np.int64]
    """[R] first position of each row."""
    stop: NDArray[np.int64]
    """[R] one past its last position."""
    context: NDArray[np.int64]
    """[R] which of the clean contexts each row edits; ascending."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[R] tokens of each row."""
        return self.stop - self.start

    @property
    def row(self) -> NDArray[np.int64]:
        """[N] row of each packed token."""
        return np.repeat(np.arange(len(self.start)), self.lengths)

    @property
    def position(self) -> NDArray[np.int64]:
        """[N] position in the context of each packed token."""
        offset = np.cumsum(self.lengths) - self.lengths
        return np.arange(int(self.lengths.sum())) - np.repeat(offset - self.start, self.lengths)


@dataclass
class _Recording:
    """Keys and values as the blocks of a clean pass give them."""

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)


class _Segment(NamedTuple):
    """The packed tokens whose rows edit one context."""

    clean: CleanContext
    tokens: slice
    prefix: int
    """Clean positions that some row of the segment sees; 0 if none does."""


class _Masks(NamedTuple):
    """What packed tokens see, in blocks whose attention reaches equally far back."""

    prefix: tuple[Tensor, ...]
    """Segment by segment, [n, P] 0 at the clean positions that a token sees, -inf at the others."""
    own: Tensor | None
    """[S, S] the same for the tokens of its own row; ``None``: causal."""
    without_prefix: Tensor | None
    """[N] which tokens see no clean position; ``None``: all see some."""


@dataclass(frozen=True)
class _Packing:
    """How the packed tokens of one run attend."""

    segments: tuple[_Segment, ...]
    gather: Tensor | None
    """[R * S] packed index of each row's tokens (its first where there is none); ``None``: the rows are of one length."""
    scatter: Tensor | None
    """[N] index into the flattened [R, S]."""
    num_rows: int
    longest: int
    start: Tensor
    """[N] first position of each packed token's row."""
    position: Tensor
    """[N]"""
    dtype: torch.dtype
    attend: Attend
    masks: dict[int | None, _Masks] = field(default_factory=dict)
    """By the width of the sliding window, ``None`` where there is none; made when a block first asks."""

    def masks_of(self, window: int | None) -> _Masks:
        """Masks of blocks that see ``window`` positions, the token's own among them; ``None`` for all."""
        if window not in self.masks:
            self.masks[window] = self._make_masks(window)
        return self.masks[window]

    def _make_masks(self, window: int | None) -> _Masks:
        device = self.start.device
        first_seen = torch.zeros_like(self.start) if window is None else (self.position - window + 1).clamp_min(0)
        biases = []
        for segment in self.segments:
            clean = torch.arange(segment.prefix, device=device)
            unseen = clean >= self.start[segment.tokens, None]
            if window is not None:
                unseen |= clean < first_seen[segment.tokens, None]
            zeros = torch.zeros(unseen.shape, dtype=self.dtype, device=device)
            biases.append(zeros.masked_fill_(unseen, -math.inf))
        own = None
        if window is not None and window < self.longest:
            own = _causal_bias(self.longest, window, self.dtype, device)
        without = first_seen >= self.start
        return _Masks(tuple(biases), own, without if bool(without.any()) else None)


_ACTIVE: ContextVar[_Recording | _Packing] = ContextVar("active_attention_state")


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function for the blocks of a Hugging Face model; ``query`` is [B, H, T, C], the result [B, T, H, C]."""
    state = _ACTIVE.get()
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    refused = [name for name in ("s_aux", "position_bias") if kwargs.get(name) is not None]
    if refused:
        raise SubjectError(
            f"Interventions cannot run on this subject's attention ({', '.join(refused)}); causal attention is "
            "supported, with capped scores and sliding windows."
        )
    scaling = scaling or 1 / math.sqrt(query.shape[-1])
    softcap: float | None = kwargs.get("softcap")
    length = query.shape[2] if isinstance(state, _Recording) else max(len(s.clean.tokens) for s in state.segments)
    window: int | None = kwargs.get("sliding_window")
    if window is not None and window >= length:
        window = None
    if isinstance(state, _Recording):
        state.keys[layer] = key
        state.values[layer] = value
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        bias = None if window is None else _causal_bias(length, window, query.dtype, query.device)
        if softcap is None:
            out = nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask=bias, is_causal=bias is None, scale=scaling
            )
        else:
            out, _ = attend_eager(query, key, value, scaling, bias, softcap)
        return out.transpose(1, 2).contiguous(), None
    attend = state.attend if softcap is None else partial(attend_eager, softcap=softcap)
    return _attend_packed(state, attend, state.masks_of(window), layer, query, key, value, scaling), None


def _causal_bias(length: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[length, length] 0 where a token sees another, itself and those up to ``window - 1`` before it, else -inf."""
    at = torch.arange(length, device=device)
    back = at[:, None] - at
    return torch.zeros(back.shape, dtype=dtype, device=device).masked_fill_((back < 0) | (back >= window), -math.inf)


class Attend(Protocol):
    """Attention of [B, H, n, C] queries to [B, H, m, C] keys: the results and the logs of the normalisers [B, H, n]."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """``bias`` [n, m] is added to the scores; ``None`` means causal, with n = m."""
        ...


def attend_fused(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """:class:`Attend` by the CPU's fused kernel (three times as fast as :func:`attend_eager` on short rows)."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mask = None if bias is None else bias[None, None]
    out, log_normaliser = kernel(query, key, value, 0.0, bias is None, attn_mask=mask, scale=scaling)
    return out, log_normaliser


def attend_eager(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, bias: Tensor | None, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """:class:`Attend` in plain tensor operations, on any device; ``softcap`` caps the scores before the bias."""
    scores = (query @ key.transpose(-1, -2)).float() * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is None:
        bias = torch.full(scores.shape[-2:], -math.inf, device=scores.device).triu_(1)
    scores = scores + bias
    return scores.softmax(-1).to(value.dtype) @ value, scores.logsumexp(-1)


def _attend_packed(
    packing: _Packing,
    attend: Attend,
    masks: _Masks,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
) -> Tensor:
    """Attention of packed tokens [1, H, N, C] to the clean prefix and to their own row, as [1, N, H, C].

    A softmax over the union of two key sets is the mean of the two softmaxes' results, weighted by the sums of their
    exponentials (Dao et al. 2022, "FlashAttention").
    """
    heads, num_tokens, width = query.shape[1:]
    groups = heads // key.shape[1]

    def pad(packed: Tensor) -> Tensor:
        """[1, H, N, C] to [R, H, S, C]."""
        rows = packed[0].transpose(0, 1)
        if packing.gather is not None:
            rows = rows.reshape(num_tokens, -1).index_select(0, packing.gather)
        padded = rows.reshape(packing.num_rows, packing.longest, -1, width).transpose(1, 2)
        return padded.repeat_interleave(heads // padded.shape[1], 1) if padded.shape[1] < heads else padded

    def unpad(rows: Tensor) -> Tensor:
        """[R, H, S, ...] to [N, H, ...]."""
        flat = rows.transpose(1, 2).flatten(0, 1)
        return flat if packing.scatter is None else flat.index_select(0, packing.scatter)

    out, log_own = (unpad(part) for part in attend(pad(query), pad(key), pad(value), scaling, masks.own))
    out_prefix, log_prefix = torch.zeros_like(out), torch.full_like(log_own, -math.inf)
    for segment, bias in zip(packing.segments, masks.prefix, strict=True):
        if segment.prefix:
            keys = segment.clean.keys[layer][None, :, : segment.prefix]
            values = segment.clean.values[layer][None, :, : segment.prefix]
            if groups > 1:
                keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
            part, log_part = attend(query[:, :, segment.tokens], keys, values, scaling, bias)
            out_prefix[segment.tokens] = part[0].transpose(0, 1)
            log_prefix[segment.tokens] = log_part[0].transpose(0, 1)
    share = torch.sigmoid(log_prefix - log_own)[..., None].to(out.dtype)
    if masks.without_prefix is not None:  # an empty softmax is 0/0
        out_prefix = out_prefix.masked_fill(masks.without_prefix[:, None, None], 0.0)
        share = share.masked_fill(masks.without_prefix[:, None, None], 0.0)
    return torch.lerp(out, out_prefix, share)[None]


class _Handover(nn.Module):
    """Stands in for a block that need not run: passes on what it gets, or the state it was given."""

    def __init__(self, block: nn.Module, gives_tuple: bool) -> None:
        super().__init__()
        self.state: Tensor | None = None
        self.gives_tuple = gives_tuple
        for name in ("attention_type", "layer_type", "layer_idx"):  # read by the loops of some models
            if hasattr(block, name):
                setattr(self, name, getattr(block, name))

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor | tuple[Tensor]:
        state = hidden_states if self.state is None else self.state
        return (state,) if self.gives_tuple else state


class UpperLayers:
    """Everything of a subject that lies above one hookpoint, or the lowest of several.

    Not safe for threads: while rows run, the subject's lower blocks are out of it.
    """

    def __init__(
        self,
        subject: SubjectModel,
        hookpoints: Hookpoint | Sequence[Hookpoint],
        *,
        from_clean: bool = False,
        fused: bool = True,
    ) -> None:
        """Prepare runs with edits at ``hookpoints``; ``fused`` lets a CPU use its fused attention.

        With ``from_clean`` an edit displaces the clean activation, where otherwise it displaces what the edits below it
        have made of that activation: a crosscoder's latent stands for a part of each of its places, and what its part of
        a lower place makes of a higher one is in its part of the higher one already.

        Raises:
            SubjectError: the subject's attention cannot be replaced.
        """
        from transformers import AttentionInterface

        if not getattr(subject.model, "_supports_attention_backend", True):
            raise SubjectError(
                f"Interventions cannot run on the subject {subject.name}: its attention ({type(subject.base).__name__})"
                " is not replaceable; use a Llama-, GPT-NeoX- or GPT-2-style model."
            )
        AttentionInterface.register(_ATTENTION, _packed_attention)
        self.subject = subject
        self.hookpoints = (hookpoints,) if isinstance(hookpoints, Hookpoint) else tuple(hookpoints)
        widths = subject.widths(self.hookpoints)
        self._widths = [widths[hookpoint] for hookpoint in self.hookpoints]
        self.fused = fused
        self._blocks: nn.ModuleList = subject.base.get_submodule(block_list_name(subject.base))
        self.first_block: int = min(self._first_above(hookpoint) for hookpoint in self.hookpoints)
        """The first block that runs again; the number of blocks, if none does."""
        entry = Hookpoint(f"{block_list_name(subject.base)}.{self.first_block - 1}")
        self._entry: int | None = self.hookpoints.index(entry) if entry in self.hookpoints else None
        """The hookpoint whose edit is made on what is handed over, so that it needs no hook."""
        several = from_clean and len(self.hookpoints) > 1
        self.kept: frozenset[Hookpoint] = frozenset(self.hookpoints) - {entry} if several else frozenset()
        """Hookpoints whose clean activations a run needs."""
        blocks = [block_index(subject.base, hookpoint) for hookpoint in self.hookpoints]
        if several and len(set(blocks)) < len(blocks):
            raise SubjectError(
                f"Interventions on a crosscoder that reads two places of one block ({', '.join(map(str, self.hookpoints))}) are not "
                "measured; leave out what needs them: the intervention, substitution and steered_ scorers and the output explainer."
            )
        self._gives_tuple = False

    def _first_above(self, hookpoint: Hookpoint) -> int:
        """The first block that an edit at ``hookpoint`` changes the run of."""
        block = block_index(self.subject.base, hookpoint)
        if block is None:
            return 0
        return block + 1 if hookpoint == Hookpoint(f"{block_list_name(self.subject.base)}.{block}") else block

    @torch.inference_mode()
    def clean(self, tokens: Sequence[NDArray[np.integer[Any]]], also: Sequence[Hookpoint] = ()) -> list[CleanContext]:
        """Run contexts unedited, in one batch; ``also`` names hookpoints whose activations are kept as well."""
        lengths = [len(row) for row in tokens]
        padded = np.zeros((len(tokens), max(lengths)), dtype=np.int64)
        for row, ids in zip(padded, tokens, strict=True):
            row[: len(ids)] = ids
        batch = torch.from_numpy(padded).to(self.subject.device)
        captured: dict[Hookpoint, Tensor] = {}
        entering: dict[int, Tensor] = {}
        recording = _Recording()
        with self._attention(recording), self._captures({*also, *self.kept}, captured, entering):
            final = self.subject.base(input_ids=batch, use_cache=False).last_hidden_state
        if any(layer not in recording.keys for layer in range(self.first_block, len(self._blocks))):
            raise SubjectError(
                f"Interventions cannot run on the subject {self.subject.name}: its attention "
                f"({type(self.subject.base).__name__}) does not go through transformers' attention interface."
            )
        contexts = []
        for i, length in enumerate(lengths):
            contexts.append(
                CleanContext(
                    tokens=batch[i, :length],
                    entering=entering[self.first_block][i, :length] if self.first_block in entering else None,
                    keys={j: k[i, :, :length] for j, k in recording.keys.items() if j >= self.first_block},
                    values={j: v[i, :, :length] for j, v in recording.values.items() if j >= self.first_block},
                    final=final[i, :length],
                    captured={hookpoint: value[i, :length] for hookpoint, value in captured.items()},
                )
            )
        return contexts

    @torch.inference_mode()
    def run(self, contexts: Sequence[CleanContext], rows: Rows, delta_ND: Tensor) -> Tensor:
        """Final hidden states [N, D] (after the final norm) of packed ``rows`` of ``contexts``.

        ``delta_ND`` is added to the hookpoints' activations, which lie side by side in D, token by token in the rows'
        packed order.
        """
        device = self.subject.device
        position = torch.from_numpy(rows.position).to(device)
        bounds = np.concatenate([[0], np.cumsum(rows.lengths)])
        first_row = np.searchsorted(rows.context, np.arange(len(contexts) + 1))
        spans = [slice(int(bounds[a]), int(bounds[b])) for a, b in itertools.pairwise(first_row)]
        packing = self._packing(contexts, rows, spans, position)
        base = self.subject.base
        deltas = dict(zip(self.hookpoints, torch.split(delta_ND, self._widths, dim=-1), strict=True))
        with self._attention(packing), self._only_upper_blocks() as handover:
            if handover is not None:
                entering = [
                    c.entering[position[s]] for c, s in zip(contexts, spans, strict=True) if c.entering is not None
                ]
                state = torch.cat(entering)
                handover.state = (state if self._entry is None else state + deltas.pop(self.hookpoints[self._entry]))[
                    None
                ]
                embeds = torch.zeros(1, 1, 1, dtype=state.dtype, device=device).expand(1, *state.shape)
                inputs = {"inputs_embeds": embeds}
            else:
                ids = torch.cat([c.tokens[position[s]] for c, s in zip(contexts, spans, strict=True)])
                inputs = {"input_ids": ids[None]}
            with self._edits(deltas, (delta_ND != 0).any(-1, keepdim=True), contexts, spans, position):
                output = base(**inputs, position_ids=position[None], use_cache=False)
        final: Tensor = output.last_hidden_state[0]
        return final

    def _edits(
        self,
        deltas: Mapping[Hookpoint, Tensor],
        edited_N1: Tensor,
        contexts: Sequence[CleanContext],
        spans: Sequence[slice],
        position: Tensor,
    ) -> AbstractContextManager[None]:
        """Edits at the hookpoints above the entry, ``deltas`` [N, D] each, of the tokens that are edited anywhere."""
        if not self.kept:
            return added(self.subject, deltas)
        targets, only = {}, {}
        for hookpoint, delta_ND in deltas.items():
            clean = [c.captured[hookpoint][position[s]] for c, s in zip(contexts, spans, strict=True)]
            targets[hookpoint] = torch.cat(clean) + delta_ND
            only[hookpoint] = edited_N1
        return put(self.subject, targets, only)

    def _packing(
        self, contexts: Sequence[CleanContext], rows: Rows, spans: Sequence[slice], position: Tensor
    ) -> _Packing:
        device = self.subject.device
        lengths = rows.lengths
        longest = int(lengths.max())
        gather: Tensor | None = None
        scatter: Tensor | None = None
        if bool((lengths < longest).any()):
            offset = np.cumsum(lengths) - lengths
            slots = np.arange(longest)
            held = slots < lengths[:, None]
            # A row is filled up with its own first token: masked or not, NaN of another row would reach it.
            gather = torch.from_numpy((offset[:, None] + np.where(held, slots, 0)).ravel()).to(device)
            scatter = torch.from_numpy(np.flatnonzero(held)).to(device)
        start = torch.from_numpy(np.repeat(rows.start, lengths)).to(device)
        segments = []
        for clean, span in zip(contexts, spans, strict=True):
            prefix = int(start[span].max()) if span.stop > span.start else 0
            segments.append(_Segment(clean, span, prefix))
        return _Packing(
            segments=tuple(segments),
            gather=gather,
            scatter=scatter,
            num_rows=len(lengths),
            longest=longest,
            start=start,
            position=position,
            dtype=self.subject.dtype,
            attend=attend_fused if self.fused and device.type == "cpu" else attend_eager,
        )

    @contextmanager
    def _attention(self, state: _Recording | _Packing) -> Iterator[None]:
        config = self.subject.config
        before = config._attn_implementation
        token = _ACTIVE.set(state)
        config._attn_implementation = _ATTENTION
        try:
            yield
        finally:
            config._attn_implementation = before
            _ACTIVE.reset(token)

    @contextmanager
    def _only_upper_blocks(self) -> Iterator[_Handover | None]:
        kept = list(self._blocks[: self.first_block])
        stand_ins = [_Handover(block, self._gives_tuple) for block in kept]
        try:
            for i, stand_in in enumerate(stand_ins):
                self._blocks[i] = stand_in
            yield stand_ins[-1] if stand_ins else None
        finally:
            for i, block in enumerate(kept):
                self._blocks[i] = block

    @contextmanager
    def _captures(
        self, hookpoints: set[Hookpoint], captured: dict[Hookpoint, Tensor], entering: dict[int, Tensor]
    ) -> Iterator[None]:
        handles = []
        if self.first_block > 0:

            def keep(_module: nn.Module, _args: Any, output: Any) -> None:
                self._gives_tuple = not isinstance(output, Tensor)
                entering[self.first_block] = first_tensor(output)

            handles.append(self._blocks[self.first_block - 1].register_forward_hook(keep))
        try:
            with self.subject.hooks(hookpoints, lambda h, value: captured.__setitem__(h, first_tensor(value))):
                yield
        finally:
            for handle in handles:
                handle.remove()
