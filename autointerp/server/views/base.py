"""What all views are."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class View(BaseModel):
    """A value that a page shows and its JSON twin says."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
