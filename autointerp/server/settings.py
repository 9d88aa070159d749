"""What a server is told when it starts."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_PORT = 8760


class ServerSettings(BaseModel):
    """Where it looks for runs and whom it answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Path("runs")
    """Folder of its own store and of the runs that it starts; output folders at most two levels below it are served too."""
    runs: tuple[Path, ...] = ()
    """Output folders of runs elsewhere that are served as well."""
    store_url: str | None = None
    """A store that workers share; None for the home's own database."""
    host: str = "127.0.0.1"
    """Address it listens at; any but a loopback one asks every reader for a token."""
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535)
    """0 for any free one."""
    hosts: tuple[str, ...] = ()
    """Names by which browsers may call it beside its own address and `localhost` (a proxy's, say)."""
    max_body_bytes: int = Field(default=2**20, ge=1024)
    """Most bytes of a request's body."""
