"""A script of faults: which requests meet which fault. What each does stands in ``spoiling`` and ``wire_faults``.

A script is a list of rules; the first rule that holds for a request gives its fault, none: it is answered well. As JSON::

    [{"fault": "rate_limit", "retry_after": "119", "at": [0, 1]},
     {"fault": "status", "status": 503, "rate": 0.3, "seed": 7, "tries": 2},
     {"fault": "hang", "containing": "w17"}]
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from autointerp.llm.server.spoiling import SPOILED
from autointerp.llm.server.wire_faults import REFUSED, WIRE
from sae_core.errors import ConfigError, did_you_mean

FAULTS = frozenset({*SPOILED, *REFUSED, *WIRE})
"""Names of all faults."""


@dataclass(frozen=True, slots=True)
class FaultRule:
    """One fault, and the requests that it meets: those for which all conditions that are given hold."""

    fault: str
    """Its name."""
    at: tuple[int, ...] | None = None
    """Ordinals of requests, in the order of arrival, from 0; GET requests and other paths count as well."""
    containing: str | None = None
    """A text that the prompt holds."""
    rate: float | None = None
    """Share of requests, at random; the draw depends on the seed, the request and how often it came, not on the order."""
    seed: int = 0
    """Seed of the random draw."""
    tries: int | None = None
    """Only the first so many times that one and the same request comes."""
    times: int | None = None
    """At most so many times in all."""
    status: int = 500
    """HTTP status of the fault ``status``."""
    retry_after: str | None = None
    """Header Retry-After as it is sent; ``date+5`` for the HTTP date in 5 s. For ``rate_limit`` and ``status``."""
    message: str | None = None
    """What the server says of an error, in the place of its usual words."""
    seconds: float = 1.0
    """Time between two bytes of ``drip``; for ``late``, before the answer."""
    size_bytes: int = 100_000_000
    """Size of a huge body, packed out for ``gzip_bomb``."""

    def __post_init__(self) -> None:
        if self.fault not in FAULTS:
            raise ConfigError(f"there is no fault {self.fault!r}: {did_you_mean(self.fault, FAULTS)}")
        if self.rate is not None and not 0 <= self.rate <= 1:
            raise ConfigError(f"fault {self.fault!r} has rate = {self.rate}: give a share from 0 to 1")
        if self.at is not None and not all(isinstance(ordinal, int) for ordinal in self.at):
            raise ConfigError(f"fault {self.fault!r} has at = {self.at!r}: give a list of whole numbers")


class FaultScript:
    """Rules, with the counts that they depend on."""

    def __init__(self, rules: Iterable[FaultRule] = ()) -> None:
        self.rules = tuple(rules)
        self._times: Counter[int] = Counter()
        self._tries: Counter[str] = Counter()

    def choose(self, ordinal: int, body: bytes, prompt: str) -> FaultRule | None:
        """The fault of the ``ordinal``-th request."""
        if not self.rules:
            return None
        digest = hashlib.sha256(body).hexdigest()
        attempt = self._tries[digest]
        self._tries[digest] += 1
        for number, rule in enumerate(self.rules):
            if rule.at is not None and ordinal not in rule.at:
                continue
            if rule.containing is not None and rule.containing not in prompt:
                continue
            if rule.tries is not None and attempt >= rule.tries:
                continue
            if rule.times is not None and self._times[number] >= rule.times:
                continue
            if rule.rate is not None and _draw(rule.seed, number, digest, attempt) >= rule.rate:
                continue
            self._times[number] += 1
            return rule
        return None


def _draw(*purpose: object) -> float:
    """A number from [0, 1)."""
    return int.from_bytes(hashlib.sha256(repr(purpose).encode()).digest()[:7], "big") / 2**56


def read_script(entries: Any) -> list[FaultRule]:
    """Rules from JSON values. Errors: ConfigError for an unknown fault or key."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError("a script of faults is a JSON list of objects, each with a key 'fault'")
    known = {item.name for item in fields(FaultRule)}
    rules = []
    for entry in entries:
        for name in entry:
            if name not in known:
                raise ConfigError(f"a fault has the unknown key {name!r}: {did_you_mean(name, known)}")
        if "fault" not in entry:
            raise ConfigError(f"the fault {json.dumps(entry)[:80]} has no name: give it a key 'fault'")
        at = entry.get("at")
        rules.append(FaultRule(**{**entry, "at": tuple(at) if isinstance(at, list) else at}))
    return rules


def load_script(path: Path) -> list[FaultRule]:
    """Rules from a JSON file. Errors: ConfigError for a file that is no script."""
    try:
        return read_script(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is no script of faults: {error}") from error
