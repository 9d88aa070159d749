"""What routes ask for: the jobs of their server."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request

from autointerp.server.jobs.service import Jobs


def jobs_of(app: Any) -> Jobs:
    """An application's jobs, made on first use."""
    if not hasattr(app.state, "jobs"):
        app.state.jobs = Jobs(app.state.settings, app.state.shelf)
    found: Jobs = app.state.jobs
    return found


def _jobs(request: Request) -> Jobs:
    return jobs_of(request.app)


TheJobs = Annotated[Jobs, Depends(_jobs)]
