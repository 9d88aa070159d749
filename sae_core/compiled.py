"""Functions that numba compiles: without the interpreter's lock, without bounds checks, kept on disk between processes.

What they use of other modules is given as arguments: the kept machine code is known by its own file alone, and would not
notice that a constant elsewhere has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile at the first call."""
    return _compiled(function, fastmath=False)


def compiled_for_finite(function: Function) -> Function:
    """The same for floats that are no NaN, of which -0.0 and 0.0 are one: maxima vectorise then."""
    return _compiled(function, fastmath={"nnan", "nsz"})


def _compiled(function: Function, fastmath: Any) -> Function:
    options: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy", "fastmath": fastmath}
    try:
        found: Any = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither beside the file nor in the user's cache can anything be written
        found = numba.njit(**options)(function)
    return cast(Function, found)
