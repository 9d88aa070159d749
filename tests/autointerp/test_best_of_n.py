"""best_of_n chooses on the choose side, never looks at the score side, and says what became of every draft."""

from __future__ import annotations

import json
import re
from asyncio import run
from collections.abc import Callable
from typing import Any, Literal

import pytest

from autointerp import components
from autointerp.components import parse_component
from autointerp.evidence import EvidenceRequest, LatentEvidence, LensRequest, SuffixRequest
from autointerp.explainers.best_of_n import BestOfNExplainer
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.llm.answers import read_json
from autointerp.llm.asking import NO_LLMS, AskFailed, LLMNeed, LLMs
from autointerp.llm.protocol import CompletionRequest, Message, Usage
from autointerp.llm.scripted import ScriptedLLMs
from autointerp.score import Score
from autointerp.scorers.base import Scorer
from sae_core.errors import ConfigError
from sae_core.records import Side
from tests.autointerp.explainer_world import DIGIT, SidedStore, make_store, seen_blocks

SIDES = (Side.EXPLAIN, Side.CHOOSE)
JUDGE_SCHEMA = {"type": "object", "properties": {"points": {"type": "number"}}, "required": ["points"]}


class JudgeScorer(Scorer):
    """Asks for points for a label; the labels and sides that it was asked about are in the requests."""

    kind: Literal["judge"] = "judge"
    endpoint: str = "the_judge"

    def needs(self) -> list[EvidenceRequest]:
        return [SuffixRequest()]

    def llm_needs(self) -> list[LLMNeed]:
        return [LLMNeed(self.endpoint)]

    async def score(self, explanation: Explanation | None, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Score:
        assert explanation is not None
        evidence.store.pool(evidence.scored_side)
        content = f"side {evidence.scored_side.name}, label {explanation.text}"
        request = CompletionRequest(messages=(Message(role="user", content=content),), json_schema=JUDGE_SCHEMA)
        values: dict[str, Any] = {}
        failure = None
        try:
            answer = await llms.of(self.endpoint, self.kind).ask(request, lambda c: read_json(c, JUDGE_SCHEMA))
            values["judge_score"] = answer.value["points"] if answer.value["points"] >= 0 else None
        except AskFailed as error:
            failure = error.failure
        return Score(latent=evidence.latent, scorer=self.kind, values=values, failure=failure)


@pytest.fixture(autouse=True)
def _judge_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    known = components.known_components
    more = {"scorers": {"judge": JudgeScorer}}
    monkeypatch.setattr(components, "known_components", lambda group: {**known(group), **more.get(group, {})})


@pytest.fixture(scope="module")
def store() -> SidedStore:
    return make_store(readable=SIDES)


Answer = Callable[[CompletionRequest], str]


def drafting(labels: list[str | FailureKind], points: dict[str, float | FailureKind]) -> Answer:
    """Drafts by the request's sample, points by the label."""

    def answer(request: CompletionRequest) -> str:
        found = re.fullmatch(r"side (\w+), label (.*)", request.messages[-1].content)
        given = labels[request.sample] if found is None else points[found.group(2)]
        if isinstance(given, FailureKind):
            raise AskFailed(Failure(kind=given, message=f"it is {given.value}"), Usage(input_tokens=5, cost_usd=0.0))
        return json.dumps({"label": given} if found is None else {"points": given})

    return answer


def best(store: SidedStore, answer: Answer, **fields: Any) -> tuple[Explanation, ScriptedLLMs]:
    llms = ScriptedLLMs(answer)
    explainer = BestOfNExplainer(scorer={"kind": "judge"}, **fields)
    return run(explainer.explain(LatentEvidence(DIGIT, store), llms)), llms


def test_the_choose_side_chooses(store: SidedStore) -> None:
    labels: list[str | FailureKind] = ["even digits", "digits", "numbers", "digits"]
    explanation, llms = best(store, drafting(labels, {"even digits": 0.6, "digits": 0.9, "numbers": 0.7}))
    assert (explanation.text, explanation.explainer, explanation.failure) == ("digits", "best_of_n", None)
    assert explanation.payload == {
        "drafts": [
            {"text": "even digits", "times": 1, "choose_score": 0.6},
            {"text": "digits", "times": 2, "choose_score": 0.9},
            {"text": "numbers", "times": 1, "choose_score": 0.7},
        ],
        "failed": {},
        "chosen_by": "judge_score",
    }
    drafts = [r for r in llms.asked if r.sample or "side" not in r.messages[-1].content]
    assert sorted(r.sample for r in drafts) == [0, 1, 2, 3]
    assert {r.temperature for r in drafts} == {0.7}
    judged = [r.messages[-1].content for r in llms.asked if r.messages[-1].content.startswith("side")]
    assert len(judged) == 3  # a text that came twice is judged once
    assert all(content.startswith("side CHOOSE") for content in judged)
    assert {purpose for _, purpose in llms.purposes} == {"best_of_n"}
    assert {endpoint for endpoint, _ in llms.purposes} == {"", "the_judge"}
    assert explanation.input_tokens == sum(-(-sum(len(m.content) for m in r.messages) // 4) for r in llms.asked)
    assert explanation.exemplar_ids
    assert explanation.prompt_hash


def test_drafts_that_agree_are_not_judged(store: SidedStore) -> None:
    explanation, llms = best(store, drafting(["digits"] * 3, {}), n=3)
    assert (explanation.text, len(llms.asked)) == ("digits", 3)
    assert explanation.payload["chosen_by"] == "all drafts agree"


def test_on_ties_the_more_frequent_then_the_earlier_draft(store: SidedStore) -> None:
    even = {"one thing": 0.5, "two things": 0.5, "three": 0.5}
    explanation, _ = best(store, drafting(["one thing", "two things", "three", "two things"], dict(even)))
    assert explanation.text == "two things"
    explanation, _ = best(store, drafting(["one thing", "two things", "three"], dict(even)), n=3)
    assert explanation.text == "one thing"


def test_failed_drafts_are_counted(store: SidedStore) -> None:
    labels: list[str | FailureKind] = [FailureKind.TIMEOUT, "digits", FailureKind.REFUSED, "numbers"]
    explanation, _ = best(store, drafting(labels, {"digits": 0.1, "numbers": 0.3}))
    assert explanation.text == "numbers"
    assert explanation.payload["failed"] == {"timeout": 1, "refused": 1}
    labels = [FailureKind.REFUSED, FailureKind.TIMEOUT, FailureKind.TIMEOUT, FailureKind.REFUSED, FailureKind.TIMEOUT]
    failed, llms = best(store, drafting(labels, {}), n=5)
    assert failed.failure is not None
    assert failed.failure.kind is FailureKind.TIMEOUT
    assert "none of 5 drafts is a label; 3 of them: it is timeout" in failed.failure.message
    assert (failed.text, failed.input_tokens, len(llms.asked)) == ("", 25, 5)
    assert failed.payload["failed"] == {"refused": 2, "timeout": 3}


def test_drafts_that_cannot_be_scored(store: SidedStore) -> None:
    points: dict[str, float | FailureKind] = {"digits": FailureKind.TIMEOUT, "numbers": 0.2}
    explanation, _ = best(store, drafting(["digits", "digits", "numbers"], points), n=3)
    assert explanation.text == "numbers"
    assert explanation.payload["drafts"][0]["choose_score"] is None
    assert explanation.payload["drafts"][0]["failure"]["kind"] == "timeout"
    points["numbers"] = FailureKind.TOO_FEW_WINDOWS
    explanation, _ = best(store, drafting(["numbers", "digits", "digits"], points), n=3)
    assert explanation.text == "digits"  # two drafts said so
    assert "timeout: it is timeout" in explanation.payload["chosen_by"]
    explanation, _ = best(store, drafting(["numbers", "digits"], {"digits": -1.0, "numbers": -1.0}), n=2)
    assert explanation.text == "numbers"
    assert "judge_score is not defined" in explanation.payload["chosen_by"]


def test_with_detection_the_better_label_wins_and_the_score_side_stays_unread(store: SidedStore) -> None:
    """A judge that tells the truth about digits: the label that is right beats one that never fits."""

    def answer(request: CompletionRequest) -> str:
        if "matches" not in json.dumps(request.json_schema):
            return json.dumps({"label": ["zebras", "digits"][request.sample % 2]})
        label = re.search(r"^Label: (.*)$", request.messages[-1].content, re.MULTILINE)
        assert label is not None
        (windows,) = seen_blocks(request)
        for line in windows:
            assert " scr" not in line.text
        truth = [int(bool(re.search(r"\d", line.text))) for line in windows]
        return json.dumps({"matches": truth if "digits" in label.group(1) else [0] * len(truth)})

    llms = ScriptedLLMs(answer)
    explanation = run(BestOfNExplainer().explain(LatentEvidence(DIGIT, store), llms))
    assert explanation.text == "digits"
    scores = {draft["text"]: draft["choose_score"] for draft in explanation.payload["drafts"]}
    assert scores == {"zebras": 0.5, "digits": 1.0}


def test_a_score_side_that_was_read_would_be_seen(store: SidedStore) -> None:
    with pytest.raises(AssertionError, match="score side was read"):
        store.pool(Side.SCORE)


def test_needs_are_those_of_its_parts() -> None:
    explainer = BestOfNExplainer(of={"kind": "contrastive", "endpoint": "writer"}, scorer={"kind": "judge"})
    assert explainer.needs() == [LensRequest(), SuffixRequest()]
    assert [need.endpoint for need in explainer.llm_needs()] == ["writer", "the_judge"]
    assert explainer.of["exemplars"] == 16  # the whole table counts for the run's identity


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"of": {"kind": "pattern"}}, "'pattern' cannot write the drafts"),
        ({"of": {"kind": "revise"}}, "'revise' cannot write the drafts"),
        ({"of": {"kind": "output"}}, "'output' cannot write the drafts"),
        ({"of": {"kind": "best_of_n"}}, "'best_of_n' cannot write the drafts"),
        ({"of": {"kind": "max_activating", "sample": 2}}, "leave it out"),
        ({"of": {"kind": "max_activatin"}}, "did you mean 'max_activating'"),
        ({"of": {"kind": "max_activating", "exemplar": 3}}, "unknown field 'exemplar'"),
        ({"scorer": {"kind": "pattern"}}, "'pattern' does not judge texts"),
        ({"scorer": {"kind": "written"}}, "'written' does not judge texts on the choose side"),
        ({"n": 1}, "greater than or equal to 2"),
    ],
)
def test_impossible_settings_are_one_sentence(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_component("explainers", {"kind": "best_of_n", **fields})
