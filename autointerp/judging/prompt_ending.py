"""How likely the end of a plain-text prompt is to a language model, behind one beginning and behind another."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from autointerp.failure import Failure, FailureKind
from autointerp.llm.asking import BadAnswer
from autointerp.llm.prompt_tokens import holders
from autointerp.llm.protocol import Completion


class Ending(NamedTuple):
    """The tokens that end a prompt."""

    tokens: tuple[str, ...]
    logprob: float
    """Sum over them, nats."""


def ending_reader(text: str, body: str) -> Callable[[Completion], Ending]:
    """Reads the log-probabilities of the tokens of ``body``, which ends ``text`` and stands behind a newline."""

    def read(completion: Completion) -> Ending:
        entries = completion.prompt_logprobs
        # the last newline before the body; where the body begins with more of them, a token may hold these too
        before = text.count("\n") - body.count("\n")
        start = holders(entries, text, "\n")[before - 1] + 1
        own = [entry for entry in entries[start:] if entry is not None]
        if not own:
            raise BadAnswer("the server gives no log-probability of the tokens that end the prompt")
        return Ending(tuple(entry.token for entry in own), sum(entry.logprob for entry in own))

    return read


def gain(one: Ending | Failure, other: Ending | Failure) -> float | Failure:
    """By how many nats the same end is likelier behind the beginning of ``one`` than of ``other``, or why that is not known."""
    for ending in (one, other):
        if isinstance(ending, Failure):
            return ending
    assert isinstance(one, Ending)
    assert isinstance(other, Ending)
    if one.tokens != other.tokens:
        message = "the server's tokens of a text are others behind another beginning, so they cannot be compared"
        return Failure(kind=FailureKind.UNPARSEABLE, message=message)
    return one.logprob - other.logprob
