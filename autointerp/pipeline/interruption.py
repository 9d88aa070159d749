"""The exception that stops a run at the user's wish. A module of its own, so that the command line loads nothing else for it."""

from __future__ import annotations


class Interrupted(BaseException):
    """The user, or the machine, asks the run to stop; the chunk in hand is given back."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number
