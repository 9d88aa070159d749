"""vLLM inside this process: a model of your own without a server beside it."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import itertools
import os
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from autointerp.llm.call_errors import CallError, Denied, Rejected, Transient
from autointerp.llm.endpoints.base import Endpoint
from autointerp.llm.foreign_text import shown
from autointerp.llm.protocol import Capability, CompletionRequest, LLMClient
from autointerp.llm.vllm_replies import reply_of
from sae_core.errors import EndpointError

INSTALL = "pip install 'autointerp[vllm]'"
_FORBIDDEN = {"trust_remote_code", "model", "max_logprobs", "structured_outputs_config"}


class VLLMEndpoint(Endpoint):
    """A model that vLLM runs in this process; needs the extra ``vllm``."""

    kind: Literal["vllm"] = "vllm"
    """Kind of endpoint."""
    model: str = Field(min_length=1)
    """Folder of the model, or its name at the hub."""
    revision: str | None = None
    """Commit of a model of the hub."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision of the weights; ``auto``: as they are stored."""
    max_model_len: int | None = Field(default=None, ge=1)
    """Most tokens of prompt and answer together; by default as many as the model bears."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of the GPU's memory that vLLM may take; leave room for a subject model on the same GPU."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that share the model."""
    enforce_eager: bool = False
    """Whether to do without compiling, for a quicker start and slower answers."""
    max_logprobs: int = Field(default=20, ge=1)
    """Most alternatives of a token that can be asked for."""
    chat_template: dict[str, Any] = {}
    """Further variables of the model's chat template, e.g. ``{enable_thinking = false}``."""
    engine: dict[str, Any] = {}
    """Further arguments of vLLM's engine, by its own names, e.g. ``{quantization = "fp8"}``."""
    max_concurrency: int = Field(default=256, ge=1)
    """Most calls under way at once; vLLM queues what it cannot take yet."""
    timeout_s: float = Field(default=600.0, gt=0)
    """All the time that one call may take, in seconds, the wait in vLLM's queue among it."""
    usd_per_million_input_tokens: float | None = Field(default=0.0, ge=0)
    """Price of a million prompt tokens; the machine is yours."""
    usd_per_million_output_tokens: float | None = Field(default=0.0, ge=0)
    """Price of a million answer tokens."""

    NOT_IDENTITY: ClassVar[frozenset[str]] = Endpoint.NOT_IDENTITY | {
        "gpu_memory_utilization",
        "tensor_parallel_size",
        "enforce_eager",
        "max_logprobs",
    }
    """Fields that do not decide an answer."""

    @field_validator("engine")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted((_FORBIDDEN | set(cls.model_fields)) & set(value)):
            raise ValueError(f"{', '.join(taken)} cannot be given here")
        return value

    @property
    def first_concurrency(self) -> int:
        """As many as there may be: vLLM keeps a queue of its own and never answers 429."""
        return self.max_concurrency

    def known_capabilities(self) -> frozenset[Capability]:
        """All: the versions that the extra allows can do them, which ``tests/integration`` tries out."""
        return frozenset(Capability)

    def open(self) -> LLMClient:
        """A client with the model loaded, which takes a while. Errors: EndpointError (no vLLM, no such model, no room)."""
        # nothing is reported to anybody; forking a process with threads is not safe
        for name, value in (("VLLM_NO_USAGE_STATS", "1"), ("VLLM_WORKER_MULTIPROC_METHOD", "spawn")):
            os.environ.setdefault(name, value)
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        try:
            vllm = importlib.import_module("vllm")
            arguments = importlib.import_module("vllm.engine.arg_utils").AsyncEngineArgs
            engines = importlib.import_module("vllm.v1.engine.async_llm").AsyncLLM
        except ImportError as error:
            raise EndpointError(
                f"the endpoint {self.name!r} runs vLLM in this process, which is not installed or does not load "
                f'({shown(str(error), limit=120)}): {INSTALL}, or use kind = "openai" with the base_url of a server'
            ) from error
        try:
            made = engines.from_engine_args(
                arguments(
                    model=self.model,
                    revision=self.revision,
                    dtype=self.dtype,
                    max_model_len=self.max_model_len,
                    gpu_memory_utilization=self.gpu_memory_utilization,
                    tensor_parallel_size=self.tensor_parallel_size,
                    enforce_eager=self.enforce_eager,
                    max_logprobs=self.max_logprobs,
                    # a schema lets a weak model write blanks for ever; this does not
                    structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
                    disable_log_stats=True,
                    **self.engine,
                )
            )
        except Exception as error:  # whatever vLLM raises: the model cannot be used, and a person must see to it
            raise EndpointError(
                f"the endpoint {self.name!r} cannot load the model {self.model!r} with vLLM {vllm.__version__} "
                f"({type(error).__name__}: {shown(str(error))}): see to its path, and to the memory that it finds"
            ) from error
        return VLLMClient(made, self.model, self.chat_template, self.thinking_tokens)


class VLLMClient:
    """An engine of this process. Belongs to the event loop in which it first sends."""

    def __init__(
        self, engine: Any, model: str, chat_template: Mapping[str, Any] | None = None, thinking_tokens: int = 0
    ) -> None:
        """``engine``: a ``vllm`` ``AsyncLLM``. ``chat_template``: variables of the template. ``thinking_tokens``: see ``Endpoint``."""
        self._thinking_tokens = thinking_tokens
        self._engine, self._model, self._template = engine, model, dict(chat_template or {})
        self._ordinals = itertools.count()
        self._sampling = importlib.import_module("vllm.sampling_params")
        failures = importlib.import_module("vllm.v1.engine.exceptions")
        self._dead: type[Exception] = failures.EngineDeadError
        self._failed: type[Exception] = failures.EngineGenerateError
        client_error = getattr(importlib.import_module("vllm.exceptions"), "VLLMClientError", ValueError)
        self._wrong: tuple[type[Exception], ...] = (ValueError, TypeError, client_error)

    async def send(self, request: CompletionRequest, deadline_s: float, *, bound: bool) -> str:
        """As ``LLMClient.send``."""
        return await self.send_with(request, deadline_s, {}, bound=bound)

    async def send_with(
        self, request: CompletionRequest, deadline_s: float, extra: Mapping[str, Any], *, bound: bool = False
    ) -> str:
        """``send`` with further sampling parameters of vLLM, which win over all others."""
        try:
            async with asyncio.timeout(deadline_s):
                prompt = {"prompt_token_ids": await self._token_ids(request)}
                parameters = self._parameters(request, extra, bound=bound)
                last = None
                async for output in self._engine.generate(prompt, parameters, f"autointerp-{next(self._ordinals)}"):
                    last = output
        except TimeoutError:
            raise Transient(f"no reply in {deadline_s:g} s", timed_out=True, maybe_paid=True) from None
        except self._dead:
            raise Denied(
                "vLLM has died, its last words stand in the log; start again with less memory in use"
            ) from None
        except self._failed as error:
            cause = error.__cause__ or error
            raise Transient(f"vLLM failed ({type(cause).__name__}: {shown(str(cause))})", status=500) from None
        except self._wrong as error:
            raise Rejected(f"vLLM refuses the request: {shown(str(error))}") from None
        if last is None or not last.finished:
            raise Transient("vLLM ended without an answer", maybe_paid=True)
        return reply_of(last, request, self._model)

    async def close(self) -> None:
        """Give the memory back."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.shutdown)

    async def _token_ids(self, request: CompletionRequest) -> list[int]:
        """Tokens of a plain text with what its tokenizer puts before it, or of a conversation in the model's template."""
        tokenizer = self._engine.get_tokenizer()
        if inspect.isawaitable(tokenizer):
            tokenizer = await tokenizer
        if request.text is not None:
            return list(tokenizer.encode(request.text))
        turns = [{"role": message.role, "content": message.content} for message in request.messages]
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **self._template)
        except Exception as error:  # templates are programs: they raise what they like
            raise _no_template(error) from error
        return list(tokenizer.encode(text, add_special_tokens=False))

    def _parameters(self, request: CompletionRequest, extra: Mapping[str, Any], *, bound: bool) -> Any:
        """``vllm.SamplingParams`` of a request."""
        sampling = self._sampling
        parameters: dict[str, Any] = {
            "temperature": request.temperature,
            # vLLM always writes a token; where none was asked for, nobody reads it
            "max_tokens": max(1, request.max_tokens) + (0 if request.text is not None else self._thinking_tokens),
            "seed": request.seed,
            "logprobs": request.top_logprobs or None,
            "prompt_logprobs": request.prompt_logprobs or None,
            "output_kind": sampling.RequestOutputKind.FINAL_ONLY,
        }
        if bound and request.json_schema is not None:
            parameters["structured_outputs"] = sampling.StructuredOutputsParams(json=request.json_schema)
        return sampling.SamplingParams(**{**parameters, **extra})


def _no_template(error: Exception) -> CallError:
    return Rejected(f"the model's chat template does not take the conversation: {shown(str(error))}")
