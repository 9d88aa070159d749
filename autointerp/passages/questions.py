"""What can be asked about passages, and how much at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

from sae_core.errors import InputError

MOST_CHARACTERS = 20_000
"""Of a passage."""
MOST_TEXTS = 64
"""Passages of a search by text."""
FEWEST_OF_A_SET, MOST_OF_A_SET = 2, 400
"""Passages of either set of a contrast."""
MOST_LATENTS = 1_000
"""Latents of an answer."""
_MOST_CONTRAST_CHARACTERS = 4_000_000
"""Of all passages of a contrast together, so that a question is of bounded size."""


def _whole_characters(given: Any) -> Any:
    """Text without half surrogate pairs, which no tokenizer, file or line of JSON takes."""
    return given.encode("utf-8", "replace").decode("utf-8") if isinstance(given, str) else given


Text: TypeAlias = Annotated[str, BeforeValidator(_whole_characters)]


class _Question(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str | None = None
    """Name of the source; None for the first one."""
    top: int = 20
    """Latents to be given, the first ones of the order."""

    def check(self) -> None:
        """Raise InputError for what cannot be asked."""
        if not 1 <= self.top <= MOST_LATENTS:
            raise InputError(f"{self.top} latents were asked for: ask for 1 to {MOST_LATENTS:,}.")


class TextQuestion(_Question):
    """Which latents fire on these passages?"""

    kind: Literal["text"] = "text"
    texts: tuple[Text, ...]
    """1 to :data:`MOST_TEXTS` passages of at most :data:`MOST_CHARACTERS` characters."""
    order: Literal["relative", "maximum"] = "relative"
    """``relative``: by the largest activation as a share of the latent's largest one over the corpus, those that never fired
    there last; ``maximum``: by the largest activation itself."""

    def check(self) -> None:
        super().check()
        if not 1 <= len(self.texts) <= MOST_TEXTS:
            raise InputError(f"{len(self.texts)} passages were given: give 1 to {MOST_TEXTS} at a time.")
        _check_texts(self.named_texts)

    @property
    def named_texts(self) -> list[tuple[str, str]]:
        """``(what a sentence calls it, text)``."""
        alone = len(self.texts) == 1
        return [("the passage" if alone else f"passage {n}", text) for n, text in enumerate(self.texts, start=1)]


class ContrastQuestion(_Question):
    """Which latents tell passages with a concept from passages without it?"""

    kind: Literal["contrast"] = "contrast"
    with_concept: tuple[Text, ...]
    """:data:`FEWEST_OF_A_SET` to :data:`MOST_OF_A_SET` passages that have it."""
    without_concept: tuple[Text, ...]
    """As many that do not, or more or fewer within the same bounds."""
    measure: Literal["max", "mean"] = "max"
    """What stands for a passage: the activation that is largest by magnitude, or the mean over its tokens."""

    def check(self) -> None:
        super().check()
        for name, texts in (("with", self.with_concept), ("without", self.without_concept)):
            if not FEWEST_OF_A_SET <= len(texts) <= MOST_OF_A_SET:
                raise InputError(
                    f"{len(texts)} passages {name} the concept were given: give {FEWEST_OF_A_SET} to {MOST_OF_A_SET}."
                )
        named = self.named_texts
        _check_texts(named)
        if (total := sum(len(text) for _, text in named)) > _MOST_CONTRAST_CHARACTERS:
            raise InputError(
                f"the passages have {total:,} characters together, and {_MOST_CONTRAST_CHARACTERS:,} are read: give fewer or shorter ones."
            )

    @property
    def named_texts(self) -> list[tuple[str, str]]:
        """``(what a sentence calls it, text)``, those with the concept first."""
        sets = (("with", self.with_concept), ("without", self.without_concept))
        return [(f"passage {n} {name} the concept", t) for name, texts in sets for n, t in enumerate(texts, start=1)]


Question: TypeAlias = TextQuestion | ContrastQuestion
QUESTION: TypeAdapter[Question] = TypeAdapter(Annotated[Question, Field(discriminator="kind")])
"""Reads a question from JSON."""


def _check_texts(named: Sequence[tuple[str, str]]) -> None:
    for name, text in named:
        if not text.strip():
            raise InputError(f"{name} is empty: leave it out.")
        if len(text) > MOST_CHARACTERS:
            raise InputError(
                f"{name} has {len(text):,} characters, and {MOST_CHARACTERS:,} are read: give a part of it."
            )
