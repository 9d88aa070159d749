"""How many latents a coder has: loading it takes torch, so a child process does (``python -m autointerp.server.jobs.latents``)."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

from autointerp.config import CoderConfig
from autointerp.server.catalogue import Entry, source_config
from sae_core.errors import AutointerpError, CoderError

_LIMIT_S = 300.0


class LatentCounts:
    """The number of latents of sources, counted once each. Threads may share one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, int] = {}

    def of(self, source: Entry) -> int:
        """Errors: CoderError where the coder cannot be loaded."""
        kept = source.settings.get("num_latents")
        if kept is not None:
            return int(kept)
        coder = source_config(source).coders[0].model_dump_json()
        with self._lock:
            if coder not in self._known:
                self._known[coder] = _count(source.name, coder)
            return self._known[coder]


def _count(name: str, coder: str) -> int:
    command = [sys.executable, "-m", "autointerp.server.jobs.latents"]
    try:
        done = subprocess.run(command, input=coder, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise CoderError(f"the coder of the source {name!r} was not loaded in {_LIMIT_S:.0f} s: try again.") from None
    if done.returncode != 0:
        raise CoderError(
            f"the coder of the source {name!r} cannot be loaded: its process ended with status {done.returncode}."
        )
    said = json.loads(done.stdout.splitlines()[-1])
    if "error" in said:
        raise CoderError(str(said["error"]))
    return int(said["num_latents"])


def main() -> None:
    """Load the coder on the input, and say how many latents it has."""
    from autointerp.pipeline.attaching import load_configured

    coder = CoderConfig.model_validate_json(sys.stdin.read())
    try:
        print(json.dumps({"num_latents": load_configured(coder).num_latents}))
    except AutointerpError as error:
        print(json.dumps({"error": str(error)}))


if __name__ == "__main__":
    main()
