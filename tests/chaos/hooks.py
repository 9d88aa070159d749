"""What a test changes in a worker before it begins: called in the worker's first process, so that its pool inherits it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def _at_point(stage: str, event: str, ordinal: int, do: object) -> None:
    """Have ``do`` called in the pool's process whenever it passes the point of one chunk."""
    from autointerp.pipeline import execution
    from autointerp.pipeline.execution import execute_claimed
    from autointerp.store import Lease

    held: list[Lease] = []

    def claimed(lease: Lease, *arguments: object, **settings: object) -> object:
        held[:] = [lease]
        return execute_claimed(lease, *arguments, **settings)  # type: ignore[arg-type]

    def point(at: str, passed: str) -> None:
        if held and (at, passed, held[0].key.ordinal) == (stage, event, ordinal):
            do()  # type: ignore[operator]

    execution.fault_point = point
    from autointerp.cluster import working

    working.execute_claimed = claimed  # type: ignore[assignment]


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop_once() -> None:
    mark = Path(os.environ["CHAOS_MARK"])
    if not mark.exists():
        mark.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)


def poison_explain() -> None:
    """Chunk 1 of ``explain`` always ends the process that has it, when it is about to write."""
    _at_point("explain", "before_write", 1, _kill)


def poison_label() -> None:
    """Chunk 1 of ``label``, without which no run ends, always ends the process that has it."""
    _at_point("label", "before_write", 1, _kill)


def stop_before_write() -> None:
    """The process that has chunk 1 of ``explain`` stops, once, with all done and nothing written."""
    _at_point("explain", "before_write", 1, _stop_once)


def _slow() -> None:
    time.sleep(float(os.environ.get("CHAOS_SLOW_S", "4")))


def slow_chunk() -> None:
    """Chunk 1 of ``explain`` takes seconds longer than its lease, and than the broker's visibility timeout."""
    _at_point("explain", "before_write", 1, _slow)
    import workers.configuration as configuration

    make = configuration.make_app

    def make_app() -> object:
        app = make()
        app.conf.broker_transport_options = {**app.conf.broker_transport_options, "visibility_timeout": 1}
        return app

    configuration.make_app = make_app


def shifted_clock() -> None:
    """The clock is wrong by CHAOS_SKEW_S seconds, and jumps to the other side of the truth 3 s after the worker began."""
    skew, true = float(os.environ["CHAOS_SKEW_S"]), time.time
    begun = true()
    time.time = lambda: true() + (skew if true() - begun < 3 else -skew)


def older_worker() -> None:
    """Code that does not know the stage ``label``, as an older release would not."""
    from autointerp.cluster import reconciling, working
    from autointerp.pipeline import stages

    stages.STAGES = tuple(stage for stage in stages.STAGES if stage.name != "label")
    reconciling.STAGES = stages.STAGES
    working.ALL_STAGES = tuple(stage for stage in working.ALL_STAGES if stage.name != "label")


def fast_ticks() -> None:
    """Beats tick every second."""
    import workers.configuration as configuration

    configuration._TICK_S = 1.0


def moved_clock() -> None:
    """Nights are told by a clock that stands at the instant that the file CHAOS_CLOCK holds; they are looked after every half second."""
    from datetime import datetime, tzinfo

    import workers.configuration as configuration
    import workers.process as process

    class Standing(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Standing:
            return cls.fromisoformat(Path(os.environ["CHAOS_CLOCK"]).read_text())

    configuration._TICK_S = 0.5
    process.datetime = Standing  # type: ignore[misc]
