"""A real vLLM, over HTTP and in this process. Runs where it is asked for; docs/vllm.md says how and keeps the last run.

``AUTOINTERP_TEST_VLLM``: address of the server, up to and with ``/v1``. ``AUTOINTERP_TEST_VLLM_MODEL``: folder of the model that
it serves under the name "tiny". The model's answers are noise, so what is checked is that they come as they should: bound to
their schemas, with probabilities, and with log-probabilities that the transformers library computes as well.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from autointerp.components import known_components
from autointerp.judging.verdicts import Verdicts
from autointerp.llm.endpoints.base import Endpoint
from autointerp.llm.endpoints.openai import OpenAIEndpoint
from autointerp.llm.endpoints.vllm import VLLMEndpoint
from autointerp.llm.pricing import Budget
from autointerp.llm.protocol import Capability, Completion, CompletionRequest, LLMClient, Message, TokenLogprob
from autointerp.llm.runtime import LLMRuntime
from autointerp.scorers.detection import DetectionScorer
from autointerp.scorers.simulation import SimulationScorer
from autointerp.store.ledger import spend
from tests.autointerp.judged_world import evidence_of, label, make_store
from tests.autointerp.scripted_server import new_store

URL, MODEL = os.environ.get("AUTOINTERP_TEST_VLLM", ""), os.environ.get("AUTOINTERP_TEST_VLLM_MODEL", "")
pytestmark = [
    pytest.mark.skipif(
        not (URL and MODEL),
        reason="NOT RUN against a real vLLM: set AUTOINTERP_TEST_VLLM and AUTOINTERP_TEST_VLLM_MODEL (docs/vllm.md)",
    ),
    pytest.mark.timeout(900),
]
STORE = make_store()
SENTENCE = 'def capital(country):\n\treturn {"France": "Paris"}[country]  # 12 of them – ünïcode'


class _Lent:
    """A client that its borrower cannot close."""

    def __init__(self, client: LLMClient) -> None:
        self.send = client.send
        self.send_with = client.send_with  # type: ignore[attr-defined]

    async def close(self) -> None:
        """Nothing."""


class ProbedVLLM(VLLMEndpoint):
    """vLLM in this process, of which nothing is taken as known, and which is loaded once."""

    def known_capabilities(self) -> frozenset[Capability] | None:
        return None

    def open(self) -> LLMClient:
        if not _LOADED:
            _LOADED.append(super().open())
        return _LOADED[0]

    def open_for_probing(self) -> LLMClient:
        return _Lent(self.open())


_LOADED: list[LLMClient] = []


@pytest.fixture(scope="module", params=["http", "in process"])
def llms(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLMRuntime]:
    endpoint: Endpoint
    if request.param == "http":
        endpoint = OpenAIEndpoint(
            model="tiny", base_url=URL, usd_per_million_input_tokens=0.0, usd_per_million_output_tokens=0.0
        )
    else:
        endpoint = ProbedVLLM(model=MODEL, dtype="float32", max_model_len=4096, enforce_eager=True)
    store = new_store(tmp_path_factory.mktemp("run") / "a.db")
    with LLMRuntime([endpoint], store, "r-1", "r-1", Budget(tokens=10_000_000), "me") as runtime:
        yield runtime
        print(f"\n{request.param}: {spend(store, 'r-1')}")


def answer(llms: LLMRuntime, request: CompletionRequest) -> Completion:
    """The reply to one request."""
    return llms.run(lambda: llms.llms("s", 0).of("", "test").ask(request, lambda completion: completion)).completion


def test_everything_is_found_by_probing(llms: LLMRuntime) -> None:
    assert llms.capabilities("") == frozenset(Capability)
    assert known_components("endpoints")["vllm"] is VLLMEndpoint


class Reference:
    """The same model in the transformers library."""

    def __init__(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(MODEL)
        self._model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        texts = {i: self.tokenizer.decode([i]) for i in range(len(self.tokenizer))}
        # parts of characters all look alike, so only whole ones say which token they are
        self.named = {text: i for i, text in texts.items() if "\ufffd" not in text}

    def logprobs(self, ids: list[int]) -> list[list[float]]:
        """[T][vocabulary] log-probabilities of what follows each token."""
        import torch

        with torch.no_grad():
            found: list[list[float]] = self._model(torch.tensor([ids])).logits[0].double().log_softmax(-1).tolist()
        return found


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


def test_prompt_log_probabilities_are_those_of_the_transformers_library(llms: LLMRuntime, reference: Reference) -> None:
    found = answer(llms, CompletionRequest(text=SENTENCE, max_tokens=0, prompt_logprobs=5)).prompt_logprobs
    tokens = reference.tokenizer(SENTENCE).input_ids
    expected = reference.logprobs(tokens)
    assert len(found) == len(tokens)
    assert found[0] is None
    for at, entry in enumerate(found[1:]):
        assert isinstance(entry, TokenLogprob)
        assert entry.logprob == pytest.approx(expected[at][tokens[at + 1]], abs=1e-3)
        assert max(entry.top.values()) == pytest.approx(max(expected[at]), abs=1e-3)
        for text, logprob in entry.top.items():
            if text in reference.named:
                assert logprob == pytest.approx(expected[at][reference.named[text]], abs=1e-3)


def test_an_answer_is_bound_to_its_schema_and_comes_with_log_probabilities(
    llms: LLMRuntime, reference: Reference
) -> None:
    items = {"type": "integer", "enum": [0, 1]}
    schema = {
        "type": "object",
        "properties": {"answers": {"type": "array", "items": items, "minItems": 6, "maxItems": 6}},
        "required": ["answers"],
        "additionalProperties": False,
    }
    asked = (Message(role="system", content="Answer."), Message(role="user", content="Which ones?"))
    got = answer(llms, CompletionRequest(messages=asked, max_tokens=100, json_schema=schema, top_logprobs=20))
    assert got.finish_reason == "stop"
    assert [int(digit) for digit in json.loads(got.text)["answers"]] == [
        int(token.token) for token in got.logprobs if token.token in ("0", "1")
    ]
    # the conversation in the model's template, then the answer's own tokens; the schema leaves 0 and 1 their odds
    turns = [{"role": message.role, "content": message.content} for message in asked]
    prompt = reference.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = reference.tokenizer(prompt, add_special_tokens=False).input_ids
    answered = [reference.named[token.token] for token in got.logprobs if token.token in reference.named]
    expected = reference.logprobs([*ids, *answered])
    digits = [number for number, token in enumerate(got.logprobs) if token.token in ("0", "1")]
    assert len(digits) == 6
    for number in digits:
        top, free = got.logprobs[number].top, expected[len(ids) + number - 1]
        odds = free[reference.named["1"]] - free[reference.named["0"]]
        assert top["1"] - top["0"] == pytest.approx(odds, abs=2e-3)
        assert math.exp(top["0"]) + math.exp(top["1"]) == pytest.approx(1.0, abs=1e-3)


def test_detection_has_probabilities(llms: LLMRuntime) -> None:
    scorer = DetectionScorer(firing=12, silent=12, silent_selection="uniform", per_call=8, logprobs="always")
    score = llms.run(lambda: scorer.score(label(), evidence_of(STORE), llms.llms("s", 0)))
    assert score.failure is None
    print(f"\ndetection: {score.values}")
    assert score.values["detection_judged"] == score.values["detection_probabilities"] == 24
    assert score.values["detection_failed"] == 0
    assert score.values["detection_calls"] == 3, "no answer had to be repaired"
    assert score.verdicts is not None
    found = [(item.answer, item.probability) for item in Verdicts.from_json(score.verdicts).items]
    assert all((probability > 0.5) == yes for yes, probability in found if abs(probability - 0.5) > 1e-3)
    assert len({probability for _, probability in found}) > 5


def test_simulation_reads_prompt_log_probabilities(llms: LLMRuntime) -> None:
    scorer = SimulationScorer(firing=6, silent=6)
    score = llms.run(lambda: scorer.score(label(), evidence_of(STORE), llms.llms("s", 0)))
    assert score.failure is None
    print(f"\nsimulation: {score.values}")
    assert score.values["simulation_variant"] == "logprobs"
    mass = score.values["simulation_digit_mass"]
    assert isinstance(mass, float)
    assert 0 < mass < 1
    assert score.values["simulation_constant"] == 0
    assert -1 <= float(score.values["simulation_score"]) <= 1  # type: ignore[arg-type]


def test_a_prompt_that_is_too_long_is_a_failure_of_its_own(llms: LLMRuntime) -> None:
    from autointerp.llm.asking import AskFailed

    with pytest.raises(AskFailed, match="4096") as failed:
        answer(llms, CompletionRequest(messages=(Message(role="user", content="latent " * 9000),)))
    assert failed.value.failure.kind == "server_error"
    assert Path(MODEL).is_dir()
