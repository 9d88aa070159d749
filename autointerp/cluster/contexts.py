"""What a worker process keeps of the runs that it works on: settings, readers, connections, and on a GPU the subject."""

from __future__ import annotations

import gc
from collections import OrderedDict

from autointerp.artefacts.settings import exchange_for
from autointerp.operations.logging import redact_config
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.starting import open_run
from autointerp.store import LabelStore

RETRIED = "retried"
"""Counted when somebody asks for what failed to be tried again: replies that cannot be used are asked for again until the run is done."""
RETRIES_DONE = "retries_done"
"""As many of these as the run had seen to when it was done the last time."""


def asked_to_retry(store: LabelStore, run_id: str) -> int:
    """Times that somebody asked for what failed to be tried again."""
    return store.event_counts(run_id).get(RETRIED, 0)


def settle_retries(store: LabelStore, run_id: str, asked: int) -> None:
    """Note that what was to be tried again up to then has been: from now on a kept reply that cannot be used is what it was."""
    more = asked - store.event_counts(run_id).get(RETRIES_DONE, 0)
    if more > 0:
        store.count_event(run_id, RETRIES_DONE, more)


class RunContexts:
    """The contexts of the runs used last, at most ``most``; of one process, used by one thread at a time."""

    def __init__(self, store: LabelStore, most: int) -> None:
        self._store, self._most = store, most
        self._kept: OrderedDict[str, tuple[tuple[str | None, int, bool], RunContext]] = OrderedDict()

    def of(self, run_id: str) -> RunContext:
        """The context of a run as its row says it now: whoever raises a budget or asks again is heard. Errors: StoreError, ConfigError."""
        # asked for every chunk, so the configuration itself, which may be long, is read only where its hash is another one
        counts = self._store.event_counts(run_id)
        retried = counts.get(RETRIED, 0)
        asks_again = retried > counts.get(RETRIES_DONE, 0)
        state = (self._store.config_digest(run_id), retried, asks_again)
        kept = self._kept.get(run_id)
        if kept is not None and kept[0] == state and state[0] is not None:
            self._kept.move_to_end(run_id)
            self.refresh_sources(run_id)
            return kept[1]
        redact_config(self._store.run(run_id).config)
        context = open_run(self._store, run_id)
        context.asks_again = asks_again
        context.folder, context.exchange = exchange_for(self._store, run_id, context.folder, retried)
        if kept is not None:
            self.drop(run_id)
            context.adopt(kept[1])
        else:
            for _, other in self._kept.values():
                context.adopt_subject(other)
            while len(self._kept) >= self._most:
                self.drop(next(iter(self._kept)))
        self._kept[run_id] = (state, context)
        return context

    def for_subject(self, run_id: str) -> RunContext:
        """As :meth:`of`, for work with the subject: of other runs' subjects only the same one stays, and nothing that extraction holds."""
        context, freed = self.of(run_id), False
        for _, other in self._kept.values():
            if other is context:
                continue
            other.drop_extractor()
            if other.config.subject == context.config.subject:
                context.adopt_subject(other)
            elif "subject" in other.__dict__:
                other.release_subject()
                freed = True
        if freed:
            gc.collect()  # coders and subjects hold each other
        return context

    def refresh_sources(self, run_id: str) -> None:
        """Read the run's sources anew where it had none: it has been prepared since."""
        kept = self._kept.get(run_id)
        if kept is not None and not kept[1].__dict__.get("sources", [None]):
            del kept[1].__dict__["sources"]

    def drop(self, run_id: str) -> None:
        """Forget a run, and free what it held."""
        kept = self._kept.pop(run_id, None)
        if kept is not None:
            kept[1].close()
            kept[1].drop_extractor()
            del kept
            gc.collect()  # coders and subjects hold each other

    def close(self) -> None:
        """Forget all runs."""
        for run_id in list(self._kept):
            self.drop(run_id)
