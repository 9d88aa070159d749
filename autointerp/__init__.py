"""Labels for the latents of sparse coders, and how far each label can be trusted.

``import autointerp`` loads no torch and no pydantic: names are read on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autointerp.client import Client
    from autointerp.explanation import Explanation
    from autointerp.export.loading import load_dictionary
    from autointerp.failure import Failure, FailureKind, LatentStatus
    from autointerp.score import Score

__all__ = ["Client", "Explanation", "Failure", "FailureKind", "LatentStatus", "Score", "load_dictionary"]

_HOMES = {
    "Client": "autointerp.client",
    "Explanation": "autointerp.explanation",
    "Failure": "autointerp.failure",
    "FailureKind": "autointerp.failure",
    "LatentStatus": "autointerp.failure",
    "Score": "autointerp.score",
    "load_dictionary": "autointerp.export.loading",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
