"""The lines of JSON by which a process asks another one to embed: a greeting, then a reply to each question.

The first line to the child is an :class:`Opening`, every further one a question (:data:`QUESTION`). The child says :class:`Ready` or
:class:`Failed` once, then to each question :class:`Embedded`, :class:`Making` or :class:`Failed`.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from sae_core import errors
from sae_core.errors import AutointerpError

MOST_CHARACTERS = 2_000
"""Of words that are embedded; a sentence embedding model reads no more anyway."""
OUT_OF_MEMORY = "out of memory"


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Opening(_Line):
    """What the child is for."""

    idle_s: float
    """Time without a question after which the child ends itself."""
    gently: bool
    """Whether it gives way to all other processes of the machine."""


class EmbedQuestion(_Line):
    """The vector of some words is wanted."""

    kind: Literal["embed"] = "embed"
    text: str = Field(max_length=MOST_CHARACTERS)


class MakeQuestion(_Line):
    """The next step of making an index is wanted: the first one, or the one after the last."""

    kind: Literal["make"] = "make"
    dictionary: str
    """Folder of the dictionary."""
    folder: str
    """Folder of the index."""


class Ready(_Line):
    """The model is loaded."""

    kind: Literal["ready"] = "ready"


class Embedded(_Line):
    """A vector."""

    kind: Literal["embedded"] = "embedded"
    vector: list[float]


class Making(_Line):
    """How far the index is."""

    kind: Literal["making"] = "making"
    done: int
    total: int
    finished: bool
    """Whether it is in its place."""


class Failed(_Line):
    """A question that has no answer."""

    kind: Literal["failed"] = "failed"
    error: str
    """Name of an exception of sae_core.errors, or :data:`OUT_OF_MEMORY`."""
    message: str
    """Its sentence."""

    def as_error(self) -> AutointerpError:
        """The exception that the child met."""
        kind = getattr(errors, self.error, None)
        if isinstance(kind, type) and issubclass(kind, AutointerpError):
            return kind(self.message)
        return AutointerpError(self.message)


Question: TypeAlias = EmbedQuestion | MakeQuestion
QUESTION: TypeAdapter[Question] = TypeAdapter(Annotated[Question, Field(discriminator="kind")])
"""Reads a line to the child."""
Reply: TypeAlias = Ready | Embedded | Making | Failed
REPLY: TypeAdapter[Reply] = TypeAdapter(Annotated[Reply, Field(discriminator="kind")])
"""Reads a line of the child."""
