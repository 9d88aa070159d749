"""Surprisal: log-probabilities of a window's own tokens behind two labels, against sums made by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from autointerp.components import parse_component
from autointerp.failure import Failure, FailureKind
from autointerp.llm.asking import AskFailed
from autointerp.llm.protocol import Capability, Completion, CompletionRequest
from autointerp.llm.scripted import ScriptedLLMs
from autointerp.prompting.quoting import window_text
from autointerp.sampling.natural import natural_sample
from autointerp.score import Score
from autointerp.scorers.surprisal import SurprisalScorer
from autointerp.statistics.ranking import document_auroc
from sae_core.errors import InputError, NonFiniteError
from tests.autointerp.judged_world import evidence_of, label, make_store, prompt_completion, text_of, tokens_of

STORE = make_store()
NEUTRAL = "any text at all"
Logprob = Callable[[bool, str], float]
"""Of a token, given whether the label stands before it."""


def base(token: str) -> float:
    """Log-probability of a token to a judge that knows no label."""
    return -1.0 - (sum(map(ord, token)) % 13) / 3


def informed(labelled: bool, token: str) -> float:
    """A judge to whom the label makes cats likely, dogs a little, and by mistake the sun."""
    return base(token) + labelled * {"cat": 0.9, "dog": 0.4, "sun": 0.6}.get(token, (sum(map(ord, token)) % 7 - 3) / 10)


def server(logprob: Logprob, bos: bool = True) -> Callable[[CompletionRequest], Completion]:
    def answer(request: CompletionRequest) -> Completion:
        text = text_of(request)
        assert (request.prompt_logprobs, request.max_tokens) == (1, 0)
        labelled = f'"{NEUTRAL}"' not in text
        # what stands before the window is of no account, however much it differs
        begins = len(tokens_of(text[: text.index("\nText:\n") + 7]))

        def of(index: int, tokens: list[str]) -> float:
            return logprob(labelled, tokens[index]) if index >= begins else -50.0 * labelled - 1

        return prompt_completion(text, of, bos=bos)

    return answer


def run(answer: Callable[[CompletionRequest], Completion], **fields: int) -> tuple[Score, ScriptedLLMs]:
    llms = ScriptedLLMs(answer, frozenset({Capability.PROMPT_LOGPROBS}))
    return asyncio.run(SurprisalScorer(**fields).score(label(), evidence_of(STORE), llms)), llms  # type: ignore[arg-type]


def expected_gains(firing: int, silent: int) -> tuple[list[float], list[bool]]:
    """Sums over the window's own tokens, those of a newline at its start left out: a server's token holds it and the prompt's."""
    gains, truth = [], []
    for window in natural_sample(evidence_of(STORE), firing, silent, 0).windows:
        own = tokens_of(window_text(window, STORE.pieces).rstrip().lstrip("\n"))
        # in the order of the sums in question, so that ties are ties
        gains.append(sum(informed(True, token) for token in own) - sum(informed(False, token) for token in own))
        truth.append(window.fires)
    return gains, truth


@pytest.mark.parametrize("bos", [True, False])
def test_auroc_of_the_gains_is_the_one_worked_out_by_hand(bos: bool) -> None:
    score, llms = run(server(informed, bos), firing=40, silent=40)
    gains, truth = np.array(expected_gains(40, 40)[0]), np.array(expected_gains(40, 40)[1])
    expected = mannwhitneyu(gains[truth], gains[~truth]).statistic / (truth.sum() * (~truth).sum())
    assert expected == pytest.approx(0.8, abs=0.15)
    assert score.values["surprisal_score"] == pytest.approx(expected)
    assert score.values["surprisal_low"] < expected <= score.values["surprisal_high"]  # type: ignore[operator]
    assert score.values["surprisal_judged"] == 80
    assert score.values["surprisal_calls"] == 160
    assert score.values["surprisal_cost_usd"] == pytest.approx(80.0)
    assert llms.purposes == [("", "surprisal")]


def test_a_judge_to_whom_the_label_says_nothing_gets_one_half() -> None:
    score, _ = run(server(lambda labelled, token: base(token)), firing=20, silent=20)
    assert score.values["surprisal_score"] == 0.5


def test_the_neutral_calls_are_the_same_for_every_label() -> None:
    _, first = run(server(informed))
    llms = ScriptedLLMs(server(informed))
    asyncio.run(SurprisalScorer().score(label("dogs"), evidence_of(STORE), llms))
    texts = [{request.text for request in asked if NEUTRAL in text_of(request)} for asked in (first.asked, llms.asked)]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 20


def test_failures_are_counted_and_typed() -> None:
    good = server(informed)
    calls = []

    def some(request: CompletionRequest) -> Completion:
        calls.append(request)
        if len(calls) in (3, 44):
            raise AskFailed(Failure(kind=FailureKind.TIMEOUT, message="no answer in time"))
        return good(request)

    score, _ = run(some, firing=20, silent=20)
    assert score.failure is None
    assert (score.values["surprisal_judged"], score.values["surprisal_failed"]) == (38, 2)

    def cut_otherwise(request: CompletionRequest) -> Completion:
        reply = good(request)
        last = reply.prompt_logprobs[-1]
        assert last is not None
        if NEUTRAL in text_of(request):
            return reply
        return reply.model_copy(
            update={
                "prompt_logprobs": (*reply.prompt_logprobs[:-1], last.model_copy(update={"token": last.token + "!"}))
            }
        )

    score, _ = run(cut_otherwise)
    assert score.failure is not None
    assert score.failure.kind is FailureKind.UNPARSEABLE
    assert "cannot be compared" in score.failure.message
    assert score.values["surprisal_score"] is None

    def short(request: CompletionRequest) -> Completion:
        return good(request).model_copy(update={"prompt_logprobs": good(request).prompt_logprobs[:4]})

    score, _ = run(short)
    assert score.failure is not None
    assert score.failure.kind is FailureKind.UNPARSEABLE


def test_it_needs_prompt_log_probabilities_and_a_label() -> None:
    (need,) = SurprisalScorer().llm_needs()
    assert need.capabilities == {Capability.PROMPT_LOGPROBS}
    assert "vLLM" in need.alternative
    llms = ScriptedLLMs(server(informed))
    for latent, given, kind in (
        (0, None, FailureKind.NO_EXPLANATION),
        (2, label(latent=2), FailureKind.DEAD),
        (3, label(latent=3), FailureKind.TOO_FEW_WINDOWS),  # it is silent nowhere
    ):
        score = asyncio.run(SurprisalScorer().score(given, evidence_of(STORE, latent), llms))
        assert score.failure is not None
        assert score.failure.kind is kind
    assert not llms.asked
    assert isinstance(parse_component("scorers", {"kind": "surprisal"}), SurprisalScorer)


def test_intervals_over_documents_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        document = np.repeat(np.arange(40), 3)
        shift = rng.normal(size=40)[document]
        truth = rng.random(120) < 0.5
        values = truth * 1.0 + shift + rng.normal(size=120)
        found = document_auroc(values, truth, document, rng, resamples=200)
        assert found.auroc is not None
        assert found.low is not None
        assert found.high is not None
        # two normals of variance 2, one unit apart: P(x > y) = Phi(1 / 2)
        covered += found.low <= 0.6915 <= found.high
    assert covered >= 180


def test_a_ranking_is_mann_whitney_and_says_what_it_cannot() -> None:
    rng = np.random.default_rng(1)
    values, truth = rng.integers(0, 5, 60).astype(float), rng.random(60) < 0.4
    found = document_auroc(values, truth, np.arange(60), rng)
    expected = mannwhitneyu(values[truth], values[~truth]).statistic / (truth.sum() * (~truth).sum())
    assert found.auroc == pytest.approx(expected)
    assert document_auroc([1.0], [True], [0], rng).auroc is None
    one = document_auroc([1.0, 0.0], [True, False], [7, 7], rng)
    assert (one.auroc, one.low, one.high) == (1.0, None, None)
    with pytest.raises(NonFiniteError):
        document_auroc([np.nan, 0.0], [True, False], [0, 1], rng)
    with pytest.raises(InputError):
        document_auroc([1.0, 0.0], [True], [0, 1], rng)
