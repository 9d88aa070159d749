"""What can go wrong with the process that runs the subject for somebody else.

::

    AutointerpError
    └── SubjectProcessError        no answer; the next question starts a new process
        ├── SubjectTimeoutError    it took too long, and was ended
        ├── SubjectMemoryError     the memory did not suffice
        ├── SubjectCrashedError    it ended, or said what is no answer
        └── SubjectBusyError       others' questions were under way all the time; it goes on with these
"""

from __future__ import annotations

from sae_core.errors import AutointerpError


class SubjectProcessError(AutointerpError):
    """The process that runs the subject gave no answer."""


class SubjectTimeoutError(SubjectProcessError):
    """It took too long, and was ended."""


class SubjectMemoryError(SubjectProcessError):
    """The memory did not suffice."""


class SubjectCrashedError(SubjectProcessError):
    """It ended, or said what is no answer."""


class SubjectBusyError(SubjectProcessError):
    """Others' questions were under way all the time."""
