"""The exceptions that stop a run at the user's wish. A module of its own, so that the command line loads nothing else for it."""

from __future__ import annotations


class Stopped(BaseException):
    """The chunk in hand is given back, for a cause that lies outside of it."""


class Interrupted(Stopped):
    """The user, or the machine, asks the run to stop."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


HALTED = ("paused", "cancelled")
"""States of a run in which its chunks in hand are given back."""


class Halted(Stopped):
    """Somebody has paused or cancelled the run."""

    def __init__(self, run_id: str, state: str) -> None:
        super().__init__(run_id, state)
        self.run_id, self.state = run_id, state
