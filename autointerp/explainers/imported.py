"""Labels from elsewhere: another run, a dictionary, a table, or Neuronpedia's files; nothing is written anew."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from autointerp.evidence import EvidenceStore, LatentEvidence
from autointerp.explainers.base import Explainer
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.imports import ImportedLabel, ImportedLabels, LabelFormat, LabelRequest, Sides, read_labels
from autointerp.imports.split import Split
from autointerp.llm.asking import NO_LLMS, LLMs
from autointerp.sampling.shown_elsewhere import holding_back, places_of_text
from sae_core.errors import ConfigError
from sae_core.exemplar_store import ExemplarStore
from sae_core.records import Source

LONGEST_LABEL = 2_000
"""Characters; what is longer is no label that a judge could apply."""


@lru_cache(maxsize=4)
def _opened(windows: Path) -> ExemplarStore:
    """Another run's exemplar store, which is written once."""
    return ExemplarStore.open(windows)


class ImportedExplainer(Explainer):
    """Takes labels that others wrote, so that this run only scores them."""

    kind: Literal["imported"] = "imported"
    """Name in the config file."""
    path: str = Field(min_length=1)
    """A run's output folder, a dictionary, a parquet or JSON lines file or a folder of these, or Neuronpedia's explanations."""
    format: LabelFormat = "auto"
    """What the path holds; auto looks at it."""
    source: str = ""
    """Name of the source in it; by default the only one, else the one with the same coder, else with the same name."""
    about: Literal["input", "output"] = "input"
    """Whether the labels say what makes the latent fire, or what it does."""
    latent_column: str = Field(default="latent", min_length=1)
    """Column or key that holds the latent's number, in parquet and JSON lines."""
    label_column: str = ""
    """Column or key that holds the label, in parquet and JSON lines; by default label, or label_output for that side."""
    author: str = ""
    """Only Neuronpedia's explanations of this author id."""
    type_name: str = ""
    """Only Neuronpedia's explanations of this type, such as "oai_token-act-pair"."""
    allow_other_coder: bool = False
    """Take labels of a coder with other weights too, e.g. of a retrained one."""
    allow_other_split: bool = False
    """Score labels too of which it is known that windows that were shown to whoever wrote them may be judged; they are marked."""

    @property
    def side(self) -> Literal["input", "output"]:
        """What the configuration says that the labels are about."""
        return self.about

    def check_sources(self, sources: Sequence[Source], split: Split | None) -> None:
        """Refuses a file that is not there, is no labels, or is another coder's; and labels whose writers were shown windows that
        may be judged here, where these cannot be held back."""
        for source in sources:
            if not source.control:
                self._check_sides(self.read_for(source), split)

    def _check_sides(self, found: ImportedLabels, split: Split | None) -> None:
        if self.allow_other_split or found.windows is not None:
            return
        known, first, edited = False, -1, 0
        for latent, label in found.labels.items():  # one after the other: there may be a million
            if not label.text or label.foreign:
                continue
            known = True
            if label.edited and label.seen is None:
                first, edited = (first if edited else latent), edited + 1
        do = (
            "give that run's output folder, by which they are held back, or set allow_other_split = true beside the path to "
            "score them all the same"
        )
        if known and found.split is not None and split is not None and not found.split.deals_alike(split):
            what = (
                f"its seed is {found.split.seed}, this run's {split.seed}"
                if found.split.seed != split.seed
                else "its contexts are cut in another way"
            )
            raise ConfigError(
                f"the labels in {self.path!r} are of a run that dealt its corpus to other sides ({what}), so that windows which "
                f"an explainer was shown there would be judged here: {do}."
            )
        if edited:
            raise ConfigError(
                f"{edited} labels in {self.path!r} were edited by people (that of latent {first}, for instance) and the "
                f"file does not say which windows these had seen: {do}."
            )

    def held_back(self, store: EvidenceStore) -> EvidenceStore:
        """The windows of a source with what the writers of its labels were shown held back. Errors: ConfigError."""
        windows = self.read_for(store.source).windows
        if windows is None:
            raise ConfigError(
                f"the windows of the run whose labels are in {self.path!r} are not there any more, so that what its explainers "
                "were shown cannot be held back: put its folder back where it was."
            )
        return holding_back(store, _opened(windows))

    def _sides(self, label: ImportedLabel, found: ImportedLabels, store: EvidenceStore) -> Sides:
        """How what the label's writer was shown is kept from being scored on the windows of ``store``."""
        if label.foreign or (label.edited and label.seen is None):
            return "unknown"
        if label.corpus == store.corpus_fingerprint:
            return "same"
        if found.windows is None or _opened(found.windows).pieces != store.pieces:
            return "unknown"
        return "held_back"

    def _seen(self, label: ImportedLabel, found: ImportedLabels, latent: int, store: EvidenceStore) -> tuple[str, ...]:
        """The windows of ``store`` that a person who edited the label has seen, as far as they can be told."""
        if not label.seen or label.corpus == store.corpus_fingerprint:
            return label.seen or ()
        if found.windows is None or _opened(found.windows).pieces != store.pieces:
            return ()
        seen = frozenset((int(c), int(p)) for c, _, p in (name.partition(":") for name in label.seen))
        places = places_of_text(store, latent, _opened(found.windows), seen)
        return tuple(f"{context}:{position}" for context, position in sorted(places))

    def read_for(self, source: Source) -> ImportedLabels:
        """The labels of a source, checked against its coder. Errors: ConfigError."""
        request = LabelRequest(
            path=Path(self.path).expanduser(),
            format=self.format,
            source=self.source,
            own_source=source.name,
            own_fingerprint=source.coder_fingerprint,
            latent_column=self.latent_column,
            label_column=self.label_column or ("label" if self.about == "input" else "label_output"),
            author=self.author,
            type_name=self.type_name,
        )
        found = read_labels(request)
        if found.largest >= source.num_latents:
            raise ConfigError(
                f"{self.path!r} has a label for latent {found.largest}, but the coder of {source.name!r} has "
                f"{source.num_latents} latents: give labels of this coder."
            )
        if found.fingerprint and found.fingerprint != source.coder_fingerprint and not self.allow_other_coder:
            raise ConfigError(
                f"the labels in {self.path!r} are those of another coder (its weights' sha256 begins {found.fingerprint[:12]}, "
                f"that of {source.name!r} {source.coder_fingerprint[:12]}): give labels of this coder, or set "
                "allow_other_coder = true to score them all the same."
            )
        return found

    async def explain(self, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Explanation:
        """The file's label; ``dead``, ``no_explanation`` and ``bad_label`` are failures. Errors: ConfigError of the file."""
        latent, source = evidence.latent, evidence.store.source
        if source.control:
            return self._failed(
                latent, FailureKind.NO_EXPLANATION, "labels from elsewhere are not about random directions"
            )
        found = self.read_for(source)
        if evidence.is_dead:
            tokens = int(evidence.store.statistics.num_tokens.sum())
            return self._failed(latent, FailureKind.DEAD, f"never fires in {tokens:,} tokens")
        label = found.labels.get(latent)
        name = Path(self.path).name
        if label is None:
            return self._failed(latent, FailureKind.NO_EXPLANATION, f"the file has no label for it ({name})")
        if label.text is None:
            why = f": {label.reason.rstrip('.')}" if label.reason else ""
            return self._failed(latent, FailureKind.NO_EXPLANATION, f"the file has no label for it ({name}){why}")
        if not label.text:
            return self._failed(latent, FailureKind.BAD_LABEL, f"the label in {name} has no printable character")
        if len(label.text) > LONGEST_LABEL:
            message = f"the label in {name} has {len(label.text):,} characters, {LONGEST_LABEL:,} are allowed"
            return self._failed(latent, FailureKind.BAD_LABEL, message)
        sides = self._sides(label, found, evidence.store)
        return Explanation(
            latent=latent,
            explainer=self.kind,
            side=self.side,
            text=label.text,
            model=label.model or None,
            payload={"imported": found.provenance(label, Path(self.path)) | {"sides": sides}},
            exemplar_ids=self._seen(label, found, latent, evidence.store),
        )

    def _failed(self, latent: int, kind: FailureKind, message: str) -> Explanation:
        failure = Failure(kind=kind, message=message)
        return Explanation(latent=latent, explainer=self.kind, side=self.side, failure=failure)
