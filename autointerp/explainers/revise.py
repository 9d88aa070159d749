"""The revise explainer: rounds of a label, texts that test it, what the subject does on them, and a better label (METHODS 2)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from autointerp.evidence import LatentEvidence
from autointerp.explainers.exemplar_choice import largest_activation
from autointerp.explainers.exemplar_explainer import ExemplarExplainer
from autointerp.explainers.label_rules import LabelRules
from autointerp.explainers.llm_explainer import Asked, ask_for_label
from autointerp.explainers.proposed_tests import results_block, usable_tests
from autointerp.explanation import Explanation
from autointerp.failure import FailureKind
from autointerp.llm.asking import LLM, NO_LLMS, LLMs
from autointerp.llm.protocol import CompletionRequest, Message
from autointerp.planning.planned import (
    BLOCK_TOKENS,
    LABEL_KEY_TOKENS,
    MESSAGE_TOKENS,
    TEST_TOKENS,
    PlannedCalls,
    PlanSizes,
    planned_calls,
    text_tokens,
)
from autointerp.prompting.prompt import Prompt, load_prompt
from autointerp.prompting.quoting import Quoted, json_text
from autointerp.sampling.window import ShownWindow
from sae_core.tried_texts import TriedText

_TOKENS_PER_TEST = 90
"""Room for one proposed text in an answer."""

_TOKENS_OF_A_RESULT = 10
"""What was expected of a test and what was found, in a prompt."""


class ReviseExplainer(ExemplarExplainer):
    """A draft and, for each round, a correction by what was found on the texts that the label's author proposed.

    At most ``rounds + 1`` calls for a latent. The corrections carry the first conversation on, so that a server that keeps
    prefixes reads the windows once.

    ``payload``: ``round`` (of corrections that were asked for), ``tests`` (to be tried next), ``drafts`` (each round's label and
    tests), ``problems`` (rounds that gave no better label, and why; the last good label stands).
    """

    kind: Literal["revise"] = "revise"
    """Name in the config file."""
    rounds: int = Field(default=2, ge=1, le=4)
    """Corrections; the subject runs the tests before each."""
    tests: int = Field(default=6, ge=1, le=30)
    """Texts that each round proposes."""

    @property
    def prompt_files(self) -> tuple[str, ...]:
        """The draft's, that of corrections with further tests, the last one's."""
        return ("revise", "revise_correct", "revise_last")

    @property
    def rounds_of_tests(self) -> int:
        """Corrections after the draft."""
        return self.rounds

    def planned(self, sizes: PlanSizes) -> list[PlannedCalls]:
        """The draft, and the corrections, each of which carries the draft's conversation on."""
        label, tests = sizes.label_tokens + LABEL_KEY_TOKENS, self.tests * TEST_TOKENS
        most = self.max_tokens + self.tests * _TOKENS_PER_TEST
        draft = planned_calls(
            load_prompt("revise"),
            self.kind,
            self.endpoint,
            calls=1,
            filled=self._planned_windows(sizes),
            answer=label + tests,
            most_answer=most,
        )
        found = []
        for name, calls in (("revise_correct", self.rounds - 1), ("revise_last", 1)):
            prompt, last = load_prompt(name), name == "revise_last"
            asked = text_tokens(prompt.system) + text_tokens(prompt.user) + 2 * MESSAGE_TOKENS
            results = BLOCK_TOKENS + self.tests * (TEST_TOKENS + _TOKENS_OF_A_RESULT)
            correction = replace(
                draft,
                calls=calls,
                fresh_tokens=draft.fresh_tokens + label + tests + asked + results,
                answer_tokens=label if last else label + tests,
                most_answer_tokens=self.max_tokens if last else most,
            )
            found += [correction] if calls else []
        return [draft, *found]

    async def explain(self, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Explanation:
        """The draft with its tests; ``dead``, ``too_few_windows``, ``bad_label`` and those of the call are its failures."""
        if evidence.is_dead:
            return self._dead(evidence)
        windows = self._choose(evidence)
        if not windows:
            return self._too_few(evidence)
        llm = llms.of(self.endpoint, self.kind)
        block = self._block(evidence, windows)
        asked = await ask_for_label(
            llm, self._draft_request(llm, block), self._rules(evidence, windows, [block]), _reading_tests(())
        )
        payload: dict[str, Any] = {"round": 0, "tests": [], "drafts": [], "problems": []}
        if asked.failure is None:
            payload |= _proposed(asked, [])
        return self._explained(evidence, asked, load_prompt("revise").hash, windows, payload)

    async def revise(self, explanation: Explanation, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Explanation:
        """The label after what was found in ``evidence.tried``; with nothing new there, the same label without a call.

        What goes wrong keeps the label and stands in ``payload["problems"]``.
        """
        if explanation.failure is not None:
            return explanation
        payload = dict(explanation.payload)
        number = payload["round"] + 1
        payload |= {"round": number, "tests": []}
        # the texts of the last draft were tried in this round, or in an earlier one that failed to use what was found
        # (one without tokens could not be run)
        tried = [text for text in evidence.tried if text.round <= number and len(text.token_ids)]
        drafts = [*payload["drafts"][:-1], _with_found(payload["drafts"][-1], tried)]
        payload["drafts"] = drafts
        known = {test["text"]: test["should_fire"] for draft in drafts for test in draft["tests"]}
        windows = self._choose(evidence)
        if not windows or all(test["activation"] is None for test in drafts[-1]["tests"]):
            message = "none of the proposed texts was run"
            problem = {"round": number, "kind": FailureKind.NO_EVIDENCE.value, "message": message}
            payload["problems"] = [*payload["problems"], problem]
            return explanation.model_copy(update={"payload": payload})

        llm = llms.of(self.endpoint, self.kind)
        last = number >= self.rounds
        prompt = load_prompt("revise_last" if last else "revise_correct")
        block = self._block(evidence, windows)
        largest = max(
            [largest_activation(evidence, windows), *(float(abs(t.activations).max(initial=0)) for t in tried)]
        )
        expected = [known.get(text.text) for text in tried]
        results = results_block(tried, expected, evidence.store.pieces, largest)
        request = self._correction_request(llm, block, drafts[-1], prompt, results)
        rules = self._rules(evidence, windows, [block, results])
        asked = await ask_for_label(llm, request, rules, _reading_tests(tuple(known), wanted=not last))
        if asked.failure is None:
            payload |= _proposed(asked, drafts)
        else:
            problem = {"round": number, "kind": asked.failure.kind.value, "message": asked.failure.message}
            payload["problems"] = [*payload["problems"], problem]
        return explanation.model_copy(
            update={
                "text": asked.value.get("label", explanation.text),
                "payload": payload,
                "prompt_hash": explanation.prompt_hash
                if asked.failure
                else _joined_hash(load_prompt("revise"), prompt),
                "model": explanation.model if asked.failure else asked.model,
                "input_tokens": explanation.input_tokens + asked.usage.input_tokens,
                "output_tokens": explanation.output_tokens + asked.usage.output_tokens,
                "cost_usd": explanation.cost_usd + (asked.usage.cost_usd or 0.0),
            }
        )

    def _draft_request(self, llm: LLM, block: Quoted) -> CompletionRequest:
        values = {"windows": block.block, "tests": self.tests}
        return load_prompt("revise").request(values, **self._room(llm, self.tests))

    def _correction_request(
        self, llm: LLM, block: Quoted, draft: Mapping[str, Any], prompt: Prompt, results: Quoted
    ) -> CompletionRequest:
        """The draft's conversation, carried on with what was found."""
        values = {"results": results.block, "tests": self.tests}
        turns = (
            Message(role="assistant", content=_said(draft)),
            Message(role="user", content=prompt.text(values)),
        )
        schema = prompt.answer_schema(values)
        tests = self.tests if schema and "tests" in schema["properties"] else 0
        return CompletionRequest(
            messages=(*self._draft_request(llm, block).messages, *turns),
            json_schema=schema,
            prompt_hash=prompt.hash,
            **self._room(llm, tests),
        )

    def _room(self, llm: LLM, tests: int) -> dict[str, Any]:
        return {**self._parameters(llm), "max_tokens": self.max_tokens + tests * _TOKENS_PER_TEST}

    def _rules(self, evidence: LatentEvidence, windows: list[ShownWindow], blocks: Sequence[Quoted]) -> LabelRules:
        return LabelRules(self._texts(evidence, windows), tuple(block.delimiter for block in blocks))


def _reading_tests(earlier: Sequence[str], *, wanted: bool = True) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """Reads the tests of an answer, which repeat none of ``earlier``; none where none are wanted."""
    return lambda value: {**value, "tests": usable_tests(value["tests"], earlier) if wanted else []}


def _said(draft: Mapping[str, Any]) -> str:
    """A draft as the answer that it was."""
    tests = (
        f'{{"text": {json_text(test["text"])}, "should_fire": {"true" if test["should_fire"] else "false"}}}'
        for test in draft["tests"]
    )
    return f'{{"label": {json_text(draft["label"])}, "tests": [{", ".join(tests)}]}}'


def _with_found(draft: Mapping[str, Any], tried: Sequence[TriedText]) -> dict[str, Any]:
    """The draft with the largest activation on each of its tests, None for one that was not tried."""
    found = {text.text: float(abs(text.activations).max(initial=0.0)) for text in tried}
    return {**draft, "tests": [{**test, "activation": found.get(test["text"])} for test in draft["tests"]]}


def _proposed(asked: Asked, drafts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The payload's part that a good answer changes."""
    draft = {"label": asked.value["label"], "tests": list(asked.value["tests"])}
    return {"tests": draft["tests"], "drafts": [*drafts, draft]}


def _joined_hash(*prompts: Prompt) -> str:
    """sha256 of several prompts that made one text."""
    return hashlib.sha256("".join(prompt.hash for prompt in prompts).encode()).hexdigest()
