"""The exceptions that users meet, as one tree. Torch-free.

::

    AutointerpError                 every error that a user can mend; a sentence, no traceback, exit code 2
    ├── InputError (ValueError)     something that was given does not fit
    │   ├── MissingFileError        a path that is not there
    │   ├── UnknownNameError        a name that is not known; says the nearest ones
    │   ├── CoderError              a sparse coder that cannot be loaded, or does not fit its subject
    │   ├── SubjectError            a subject model that cannot be loaded
    │   ├── CorpusError             a corpus that is empty, too short or unreadable
    │   └── ConfigError             a run's configuration
    ├── StoreError                  the label store or an output folder refuses
    │   └── StoreUnavailableError   the database does not answer, or is held by somebody; it may be back soon
    ├── DiskFullError (OSError)     no room left for what is to be written
    ├── EndpointError               an LLM server that takes no request until a person mends it
    ├── BudgetError                 the budget of tokens or dollars is spent
    └── NonFiniteError              the subject or the coder gave NaN or infinite values

A message says what was given, what is allowed and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AutointerpError(Exception):
    """Base of every error that a user can mend."""


class InputError(AutointerpError, ValueError):
    """Something that was given does not fit."""


class MissingFileError(InputError):
    """A path that is not there."""


class UnknownNameError(InputError):
    """A name that is not known."""


class CoderError(InputError):
    """A sparse coder that cannot be loaded, or does not fit its subject."""


class SubjectError(InputError):
    """A subject model that cannot be loaded."""


class CorpusError(InputError):
    """A corpus that is empty, too short or unreadable."""


class ConfigError(InputError):
    """A run's configuration that is not valid."""


class StoreError(AutointerpError):
    """The label store or an output folder refuses."""


class StoreUnavailableError(StoreError):
    """The database does not answer, or is held by somebody; it may be back soon."""


class DiskFullError(AutointerpError, OSError):
    """No room left for what is to be written."""


class EndpointError(AutointerpError):
    """An LLM server that takes no request until a person mends it: a wrong key, an unknown model, nobody there."""


class BudgetError(AutointerpError):
    """The budget of tokens or dollars is spent; the run goes on when there is more."""


class NonFiniteError(AutointerpError):
    """The subject or the coder gave NaN or infinite values."""


def did_you_mean(given: str, known: Iterable[str], limit: int = 5) -> str:
    """``"did you mean 'a' or 'b'?"``, else the known names themselves (at most ``limit``)."""
    names = sorted(set(known))
    close = difflib.get_close_matches(given, names, n=limit, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    shown = ", ".join(repr(name) for name in names[:limit])
    return f"known are {shown}" + (f" and {len(names) - limit} more" if len(names) > limit else "")
