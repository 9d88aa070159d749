"""A run's configuration, declared once: TOML file, ``--set key=value`` and ``AUTOINTERP_*`` environment.

Order of precedence: ``--set``, then the environment, then the file, then the defaults below. Nothing of
the machine is read at import. Paths in a file are relative to that file.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from autointerp.llm.protocol import Usage
from sae_core.errors import ConfigError, MissingFileError, did_you_mean

if TYPE_CHECKING:
    from autointerp.explainers.base import Explainer
    from autointerp.llm.endpoints.base import Endpoint
    from autointerp.scorers.base import Scorer

ENVIRONMENT_PREFIX = "AUTOINTERP_"
RESERVED_VARIABLES = frozenset({"AUTOINTERP_CACHE", "AUTOINTERP_CACHE_GIB", "AUTOINTERP_FAULT", "AUTOINTERP_LOG"})
"""Variables with our prefix that are no settings of a run."""
STDLIB_CORPUS = "python-stdlib"
CENSUS_TOKENS = 2_000_000
"""Up to this many tokens every window is kept and counted."""
SAMPLED_WINDOWS = 30_000
LEAST_SHARD_TOKENS, MOST_SHARDS = 262_144, 64
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
CONTROL_SUFFIX = ".random"
"""Ending of the name of a source's fake coder of random directions."""
_LONGEST_NAME = 80 - len(CONTROL_SUFFIX)
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{_LONGEST_NAME - 1}}}")

_ONE_TOKEN = Usage(input_tokens=1, output_tokens=1)

Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A table of the file: frozen, strict about types, no unknown keys, field docstrings are its documentation."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True)


class SubjectConfig(Section):
    """The language model that is explained."""

    model: str = Field(min_length=1)
    """Folder or hub id of the subject model."""
    revision: str | None = None
    """Commit, branch or tag of a hub model."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format that the subject runs in."""
    device: str = "auto"
    """Where it runs: auto, cpu, cuda or cuda:N (with auto and cuda, extraction uses all GPUs of the machine); does not count for the run's identity."""


class CoderConfig(Section):
    """One sparse coder; each becomes a source of the labelled dictionary."""

    path: str = Field(min_length=1)
    """Folder or hub id of the sparse coder."""
    hookpoint: str | tuple[str, ...] | None = None
    """Module of the subject that it attaches to, or the list of those that a crosscoder reads; needed only where the coder does not say it, or to choose among the coders of a folder."""
    revision: str | None = None
    """Commit, branch or tag of a hub coder."""
    allow_pickle: bool = False
    """Read torch pickles (.pt, .pth, .bin) too, their tensors only; by default they are refused, as they could run code."""
    input_scale: float | tuple[float, ...] | Literal["folded"] | None = None
    """What inputs are multiplied by, for formats that leave it out of the file (a list for a crosscoder's hookpoints), or "folded" where the weights contain it."""
    k: Annotated[int, Field(ge=1)] | None = None
    """Active latents of a token, for formats that leave it out of the file."""
    center_writing_weights: bool | None = None
    """Whether TransformerLens centred the weights of the subject that the coder was trained on, where its file does not say."""
    name: str | None = None
    """Short name of the source (letters, digits, dot, dash, underscore); by default made from path and hookpoint."""

    @field_validator("name")
    @classmethod
    def _fits_a_folder(cls, value: str | None) -> str | None:
        if value is not None and not _NAME.fullmatch(value):
            raise ValueError(
                f"a name has 1 to {_LONGEST_NAME} letters, digits, dots, dashes or underscores, a letter or digit first"
            )
        if value is not None and value.endswith(CONTROL_SUFFIX):
            raise ValueError(f"names that end in {CONTROL_SUFFIX!r} are those of the controls; choose another")
        return value


class CorpusConfig(Section):
    """The text on which latents are observed."""

    path: str = Field(min_length=1)
    """Folder, file (.txt, .jsonl, .parquet, .arrow, .npy, ...), hub data set id, or "python-stdlib" (this interpreter's own sources)."""
    text_field: str | None = None
    """Field of a row that holds the text; by default "text"."""
    tokens_field: str | None = None
    """Field of a row that holds token ids, which are read in the place of a text."""
    messages_field: str | None = None
    """Field of a row that holds a conversation (a list of role and content), which the subject's chat template makes a text of."""
    split: str | None = None
    """Split of a data set; by default the one called train, where there is one."""
    subset: str | None = None
    """Configuration of a hub data set, or folder in it."""
    suffixes: tuple[str, ...] = ()
    """Endings of the files that are read from a folder, such as ".md"; an empty list reads the usual kinds of text."""
    tokens_per_document: Annotated[int, Field(ge=1)] | None = None
    """At most this many tokens of each document, a stretch at a random place; by default all of it."""
    packed: bool = False
    """Whether the documents of a side are joined, with the EOS between them, and cut into full contexts; by default a context holds one document."""
    bos: Literal["auto", "always", "never"] = "auto"
    """Whether each context begins with the BOS: as the subject's tokenizer does it (auto), always or never."""
    revision: str | None = None
    """Commit, branch or tag of a hub data set."""

    @field_validator("tokens_field", "messages_field")
    @classmethod
    def _one_field(cls, value: str | None, info: ValidationInfo) -> str | None:
        before = [name for name in ("text_field", "tokens_field") if info.data.get(name) is not None]
        if value is not None and before:
            raise ValueError(f"corpus.{before[0]} is set too, and a row gives one document: set one of the two")
        return value


class ExtractionConfig(Section):
    """How much text is read, and what is kept of it."""

    num_tokens: Count = 10_000_000
    """Tokens of the corpus to read."""
    context_length: int = Field(default=256, ge=8)
    """Tokens that the subject sees at once."""
    window_length: int = Field(default=32, ge=4, le=128)
    """Tokens of a window, the unit of evidence."""
    top_exemplars: Count = 10
    """Strongest firing windows kept of each latent, per side."""
    sampled_exemplars: Count = 20
    """Uniformly drawn firing windows kept of each latent, per side."""
    pool_windows: Annotated[int, Field(ge=1)] | None = None
    """Uniformly drawn windows kept with all latents' activations, per side; by default all of them up to 2M tokens, then 30,000."""
    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens that go through the subject in one batch; by default what suits the device, and less where memory does not suffice."""
    shard_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens of one chunk of extraction; by default 262,144, or a 64th of the corpus where that is more."""
    latents_per_pass: Annotated[int, Field(ge=1)] | None = None
    """Latents of each coder that are kept in one pass over the corpus, to bound memory; by default all; does not count for the run's identity."""
    non_finite: Literal["stop", "skip"] = "stop"
    """What to do with a context on which activations are NaN or infinite: stop with the place, or leave it out and count it."""

    @property
    def pool_size(self) -> int:
        """Windows that a side's pool holds: what was given, else a census up to :data:`CENSUS_TOKENS`, else a sample."""
        if self.pool_windows is not None:
            return self.pool_windows
        # a window holds a token at least, so that no corpus of so many tokens has more windows
        return self.num_tokens if self.num_tokens <= CENSUS_TOKENS else SAMPLED_WINDOWS

    @property
    def shard_size(self) -> int:
        """Tokens of one chunk: what was given, else so many that a kill loses little and partials stay few."""
        return self.shard_tokens or max(LEAST_SHARD_TOKENS, -(-self.num_tokens // MOST_SHARDS))


class ControlsConfig(Section):
    """The floors that stand beside the scores."""

    random_directions: int = Field(default=64, ge=0)
    """Latents of the fake coder of random directions that is labelled beside each real one; 0 for none."""
    shuffled_latents: Count = 200
    """Latents, at least, that are scored under another latent's label (all, where a source has fewer)."""


class StoreConfig(Section):
    """Where results are kept as they are made."""

    url: str | None = None
    """SQLAlchemy URL of the store, such as postgresql://user@host/name; by default autointerp.db in the output folder."""

    @field_validator("url")
    @classmethod
    def _empty_is_none(cls, value: str | None) -> str | None:
        return value or None


class BudgetConfig(Section):
    """Most that a run may spend on language models: a hard limit, taken before each call; does not count for the run's identity."""

    tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens read and written, all endpoints together."""
    usd: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """US dollars, all endpoints together; every endpoint must have its prices."""


class LabelsConfig(Section):
    """Which explanation becomes the label."""

    choose: Literal["order", "best"] = "order"
    """Take the first explainer's text in the order of the file, or the one that scores best on the choose side."""
    by: str = ""
    """Kind of the scorer that compares explanations on the choose side; by default the first one that judges texts."""
    from_: str | None = Field(default=None, alias="from", min_length=1)
    """Labels made elsewhere, which are only scored here: a run's output folder, a parquet dictionary, Neuronpedia's explanation files."""
    allow_other_split: bool = False
    """Score labels made elsewhere too where windows that were shown to whoever wrote them may be judged; they are marked."""

    @property
    def imported(self) -> dict[str, Any] | None:
        """The explainer table that ``from`` stands for."""
        if self.from_ is None:
            return None
        return {"kind": "imported", "path": self.from_, "allow_other_split": self.allow_other_split}


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
    latents: str | tuple[Annotated[int, Field(ge=0)], ...] = "all"
    """Which latents are labelled: "all", a half-open range such as "0:512", or a list of numbers."""
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
    chunk_latents: Count = 128
    """Latents of one chunk of work."""

    @field_validator("latents")
    @classmethod
    def _latents_parse(cls, value: str | tuple[int, ...]) -> str | tuple[int, ...]:
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
        return value

    @property
    def digest(self) -> str:
        """sha256 of what decides the results: the resolved configuration without store, device, passes, prices and budget."""
        return hashlib.sha256(canonical_json(self.identity()).encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """The JSON value that :attr:`digest` is taken of."""
        data = self.stored()
        del data["subject"]["device"], data["extraction"]["latents_per_pass"], data["budget"]
        data["endpoints"] = [endpoint.identity() for endpoint in self.build_endpoints()]
        if prompts := self.prompt_hashes():  # other instructions are other results
            data["prompts"] = prompts
        return data

    def prompt_hashes(self) -> dict[str, str]:
        """sha256 of each prompt file that the components send, by its name."""
        from autointerp.prompting.prompt import load_prompt

        components: list[Explainer | Scorer] = [*self.build_explainers(), *self.build_scorers()]
        names = {name for component in components for need in component.llm_needs() for name in need.prompts}
        return {name: load_prompt(name).hash for name in sorted(names)}

    def stored(self) -> dict[str, Any]:
        """The JSON value that a run keeps of its configuration: all but the store that it is kept in."""
        data = self.model_dump(mode="json", by_alias=True)
        del data["store"]
        return data

    def select_latents(self, num_latents: int) -> list[int]:
        """The selected latents of a source that has ``num_latents``, ascending.

        Errors: ConfigError where the selection reaches beyond the source.
        """
        if self.latents == "all":
            return list(range(num_latents))
        if isinstance(self.latents, str):
            first, last = self.latents.split(":")
            start, stop = int(first or 0), int(last or num_latents)
            if start >= num_latents or stop > num_latents:
                raise ConfigError(
                    f"latents = {self.latents!r} reaches beyond the coder, which has {num_latents} latents: "
                    f'give a range within "0:{num_latents}", or "all".'
                )
            return list(range(start, stop))
        beyond = [latent for latent in self.latents if latent >= num_latents]
        if beyond:
            raise ConfigError(
                f"latents names {beyond[0]}, but the coder has {num_latents} latents: "
                f"numbers from 0 to {num_latents - 1} are allowed."
            )
        return list(self.latents)

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

    def build_endpoints(self) -> list[Endpoint]:
        """The endpoints as components, in the order of the file."""
        from autointerp.components import parse_component

        return [parse_component("endpoints", table) for table in self.endpoints]


def canonical_json(value: Any) -> str:
    """JSON text that is the same for equal values: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def load_config(path: Path | str, sets: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> RunConfig:
    """Read a configuration file, with ``sets`` (``key=value``) and ``environment`` laid over it.

    ``environment`` is usually ``os.environ``; None reads none. Errors: MissingFileError, ConfigError.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise MissingFileError(
            f"there is no configuration file {str(path)!r}: give the path of a TOML file."
        ) from error
    except (ValueError, OSError) as error:  # not UTF-8, a null character, no permission, a name too long
        raise ConfigError(f"{str(path)!r} cannot be read as text: give the path of a TOML file ({error}).") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{str(path)!r} is not valid TOML: {error}.") from error
    origins: dict[str, str] = {}
    from_environment = _environment_values(environment or {})
    wanted = [data.pop("preset", None), *(value for key, value, _ in from_environment if key == "preset")]
    wanted += [item.partition("=")[2].strip() for item in sets if item.partition("=")[0].strip() == "preset"]
    name = next((value for value in reversed(wanted) if value is not None), None)
    if name is not None:
        from autointerp.presets import preset

        below = preset(str(name))
        if _takes_labels(data, from_environment, sets):
            below.pop("explainers", None)  # nothing is written here, so there is nothing for them to do
        both = [key for key, value in below.items() if isinstance(value, list) and key in data]
        if both:
            tables = " and ".join(f"[[{key}]]" for key in both)
            raise ConfigError(
                f"the preset {name!r} brings its own {tables}, and {str(path)!r} has {tables} too: leave them out of the file, or "
                "write the preset's tables there (autointerp/presets has them) and change them."
            )
        data = _laid_under(data, below)
    for key, value, origin in from_environment:
        if key != "preset":
            _lay_over(data, key, value, origin)
            origins[key] = origin
    for item in sets:
        key, separator, value = item.partition("=")
        if not separator or not key.strip():
            raise ConfigError(
                f"--set {item!r} is not of the form key=value, for instance --set extraction.num_tokens=500000."
            )
        if key.strip() == "preset":
            continue
        _lay_over(data, key.strip(), value.strip(), f"--set {item}")
        origins[key.strip()] = f"--set {item}"
    return parse_config(data, str(path), base=path.resolve().parent, origins=origins)


def _takes_labels(
    data: Mapping[str, Any], from_environment: Sequence[tuple[str, str, str]], sets: Sequence[str]
) -> bool:
    """Whether ``labels.from`` is set, wherever it is set."""
    labels = data.get("labels")
    keys = {key for key, _, _ in from_environment} | {item.partition("=")[0].strip() for item in sets}
    return "labels.from" in keys or (isinstance(labels, dict) and labels.get("from") is not None)


def _laid_under(data: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` with what it leaves out taken from ``below``; tables are joined key by key, lists are not."""
    out = dict(below)
    for key, value in data.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _laid_under(value, out[key]) if both else value
    return out


def parse_config(
    data: Mapping[str, Any], origin: str, base: Path | None = None, origins: Mapping[str, str] | None = None
) -> RunConfig:
    """Validate a configuration; ``origin`` names it in messages, ``base`` resolves relative paths.

    ``origins`` maps dotted keys that did not come from the file to where they came from. Errors: ConfigError.
    """
    try:
        config = RunConfig.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        errors = error.errors(include_url=False)
        # a mistyped name is the likelier cause of a missing one
        first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
        raise ConfigError(_sentence(first, origin, origins or {})) from error
    config = _with_imported_labels(config, data, origin, base)
    if not config.explainers:
        raise ConfigError(
            f"explainers is an empty list in {origin}, so nothing would write a label: give at least one [[explainers]] "
            "table with a kind, or leave the key out."
        )
    _check_kinds("explainers", config.build_explainers())
    _check_kinds("scorers", config.build_scorers())
    explainers = [component.model_dump(mode="json") for component in config.build_explainers()]
    scorers = [component.model_dump(mode="json") for component in config.build_scorers()]
    endpoints = config.build_endpoints()
    _check_endpoints(config, endpoints)
    _check_choice(config)
    update: dict[str, Any] = {
        "explainers": tuple(explainers),
        "scorers": tuple(scorers),
        "endpoints": tuple(endpoint.model_dump(mode="json") for endpoint in endpoints),
    }
    if base is not None:
        update["explainers"] = tuple(
            {**table, "path": str(base / Path(table["path"]).expanduser())} if table["kind"] == "imported" else table
            for table in explainers
        )
        model = _resolve("subject.model", config.subject.model, base)
        update["subject"] = config.subject.model_copy(update={"model": model})
        update["coders"] = tuple(
            coder.model_copy(update={"path": _resolve(f"coders.{number}.path", coder.path, base)})
            for number, coder in enumerate(config.coders)
        )
        if config.corpus.path != STDLIB_CORPUS:
            update["corpus"] = config.corpus.model_copy(
                update={"path": _resolve("corpus.path", config.corpus.path, base)}
            )
        if config.store.url is not None:
            update["store"] = StoreConfig(url=_resolve_url(config.store.url, base))
    resolved = config.model_copy(update=update)
    resolved.source_names()
    return resolved


def _with_imported_labels(config: RunConfig, data: Mapping[str, Any], origin: str, base: Path | None) -> RunConfig:
    """The configuration with the explainer that ``labels.from`` stands for."""
    if config.labels.from_ is None:
        return config
    where = config.labels.from_ if base is None else str((base / Path(config.labels.from_).expanduser()).resolve())
    labels = config.labels.model_copy(update={"from_": where})
    from autointerp.components import parse_component

    # a stored configuration holds the explainer that labels.from stood for
    ours = parse_component("explainers", labels.imported or {})
    others = [
        table.get("kind")
        for table in data.get("explainers", ())
        if table.get("kind") != "imported" or parse_component("explainers", table) != ours
    ]
    if others:
        raise ConfigError(
            f"labels.from is set in {origin} and there are [[explainers]] too ({', '.join(map(repr, others))}): with labels made "
            "elsewhere none are written here; leave one of the two out."
        )
    return config.model_copy(update={"labels": labels, "explainers": (labels.imported,)})


def _check_choice(config: RunConfig) -> None:
    """Explanations can be compared, where they are to be. Errors: ConfigError."""
    from autointerp.scorers.comparing import comparing_scorer

    comparing_scorer(config.build_explainers(), config.build_scorers(), config.labels.choose, config.labels.by)


def _check_endpoints(config: RunConfig, endpoints: Sequence[Endpoint]) -> None:
    """Names are unique, and every component finds the endpoint that it asks. Errors: ConfigError."""
    names = [endpoint.name for endpoint in endpoints]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two tables of [[endpoints]] have the name {twice!r}: give each a name of its own.")
    components: list[Explainer | Scorer] = [*config.build_explainers(), *config.build_scorers()]
    for component in components:
        for need in component.llm_needs():
            if not names:
                raise ConfigError(
                    f"the component {component.kind!r} asks a language model and none is configured: add a table [[endpoints]] with "
                    'kind = "openai", base_url and model (docs/llms.md).'
                )
            if need.endpoint and need.endpoint not in names:
                raise ConfigError(
                    f"the component {component.kind!r} asks the endpoint {need.endpoint!r}: {did_you_mean(need.endpoint, names)}"
                )
    if config.budget.usd is not None:
        unpriced = next((e.name for e in endpoints if e.cost(_ONE_TOKEN) is None), None)
        if unpriced is not None:
            raise ConfigError(
                f"budget.usd is {config.budget.usd} and the endpoint {unpriced!r} has no price, so that what is spent cannot be known: set its "
                "usd_per_million_input_tokens and usd_per_million_output_tokens (0 for a server of your own), or use budget.tokens."
            )


def is_hub_id(value: str) -> bool:
    """Whether a resolved ``model`` or ``path`` stands for something on the hub, not for a local path."""
    return not value.startswith("/") and _HUB_ID.fullmatch(value) is not None


def _check_kinds(group: str, components: Sequence[Explainer | Scorer]) -> None:
    """Rows are told apart by the kind that wrote them. Errors: ConfigError for two components of one kind."""
    kinds = [component.kind for component in components]
    twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"{kinds.count(twice)} tables of [[{group}]] have the kind {twice!r}; one of each kind is allowed: remove one, "
            "or give it a run of its own."
        )


def _resolve(key: str, value: str, base: Path) -> str:
    """An absolute path where ``value`` is one (it exists, or looks like one and not like a hub id), else itself."""
    try:
        return _resolved(value, base)
    except (RuntimeError, ValueError, OSError) as error:  # ~nobody, a null character, a name too long
        raise ConfigError(
            f"{key} is {_shown(value)}, which is no path that can be looked up ({error}): give the path of a file or folder "
            "that is there, or a hub id."
        ) from error


def _resolved(value: str, base: Path) -> str:
    local = (base / Path(value).expanduser()).resolve()
    looks_local = value.startswith(("/", "~", ".")) or not is_hub_id(value)
    # "quickstart/subjct" beside an existing "quickstart/" is a mistyped path, not a hub id
    beside = len(Path(value).parts) > 1 and local.parent.is_dir()
    return str(local) if local.exists() or looks_local or beside else value


def _resolve_url(url: str, base: Path) -> str:
    """The URL of an SQLite file with its relative path resolved; any other URL as it is."""
    match = re.fullmatch(r"(sqlite(?:\+\w+)?:///)([^/:].*)", url)
    return f"{match[1]}{(base / match[2]).resolve()}" if match else url


def _environment_values(environment: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """``(dotted key, value, origin)`` of every setting in the environment: AUTOINTERP_CORPUS__PATH is corpus.path."""
    return [
        (name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", "."), value, f"the environment variable {name}")
        for name, value in sorted(environment.items())
        if name.startswith(ENVIRONMENT_PREFIX) and name not in RESERVED_VARIABLES
    ]


def _lay_over(data: dict[str, Any], key: str, text: str, origin: str) -> None:
    """Set the dotted ``key`` of nested tables and lists to ``text``, read as a TOML value where it is one."""
    parts = key.split(".")
    place: Any = data
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(place, list):
            if not part.isdecimal() or int(part) > len(place):
                raise ConfigError(
                    f"{origin}: {'.'.join(parts[:depth])!r} is a list of {len(place)}; "
                    f"{part!r} must be a number from 0 to {len(place)} (the last one appends)."
                )
            index = int(part)
            if index == len(place):
                place.append({})
            if last:
                place[index] = _value(key, text)
            else:
                place = place[index]
        elif isinstance(place, dict):
            if last:
                place[part] = _value(key, text)
            else:
                following = parts[depth + 1]
                place = place.setdefault(part, _default_tables(part) if following.isdecimal() else {})
        else:
            raise ConfigError(f"{origin}: {'.'.join(parts[:depth])!r} is a single value and has no key {part!r}.")


def _default_tables(key: str) -> list[Any]:
    """What a list holds where the file leaves it out, so that ``explainers.0.x`` means the default explainer's x."""
    field = RunConfig.model_fields.get(key)
    return copy.deepcopy(list(field.default)) if field is not None and isinstance(field.default, tuple) else []


def _value(key: str, text: str) -> Any:
    """``text`` as TOML, except for keys that hold text: a revision of digits stays text."""
    if _annotation(key.split(".")) in (str, str | None):
        return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _annotation(parts: Sequence[str]) -> Any:
    """The declared type at a dotted key, None where it is not declared."""
    annotation: Any = RunConfig
    for part in parts:
        if typing.get_origin(annotation) is tuple and part.isdecimal():
            annotation = typing.get_args(annotation)[0]
        elif isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
            field = _field(annotation, part) if issubclass(annotation, BaseModel) else None
            if field is None:
                return None
            annotation = field.annotation
        else:
            return None
    return annotation


def _field(model: type[BaseModel], key: str) -> FieldInfo | None:
    """The field that a key of a table stands for."""
    return next((f for name, f in model.model_fields.items() if (f.alias or name) == key), None)


def known_keys() -> list[str]:
    """Every dotted key of a configuration; a position in a list is written ``0``."""
    keys: list[str] = []

    def walk(model: type[BaseModel], prefix: str) -> None:
        for attribute, field in model.model_fields.items():
            name = field.alias or attribute
            annotation: Any = field.annotation
            if typing.get_origin(annotation) is tuple and isinstance(typing.get_args(annotation)[0], type):
                inner = typing.get_args(annotation)[0]
                if issubclass(inner, BaseModel):
                    keys.append(prefix + name)
                    walk(inner, f"{prefix}{name}.0.")
                    continue
            keys.append(prefix + name)
            plain = isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias)
            if plain and issubclass(annotation, BaseModel):
                walk(annotation, f"{prefix}{name}.")

    walk(RunConfig, "")
    return keys


def _sentence(error: ErrorDetails, origin: str, origins: Mapping[str, str]) -> str:
    """One pydantic error as one sentence: what was given, what is allowed, what to do."""
    # a union adds the branch it tried to the location: not a part of the key
    parts = [str(p) for p in error["loc"] if isinstance(p, int) or re.fullmatch(r"\w+", p)]
    if parts[:1] == ["latents"]:
        parts = ["latents"]
    key = ".".join(parts)
    where = next((f"({origins[k]})" for k in origins if k == key or k.startswith(key + ".")), f"in {origin}")
    if error["type"] == "extra_forbidden":
        given = error["input"]
        if isinstance(given, dict) and given:
            key = f"{key}.{next(iter(given))}"  # a mistyped table: name the key as the user thinks of it
        generic = re.sub(r"\.\d+(?=\.|$)", ".0", key)
        level = [k for k in known_keys() if k.count(".") == generic.count(".")] or known_keys()
        return f"unknown key {key!r} {where}: {did_you_mean(generic, level, limit=3)}"
    if error["type"] == "missing":
        return f"the key {key!r} is missing {where}: {_described(parts)}"
    if parts == ["latents"]:
        allowed = 'it must be "all", a range such as "0:512", or a list of numbers from 0 on'
        reason = error["msg"].removeprefix("Value error, ") if error["type"] == "value_error" else allowed
        return f"{key!r} is {_shown(error['input'])} {where}: {reason}."
    rule = error["msg"].removeprefix("Value error, ").replace("Input should", "it must").rstrip(".")
    rule = rule.replace("Tuple should have", "it must be a list of").replace(" after validation", "")
    return f"{key!r} is {_shown(error['input'])} {where}: {rule}. {_described(parts)}".rstrip()


def _described(parts: Sequence[str]) -> str:
    """The docstring of the field at a key."""
    model: Any = RunConfig
    text = ""
    for part in parts:
        if typing.get_origin(model) is tuple:
            model = typing.get_args(model)[0]
            if part.isdecimal():
                continue
        if not (isinstance(model, type) and not isinstance(model, types.GenericAlias) and issubclass(model, BaseModel)):
            break
        field = _field(model, part)
        if field is None:
            break
        text, model = field.description or "", field.annotation
    return text.replace("\n", " ").strip()


def _shown(value: Any) -> str:
    """A given value as it fits a sentence."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
