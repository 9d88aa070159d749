"""What is answered about passages: JSON-ready."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReadPassage(_Part):
    """A passage as the subject read it."""

    tokens: tuple[str, ...]
    """Visible text of each token; a character that is split over tokens stands at the first of them, the others are empty.
    The BOS is not among them."""
    not_counted: tuple[int, ...]
    """Places of tokens at which activations do not count: special tokens."""
    cut: tuple[str, ...]
    """Visible text of the tokens beyond the context length, which were not read."""


class PassageFiring(_Part):
    """Where a latent fires in one passage."""

    passage: int
    """Ordinal of the passage, from 0."""
    tokens: tuple[int, ...]
    """Places in its ``tokens``, ascending."""
    values: tuple[float, ...]
    """The activation at each."""


class FoundLatent(_Part):
    """A latent that fires on the passages."""

    latent: int
    label: str | None
    """Its label, None where it has none (yet)."""
    maximum: float
    """Its activation that is largest by magnitude, in all passages."""
    corpus_maximum: float | None
    """The same over the run's corpus; None where that is not known, 0 where it never fired."""
    relative: float | None
    """Magnitude of the one over that of the other; None where there is nothing to divide by."""
    firing: tuple[PassageFiring, ...]
    """The passages in which it fires."""


class TextAnswer(_Part):
    """The latents that fire on some passages."""

    run: str
    source: str
    order: str
    passages: tuple[ReadPassage, ...]
    num_latents: int
    """Latents of the source."""
    num_firing: int
    """Those of them that fire, given here or not."""
    latents: tuple[FoundLatent, ...]
    """The first ones in the order."""


class ContrastLatent(_Part):
    """How a latent tells the two sets apart."""

    latent: int
    label: str | None
    """Its label, None where it has none (yet)."""
    auroc: float
    """Chance that a passage with the concept has the larger value, ties counting half; below .5 it fires on those without."""
    auroc_low: float
    """Lower bound of the 95% interval of this latent alone."""
    auroc_high: float
    p: float
    """Mann-Whitney, two-sided."""
    q: float
    """Share of false discoveries among the latents of the source up to this p (Benjamini & Hochberg)."""
    firing_with: int
    """Passages with the concept on which its value is not 0."""
    firing_without: int
    mean_with: float
    """Mean of the values of passages with the concept, silent ones counting 0."""
    mean_without: float


class CutPassage(_Part):
    """A passage that is longer than a context."""

    passage: int
    """Ordinal in its set, from 0."""
    num_tokens: int
    """Its last tokens, which were not read."""


class ContrastAnswer(_Part):
    """The latents that tell passages with a concept from those without it."""

    run: str
    source: str
    measure: str
    num_with: int
    num_without: int
    tokens_with: int
    """Tokens that count in all passages with the concept. Where a set has the longer passages, a latent that fires here and
    there in any text has the larger maxima on it."""
    tokens_without: int
    cut_with: tuple[CutPassage, ...]
    cut_without: tuple[CutPassage, ...]
    num_latents: int
    """Latents of the source, all of which are tests that q counts."""
    num_silent: int
    """Those of them that are 0 on all passages: their AUROC is .5 and their p is 1."""
    num_significant: int
    """Those with q < .05."""
    latents: tuple[ContrastLatent, ...]
    """The first ones by how far the AUROC lies from .5, then by p; silent ones are never among them."""
