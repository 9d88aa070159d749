"""What explainers that ask a language model have in common: its settings, one call for a label, and how the call can fail."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from autointerp.evidence import LatentEvidence
from autointerp.explainers.base import Explainer
from autointerp.explainers.label_rules import BrokenRule, LabelRules
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.llm.answers import read_json
from autointerp.llm.asking import LLM, AskFailed, LLMNeed
from autointerp.llm.protocol import Capability, Completion, CompletionRequest, Usage
from autointerp.planning.planned import LABEL_KEY_TOKENS, PlannedCalls, PlanSizes, planned_calls
from autointerp.prompting.prompt import load_prompt
from autointerp.sampling.window import ShownWindow
from sae_core.records import Side


@dataclass(frozen=True, slots=True)
class Asked:
    """What became of one call."""

    value: Mapping[str, Any]
    """The answer's JSON, its ``label`` by the rules; empty with a failure."""
    failure: Failure | None
    """Why there is no answer."""
    usage: Usage
    """Of the call, repairs among it."""
    model: str
    """The model that answered; with a failure, the one that was asked."""


class LLMExplainer(Explainer, ABC):
    """An explainer that asks a language model."""

    endpoint: str = ""
    """Name of the endpoint that is asked; "" for the first one."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """Sampling temperature."""
    sample: int = Field(default=0, ge=0)
    """Ordinal of the draw, so that several drafts of one prompt differ."""
    max_tokens: int = Field(default=120, ge=16)
    """Most tokens of the answer; models that think before they answer need more."""

    @property
    def prompt_files(self) -> tuple[str, ...]:
        """Prompt files that are sent."""
        return (self.kind,)

    def llm_needs(self) -> list[LLMNeed]:
        """Any endpoint will do: answers are checked against the schema, whether or not the server is bound by it."""
        return [LLMNeed(self.endpoint, prompts=self.prompt_files)]

    def _planned(self, prompt: str, sizes: PlanSizes, filled: float) -> list[PlannedCalls]:
        """One call with a prompt file, whose placeholders take ``filled`` tokens, answered with a label."""
        call = planned_calls(
            load_prompt(prompt),
            self.kind,
            self.endpoint,
            calls=1,
            filled=filled,
            answer=sizes.label_tokens + LABEL_KEY_TOKENS,
            most_answer=self.max_tokens,
        )
        return [call]

    def _parameters(self, llm: LLM) -> dict[str, Any]:
        """How the answer is drawn; draws at a temperature have seeds, where the server has such."""
        seeded = self.temperature > 0 and Capability.SEED in llm.capabilities
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "sample": self.sample,
            "seed": self.sample if seeded else None,
        }

    def _unexplained(self, evidence: LatentEvidence, kind: FailureKind, message: str) -> Explanation:
        """No explanation, and nothing was asked."""
        failure = Failure(kind=kind, message=message)
        return Explanation(latent=evidence.latent, explainer=self.kind, side=self.side, failure=failure)

    def _dead(self, evidence: LatentEvidence) -> Explanation:
        tokens = int(evidence.store.statistics.num_tokens.sum())
        return self._unexplained(evidence, FailureKind.DEAD, f"never fires in {tokens:,} tokens")

    def _too_few(self, evidence: LatentEvidence) -> Explanation:
        counts = ", ".join(f"{evidence.num_windows_firing(side)} on {side.name.lower()}" for side in Side)
        message = f"fires in too few windows: {counts}, none of them kept to be shown on the explain side"
        return self._unexplained(evidence, FailureKind.TOO_FEW_WINDOWS, message)

    def _explained(
        self,
        evidence: LatentEvidence,
        asked: Asked,
        prompt_hash: str,
        windows: Sequence[ShownWindow] = (),
        payload: Mapping[str, Any] | None = None,
    ) -> Explanation:
        """The explanation, or the failure, with where it comes from and what it took."""
        return Explanation(
            latent=evidence.latent,
            explainer=self.kind,
            side=self.side,
            text=asked.value.get("label", ""),
            payload=dict(payload or {}),
            exemplar_ids=tuple(window.id for window in windows),
            prompt_hash=prompt_hash,
            model=asked.model,
            input_tokens=asked.usage.input_tokens,
            output_tokens=asked.usage.output_tokens,
            cost_usd=asked.usage.cost_usd or 0.0,
            failure=asked.failure,
        )


async def ask_for_label(
    llm: LLM,
    request: CompletionRequest,
    rules: LabelRules,
    check: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda value: value,
) -> Asked:
    """Ask for an answer whose ``label`` keeps the rules; ``check`` reads what else stands in it, and may raise BadAnswer.

    The model may mend a label that breaks a rule; one that it does not mend is the failure ``bad_label``.
    """
    schema = request.json_schema
    if schema is None:
        raise AssertionError("a label is asked for with a schema")
    broken: list[str] = []

    def read(completion: Completion) -> Mapping[str, Any]:
        broken.clear()
        value: dict[str, Any] = read_json(completion, schema)
        try:
            label = rules.read(value["label"])
        except BrokenRule as error:
            broken.append(str(error))
            raise
        return check({**value, "label": label})

    try:
        answer = await llm.ask(request, read)
    except AskFailed as error:
        failure = error.failure
        if broken and failure.kind is FailureKind.UNPARSEABLE:
            failure = Failure(kind=FailureKind.BAD_LABEL, message=broken[0])
        return Asked({}, failure, error.usage, llm.model)
    return Asked(answer.value, None, answer.usage, answer.completion.model or llm.model)
