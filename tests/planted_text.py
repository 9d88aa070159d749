"""The planted world read from text: what its latents mean in English, and the words of a window as a prompt shows it.

Its tokenizer writes no spaces, so windows run together (``(selfw17``), and ``w17`` may be ``w1`` and ``7``. With the corpus at
hand a window is looked up, and then what stands before it in its context is known too; without it, it is cut greedily.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from autointerp.judging.null_labels import EVERYTHING
from tests.planted_world import BOS, CONTEXT, MEANING, NUM_LATENTS, VOCABULARY

SENTENCES: dict[int, str] = {
    0: "decimal digits",
    1: "the word self right after an opening bracket",
    2: "any token right after an opening bracket",
    4: "the word zzz",
    5: "the keyword def",
    6: "the keyword return",
    7: "the word cls",
    8: "the first token of a text",
    **{latent: f"the words w{latent - 9} and w{latent}" for latent in range(9, NUM_LATENTS)},
}
"""What each latent that ever fires means; no two latents have the same."""
_LATENT_OF = {sentence: latent for latent, sentence in SENTENCES.items()}
_WORD = re.compile("|".join(sorted(map(re.escape, VOCABULARY), key=len, reverse=True)) + "|.", re.DOTALL)

Fires = Callable[[list[str], int], bool]
"""Whether something fires at a place of a context's words."""
Strength = Callable[[list[str], int], float]
"""How strongly, as a share of the most that it ever does."""


@dataclass(frozen=True)
class Passage:
    """A window among the words of its context."""

    words: list[str]
    """Words of the context up to the window's end; place 0 is the BOS."""
    first: int
    """Place of the window's first word."""
    marks: frozenset[int]
    """Places of words that stand between << and >>."""

    def fires(self, meaning: Fires) -> set[int]:
        """Places of the window's words at which something fires."""
        return {i for i in range(self.first, len(self.words)) if meaning(self.words, i)}


def meaning_of(label: str) -> Fires:
    """What a label says: one of SENTENCES, that of every text, else any word of the vocabulary that stands in it; nothing fits
    other texts.
    """
    if label == EVERYTHING:
        return lambda words, i: True
    latent = _LATENT_OF.get(label.strip().strip("."))
    if latent is not None:
        return of_latent(latent)
    named = set(re.findall(r"\w+|[()]", label)) & set(VOCABULARY)
    return lambda words, i: words[i] in named


def strength_of(label: str) -> Strength:
    """What a label says, with the activations of the latent that it names; other texts fire at full strength or not."""
    latent = _LATENT_OF.get(label.strip().strip("."))
    if latent is None:
        fires = meaning_of(label)
        return lambda words, i: float(fires(words, i))
    largest = 1.9 if latent == 0 else 1.0
    return lambda words, i: MEANING[latent](words, i) / largest


def of_latent(latent: int) -> Fires:
    """Where a latent fires."""
    return lambda words, i: MEANING[latent](words, i) > 0


class PlantedText:
    """Cuts windows into words."""

    def __init__(
        self,
        documents: Iterable[Sequence[str]] = (),
        window_length: int | None = None,
        word: re.Pattern[str] = _WORD,
    ) -> None:
        """``documents``: words of each document, as the corpus has them.

        ``window_length``: of a text that stands in several places, the one where a window can begin and end is taken.
        ``word``: what a text that is not found is cut into.
        """
        self._window, self._word = window_length, word
        self._documents = [list(document) for document in documents]
        self._starts: dict[int, tuple[int, int]] = {}
        parts, at = [], 0
        for number, document in enumerate(self._documents):
            for place, word in enumerate(document):
                self._starts[at] = (number, place)
                parts.append(word)
                at += len(word)
            # the end of a document is a word's end too
            self._starts[at] = (number, len(document))
            parts.append("\n")
            at += 1
        self._joined = "".join(parts)

    @classmethod
    def of_corpus(cls, path: Path, window_length: int | None = None) -> PlantedText:
        """With the corpus file that ``planted_world.build`` wrote."""
        lines = path.read_text(encoding="utf-8").splitlines()
        return cls([json.loads(line)["text"].split() for line in lines], window_length)

    def read(self, shown: str) -> Passage:
        """A window as it is shown, marks and all."""
        segments = re.split(r"(<<|>>)", shown)
        text, marked_spans, inside = "", [], False
        for segment in segments:
            if segment in ("<<", ">>"):
                inside = segment == "<<"
                continue
            if inside:
                marked_spans.append((len(text), len(text) + len(segment)))
            text += segment
        found = self._look_up(text)
        if found is not None:
            return self._marked(*self._in_context(*found), marked_spans)
        words, borders = [], sorted({0, len(text), *(edge for span in marked_spans for edge in span)})
        for begin, end in pairwise(borders):
            words += self._word.findall(text[begin:end])
        return self._marked(*_alone(words), marked_spans)

    def read_words(self, words: Sequence[str]) -> Passage:
        """A window whose words are told."""
        found = self._look_up("".join(words))
        if found is not None:
            context, first = self._in_context(*found)
            if context[first:] == list(words):
                return Passage(context, first, frozenset())
        return Passage(*_alone(words), frozenset())

    def _marked(self, context: list[str], first: int, spans: Sequence[tuple[int, int]]) -> Passage:
        """The words with those marked that begin in one of the spans of characters, counted from the first word."""
        at, marks = 0, set()
        for index in range(first, len(context)):
            if any(begin <= at < end for begin, end in spans):
                marks.add(index)
            at += len(context[index])
        return Passage(context, first, frozenset(marks))

    def _in_context(self, document: int, place: int, count: int) -> tuple[list[str], int]:
        """Words of the context up to the window's end, and the place of the window's first one."""
        begin = place // (CONTEXT - 1) * (CONTEXT - 1)
        return [BOS, *self._documents[document][begin : place + count]], place - begin + 1

    def _look_up(self, text: str) -> tuple[int, int, int] | None:
        """(document, place of the first word, number of words) of a text that is found at words' borders."""
        best = None
        at = self._joined.find(text) if text else -1
        while at >= 0:
            start, end = self._starts.get(at), self._starts.get(at + len(text))
            if start is not None and end is not None:
                if self._window is None or self._is_window(*start, end[1]):
                    return start[0], start[1], end[1] - start[1]
                best = best or (start[0], start[1], end[1] - start[1])
            at = self._joined.find(text, at + 1)
        return best

    def _is_window(self, document: int, first: int, last: int) -> bool:
        """Whether words ``first`` to ``last`` are a whole window: contexts begin with a BOS and are cut from their start."""
        assert self._window is not None
        begin, end = first % (CONTEXT - 1) + 1, (last - 1) % (CONTEXT - 1) + 2
        starts = begin == 1 or begin % self._window == 0
        return starts and (end % self._window == 0 or end == CONTEXT or last == len(self._documents[document]))


def _alone(words: Sequence[str]) -> tuple[list[str], int]:
    """A window of which nothing else is known: with two unknown words before it, nothing is taken for a context's first."""
    return ["?", "?", *words], 2
