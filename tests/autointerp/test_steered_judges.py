"""Label against effect: judges of texts written under steering, against planted words and figures worked out by hand."""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta, kstest

from autointerp.components import parse_component
from autointerp.config import RunConfig
from autointerp.evidence import LensRequest, SteeredAnswersRequest, SteeredTextsRequest
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.judging.instructions import read_instructions
from autointerp.llm.asking import AskFailed
from autointerp.llm.protocol import Capability, Completion, CompletionRequest
from autointerp.llm.scripted import ScriptedLLMs
from autointerp.pipeline.steered_texts import check_steered_texts
from autointerp.planning.plan import plan_run
from autointerp.score import Score
from autointerp.scorers.base import Scorer
from autointerp.scorers.comparing import can_compare
from autointerp.scorers.intervention import InterventionScorer
from autointerp.scorers.steered_choice import SteeredChoiceScorer
from autointerp.scorers.steered_rating import SteeredRatingScorer, halves
from autointerp.scorers.steered_surprisal import SteeredSurprisalScorer, comparable_labels
from autointerp.statistics.label_effect import chosen_strength, harmonic_mean, label_effect
from sae_core.errors import ConfigError, InputError
from sae_core.intervention.text_evidence import CLEAN, Collapse, SteeredTexts, TextState
from tests.autointerp.judged_world import prompt_completion
from tests.autointerp.steered_world import (
    NEIGHBOURS,
    NUM_LATENTS,
    STORE,
    evidence,
    knowing,
    label,
    lens,
    words_of,
    written,
)

Answer = Callable[[CompletionRequest], str | Completion]
LATENT, WRONG = 7, 80
BLOCK = re.compile(r"<(DATA-[0-9a-f]{8})>\n(.*?)\n</\1>", re.DOTALL)
LINE = re.compile(r'^\d+ ("(?:[^"\\]|\\.)*")', re.MULTILINE)


def run(
    scorer: Scorer, explanation: Explanation, texts: SteeredTexts, answer: Answer, latent: int = LATENT
) -> tuple[Score, ScriptedLLMs]:
    llms = ScriptedLLMs(answer, frozenset(Capability))
    return asyncio.run(scorer.score(explanation, evidence(texts, latent), llms)), llms


def numbers(score: Score, *names: str) -> list[float]:
    values = [score.values[name] for name in names]
    assert all(isinstance(value, (int, float)) for value in values), values
    return [float(value) for value in values]  # type: ignore[arg-type]


def asked_label(request: CompletionRequest) -> set[int]:
    """Latents whose words stand in the label that a chat request is about."""
    said = re.search(r'^Label: (".*")$', request.messages[-1].content, re.MULTILINE)
    assert said is not None
    return words_of(said.group(1))


def lines_of(request: CompletionRequest) -> list[list[str]]:
    return [
        [json.loads(line) for line in LINE.findall(block)] for _, block in BLOCK.findall(request.messages[-1].content)
    ]


# --- the statistic


def test_s_adj_is_the_one_worked_out_by_hand() -> None:
    own, others = [0.4, 0.8, 0.3], [[0.1, 0.2, 0.0], [0.2, 0.2, 0.2]]
    found = label_effect(own, others)
    assert found.score == pytest.approx(0.5)
    assert found.adjusted == pytest.approx(0.5 - 0.15)
    differences, means = np.array([0.25, 0.6, 0.2]), np.array([0.1, 0.2])
    assert found.standard_error == pytest.approx(np.sqrt(differences.var(ddof=1) / 3 + means.var(ddof=1) / 2))
    assert found.z == pytest.approx(0.35 / means.std(ddof=1))
    assert found.above == 1.0
    assert label_effect([0.1, 0.2], [[0.1, 0.2], [0.0, 0.0], [0.5, 0.5], [0.15, 0.15]]).above == pytest.approx(0.5)
    with pytest.raises(InputError):
        label_effect([0.1], [[0.1], [0.2]])


def test_its_intervals_cover_with_heavy_tails_too() -> None:
    """Texts, labels and what is left vary, by Student's t of 3 degrees; all labels share the texts."""
    rng, covered, total = np.random.default_rng(0), 0, 1000
    for _ in range(total):
        text, of_label = rng.standard_t(3, size=30) * 0.3, rng.standard_t(3, size=64) * 0.2
        others = text + of_label[:, None] + rng.standard_t(3, size=(64, 30)) * 0.5
        found = label_effect(text + 0.7 + rng.standard_t(3, size=30) * 0.5, others)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.7 <= found.high
    assert 0.93 <= covered / total <= 0.98


def test_harmonic_means_by_hand() -> None:
    assert harmonic_mean([2, 2, 2]) == 2
    assert harmonic_mean([1, 2, 2]) == pytest.approx(3 / (1 + 0.5 + 0.5))
    assert harmonic_mean([2, 0, 2]) == 0


def test_the_strength_is_not_reported_on_what_chose_it() -> None:
    """Pure noise: the best of five on its own half stands well above what it has on the other one."""
    rng = np.random.default_rng(1)
    chooses = np.arange(10) < 5
    reported, same_half = [], []
    for _ in range(400):
        table = rng.choice([0.0, 1.0, 2.0], size=(5, 10))
        found = chosen_strength(table, chooses)
        assert found is not None
        assert found.value == pytest.approx(table[found.strength, 5:].mean())
        reported.append(found.value)
        same_half.append(table[found.strength, :5].mean())
    assert np.mean(reported) == pytest.approx(1.0, abs=0.05)
    assert np.mean(same_half) > 1.3
    assert chosen_strength([[np.nan, 1.0]], np.array([True, False])) is None
    tied = chosen_strength([[1.0, 0.0], [1.0, 2.0]], np.array([True, False]))
    assert tied is not None
    assert tied.strength == 0


# --- the collapse guard


def test_the_guard_sees_what_is_broken_and_leaves_the_rest() -> None:
    texts = written(prompts=4, broken=[(1, 1.0)])
    tokens, logprobs = texts.tokens.copy(), texts.logprob_clean.copy()
    own = [int(row) for row in texts.rows_of(LATENT) if texts.steered[row] == LATENT]
    # e to the mean surprisal: 20 times that of the clean texts is 3 nats (2.996) a token above their 3
    logprobs[own[0]] = -5.98
    logprobs[own[2]] = -6.01
    tokens[own[3]] = -1
    logprobs[own[3]] = 0
    found = replace(texts, tokens=tokens, logprob_clean=logprobs).collapse(20)
    assert [Collapse(int(found[row])) for row in own] == [
        Collapse.NONE,
        Collapse.REPEATS,
        Collapse.IMPROBABLE,
        Collapse.EMPTY,
    ]
    rest = np.setdiff1d(np.arange(len(found)), own)
    assert not found[rest].any()


def test_repetition_is_of_pairs_not_of_words() -> None:
    texts = written(prompts=2, length=8)
    tokens = texts.tokens.copy()
    tokens[0] = [1, 2, 1, 2, 1, 2, 1, 2]
    tokens[1] = [1, 2, 3, 1, 4, 5, 1, 6]
    tokens[2] = [1, 1, 1, -1, -1, -1, -1, -1]
    found = replace(texts, tokens=tokens).collapse(20)
    assert found[:3].tolist() == [Collapse.REPEATS, Collapse.NONE, Collapse.NONE]


# --- surprisal


def test_the_right_label_gains_and_a_wrong_one_does_not() -> None:
    texts = written(prompts=15, effects={1.0: 0.4})
    right, llms = run(SteeredSurprisalScorer(), label(LATENT), texts, knowing)
    assert right.failure is None
    assert len(llms.asked) == 2 * 15 * 65
    own = [int(row) for row in texts.rows_of(LATENT) if texts.steered[row] == LATENT]
    hits = [len(re.findall(r"w7x", STORE.pieces.text(texts.text_ids(row)))) for row in own]
    # the rest of what a text does to labels is the same for all of them, and other latents' words do not stand in it
    score, low, high, above = numbers(right, *(f"steered_surprisal_{n}" for n in ("score", "low", "high", "above")))
    assert score == pytest.approx(0.5 * np.mean(hits), rel=1e-6)
    assert low < score < high
    assert low > 0.5
    assert above == 1.0
    assert right.values["steered_surprisal_collapsed"] == 0
    assert right.values["steered_surprisal_labels"] == 64
    wrong, _ = run(SteeredSurprisalScorer(other_labels=16), label(WRONG), texts, knowing)
    assert numbers(wrong, "steered_surprisal_score")[0] == pytest.approx(0, abs=1e-6)
    assert numbers(wrong, "steered_surprisal_above")[0] == pytest.approx(0.5, abs=0.02)


@pytest.mark.long
def test_p_is_uniform_where_labels_are_any_others() -> None:
    """A judge to whom each label gains by chance: the share of others below it is uniform, whatever the texts do."""
    shares = []
    texts = written(prompts=3, effects={1.0: 1.0})
    for number in range(30):

        def chance(request: CompletionRequest, number: int = number) -> Completion:
            whole = request.text or ""
            steered = 'Continuation: " w' in whole
            seed = zlib.crc32(f"{number} {whole.rpartition(chr(10))[2]}".encode())
            shift = steered * float(np.random.default_rng(seed).normal()) - 5
            return prompt_completion(whole, lambda index, tokens: shift)

        scorer = SteeredSurprisalScorer(other_labels=9, texts=3, min_texts=3)
        score, _ = run(scorer, label(20 + number), texts, chance)
        shares += numbers(score, "steered_surprisal_above")
    assert kstest(shares, "uniform").pvalue > 0.01
    assert kstest(shares, "beta", args=(2, 1)).pvalue < 0.01, "the test can tell"


def test_it_compares_with_like_labels_of_no_neighbour_by_the_same_explainer() -> None:
    given = evidence(written())
    others = [*given.other_labels, label(30, "output"), label(31, explainer="another")]
    longer = Explanation(latent=50, explainer="hand", text="w50x0 " * 60)
    twin = label(LATENT).model_copy(update={"latent": 33})
    found = comparable_labels(label(LATENT), replace(given, other_labels=[*others, longer, twin]), 200)
    near = {LATENT + k for k in range(1, NEIGHBOURS + 1)}
    said = [words_of(text) for text in found]
    assert set().union(*said) == set(range(NUM_LATENTS)) - near - {LATENT}
    assert found[-1].startswith("w50x0")  # the unlike one comes last
    assert len(found) == len(set(found)) == NUM_LATENTS - 1 - NEIGHBOURS + 1


def test_blank_labels_are_compared_with_nothing() -> None:
    """Labels from elsewhere may be spaces alone: no length is in proportion to theirs."""
    given = evidence(written())
    blank = [label(latent).model_copy(update={"text": "  "}) for latent in (60, 61)]
    rest = [other for other in given.other_labels if other.latent not in (60, 61)]
    found = comparable_labels(label(LATENT), replace(given, other_labels=[*blank, *rest]), 200)
    assert found == comparable_labels(label(LATENT), replace(given, other_labels=rest), 200)
    assert len(found) > 50
    assert comparable_labels(label(LATENT).model_copy(update={"text": " \t"}), given, 200) == []


def test_too_few_others_and_lost_calls_are_typed() -> None:
    few = SteeredSurprisalScorer(other_labels=200)
    score, llms = run(few, label(LATENT), written(), knowing)
    assert score.failure is not None
    assert score.failure.kind is FailureKind.TOO_FEW_LABELS
    assert "84 labels" in score.failure.message
    assert not llms.asked

    calls: list[CompletionRequest] = []

    def some(request: CompletionRequest) -> Completion:
        calls.append(request)
        if len(calls) % 50 == 0:
            raise AskFailed(Failure(kind=FailureKind.TIMEOUT, message="no answer in time"))
        return knowing(request)

    score, _ = run(SteeredSurprisalScorer(other_labels=8), label(LATENT), written(prompts=15), some)
    assert score.failure is None
    assert numbers(score, "steered_surprisal_failed_timeout")[0] == 2 * 15 * 9 // 50
    assert numbers(score, "steered_surprisal_low")[0] > 0.3

    def none(request: CompletionRequest) -> Completion:
        raise AskFailed(Failure(kind=FailureKind.TIMEOUT, message="no answer in time"))

    score, _ = run(SteeredSurprisalScorer(other_labels=4), label(LATENT), written(), none)
    assert score.failure is not None
    assert score.failure.kind is FailureKind.TIMEOUT
    assert "steered_surprisal_score" not in score.values


def test_collapsed_texts_are_no_effect_and_are_counted() -> None:
    broken = [(prompt, 1.0) for prompt in range(12)]
    score, llms = run(SteeredSurprisalScorer(other_labels=4), label(LATENT), written(broken=broken), knowing)
    assert (score.values["steered_surprisal_collapsed"], score.values["steered_surprisal_texts"]) == (12, 18)
    assert len(llms.asked) == 2 * 18 * 5
    all_but_few = [(prompt, 1.0) for prompt in range(25)]
    for scorer in (SteeredSurprisalScorer(other_labels=4), SteeredChoiceScorer()):
        score, llms = run(scorer, label(LATENT), written(broken=all_but_few), knowing)
        assert score.failure is not None
        assert score.failure.kind is FailureKind.COLLAPSED
        assert "25 are broken" in score.failure.message
        assert not llms.asked
    score, _ = run(SteeredChoiceScorer(), label(LATENT), written(prompts=5), knowing)
    assert score.failure is not None
    assert score.failure.kind is FailureKind.TOO_FEW_TEXTS


# --- choice


def chooses(request: CompletionRequest) -> str:
    """The text with most of the label's words; the first one where none has any."""
    meant = asked_label(request)
    said = []
    for texts in lines_of(request):
        hits = [sum(int(number) in meant for number in re.findall(r"w(\d+)x", text)) for text in texts]
        said.append(int(np.argmax(hits)) + 1)
    return json.dumps({"texts": said})


def test_the_choice_is_made_by_the_label() -> None:
    texts = written(effects={1.0: 0.8})
    right, llms = run(SteeredChoiceScorer(), label(LATENT), texts, chooses)
    assert len(llms.asked) == 6
    found = numbers(right, "steered_choice_score", "steered_choice_low", "steered_choice_high")
    assert found == pytest.approx([1.0, beta.ppf(0.025, 30, 1), 1.0])
    wrong, _ = run(SteeredChoiceScorer(), label(40), texts, chooses)  # one of those that stood beside it
    assert numbers(wrong, "steered_choice_score")[0] == 0


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_blind_judge_is_right_in_a_third_of_the_questions(number: int) -> None:
    def blind(request: CompletionRequest) -> str:
        return json.dumps({"texts": [number] * len(lines_of(request))})

    score, _ = run(SteeredChoiceScorer(), label(LATENT), written(), blind)
    assert numbers(score, "steered_choice_score")[0] == pytest.approx(1 / 3)
    assert score.values["steered_choice_chance"] == SteeredChoiceScorer.CHANCE == pytest.approx(1 / 3)
    assert score.values["steered_choice_tried"] == 30


def test_failed_choices_are_counted() -> None:
    calls: list[int] = []

    def some(request: CompletionRequest) -> str:
        calls.append(1)
        if len(calls) == 2:
            raise AskFailed(Failure(kind=FailureKind.REFUSED, message="no"))
        return chooses(request)

    score, _ = run(SteeredChoiceScorer(), label(LATENT), written(effects={1.0: 0.8}), some)
    assert (score.values["steered_choice_tried"], score.values["steered_choice_failed_refused"]) == (25, 5)


@pytest.mark.parametrize("others", [(), (40,)])
def test_no_question_without_two_others_to_stand_beside_the_latent(others: tuple[int, ...]) -> None:
    """The texts are there and none is broken: what is missing are other latents."""
    score, llms = run(SteeredChoiceScorer(), label(LATENT), written(effects={1.0: 0.8}, others=others), chooses)
    assert score.failure is not None
    assert score.failure.kind is FailureKind.TOO_FEW_LATENTS
    assert score.failure.message.startswith(f"{len(others)} other latents of the sample reach the target")
    assert "2 are needed" in score.failure.message
    assert not llms.asked
    assert score.values.get("steered_choice_collapsed") is None


# --- ratings


def rates(by_target: dict[str, tuple[int, int, int]]) -> Answer:
    """Concept, instruction and fluency by how many of the latent's words a text has: few, some, many."""

    def answer(request: CompletionRequest) -> str:
        (texts,) = lines_of(request)
        given = []
        for text in texts:
            hits = len(re.findall(rf"w{LATENT}x", text))
            given.append(by_target["none" if hits == 0 else "some" if hits <= 8 else "many"])
        if "instruction" in json.dumps(request.json_schema):
            return json.dumps({"instruction": [g[1] for g in given], "fluency": [g[2] for g in given]})
        return json.dumps({"ratings": [g[0] for g in given]})

    return answer


def test_ratings_are_harmonic_means_at_the_strength_that_the_other_half_chose() -> None:
    texts = written(prompts=10, effects={0.1: 0.0, 0.33: 0.25, 1.0: 0.95}, others=(), length=16)
    judge = rates({"none": (0, 2, 2), "some": (1, 2, 2), "many": (2, 1, 1)})
    score, llms = run(SteeredRatingScorer(), label(LATENT), texts, judge)
    assert len(llms.asked) == 2 * 6
    names = [
        f"steered_rating_{name}" for name in ("score", "target", "concept", "instruction", "fluency", "instructions")
    ]
    # weak: 0; middle: 3 / (1 + 1/2 + 1/2) = 1.5; strong: 3 / (1/2 + 1 + 1) = 1.2
    assert numbers(score, *names) == pytest.approx([1.5, 0.33, 1, 2, 2, 5])
    assert score.values["steered_rating_collapsed"] == 0


def test_broken_answers_rate_0_and_are_not_shown() -> None:
    chosen = halves(10, 0)
    lost = int(np.flatnonzero(~chosen)[0])
    texts = written(prompts=10, effects={0.33: 0.25}, others=(), length=16, broken=[(lost, 0.33)])
    judge = rates({"none": (1, 2, 2), "some": (1, 2, 2), "many": (1, 2, 2)})
    score, llms = run(SteeredRatingScorer(), label(LATENT), texts, judge)
    assert numbers(score, "steered_rating_score")[0] == pytest.approx(1.5 * 4 / 5)
    assert score.values["steered_rating_collapsed"] == 1
    assert sum(len(lines_of(request)[0]) for request in llms.asked) == 2 * 9
    everything = [(prompt, 0.33) for prompt in range(10)]
    score, llms = run(SteeredRatingScorer(), label(LATENT), written(prompts=10, effects={0.33: 0.2}, broken=everything, others=()), judge)  # fmt: skip
    assert score.failure is not None
    assert score.failure.kind is FailureKind.COLLAPSED
    assert not llms.asked


def test_instructions_stand_beside_the_answers() -> None:
    asked = [f"instruction number {i}" for i in range(10)]
    texts = written(prompts=10, effects={1.0: 0.3}, others=(), instructions=asked)
    _, llms = run(
        SteeredRatingScorer(), label(LATENT), texts, rates(dict.fromkeys(("none", "some", "many"), (1, 1, 1)))
    )
    shown = [request.messages[-1].content for request in llms.asked]
    fluency = [text for text in shown if "Label" not in text]
    assert len(fluency) == 2
    assert all(any(f'after "{line}"' in text for text in fluency) for line in asked)
    assert not any(line in text for text in shown if "Label" in text for line in asked)


# --- what they share


def test_both_sorts_of_label_are_judged_apart() -> None:
    texts = written(effects={1.0: 0.8})
    output, _ = run(SteeredChoiceScorer(), label(LATENT, "output", "output"), texts, chooses)
    assert output.values["output_label_steered_choice_score"] == 1.0
    assert not [name for name in output.values if name.startswith("steered_choice")]
    assert output.values["judge_model"] == "scripted"


SCORERS: tuple[Scorer, ...] = (SteeredSurprisalScorer(), SteeredChoiceScorer(), SteeredRatingScorer())


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: str(scorer.kind))
def test_failures_are_typed(scorer: Scorer) -> None:
    llms = ScriptedLLMs(knowing)
    failed = Explanation(latent=LATENT, explainer="hand", failure=Failure(kind=FailureKind.REFUSED, message="no"))
    for explanation, texts, kind in (
        (None, written(), FailureKind.NO_EXPLANATION),
        (failed, written(), FailureKind.NO_EXPLANATION),
        (label(LATENT), None, FailureKind.NO_EVIDENCE),
        (label(LATENT), written(latent=8), FailureKind.NO_EVIDENCE),
        (label(LATENT), written(state=TextState.UNREACHABLE), FailureKind.UNREACHABLE),
        (label(LATENT), written(state=TextState.TOO_FEW_WINDOWS), FailureKind.TOO_FEW_WINDOWS),
        (label(LATENT), written(state=TextState.NO_ROOM), FailureKind.TOO_FEW_TEXTS),
        (label(LATENT).model_copy(update={"text": "  "}), written(), FailureKind.NO_EXPLANATION),
    ):
        given = evidence(written())
        given = replace(given, steered_texts=texts, steered_answers=texts)
        score = asyncio.run(scorer.score(explanation, given, llms))
        assert score.failure is not None
        assert score.failure.kind is kind
        assert f"{scorer.kind}_score" not in score.values
    assert not llms.asked
    assert not can_compare(scorer), "texts are of the score side, so it must not choose labels"
    assert isinstance(parse_component("scorers", {"kind": scorer.kind}), type(scorer))
    assert not scorer.looks_at(replace(evidence(written()), in_text_sample=frozenset()))
    assert scorer.looks_at(evidence(written()))


def test_what_they_need_is_asked_once_and_refused_where_it_cannot_be() -> None:
    asked = [type(need) for scorer in SCORERS for need in scorer.needs()]
    assert asked == [SteeredTextsRequest, LensRequest, SteeredTextsRequest, SteeredAnswersRequest]
    steering = InterventionScorer(steering_targets=(0.1, 0.33))
    check_steered_texts([*SCORERS, steering])
    check_steered_texts([steering])
    with pytest.raises(ConfigError, match="none asks for steering"):
        check_steered_texts(list(SCORERS))
    for idle in (InterventionScorer(steered_latents=0), InterventionScorer(steering_targets=())):
        with pytest.raises(
            ConfigError, match=r"'intervention' steers no latents: give it steered_latents of 1 or more"
        ):
            check_steered_texts([*SCORERS, idle])
    with pytest.raises(ConfigError, match=r"steered to 1 nats and the scorer 'intervention' steers to 0.1, 0.33"):
        check_steered_texts([SteeredChoiceScorer(target=1.0), steering])
    with pytest.raises(ConfigError, match="give both the same settings"):
        check_steered_texts([SteeredChoiceScorer(texts=20), SteeredSurprisalScorer(), steering])


def test_own_instructions_and_a_file(tmp_path: Any) -> None:
    own = read_instructions("", 20)
    assert len(set(own)) == 20
    path = tmp_path / "mine.txt"
    path.write_text("One.\n\nTwo.\nOne.\nThree.\nFour.\n")
    assert read_instructions(str(path), 4) == ["One.", "Two.", "Three.", "Four."]
    with pytest.raises(ConfigError, match="has 4 different ones"):
        SteeredRatingScorer(instructions=str(path)).check()
    with pytest.raises(ConfigError, match="cannot be read"):
        SteeredRatingScorer(instructions=str(tmp_path / "none")).check()


def test_a_plan_counts_the_sample_and_both_sorts_of_label() -> None:
    asked: dict[str, Any] = {
        "subject": {"model": "x"},
        "coders": [{"path": "x"}],
        "corpus": {"path": "x"},
        "latents": "0:500",
        "explainers": [{"kind": "max_activating"}, {"kind": "output"}],
        "scorers": [{"kind": "intervention"}, *({"kind": scorer.kind} for scorer in SCORERS)],
        "endpoints": [{"kind": "scripted", "model": "x", "replies": ["x"]}],
    }
    config = RunConfig.model_validate_json(json.dumps(asked))
    lines = {line.what: line for line in plan_run(config).lines}
    surprisal = lines["steered_surprisal"]
    assert (surprisal.latents, surprisal.texts, surprisal.calls) == (32, 2, 32 * 2 * 2 * 30 * 65)
    assert "steered_surprisal, shuffled" not in lines
    assert (lines["steered_choice, shuffled"].latents, lines["steered_choice"].calls_per_latent) == (32, 12)
    assert lines["steered_rating"].beside
    by_strengths = []
    for targets in ((0.1,), (0.1, 0.33, 1.0), (0.1, 0.2, 0.3, 0.5, 1.0)):
        few = {"kind": "intervention", "steering_targets": targets, "steered_latents": 12}
        other = RunConfig.model_validate_json(
            json.dumps(asked | {"scorers": [few, {"kind": "steered_rating"}, {"kind": "steered_choice"}]})
        )
        planned = [line for line in plan_run(other).lines if line.what.startswith("steered")]
        assert {line.latents for line in planned} == {12}, "no more are rated than are steered"
        by_strengths.append([line.calls_per_latent for line in planned if line.what == "steered_rating"])
    # ten answers at each strength, five a call, for each of two labels
    assert by_strengths == [[4, 4], [12, 12], [20, 20]]
    assert not [what for what in lines if what.startswith("steered") and ("null" in what or "directions" in what)]


def test_lens_of_the_world_is_what_it_says() -> None:
    assert lens().neighbours[LATENT].tolist() == [8, 9, 10, 11, 12]
    assert (written().steered == CLEAN).sum() == 30
