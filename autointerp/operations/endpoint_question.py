"""Checks of a configuration's language models: the key is there, somebody answers, the model is known."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from autointerp.config import RunConfig
from autointerp.llm.call_errors import CallError, Denied, InvalidReply, RateLimited, Rejected
from autointerp.llm.endpoints.base import Endpoint
from autointerp.llm.http_failures import false_success
from autointerp.llm.protocol import CompletionRequest, Message
from autointerp.operations.findings import Finding, ok, warning, wrong
from sae_core.errors import AutointerpError

_DEADLINE_S = 30.0
_QUESTION = CompletionRequest(messages=(Message(role="user", content="Say hello."),), max_tokens=16)


def check_endpoints(config: RunConfig) -> Iterator[Finding]:
    """What is wrong with the endpoints; each server is asked one question of a few tokens, beside any budget."""
    for endpoint in config.build_endpoints():
        yield _asked(f"endpoint {endpoint.name}", endpoint)


def _asked(check: str, endpoint: Endpoint) -> Finding:
    if endpoint.known_capabilities() is not None:
        return ok(check, f"{endpoint.model!r} runs in the worker itself, and was not asked.")
    try:
        asyncio.run(_ask(endpoint))
    except AutointerpError as error:  # no key in the environment, an extra that is not installed
        return wrong(check, str(error))
    except RateLimited:
        return warning(check, f"{endpoint.model!r} asks to wait (too many requests): it is there, and busy.")
    except (InvalidReply, Rejected) as error:
        return warning(
            check, f"{endpoint.model!r} answers, but not a plain question: {_stripped(error)}; see what it is."
        )
    except Denied as error:
        return wrong(check, f"{endpoint.model!r} takes no request: {_stripped(error)}; correct model and api_key_env.")
    except CallError as error:
        return wrong(
            check, f"{endpoint.model!r} does not answer: {_stripped(error)}; start its server or correct base_url."
        )
    return ok(check, f"{endpoint.model!r} answers.")


async def _ask(endpoint: Endpoint) -> None:
    client = endpoint.open_for_probing()
    try:
        body = await client.send(_QUESTION, min(_DEADLINE_S, endpoint.timeout_s), bound=False)
        failure = false_success(body, key_name="the key")
        if failure is not None:
            raise failure
    finally:
        await client.close()


def _stripped(error: Exception) -> str:
    return str(error).rstrip(".")
