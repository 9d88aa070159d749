"""vLLM in process without vLLM: its outputs as replies, and what users are told where it is missing.

The outputs have the fields and values that vLLM 0.32.0 gave; tests/integration/test_vllm.py asks the real thing.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncIterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from autointerp.components import parse_component
from autointerp.llm.call_errors import CallError, Denied, Rejected, Transient
from autointerp.llm.endpoints.vllm import VLLMClient, VLLMEndpoint
from autointerp.llm.protocol import CompletionRequest, Message, Usage
from autointerp.llm.validation import read_reply
from autointerp.llm.vllm_replies import reply_of
from sae_core.errors import ConfigError, EndpointError


def logprob(text: str | None, value: float, rank: int = 1) -> SimpleNamespace:
    return SimpleNamespace(logprob=value, rank=rank, decoded_token=text)


def output(prompt_ids: list[int], answers: list[SimpleNamespace], prompt_logprobs: Any = None) -> SimpleNamespace:
    return SimpleNamespace(
        prompt_token_ids=prompt_ids,
        outputs=answers,
        prompt_logprobs=prompt_logprobs,
        num_cached_tokens=2,
        finished=True,
    )


def answer(text: str, ids: list[int], logprobs: Any = None, reason: str = "stop") -> SimpleNamespace:
    return SimpleNamespace(index=0, text=text, token_ids=ids, logprobs=logprobs, finish_reason=reason)


CHAT = (Message(role="user", content="x"),)


def test_a_chat_reply_with_log_probabilities() -> None:
    # the sampled token first, then the alternatives; impossible ones are minus infinity
    logprobs = [{7: logprob("1", -0.7, 2), 8: logprob("0", -0.69), 9: logprob("<|end|>", -math.inf, 3)}]
    request = CompletionRequest(messages=CHAT, top_logprobs=2)
    got = read_reply(reply_of(output([1, 2, 3], [answer("1", [7], logprobs)]), request, "tiny"), request)
    assert (got.text, got.finish_reason, got.model) == ("1", "stop", "tiny")
    assert got.logprobs[0].token == "1"
    assert got.logprobs[0].logprob == -0.7
    assert {key: got.logprobs[0].top[key] for key in "01"} == {"0": -0.69, "1": -0.7}
    assert math.exp(got.logprobs[0].top.get("<|end|>", -math.inf)) == 0
    assert got.usage == Usage(input_tokens=3, cached_tokens=2, output_tokens=1)


def test_a_plain_text_with_the_prompt_s_log_probabilities() -> None:
    prompt = [None, {5: logprob(" def", -8.4, 522), 6: logprob("latents", -2.5)}]
    request = CompletionRequest(text="a def", max_tokens=0, prompt_logprobs=1)
    got = read_reply(reply_of(output([1, 5], [answer("les", [9], reason="length")], prompt), request, "tiny"), request)
    assert got.text == ""
    first, second = got.prompt_logprobs
    assert first is None
    assert second is not None
    assert (second.token, second.logprob, second.top) == (" def", -8.4, {" def": -8.4, "latents": -2.5})


def test_an_answer_that_is_cut_off_says_so() -> None:
    request = CompletionRequest(messages=CHAT)
    got = read_reply(reply_of(output([1, 2], [answer("long", [3], reason="length")]), request, "tiny"), request)
    assert got.finish_reason == "length"


def test_without_vllm_the_sentence_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(EndpointError, match=r"pip install 'autointerp\[vllm\]'"):
        VLLMEndpoint(model="m").open()


def test_engine_arguments_cannot_run_code_of_the_model() -> None:
    for name in ("trust_remote_code", "model", "dtype"):
        with pytest.raises(ConfigError, match="cannot be given here"):
            parse_component("endpoints", {"kind": "vllm", "model": "m", "engine": {name: True}})
    usage = Usage(input_tokens=10)
    assert parse_component("endpoints", {"kind": "vllm", "model": "m"}).cost(usage) == 0  # type: ignore[union-attr]


class DeadError(Exception):
    pass


class FailedError(Exception):
    pass


class ClientError(Exception):
    pass


class Engine:
    """An engine that raises, hangs or answers; a tokenizer that knows words."""

    def __init__(self, outcome: Exception | SimpleNamespace | None) -> None:
        self.outcome = outcome
        self.asked: list[Any] = []
        self.aborted = self.closed = False

    def get_tokenizer(self) -> Any:
        def encode(text: str, add_special_tokens: bool = True) -> list[int]:
            return [0] * add_special_tokens + [len(word) for word in text.split()]

        def template(turns: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool, extra: str = "") -> str:
            assert not tokenize
            assert add_generation_prompt
            if turns[0]["role"] == "system":
                raise RuntimeError("System role not supported")
            return f"{extra}TEMPLATE " + " ".join(turn["content"] for turn in turns)

        return SimpleNamespace(encode=encode, apply_chat_template=template)

    async def generate(self, prompt: Any, parameters: Any, request_id: str) -> AsyncIterator[Any]:
        self.asked.append((prompt, parameters, request_id))
        if isinstance(self.outcome, Exception):
            raise self.outcome
        try:
            if self.outcome is None:
                await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.aborted = True
            raise
        yield self.outcome

    def shutdown(self) -> None:
        self.closed = True


@pytest.fixture
def no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The three modules that a client reads names from."""
    sampling = ModuleType("vllm.sampling_params")
    sampling.SamplingParams = lambda **fields: SimpleNamespace(**fields)  # type: ignore[attr-defined]
    sampling.StructuredOutputsParams = lambda json: SimpleNamespace(json=json)  # type: ignore[attr-defined]
    sampling.RequestOutputKind = SimpleNamespace(FINAL_ONLY="final")  # type: ignore[attr-defined]
    failures, errors = ModuleType("vllm.v1.engine.exceptions"), ModuleType("vllm.exceptions")
    failures.EngineDeadError, failures.EngineGenerateError = DeadError, FailedError  # type: ignore[attr-defined]
    errors.VLLMClientError = ClientError  # type: ignore[attr-defined]
    for module in (sampling, failures, errors):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("vllm", "vllm.v1", "vllm.v1.engine"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))


@pytest.mark.usefixtures("no_vllm")
def test_what_is_asked_of_the_engine() -> None:
    engine = Engine(output([1, 2], [answer("{}", [3])]))
    client = VLLMClient(engine, "tiny", {"extra": "brief "})
    schema = {"type": "object"}

    async def ask() -> None:
        chat = CompletionRequest(messages=CHAT, json_schema=schema, top_logprobs=5, seed=3, temperature=0.5)
        await client.send(chat, 5.0, bound=True)
        await client.send(chat, 5.0, bound=False)
        await client.send_with(chat, 5.0, {"n": 2})
        await client.send(CompletionRequest(text="one two", max_tokens=0), 5.0, bound=False)
        await client.close()

    asyncio.run(ask())
    (chat, bound, first), (_, loose, second), (_, several, _), (text, plain, _) = engine.asked
    assert chat == {"prompt_token_ids": [5, 8, 1]}, "the template's tokens, and no BOS beside its own"
    assert text == {"prompt_token_ids": [0, 3, 3]}, "a plain text begins as the tokenizer begins it"
    assert bound.structured_outputs.json == schema
    assert not hasattr(loose, "structured_outputs")
    assert (bound.logprobs, bound.prompt_logprobs, bound.seed, bound.temperature) == (5, None, 3, 0.5)
    assert several.n == 2
    assert plain.max_tokens == 1
    assert first != second
    assert engine.closed


@pytest.mark.usefixtures("no_vllm")
@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (DeadError("core died"), Denied),
        (FailedError("nan"), Transient),
        (ClientError("prompt too long"), Rejected),
        (ValueError("bad schema"), Rejected),
    ],
)
def test_failures_are_typed(outcome: Exception, kind: type[CallError]) -> None:
    client = VLLMClient(Engine(outcome), "tiny")
    with pytest.raises(kind):
        asyncio.run(client.send(CompletionRequest(messages=CHAT), 5.0, bound=False))


@pytest.mark.usefixtures("no_vllm")
def test_a_template_that_refuses_and_a_deadline() -> None:
    engine = Engine(None)
    client = VLLMClient(engine, "tiny")
    request = CompletionRequest(messages=(Message(role="system", content="s"), *CHAT))
    with pytest.raises(Rejected, match="System role not supported"):
        asyncio.run(client.send(request, 5.0, bound=False))
    with pytest.raises(Transient) as late:
        asyncio.run(client.send(CompletionRequest(messages=CHAT), 0.05, bound=False))
    assert late.value.kind == "timeout"
    assert engine.aborted, "what nobody waits for is not computed on"
