"""Faults that are more than a bad body: refusals with their status and headers, and what happens to the connection."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from time import time
from typing import TYPE_CHECKING

from autointerp.llm.server.http import Exchange, head

if TYPE_CHECKING:
    from autointerp.llm.server.faults import FaultRule

_KIB64 = 64 * 1024


def _headers(rule: FaultRule) -> list[tuple[str, str]]:
    """The Retry-After header, where the rule has one."""
    if rule.retry_after is None:
        return []
    if rule.retry_after.startswith("date+"):
        return [("Retry-After", formatdate(time() + float(rule.retry_after[5:]), usegmt=True))]
    return [("Retry-After", rule.retry_after)]


def _refusal(
    status: int, message: str, code: str | None, kind: str
) -> Callable[[Exchange, FaultRule], Awaitable[None]]:
    async def refuse(exchange: Exchange, rule: FaultRule) -> None:
        error = {"message": rule.message or message, "type": kind, "param": None, "code": code}
        await exchange.send_json(status, {"error": error}, _headers(rule))

    return refuse


async def _status(exchange: Exchange, rule: FaultRule) -> None:
    message = rule.message or "The server had an error while processing your request."
    error = {"message": message, "type": "server_error", "param": None, "code": None}
    await exchange.send_json(rule.status, {"error": error}, _headers(rule))


async def _redirect(exchange: Exchange, rule: FaultRule) -> None:
    # a place of this same server, so that a client which follows shows in its ledger
    await exchange.send(307, b"", [("Location", "/elsewhere")])


REFUSED: dict[str, Callable[[Exchange, FaultRule], Awaitable[None]]] = {
    "rate_limit": _refusal(429, "Rate limit reached for requests", "rate_limit_exceeded", "requests"),
    "insufficient_quota": _refusal(
        429, "You exceeded your current quota, please check your plan.", "insufficient_quota", "insufficient_quota"
    ),
    "unauthorized": _refusal(401, "Incorrect API key provided.", "invalid_api_key", "invalid_request_error"),
    "forbidden": _refusal(403, "You are not allowed to use this model.", None, "permission_error"),
    "not_found": _refusal(404, "The model does not exist.", "model_not_found", "invalid_request_error"),
    "too_long": _refusal(
        400, "This model's maximum context length is 4096 tokens.", "context_length_exceeded", "invalid_request_error"
    ),
    "status": _status,
    "redirect": _redirect,
}
"""Refusals by name: nothing was answered and nothing is billed."""


async def _hang(exchange: Exchange, body: bytes, rule: FaultRule) -> None:
    await exchange.client_gone()


async def _hang_after_headers(exchange: Exchange, body: bytes, rule: FaultRule) -> None:
    await exchange.send_raw(head(200, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]))
    await exchange.client_gone()


async def _drip(exchange: Exchange, body: bytes, rule: FaultRule) -> None:
    await exchange.send_raw(head(200, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]))
    gone = asyncio.ensure_future(exchange.client_gone())
    try:
        for place in range(len(body)):
            await exchange.send_raw(body[place : place + 1])
            if (await asyncio.wait([gone], timeout=rule.seconds))[0]:
                return
    finally:
        gone.cancel()


async def _late(exchange: Exchange, body: bytes, rule: FaultRule) -> None:
    await asyncio.sleep(rule.seconds)
    await exchange.send(200, body)


async def _huge_body(exchange: Exchange, body: bytes, rule: FaultRule) -> None:
    before, after = b'{"id":"', b'","choices":[]}'
    filler = max(rule.size_bytes - len(before) - len(after), 0)
    length = str(len(before) + filler + len(after))
    await exchange.send_raw(head(200, [("Content-Type", "application/json"), ("Content-Length", length)]) + before)
    while filler:
        size = min(filler, _KIB64)
        await exchange.send_raw(b"x" * size)
        filler -= size
    await exchange.send_raw(after)


def _packed(size_bytes: int) -> bytes:
    """A reply whose id has ``size_bytes`` characters, as gzip (a thousandth of that)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [packer.compress(b'{"id":"')]
    block = b"x" * _KIB64
    for _ in range(-(-size_bytes // _KIB64)):
        parts.append(packer.compress(block))
    return b"".join([*parts, packer.compress(b'","choices":[]}'), packer.flush()])


async def _gzip_bomb(exchange: Exchange, body: bytes, rule: FaultRule) -> None:
    packed = await asyncio.to_thread(_packed, rule.size_bytes)
    await exchange.send(200, packed, [("Content-Encoding", "gzip")])


async def _reset_before_headers(exchange: Exchange, body: bytes, rule: FaultRule) -> None:
    exchange.reset()


async def _reset_after_headers(exchange: Exchange, body: bytes, rule: FaultRule) -> None:
    lines = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    await exchange.send_raw(head(200, lines) + body[: len(body) // 2])
    # a reset throws away what the client has not read yet: give it time to see the headers
    await asyncio.sleep(0.05)
    exchange.reset()


async def _closed_early(exchange: Exchange, body: bytes, rule: FaultRule) -> None:
    lines = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    exchange.keep_alive = False
    await exchange.send_raw(head(200, lines) + body[: len(body) // 2])


async def _no_http(exchange: Exchange, body: bytes, rule: FaultRule) -> None:
    exchange.keep_alive = False
    await exchange.send_raw(b"\x16\x03\x01 this is not HTTP\r\n\r\n")


WIRE: dict[str, Callable[[Exchange, bytes, FaultRule], Awaitable[None]]] = {
    "hang": _hang,
    "hang_after_headers": _hang_after_headers,
    "drip": _drip,
    "late": _late,
    "huge_body": _huge_body,
    "gzip_bomb": _gzip_bomb,
    "reset_before_headers": _reset_before_headers,
    "reset_after_headers": _reset_after_headers,
    "closed_early": _closed_early,
    "no_http": _no_http,
    "die": _reset_before_headers,
}
"""What happens to the connection by name; the answer was made, so a real server may bill it. ``die`` stops the server too."""
