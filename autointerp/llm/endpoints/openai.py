"""Any server that speaks OpenAI's API: OpenAI's own, vLLM, SGLang, llama.cpp, gateways."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, field_validator

from autointerp.llm.call_errors import Transient
from autointerp.llm.endpoints.base import Endpoint
from autointerp.llm.endpoints.request_body import PromptLogprobs, TokenLimit, request_body
from autointerp.llm.protocol import CompletionRequest, LLMClient
from autointerp.llm.validation import body_limit_bytes
from sae_core.errors import ConfigError

OPENAI_HOST = "api.openai.com"
_OURS = {"model", "messages", "prompt", "stream", "n", "best_of", "max_tokens", "max_completion_tokens"}
"""What decides the price of a call, which is reserved before it, or the shape of its reply."""


class OpenAIEndpoint(Endpoint):
    """A server with OpenAI's chat and completions API."""

    model_config = ConfigDict(hide_input_in_errors=True)

    kind: Literal["openai"] = "openai"
    """Kind of endpoint."""
    base_url: str = Field(default=f"https://{OPENAI_HOST}/v1", repr=False)
    """Address of the API up to and with ``/v1``; the key is sent nowhere else, and proxies of the environment are not used."""
    api_key_env: str | None = Field(default=None, repr=False)
    """Name of the environment variable that holds the key; left out for a server without keys."""
    json_mode: Literal["schema", "object", "none"] = "schema"
    """How the server is bound to a JSON schema: ``schema`` as OpenAI and vLLM have it, ``object`` as llama.cpp has it."""
    prompt_logprobs_api: PromptLogprobs = "echo"
    """How prompt log-probabilities are asked for: ``echo``, which most servers know, or ``vllm``, its own parameter."""
    max_tokens_name: Literal["auto", "max_tokens", "max_completion_tokens"] = "auto"
    """How a chat's token limit is called; ``auto``: the new name at OpenAI, the old one, which others know, elsewhere."""
    extra_body: dict[str, Any] = {}
    """Further parameters of every request, as the server names them; they win over ours."""

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good or not value.isprintable() or " " in value:
            raise ValueError("give an address like http://127.0.0.1:8000/v1")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError("an address has no user, password, ? or #; name the variable with the key in api_key_env")
        return value.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,99}", value):
            # keys have small letters, so that one given here by mistake is neither stored nor printed
            raise ValueError(
                "give the NAME of an environment variable in capitals, such as OPENAI_API_KEY, not the key"
            )
        return value

    @field_validator("extra_body")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(_OURS & set(value)):
            raise ValueError(
                f"{', '.join(taken)} cannot be given here, because a call's price is reserved before it: "
                "give an explainer another max_tokens, or the endpoint thinking_tokens"
            )
        return value

    def open(self) -> LLMClient:
        """A client; nothing is sent. Errors: ConfigError where there is no key."""
        return OpenAIClient(self, self.key())

    def key(self) -> str:
        """The key, "" where none is needed. Errors: ConfigError."""
        if self.api_key_env is None:
            if urlsplit(self.base_url).hostname == OPENAI_HOST:
                raise ConfigError(
                    f"the endpoint {self.name!r} asks {OPENAI_HOST} without a key: put the key into an environment variable and "
                    'name it, api_key_env = "OPENAI_API_KEY", or give the base_url of another server'
                )
            return ""
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ConfigError(
                f"the endpoint {self.name!r} takes its key from the environment variable {self.api_key_env}, which is not set: "
                f"set it, or leave api_key_env out for a server without keys"
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError(
                f"the environment variable {self.api_key_env} holds characters that no key has: set it anew"
            )
        return key

    def token_limit(self) -> TokenLimit:
        """Name of a chat's token limit."""
        if self.max_tokens_name != "auto":
            return self.max_tokens_name
        return "max_completion_tokens" if urlsplit(self.base_url).hostname == OPENAI_HOST else "max_tokens"


class OpenAIClient:
    """Connections to one server, through the openai client. Belongs to the event loop in which it first sends."""

    def __init__(self, endpoint: OpenAIEndpoint, key: str) -> None:
        # late: importing the client takes most of a second, which a run without LLMs need not wait for
        import openai

        from autointerp.llm.bounded_transport import BoundedTransport

        self._endpoint = endpoint
        self._token_limit = endpoint.token_limit()
        transport = BoundedTransport(key, f"the key in {endpoint.api_key_env}" if key else "a request without a key")
        self._client = openai.AsyncOpenAI(
            # the transport sends the key itself, so that the client cannot show it
            api_key="-",
            base_url=endpoint.base_url,
            max_retries=0,
            timeout=None,
            http_client=openai.DefaultAsyncHttpxClient(transport=transport, follow_redirects=False, trust_env=False),
        )

    async def send(self, request: CompletionRequest, deadline_s: float, *, bound: bool) -> str:
        """As ``LLMClient.send``."""
        return await self.send_with(request, deadline_s, {}, bound=bound)

    async def send_with(
        self, request: CompletionRequest, deadline_s: float, extra: Mapping[str, Any], *, bound: bool = False
    ) -> str:
        """``send`` with further parameters, which win over all others."""
        endpoint = self._endpoint
        route, body = request_body(
            request,
            endpoint.model,
            bound=bound and endpoint.json_mode == "schema",
            token_limit=self._token_limit,
            prompt_logprobs=endpoint.prompt_logprobs_api,
            thinking_tokens=endpoint.thinking_tokens,
            extra=endpoint.extra_body,
        )
        if bound and endpoint.json_mode == "object" and request.json_schema is not None:
            body.setdefault("response_format", {"type": "json_object", "schema": request.json_schema})
        body.update(extra)
        return await self._post(route, body, deadline_s, body_limit_bytes(request))

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def _post(self, route: str, body: dict[str, Any], deadline_s: float, limit_bytes: int) -> str:
        import httpx2
        import openai

        from autointerp.llm.bounded_transport import REPLY_LIMIT_BYTES

        REPLY_LIMIT_BYTES.set(limit_bytes)
        try:
            async with asyncio.timeout(deadline_s):
                try:
                    response = await self._client.post(route, cast_to=httpx2.Response, body=body)
                except UnicodeEncodeError:
                    # half a character, out of a broken corpus: JSON for the wire has none
                    whole = json.loads(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"))
                    response = await self._client.post(route, cast_to=httpx2.Response, body=whole)
        except TimeoutError:
            raise Transient(f"no complete reply in {deadline_s:g} s", timed_out=True, maybe_paid=True) from None
        except (openai.OpenAIError, httpx2.HTTPError, httpx2.InvalidURL) as error:
            # the transport raises CallErrors; these are for what the client may do around it
            raise Transient(f"the client could not send ({type(error).__name__})", maybe_paid=True) from None
        return response.content.decode("utf-8", "replace")
