"""What decides on which side a document of a run's corpus stands, as far as its configuration says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_OF_THE_CORPUS = ("bos", "text_field", "tokens_field", "messages_field", "tokens_per_document")
"""Settings that change a document's digest, or where its contexts begin: sides are dealt by these (sae_core.tokens)."""


@dataclass(frozen=True, slots=True)
class Split:
    """Two runs with equal ones deal a document that both read to the same side."""

    seed: int
    """Of the run."""
    rule: tuple[object, ...]
    """What else the sides hang on."""
    num_tokens: int
    """Tokens read: they do not change a side, but the corpus."""

    @staticmethod
    def of(config: Mapping[str, Any]) -> Split | None:
        """Of a stored configuration; None where it does not say enough (another version's)."""
        try:
            corpus, extraction = config["corpus"], config["extraction"]
            rule = (extraction["context_length"], *(corpus.get(name) for name in _OF_THE_CORPUS))
            return Split(int(config["seed"]), rule, int(extraction["num_tokens"]))
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def deals_alike(self, other: Split) -> bool:
        """Whether a document stands on the same side in both."""
        return (self.seed, self.rule) == (other.seed, other.rule)
