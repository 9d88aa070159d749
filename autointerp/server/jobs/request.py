"""What a run can be asked for: names of the catalogue and bounded numbers, never a path or a URL."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,39}$")]
KEY_PATTERN = r"^[\x21-\x7e]{1,100}$"


class RunRequest(BaseModel):
    """A run to plan or to start."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    sources: tuple[Name, ...] = Field(min_length=1, max_length=8)
    """Sources of the catalogue, all on the same subject; where nothing else is said the run is done as the first one says."""
    corpus: Name
    """A corpus of the catalogue."""
    name: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,39})?$")
    """What to call the run; by default after its sources."""
    latents: str = Field(default="all", pattern=r"^(all|[0-9]{1,9}|[0-9]{0,9}:[0-9]{0,9})$")
    """`all`, a half-open range such as `0:512`, or a number: so many from the first on."""
    num_tokens: int | None = Field(default=None, ge=1_000, le=10**11)
    """Tokens of the corpus to read."""
    explainers: tuple[Name, ...] | None = Field(default=None, min_length=1, max_length=8)
    """Kinds of what writes labels."""
    scorers: tuple[Name, ...] | None = Field(default=None, min_length=1, max_length=16)
    """Kinds of what judges them."""
    explainer_endpoint: Name | None = None
    """The endpoint of the catalogue that explainers ask."""
    judge_endpoint: Name | None = None
    """The endpoint of the catalogue that scorers ask; by default that of the explainers."""
    budget_tokens: int | None = Field(default=None, ge=1, le=10**13)
    """Most tokens that language models may read and write; where one is asked, this or the next is needed."""
    budget_usd: float | None = Field(default=None, gt=0, le=10**6)
    """Most US dollars that language models may cost."""
    seed: int | None = Field(default=None, ge=0, le=2**31 - 1)
    """Seed of every random choice."""

    @property
    def label(self) -> str:
        """What the run is called."""
        return self.name or "-".join(self.sources)[:40]
