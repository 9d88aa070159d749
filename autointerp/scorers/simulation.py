"""Says for each token how strongly the latent fires there, from the label alone, and compares (METHODS 3; Bills et al. 2023).

Variant ``logprobs``: one plain text a window with a line for each token, ``"token"<TAB>?``. The judge's probabilities of the digits
0 to 9 in the place of each ?, read from the prompt's own log-probabilities, give the expected digit; times 10/9 it is on the 0 to 10
scale of the literature, which asks for 10 too: as one character is one token in every vocabulary and "10" is not, the digits do here.
Variant ``json``: several windows a call, and whole numbers from 0 to 10 as the answer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from autointerp.evidence import LatentEvidence
from autointerp.explanation import Explanation
from autointerp.failure import Failure
from autointerp.judging.batching import Asked, ask_all, deal
from autointerp.judging.natural_judge import NaturalJudge, unjudged
from autointerp.judging.outcome import missing_label
from autointerp.judging.supposed import SupposedLabel
from autointerp.llm.answers import read_json
from autointerp.llm.asking import LLM, NO_LLMS, BadAnswer, LLMNeed, LLMs
from autointerp.llm.prompt_tokens import ends_with, holders
from autointerp.llm.protocol import Capability, Completion, CompletionRequest, TokenLogprob
from autointerp.planning.planned import (
    BLOCK_TOKENS,
    ITEM_TOKENS,
    LABEL_KEY_TOKENS,
    LINE_TOKENS,
    PlannedCalls,
    PlanSizes,
    num_calls,
    planned_calls,
)
from autointerp.prompting.prompt import load_prompt
from autointerp.prompting.quoting import json_text, quote_lists
from autointerp.sampling.natural import NaturalSample
from autointerp.sampling.window import ShownWindow
from autointerp.score import Score, ScoreValue, defined
from autointerp.statistics.correlation import document_correlation
from sae_core.hashing import seed_for
from sae_core.token_text import TokenText

Floats = NDArray[np.float64]
ALTERNATIVES = 20
"""Alternatives asked for each prompt token: the most that servers give by default."""
_TOKENS_OF_A_LINE = 1.5
"""Prompt tokens of a line's signs beside its token, about."""
HIGHEST = 10
"""Top of the scale."""
KEPT_STEPS = 100
"""Steps of 1 on that scale in which the expected activations are kept."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """What a judge expects of one window."""

    expected: Floats
    """[T'] activation on the scale 0 to 10."""
    digit_mass: float | None = None
    """Mean probability of all digits together, where they were read from log-probabilities: the rest went elsewhere."""


class SimulationScorer(NaturalJudge):
    """Correlation of simulated and true activations over the tokens of windows as they come."""

    CHANCE: ClassVar[float | None] = 0.0

    kind: Literal["simulation"] = "simulation"
    """Name in the config file."""
    endpoint: str = ""
    """Name of the judge's endpoint; "" for the first one."""
    variant: Literal["logprobs", "json"] = "logprobs"
    """Expected values from prompt log-probabilities, or numbers written as JSON, for servers without such."""
    per_call: int = Field(default=5, ge=1)
    """Windows in one call of the ``json`` variant."""

    def llm_needs(self) -> list[LLMNeed]:
        """One endpoint, with prompt log-probabilities unless the JSON variant is chosen."""
        if self.variant == "json":
            return [LLMNeed(self.endpoint, prompts=("simulation_json",))]
        return [
            LLMNeed(
                self.endpoint,
                frozenset({Capability.PROMPT_LOGPROBS}),
                'set variant = "json" for the scorer "simulation", whose numbers are not comparable with this variant\'s',
                ("simulation",),
            )
        ]

    def planned(self, sizes: PlanSizes) -> list[PlannedCalls]:
        """A call a window, or a call for several as JSON."""
        windows = self.firing + self.silent
        if self.variant == "logprobs":
            lines = sizes.window_tokens + _TOKENS_OF_A_LINE * sizes.window_length
            prompt, filled = load_prompt("simulation"), sizes.label_tokens + lines
            return [
                planned_calls(prompt, self.kind, self.endpoint, calls=windows, filled=filled, answer=0, most_answer=1)
            ]
        calls = num_calls(windows, 1, self.per_call)
        each = windows / calls
        of_window = sizes.window_tokens + sizes.window_length + 2 * LINE_TOKENS
        call = planned_calls(
            load_prompt("simulation_json"),
            self.kind,
            self.endpoint,
            calls=calls,
            filled=sizes.label_tokens + BLOCK_TOKENS + each * of_window,
            answer=each * (ITEM_TOKENS * sizes.window_length + LABEL_KEY_TOKENS),
            most_answer=math.ceil(each) * (5 * sizes.window_length + 20) + 40,
        )
        return [call]

    async def score(self, explanation: Explanation | None, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Score:
        """Simulates one label on the scored side.

        Failures: ``no_explanation``, ``dead``, ``too_few_windows``, or the judge's own where all windows of a kind failed. A
        judge that expects the same everywhere is ``simulation_constant``, without a score.
        """
        missing = missing_label(self.kind, evidence.latent, explanation)
        if explanation is None or missing is not None:
            assert missing is not None
            return missing
        sample = self.draw(evidence)
        least_silent = self.min_windows if sample.rate < 1 else 0
        if (short := self.shortage(sample, explanation, evidence, least_silent)) is not None:
            return short
        llm, pieces = llms.of(self.endpoint, self.kind), evidence.store.pieces
        found: list[Simulated | Failure]
        asked: Asked[Any]
        if self.variant == "logprobs":
            found, asked = await _by_logprobs(llm, explanation.text, sample.windows, pieces)
        else:
            rng = np.random.default_rng(seed_for(self.seed, "simulation calls", evidence.latent))
            calls = deal([[window] for window in sample.windows], self.per_call, rng)
            found, asked = await _as_json(llm, explanation.text, sample.windows, pieces, calls)
        score = self._score(explanation, evidence, sample, found, self.spent(asked, llm.model))
        return score.model_copy(update={"verdicts": _kept(sample, found, self._signed_peak(evidence))})

    def scores_if(self, labels: Sequence[SupposedLabel], evidence: LatentEvidence) -> list[Score] | None:
        """See the base class.

        Where a label holds rightly it foretells the activations as they are, and where it holds wrongly the median peak of the
        sample's activating windows at one random token.
        """
        sample = self.draw(evidence)
        least_silent = self.min_windows if sample.rate < 1 else 0
        scores = []
        for label in labels:
            explanation = label.explanation
            short = self.shortage(sample, explanation, evidence, least_silent)
            scores.append(
                short or self._score(explanation, evidence, sample, _foretold(label, sample, self._peak(evidence)), {})
            )
        return scores

    def _score(
        self,
        explanation: Explanation,
        evidence: LatentEvidence,
        sample: NaturalSample,
        found: Sequence[Simulated | Failure],
        spent: dict[str, ScoreValue],
    ) -> Score:
        """The score of what is expected of each of the sample's windows."""
        judged = [(w, one) for w, one in zip(sample.windows, found, strict=True) if isinstance(one, Simulated)]
        windows = [window for window, _ in judged]
        values = self.counted(sample, found) | spent
        values |= {"simulation_variant": self.variant}
        fires = {window.fires for window in windows}
        failure = None
        if True not in fires or (sample.silent and False not in fires):
            failure = unjudged(found, windows)
        else:
            values |= self._compared(sample, judged, evidence)
        return Score(
            latent=evidence.latent,
            scorer=self.kind,
            explainer=explanation.explainer,
            values=defined(values),
            failure=failure,
        )

    @staticmethod
    def _peak(evidence: LatentEvidence) -> float:
        """Largest activation of the latent in the corpus, by magnitude."""
        return abs(SimulationScorer._signed_peak(evidence))

    @staticmethod
    def _signed_peak(evidence: LatentEvidence) -> float:
        """The same with its sign."""
        peaks = evidence.store.statistics.max_activation[:, evidence.latent]
        return float(peaks[int(np.argmax(np.abs(peaks)))])

    def _compared(
        self, sample: NaturalSample, judged: Sequence[tuple[ShownWindow, Simulated]], evidence: LatentEvidence
    ) -> dict[str, ScoreValue]:
        """Correlation and OpenAI's formulas, each token weighted to the natural rate of its window."""
        windows = [window for window, _ in judged]
        lengths = [len(window.token_ids) for window in windows]
        weight = np.repeat(sample.weights(windows), lengths)
        document = np.repeat([window.document for window in windows], lengths)
        expected = np.concatenate([one.expected for _, one in judged])
        true = np.abs(np.concatenate([window.activations for window in windows])).astype(np.float64)
        masses = [one.digit_mass for _, one in judged if one.digit_mass is not None]
        _, of_document = np.unique(document, return_inverse=True)

        def summed(values: Floats) -> Floats:
            return np.bincount(of_document, weights=weight * values).astype(np.float64)

        correlation = document_correlation(
            summed(np.ones_like(true)),
            summed(expected),
            summed(true),
            summed(expected**2),
            summed(true**2),
            summed(expected * true),
            np.random.default_rng(seed_for(self.seed, "simulation interval", evidence.latent)),
        )
        scaled = np.minimum(HIGHEST, np.floor(HIGHEST * true / max(self._peak(evidence), float(true.max()))))
        return {
            "simulation_score": correlation.value,
            "simulation_low": correlation.low,
            "simulation_high": correlation.high,
            "simulation_constant": int(correlation.constant),
            "simulation_1_minus_mse": _one_minus(weight, (scaled - expected) ** 2, scaled**2),
            "simulation_1_minus_abs": _one_minus(weight, np.abs(scaled - expected), scaled),
            "simulation_digit_mass": float(np.mean(masses)) if masses else None,
        }


def _foretold(label: SupposedLabel, sample: NaturalSample, peak: float) -> list[Simulated | Failure]:
    """What a supposed label foretells of each of the sample's windows; ``peak`` is the top of the scale."""
    peaks = [window.max_activation for window in sample.firing]
    typical = float(np.median(peaks))
    top = max(peak, *peaks)
    found: list[Simulated | Failure] = []
    for window, holds in zip(sample.windows, label.holds(sample.windows), strict=True):
        expected = np.abs(window.activations).astype(np.float64) if holds else np.zeros(len(window.token_ids))
        if holds and not window.fires:
            # of another number than the one that says whether it holds: among windows in which it does that one is small
            drawn = float(label.uniform(window.position, window.context))
            expected[int(drawn * len(expected))] = typical
        found.append(Simulated(HIGHEST * expected / top))
    return found


def _kept(sample: NaturalSample, found: Sequence[Simulated | Failure], peak: float) -> dict[str, Any] | None:
    """What is expected of the windows that were judged, as JSON for ``Score.verdicts``; None where none was.

    ``windows`` their places, ``fires`` 1 or 0 of each, ``expected`` in steps of 1 / ``KEPT_STEPS`` on the scale 0 to 10, of
    which 10 is ``peak``, the latent's activation of the largest magnitude.
    """
    judged = [(w, one) for w, one in zip(sample.windows, found, strict=True) if isinstance(one, Simulated)]
    if not judged:
        return None
    return {
        "windows": [window.id for window, _ in judged],
        "fires": [int(window.fires) for window, _ in judged],
        "expected": [np.rint(one.expected * KEPT_STEPS).astype(int).tolist() for _, one in judged],
        "peak": peak,
    }


def _one_minus(weight: Floats, error: Floats, size: Floats) -> float | None:
    """``1 - mean(error) / mean(size)``, weighted; None where there is nothing to explain."""
    whole = float(weight @ size)
    return 1 - float(weight @ error) / whole if whole else None


async def _by_logprobs(
    llm: LLM, label: str, windows: Sequence[ShownWindow], pieces: TokenText
) -> tuple[list[Simulated | Failure], Asked[Simulated]]:
    """One call a window: what stands in a later window must not change what is expected of an earlier one."""
    prompt = load_prompt("simulation")
    requests = []
    for window in windows:
        tokens = pieces.pieces(int(i) for i in window.token_ids)
        lines = "\n".join(f"{json_text(token)}\t?" for token in tokens)
        text = prompt.text({"label": json_text(label), "tokens": lines})
        request = CompletionRequest(text=text, max_tokens=0, prompt_logprobs=ALTERNATIVES, prompt_hash=prompt.hash)
        requests.append((request, _digit_reader(text, len(tokens))))
    asked = await ask_all(llm, requests)
    return list(asked.results), asked


def _digit_reader(text: str, num_tokens: int) -> Callable[[Completion], Simulated]:
    def read(completion: Completion) -> Simulated:
        entries = completion.prompt_logprobs
        # a tab in a token of the corpus is written as an escape, so every tab ends a line's token
        tabs = holders(entries, text, "\t")[-num_tokens:]
        expected, mass = np.empty(num_tokens), np.empty(num_tokens)
        for number, index in enumerate(tabs):
            entry = entries[index + 1] if index + 1 < len(entries) else None
            if entry is None or not ends_with(entries[index], "\t"):
                raise BadAnswer(f"the server's tokens part token {number + 1} and what stands behind it in another way")
            expected[number], mass[number] = _expected_digit(entry, number + 1)
        return Simulated(expected, float(mass.mean()))

    return read


def _expected_digit(entry: TokenLogprob, number: int) -> tuple[float, float]:
    """``(expected digit times 10/9, probability of all digits)`` at one token. Raises BadAnswer where no digit is seen."""
    probability = np.zeros(10)
    for token, logprob in ({entry.token: entry.logprob} | entry.top).items():
        digit = token.strip().lstrip("▁")
        if len(digit) == 1 and "0" <= digit <= "9":
            probability[int(digit)] += math.exp(logprob)
    mass = float(probability.sum())
    if not mass:
        raise BadAnswer(f"no digit is among the {len(entry.top)} alternatives at token {number}")
    return float(probability @ np.arange(10)) / mass * HIGHEST / 9, mass


async def _as_json(
    llm: LLM, label: str, windows: Sequence[ShownWindow], pieces: TokenText, calls: Sequence[Sequence[ShownWindow]]
) -> tuple[list[Simulated | Failure], Asked[list[Simulated]]]:
    """Several of ``windows`` a call, as ``calls`` deals them; a call that fails takes its windows with it."""
    prompt = load_prompt("simulation_json")
    requests = []
    for call in calls:
        lists = {f"w{n}": pieces.pieces(int(i) for i in window.token_ids) for n, window in enumerate(call, start=1)}
        counts = {name: len(tokens) for name, tokens in lists.items()}
        values = {
            "label": json_text(label),
            "windows": quote_lists(lists).block,
            "counts": ", ".join(f"{count} for {name}" for name, count in counts.items()),
            "properties": json.dumps({name: _numbers(count) for name, count in counts.items()}),
            "names": json.dumps(list(counts)),
        }
        request = prompt.request(values, max_tokens=5 * sum(counts.values()) + 20 * len(call) + 40)
        requests.append((request, _number_reader(request, list(counts))))
    asked = await ask_all(llm, requests)
    found: dict[ShownWindow, Simulated | Failure] = {}
    for call, result in zip(calls, asked.results, strict=True):
        found |= dict.fromkeys(call, result) if isinstance(result, Failure) else dict(zip(call, result, strict=True))
    return [found[window] for window in windows], asked


def _numbers(count: int) -> dict[str, object]:
    """Schema of the numbers of one window."""
    items = {"type": "integer", "enum": list(range(HIGHEST + 1))}
    return {"type": "array", "items": items, "minItems": count, "maxItems": count}


def _number_reader(request: CompletionRequest, names: Sequence[str]) -> Callable[[Completion], list[Simulated]]:
    schema = request.json_schema
    assert schema is not None, "the prompt has an answer schema"

    def read(completion: Completion) -> list[Simulated]:
        answer = read_json(completion, schema)
        return [Simulated(np.asarray(answer[name], dtype=np.float64)) for name in names]

    return read
