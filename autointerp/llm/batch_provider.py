"""The few calls of OpenAI's Batch API, with their errors as ours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, NamedTuple

import httpx2
import openai

from autointerp.llm.call_errors import CallError, Denied, RateLimited, Rejected, Transient
from autointerp.llm.foreign_text import shown, without
from autointerp.llm.http_failures import http_failure

if TYPE_CHECKING:
    from openai.types import Batch

SCOPE, TOKEN = "autointerp_scope", "autointerp_token"
"""Names of what a batch carries as metadata."""
_HEADERS = frozenset(
    {"accept", "accept-encoding", "connection", "content-length", "content-type", "host", "transfer-encoding"}
)
"""What is sent beside the key."""
_CALL_S = 600.0
"""Time between two signs of life in one call; files of 200 MB are sent and fetched."""
TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})
"""States in which a batch stays."""


class Complaint(NamedTuple):
    """Something that the provider found wrong with a whole batch."""

    code: str
    """Its word for it."""
    message: str
    """Its sentence."""
    line: int | None
    """Line of the input file, from 1; None where it is about all of it."""


class RemoteBatch(NamedTuple):
    """A batch as the provider sees it."""

    id: str
    """Its name for it."""
    status: str
    """validating, in_progress, finalizing, cancelling, or one of ``TERMINAL``."""
    files: tuple[str, ...]
    """Its result files: answers, then errors."""
    input_file: str
    """The file of its requests."""
    complaints: tuple[Complaint, ...]
    """Why it failed."""


class BatchProvider:
    """One account at one provider. Nothing is tried twice here."""

    def __init__(self, base_url: str, key: str, key_name: str) -> None:
        """``key_name``: what messages call the key, which none of them holds."""
        self._secret, self._key_name = key, key_name
        self._client = openai.AsyncOpenAI(
            api_key=key or "-",
            base_url=base_url,
            max_retries=0,
            timeout=_CALL_S,
            default_headers={"Accept-Encoding": "identity"},
            # a key goes to no other host, and to no proxy
            http_client=openai.DefaultAsyncHttpxClient(
                follow_redirects=False, trust_env=False, event_hooks={"request": [self._only_our_headers]}
            ),
        )

    async def upload(self, name: str, content: IO[bytes]) -> str:
        """Send a file of requests; its id. Errors: CallError."""
        with self._errors():
            return (await self._client.files.create(file=(name, content), purpose="batch")).id
        raise AssertionError("unreachable")

    async def create(self, file_id: str, route: str, window: str, scope: str, token: str) -> RemoteBatch:
        """Start a batch. Errors: CallError; after a Transient one it may exist all the same."""
        with self._errors():
            return _seen(
                await self._client.batches.create(
                    input_file_id=file_id,
                    endpoint=f"/v1{route}",  # type: ignore[arg-type]
                    completion_window=window,  # type: ignore[arg-type]
                    metadata={SCOPE: scope, TOKEN: token},
                )
            )
        raise AssertionError("unreachable")

    async def retrieve(self, batch_id: str) -> RemoteBatch | None:
        """How a batch stands, None where the provider knows none of that name. Errors: CallError."""
        with self._errors():
            try:
                return _seen(await self._client.batches.retrieve(batch_id))
            except openai.NotFoundError:
                return None
        raise AssertionError("unreachable")

    async def find(self, scope: str, token: str, not_before: float) -> RemoteBatch | None:
        """The batch that carries a token, among those made since ``not_before`` (seconds since 1970). Errors: CallError."""
        with self._errors():
            async for batch in self._client.batches.list(limit=100):
                carried = batch.metadata or {}
                if carried.get(SCOPE) == scope and carried.get(TOKEN) == token:
                    return _seen(batch)
                if batch.created_at < not_before:
                    return None
            return None
        raise AssertionError("unreachable")

    async def download(self, file_id: str) -> AsyncIterator[bytes]:
        """A result file in pieces; nothing where the provider has it no more. Errors: CallError."""
        with self._errors():
            try:
                async with self._client.files.with_streaming_response.content(file_id) as response:
                    async for chunk in response.iter_bytes(2**18):
                        yield chunk
            except openai.NotFoundError:
                return

    async def forget(self, file_id: str) -> None:
        """Delete a file of requests, which hold the corpus' texts. Errors: CallError."""
        with self._errors():
            await self._client.files.delete(file_id)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    def without_key(self, text: str) -> str:
        """A server's text with ``[key]`` in the place of the key."""
        return without(text, self._secret)

    async def _only_our_headers(self, request: httpx2.Request) -> None:
        """Take out what the client adds out of the environment (an organisation, a project, headers of any name)."""
        for name in [name for name in request.headers if name.lower() not in _HEADERS]:
            del request.headers[name]
        if self._secret:
            request.headers["Authorization"] = f"Bearer {self._secret}"

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except openai.APIStatusError as error:
            raise self._of_status(error) from None
        except openai.APITimeoutError:
            raise Transient("the batch's server did not answer in time", timed_out=True) from None
        except openai.APIConnectionError:
            raise Transient("the connection to the batch's server failed") from None
        except openai.APIError as error:
            raise Transient(
                f"the batch's server answered something that is no reply ({type(error).__name__})"
            ) from None

    def _of_status(self, error: openai.APIStatusError) -> CallError:
        try:
            body = error.response.text
        except Exception:  # noqa: BLE001 - a body that cannot be read says nothing; the status does
            body = ""
        return http_failure(error.status_code, error.response.headers, body, key_name=self._key_name, key=self._secret)


def failure_of(complaints: tuple[Complaint, ...]) -> dict[int | None, CallError]:
    """What a failed batch means for its lines (from 1) and, under None, for all others.

    A batch fails as a whole, before anything is worked or paid, so what is right in it is asked again in another.
    """
    errors: dict[int | None, CallError] = {}
    for complaint in complaints:
        said = f"the batch's server refused it: {shown(complaint.message or complaint.code)}"
        if complaint.line is not None:
            errors.setdefault(complaint.line, Rejected(said))
        elif "limit" in complaint.code:  # too many tokens in the queue: over as soon as other batches end
            errors.setdefault(None, RateLimited(said))
        else:
            errors.setdefault(None, Denied(said))
    if not errors:
        errors[None] = Denied("the batch's server refused the whole batch and gives no reason")
    errors.setdefault(None, Transient("the batch was refused because of other requests in it"))
    return errors


def _seen(batch: Batch) -> RemoteBatch:
    complaints = batch.errors.data if batch.errors is not None and batch.errors.data else []
    return RemoteBatch(
        id=batch.id,
        status=batch.status,
        files=tuple(name for name in (batch.output_file_id, batch.error_file_id) if name),
        input_file=batch.input_file_id or "",
        complaints=tuple(Complaint(c.code or "", c.message or "", c.line) for c in complaints),
    )
