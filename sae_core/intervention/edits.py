"""Edits of latents while a subject runs: each row of a batch has one, or none, whoever calls the subject.

An edit moves the activation h where the coder writes along the latent's decoder row d, and leaves the rest of it, the coder's
error included, as it was:

- ``ablate``: h' = h - z d
- ``set``: h' = h + (value - z) d
- ``steer``: h' = h + value d

with z what the coder gives in the running pass. Of a coder that divides its input by something and multiplies its output by it
again (``output_scale``), z and ``value`` of ``set`` are in the coder's units and d is multiplied; ``steer`` adds d as it is.
A crosscoder's latent stands for a part of each of the places that it reads: there a token that is edited gets, at every place,
the clean activation (of the same tokens, without any edit) plus that place's part of the move.

Special tokens (BOS, EOS, padding) and what the attention mask leaves out are never edited, ``everywhere`` included: latents do
not fire there by this project's rule, and the first token is the attention's sink, where a push is like no other.

Letters in shapes: B rows, E rows with an edit, T tokens of a call, D width of all output places together.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from sae_core.attachment import AttachedCoder, side_by_side
from sae_core.editing import changed
from sae_core.errors import CoderError, InputError, SubjectError
from sae_core.hookpoints import Hookpoint, first_tensor
from sae_core.intervention.directions import Coder
from sae_core.subject import SubjectModel

_CELLS = 1 << 25
"""Activations of latents that are there at once: 128 MiB."""


class EditKind(StrEnum):
    """What becomes of the latent."""

    ABLATE = "ablate"
    """Its contribution is taken away."""
    SET = "set"
    """Its activation becomes the edit's value."""
    STEER = "steer"
    """The edit's value times its decoder row is added."""


class Where(StrEnum):
    """Which tokens are edited; special tokens and padding never are."""

    FIRING = "firing"
    """Those on which the latent fires."""
    FROM_FIRING = "from_firing"
    """From the first on which it fires on, generated tokens included."""
    EVERYWHERE = "everywhere"
    """All."""


@dataclass(frozen=True, slots=True)
class Edit:
    """What is done to one latent."""

    latent: int
    """Ordinal in its coder."""
    kind: EditKind
    value: float = 0.0
    """The activation to set, or the multiple of the decoder row to add; nothing to an ablation."""
    where: Where = Where.FIRING
    first: int = 0
    """First position that is edited or looked at, counted from the row's first token that is no padding."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise InputError(f"The value {self.value} of an edit is not a finite number; give one that is.")

    @property
    def does_nothing(self) -> bool:
        """Whether it is steering by zero."""
        return self.kind is EditKind.STEER and self.value == 0


@contextmanager
def intervened(subject: SubjectModel, attached: AttachedCoder, edits: Sequence[Edit | None]) -> Iterator[None]:
    """While this is open, row i of every batch that ``subject.model`` (or ``base``) runs has the edit ``edits[i]``.

    Rows may be padded on either side; then give the attention mask [B, T] (with a cache [B, past + T]). With a cache the tokens
    may come in any number of calls: one that brings the cache of the call before goes on where that one ended and remembers
    which rows have fired; any other starts anew, and what its cache holds counts as clean and silent. Rows without an edit, and
    tokens whose edit moves nothing, keep their bits.

    A coder that reads several places costs a clean pass of the same rows before each call, since what it reads is complete only
    behind the first place that it writes.

    Raises:
        CoderError: the coder has no such latent; it writes before it reads.
        InputError: a batch of another number of rows than edits, or of no token ids.
        SubjectError: the attention mask is not [B, T].
    """
    running = _Running(subject, attached, edits)
    with ExitStack() as stack:
        stack.callback(subject.base.register_forward_pre_hook(running.begin, with_kwargs=True).remove)
        stack.callback(subject.base.register_forward_hook(running.end).remove)
        if running.reads_apart:
            stack.enter_context(subject.hooks(set(attached.read), running.read))
        changes = {place: running.change(number) for number, place in enumerate(attached.write)}
        stack.enter_context(changed(subject, changes))
        yield


def latent_activations(coder: Coder, x_ND: Tensor, latent_N: Tensor) -> tuple[Tensor, Tensor | None]:
    """``(z [N], scale [N] or None)`` of one latent a token, float32, on the inputs' device; the scale is ``output_scale``."""
    device = coder.directions.device
    size = max(1, _CELLS // coder.directions.shape[0])
    z, scale = [x_ND.new_zeros(0, dtype=torch.float32)], [x_ND.new_ones(0, dtype=torch.float32)]
    scaled = False
    for start in range(0, len(x_ND), size):
        part = x_ND[start : start + size].to(device)
        column = latent_N[start : start + size].to(device)
        z.append(coder.encode(part).gather(1, column[:, None])[:, 0].float().to(x_ND.device))
        own = coder.output_scale(part)
        if own is not None:
            scaled = True
            scale.append(own.float().to(x_ND.device))
    return torch.cat(z), torch.cat(scale) if scaled else None


class _Running:
    """The edits of one batch, call by call."""

    def __init__(self, subject: SubjectModel, attached: AttachedCoder, edits: Sequence[Edit | None]) -> None:
        coder, device = attached.coder, subject.device
        self._subject = subject
        self._attached = attached
        self._num_rows = len(edits)
        mine = [(row, edit) for row, edit in enumerate(edits) if edit is not None]
        wrong = [edit.latent for _, edit in mine if not 0 <= edit.latent < coder.directions.shape[0]]
        if wrong:
            raise CoderError(
                f"The coder has latents 0 to {coder.directions.shape[0] - 1} and an edit names {wrong[0]}; give one of these."
            )
        self._rows_E = torch.tensor([row for row, _ in mine], dtype=torch.long, device=device)
        self._latent_E = torch.tensor([edit.latent for _, edit in mine], dtype=torch.long, device=device)
        self._value_E1 = torch.tensor([[edit.value] for _, edit in mine], device=device).view(-1, 1)

        def which(*names: str) -> Tensor:
            """[E, 1] rows whose edit is of a kind, or at a place, of these names."""
            found = [[edit.kind in names or edit.where in names] for _, edit in mine]
            return torch.tensor(found, dtype=torch.bool, device=device).view(-1, 1)

        self._sets_E1, self._steers_E1 = which(EditKind.SET), which(EditKind.STEER)
        self._from_E1, self._everywhere_E1 = which(Where.FROM_FIRING), which(Where.EVERYWHERE)
        self._first_E1 = torch.tensor([[edit.first] for _, edit in mine], device=device).view(-1, 1)
        own = coder.directions.index_select(0, self._latent_E.to(coder.directions.device)).to(device).float()
        widths = subject.widths(attached.write)
        self._directions = torch.split(own, [widths[place] for place in attached.write], dim=-1)
        """Of each output place, [E, D of the place]."""
        self._moving_E1 = (own != 0).any(-1, keepdim=True)
        self._special = torch.tensor(sorted(subject.special_ids), dtype=torch.long, device=device)
        self._from_clean = attached.read == attached.write and len(attached.write) > 1
        self._needs_shadow = len(attached.read) > 1
        self.reads_apart = not self._needs_shadow and attached.read[0] not in attached.write
        """Whether the one place that is read is none of those that are written."""
        self._in_shadow = False
        self._fired_E1 = torch.zeros(len(mine), 1, dtype=torch.bool, device=device)
        self._counts_ET = torch.zeros(len(mine), 0, dtype=torch.bool, device=device)
        self._amount_ET: Tensor | None = None
        """What each token's directions are multiplied by, as soon as a call has read it."""
        self._clean: dict[Hookpoint, Tensor] = {}
        self._cache: Any = None
        """The cache of the last call."""
        self._shadow_cache: Any = None

    def begin(self, _module: Any, args: Any, kwargs: Any) -> None:
        """Before a call: which tokens count, and whether it goes on where the last one ended."""
        if self._in_shadow:
            return
        given = inspect.signature(self._subject.base.forward).bind_partial(*args, **kwargs).arguments
        given = {name: value for name, value in given.items() if name not in ("kwargs", "args")} | given.get(
            "kwargs", {}
        )
        tokens_BT = given.get("input_ids")
        if tokens_BT is None:
            raise InputError("Edits need to know the tokens: call the subject with input_ids, not with embeddings.")
        if len(tokens_BT) != self._num_rows:
            raise InputError(
                f"{self._num_rows} edits were given and the batch has {len(tokens_BT)} rows; give one edit, or None, a row."
            )
        counts_BT = ~torch.isin(tokens_BT, self._special)
        mask = given.get("attention_mask")
        if mask is not None:
            if mask.dim() != 2:
                raise SubjectError(
                    f"Edits read an attention mask of rows and tokens, and one of {mask.dim()} axes was given; "
                    "call the subject with an attention mask of shape [rows, tokens]."
                )
            counts_BT = counts_BT & mask[:, -tokens_BT.shape[1] :].to(counts_BT).bool()
        cache = given.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        if mask is None:
            position_BT = torch.arange(past, past + tokens_BT.shape[1], device=tokens_BT.device).expand_as(tokens_BT)
        else:
            position_BT = (mask.long().cumsum(1) - 1)[:, -tokens_BT.shape[1] :]
        late_ET = position_BT.index_select(0, self._rows_E) >= self._first_E1
        self._counts_ET = counts_BT.index_select(0, self._rows_E) & late_ET
        self._amount_ET = None
        goes_on = cache is not None and cache is self._cache and past > 0
        if not goes_on:
            self._fired_E1 = torch.zeros_like(self._fired_E1)
        if self._needs_shadow and len(self._rows_E):
            self._run_shadow(given, cache, goes_on)

    def end(self, _module: Any, _args: Any, output: Any) -> None:
        """After a call: the cache that the next one may bring."""
        if not self._in_shadow:
            self._cache = getattr(output, "past_key_values", None)

    def read(self, _hookpoint: Hookpoint, value: object) -> None:
        """The one place that is read has been reached."""
        if not self._in_shadow:
            self._settle(first_tensor(value).index_select(0, self._rows_E))

    def change(self, number: int) -> Callable[[Tensor], Tensor]:
        """What happens to the activations [B, T, D] at an output place."""
        place = self._attached.write[number]

        def edited(hidden: Tensor) -> Tensor:
            if self._in_shadow or not len(self._rows_E):
                return hidden
            own = hidden.index_select(0, self._rows_E)
            if self._amount_ET is None:
                if self._attached.read != (place,) and self._attached.read[0] != place:
                    raise CoderError(
                        f"The coder writes {place} before it has read {self._attached.read[0]}; give a coder that reads first."
                    )
                self._settle(own)
            assert self._amount_ET is not None
            moved_ET1 = ((self._amount_ET != 0) & self._moving_E1)[..., None]
            delta = (self._amount_ET[..., None] * self._directions[number][:, None]).to(hidden.dtype)
            base = self._clean[place] if self._from_clean else own
            return hidden.index_copy(0, self._rows_E, torch.where(moved_ET1, base + delta, own))

        return edited

    def _run_shadow(self, given: dict[str, Any], cache: Any, goes_on: bool) -> None:
        """The same tokens without any edit, with a cache of their own; keeps what the coder reads and writes there."""
        from transformers import DynamicCache

        if not goes_on:
            begun = cache is not None and cache.get_seq_length() > 0
            self._shadow_cache = copy.deepcopy(cache) if begun else DynamicCache()
        self._clean = {}
        self._in_shadow = True
        try:
            with self._subject.hooks(
                {*self._attached.read, *self._attached.write},
                lambda h, value: self._clean.__setitem__(h, first_tensor(value).index_select(0, self._rows_E)),
            ):
                self._subject.base(**given | {"past_key_values": self._shadow_cache, "use_cache": True})
        finally:
            self._in_shadow = False
        self._settle(side_by_side(self._attached.read, self._clean))

    def _settle(self, x_ETD: Tensor) -> None:
        """Amounts of this call from what the coder reads."""
        counts, fired = self._counts_ET, self._fired_E1
        # steering that no longer waits for anything needs no activations
        needed = counts & ~(self._steers_E1 & (self._everywhere_E1 | (self._from_E1 & fired)))
        z_ET, scale_ET = torch.zeros(counts.shape, device=counts.device), torch.ones(counts.shape, device=counts.device)
        if bool(needed.any()):
            latent = self._latent_E[:, None].expand_as(counts)[needed]
            z, scale = latent_activations(self._attached.coder, x_ETD[needed], latent)
            z_ET[needed] = z
            if scale is not None:
                scale_ET[needed] = scale
        firing = z_ET != 0
        since = (firing.cumsum(1) > 0) | fired
        self._fired_E1 = since[:, -1:]
        where = counts & torch.where(self._everywhere_E1, counts, torch.where(self._from_E1, since, firing))
        taken = torch.where(self._sets_E1, self._value_E1 - z_ET, -z_ET) * scale_ET
        self._amount_ET = torch.where(where, torch.where(self._steers_E1, self._value_E1, taken), 0.0)
