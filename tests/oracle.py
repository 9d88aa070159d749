"""An answerer for the test server that understands the planted world: it labels, and it judges labels, by reading the prompt.

It knows what it is asked by the answer's schema, and finds the data between the prompt's delimiters. It tells the truth, or errs
at a stated rate, always in the same way for the same prompt.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from autointerp.llm.server import PlainAnswerer, Reply, TokenOdds
from autointerp.llm.server.answers import CERTAIN, schema_of
from tests.planted_text import SENTENCES, Fires, Passage, PlantedText, meaning_of, of_latent, strength_of
from tests.planted_world import BOS, MEANING, VOCABULARY

# shots have shorter delimiters
BLOCK = re.compile(r"<(DATA-[0-9a-f]{8})>\n(.*?)\n</\1>", re.DOTALL)
KEY = re.compile(r'\{"(\w+)":')
LINE = re.compile(r'^\S+:? ("(?:[^"\\]|\\.)*")', re.MULTILINE)
LISTED = re.compile(r"^([^\n:]+): (\[.*\])$", re.MULTILINE)
LABEL = re.compile(r'^(?:Label|Description): ("(?:[^"\\]|\\.)*")', re.MULTILINE)
TOKEN = re.compile(r'^("(?:[^"\\]|\\.)*")\t(\?)', re.MULTILINE)
ASKED_TEXTS = re.compile(r"^Write (\d+) matching texts and (\d+) near misses", re.MULTILINE)
ALLOWED: dict[str, tuple[int, ...]] = {"matches": (0, 1), "intruders": (1, 2, 3, 4, 5), "sets": (1, 2, 3, 4)}
"""Answers that may be given to the questions of a judge, by the key of the list that they stand in."""
EXAMPLES = {0: "7", 1: "( self", 2: "( w5", 4: "zzz", 5: "def", 6: "return", 7: "cls", 8: "w16"}
EXAMPLES |= {latent: f"w{latent}" for latent in SENTENCES if latent > 8}
"""Words on which each latent fires."""
_CERTAIN = 0.999


class Oracle(PlainAnswerer):
    """Reads prompts of the explainers and scorers of this project."""

    def __init__(
        self,
        text: PlantedText | None = None,
        *,
        error_rate: float = 0.0,
        label_error_rate: float = 0.0,
        confidence: float | None = None,
        seed: int = 0,
        meaning: Callable[[str], Fires] = meaning_of,
    ) -> None:
        """``text``: how windows are cut into words; with a corpus, it knows what stands before them as well.

        ``meaning``: what a label says to a judge.

        ``error_rate``: share of judgements that are wrong; ``label_error_rate``: share of labels that are another latent's.
        ``confidence``: probability that it gives what it says, by default the share of its judgements that are right.
        """
        super().__init__("I know the planted world only.")
        self.planted = text if text is not None else PlantedText()
        self.error_rate, self.label_error_rate, self.seed = error_rate, label_error_rate, seed
        self._meaning_of = meaning
        self.confidence = confidence if confidence is not None else min(1 - error_rate, _CERTAIN)

    def answer(self, request: dict[str, Any]) -> Reply:
        """The answer to a question of the known kinds; to anything else, that of ``PlainAnswerer``."""
        messages = request.get("messages") or []
        # repairs come in later turns, and further rounds have more data
        asked = [m["content"] for m in messages if m["role"] == "user" and BLOCK.search(m["content"])]
        schema = schema_of(request)
        properties = (schema or {}).get("properties", {})
        # a server that is not bound by a schema reads of it in the instructions
        keys = list(properties) or KEY.findall("\n".join(m["content"] for m in messages if m["role"] == "system"))
        if "matching" in keys:
            return self._written(next(m["content"] for m in reversed(messages) if LABEL.search(m["content"])))
        if not asked:
            return super().answer(request)
        if "label" in keys:
            return self._label(asked, properties)
        if "fits" in keys:
            return self._screened(asked[-1])
        for key, allowed in ALLOWED.items():
            if key in keys:
                allowed = tuple(properties.get(key, {}).get("items", {}).get("enum", allowed))
                judge: dict[str, Callable[[str, int], list[int]]] = {
                    "matches": self._matches,
                    "intruders": self._intruders,
                    "sets": self._sets,
                }
                return self._chosen(key, judge[key](asked[-1], len(allowed)), allowed, asked[-1])
        if (keys and all(re.fullmatch(r"w\d+", key) for key in keys)) or "Numbers:" in asked[-1]:
            return self._numbers(asked[-1])
        return super().answer(request)

    def prompt_odds(self, text: str, pieces: Sequence[str]) -> list[TokenOdds]:
        """Digits in the place of each ? of a simulation; else words on which a description fires are likelier behind it."""
        odds = super().prompt_odds(text, pieces)
        label = max(LABEL.finditer(text), key=lambda found: found.start(), default=None)
        if label is None:
            return odds
        said = json.loads(label.group(1))
        at: dict[int, TokenOdds] = {}
        tokens = list(TOKEN.finditer(text, label.end()))
        if tokens:
            passage = self.planted.read_words([json.loads(found.group(1)) for found in tokens])
            strength = strength_of(said)
            for place, found in enumerate(tokens, passage.first):
                at[found.start(2)] = self._digit(strength(passage.words, place), text, place)
        else:
            start = text.index("\n", text.index("Text:", label.end())) + 1
            passage, meaning = self.planted.read(text[start:]), meaning_of(said)
            for place in range(passage.first, len(passage.words)):
                end = start + len(passage.words[place])
                at |= dict.fromkeys(range(start, end) if meaning(passage.words, place) else (), CERTAIN)
                start = end
        place = 0
        for number, piece in enumerate(pieces):
            odds[number] = next((at[i] for i in range(place, place + len(piece)) if i in at), odds[number])
            place += len(piece)
        return odds

    def _digit(self, strength: float, *purpose: object) -> TokenOdds:
        """Probabilities of the digits 0 to 9 whose mean is 9 times the strength, as far as the oracle is sure of itself."""
        wanted = 9 * (1 - strength if self.draw("digit", *purpose) < self.error_rate else strength)
        low = int(wanted)
        # what it is not sure of goes to all ten digits alike
        share = dict.fromkeys(range(10), (1 - self.confidence) / 10)
        share[low] += self.confidence * (1 - (wanted - low))
        if wanted > low:
            share[low + 1] += self.confidence * (wanted - low)
        return TokenOdds(-12.0, {str(digit): math.log(p) for digit, p in share.items() if p > 0})

    def draw(self, *purpose: object) -> float:
        """A number from [0, 1) that depends on the seed and the purpose alone."""
        digest = hashlib.sha256(repr((self.seed, *purpose)).encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:7], "big") / 2**56

    def _errs(self, *purpose: object) -> bool:
        """Whether a judgement is wrong."""
        return self.error_rate > 0 and self.draw(*purpose) < self.error_rate

    # --- explaining

    def _label(self, asked: list[str], properties: dict[str, Any]) -> Reply:
        """The known meaning that fits the marks best, over all shown windows; those without marks are silent."""
        prompt = "\n".join(asked)
        passages = self._passages(prompt)
        if not any(passage.marks for passage in passages):
            return Reply(json.dumps({"label": _of_lists(prompt)}))
        best = max(SENTENCES, key=lambda latent: (_agreement(passages, of_latent(latent)), -latent))
        if _agreement(passages, of_latent(best)) < 0.5 and _only_first(passages):
            best = 8
        if self.draw("label", prompt) < self.label_error_rate:
            others = [latent for latent in SENTENCES if latent != best]
            best = others[int(self.draw("other", prompt) * len(others))]
        answer: dict[str, Any] = {"label": SENTENCES[best]}
        if "tests" in properties:
            tests = [
                {"text": f"w18 {EXAMPLES[best]} w17", "should_fire": best != 8},
                {"text": "w18 w17 )", "should_fire": best == 8},
            ]
            answer["tests"] = tests[: properties["tests"].get("maxItems", 2)]
        return Reply(json.dumps(answer))

    # --- judging

    def _matches(self, prompt: str, num_choices: int) -> list[int]:
        """1 for each window that the label fits, or whose marks it fits."""
        meaning = self._meaning(prompt)
        return [int(_fits(passage, meaning)) for passage in self._passages(prompt)]

    def _screened(self, prompt: str) -> Reply:
        """For each window the numbers of the labels that fit it; an error about a pair tells nothing of any other call's."""
        labels, windows = (block for _, block in BLOCK.findall(prompt))
        meanings = [self._meaning_of(json.loads(line)) for line in LINE.findall(labels)]
        # pairs are many, so they do not hash the whole text each
        call = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
        fits = []
        for place, passage in enumerate(self._passages_in(windows)):
            truth = [_fits(passage, meaning) for meaning in meanings]
            said = [right != self._errs("screen", call, place, number) for number, right in enumerate(truth)]
            fits.append([number for number, one in enumerate(said, 1) if one])
        return Reply(json.dumps({"fits": fits}))

    def _intruders(self, prompt: str, num_choices: int) -> list[int]:
        """For each set the window that lacks what the others share: the rarest thing that four of the five have."""
        found = []
        for _, block in BLOCK.findall(prompt):
            passages = self._passages_in(block)
            best, rarest = 1, math.inf
            for latent in SENTENCES:
                silent = [n for n, passage in enumerate(passages, 1) if not passage.fires(of_latent(latent))]
                if len(silent) == 1 and _RATE[latent] < rarest:
                    best, rarest = silent[0], _RATE[latent]
            found.append(best)
        return found

    def _sets(self, prompt: str, num_choices: int) -> list[int]:
        """For each question the set of most windows that the label fits."""
        meaning = self._meaning(prompt)
        blocks = [self._passages_in(block) for _, block in BLOCK.findall(prompt)]
        counts = [sum(_fits(passage, meaning) for passage in block) for block in blocks]
        return [
            max(range(num_choices), key=lambda n, at=at: (counts[at + n], -n)) + 1
            for at in range(0, len(counts), num_choices)
        ]

    def _numbers(self, prompt: str) -> Reply:
        """How strongly each token of each window fires, from 0 to 10."""
        strength = strength_of(self._said(prompt))
        found: dict[str, list[int]] = {}
        for name, listed in LISTED.findall(prompt):
            passage = self.planted.read_words(json.loads(listed))
            numbers = [round(10 * strength(passage.words, i)) for i in range(passage.first, len(passage.words))]
            errs = [self.draw("number", prompt, name, place) < self.error_rate for place in range(len(numbers))]
            found[name] = [10 - number if wrong else number for number, wrong in zip(numbers, errs, strict=True)]
        return Reply(json.dumps(found))

    def _written(self, prompt: str) -> Reply:
        """Texts in which the label holds, over all that it covers in turn, and texts in which it does not.

        Of a label that holds in every text there are no near misses, and of one that holds in none nothing matches: then they
        are wrong, as they would be whoever writes them.
        """
        label, meaning = self._said(prompt), self._meaning(prompt)
        asked = ASKED_TEXTS.search(prompt)
        assert asked is not None, f"no numbers of texts stand in the prompt: {prompt[:300]}"
        rng = random.Random(repr(("written", self.seed, label)))
        cores = _shortest_that_fire(meaning)
        found: dict[str, list[str]] = {"matching": [], "near": []}
        for sort, count in zip(found, map(int, asked.groups()), strict=True):
            for number in range(count):
                holds = (sort == "matching") != self._errs("written", prompt, sort, number)
                for _ in range(200):
                    words = rng.choices(VOCABULARY[1:], k=5)
                    if holds and cores:
                        place = rng.randrange(6)
                        words[place:place] = cores[number % len(cores)]
                    alone = [BOS, *words]
                    if any(meaning(alone, i) for i in range(1, len(alone))) == holds:
                        break
                found[sort].append(" ".join(words))
        return Reply(json.dumps(found))

    def _chosen(self, key: str, truth: list[int], allowed: tuple[int, ...], prompt: str) -> Reply:
        """The answers, some of them wrong at the stated rate, with log-probabilities of their digits."""
        said = []
        for number, right in enumerate(truth):
            wrong = [value for value in allowed if value != right]
            errs = self._errs(prompt, number)
            said.append(wrong[int(self.draw("which", prompt, number) * len(wrong))] if errs else right)
        text, odds = f'{{"{key}": [', {}
        for number, value in enumerate(said):
            text += ", " if number else ""
            other = (1 - self.confidence) / (len(allowed) - 1)
            share = {v: self.confidence if v == value else other for v in allowed}
            top = {str(v): math.log(p) for v, p in share.items() if p > 0}
            odds[len(text)] = TokenOdds(math.log(self.confidence), top)
            text += str(value)
        return Reply(text + "]}", odds=odds)

    # --- reading

    def _said(self, prompt: str) -> str:
        """The label that is judged."""
        found = LABEL.search(prompt)
        assert found is not None, f"no label stands in the prompt: {prompt[:300]}"
        return str(json.loads(found.group(1)))

    def _meaning(self, prompt: str) -> Fires:
        return self._meaning_of(self._said(prompt))

    def _passages(self, prompt: str) -> list[Passage]:
        return [passage for _, block in BLOCK.findall(prompt) for passage in self._passages_in(block)]

    def _passages_in(self, block: str) -> list[Passage]:
        return [self.planted.read(json.loads(line)) for line in LINE.findall(block)]


def _fits(passage: Passage, meaning: Fires) -> bool:
    """Whether a label fits a window: most of its marks, or anything in it where nothing is marked."""
    places = passage.fires(meaning)
    if passage.marks:
        return 2 * len(places & passage.marks) >= len(passage.marks)
    return bool(places)


def _shortest_that_fire(meaning: Fires) -> list[list[str]]:
    """Single words on which a meaning fires wherever they stand, else pairs of words."""
    words = VOCABULARY[1:]
    single = [[word] for word in words if meaning(["?", "?", word], 2)]
    return single or [[one, other] for one in words for other in words if meaning(["?", "?", one, other], 3)]


def _agreement(passages: Iterable[Passage], meaning: Fires) -> float:
    """F1 of a meaning as a rule for which words are marked."""
    both = either = 0
    for passage in passages:
        places = passage.fires(meaning)
        both += len(places & passage.marks)
        either += len(places) + len(passage.marks)
    return 2 * both / either if either else 0.0


def _only_first(passages: Iterable[Passage]) -> bool:
    """Whether all marks stand on the first word of a window."""
    return all(passage.marks <= {passage.first} for passage in passages)


def _of_lists(prompt: str) -> str:
    """A label of what a latent writes, from the first list of tokens."""
    for name, listed in LISTED.findall(prompt):
        tokens = json.loads(listed)
        if tokens:
            return f"tokens such as {tokens[0].strip()}, {name.strip()}"
    return "nothing that can be seen here"


# share of tokens on which a latent fires, by the weights of the planted corpus: ( and self weigh 4, zzz nothing
_TOTAL = 42.0
_RATE = {0: 10 / _TOTAL, 1: 16 / _TOTAL**2, 2: 4 / _TOTAL, 4: 0.0005, 8: 1 / 63}
_RATE |= {latent: (1 if latent < 9 else 2) / _TOTAL for latent in MEANING if latent not in _RATE}
