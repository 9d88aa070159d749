"""What is scored every night, when, by whom and within what: a TOML file of its own, kept in the store."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from datetime import time
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import Field, ValidationError, field_validator

from autointerp.config.sections import BudgetConfig, ControlsConfig, PrecisionConfig, Section
from sae_core.errors import ConfigError, MissingFileError

Reason = Literal[
    "never_scored",
    "coder_changed",
    "corpus_changed",
    "prompt_changed",
    "judge_changed",
    "settings_changed",
    "label_changed",
]
"""Why a label's score is out of date."""
REASONS: tuple[Reason, ...] = (
    "never_scored",
    "coder_changed",
    "corpus_changed",
    "prompt_changed",
    "judge_changed",
    "settings_changed",
    "label_changed",
)
_LONGEST_RUN_ID = 32


class NoiseConfig(Section):
    """What counts as more than noise."""

    level: float = Field(default=0.05, gt=0, le=0.5, allow_inf_nan=False)
    """Share of the nights without drift that may be reported all the same, over all scores together."""
    nights: int = Field(default=10, ge=5)
    """Nights after which the anchors' own history says how far they vary; before, the scores' binomial errors do too."""
    history: int = Field(default=60, ge=5)
    """Nights of history that are looked at, at most."""


class Schedule(Section):
    """One dictionary that is scored every night."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,39}$")
    """Name of the schedule; its nights' runs are called night-NAME-DATE."""
    run: str = Field(min_length=1)
    """Whose labels are scored: the name of a run (its newest finished one), a run's id, or an output folder."""
    folder: str = ""
    """Folder for the nights' runs, snapshots and reports; by default nightly/NAME beside the file."""
    sources: tuple[str, ...] = ()
    """Sources that are scored; by default all of the run."""
    latents: str = "all"
    """Latents that are scored, "all" or a half-open range such as "0:512"."""
    scorers: tuple[dict[str, Any], ...] = Field(min_length=1)
    """One table for each scorer, as in a run's file."""
    endpoints: tuple[dict[str, Any], ...] = ()
    """One table for each language model, as in a run's file."""
    budget: BudgetConfig = BudgetConfig()
    """Most that one night may spend: a hard limit."""
    most_latents: Annotated[int, Field(ge=1)] | None = None
    """Most latents of one night, whatever the budget; by default no limit."""
    at: str = "02:00"
    """Local time at which a night begins."""
    timezone: str = "UTC"
    """IANA name of the place whose time that is, such as Europe/Berlin."""
    window_h: float = Field(default=6.0, gt=0, le=24, allow_inf_nan=False)
    """Hours after which a night is ended; what is scored by then counts."""
    anchors: int = Field(default=100, ge=0)
    """Random labels, always the same, that are scored every night on the same windows: by them drift is told from noise."""
    stale: tuple[Reason, ...] = REASONS
    """What makes a score out of date."""
    oldest: bool = True
    """Whether what is left of a budget (or of most_latents) goes to the labels that were scored longest ago."""
    bars: dict[str, float] = {}
    """Values below which a label is reported, by scorer and value, such as "detection.score" = 0.7."""
    controls: ControlsConfig = ControlsConfig(random_directions=0, shuffled_latents=50, null_latents=10)
    """Floors that are scored beside the labels, by default fewer than in a run."""
    precision: PrecisionConfig = PrecisionConfig(by="")
    """Whether precision at the natural rate is estimated, which costs a screen of many windows; by default it is not."""
    noise: NoiseConfig = NoiseConfig()
    """What counts as more than noise."""
    chunk_latents: Annotated[int, Field(ge=1)] | None = None
    """Latents of one chunk of work, which are scored or not as a whole; by default 32, or 512 where an endpoint asks in batches."""

    @field_validator("at")
    @classmethod
    def _is_a_time(cls, value: str) -> str:
        match = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)", value)
        if match is None:
            raise ValueError('it must be a time of the day such as "02:00"')
        return value

    @field_validator("timezone")
    @classmethod
    def _is_a_place(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError
            raise ValueError('it must be the IANA name of a time zone, such as "UTC" or "Europe/Berlin"') from error
        return value

    @field_validator("latents")
    @classmethod
    def _is_a_range(cls, value: str) -> str:
        match = re.fullmatch(r"(\d*):(\d+)", value)
        if value != "all" and (match is None or int(match[1] or 0) >= int(match[2])):
            raise ValueError('it must be "all", or a range that is not empty such as "0:512"')
        return value

    @field_validator("bars")
    @classmethod
    def _name_scores(cls, value: dict[str, float]) -> dict[str, float]:
        wrong = next((key for key in value if not re.fullmatch(r"\w+\.\w+", key)), None)
        if wrong is not None:
            raise ValueError(
                f'{wrong!r} must be a scorer and one of its values with a dot between, such as "detection.score"'
            )
        return value

    @property
    def time(self) -> time:
        """Local time at which a night begins."""
        return time.fromisoformat(self.at)

    @property
    def place(self) -> ZoneInfo:
        """Whose time that is."""
        return ZoneInfo(self.timezone)

    @property
    def root(self) -> Path:
        """Folder for the nights' runs, snapshots and reports."""
        return Path(self.folder)

    @property
    def snapshots(self) -> Path:
        """Folder of the dated snapshots."""
        return self.root / "snapshots"

    def latent_range(self, num_latents: int) -> range:
        """The latents of a source that are scored."""
        if self.latents == "all":
            return range(num_latents)
        first, last = self.latents.split(":")
        return range(int(first or 0), min(int(last), num_latents))

    def chunk_size(self) -> int:
        """Latents of one chunk of work."""
        if self.chunk_latents is not None:
            return self.chunk_latents
        return 512 if any(table.get("kind") == "openai_batch" for table in self.endpoints) else 32

    def run_id(self, date: str) -> str:
        """Id of the run of a night, for an ISO date; long names are shortened, and told apart by a hash."""
        day = date.replace("-", "")
        room = _LONGEST_RUN_ID - len(f"night--{day}")
        short = self.name
        if len(short) > room:
            short = f"{short[: room - 7]}-{hashlib.sha256(self.name.encode()).hexdigest()[:6]}"
        return f"night-{short}-{day}"


def load_schedule(path: Path | str) -> Schedule:
    """Read a schedule's file. Errors: MissingFileError, ConfigError."""
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise MissingFileError(f"there is no schedule {str(path)!r}: give the path of a TOML file.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{str(path)!r} is not valid TOML: {error}.") from error
    except (ValueError, OSError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read as text: give the path of a TOML file ({error}).") from error
    schedule = parse_schedule(data, str(path))
    _check_bars(schedule, str(path))
    base = path.resolve().parent
    folder = base / Path(schedule.folder or f"nightly/{schedule.name}").expanduser()
    local = base / Path(schedule.run).expanduser()
    run = str(local.resolve()) if (local / "run.json").is_file() else schedule.run
    return schedule.model_copy(update={"folder": str(folder.resolve()), "run": run})


def parse_schedule(data: dict[str, Any], origin: str) -> Schedule:
    """A schedule from a file's or a store's values, its components checked. Errors: ConfigError."""
    from autointerp.components import parse_component

    try:
        schedule = Schedule.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        found = error.errors(include_url=False)
        first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
        raise ConfigError(_sentence(first["loc"], first["type"], first["msg"], first["input"], origin)) from error
    for group in ("scorers", "endpoints"):
        for table in getattr(schedule, group):
            parse_component(group, table)
    kinds = {str(table["kind"]) for table in schedule.scorers}
    strange = next((bar for bar in schedule.bars if bar.partition(".")[0] not in kinds), None)
    if strange is not None:
        raise ConfigError(
            f"bars names {strange!r} in {origin}, and there is no such scorer: allowed are {', '.join(map(repr, sorted(kinds)))} "
            "before the dot."
        )
    return schedule


def _check_bars(schedule: Schedule, origin: str) -> None:
    """Errors: ConfigError for a bar's value that its scorer leaves in no column of the dictionary.

    Not where a stored schedule is read, which may be an older version's.
    """
    if not schedule.bars:
        return
    from autointerp.components import known_components
    from autointerp.export.schema import figures_of
    from autointerp.nightly.drift import TESTED
    from sae_core.errors import did_you_mean

    for bar in schedule.bars:
        kind, _, name = bar.partition(".")
        known = figures_of(kind, known_components("scorers")) | set(TESTED)
        if name not in known:
            raise ConfigError(
                f"bars names {bar!r} in {origin}, and the dictionary has no such figure of {kind!r}: "
                f"{did_you_mean(bar, {f'{kind}.{figure}' for figure in known})}"
            )


def _sentence(loc: tuple[int | str, ...], kind: str, message: str, given: Any, origin: str) -> str:
    from autointerp.config.sentences import shown
    from sae_core.errors import did_you_mean

    key = ".".join(map(str, loc))
    if kind == "extra_forbidden":
        return f"unknown key {key!r} in {origin}: {did_you_mean(str(loc[0]), Schedule.model_fields)}"
    field = Schedule.model_fields.get(str(loc[0]))
    described = (field.description or "").replace("\n", " ") if field is not None else ""
    if kind == "missing":
        return f"the key {key!r} is missing in {origin}: {described}"
    rule = message.removeprefix("Value error, ").replace("Input should", "it must").rstrip(".")
    return f"{key!r} is {shown(given)} in {origin}: {rule}. {described}".rstrip()
