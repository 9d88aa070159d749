"""A cheap look at many windows: one call shows some windows and many labels, and asks which labels fit which windows.

About a thousand judgements for the tokens of one call of ``detection``. It is a second and noisier judge, so what it flags is
asked again as every other window is (METHODS 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp.failure import Failure
from autointerp.judging.batching import Asked, ask_all
from autointerp.llm.answers import read_json
from autointerp.llm.asking import LLM
from autointerp.llm.protocol import Completion, CompletionRequest
from autointerp.prompting.prompt import Prompt
from autointerp.prompting.quoting import quote_lines, window_text
from autointerp.sampling.window import ShownWindow
from sae_core.token_text import TokenText

_TOKENS_A_FLAG = 4
"""Room in the answer for the number of a label with its comma and brackets."""
_FLAGS_A_WINDOW = 12
"""Flags of one window, on average, for which an answer has room."""

COMPANY = 5
"""Windows of the bulk that a screen has not flagged, beside those that the judge is asked about after it."""

Flags = tuple[frozenset[int], ...]
"""For each window of a call the indices of the labels that fit it."""


@dataclass(frozen=True, slots=True, eq=False)
class Screened:
    """What a screen says of some labels and windows."""

    flagged: NDArray[np.bool_]
    """[labels, windows]; False too where the call failed."""
    shown: NDArray[np.bool_]
    """[windows] those whose call has an answer."""
    asked: Asked[Flags]
    """The calls."""


def most_answer_tokens(windows: int, labels: int) -> int:
    """Tokens that the answer of one call may have."""
    return _TOKENS_A_FLAG * windows * min(labels, _FLAGS_A_WINDOW) + 6 * windows + 40


async def screen_windows(
    llm: LLM,
    prompt: Prompt,
    labels: Sequence[str],
    windows: Sequence[ShownWindow],
    pieces: TokenText,
    *,
    per_call: int = 25,
    context_tokens: int = 0,
) -> Screened:
    """Which of ``labels`` fit which of ``windows``, ``per_call`` windows a call; all calls are asked at once.

    Errors: what stops the run (EndpointError, BudgetError).
    """
    calls = [list(range(start, min(start + per_call, len(windows)))) for start in range(0, len(windows), per_call)]
    listed = quote_lines(labels).block  # the same in every call, and before the windows: a prefix cache holds it
    requests = []
    for call in calls:
        lines = [window_text(windows[index], pieces, context_tokens=context_tokens) for index in call]
        values = {
            "labels": listed,
            "windows": quote_lines(lines).block,
            "count": len(call),
            "num_labels": len(labels),
        }
        request = prompt.request(values, max_tokens=most_answer_tokens(len(call), len(labels)))
        requests.append((request, _reader(request)))
    asked = await ask_all(llm, requests)
    flagged = np.zeros((len(labels), len(windows)), dtype=np.bool_)
    shown = np.zeros(len(windows), dtype=np.bool_)
    for call, result in zip(calls, asked.results, strict=True):
        if isinstance(result, Failure):
            continue
        shown[call] = True
        for index, fitting in zip(call, result, strict=True):
            flagged[sorted(fitting), index] = True
    return Screened(flagged, shown, asked)


def _reader(request: CompletionRequest) -> Callable[[Completion], Flags]:
    schema = request.json_schema
    assert schema is not None, "the prompt of a judge has an answer schema"

    def read(completion: Completion) -> Flags:
        fits = read_json(completion, schema)["fits"]
        return tuple(frozenset(number - 1 for number in numbers) for numbers in fits)

    return read
