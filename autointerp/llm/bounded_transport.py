"""The way of a request to its server and of the reply back: bounded in size, to one host, with our headers only.

The openai client sends through this in the place of its own transport, because that reads a reply of any size, unpacks it
whatever comes out, adds headers from the environment and follows where a server points.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import aiohttp
import httpx2

from autointerp.llm.call_errors import CallError, Denied, InvalidReply, Transient
from autointerp.llm.foreign_text import shown, without
from autointerp.llm.http_failures import http_failure

REPLY_LIMIT_BYTES: ContextVar[int] = ContextVar("REPLY_LIMIT_BYTES", default=2**20)
"""Longest reply that the current call reads, unpacked."""
CONNECT_S = 15.0
"""Time in which a server must accept a connection; until then nothing is sent, and nothing can be billed."""

_ERROR_LIMIT_BYTES = 2**16
# uvicorn, under vLLM and many others, closes an idle connection after 5 s: one that is used at that moment breaks
_KEEP_ALIVE_S = 4.0
_CHUNK_BYTES = 2**16


class BoundedTransport(httpx2.AsyncBaseTransport):
    """Sends by aiohttp and reads replies whole. Belongs to the event loop in which it is first used.

    Errors: the tree of ``CallError`` for everything that is no success; none of them holds the key.
    """

    def __init__(self, key: str, key_name: str) -> None:
        """``key``: sent as a bearer token, "" for none. ``key_name``: what messages call it."""
        self._key, self._key_name = key, key_name
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        }
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """The reply with a status of success, its body read and without the key. Errors: CallError."""
        failure: CallError | None = None
        body = b""
        try:
            body = await self._exchange(request.method, str(request.url), request.content)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            failure = self._failure(error)
        if failure is not None:
            # raised here, so that it does not carry aiohttp's error, which holds the headers
            raise failure
        return httpx2.Response(200, content=body, request=request)

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def _exchange(self, method: str, url: str, content: bytes) -> bytes:
        if self._session is None:
            self._session = self._open(url)
        async with self._session.request(
            method, url, data=content, headers=self._headers, allow_redirects=False
        ) as response:
            if 200 <= response.status < 300:
                body = await _read(response, REPLY_LIMIT_BYTES.get(), cut=False)
                return without(body.decode("utf-8", "replace"), self._key).encode() if self._key else body
            said = await _read(response, _ERROR_LIMIT_BYTES, cut=True)
            headers = {name.lower(): value for name, value in response.headers.items()}
            text = said.decode("utf-8", "replace")
            raise http_failure(response.status, headers, text, key_name=self._key_name, key=self._key)

    def _open(self, url: str) -> aiohttp.ClientSession:
        # certificates as the openai client takes them; how many calls run at once is the session's to decide
        context: Any = httpx2.create_ssl_context() if url.startswith("https:") else True
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S, ssl=context),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    def _failure(self, error: Exception) -> CallError:
        """A call error for what aiohttp raises. Its own words are left out where they may hold the request."""
        words = shown(f"{type(error).__name__}: {error}", secret=self._key, limit=160)
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return Transient(f"the server did not accept a connection in {CONNECT_S:g} s", timed_out=True)
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return Denied(f"the server's certificate is not valid: {words}")
        if isinstance(error, aiohttp.ClientConnectorError):
            return Transient(f"no connection to the server: {words}")
        if isinstance(error, (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError)):
            return Denied("base_url is no address that can be connected to")
        if isinstance(error, (aiohttp.ClientResponseError, ValueError)):
            return InvalidReply(f"the server does not speak HTTP as it should ({type(error).__name__})")
        return Transient("the connection broke before the reply was complete", maybe_paid=True)


async def _read(response: aiohttp.ClientResponse, limit_bytes: int, *, cut: bool) -> bytes:
    """The body, unpacked; of one that is longer only the beginning (``cut``), else InvalidReply."""
    unpack = _unpacker(response.headers)
    parts: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        while chunk:
            part = chunk
            chunk = b""
            if unpack is not None:
                try:
                    part = unpack.decompress(part, _CHUNK_BYTES)
                except zlib.error:
                    raise InvalidReply("the reply's compression is broken") from None
                chunk = unpack.unconsumed_tail
            parts.append(part)
            size += len(part)
            if size > limit_bytes:
                # the rest is not read, so the connection cannot be used again
                response.close()
                if cut:
                    return b"".join(parts)[:limit_bytes]
                raise InvalidReply(f"the reply is longer than {limit_bytes} bytes")
    return b"".join(parts)


def _unpacker(headers: Mapping[str, str]) -> Any:
    """For a server that packs though it was asked not to. Errors: InvalidReply for what is not known."""
    name = headers.get("Content-Encoding", "identity").strip().lower()
    if name in ("", "identity"):
        return None
    if name in ("gzip", "x-gzip", "deflate"):
        # 32: the header says whether it is gzip or zlib
        return zlib.decompressobj(zlib.MAX_WBITS | 32)
    raise InvalidReply(f"the reply is packed as {shown(name, limit=40)!r}, which was not asked for")
