"""What routes ask of jobs: plan and start runs, export them, and steer both."""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from autointerp.cluster.controlling import cancel_run, pause_run, resume_run, retry_failed
from autointerp.config import RunConfig, canonical_json
from autointerp.planning.plan import RunPlan, plan_run
from autointerp.server.access import Principal
from autointerp.server.catalogue import Catalogue
from autointerp.server.jobs.configuring import configured
from autointerp.server.jobs.latents import LatentCounts
from autointerp.server.jobs.request import KEY_PATTERN, RunRequest
from autointerp.server.jobs.rows import OPEN, JobKind, add_job, change, job, job_of_run, jobs, num_open
from autointerp.server.jobs.runner import JobRunner
from autointerp.server.quotas import FREE, Bound, check_quota
from autointerp.server.settings import ServerSettings
from autointerp.server.shelf import ServedRun, Shelf
from autointerp.store.column_types import utc_now
from autointerp.store.models import JobRow
from sae_core.errors import BudgetError, InputError, StoreError, UnknownNameError

_MOST_OPEN = 50
"""Jobs that anybody may have waiting, whatever a token says."""
_SHOWN_FOR = timedelta(days=7)
"""How long the first page shows a job that failed before it had a run."""


class Planned(NamedTuple):
    """A run that could be started."""

    config: RunConfig
    plan: RunPlan
    num_latents: tuple[int, ...]
    """Of each source."""


class Jobs:
    """The jobs of one server. Threads may share it."""

    def __init__(self, settings: ServerSettings, shelf: Shelf) -> None:
        self._settings, self._shelf, self._store = settings, shelf, shelf.own
        self._home = settings.home.absolute()
        self.catalogue = Catalogue(shelf.own)
        self._counts = LatentCounts()
        self._adding = threading.Lock()
        url = shelf.own.engine.url.render_as_string(hide_password=False)
        self._url = url
        self.runner = JobRunner(shelf.own, url, self._home)

    # runs

    def plan(self, request: RunRequest) -> Planned:
        """What the run would ask of language models. Errors: InputError's family."""
        config = self._configured(request)
        counts = tuple(self._counts.of(self.catalogue.entry("source", name)) for name in request.sources)
        for name, count in zip(config.source_names(), counts, strict=True):
            config.select_latents(count, name)
        return Planned(config, plan_run(config, num_latents=counts), counts)

    def start(self, request: RunRequest, principal: Principal, key: str | None) -> JobRow:
        """Start the run, or have it wait for its turn; a key given before stands for the job of then.

        Errors: InputError's family, StoreError for a key of another request, BudgetError for what the token does not pay for.
        """
        config = self._configured(request)
        submitted = self._settings.store_url is not None
        job_id = secrets.token_hex(8)
        folder = self._home / f"{request.label}-{job_id[:8]}"
        row = self._row("run", job_id, request.label, folder, request.model_dump_json(), principal, key)
        row.request = {"config": config.stored() | {"store": {"url": self._url}}, "after": self._last_ordinal(config)}
        with self._adding:
            found = self._before(row)
            if found is not None:
                return found
            self._check_quota(
                principal, Bound.of(config.budget.tokens, config.budget.usd) if config.endpoints else FREE
            )
            if submitted:
                self._submit(config, row)
            added = add_job(self._store, row)
        self.runner.wake()
        return added

    def _submit(self, config: RunConfig, row: JobRow) -> None:
        """Leave the run to a cluster's workers; the job says only that this was done."""
        from autointerp.cluster.submitting import submit_run

        name = f"{row.asked_by}/{row.key or row.id}"
        found = submit_run(config, row.name, Path(row.folder), key=name, owner=row.owner)
        row.run_id, row.folder, row.request = found.run_id, str(found.folder), {}
        row.state, row.started_at = "done", utc_now()

    def export(self, run: ServedRun, principal: Principal) -> JobRow:
        """Have the run's dictionary made anew; one that is on its way is that one. Errors: StoreError for a run that goes on."""
        state = run.store.run_state(run.run_id)
        if state in ("running", "paused"):
            raise StoreError(f"the run {run.run_id} has not ended: it makes its dictionary at its end.")
        job_id = secrets.token_hex(8)
        row = self._row("export", job_id, run.run_id, run.export_folder.absolute(), job_id, principal, None)
        row.run_id, row.request = run.run_id, {"run_folder": str(run.folder.root)}
        with self._adding:
            before = job_of_run(self._store, run.run_id, "export")
            if before is not None and before.state in OPEN:
                return before
            self._check_quota(principal, FREE)
            added = add_job(self._store, row)
        self.runner.wake()
        return added

    # what there is

    def job(self, job_id: str, principal: Principal) -> JobRow:
        """Errors: UnknownNameError, also for the job of another."""
        found = job(self._store, job_id)
        if not principal.sees(found.owner):
            raise UnknownNameError("there is no such job: the first page lists those there are.")
        return found

    def jobs(self, principal: Principal, *, limit: int = 200) -> list[JobRow]:
        """The latest that the principal may see."""
        own = [] if principal.sees("\x00") else [(JobRow.owner == principal.token_id) | (JobRow.owner.is_(None))]
        return jobs(self._store, *own, limit=limit)

    def without_run(self, principal: Principal) -> list[JobRow]:
        """Runs that wait for their turn, are just being checked, or failed lately before they were one; the latest first."""
        since = utc_now() - _SHOWN_FOR
        found = [row for row in self.jobs(principal) if row.kind == "run" and row.run_id is None]
        return [row for row in found if row.state in OPEN or row.created_at > since]

    def export_of(self, run_id: str) -> JobRow | None:
        """The latest export of a run that was asked for; None where none was."""
        return job_of_run(self._store, run_id, "export")

    def job_of(self, run_id: str) -> JobRow | None:
        """The job that makes a run; None for a run that others began."""
        return job_of_run(self._store, run_id)

    # steering

    def halt(self, run: ServedRun, wanted: str) -> None:
        """Pause or cancel a run. Errors: StoreError for one that has ended."""
        (pause_run if wanted == "paused" else cancel_run)(run.store, run.run_id)
        row = job_of_run(self._store, run.run_id)
        if row is not None and not run.store.run(run.run_id).submitted:
            if row.state == "queued":
                change(self._store, row.id, was=("queued",), state=wanted)
            elif row.state in ("paused", "failed") and wanted == "cancelled":
                change(self._store, row.id, was=(row.state,), state=wanted)
            elif row.state == "running":
                change(self._store, row.id, was=("running",), wanted=wanted)
        self.runner.wake()

    def resume(self, run: ServedRun, principal: Principal) -> None:
        """Let a run go on. Errors: StoreError for one that is done, or that nobody here goes on with; BudgetError."""
        record = run.store.run(run.run_id)
        if record.submitted:
            resume_run(run.store, run.run_id)
            return
        row = self._job_of(run)
        if row.state not in ("paused", "cancelled", "failed"):
            raise StoreError(f"the run {run.run_id} is {row.state} and cannot be resumed.")
        with self._adding:
            asked = _bound(record.config) if record.state in ("cancelled", "done") else FREE
            self._check_quota(principal, asked)
            request = {**row.request, "retry": False}
            change(self._store, row.id, was=(row.state,), state="queued", wanted=None, request=request)
        self._waits(run)

    def retry(self, run: ServedRun, principal: Principal) -> int | None:
        """Have what failed tried again; the number of chunks, None where that shows later. Errors: StoreError where nothing failed."""
        record = run.store.run(run.run_id)
        if record.submitted:
            return retry_failed(run.store, run.run_id, run.folder)
        from autointerp.pipeline.retrying import anything_to_retry

        row = self._job_of(run)
        if row.state in OPEN or row.state == "paused":
            raise StoreError(f"the run {run.run_id} is {row.state}: it can be retried when it has ended.")
        if row.state == "done" and not anything_to_retry(run.store, run.run_id):
            raise StoreError(f"nothing of the run {run.run_id} failed that could be tried again.")
        with self._adding:
            self._check_quota(principal, _bound(record.config))
            request = {**row.request, "retry": True}
            change(self._store, row.id, was=(row.state,), state="queued", wanted=None, request=request)
        self._waits(run)
        return None

    def cancel_job(self, row: JobRow) -> None:
        """End a job that has no run yet. Errors: StoreError for one that has ended."""
        if row.run_id is not None and row.kind == "run":
            self.halt(self._shelf.run(row.run_id), "cancelled")
        elif not change(self._store, row.id, was=("queued",), state="cancelled") and not change(
            self._store, row.id, was=("running",), wanted="cancelled"
        ):
            raise StoreError(f"the job {row.id} is {row.state} and cannot be cancelled.")
        self.runner.wake()

    def retry_job(self, row: JobRow, principal: Principal) -> None:
        """Do a job again that failed or was cancelled before it had a run. Errors: StoreError, BudgetError."""
        if row.run_id is not None and row.kind == "run":
            self.retry(self._shelf.run(row.run_id), principal)
            return
        with self._adding:
            self._check_quota(principal, _bound(row.request.get("config", {})))
            if not change(self._store, row.id, was=("failed", "cancelled", "paused"), state="queued", wanted=None):
                raise StoreError(f"the job {row.id} is {row.state}: only one that has failed is done again.")
        self.runner.wake()

    def _waits(self, run: ServedRun) -> None:
        note = "waits for its turn; it goes on when no other run is under way"
        run.store.set_run_state(run.run_id, "paused", note, unless=("running",))
        self.runner.wake()

    def _job_of(self, run: ServedRun) -> JobRow:
        row = job_of_run(self._store, run.run_id)
        if row is None:
            raise StoreError(
                f"the run {run.run_id} was begun by `autointerp run`: go on with it by that command (with --retry for what failed)."
            )
        return row

    # adding

    def _configured(self, request: RunRequest) -> RunConfig:
        return configured(request, self.catalogue, self._settings.store_url or self._url)

    def _last_ordinal(self, config: RunConfig) -> int:
        """Of the runs of a configuration that the server shows: their ids may stand in other stores than its own."""
        beginning = f"{config.digest[:12]}-"
        ends = [head.id.removeprefix(beginning) for head in self._shelf.heads() if head.id.startswith(beginning)]
        return max((int(end) for end in ends if end.isdecimal()), default=0)

    def _row(
        self, kind: JobKind, job_id: str, name: str, folder: Path, request: str, principal: Principal, key: str | None
    ) -> JobRow:
        if key is not None and re.fullmatch(KEY_PATTERN, key) is None:
            raise InputError("an idempotency key has 1 to 100 visible ASCII characters without spaces.")
        digest = hashlib.sha256(canonical_json([kind, request]).encode()).hexdigest()
        owner = principal.token_id
        return JobRow(
            id=job_id, kind=kind, name=name, state="queued", owner=owner, asked_by=owner or "", key=key, digest=digest,
            folder=str(folder), request={}, process="", created_at=utc_now(),
        )  # fmt: skip

    def _before(self, row: JobRow) -> JobRow | None:
        """The job of the same key. Errors: StoreError where that was another request."""
        if row.key is None:
            return None
        found = jobs(self._store, JobRow.asked_by == row.asked_by, JobRow.key == row.key)
        return add_job(self._store, row) if found else None  # which compares the two

    def _check_quota(self, principal: Principal, asked: Bound) -> None:
        asked_by = principal.token_id or ""
        count = num_open(self._store, asked_by)
        if self._settings.store_url is not None:
            count += len(
                [head for head in self._store.runs() if head.state == "running" and head.owner == principal.token_id]
            )
        if count >= _MOST_OPEN:
            raise BudgetError(
                f"{count} jobs wait or are under way, which is the most there may be: wait for one to end."
            )
        waiting = [
            _bound(row.request.get("config", {}))
            for row in jobs(self._store, JobRow.asked_by == asked_by, JobRow.state.in_(OPEN))
            if row.kind == "run" and row.run_id is None
        ]
        # runs of tokens are those of the server's own store alone
        check_quota([self._store], self._store, principal, jobs=count, asked=asked, waiting=waiting)


def _bound(config: dict[str, object]) -> Bound:
    """The most that the run of a stored configuration may spend."""
    budget = config.get("budget")
    given = budget if isinstance(budget, dict) else {}
    return Bound.of(given.get("tokens"), given.get("usd")) if config.get("endpoints") else FREE
