"""How one call to a server can fail, as one tree; what the way to the server does with each.

::

    CallError
    ├── RateLimited      429: waited for as told, cuts the concurrency, never a latent's failure
    ├── Transient        5xx, connection lost, no answer in time: tried again, then the latent's failure
    │   └── NoReply      200 with something that is no reply of the API at all (HTML, nothing, an event stream, no choices)
    ├── InvalidReply     200 with a reply of the API that cannot be used (cut off, wrong types, too long, ...)
    │   └── BadLogprobs  ... because of its log-probabilities alone (NaN, null, none)
    ├── Rejected         400, 413, 422: this request will never do, e.g. a prompt that is too long
    ├── Refused          moderation refuses this prompt, whatever the status
    └── Denied           401, 404, no quota left: no request will do until a person has mended it; the run pauses
        └── Forbidden    403: so too, unless others are answered, when it is this request's own failure
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


class NoReply(Transient):
    """The server, or what stands before it, answered 200 with something that is no reply of the API at all."""

    def __init__(self, message: str, body: str = "", *, maybe_paid: bool = True) -> None:
        super().__init__(message, maybe_paid=maybe_paid)
        self.body = body
        """What came, where it may say what it cost."""


class InvalidReply(CallError):
    """The server answered 200 with a reply that cannot be used."""

    kind = FailureKind.SERVER_ERROR


class BadLogprobs(InvalidReply):
    """An answer whose log-probabilities, asked for, are not there or no numbers; the text may be good."""


class Rejected(CallError):
    """The server will never take this request."""

    kind = FailureKind.SERVER_ERROR


class Refused(CallError):
    """A moderation before the model refuses this prompt."""

    kind = FailureKind.REFUSED


class Denied(CallError):
    """The server will take no request of ours: a wrong key, no permission, an unknown model, an empty account."""


class Forbidden(Denied):
    """The server does not permit it: whether this request or all of them, its words do not say."""
