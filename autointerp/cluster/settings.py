"""What the processes of a cluster are told by their environment."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from autointerp.cluster.secrets import with_password
from sae_core.errors import ConfigError


class StoreSettings(BaseModel):
    """Where results are kept."""

    model_config = ConfigDict(frozen=True)

    url: str | None = None
    """SQLAlchemy URL of the store that all processes share."""
    password_file: Path | None = None
    """File that holds the password for it, as container secrets do."""


class BrokerSettings(BaseModel):
    """Where hints go."""

    model_config = ConfigDict(frozen=True)

    url: str = "redis://127.0.0.1:6379/0"
    """URL of Redis."""
    password_file: Path | None = None
    """File that holds the password for it."""
    key_prefix: str = "autointerp:"
    """What the names of all keys begin with, so that others may use the same Redis."""


class WorkerSettings(BaseModel):
    """How the processes work."""

    model_config = ConfigDict(frozen=True)

    lease_s: float = Field(default=60.0, gt=0)
    """Seconds after which a chunk of a process that fell silent goes to another one."""
    turn_s: float = Field(default=5.0, gt=0)
    """Seconds that a process goes on taking chunks for one hint."""
    reconcile_s: float = Field(default=2.0, gt=0)
    """Seconds between two looks of the reconciler."""
    chunk_limit_s: int = Field(default=3_600, gt=0)
    """Seconds after which a process whose chunk has come to no end is killed and replaced."""
    llm_chunk_limit_s: int = Field(default=100_000, gt=0)
    """The same where language models are asked: each call has a limit of its own, and one that goes in a batch may take a day."""
    backoff_s: float = Field(default=1.0, ge=0)
    """Seconds that a chunk rests after it ended with an error nobody knows; twice as long after each further one."""
    runs_kept: int = Field(default=4, ge=1)
    """Runs of which a process keeps what it has loaded."""
    hints_per_process: int = Field(default=4, ge=1)
    """Most hints that wait in the broker for each live process of a queue."""
    json_logs: bool = True
    """Whether a line of the log is a JSON object."""

    def turn_limit_s(self, queue: str) -> float:
        """Seconds after which a process that is still at one turn of a queue is killed: a turn, and a chunk begun at its end."""
        return self.turn_s + (self.llm_chunk_limit_s if queue == "llm" else self.chunk_limit_s)


class ClusterSettings(BaseSettings):
    """The environment of a worker: AUTOINTERP_STORE__URL, AUTOINTERP_BROKER__URL, AUTOINTERP_WORKER__LEASE_S, ..."""

    model_config = SettingsConfigDict(
        env_prefix="AUTOINTERP_",
        env_nested_delimiter="__",
        extra="ignore",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    store: StoreSettings = StoreSettings()
    broker: BrokerSettings = BrokerSettings()
    worker: WorkerSettings = WorkerSettings()

    @property
    def store_url(self) -> str:
        """The store's URL, its password in it. Errors: ConfigError where none is set."""
        if self.store.url is None:
            raise ConfigError(
                "AUTOINTERP_STORE__URL is not set: set it to the URL of the store that all processes of the cluster share, for "
                "instance postgresql+psycopg://user@host/autointerp."
            )
        return with_password(self.store.url, self.store.password_file)

    @property
    def broker_url(self) -> str:
        """The broker's URL, its password in it. Errors: ConfigError for a password that workers would not find."""
        if any(name.lower() in ("password", "username") for name, _ in parse_qsl(urlsplit(self.broker.url).query)):
            raise ConfigError(
                "the broker's URL has a password among its parameters, where workers do not find it: write it before the host as in "
                "redis://user:password@host:6379/0, or name its file in AUTOINTERP_BROKER__PASSWORD_FILE."
            )
        return with_password(self.broker.url, self.broker.password_file)


def load_settings() -> ClusterSettings:
    """The settings of this process. Errors: ConfigError."""
    try:
        return ClusterSettings()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = "AUTOINTERP_" + "__".join(str(part).upper() for part in first["loc"])
        raise ConfigError(f"the environment variable {name} is {first['input']!r}: {first['msg'].lower()}.") from error
    except SettingsError:
        # pydantic takes the name of a section for JSON; what it holds may be a URL with a password, so nothing of it is shown
        raise ConfigError(
            "one of the environment variables AUTOINTERP_STORE, AUTOINTERP_BROKER and AUTOINTERP_WORKER is set and is no JSON object: unset it, "
            "and set what is meant by its whole name, for instance AUTOINTERP_STORE__URL."
        ) from None
