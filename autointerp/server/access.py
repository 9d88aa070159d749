"""Who asks, and what they may do."""

from __future__ import annotations

from enum import StrEnum


class Scope(StrEnum):
    """What a token allows."""

    READ = "read"
    """Look at everything that is its own, or everybody's."""
    REVIEW = "review"
    """Say what a person thinks of labels."""
    SUBMIT = "submit"
    """Start runs, and search on the subject."""
    CANCEL = "cancel"
    """Pause, go on with, cancel and retry runs."""
    EXPORT = "export"
    """Have dictionaries made."""
    ADMIN = "admin"
    """All of it, and other people's runs."""
