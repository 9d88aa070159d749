"""How one call to a server can fail, as one tree; what the way to the server does with each.

::

    CallError
    ├── RateLimited      429: waited for as told, cuts the concurrency, never a latent's failure
    ├── Transient        5xx, connection lost, no answer in time: tried again, then the latent's failure
    ├── InvalidReply     200 with something that is no reply (HTML, an error object, no choices, NaN, ...)
    ├── Rejected         400, 413, 422: this request will never do, e.g. a prompt that is too long
    └── Denied           401, 403, 404, no quota left: no request will do until a person has mended it; the run pauses
"""

from __future__ import annotations

from autointerp.failure import FailureKind


class CallError(Exception):
    """Base of what a client raises. The message never holds a key, a header or the request."""

    kind: FailureKind = FailureKind.SERVER_ERROR
    """The latent's failure, where it becomes one."""


class RateLimited(CallError):
    """The server asks to wait."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """What the server asks for, seconds; None where it says nothing that makes sense."""


class Transient(CallError):
    """Something that may be over at the next try."""

    def __init__(
        self, message: str, *, timed_out: bool = False, maybe_paid: bool = False, status: int | None = None
    ) -> None:
        super().__init__(message)
        self.kind = FailureKind.TIMEOUT if timed_out else FailureKind.SERVER_ERROR
        self.maybe_paid = maybe_paid
        """Whether the server may have done the work, and bill it, all the same."""
        self.status = status
        """HTTP status where the server answered with one: 500 again and again is a request that it cannot work."""


class InvalidReply(CallError):
    """The server answered 200 with something that is no reply of its API."""

    kind = FailureKind.SERVER_ERROR


class Rejected(CallError):
    """The server will never take this request."""

    kind = FailureKind.SERVER_ERROR


class Denied(CallError):
    """The server will take no request of ours: a wrong key, no permission, an unknown model, an empty account."""
