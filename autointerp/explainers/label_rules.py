"""What a label may be: one line of readable text that neither repeats what it was made from nor stands for a failure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from autointerp.llm.asking import BadAnswer

SHORTEST, LONGEST = 3, 200
"""Characters of a label."""
MOST_COPIED_WORDS = 7
"""Words in a row that a label may share with a shown text; an instruction that hides in a corpus is longer."""

_WORD = re.compile(r"\w+")
_NO_LABEL = re.compile(
    r"^\W*(?:n/?a|none|null|unknown|unclear|label|explanation|description|string|text|\.+)\W*$"
    r"|\b(?:could not|cannot|can't|can not|unable to|not able to|not possible to)(?: be)? "
    r"(?:determine|identif|pars|find|found|explain|discern|infer|interpret|conclude|label)"
    r"|^(?:there is |it has )?no (?:clear|obvious|consistent|common|apparent|discernible|specific|identifiable)\b"
    r"|^(?:i am |i'm |i )?sorry\b",
    re.IGNORECASE,
)
"""Texts that stand in for a label. A latent without a readable pattern is a failure of its own, not such a text."""


class BrokenRule(BadAnswer):
    """The answer is well formed, and its label is none."""


@dataclass(frozen=True, slots=True)
class LabelRules:
    """The rules for the label of one call."""

    shown: tuple[str, ...] = ()
    """Plain texts that the explainer was shown."""
    delimiters: tuple[str, ...] = ()
    """Words between which they stood."""
    longest: int = LONGEST
    """Most characters."""

    def read(self, text: str) -> str:
        """The label, stripped, with plain spaces. Errors: BrokenRule, in words that help the model to mend it."""
        if "\n" in text.strip():
            raise BrokenRule("the label has more than one line; give one line")
        label = " ".join("".join(" " if unicodedata.category(c) == "Zs" else c for c in text).split(" ")).strip()
        if len(label) < SHORTEST or not any(c.isalnum() for c in label):
            raise BrokenRule(
                f"the label is shorter than {SHORTEST} characters or has no word; say what the latent is about"
            )
        if len(label) > self.longest:
            raise BrokenRule(f"the label has {len(label)} characters; give at most {self.longest}")
        if not label.isprintable():
            raise BrokenRule("the label holds a control character or one that cannot be seen; give plain text")
        if any(word.casefold() in label.casefold() for word in self.delimiters):
            raise BrokenRule("the label repeats the delimiter of the data; describe the data in words of your own")
        if _NO_LABEL.search(label):
            raise BrokenRule("the label says nothing; give the best description that fits most of the data")
        if repeats_words(label, self.shown):
            raise BrokenRule(
                f"the label copies more than {MOST_COPIED_WORDS} words in a row from the data; describe it in words of your own"
            )
        return label


def repeats_words(label: str, texts: Iterable[str], most: int = MOST_COPIED_WORDS) -> bool:
    """Whether more than ``most`` words of the label stand in a row in one of the texts, whatever their case."""
    words = _WORD.findall(label.casefold())
    runs = {tuple(words[i : i + most + 1]) for i in range(len(words) - most)}
    if not runs:
        return False
    for text in texts:
        others = _WORD.findall(text.casefold())
        if any(tuple(others[i : i + most + 1]) in runs for i in range(len(others) - most)):
            return True
    return False
