"""What one check of ``autointerp doctor`` found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How it stands with what was checked."""

    OK = "ok"
    WARNING = "warning"
    """It works, and something about it should be known."""
    WRONG = "wrong"
    """Runs will not work until it is mended."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    check: str
    """What was looked at, such as ``broker``; the same for the same check."""
    state: State
    sentence: str
    """What was found; where something is wrong, what to do."""


def ok(check: str, sentence: str) -> Finding:
    """All is well."""
    return Finding(check, State.OK, sentence)


def warning(check: str, sentence: str) -> Finding:
    """Something that should be known."""
    return Finding(check, State.WARNING, sentence)


def wrong(check: str, sentence: str) -> Finding:
    """Something that must be mended."""
    return Finding(check, State.WRONG, sentence)
