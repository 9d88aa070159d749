"""``RunContext``: what a stage may reach. Heavy things are loaded once a process, when first asked for."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from autointerp.config import RunConfig
from autointerp.evidence import AblationChoice, EvidenceRequest
from autointerp.pipeline.folder import RunFolder
from autointerp.store import LabelStore
from sae_core.errors import ConfigError, StoreError, UnknownNameError, did_you_mean
from sae_core.records import Source

if TYPE_CHECKING:
    from autointerp.artefacts.exchange import Exchange
    from autointerp.explainers.base import Explainer
    from autointerp.llm.endpoints.base import Endpoint
    from autointerp.llm.protocol import Capability
    from autointerp.llm.runtime import LLMRuntime
    from autointerp.scorers.base import Scorer
    from sae_core.attachment import AttachedCoder
    from sae_core.attribution_evidence import AttributionEvidence
    from sae_core.exemplar_store import ExemplarStore
    from sae_core.extraction import Extractor
    from sae_core.lens_evidence import LensEvidence
    from sae_core.partial import ExtractionSettings
    from sae_core.subject import SubjectModel
    from sae_core.tokens import TokenCorpus

Request = TypeVar("Request", bound=EvidenceRequest)


def evidence_request(components: Sequence[Explainer | Scorer], kind: type[Request]) -> Request | None:
    """What components ask of one kind of evidence, None where none asks.

    Errors: ConfigError where two ask for different settings.
    """
    asked = [(component.kind, need) for component in components for need in component.needs() if isinstance(need, kind)]
    for name, need in asked[1:]:
        if need != asked[0][1]:
            raise ConfigError(
                f"{asked[0][0]!r} and {name!r} ask for different {need.kind} evidence ({asked[0][1]!r} and {need!r}): "
                "give both the same settings."
            )
    return asked[0][1] if asked else None


def extraction_settings(config: RunConfig) -> ExtractionSettings:
    """What extraction keeps."""
    from sae_core.partial import ExtractionSettings

    given = config.extraction
    return ExtractionSettings(
        context_length=given.context_length,
        window_length=given.window_length,
        context_tokens=given.window_length,
        top_exemplars=given.top_exemplars,
        sampled_exemplars=given.sampled_exemplars,
        pool_windows=given.pool_size,
        batch_tokens=given.batch_tokens,
        seed=config.seed,
        skip_non_finite=given.non_finite == "skip",
    )


@dataclass
class RunContext:
    """One run as one process sees it."""

    config: RunConfig
    folder: RunFolder
    store: LabelStore
    run_id: str
    capabilities: dict[str, frozenset[Capability]] = field(default_factory=dict, repr=False)
    """What endpoints were found to do when this process checked them; empty for a run that is taken up again."""
    asks_again: bool = False
    """Whether replies of language models that were kept though they cannot be used are asked for again."""
    exchange: Exchange | None = field(default=None, repr=False)
    """How files come from and go to machines that share no folder; None where all share one."""
    _exemplars: dict[str, ExemplarStore] = field(default_factory=dict, repr=False)
    _attached: dict[str, AttachedCoder] = field(default_factory=dict, repr=False)
    _lenses: dict[str, LensEvidence] = field(default_factory=dict, repr=False)
    _attributions: dict[str, AttributionEvidence] = field(default_factory=dict, repr=False)
    _choices: dict[str, Mapping[int, AblationChoice]] = field(default_factory=dict, repr=False)
    _steering_orders: dict[str, Sequence[int]] = field(default_factory=dict, repr=False)
    _llms: LLMRuntime | None = field(default=None, repr=False)
    _extraction: tuple[range, Extractor] | None = field(default=None, repr=False)
    _loading: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Whoever opens a run that reuses another one's exemplars finds them."""
        reused = self.config.extraction.reuse
        if reused is not None and self.folder.reused is None:
            self.folder = replace(self.folder, reused=Path(reused))

    @cached_property
    def sources(self) -> list[Source]:
        """The run's sources in their order, controls among them."""
        return self.store.sources(self.run_id)

    def source(self, name: str) -> Source:
        """A source by its name. Errors: UnknownNameError."""
        for source in self.sources:
            if source.name == name:
                return source
        names = [source.name for source in self.sources]
        raise UnknownNameError(f"the run {self.run_id} has no source {name!r}: {did_you_mean(name, names)}")

    def latents(self, source: str) -> Sequence[int]:
        """The latents of a source that are labelled, ascending: the configured ones, or all of a control's."""
        record = self.source(source)
        if record.control:
            return range(record.num_latents)
        return self.config.select_latents(record.num_latents, source)

    @cached_property
    def explainers(self) -> list[Explainer]:
        """The configured explainers."""
        return self.config.build_explainers()

    @cached_property
    def scorers(self) -> list[Scorer]:
        """The configured scorers."""
        return self.config.build_scorers()

    def request(self, kind: type[Request]) -> Request | None:
        """What the components ask of one kind of evidence, None where none asks.

        Errors: ConfigError where two ask for different settings.
        """
        return evidence_request([*self.explainers, *self.scorers], kind)

    # what needs torch is imported on use

    @cached_property
    def subject(self) -> SubjectModel:
        """The subject model, on its device."""
        from sae_core.subject import SubjectModel

        given = self.config.subject
        with self._loading:  # a stage beside others asks for it too, and it must not be there twice
            if "subject" in self.__dict__:
                loaded: SubjectModel = self.__dict__["subject"]
                return loaded
            subject = SubjectModel.load(given.model, revision=given.revision, device=given.device, dtype=given.dtype)
            for source in self.sources:
                self._check_unchanged("subject", given.model, source.subject_revision, subject.revision)
            self.__dict__["subject"] = subject
        return subject

    def adopt(self, other: RunContext) -> None:
        """Take over what ``other``, an earlier context of the same run, has loaded."""
        if self.config.subject == other.config.subject:
            self.__dict__.update(
                {name: other.__dict__[name] for name in ("subject", "corpus") if name in other.__dict__}
            )
            self._attached.update(other._attached)
        self._exemplars.update(other._exemplars)
        self._lenses.update(other._lenses)

    def adopt_subject(self, other: RunContext) -> None:
        """Use the subject that another run has loaded, where it is the same one: there is room for one on a GPU."""
        if "subject" in self.__dict__ or "subject" not in other.__dict__ or self.config.subject != other.config.subject:
            return
        if all(source.subject_revision == other.subject.revision for source in self.sources):
            self.__dict__["subject"] = other.subject

    def release_subject(self) -> None:
        """Free the subject and what lies on it; both are loaded again when they are asked for."""
        self.__dict__.pop("subject", None)
        self._attached.clear()
        self._extraction = None

    def attached(self, source: str) -> AttachedCoder:
        """A source's coder on its hookpoint; that of a control is what the ``directions`` stage left."""
        if source not in self._attached:
            from autointerp.pipeline.attaching import attach_configured, attach_directions

            record = self.source(source)
            if record.control:
                self._attached[source] = attach_directions(self.subject, record, self.folder)
            else:
                number = self.config.source_names().index(source)
                attached = attach_configured(self.subject, self.config.coders[number])
                self._check_unchanged("coder", record.coder, record.coder_fingerprint, attached.coder.fingerprint)
                self._attached[source] = attached
        return self._attached[source]

    def _check_unchanged(self, what: str, given: str, before: str, now: str) -> None:
        if before != now:
            raise StoreError(
                f"the {what} {given!r} has other weights now than when the run {self.run_id} began: "
                "choose another --out, or delete that output folder."
            )

    @cached_property
    def corpus(self) -> TokenCorpus:
        """The whole token corpus; there once the ``tokenize`` stage is done."""
        from sae_core.tokens import TokenCorpus

        return TokenCorpus.open(self.folder.corpus)

    @property
    def batch_tokens(self) -> int:
        """Tokens of one forward pass of the stages that run the subject beside extraction."""
        return self.config.extraction.batch_tokens or 8192

    def extractor(self, latents: range, corpus: TokenCorpus, contexts: range) -> Extractor:
        """What extracts ``latents`` of every source that has some of them; it goes on from earlier shards where it can.

        ``corpus``: as far as it is there; ``contexts`` are those that it is asked for.
        """
        from sae_core.encoding import Replica, replicas_on_all_gpus
        from sae_core.extraction import Extractor

        kept = self._extraction
        if kept is None or kept[0] != latents or kept[1].has_done(contexts):
            names = self.sources_with(latents)
            attached = [self.attached(name) for name in names]
            ranges = [range(latents.start, min(latents.stop, coder.coder.num_latents)) for coder in attached]
            self._extraction = None  # so that two are never there
            replicas = [Replica(self.subject, attached)]
            if self.config.subject.device in ("auto", "cuda"):
                replicas = replicas_on_all_gpus(replicas[0])
            extractor = Extractor(replicas, corpus, self.extraction_settings, ranges)
            self._extraction = kept = (latents, extractor)
        else:
            kept[1].follow(corpus)
        return kept[1]

    def sources_with(self, latents: range) -> list[str]:
        """The sources that have some of these latents."""
        return [source.name for source in self.sources if source.num_latents > latents.start]

    def drop_extractor(self) -> None:
        """Free what extraction holds; after an error it must not be used again."""
        self._extraction = None

    def lens(self, source: str) -> LensEvidence | None:
        """What a source's directions write and their neighbours, None where the stage did not run."""
        from sae_core.lens_evidence import LensEvidence

        if source not in self._lenses:
            path = self.folder.lens(source)
            if not path.is_file():
                return None
            self._lenses[source] = LensEvidence.load(path)
        return self._lenses[source]

    def attribution(self, source: str) -> AttributionEvidence | None:
        """Attribution of a source's latents, a row each, None where the stages left none; there once these are done."""
        from autointerp.pipeline.attributions import read_attribution

        if source not in self._attributions:
            found = read_attribution(self.folder, source)
            if found is None:
                return None
            self._attributions[source] = found
        return self._attributions[source]

    def ablation_choices(self, source: str) -> Mapping[int, AblationChoice]:
        """Why each alive latent of a source is ablated or is not; there once attribution is done, and empty where nobody asks."""
        from autointerp.pipeline.ablation_budget import choose_latents

        if source not in self._choices:
            self._choices[source] = choose_latents(self, source)
        return self._choices[source]

    def steering_order(self, source: str) -> Sequence[int]:
        """The latents of a source that are steered, in random order; there once exemplars are merged, and empty where nobody asks."""
        from autointerp.pipeline.stages.intervene import draw_steered

        if source not in self._steering_orders:
            self._steering_orders[source] = draw_steered(self, source)
        return self._steering_orders[source]

    @cached_property
    def endpoints(self) -> list[Endpoint]:
        """The configured language models that a component asks, the first one first: the others are left alone."""
        components: list[Explainer | Scorer] = [*self.explainers, *self.scorers]
        asked = {need.endpoint for component in components for need in component.llm_needs()}
        return [
            endpoint
            for number, endpoint in enumerate(self.config.build_endpoints())
            if endpoint.name in asked or (number == 0 and "" in asked)
        ]

    @property
    def llms(self) -> LLMRuntime:
        """The connections to the endpoints, opened on use."""
        with self._loading:  # chunks beside one another must share one loop
            if self._llms is None:
                from autointerp.llm.runtime import LLMRuntime
                from autointerp.pipeline.owner import Owner

                self._llms = LLMRuntime(
                    self.endpoints,
                    self.store,
                    self.run_id,
                    scope=self.run_id,
                    budget=self.config.budget,
                    owner=str(Owner.of_this_process()),
                    folder=self.folder.root,
                    asks_again=self.asks_again,
                )
            return self._llms

    def close(self) -> None:
        """Close connections to language models."""
        if self._llms is not None:
            self._llms.close()
            self._llms = None

    @property
    def extraction_settings(self) -> ExtractionSettings:
        """What extraction keeps."""
        return extraction_settings(self.config)

    def exemplars(self, source: str) -> ExemplarStore:
        """A source's exemplar store; there once the ``merge`` stage is done."""
        if source not in self._exemplars:
            from sae_core.exemplar_store import ExemplarStore

            self._exemplars[source] = ExemplarStore.open(self.folder.exemplars(source))
        return self._exemplars[source]
