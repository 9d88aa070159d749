"""How numbers are written in reports, and columns read from tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

UNDEFINED = "–"


def share_text(value: float | None, digits: int = 2) -> str:
    """A figure between -1 and 1 without its leading zero: ``.71``, ``1.00``, ``-.05``; a dash for None."""
    if value is None or math.isnan(value):
        return UNDEFINED
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("0.", ".", 1) if abs(float(text)) < 1 else text


def signed_text(value: float | None, digits: int = 2) -> str:
    """A difference or a log ratio with its sign: ``+.06``, ``-1.20``; a dash for None."""
    text = share_text(value, digits)
    if text == UNDEFINED or text.startswith("-") or float(text) == 0:
        return text
    return "+" + text


def percent_text(value: float | None) -> str:
    """A share as a whole percentage, ``<1%`` and ``>99%`` where rounding would claim none or all."""
    if value is None or math.isnan(value):
        return UNDEFINED
    if 0 < value < 0.005:
        return "<1%"
    if 0.995 <= value < 1:
        return ">99%"
    return f"{value:.0%}"


def interval_text(low: float | None, high: float | None, digits: int = 2, signed: bool = False) -> str:
    """``[.05, .08]``, or nothing where there is no interval."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    write = signed_text if signed else share_text
    return f"[{write(low, digits)}, {write(high, digits)}]"


def ratio_text(log_ratio: float) -> str:
    """What a log ratio means: ``2.2 times``, ``14 times``, ``0.3 times``."""
    ratio = math.exp(log_ratio)
    return f"{ratio:,.0f} times" if ratio >= 10 else f"{ratio:.1f} times" if ratio >= 0.1 else f"{ratio:.2g} times"


def rate_text(rate: float | None) -> str:
    """A firing rate with two figures that mean something: ``0.31%``, ``0.0042%``, ``100%``."""
    if rate is None or math.isnan(rate):
        return UNDEFINED
    return f"{100 * rate:.0f}%" if rate >= 0.0995 else f"{100 * rate:.2g}%"


def size_text(count: float) -> str:
    """``512``, ``12.3k``, ``500k``, ``4.1M``, ``2B``."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= max(limit, 1e4):
            return f"{count / limit:.1f}".removesuffix(".0") + unit
    return f"{count:,.0f}"


def numbers(table: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """A column as float64 [rows]: NaN where it is null, all NaN where the table has no such column."""
    if column not in table.columns:
        return np.full(len(table), np.nan)
    return np.asarray(pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan))


def plain(value: Any) -> float | None:
    """A float for JSON: None for NaN and infinities."""
    number = float(value)
    return number if math.isfinite(number) else None


def known(value: Any) -> float | None:
    """One cell of a table: None where it is null."""
    return None if value is None or pd.isna(value) else plain(value)


def median(values: NDArray[np.float64]) -> float | None:
    """Median of the numbers that are defined, None where none is."""
    values = values[~np.isnan(values)]
    return plain(np.median(values)) if len(values) else None


def share_of(hits: NDArray[np.bool_]) -> float | None:
    """Share of True, None of nothing."""
    return plain(hits.mean()) if len(hits) else None


def counts_of(table: pd.DataFrame, column: str) -> dict[str, int]:
    """How often a column has each of its values; empty where the table has no such column."""
    if column not in table.columns:
        return {}
    return {str(name): int(count) for name, count in table[column].dropna().value_counts().items()}
