"""The runs, and one of them with its progress."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from starlette.responses import HTMLResponse

from autointerp.server.access import Scope, ThePrincipal, require
from autointerp.server.dependencies import ThePace, TheRun, TheShelf
from autointerp.server.jobs.dependency import TheJobs
from autointerp.server.pages import page
from autointerp.server.views.jobs import job_lines
from autointerp.server.views.runs import ProgressView, RunList, RunView, progress_view, run_list, run_view

router = APIRouter(tags=["runs"], dependencies=[Depends(require(Scope.READ))])


@router.get("/api/runs")
def list_runs(shelf: TheShelf, jobs: TheJobs, principal: ThePrincipal) -> RunList:
    """All runs, the latest first."""
    return run_list(shelf, jobs=job_lines(jobs, principal), can_start=principal.allows(Scope.SUBMIT))


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
def runs_page(request: Request, shelf: TheShelf, jobs: TheJobs, principal: ThePrincipal) -> HTMLResponse:
    return page(request, "runs.html", list_runs(shelf, jobs, principal))


@router.get("/api/runs/{run_id}")
def get_run(run: TheRun, pace: ThePace) -> RunView:
    """A run: its sources, how far it is and what came of it."""
    return run_view(run, pace)


@router.get("/runs/{run_id}", response_class=HTMLResponse, include_in_schema=False)
def run_page(request: Request, run: TheRun, pace: ThePace) -> HTMLResponse:
    return page(request, "run.html", run_view(run, pace))


@router.get("/api/runs/{run_id}/progress")
def get_progress(run: TheRun, pace: ThePace) -> ProgressView:
    """How far a run is, now: cheap enough to be asked every second."""
    return progress_view(run, pace)


@router.get("/runs/{run_id}/progress", response_class=HTMLResponse, include_in_schema=False)
def progress_part(request: Request, run: TheRun, pace: ThePace) -> HTMLResponse:
    return page(request, "parts/progress.html", progress_view(run, pace))
