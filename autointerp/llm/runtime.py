"""The language models of a run in one process: sessions on an event loop of their own, in a thread of its own.

Stages are plain functions in threads; they hand a coroutine over and wait for it, so that the latents of all chunks that
are under way share connections, limits and commits.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from autointerp.llm.asking import LLM, LLMs
from autointerp.llm.call_book import CallBook
from autointerp.llm.call_errors import CallError
from autointerp.llm.endpoints.base import Endpoint
from autointerp.llm.metered import metered
from autointerp.llm.pricing import BudgetCap, cap_of, check_price
from autointerp.llm.probing import probe
from autointerp.llm.protocol import Capability
from autointerp.llm.session import LLMSession, SessionCounts
from autointerp.pipeline.interruption import Stopped
from autointerp.pipeline.owner import is_dead
from autointerp.store.calls import settle_abandoned
from autointerp.store.store import LabelStore
from sae_core.errors import ConfigError, EndpointError, did_you_mean

T = TypeVar("T")

_PROBE_S = 60.0
"""Longest that a call of a probe may take: a server's first one with log-probabilities may compile for half a minute."""
_DRAIN_S = 7.0
"""Longest that calls under way are waited for when the caller is asked to stop: most end by then, and are paid anyway. With a heartbeat of
2 s a cancelled run is still within 10 s."""
_POLL_S = 0.2
"""Time between two looks at whether the caller wants to stop."""


class LLMRuntime:
    """The configured endpoints, opened on use. Methods may be called from any thread but the loop's own."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        store: LabelStore,
        run_id: str,
        scope: str,
        budget: BudgetCap,
        owner: str,
        *,
        folder: Path | None = None,
        is_gone: Callable[[str], bool] = is_dead,
        asks_again: bool = False,
    ) -> None:
        """``folder``: where clients keep what must outlive a crash. ``is_gone`` says of an owner whether its process is dead.
        ``asks_again``: whether replies that were kept though they cannot be used are asked for again.

        ``scope``: who shares replies, usually the run. Nothing is sent and no thread begins before the first use.
        """
        self._endpoints = {endpoint.name: endpoint for endpoint in endpoints}
        self._store, self._run_id, self._scope = store, run_id, scope
        self._budget, self._owner, self._folder, self._is_gone = budget, owner, folder, is_gone
        self._asks_again = asks_again
        self._opening, self._starting = threading.Lock(), threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._book: CallBook | None = None
        self._sessions: dict[str, LLMSession] = {}

    def __enter__(self) -> LLMRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self, names: Iterable[str] | None = None) -> None:
        """Connect to the endpoints of these names ("" for the first; None for all) and find out what they can do.

        Errors: ConfigError (an unknown name, no key, no price), EndpointError, BudgetError.
        """
        with self._opening:
            for name in self._endpoints if names is None else names:
                endpoint = self.endpoint(name)
                if endpoint.name not in self._sessions:
                    check_price(endpoint, self._budget)
                    self._sessions[endpoint.name] = self._wait(partial(self._open, endpoint))

    def endpoint(self, name: str) -> Endpoint:
        """The endpoint of a name, "" for the first one. Errors: ConfigError."""
        if not self._endpoints:
            raise ConfigError("no language model is configured: add an [[endpoints]] table with a kind and a model.")
        if name and name not in self._endpoints:
            raise ConfigError(f"there is no endpoint {name!r}: {did_you_mean(name, self._endpoints)}")
        return self._endpoints[name] if name else next(iter(self._endpoints.values()))

    def capabilities(self, name: str) -> frozenset[Capability]:
        """What an endpoint was found to do; it is opened where it is not yet. Errors: as ``open``."""
        self.open([name])
        return self._sessions[self.endpoint(name).name].capabilities

    def find_out(self, name: str) -> frozenset[Capability]:
        """As ``capabilities``, without opening the endpoint, which may load a model. Each call is entered when it is paid."""
        endpoint = self.endpoint(name)
        check_price(endpoint, self._budget)
        with self._opening:
            return self._wait(lambda: self._capabilities(endpoint, self._own_book()))

    def run(self, make: Callable[[], Coroutine[Any, Any, T]], poll: Callable[[], None] = lambda: None) -> T:
        """What the coroutine gives that ``make`` makes in the loop; all endpoints are opened first.

        ``poll`` is called in the caller's thread again and again, and raises in order to stop: the coroutine is then
        cancelled and waited for. Where it raises Stopped no further call is sent by anybody, and those under way have some
        seconds to end, so that their replies are kept. Errors: what either raises.
        """
        poll()
        self.open()
        return self._wait(make, poll)

    def llms(self, source: str, latent: int | None) -> LLMs:
        """The endpoints for calls about one latent; to be used inside a coroutine that ``run`` runs."""
        return _BoundLLMs(self, source, latent)

    def session(self, name: str) -> LLMSession:
        """An endpoint's open session. Errors: ConfigError for an unknown name."""
        endpoint = self.endpoint(name)
        assert endpoint.name in self._sessions, f"the endpoint {endpoint.name!r} is used before it was opened"
        return self._sessions[endpoint.name]

    def counts(self) -> dict[str, SessionCounts]:
        """What the sessions have done, by the endpoint's name."""
        return {name: session.counts for name, session in self._sessions.items()}

    def close(self) -> None:
        """End what is under way, write what is to be written, close the connections and end the thread."""
        with self._opening:
            if self._loop is None or self._thread is None:
                return
            try:
                self._wait(self._close)
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._loop.close()
                self._loop = self._thread = self._book = None
                self._sessions = {}

    async def _open(self, endpoint: Endpoint) -> LLMSession:
        capabilities = await self._capabilities(endpoint, self._own_book())
        client = endpoint.open() if self._folder is None else endpoint.open_in(self._folder)
        return LLMSession(
            endpoint,
            client,
            capabilities,
            self._store,
            self._run_id,
            self._scope,
            self._budget,
            self._owner,
            book=self._book,
            asks_again=self._asks_again,
            outlives="" if self._folder is None else endpoint.calls_scope(self._folder),
        )

    def _own_book(self) -> CallBook:
        """The one of this process in the run; to be asked for in the loop."""
        if self._book is None:
            settle_abandoned(self._store, self._run_id, self._is_gone)
            self._book = CallBook(self._store, self._run_id, cap_of(self._budget), self._owner)
        return self._book

    async def _capabilities(self, endpoint: Endpoint, book: CallBook) -> frozenset[Capability]:
        """What the server can do: known, found in this run before, or probed now."""
        known = endpoint.known_capabilities()
        if known is not None:
            return known
        kind = f"capabilities/{endpoint.name}"
        found = self._store.artefact(self._run_id, kind)
        if found is None:
            client = metered(endpoint.open_for_probing(), endpoint, book, "probe")
            try:
                probed = await probe(client, min(endpoint.timeout_s, _PROBE_S))
            except CallError as error:
                raise EndpointError(
                    f"the endpoint {endpoint.name!r} cannot be used: {str(error).rstrip('.')}; see to its address, key and model and run the same command "
                    "again, it goes on from here."
                ) from None
            finally:
                await client.close()
            self._store.add_artefact(self._run_id, kind, {"capabilities": sorted(probed)})
            # another process may have probed at the same time: what it kept counts for both
            found = self._store.artefact(self._run_id, kind)
        assert found is not None
        return frozenset(Capability(name) for name in found["capabilities"])

    async def _close(self) -> None:
        current = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not current]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        try:
            if self._book is not None:
                await self._book.shut()
        finally:
            for session in self._sessions.values():
                await session.close()

    def _wait(self, make: Callable[[], Coroutine[Any, Any, T]], poll: Callable[[], None] = lambda: None) -> T:
        loop = self._running_loop()
        assert threading.current_thread() is not self._thread, "the loop's own thread must not wait for it"
        begun: list[asyncio.Task[T]] = []
        ended: Future[None] = Future()

        def begin() -> None:
            task = loop.create_task(make())
            begun.append(task)
            task.add_done_callback(lambda _: ended.set_result(None))

        loop.call_soon_threadsafe(begin)
        try:
            while True:
                try:
                    ended.result(_POLL_S)
                    break
                except TimeoutError:
                    poll()
        except BaseException as error:
            try:
                if isinstance(error, (Stopped, KeyboardInterrupt)):
                    self._drain(loop)
            finally:  # also where that is interrupted: whoever asks twice does not wait
                if not ended.done():
                    loop.call_soon_threadsafe(lambda: begun[0].cancel())
                ended.result()
                if not begun[0].cancelled():
                    begun[0].exception()  # what it raises on its way out is of no interest any more
            raise
        return begun[0].result()

    def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let calls under way end, and no other begin."""

        async def drained() -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_DRAIN_S):
                    await asyncio.gather(*(session.drain() for session in self._sessions.values()))

        with suppress(CancelledError):  # the runtime is closed meanwhile
            asyncio.run_coroutine_threadsafe(drained(), loop).result()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="llm", daemon=True)
                self._thread.start()
            return self._loop


class _BoundLLMs:
    """Implements ``asking.LLMs``."""

    def __init__(self, runtime: LLMRuntime, source: str, latent: int | None) -> None:
        self._runtime, self._source, self._latent = runtime, source, latent

    def of(self, endpoint: str, purpose: str) -> LLM:
        """See ``asking.LLMs.of``."""
        return self._runtime.session(endpoint).bound(self._source, self._latent, purpose)
