"""Names of control sources. Torch-free."""

from __future__ import annotations

from autointerp.config import CONTROL_SUFFIX


def control_name(source: str) -> str:
    """Name of the control that stands beside a source."""
    return source + CONTROL_SUFFIX


def real_name(control: str) -> str:
    """Name of the source beside which a control stands."""
    return control.removesuffix(CONTROL_SUFFIX)
