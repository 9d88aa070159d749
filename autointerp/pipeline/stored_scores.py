"""What of a score the dictionary reads, without the checks that the row passed when it was written. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from autointerp.failure import FailureKind
from autointerp.score import ScoreValue


class Failed(Protocol):
    """Why there is no figure."""

    @property
    def kind(self) -> FailureKind: ...
    @property
    def message(self) -> str: ...


class Scored(Protocol):
    """A score as it is read: an ``autointerp.score.Score``, or a row of the store."""

    @property
    def scorer(self) -> str: ...
    @property
    def explainer(self) -> str | None: ...
    @property
    def values(self) -> Mapping[str, ScoreValue]: ...
    @property
    def failure(self) -> Failed | None: ...


class StoredFailure(NamedTuple):
    """A failure's two columns."""

    kind: FailureKind
    message: str


class StoredScore(NamedTuple):
    """One row of the table ``score``; a million of them are made for an export."""

    scorer: str
    explainer: str | None
    """None for a score of the latent itself."""
    values: Mapping[str, ScoreValue]
    failure: StoredFailure | None
