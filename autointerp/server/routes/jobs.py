"""Starting runs, having dictionaries made, and steering both."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Form, Header, Path, Request
from pydantic import Field, ValidationError
from starlette.responses import HTMLResponse, RedirectResponse, Response

from autointerp.server.access import Principal, Scope, require
from autointerp.server.dependencies import TheRun
from autointerp.server.errors import said_of, shown_error
from autointerp.server.jobs.dependency import TheJobs, jobs_of
from autointerp.server.jobs.request import KEY_PATTERN, RunRequest
from autointerp.server.jobs.service import Jobs
from autointerp.server.pages import page
from autointerp.server.shelf import ServedRun
from autointerp.server.views.base import View
from autointerp.server.views.jobs import (
    CatalogueView,
    DryRunView,
    JobList,
    JobView,
    NewRunView,
    StartedView,
    SteeredView,
    catalogue_view,
    job_list,
    job_view,
    plan_view,
)
from sae_core.errors import AutointerpError, InputError

_LONGEST_FIELD, _MOST_TICKS = 100, 32
Key = Annotated[str, Field(pattern=KEY_PATTERN)]


class StartRequest(RunRequest):
    """A run, and whether to start it."""

    dry_run: bool = False
    """Only say what it would ask of language models."""
    key: Key | None = None
    """Your name for this request: sent again with the same one, it is the same run. The header Idempotency-Key does the same."""

    @property
    def asked(self) -> RunRequest:
        """The run alone."""
        return RunRequest.model_validate(self.model_dump(exclude={"dry_run", "key"}))


class RunForm(View):
    """The fields of the form, as a browser sends them."""

    sources: list[str] = Field(default=[], max_length=_MOST_TICKS)
    corpus: str = Field(default="", max_length=_LONGEST_FIELD)
    name: str = Field(default="", max_length=_LONGEST_FIELD)
    latents: str = Field(default="", max_length=_LONGEST_FIELD)
    num_tokens: str = Field(default="", max_length=_LONGEST_FIELD)
    explainers: list[str] = Field(default=[], max_length=_MOST_TICKS)
    scorers: list[str] = Field(default=[], max_length=_MOST_TICKS)
    explainer_endpoint: str = Field(default="", max_length=_LONGEST_FIELD)
    judge_endpoint: str = Field(default="", max_length=_LONGEST_FIELD)
    budget_tokens: str = Field(default="", max_length=_LONGEST_FIELD)
    budget_usd: str = Field(default="", max_length=_LONGEST_FIELD)
    key: str = Field(default="", max_length=_LONGEST_FIELD)
    action: str = Field(default="start", pattern="^(start|plan)$")

    @property
    def asked(self) -> RunRequest:
        """The run. Errors: ValidationError."""
        fields = self.model_dump(exclude={"key", "action"})
        for name in ("num_tokens", "budget_tokens"):
            fields[name] = fields[name].replace(",", "").replace("_", "").replace(" ", "")
        return RunRequest.model_validate({name: value for name, value in fields.items() if value not in ("", [])})

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The fields that say something, as a form sends them again."""
        fields = self.model_dump(exclude={"action"}).items()
        each = [(name, value if isinstance(value, list) else [value]) for name, value in fields]
        return tuple((name, one) for name, values in each for one in values if one)


@asynccontextmanager
async def _at_work(app: FastAPI) -> AsyncIterator[None]:
    """Jobs are done for as long as the server runs."""
    jobs = jobs_of(app)
    jobs.runner.start()
    yield
    jobs.runner.stop()


Reader = Annotated[Principal, Depends(require(Scope.READ))]
Submitter = Annotated[Principal, Depends(require(Scope.SUBMIT))]
Canceller = Annotated[Principal, Depends(require(Scope.CANCEL))]
Exporter = Annotated[Principal, Depends(require(Scope.EXPORT))]
JobId = Annotated[str, Path(pattern=r"^[0-9a-f]{1,32}$", description="Id of the job.")]
router = APIRouter(tags=["jobs"], lifespan=_at_work)


@router.get("/api/catalogue")
def get_catalogue(jobs: TheJobs, principal: Reader) -> CatalogueView:
    """What a run can be asked for, by name."""
    return catalogue_view(jobs.catalogue)


@router.post("/api/runs")
def start_run(
    jobs: TheJobs,
    principal: Submitter,
    asked: StartRequest,
    key: Annotated[Key | None, Header(alias="Idempotency-Key")] = None,
) -> StartedView:
    """Start a run of names of the catalogue, or say what it would cost."""
    request = asked.asked
    if asked.dry_run:
        return StartedView(job=None, plan=plan_view(jobs.plan(request), request.label))
    row = jobs.start(request, principal, key or asked.key)
    return StartedView(job=job_view(row, jobs.jobs(principal)), plan=None)


@router.get("/new", response_class=HTMLResponse, include_in_schema=False)
def new_run_page(request: Request, jobs: TheJobs, principal: Submitter) -> HTMLResponse:
    return _form(request, jobs, RunForm(), None)


@router.post("/new", response_class=HTMLResponse, include_in_schema=False)
def new_run(request: Request, jobs: TheJobs, principal: Submitter, form: Annotated[RunForm, Form()]) -> Response:
    try:
        asked = form.asked
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = str(first["loc"][0]).replace("_", " ") if first["loc"] else "the form"
        said = InputError(f"{where}: {said_of(first)}.")
        return _form(request, jobs, form, shown_error(said)[1])
    try:
        if form.action == "plan":
            view = DryRunView(plan=plan_view(jobs.plan(asked), asked.label), fields=form.pairs)
            return page(request, "dry_run.html", view)
        row = jobs.start(asked, principal, form.key or None)
    except AutointerpError as error:
        return _form(request, jobs, form, shown_error(error)[1])
    return RedirectResponse(f"/jobs/{row.id}", status_code=303)


def _form(request: Request, jobs: Jobs, form: RunForm, error: str | None) -> HTMLResponse:
    """The form, with what was given, and a sentence that may be shown."""
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in form.model_dump(exclude={"key", "action"}).items()
    }
    # a request that was refused is another one when it is sent again
    view = NewRunView(catalogue=catalogue_view(jobs.catalogue), given=given, key=secrets.token_hex(12), error=error)
    return page(request, "new_run.html", view, status=200 if error is None else 400)


# what became of it


@router.get("/api/jobs")
def list_jobs(jobs: TheJobs, principal: Reader) -> JobList:
    """Runs and exports that the server was asked for, the latest first."""
    return job_list(jobs, principal)


@router.get("/api/jobs/{job_id}")
def get_job(jobs: TheJobs, principal: Reader, job_id: JobId) -> JobView:
    """How a job is: waiting, under way, done, or why it failed."""
    return job_view(jobs.job(job_id, principal), jobs.jobs(principal))


@router.get("/jobs/{job_id}", response_class=HTMLResponse, include_in_schema=False)
def job_page(request: Request, jobs: TheJobs, principal: Reader, job_id: JobId) -> Response:
    row = jobs.job(job_id, principal)
    if row.run_id is not None:
        place = f"/runs/{row.run_id}" + ("/downloads" if row.kind == "export" else "")
        return RedirectResponse(place, status_code=303)
    view = job_view(row, jobs.jobs(principal))
    return page(request, "job.html", view)


@router.get("/jobs/{job_id}/state", response_class=HTMLResponse, include_in_schema=False)
def job_part(request: Request, jobs: TheJobs, principal: Reader, job_id: JobId) -> HTMLResponse:
    return page(request, "parts/job.html", job_view(jobs.job(job_id, principal), jobs.jobs(principal)))


@router.post("/api/jobs/{job_id}/cancel")
def cancel_job(jobs: TheJobs, principal: Canceller, job_id: JobId) -> JobView:
    """End a job that waits or is under way."""
    jobs.cancel_job(jobs.job(job_id, principal))
    return job_view(jobs.job(job_id, principal), jobs.jobs(principal))


@router.post("/jobs/{job_id}/cancel", include_in_schema=False)
def cancel_job_form(jobs: TheJobs, principal: Canceller, job_id: JobId) -> Response:
    jobs.cancel_job(jobs.job(job_id, principal))
    return RedirectResponse(f"/jobs/{job_id}", status_code=303)


@router.post("/api/jobs/{job_id}/retry")
def retry_job(jobs: TheJobs, principal: Canceller, job_id: JobId) -> JobView:
    """Do a job again that failed or was cancelled."""
    jobs.retry_job(jobs.job(job_id, principal), principal)
    return job_view(jobs.job(job_id, principal), jobs.jobs(principal))


@router.post("/jobs/{job_id}/retry", include_in_schema=False)
def retry_job_form(jobs: TheJobs, principal: Canceller, job_id: JobId) -> Response:
    jobs.retry_job(jobs.job(job_id, principal), principal)
    return RedirectResponse(f"/jobs/{job_id}", status_code=303)


# a word to a run


def _steered(jobs: Jobs, run: ServedRun, chunks: int | None = None) -> SteeredView:
    row = jobs.job_of(run.run_id)
    return SteeredView(
        run_id=run.run_id,
        state=str(run.store.run_state(run.run_id)),
        job=None if row is None else job_view(row),
        chunks=chunks,
    )


def _back(run: ServedRun) -> Response:
    return RedirectResponse(f"/runs/{run.run_id}", status_code=303)


@router.post("/api/runs/{run_id}/pause")
def pause(jobs: TheJobs, run: TheRun, principal: Canceller) -> SteeredView:
    """Have a run rest: what is done stays, what is under way is given back within seconds."""
    jobs.halt(run, "paused")
    return _steered(jobs, run)


@router.post("/runs/{run_id}/pause", include_in_schema=False)
def pause_form(jobs: TheJobs, run: TheRun, principal: Canceller) -> Response:
    jobs.halt(run, "paused")
    return _back(run)


@router.post("/api/runs/{run_id}/resume")
def resume(jobs: TheJobs, run: TheRun, principal: Canceller) -> SteeredView:
    """Let a run go on that was paused or cancelled, or failed for a cause that is mended."""
    jobs.resume(run, principal)
    return _steered(jobs, run)


@router.post("/runs/{run_id}/resume", include_in_schema=False)
def resume_form(jobs: TheJobs, run: TheRun, principal: Canceller) -> Response:
    jobs.resume(run, principal)
    return _back(run)


@router.post("/api/runs/{run_id}/cancel")
def cancel(jobs: TheJobs, run: TheRun, principal: Canceller) -> SteeredView:
    """End a run as it is; it can be resumed."""
    jobs.halt(run, "cancelled")
    return _steered(jobs, run)


@router.post("/runs/{run_id}/cancel", include_in_schema=False)
def cancel_form(jobs: TheJobs, run: TheRun, principal: Canceller) -> Response:
    jobs.halt(run, "cancelled")
    return _back(run)


@router.post("/api/runs/{run_id}/retry")
def retry(jobs: TheJobs, run: TheRun, principal: Canceller) -> SteeredView:
    """Have what a server failed, and what ended its process too often, tried again."""
    return _steered(jobs, run, jobs.retry(run, principal))


@router.post("/runs/{run_id}/retry", include_in_schema=False)
def retry_form(jobs: TheJobs, run: TheRun, principal: Canceller) -> Response:
    jobs.retry(run, principal)
    return _back(run)


@router.post("/api/runs/{run_id}/export")
def export(jobs: TheJobs, run: TheRun, principal: Exporter) -> JobView:
    """Have the dictionary made anew, with what people have said of labels since."""
    return job_view(jobs.export(run, principal))


@router.post("/runs/{run_id}/export", include_in_schema=False)
def export_form(jobs: TheJobs, run: TheRun, principal: Exporter) -> Response:
    jobs.export(run, principal)
    return RedirectResponse(f"/runs/{run.run_id}/downloads", status_code=303)
