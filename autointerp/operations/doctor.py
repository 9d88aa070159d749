"""All checks of ``autointerp doctor``, one after the other; a check that fails itself is a finding too."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from autointerp.config import RunConfig
from autointerp.operations.broker_check import check_broker
from autointerp.operations.environment import STORE_VARIABLE, given_broker, given_store, key_prefix
from autointerp.operations.findings import Finding, State, warning, wrong
from autointerp.operations.gpu_check import check_gpu
from autointerp.operations.machine_check import check_folder, check_time_zones
from autointerp.operations.store_check import check_store
from autointerp.pipeline.stage import Queue
from autointerp.shown_url import without_password
from sae_core.errors import AutointerpError, did_you_mean

QUEUES: tuple[str, ...] = get_args(Queue)
"""Queues that workers can serve."""


@dataclass(frozen=True, slots=True)
class Examined:
    """What is looked at."""

    config: Path | None = None
    """The run's TOML file, whose endpoints and device are tried."""
    sets: Sequence[str] = ()
    """Keys that are set over the file's."""
    queues: Sequence[str] = ()
    """Queues that must have a worker."""
    out: Path = Path("runs")
    """Where runs are to be written."""


def examine(given: Examined) -> Iterator[Finding]:
    """The findings, each as soon as it is there."""
    try:
        broker, prefix, url = given_broker(), key_prefix(), given_store()
    except AutointerpError as error:
        yield wrong("settings", without_password(str(error)))
        return
    yield from _guarded("broker", lambda: check_broker(broker, prefix))
    config, refused = _config(given)
    url = url or (config.store.url if config is not None else None)
    store_is_well = True
    for finding in _guarded("database", lambda: check_store(url)):
        store_is_well = store_is_well and not (finding.check.startswith("database") and finding.state is State.WRONG)
        yield finding
    if url and store_is_well:
        store_url = url
        yield from _guarded("workers", lambda: _workers(store_url, given.queues))
    elif given.queues and not url:
        yield wrong(
            "workers",
            f"queues are asked for and {STORE_VARIABLE} is not set, so that workers and runs cannot find each other: set it.",
        )
    if refused is not None:
        yield refused
    if config is not None:
        yield from _guarded("endpoints", lambda: _endpoints(config))
        subject = config.subject
        weights = [subject.model, *(coder.path for coder in config.coders)]
        yield from _guarded("GPU", lambda: check_gpu(subject.device, weights))
    elif "gpu" in given.queues:
        yield from _guarded("GPU", lambda: check_gpu("cuda"))
    yield from _guarded("output folder", lambda: check_folder(given.out))
    yield from _guarded("time zones", check_time_zones)


def _config(given: Examined) -> tuple[RunConfig | None, Finding | None]:
    from autointerp.config import load_config

    if given.config is None:
        return None, None
    try:
        return load_config(given.config, list(given.sets), os.environ), None
    except AutointerpError as error:
        return None, wrong("config", without_password(" ".join(str(error).split())))


def _endpoints(config: RunConfig) -> Iterator[Finding]:
    from autointerp.operations.endpoint_question import check_endpoints

    return check_endpoints(config)


def _workers(url: str, queues: Sequence[str]) -> Iterator[Finding]:
    from autointerp.operations.worker_check import check_workers
    from autointerp.store.dialects import READ_ONLY, make_engine, parse_url
    from autointerp.store.opening import HEAD, current_revision

    for queue in queues:
        if queue not in QUEUES:
            yield wrong(f"workers {queue}", f"there is no queue {queue!r}: {did_you_mean(queue, QUEUES)}")
    asked = [queue for queue in queues if queue in QUEUES]
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        yield from _nobody_yet(asked)
        return
    engine = make_engine(parsed)
    try:
        with engine.connect().execution_options(**{READ_ONLY: True}) as connection, connection.begin():
            if current_revision(connection) == HEAD:
                yield from check_workers(connection, asked)
            else:
                yield from _nobody_yet(asked)
    finally:
        engine.dispose()


def _nobody_yet(queues: Sequence[str]) -> Iterator[Finding]:
    """Of a store without tables, into which a worker that was started would have put some."""
    for queue in queues:
        yield wrong(
            f"workers {queue}",
            f"no worker was ever heard of, as the store has no tables yet: start one with `celery -A workers.app worker -Q {queue}`.",
        )


def _guarded(check: str, findings: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings; an error of the check itself, of which nobody thought, is a warning and ends that check alone."""
    try:
        yield from findings()
    except Exception as error:  # noqa: BLE001 - a doctor that dies says nothing of the rest
        said = without_password(" ".join(str(error).split()))[:200]
        yield warning(check, f"the check itself failed ({type(error).__name__}: {said}).")
