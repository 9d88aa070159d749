"""The dictionary's files."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import FileResponse, HTMLResponse

from autointerp.server.access import Scope, require
from autointerp.server.dependencies import TheRun
from autointerp.server.jobs.dependency import TheJobs
from autointerp.server.pages import page
from autointerp.server.views.downloads import DownloadsView, downloaded, downloads_view

router = APIRouter(tags=["downloads"], dependencies=[Depends(require(Scope.READ))])
FileName = Annotated[str, Path(max_length=200, description="A name of the list; a partition's has a folder before it.")]


@router.get("/api/runs/{run_id}/downloads")
def list_downloads(run: TheRun, jobs: TheJobs) -> DownloadsView:
    """The files of the latest dictionary."""
    return downloads_view(run, jobs.export_of(run.run_id))


@router.get("/runs/{run_id}/downloads", response_class=HTMLResponse, include_in_schema=False)
def downloads_page(request: Request, run: TheRun, jobs: TheJobs) -> HTMLResponse:
    return page(request, "downloads.html", downloads_view(run, jobs.export_of(run.run_id)))


@router.get(
    "/api/runs/{run_id}/dictionary/{name:path}",
    response_class=FileResponse,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "The file."}},
)
def get_file(run: TheRun, name: FileName) -> FileResponse:
    """One file of the latest dictionary: `manifest.json`, or a part as parquet."""
    path = downloaded(run, name)
    source = name.rpartition("/")[0].replace("source=", "")
    shown = "-".join(part for part in (run.run_id, source, path.name) if part)
    return FileResponse(path, media_type="application/octet-stream", filename=shown)
