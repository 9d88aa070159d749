"""One scorer's verdict on one explanation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from autointerp.failure import Failure

ScoreValue = float | int | str | tuple[str, ...] | None
"""A value of a score: a number, a text or a list of texts; None where it is not defined, never NaN."""


class Score(BaseModel):
    """Named values of one scorer for one latent, or a typed failure (values that are known stand beside it)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latent: int = Field(ge=0)
    """The latent that is scored."""
    scorer: str
    """Kind of the scorer."""
    explainer: str | None = None
    """Kind of the explainer whose text is scored; None for scores of the latent itself."""
    values: dict[str, ScoreValue] = Field(default_factory=dict)
    """Values by their column names in the labelled dictionary."""
    failure: Failure | None = None
    """Why there is no score."""
    verdicts: dict[str, Any] | None = None
    """What a judge said of each window, as ``judging.Verdicts.to_json`` writes it; None where no window was judged."""

    @field_validator("values")
    @classmethod
    def _finite(cls, values: dict[str, ScoreValue]) -> dict[str, ScoreValue]:
        bad = sorted(k for k, v in values.items() if isinstance(v, float) and not math.isfinite(v))
        if bad:
            raise ValueError(f"{', '.join(bad)} must be finite; a value that is not defined is None")
        return values


def defined(values: Mapping[str, ScoreValue]) -> dict[str, ScoreValue]:
    """The same values as plain Python numbers, None where one is NaN or infinite."""
    out: dict[str, ScoreValue] = {}
    for name, value in values.items():
        if value is None or isinstance(value, (str, tuple)):
            out[name] = value
        elif isinstance(value, (bool, int)):
            out[name] = int(value)
        else:
            number = float(value)
            out[name] = number if math.isfinite(number) else None
    return out
