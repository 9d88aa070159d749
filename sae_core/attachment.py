"""A sparse coder on a subject: which modules it reads and writes, checked against their widths.

Letters: N tokens, H hookpoints, D width of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sae_core.coder import SparseCoder
from sae_core.errors import CoderError
from sae_core.hookpoints import Hookpoint
from sae_core.subject import SubjectModel
from sae_core.value_bias import value_bias


@dataclass(frozen=True)
class AttachedCoder:
    """A coder, and the places of the subject that it reads and writes."""

    coder: SparseCoder
    """The coder as this subject needs it: where it was trained without the values' bias, it takes that off itself."""
    read: tuple[Hookpoint, ...]
    """What is encoded, in the coder's order."""
    write: tuple[Hookpoint, ...]
    """What is reconstructed, and where latents' directions act, in the coder's order."""

    def inputs(self, captured: Mapping[Hookpoint, Tensor]) -> Tensor:
        """[..., H_in * D] the coder's inputs among captured activations [..., D]."""
        return side_by_side(self.read, captured)


def side_by_side(hookpoints: Sequence[Hookpoint], captured: Mapping[Hookpoint, Tensor]) -> Tensor:
    """[..., H * D] activations of several hookpoints, one after the other."""
    if len(hookpoints) == 1:
        return captured[hookpoints[0]]
    return torch.cat([captured[hookpoint] for hookpoint in hookpoints], dim=-1)


def attach(subject: SubjectModel, coder: SparseCoder) -> AttachedCoder:
    """``coder`` on the modules of ``subject`` that it names.

    Raises:
        UnknownNameError: the subject has no such module.
        CoderError: the coder does not say where it belongs, its widths are others than the modules', or it reads the
            activations of several models.
    """
    if coder.num_subjects > 1:
        raise CoderError(
            f"the coder compares {coder.num_subjects} models, reading the same place in each, and a run has one subject: "
            "such a coder can be loaded and inspected, not attached."
        )
    number = coder.num_hooks_in
    if len(coder.hookpoints_in) != coder.num_hooks_in or len(coder.hookpoints_out) != coder.num_hooks_out:
        raise CoderError(
            f"the coder does not say which {number} hookpoints it reads: set the hookpoint to a list of {number}, in its order."
            if number > 1
            else "the coder does not say where it attaches: set the hookpoint to a module of the subject, for instance 'layers.3'."
        )
    attached = AttachedCoder(
        coder,
        tuple(subject.hookpoint(name) for name in coder.hookpoints_in),
        tuple(subject.hookpoint(name) for name in coder.hookpoints_out),
    )
    for places in (attached.read, attached.write):
        if len(set(places)) < len(places):
            raise CoderError(f"the coder's hookpoints {', '.join(map(str, places))} name one place twice.")
    check_fits(attached, subject.widths({*attached.read, *attached.write}))
    if coder.value_biases_folded and (bias := value_bias(subject, attached.read[0])) is not None:
        coder = _without_value_bias(coder, bias.to(coder.decoder_weight))
        return AttachedCoder(coder, attached.read, attached.write)
    return attached


def _without_value_bias(coder: SparseCoder, bias: Tensor) -> SparseCoder:
    """The coder on inputs that have the values' bias: it takes the bias off, and puts it back on what it writes."""
    return replace(
        coder,
        shift=bias if coder.shift is None else coder.shift + bias,
        decoder_bias=coder.decoder_bias if coder.transcodes else coder.decoder_bias + bias,
        value_biases_folded=False,
    )


def check_fits(attached: AttachedCoder, widths: Mapping[Hookpoint, int]) -> None:
    """Raise CoderError unless the coder reads and writes vectors of its hookpoints' ``widths``."""
    coder = attached.coder
    for places, width, verb in ((attached.read, coder.d_in, "reads"), (attached.write, coder.d_out, "writes")):
        for place in places:
            if widths[place] != width:
                raise CoderError(
                    f"the coder {verb} {width} dimensions and hookpoint {place} of the subject carries {widths[place]}: "
                    "give the hookpoint that the coder was trained on, or the coder of this subject."
                )
