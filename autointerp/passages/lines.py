"""The lines of JSON by which a process asks another one about passages: a greeting, then a reply to each question.

The first line to the child is an :class:`Opening`, every further one a question (:data:`autointerp.passages.questions.QUESTION`).
The child says :class:`Ready` or :class:`Failed` once, then to each question its answer (:class:`Answered`) or :class:`Failed`.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from autointerp.passages.answers import ContrastAnswer, TextAnswer
from sae_core import errors
from sae_core.errors import AutointerpError

MOST_QUESTION_BYTES = 32 * 2**20
MOST_REPLY_BYTES = 256 * 2**20
OUT_OF_MEMORY = "out of memory"


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Opening(_Line):
    """What the child is to answer about."""

    run: str
    """An output folder, a run id, or the beginning of one."""
    store: str | None
    """Store in which to look for a run id. It comes this way because other users see a command's arguments, and it may hold a password."""
    idle_s: float
    """Time without a question after which the child ends itself."""


class Ready(_Line):
    """The subject is loaded."""

    kind: Literal["ready"] = "ready"


class Answered(_Line):
    """An answer."""

    kind: Literal["answer"] = "answer"
    answer: TextAnswer | ContrastAnswer


class Failed(_Line):
    """A question that has none."""

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


Reply: TypeAlias = Ready | Answered | Failed
REPLY: TypeAdapter[Reply] = TypeAdapter(Annotated[Reply, Field(discriminator="kind")])
"""Reads a line of the child."""
