"""Where in the subject NaN or infinite values come from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sae_core.attachment import AttachedCoder
from sae_core.errors import SubjectError
from sae_core.hookpoints import first_tensor
from sae_core.subject import SubjectModel


def subject_sentence(subject: SubjectModel, attached: AttachedCoder, module: str | None, place: str) -> str:
    """What to tell where the subject's activations are not finite from ``module`` on; ``place`` names the context."""
    since = "" if module is None else f", from module {module} on"
    kind = str(subject.dtype).removeprefix("torch.")
    remedy = (
        'its weights are damaged; give others, or extraction.non_finite = "skip"'
        if kind == "float32"
        else f'{kind} overflows or its weights are damaged; set subject.dtype = "float32", or extraction.non_finite = "skip"'
    )
    return (
        f"the subject gives NaN or infinite values at hookpoint {', '.join(map(str, attached.read))}{since}, {place}: {remedy} "
        "to leave such contexts out and count them."
    )


@torch.inference_mode()
def first_bad_module(subject: SubjectModel, tokens: NDArray[np.int32]) -> str | None:
    """The first module whose output is not finite on ``tokens`` [T]; None where all are."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            try:
                value = first_tensor(output)
            except SubjectError:
                return  # no activations
            if not found and value.is_floating_point() and not bool(torch.isfinite(value).all()):
                found.append(name)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in subject.base.named_modules() if name]
    try:
        subject.base(input_ids=torch.from_numpy(np.array(tokens)).long()[None].to(subject.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
