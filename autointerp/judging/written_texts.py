"""Texts that a language model writes from a label alone, to be run on the subject: some in which it holds, and near misses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from autointerp.failure import Failure
from autointerp.llm.asking import BadAnswer
from autointerp.score import ScoreValue

LONGEST_TEXT = 300
"""Characters of a text; longer ones are left out, as are empty ones, repetitions, and those that are given as both."""


class WrittenTexts(BaseModel):
    """What came of one label's texts: the texts, or a typed failure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latent: int = Field(ge=0)
    """The latent that they are run for."""
    scorer: str
    """Kind of the scorer that had them written."""
    explainer: str
    """Kind of the explainer whose text they are written from."""
    matching: tuple[str, ...] = ()
    """Texts in which the label holds, as their writer says."""
    near: tuple[str, ...] = ()
    """Near misses: like these, but the label does not hold, as their writer says."""
    spent: dict[str, ScoreValue] = Field(default_factory=dict)
    """Who wrote, and what it took, by the names of a score's values (``judging.outcome.spent``)."""
    failure: Failure | None = None
    """Why there are no texts."""

    @property
    def texts(self) -> tuple[str, ...]:
        """All of them."""
        return self.matching + self.near

    def borrowed_by(self, latent: int) -> WrittenTexts:
        """The same texts, to be run for another latent too; nothing more is asked or paid for that."""
        paid_by_nobody = {name: value for name, value in self.spent.items() if name.startswith("judge_")}
        return self.model_copy(update={"latent": latent, "spent": paid_by_nobody})


class TooFewTexts(BadAnswer):
    """The answer is well formed, and too few of its texts can be used."""


def usable_texts(
    answer: Mapping[str, Sequence[str]], wanted: Mapping[str, int], least: int
) -> dict[str, tuple[str, ...]]:
    """The texts of each sort in ``wanted`` that can be run, at most as many as were wanted.

    Errors: TooFewTexts where there are fewer than ``least`` of a sort.
    """
    lists = {sort: dict.fromkeys(filter(_usable, answer[sort])) for sort in wanted}
    found = {}
    for sort, count in wanted.items():
        others = {text for other, texts in lists.items() if other != sort for text in texts}
        found[sort] = tuple(text for text in lists[sort] if text not in others)[:count]
        if len(found[sort]) < least:
            raise TooFewTexts(
                f"{len(found[sort])} of the {len(answer[sort])} texts of {sort!r} can be used and {least} are needed; give "
                f"{count} different ones of 1 to {LONGEST_TEXT} characters, none of them in both lists"
            )
    return found


def _usable(text: str) -> bool:
    return bool(text.strip()) and len(text) <= LONGEST_TEXT
