"""Where other tools put a latent: by the number of its layer, and the number that circuit-tracer makes of layer and latent."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from sae_core.errors import InputError
from sae_core.records import Source


def layer_of(hookpoint: str) -> int | None:
    """Layer of a hookpoint (``layers.3.mlp`` is 3); of several, as a cross-layer transcoder writes to, the first. None where it names none."""
    parts = re.split(r"[.:]", hookpoint.partition(",")[0].strip())
    return next((int(part) for part in parts if part.isascii() and part.isdecimal() and len(part) < 6), None)


def layers_of(sources: Sequence[Source], tool: str) -> dict[str, int]:
    """Layers by the sources' names. Errors: InputError for a source without one."""
    found: dict[str, int] = {}
    for source in sources:
        layer = layer_of(source.hookpoint)
        if layer is None:
            raise InputError(
                f"the hookpoint {source.hookpoint!r} of {source.name!r} names no layer, by which {tool} goes: "
                "leave that source out by naming the others with --source."
            )
        found[source.name] = layer
    return found


def cantor_pair(layer: int, latent: int) -> int:
    """circuit-tracer's one number of a latent."""
    both = layer + latent
    return both * (both + 1) // 2 + latent


def cantor_unpair(number: int) -> tuple[int, int]:
    """Layer and latent of it."""
    both = (math.isqrt(8 * number + 1) - 1) // 2
    latent = number - both * (both + 1) // 2
    return both - latent, latent
