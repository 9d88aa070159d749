"""What Prometheus is told: read from the database and the broker when it asks, so that no process that dies takes a count along."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, case, func, select
from sqlalchemy.exc import SQLAlchemyError

from autointerp.operations.growing_count import GrowingCount
from autointerp.store.dialects import database_time
from autointerp.store.models import (
    Chunk,
    Duty,
    EventCount,
    ExplanationRow,
    LabelRow,
    LLMCall,
    LLMReservation,
    NightRow,
    Run,
    ScoreRow,
)
from autointerp.store.presence import live_workers
from autointerp.store.store import LabelStore
from sae_core.errors import AutointerpError, ConfigError

if TYPE_CHECKING:
    import redis
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

QUEUES = ("llm", "gpu", "export", "control")
_MESSAGES = (*QUEUES, "reconcile")
"""Queues of the broker."""
KEPT_S = 5.0
"""Time for which an answer is given again, so that several who ask cost no more than one."""
MOST_SERIES = 200
"""Most values of a metric's labels; what is beyond goes under ``other``."""
OTHER = "other"
_LONGEST_LABEL = 80


@dataclass(frozen=True, slots=True)
class Described:
    """A metric as the documentation has it."""

    name: str
    """As Prometheus shows it; counters end in ``_total``."""
    kind: str
    """gauge or counter."""
    labels: tuple[str, ...]
    help: str


METRICS = (
    Described("autointerp_broker_up", "gauge", (), "1 where the broker answers."),
    Described("autointerp_broker_messages", "gauge", ("queue",), "Hints that wait in the broker."),
    Described(
        "autointerp_database_up", "gauge", (), "1 where the database answers; without it most of the rest is missing."
    ),
    Described("autointerp_runs", "gauge", ("state",), "Runs by state."),
    Described(
        "autointerp_chunks",
        "gauge",
        ("queue", "stage", "state"),
        "Chunks of runs that are running or paused: waiting, ready, running, done, failed, poisoned.",
    ),
    Described("autointerp_labels_total", "counter", ("status",), "Latents with a terminal row, by status."),
    Described(
        "autointerp_llm_calls_total",
        "counter",
        ("endpoint", "purpose", "outcome"),
        "Calls of language models that were, or may have been, paid; outcome is reply or lost.",
    ),
    Described(
        "autointerp_llm_tokens_total",
        "counter",
        ("endpoint", "purpose", "direction"),
        "Tokens of these calls: input (cached ones among them), cached, output.",
    ),
    Described(
        "autointerp_llm_dollars_total",
        "counter",
        ("endpoint", "purpose"),
        "US dollars of the calls with a known price.",
    ),
    Described(
        "autointerp_llm_unpriced_calls_total", "counter", ("endpoint", "purpose"), "Calls whose price is not known."
    ),
    Described("autointerp_llm_seconds_total", "counter", ("endpoint", "purpose"), "Time of these calls, added up."),
    Described("autointerp_llm_reserved_tokens", "gauge", (), "Tokens reserved for calls under way."),
    Described(
        "autointerp_failures_total",
        "counter",
        ("component", "kind"),
        "Explanations and scores that ended in a typed failure.",
    ),
    Described(
        "autointerp_events_total",
        "counter",
        ("event",),
        "What no row tells: lease_expired (a lease ran out), fenced (a write came too late), ...",
    ),
    Described("autointerp_workers", "gauge", ("queue",), "Worker processes heard of in the last minute, by queue."),
    Described("autointerp_workers_memory_bytes", "gauge", (), "Their resident memory, added up."),
    Described(
        "autointerp_duty_seconds_since",
        "gauge",
        ("duty",),
        "Seconds since a duty, such as reconcile, was last done; 0 while somebody is at it.",
    ),
    Described("autointerp_nights", "gauge", ("state",), "Nights of schedules: due, running, settled, empty."),
    Described("autointerp_scrape_seconds", "gauge", (), "Time that reading all this took."),
)
"""Every metric there is, in the order in which they are given."""

Samples = dict[str, dict[tuple[str, ...], float]]
"""Values by metric and by the values of its labels."""


class StoreCounts:
    """The metrics that come from the database. Keeps what has settled, so one lives as long as it is asked."""

    def __init__(self) -> None:
        priced = case((LLMCall.cost_nano_usd.is_(None), 1), else_=0)
        self._calls = GrowingCount(
            LLMCall,
            (LLMCall.endpoint, LLMCall.purpose, LLMCall.outcome),
            (
                func.count(),
                func.sum(LLMCall.input_tokens),
                func.sum(LLMCall.cached_tokens),
                func.sum(LLMCall.output_tokens),
                func.sum(LLMCall.cost_nano_usd),
                func.sum(priced),
                func.sum(LLMCall.seconds),
            ),
        )
        self._failures = [
            GrowingCount(table, (component, table.failure_kind), (func.count(),), table.failure_kind.is_not(None))
            for table, component in ((ExplanationRow, ExplanationRow.explainer), (ScoreRow, ScoreRow.scorer))
        ]
        self._labels = GrowingCount(LabelRow, (LabelRow.status,), (func.count(),))

    def read(self, connection: Connection) -> Samples:
        """All of them."""
        now = database_time(connection)
        workers = live_workers(connection)
        served = sorted({queue for worker in workers for queue in worker.queues} | set(QUEUES))
        found: Samples = {
            "autointerp_runs": {(state,): 0.0 for state in ("running", "paused", "cancelled", "done", "failed")}
            | _counted(connection.execute(select(Run.state, func.count()).group_by(Run.state))),
            "autointerp_chunks": _counted(
                connection.execute(
                    select(Chunk.queue, Chunk.stage, Chunk.state, func.count())
                    .where(Chunk.run_id.in_(select(Run.id).where(Run.state.in_(("running", "paused")))))
                    .group_by(Chunk.queue, Chunk.stage, Chunk.state)
                )
            ),
            "autointerp_labels_total": {key: values[0] for key, values in self._labels.totals(connection).items()},
            "autointerp_llm_reserved_tokens": {
                (): float(connection.execute(select(func.sum(LLMReservation.tokens))).scalar() or 0)
            },
            "autointerp_failures_total": {},
            "autointerp_events_total": {("lease_expired",): 0.0, ("fenced",): 0.0}
            | _counted(
                connection.execute(select(EventCount.name, func.sum(EventCount.count)).group_by(EventCount.name))
            ),
            "autointerp_nights": {(state,): 0.0 for state in ("due", "running", "settled", "empty")}
            | _counted(connection.execute(select(NightRow.state, func.count()).group_by(NightRow.state))),
            "autointerp_workers": {
                (queue,): float(sum(queue in worker.queues for worker in workers)) for queue in served
            },
            "autointerp_workers_memory_bytes": {(): float(sum(worker.rss_bytes for worker in workers))},
            "autointerp_duty_seconds_since": {
                (str(name),): max(0.0, now - until) for name, until in connection.execute(select(Duty.name, Duty.until))
            },
        }
        for count in self._failures:
            for key, values in count.totals(connection).items():
                _add(found, "autointerp_failures_total", key, values[0])
        for (endpoint, purpose, outcome), sums in self._calls.totals(connection).items():
            calls, read, cached, written, nano, unpriced, seconds = sums
            _add(found, "autointerp_llm_calls_total", (endpoint, purpose, outcome), calls)
            for direction, tokens in (("input", read), ("cached", cached), ("output", written)):
                _add(found, "autointerp_llm_tokens_total", (endpoint, purpose, direction), tokens)
            _add(found, "autointerp_llm_dollars_total", (endpoint, purpose), nano / 1e9)
            _add(found, "autointerp_llm_unpriced_calls_total", (endpoint, purpose), unpriced)
            _add(found, "autointerp_llm_seconds_total", (endpoint, purpose), seconds)
        return found


class Scraper:
    """Reads everything at most every :data:`KEPT_S` seconds, whoever asks how often. Safe to be asked from several threads."""

    def __init__(
        self,
        store: LabelStore | None,
        broker: redis.Redis | None,
        *,
        prefix: str = "",
        kept_s: float = KEPT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``prefix``: what the broker's keys begin with."""
        self._store, self._broker, self._prefix = store, broker, prefix
        self._kept_s, self._clock = kept_s, clock
        self._counts = StoreCounts()
        self._lock = threading.Lock()
        self._read_at: float | None = None
        self._samples: Samples = {}

    def samples(self) -> Samples:
        """The values now, or of a moment ago."""
        with self._lock:
            if self._read_at is None or self._clock() - self._read_at >= self._kept_s:
                self._samples = self._read()
                self._read_at = self._clock()
            return self._samples

    def _read(self) -> Samples:
        begun = time.perf_counter()
        found: Samples = {}
        if self._broker is not None:
            found |= self._read_broker(self._broker)
        if self._store is not None:
            try:
                with self._store.reading() as connection:
                    found |= self._counts.read(connection)
                found["autointerp_database_up"] = {(): 1.0}
            except (SQLAlchemyError, AutointerpError):
                self._counts = StoreCounts()  # half a sum may be in it
                found["autointerp_database_up"] = {(): 0.0}
        found["autointerp_scrape_seconds"] = {(): time.perf_counter() - begun}
        return {name: _bounded(values) for name, values in found.items()}

    def _read_broker(self, broker: redis.Redis) -> Samples:
        import redis

        try:
            pipeline = broker.pipeline(transaction=False)
            for queue in _MESSAGES:
                pipeline.llen(f"{self._prefix}{queue}")
            lengths = pipeline.execute()
        except redis.RedisError:
            return {"autointerp_broker_up": {(): 0.0}}
        return {
            "autointerp_broker_up": {(): 1.0},
            "autointerp_broker_messages": {
                (queue,): float(length) for queue, length in zip(_MESSAGES, lengths, strict=True)
            },
        }


class _Collector:
    """What prometheus_client asks."""

    def __init__(self, scraper: Scraper) -> None:
        self._scraper = scraper

    def collect(self) -> Iterator[Metric]:
        """The metrics of this moment."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        samples = self._scraper.samples()
        for described in METRICS:
            if described.name not in samples:
                continue
            family: Any = CounterMetricFamily if described.kind == "counter" else GaugeMetricFamily
            metric = family(described.name.removesuffix("_total"), described.help, labels=described.labels)
            for labels, value in sorted(samples[described.name].items()):
                metric.add_metric(list(labels), value)
            yield metric

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask the database."""
        return ()


def registry_of(scraper: Scraper) -> CollectorRegistry:
    """A registry with these metrics and no others. Errors: ConfigError where prometheus_client is missing."""
    try:
        from prometheus_client import CollectorRegistry
    except ModuleNotFoundError as error:
        raise ConfigError("metrics need the package 'prometheus_client': pip install 'autointerp[cluster]'.") from error
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(scraper))
    return registry


def serve(scraper: Scraper, address: str, port: int) -> tuple[Any, threading.Thread]:
    """Serve them over HTTP at ``/metrics`` in a thread; the server and the thread. Errors: ConfigError (a port that is taken)."""
    registry = registry_of(scraper)
    from prometheus_client import start_http_server

    scraper.samples()  # the first time reads whole tables: before anybody waits for it
    try:
        return start_http_server(port, addr=address, registry=registry)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"metrics cannot be served at {address}:{port} ({getattr(error, 'strerror', None) or error}): give another "
            "--port or --address."
        ) from error


def markdown_table() -> str:
    """The table of metrics in the documentation."""
    rows = [
        f"| `{metric.name}` | {metric.kind} | {', '.join(metric.labels) or '–'} | {metric.help} |" for metric in METRICS
    ]
    return "\n".join(["| metric | kind | labels | is |", "|---|---|---|---|", *rows]) + "\n"


def _counted(rows: Iterable[Sequence[Any]]) -> dict[tuple[str, ...], float]:
    return {tuple(map(str, row[:-1])): float(row[-1] or 0) for row in rows}


def _add(found: Samples, name: str, key: tuple[str, ...], value: float) -> None:
    values = found.setdefault(name, {})
    values[key] = values.get(key, 0.0) + value


def _bounded(values: Mapping[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
    """At most :data:`MOST_SERIES` series, the largest; the rest added up under ``other``."""
    short: dict[tuple[str, ...], float] = {}
    for key, value in values.items():
        cut = tuple(part[:_LONGEST_LABEL] for part in key)
        short[cut] = short.get(cut, 0.0) + value
    if len(short) <= MOST_SERIES:
        return short
    ordered = sorted(short, key=lambda key: (-short[key], key))
    kept, rest = ordered[: MOST_SERIES - 1], ordered[MOST_SERIES - 1 :]
    return {key: short[key] for key in kept} | {(OTHER,) * len(kept[0]): sum(short[key] for key in rest)}
