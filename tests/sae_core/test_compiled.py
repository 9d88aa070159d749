"""Compiled functions where nothing can be kept on the disk."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numba
import pytest

from sae_core.compiled import compiled


def test_an_install_that_cannot_be_written_to_compiles_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, asked = numba.njit, []

    def njit(**options: Any) -> Any:
        asked.append(options.get("cache", False))
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return plain(**options)

    monkeypatch.setattr("sae_core.compiled.numba", SimpleNamespace(njit=njit))

    def twice(number: int) -> int:
        return 2 * number

    assert compiled(twice)(21) == 42
    assert asked == [True, False]
