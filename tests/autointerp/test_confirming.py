"""A yes on a silent window is asked again in other company; a scripted judge says what it is told to, each time anew."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from autointerp.failure import FailureKind
from autointerp.judging.confirming import JudgedTwice, judge_once, judge_twice
from autointerp.judging.questions import Question
from autointerp.llm.protocol import CompletionRequest
from autointerp.llm.scripted import ScriptedLLM
from autointerp.prompting.prompt import load_prompt
from autointerp.sampling.window import ShownWindow, Stratum
from tests.autointerp.pools import letters

NUM_FIRING, NUM_SILENT = 6, 10
NAMES = [f"f{n}" for n in range(NUM_FIRING)] + [f"s{n}" for n in range(NUM_SILENT)]
"""One window each: the latent fires in those that begin with f."""
PIECES = letters(["<bos>", *(f"{name} " for name in NAMES)])
BLOCK = re.compile(r"<(DATA-[0-9a-f]{8})>\n(.*?)\n</\1>", re.DOTALL)


def question(name: str) -> Question:
    token = NAMES.index(name) + 1
    fires = name.startswith("f")
    window = ShownWindow(
        token_ids=np.array([token], dtype=np.int32),
        activations=np.array([float(fires)], dtype=np.float32),
        context_ids=np.zeros(0, dtype=np.int32),
        document=0,
        context=token,
        position=0,
        stratum=Stratum.FIRING if fires else Stratum.BULK,
    )
    return Question(window, truth=fires)


QUESTIONS = {name: question(name) for name in NAMES}
FIRST = [["f0", "s0", "f1", "s1", "f2", "s2", "s3", "s4"], ["f3", "s5", "f4", "s6", "f5", "s7", "s8", "s9"]]
"""The calls of the first asking."""


def shown(request: CompletionRequest) -> list[str]:
    """Names of the windows of a call."""
    block = BLOCK.search(request.messages[-1].content)
    assert block is not None
    return [json.loads(line.partition(" ")[2]).strip() for line in block.group(2).splitlines()]


class Judge:
    """Says yes where the latent fires, and what ``said`` has of a window: its answers, time after time."""

    def __init__(self, said: Mapping[str, Sequence[int]] = {}, broken: Callable[[int], bool] = lambda call: False):
        self.said, self.broken, self.calls = said, broken, list[list[str]]()
        self.times = dict.fromkeys(NAMES, 0)

    def answer(self, request: CompletionRequest) -> str:
        if len(request.messages) > 4:  # a repair: instructions, the shot and its answer, and the question come first
            return "I will not"
        names = shown(request)
        self.calls.append(names)
        found = []
        for name in names:
            said = self.said.get(name, [int(name.startswith("f"))] * 2)
            found.append(said[self.times[name]])
            self.times[name] += 1
        return "I cannot say" if self.broken(len(self.calls) - 1) else json.dumps({"matches": found})


def judged(judge: Judge, per_call: int = 20, seed: int = 0, twice: bool = True) -> JudgedTwice:
    calls = [[QUESTIONS[name] for name in names] for names in FIRST]
    ask = judge_twice if twice else judge_once
    llm, prompt, rng = ScriptedLLM(judge.answer), load_prompt("detection"), np.random.default_rng(seed)
    return asyncio.run(ask(llm, prompt, "a label", calls, PIECES, rng, per_call=per_call))


def confirmed(result: JudgedTwice) -> dict[str, bool | None]:
    """What counts, by name."""
    return {name: result.verdicts[QUESTIONS[name]].confirmed for name in NAMES}


TRUTH = {name: name.startswith("f") for name in NAMES}


@pytest.mark.parametrize("firing", [1, 0])
def test_where_nothing_is_doubtful_nothing_is_asked_again(firing: int) -> None:
    """A no is never asked again, nor is a yes where the latent fires."""
    judge = Judge({"f1": [firing]})
    result = judged(judge)
    assert judge.calls == FIRST
    assert confirmed(result) == TRUTH | {"f1": bool(firing)}
    assert (result.company, result.agreed, result.asked.num_calls) == (0, 0, 2)
    assert all(verdict.again is None for verdict in result.verdicts.values())


def test_a_yes_on_a_silent_window_is_asked_again_among_others_and_counts_if_it_is_said_twice() -> None:
    judge = Judge({"s1": [1, 0], "s5": [1, 1], "s6": [1, 0]})
    result = judged(judge)
    assert confirmed(result) == TRUTH | {"s5": True}
    doubted = [result.verdicts[QUESTIONS[name]] for name in ("s1", "s5", "s6")]
    assert [(verdict.answer, verdict.again) for verdict in doubted] == [(True, False), (True, True), (True, False)]
    assert sum(verdict.again is not None for verdict in result.verdicts.values()) == 3
    (again,) = judge.calls[2:]
    company = set(again) - {"s1", "s5", "s6"}
    assert len(again) == len(set(again)) == 6, "as many others as are in doubt"
    assert {"s1", "s5", "s6"} < set(again)
    assert company <= set(NAMES)
    assert (result.company, result.agreed, result.asked.num_calls) == (3, 3, 3)
    assert result.asked.usage.output_tokens > 0


def test_one_window_in_doubt_stands_among_two_others_and_who_they_are_is_drawn() -> None:
    companies = []
    for seed in range(8):
        judge = Judge({"s3": [1, 0]})
        result = judged(judge, seed=seed)
        assert (len(judge.calls), len(judge.calls[2]), result.company) == (3, 3, 2)
        companies.append((tuple(judge.calls[2]), frozenset(judge.calls[2])))
    assert len({names for _, names in companies}) > 4
    assert len({order.index("s3") for order, _ in companies}) > 1


def test_how_often_the_judge_agrees_with_itself_is_counted_on_the_company_alone() -> None:
    """It takes back the doubtful yes, and says the contrary of all that it had said of the others."""
    contrary = {name: [int(name.startswith("f")), int(name.startswith("s"))] for name in NAMES}
    judge = Judge(contrary | {"s0": [1, 0], "s1": [1, 1]})
    result = judged(judge)
    assert (result.company, result.agreed) == (2, 0)
    # what the company said first stands
    assert confirmed(result) == TRUTH | {"s1": True}


def test_without_a_second_answer_a_yes_counts_neither_way() -> None:
    judge = Judge({"s1": [1, 1]}, broken=lambda call: call == 2)
    result = judged(judge)
    assert confirmed(result) == TRUTH | {"s1": None}
    verdict = result.verdicts[QUESTIONS["s1"]]
    assert (verdict.answer, verdict.again, verdict.failure) == (True, None, None)
    assert (result.company, result.agreed) == (0, 0)
    assert [failure.kind for failure in result.asked.failures] == [FailureKind.UNPARSEABLE]


def test_windows_without_a_first_answer_are_neither_doubted_nor_company() -> None:
    judge = Judge({"s1": [1, 0], "s5": [1, 1]}, broken=lambda call: call == 1)
    result = judged(judge)
    assert set(judge.calls[2]) <= set(FIRST[0])
    assert confirmed(result) == {name: TRUTH[name] if name in FIRST[0] else None for name in NAMES}
    assert all(result.verdicts[QUESTIONS[name]].failure is FailureKind.UNPARSEABLE for name in FIRST[1])


def test_many_doubts_are_dealt_into_calls_of_the_usual_size() -> None:
    silent = [name for name in NAMES if name.startswith("s")]
    judge = Judge({name: [1, number % 2] for number, name in enumerate(silent)})
    result = judged(judge, per_call=6)
    again = judge.calls[2:]
    # ten in doubt, and all others there are
    assert sorted(name for call in again for name in call) == sorted(NAMES)
    assert [len(call) for call in again] == [6, 5, 5]
    assert confirmed(result) == TRUTH | {name: bool(number % 2) for number, name in enumerate(silent)}
    assert (result.company, result.agreed) == (6, 6)


def test_asked_once_every_yes_on_a_silent_window_stays_undecided() -> None:
    judge = Judge({"s1": [1, 1]})
    result = judged(judge, twice=False)
    assert judge.calls == FIRST
    assert confirmed(result) == TRUTH | {"s1": None}
