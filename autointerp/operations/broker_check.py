"""Checks of the broker: a Redis that answers, lets us in, keeps what it is given and is open to nobody else."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from autointerp.operations.environment import BROKER_VARIABLE, is_loopback
from autointerp.operations.findings import Finding, ok, warning, wrong
from autointerp.shown_url import HIDDEN, secrets_in, without_password
from sae_core.errors import ConfigError

if TYPE_CHECKING:
    import redis

LEAST_VERSION = (6, 2)
"""Oldest Redis that tests run against."""
_TIMEOUT_S = 5.0


def open_broker(url: str | None) -> redis.Redis | None:
    """A client of the broker at ``url``, which is not asked yet; None where none is given. Errors: ConfigError."""
    if not url:
        return None
    try:
        import redis
    except ModuleNotFoundError as error:
        raise ConfigError("the broker needs the package 'redis': pip install 'autointerp[cluster]'.") from error
    try:
        return redis.Redis.from_url(
            url, socket_connect_timeout=_TIMEOUT_S, socket_timeout=_TIMEOUT_S, decode_responses=True
        )
    except ValueError as error:
        raise ConfigError(
            f"{BROKER_VARIABLE} is {without_password(url)!r}, which is no address of a Redis "
            f"({without_password(str(error))}): give for instance redis://:password@host:6379/0."
        ) from error


def check_broker(url: str | None, prefix: str = "") -> Iterator[Finding]:
    """What is wrong with the broker at ``url``; ``prefix`` is what its keys begin with."""
    if not url:
        yield ok("broker", f"none is given in {BROKER_VARIABLE}, and runs of one machine need none.")
        return
    shown = without_password(url)
    try:
        client = open_broker(url)
    except ConfigError as error:
        yield wrong("broker", str(error))
        return
    assert client is not None
    with client:
        refusal = _refusal(client, shown)
        if refusal is not None:
            yield refusal
            return
        yield from _settings(client, url, shown, prefix)


def _refusal(client: redis.Redis, shown: str) -> Finding | None:
    """Why nothing can be asked of it, None where it answers."""
    import redis

    try:
        client.ping()
    except redis.AuthenticationError:
        given = "this password" if HIDDEN in shown else "no password"
        return wrong(
            "broker",
            f"the Redis at {shown} does not let us in with {given}: write user and password into {BROKER_VARIABLE} as "
            "redis://user:password@host:6379/0 (a password alone as redis://:password@host).",
        )
    except redis.exceptions.NoPermissionError as error:
        return wrong("broker", f"{_not_allowed(shown, str(error))}")
    except (redis.TimeoutError, TimeoutError):
        return wrong(
            "broker", f"the Redis at {shown} gave no answer within {_TIMEOUT_S:g} s: see whether it is busy or stopped."
        )
    except (redis.ConnectionError, OSError) as error:
        return wrong(
            "broker",
            f"nobody answers at {shown} ({_reason(error)}): start the Redis, or correct {BROKER_VARIABLE}.",
        )
    except redis.RedisError as error:
        return wrong(
            "broker",
            f"what answers at {shown} is no Redis that can be used ({_reason(error)}): correct {BROKER_VARIABLE}.",
        )
    return None


def _settings(client: redis.Redis, url: str, shown: str, prefix: str) -> Iterator[Finding]:
    import redis

    try:
        info: Mapping[str, Any] = client.info()
    except redis.RedisError as error:
        info = {}
        yield warning("broker", f"the Redis at {shown} does not say how it is set up ({_reason(error)}): allow +info.")
    version = str(info.get("redis_version", "unknown"))
    yield ok("broker", f"the Redis {version} at {shown} answers.")
    yield _version(version)
    yield _permissions(client, shown, prefix)
    if info:
        policy = str(info.get("maxmemory_policy", ""))
        if policy == "noeviction":
            yield ok("broker memory", "maxmemory-policy is noeviction.")
        else:
            yield wrong(
                "broker memory",
                f"maxmemory-policy is {policy!r}, with which a full Redis throws queues away: set maxmemory-policy noeviction.",
            )
        yield _persistence(info)
    yield exposure(urlsplit(url).hostname, any(secrets_in(url)) or url.startswith("unix"), _asked(client))


def _version(version: str) -> Finding:
    parts = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if len(parts) == 2 and parts >= LEAST_VERSION:
        return ok("broker version", f"Redis {version} is supported.")
    return warning(
        "broker version",
        f"Redis {version} is not known to work: use {'.'.join(map(str, LEAST_VERSION))} or newer.",
    )


def _permissions(client: redis.Redis, shown: str, prefix: str) -> Finding:
    """Does what the queues need, on keys of its own."""
    import redis

    key = f"{prefix}doctor-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        client.lpush(key, "hint")
        client.llen(key)
        client.brpop([key], 1)
        client.zadd(f"{key}-unacked", {"hint": 1.0})
        client.hset(f"{key}-unacked-hash", "hint", "1")
        client.sadd(f"{key}-bindings", "queue")
        client.publish(key, "hint")
        client.delete(key, f"{key}-unacked", f"{key}-unacked-hash", f"{key}-bindings")
    except redis.exceptions.NoPermissionError as error:
        return wrong("broker permissions", _not_allowed(shown, str(error)))
    except redis.RedisError as error:
        return wrong(
            "broker permissions",
            f"the Redis at {shown} takes no messages ({_reason(error)}): see its log, its disk may be full or it may be a replica.",
        )
    return ok("broker permissions", "messages can be written and read.")


def _persistence(info: Mapping[str, Any]) -> Finding:
    if info.get("aof_enabled") and info.get("aof_last_write_status", "ok") != "ok":
        return wrong(
            "broker persistence",
            "the Redis could not write its append-only file the last time: see to the disk of its folder.",
        )
    if info.get("aof_enabled"):
        return ok("broker persistence", "appendonly is on.")
    return warning(
        "broker persistence",
        "appendonly is off, so that a restart empties the queues and work stands still until the reconciler has filled them "
        "again (seconds; nothing is lost): set appendonly yes.",
    )


def _asked(client: redis.Redis) -> Mapping[str, str]:
    """Where it listens and whom it lets in, as far as it tells us."""
    import redis

    found: dict[str, str] = {}
    try:
        for name in ("bind", "protected-mode"):  # one at a time: Redis 6 takes no more
            found |= {str(key): str(value) for key, value in client.config_get(name).items()}
    except redis.RedisError:
        pass  # an account without this right is a good one
    return found


def exposure(host: str | None, authenticated: bool, settings: Mapping[str, str]) -> Finding:
    """Whether others than those with a password reach the broker: who writes to it has code run on every worker.

    ``settings``: Redis' ``bind`` and ``protected-mode``, where it tells them.
    """
    if authenticated:
        return ok("broker password", "it is asked for.")
    bound = settings.get("bind", "").replace("-", " ").split()
    elsewhere = [address for address in bound if not is_loopback(address)]
    everywhere = "bind" in settings and not bound and settings.get("protected-mode") == "no"
    if not is_loopback(host) or (elsewhere and settings.get("protected-mode") == "no") or everywhere:
        where = ", ".join(elsewhere) or host or "every address"
        return wrong(
            "broker password",
            f"the Redis takes orders without a password and other machines reach it (at {where}), which is as good as a shell on "
            "every worker: set requirepass or an ACL user, or bind it to 127.0.0.1.",
        )
    return ok("broker password", "none is set, and only this machine reaches it.")


def _not_allowed(shown: str, said: str) -> str:
    return (
        f"the user of the Redis at {shown} may not do what queues need ({_short(said)}): give it the ACL rights "
        "'~* &* +@all -@admin -@dangerous +info +keys'."
    )


def _reason(error: BaseException) -> str:
    return _short(without_password(str(error))) or type(error).__name__


def _short(text: str) -> str:
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) <= 160 else text[:157] + "..."
