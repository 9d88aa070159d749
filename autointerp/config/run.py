"""The whole configuration of a run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from autointerp.config.sections import (
    CONTROL_SUFFIX,
    BudgetConfig,
    CoderConfig,
    ControlsConfig,
    CorpusConfig,
    Count,
    ExtractionConfig,
    LabelsConfig,
    PrecisionConfig,
    Section,
    StoreConfig,
    SubjectConfig,
)
from sae_core.errors import ConfigError

if TYPE_CHECKING:
    from autointerp.explainers.base import Explainer
    from autointerp.llm.endpoints.base import Endpoint
    from autointerp.scorers.base import Scorer
    from autointerp.scorers.detection import DetectionScorer

SCREEN_PROMPT = "screen"
"""Name of the prompt file of the cheap screen."""


class RunConfig(Section):
    """Everything that decides what a run computes."""

    subject: SubjectConfig
    """The language model that is explained."""
    coders: tuple[CoderConfig, ...] = Field(min_length=1)
    """The sparse coders whose latents are labelled."""
    corpus: CorpusConfig
    """The text on which latents are observed."""
    extraction: ExtractionConfig = ExtractionConfig()
    """How much text is read, and what is kept of it."""
    latents: str | tuple[Annotated[int, Field(ge=0)], ...] | dict[str, tuple[Annotated[int, Field(ge=0)], ...]] = "all"
    """Which latents are labelled: "all", a half-open range such as "0:512", a list of numbers, or a table with a list for each source."""
    seed: int = Field(default=0, ge=0)
    """Seed of every random choice."""
    store: StoreConfig = StoreConfig()
    """Where results are kept as they are made."""
    explainers: tuple[dict[str, Any], ...] = ({"kind": "pattern"},)
    """One table for each explainer: its kind and settings."""
    scorers: tuple[dict[str, Any], ...] = ({"kind": "pattern"}, {"kind": "intervention"})
    """One table for each scorer: its kind and settings."""
    endpoints: tuple[dict[str, Any], ...] = ()
    """One table for each language model that explainers and scorers ask: its kind, model and settings."""
    labels: LabelsConfig = LabelsConfig()
    """Which explanation becomes the label."""
    budget: BudgetConfig = BudgetConfig()
    """Most that the run may spend on language models."""
    controls: ControlsConfig = ControlsConfig()
    """The floors that stand beside the scores."""
    precision: PrecisionConfig = PrecisionConfig()
    """How precision and recall at the natural rate are estimated, and what is asked for it."""
    chunk_latents: Count = 128
    """Latents of one chunk of work."""

    @field_validator("latents")
    @classmethod
    def _latents_parse(
        cls, value: str | tuple[int, ...] | dict[str, tuple[int, ...]]
    ) -> str | tuple[int, ...] | dict[str, tuple[int, ...]]:
        if isinstance(value, str) and value != "all":
            match = re.fullmatch(r"(\d*):(\d*)", value)
            if match is None:
                raise ValueError('it must be "all", a range such as "0:512", or a list of numbers')
            if match[2] and int(match[1] or 0) >= int(match[2]):
                raise ValueError("the range is empty: its start must be below its end")
        if isinstance(value, tuple):
            if not value:
                raise ValueError('an empty list selects nothing: leave the key out, or write "all"')
            return tuple(sorted(set(value)))
        if isinstance(value, dict):
            if not any(value.values()):
                raise ValueError('empty lists select nothing: leave the key out, or write "all"')
            return {source: tuple(sorted(set(latents))) for source, latents in sorted(value.items())}
        return value

    @property
    def digest(self) -> str:
        """sha256 of what decides the results: the resolved configuration without store, device, passes, prices and budget."""
        return hashlib.sha256(canonical_json(self.identity()).encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """The JSON value that :attr:`digest` is taken of."""
        data = self.stored()
        del data["subject"]["device"], data["extraction"]["latents_per_pass"], data["budget"]
        if data["extraction"]["reuse"] is None:
            del data["extraction"]["reuse"]  # as in runs of versions that did not know it
        else:
            data["extraction"]["reuse"] = reused_run(data["extraction"]["reuse"])  # wherever its folder lies
        data["endpoints"] = [endpoint.identity() for endpoint in self.build_endpoints()]
        if prompts := self.prompt_hashes():  # other instructions are other results
            data["prompts"] = prompts
        return data

    def prompt_hashes(self) -> dict[str, str]:
        """sha256 of each prompt file that the components send, by its name."""
        from autointerp.prompting.prompt import load_prompt

        components: list[Explainer | Scorer] = [*self.build_explainers(), *self.build_scorers()]
        names = {name for component in components for need in component.llm_needs() for name in need.prompts}
        if self.precision.screen_windows and self.estimated_scorer() is not None:
            names.add(SCREEN_PROMPT)
        return {name: load_prompt(name).hash for name in sorted(names)}

    def stored(self) -> dict[str, Any]:
        """The JSON value that a run keeps of its configuration: all but the store that it is kept in."""
        data = self.model_dump(mode="json", by_alias=True)
        del data["store"]
        return data

    def select_latents(self, num_latents: int, source: str = "") -> Sequence[int]:
        """The selected latents of a source that has ``num_latents``, ascending; ``source`` is its name.

        Errors: ConfigError where the selection reaches beyond the source, or is a table that does not name it.
        """
        if self.latents == "all":
            return range(num_latents)
        if isinstance(self.latents, dict):
            if source not in self.latents:
                raise ConfigError(
                    f"latents is a table without {source!r}, which is a source of this run: name all of {', '.join(map(repr, self.source_names()))} in it."
                )
            return self._within(self.latents[source], num_latents)
        if isinstance(self.latents, str):
            first, last = self.latents.split(":")
            start, stop = int(first or 0), int(last or num_latents)
            if start >= num_latents or stop > num_latents:
                raise ConfigError(
                    f"latents = {self.latents!r} reaches beyond the coder, which has {num_latents} latents: "
                    f'give a range within "0:{num_latents}", or "all".'
                )
            return range(start, stop)
        return self._within(self.latents, num_latents)

    def _within(self, latents: tuple[int, ...], num_latents: int) -> list[int]:
        beyond = [latent for latent in latents if latent >= num_latents]
        if beyond:
            raise ConfigError(
                f"latents names {beyond[0]}, but the coder has {num_latents} latents: "
                f"numbers from 0 to {num_latents - 1} are allowed."
            )
        return list(latents)

    def source_names(self) -> list[str]:
        """A short name, unique in the run, for each coder."""
        names: list[str] = []
        for coder in self.coders:
            stem = coder.name
            if stem is None:
                given = [coder.hookpoint] if isinstance(coder.hookpoint, str) else list(coder.hookpoint or ())
                parts = [Path(coder.path).name, *given]
                stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join(parts)).strip("-.")[:64] or "coder"
                stem += "-coder" if stem.endswith(CONTROL_SUFFIX) else ""
            name, number = stem, 2
            while name in names:
                if coder.name is not None:
                    raise ConfigError(f"two coders are named {stem!r}: give each its own coders.N.name.")
                name, number = f"{stem}-{number}", number + 1
            names.append(name)
        return names

    def build_explainers(self) -> list[Explainer]:
        """The explainers as components, in the order of the file."""
        from autointerp.components import parse_component

        return [parse_component("explainers", table) for table in self.explainers]

    def build_scorers(self) -> list[Scorer]:
        """The scorers as components, in the order of the file."""
        from autointerp.components import parse_component

        return [parse_component("scorers", table) for table in self.scorers]

    def estimated_scorer(self) -> DetectionScorer | None:
        """The scorer whose verdicts are turned into precision and recall; None where ``precision.by`` names none of them."""
        from autointerp.scorers.detection import DetectionScorer

        if self.precision.by != "detection":
            return None
        return next((scorer for scorer in self.build_scorers() if isinstance(scorer, DetectionScorer)), None)

    def build_endpoints(self) -> list[Endpoint]:
        """The endpoints as components, in the order of the file."""
        from autointerp.components import parse_component

        return [parse_component("endpoints", table) for table in self.endpoints]


def reused_run(folder: str) -> str:
    """Id of the run in a folder whose exemplars are reused. Errors: ConfigError, StoreError for a broken note."""
    from autointerp.pipeline.folder import RunFolder

    note = RunFolder(Path(folder)).read_note() if Path(folder).is_dir() else None
    if note is None:
        raise ConfigError(
            f"extraction.reuse is {folder!r}, which is no output folder of a run (it has no run.json): give one, or leave the key out."
        )
    return note.run_id


def canonical_json(value: Any) -> str:
    """JSON text that is the same for equal values: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
