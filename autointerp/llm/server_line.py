"""The line to one server: who may send when, what all callers learn from one answer, and when it is no use any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import numpy as np

from autointerp.llm.call_errors import CallError, Denied, Forbidden, NoReply, RateLimited, Transient
from autointerp.llm.concurrency import AdaptiveLimit, Place
from autointerp.llm.endpoints.base import Endpoint
from autointerp.llm.http_failures import false_success
from autointerp.llm.protocol import CompletionRequest, Journey, LLMClient, OutlivingClient
from autointerp.llm.retrying import FIRST_WAIT_S
from sae_core.errors import EndpointError

_GRACE_S = 5.0
"""Time beyond the deadline after which a client that does not keep to it is cut off."""
_MOST_GONE, _MOST_SILENT = 3, 8
"""Requests that fail again and again, with no answer to any other between them, from which on the server counts as gone:
where nobody is there, or no API, and where all that is known is that it fails. Fewer are failures of their own."""
_NOBODY = frozenset({None, 502, 503, 504})
_MOST_NO_REPLY_S = 30.0
"""Time for which a server may answer with what is no reply: a page says that it is being mended."""
_MOST_FORBIDDEN = 3
"""Different requests in a row that are answered 403, from which on it is not the requests."""
_LOOK_S = 0.02
"""Time between two looks at whether calls under way have ended."""
_MOST_LIMITED = 8
"""Multiple of ``give_up_s`` after which a server that answers nothing but 429 stops the run."""
_PILOTED = 64
"""An endpoint that begins with more calls than this collects them, and one sent ahead alone would wait for company."""
_SPREAD, _MOST_SPREAD_S = 0.25, 1.0
"""Share of a common pause, and most of it, by which calls come back one after the other."""


class ServerLine:
    """Calls to one server, of one event loop. The first call goes alone: a wrong key costs one call, not sixty-four."""

    def __init__(
        self,
        endpoint: Endpoint,
        client: LLMClient,
        rng: np.random.Generator,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        was_answered: Callable[[], bool] = lambda: False,
    ) -> None:
        """``was_answered``: whether the server has answered in an earlier process of the run."""
        self.limit = AdaptiveLimit(endpoint.first_concurrency, endpoint.max_concurrency, clock)
        self._endpoint, self._client, self._rng = endpoint, client, rng
        self._clock, self._sleep = clock, sleep
        self._stop: str | None = None
        self._stopped = asyncio.Event()
        self._pilot: Place | None = None
        self._piloted = self._never_piloted = endpoint.first_concurrency > _PILOTED
        self._pilot_back = asyncio.Event()
        self._not_before_s = float("-inf")
        self._limited_since_s: float | None = None
        self._troubled: dict[str, bool] = {}
        self._was_answered, self._answered = was_answered, False
        self._forbidden: set[str] = set()
        self._no_reply_to: set[str] = set()
        self._no_reply_since_s, self._rounds = 0.0, 0
        self._sending = 0
        self._shut = False

    def check(self) -> None:
        """Errors: EndpointError where the server takes no request until a person has mended it."""
        if self._stop is not None:
            raise EndpointError(self._stop)

    async def admit(self) -> Place:
        """Wait until a call may be sent; ``send`` must follow at once. Errors: EndpointError."""
        self.check()
        place = await self.limit.enter()
        try:
            while self._stop is None:
                wait_s = self._not_before_s - self._clock()
                if wait_s > 0:  # in its place: nobody else may send either
                    await self.pause(wait_s + float(self._rng.random()) * min(_SPREAD * wait_s, _MOST_SPREAD_S))
                elif self._piloted:
                    break
                elif self._pilot is None:
                    self._pilot = place
                    break
                else:
                    await self._pilot_back.wait()
            self.check()
            if self._shut:
                await asyncio.get_running_loop().create_future()  # until it is cancelled
        except BaseException:
            self.limit.leave()
            raise
        return self.limit.now()

    def give_up(self) -> None:
        """Give a place back that was admitted, and in which nothing is sent."""
        if not self._piloted:
            self._one_first()
        self.limit.leave()

    async def drain(self) -> None:
        """Admit nobody any more, and return when the calls under way have ended."""
        self._shut = True
        while self._sending:
            await asyncio.sleep(_LOOK_S)

    async def send(
        self,
        place: Place,
        request: CompletionRequest,
        *,
        bound: bool,
        key: str = "",
        journey: Journey | None = None,
    ) -> str:
        """The raw reply, of the API at least; ``key`` tells requests apart, ``journey`` is as for ``OutlivingClient``.

        Errors: CallError, EndpointError.
        """
        timeout_s = self._endpoint.timeout_s
        self._sending += 1
        one_first = False
        try:
            async with asyncio.timeout(timeout_s + _GRACE_S):
                if journey is not None and isinstance(self._client, OutlivingClient):
                    body = await self._client.send_noting(request, timeout_s, journey, bound=bound)
                else:
                    body = await self._client.send(request, timeout_s, bound=bound)
            failure = false_success(body, key_name="the key")
            if failure is not None:
                raise failure
        except TimeoutError:
            self.limit.troubled()
            raise Transient(f"no answer within {timeout_s:g} s", timed_out=True, maybe_paid=True) from None
        except RateLimited as error:
            self.limit.limited(place, error.retry_after_s)
            self._not_before_s = max(self._not_before_s, self._clock() + self._told_s(error))  # at once, for all
            raise
        except Denied as error:
            if isinstance(error, Forbidden) and self._is_its_own(key):
                raise
            self._end(
                f"the endpoint {self._endpoint.name!r} takes no request: {str(error).rstrip('.')}; see to its key, model and account and run the "
                "same command again, it goes on from here."
            )
            self.check()
        except NoReply as error:
            self.limit.troubled()
            one_first = self._hold_for_a_reply(key, error)
            raise
        except Transient:
            self.limit.troubled()
            raise
        else:
            self.limit.succeeded()
            self._limited_since_s = None
            self._troubled.clear()
            self._answered = True
            self._forbidden.clear()
            self._no_reply_to.clear()
            self._rounds = 0
            return body
        finally:
            self._sending -= 1
            self.limit.leave()
            if one_first:
                self._one_first()
            else:
                self._piloted = True
                self._pilot_back.set()
        raise AssertionError("unreachable")

    def hold_back(self, wait_s: float) -> None:
        """Let nobody send for so long, since one was told to wait. Errors: EndpointError where that goes on for ever."""
        now = self._clock()
        self._not_before_s = max(self._not_before_s, now + wait_s)
        if self._limited_since_s is None:
            self._limited_since_s = now
        limited_s = now - self._limited_since_s
        if limited_s > _MOST_LIMITED * self._endpoint.give_up_s:
            self._end(
                f"the endpoint {self._endpoint.name!r} has answered every call of the last {limited_s / 60:.0f} minutes with 429 (too many "
                "requests): see who else uses it, or lower max_concurrency, and run the same command again, it goes on from here."
            )
            self.check()

    def failed(self, key: str, error: CallError, *, final: bool) -> None:
        """A request has failed again, or (``final``) for good.

        Errors: EndpointError where so many others are failing that it is the server and not the request.
        """
        if not isinstance(error, Transient):
            return
        self._troubled[key] = isinstance(error, NoReply) or (error.status in _NOBODY and not error.maybe_paid)
        gone = sum(self._troubled.values())
        if final and (gone >= _MOST_GONE or len(self._troubled) >= _MOST_SILENT):
            self._end(
                f"the endpoint {self._endpoint.name!r} has answered none of the last calls, {len(self._troubled)} requests wait ({error}): "
                "see whether the server runs, and run the same command again, it goes on from here."
            )
            self.check()

    async def pause(self, seconds: float) -> None:
        """Wait, unless all is at an end earlier."""
        sleeping = asyncio.ensure_future(self._sleep(seconds))
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait([sleeping, stopped], return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            stopped.cancel()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _hold_for_a_reply(self, key: str, error: NoReply) -> bool:
        """Where several requests have got no reply of the API and none has got one since, all wait: whether one goes first then.

        Each such call may be paid, so the many that wait to be sent are no way to find out when it is over.
        """
        now = self._clock()
        if not self._no_reply_to:
            self._no_reply_since_s = now
        self._no_reply_to.add(key)
        if len(self._no_reply_to) < _MOST_GONE:
            return False
        if now - self._no_reply_since_s > min(_MOST_NO_REPLY_S, self._endpoint.give_up_s):
            self._end(
                f"the endpoint {self._endpoint.name!r} answers with what is no reply of the API ({error}): see what runs at its "
                "base_url, and run the same command again, it goes on from here."
            )
        elif now >= self._not_before_s:
            self._not_before_s = now + FIRST_WAIT_S * 2**self._rounds
            self._rounds += 1
        return not self._never_piloted

    def _one_first(self) -> None:
        """Let the next one go alone, and the others see what becomes of it."""
        self._piloted, self._pilot = False, None
        self._pilot_back.set()
        if self._stop is None:
            self._pilot_back = asyncio.Event()

    def _is_its_own(self, key: str) -> bool:
        """Whether a 403 is about this request alone: others are answered."""
        self._forbidden.add(key)
        self._answered = self._answered or self._was_answered()
        return self._answered and len(self._forbidden) < _MOST_FORBIDDEN

    def _told_s(self, error: RateLimited) -> float:
        told_s = error.retry_after_s
        return min(told_s, self._endpoint.give_up_s) if told_s is not None and told_s >= 0 else FIRST_WAIT_S

    def _end(self, sentence: str) -> None:
        if self._stop is None:
            self._stop = sentence
            self._stopped.set()
            self._pilot_back.set()
