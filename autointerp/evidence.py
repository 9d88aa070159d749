"""What components ask to be measured, and what they may read about one latent. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from sae_core.records import Exemplar, LatentStatistics, Origin, Side, Source, SuffixProbe, WindowPool

if TYPE_CHECKING:
    from autointerp.explanation import Explanation
    from autointerp.judging.written_texts import WrittenTexts
    from sae_core.attribution_evidence import AttributionEvidence
    from sae_core.intervention.evidence import AblationEvidence, SteeringEvidence
    from sae_core.intervention.substitution_evidence import SubstitutionEvidence
    from sae_core.intervention.text_evidence import SteeredTexts
    from sae_core.lens_evidence import LensEvidence, TokenChangeEvidence
    from sae_core.token_text import TokenText
    from sae_core.tried_texts import TriedText


class EvidenceRequest(BaseModel):
    """Something that a stage which runs the subject must measure before a component can work."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    """Which stage is asked."""


class SuffixRequest(EvidenceRequest):
    """Shortest suffixes and token importances at the peaks of exemplars (METHODS 2)."""

    kind: Literal["suffix"] = "suffix"
    """Which stage is asked."""
    exemplars: int = Field(default=10, ge=1)
    """Exemplars of the explain side to probe for each latent."""
    keep: float = Field(default=0.5, gt=0, le=1)
    """Share of the peak activation that a suffix must keep."""
    longest: int = Field(default=32, ge=1)
    """Longest suffix that is tried, in tokens."""


class AblationRequest(EvidenceRequest):
    """Effect of removing the latent, against random pushes of the same size (METHODS 5)."""

    kind: Literal["ablation"] = "ablation"
    """Which stage is asked."""
    windows: int = Field(default=16, ge=2)
    """Firing windows of the score side, drawn uniformly, one a document."""
    control_directions: int = Field(default=8, ge=2)
    """Random directions of the same norm for each window."""
    max_positions: int | None = Field(default=None, ge=1)
    """Most tokens that are edited and measured from the first firing one on; None for all to the window's end."""
    latents: int | None = Field(default=None, ge=1)
    """Most latents of a source that are ablated; None for all."""
    random_share: float = Field(default=0.05, gt=0, le=1)
    """Share of the alive latents that is ablated whatever their attribution says, where not all are; half of ``latents`` at most."""


class AttributionRequest(EvidenceRequest):
    """First-order effect of ablating every latent, from activations and gradients alone (METHODS 5)."""

    kind: Literal["attribution"] = "attribution"
    """Which stage is asked."""
    tokens: int = Field(ge=1)
    """Tokens of the score side that are read."""
    rare_windows: int = Field(default=4, ge=1)
    """Firing windows whose contexts are read for each latent that fires in none of these tokens, though it does on the side."""


class AblationChoice(StrEnum):
    """Why a latent is ablated, or is not."""

    ALL = "all"
    """All latents are."""
    RANDOM = "random"
    """It is one of the random ones that stand for the dictionary."""
    SCREEN = "screen"
    """Its attribution is among the largest; it stands for nothing but itself."""
    LEFT_OUT = "left_out"
    """It is not: others had a larger attribution, and there was room for so many."""


class SteeringRequest(EvidenceRequest):
    """Effect of adding the latent's decoder row at a strength that reaches a given KL (METHODS 5)."""

    kind: Literal["steering"] = "steering"
    """Which stage is asked."""
    latents: int = Field(default=256, ge=0)
    """Size of the random sample of latents that is steered; 0 for none."""
    targets: tuple[float, ...] = (0.1, 0.33, 1.0)
    """Mean KL divergences to reach, in nats."""
    prompts: int = Field(default=16, ge=2)
    """Prompts that fit the strength, and as many that report what it reaches."""
    control_directions: int = Field(default=4, ge=2)
    """Random directions for each target."""


class SteeredTextsRequest(EvidenceRequest):
    """Continuations of the latent's own prompts, with it steered, with others, and with none (METHODS 5)."""

    kind: Literal["steered_texts"] = "steered_texts"
    """Which stage is asked."""
    latents: int = Field(default=32, ge=1)
    """Size of the random sample of latents that texts are made for, taken from those that are steered."""
    texts: int = Field(default=30, ge=2)
    """Prompts of a latent: windows of the score side in their contexts, cut after the first firing token."""
    new_tokens: int = Field(default=8, ge=1)
    """Tokens of a continuation."""
    target: float | None = None
    """KL in nats at which latents are steered; None for the largest that steering aims at."""
    temperature: float = Field(default=1.0, ge=0)
    """Of the draws."""


class SteeredAnswersRequest(EvidenceRequest):
    """Answers to instructions that are the same for all latents, at every strength that was found (METHODS 5, AxBench)."""

    kind: Literal["steered_answers"] = "steered_answers"
    """Which stage is asked."""
    latents: int = Field(default=32, ge=1)
    """Size of the random sample of latents that texts are made for, taken from those that are steered."""
    texts: int = Field(default=10, ge=2)
    """Instructions; for a subject without a chat template beginnings of the corpus' text."""
    new_tokens: int = Field(default=48, ge=1)
    """Tokens of an answer."""
    instructions: str = ""
    """File with an instruction a line; "" for our own list, or for text of the corpus where the subject has no chat template."""
    temperature: float = Field(default=1.0, ge=0)
    """Of the draws."""


class SubstitutionRequest(EvidenceRequest):
    """Effect of replacing the latent's activations by those that its chosen label predicts (causal scrubbing)."""

    kind: Literal["substitution"] = "substitution"
    """Which stage is asked."""
    latents: int = Field(default=256, ge=0)
    """Size of the random sample of labelled latents of each coder that are replaced one by one; 0 for none."""
    windows: int = Field(default=16, ge=2)
    """Firing windows of a latent, and silent ones in which the label predicts an activation, at most."""
    contexts: int = Field(default=64, ge=0)
    """Contexts in which all labelled latents of a coder are replaced at once; 0 for none."""


class LensRequest(EvidenceRequest):
    """What every latent's direction writes, and which latents' directions lie near it; no text is read for it."""

    kind: Literal["lens"] = "lens"
    """Which stage is asked."""
    neighbours: int = Field(default=10, ge=1)
    """Nearest decoder rows by cosine."""
    tokens: int = Field(default=10, ge=1)
    """Tokens raised and lowered most through the final norm and the unembedding."""


class TokenChangeRequest(EvidenceRequest):
    """Mean change of the next token's logits when the latent is steered on random prompts (METHODS 2, ``output``)."""

    kind: Literal["token_change"] = "token_change"
    """Which stage is asked."""
    prompts: int = Field(default=32, ge=1)
    """Random prompts."""
    tokens: int = Field(default=10, ge=1)
    """Tokens raised and lowered most."""


class EvidenceStore(Protocol):
    """The part of :class:`sae_core.exemplar_store.ExemplarStore` that components read."""

    @property
    def source(self) -> Source:
        """The coder on its subject."""
        ...

    @property
    def corpus_fingerprint(self) -> str:
        """sha256 of what was read and of how it was cut and dealt to sides."""
        ...

    @property
    def statistics(self) -> LatentStatistics:
        """Exact firing statistics of all latents."""
        ...

    @property
    def pieces(self) -> TokenText:
        """Readable text of token ids."""
        ...

    def exemplars(self, latent: int, side: Side, origin: Origin) -> list[Exemplar]:
        """Stored windows: TOP strongest first, SAMPLED in uniform random order."""
        ...

    def pool(self, side: Side) -> WindowPool:
        """Uniform windows of one side with every latent's activations; the same object at every call."""
        ...


@dataclass(frozen=True, slots=True)
class ScreenedWindows:
    """Bulk windows of the score side (rows of its pool) that a cheap screen was shown with a label (METHODS 4)."""

    shown: tuple[int, ...]
    """A uniform sample of them, in random order."""
    flagged: tuple[int, ...]
    """All that the screen says the label fits, in random order."""
    verify: int
    """How many of them, from the first one on, the judge itself is to be asked about."""


@dataclass(frozen=True, slots=True)
class LatentEvidence:
    """Everything that has been measured about one latent. An explainer keeps to the explain and choose sides."""

    latent: int
    """Ordinal of the latent in its coder."""
    store: EvidenceStore
    """Exemplars, statistics and pools of the source; read on use."""
    suffix_probes: Sequence[SuffixProbe] = ()
    """This latent's probes; empty where the stage did not run or found no exemplar."""
    ablation: AblationEvidence | None = None
    """Ablation rows, of this latent or of many; None where the stage did not run."""
    steering: SteeringEvidence | None = None
    """Steering rows, of this latent or of many; None where the stage did not run."""
    lens: LensEvidence | None = None
    """What the directions of all the source's latents write, and their neighbours; None where the stage did not run."""
    token_change: TokenChangeEvidence | None = None
    """What steering on random prompts changes, of this latent or of many; None where the stage did not run."""
    scored_side: Side = Side.SCORE
    """The side that scorers read: SCORE for what is published, CHOOSE where a label is chosen."""
    excluded: frozenset[tuple[int, int]] = frozenset()
    """Windows (context, position) that must not be scored: a person has seen them."""
    tried: Sequence[TriedText] = ()
    """Texts that were tried on the subject, for explainers that revise in rounds and for scorers that have texts written."""
    written: Sequence[WrittenTexts] = ()
    """Texts that scorers had written from the latent's labels; empty where the stage did not run."""
    screened: Mapping[str, ScreenedWindows] = field(default_factory=dict)
    """What a screen said of the latent's labels, by explainer; empty where the stage did not run."""
    in_text_sample: frozenset[str] = frozenset()
    """Kinds of texts (``steered_texts``, ``steered_answers``) for whose random sample of latents this one was drawn."""
    steered_texts: SteeredTexts | None = None
    """Texts written under steering, of this latent or of many; None where the stage did not run."""
    steered_answers: SteeredTexts | None = None
    """Answers to instructions written under steering; None where the stage did not run."""
    substitution: SubstitutionEvidence | None = None
    """Rows of labels put in their latents' place, of this latent or of many; None where the stage did not run."""
    attribution: AttributionEvidence | None = None
    """Attribution of all latents of the source, a row each; None where the stage did not run."""
    ablation_choice: AblationChoice | None = None
    """Why the latent is ablated, or is not; None where nobody asks for ablation, and for dead latents."""
    other_labels: Sequence[Explanation] = ()
    """Texts about other latents of the source, without failures; only where a scorer compares labels with them."""

    @property
    def is_dead(self) -> bool:
        """Whether the latent never fires in the corpus."""
        return int(self.store.statistics.fire_count[:, self.latent].sum()) == 0

    def num_windows_firing(self, side: Side) -> int:
        """Windows of the corpus's ``side`` in which the latent fires (exact, not only those in the pool)."""
        return int(self.store.statistics.num_windows_firing[side, self.latent])
