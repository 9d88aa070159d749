"""``autointerp.Client``: a server's API in Python, with the values that the server itself makes of them. Loads no torch.

::

    with autointerp.Client("http://127.0.0.1:8760", token="ait_...") as client:
        job = client.start(sources=["quickstart"], corpus="python-stdlib")
        run = client.wait(job)
        for row in client.latents(run.run_id, where=["precision_low>=0.7"], sort="f1", descending=True):
            print(row.latent, row.label)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, ValidationError

from autointerp.passages import ContrastAnswer, ContrastQuestion, TextAnswer, TextQuestion
from autointerp.server.meanings import MeaningState
from autointerp.server.routes.login import Me
from autointerp.server.views.dictionary import DictionaryView, LatentLine
from autointerp.server.views.downloads import DownloadsView
from autointerp.server.views.jobs import CatalogueView, JobList, JobView, PlanView, StartedView, SteeredView
from autointerp.server.views.latent import LatentView
from autointerp.server.views.meaning import MeaningSearchView
from autointerp.server.views.pictures import PictureView
from autointerp.server.views.proposals import ProposalView
from autointerp.server.views.reviews import ReviewedView
from autointerp.server.views.runs import ProgressView, RunLine, RunList, RunView
from autointerp.server.views.search import SearchView
from sae_core.errors import (
    AutointerpError,
    BudgetError,
    InputError,
    StoreError,
    StoreUnavailableError,
    UnknownNameError,
)

_V = TypeVar("_V", bound=BaseModel)
_F = TypeVar("_F", bound=Callable[..., Any])
_BLOCK_BYTES = 1 << 20
_LONGEST_PAUSE_S = 5.0


class ServerError(AutointerpError):
    """The server could not be reached, or answers what this client does not know."""


class NotAllowedError(AutointerpError):
    """The server does not know the token, or the token does not allow this."""


_ERRORS: dict[int, type[AutointerpError]] = {
    400: InputError,
    401: NotAllowedError,
    403: NotAllowedError,
    404: UnknownNameError,
    409: StoreError,
    413: InputError,
    422: InputError,
    429: BudgetError,
    503: StoreUnavailableError,
}


def route(method: str, path: str) -> Callable[[_F], _F]:
    """Say which route of the API a method asks; tests compare these with what the server has."""

    def told(function: _F) -> _F:
        function.__dict__["route"] = (method, path)
        return function

    return told


class Client:
    """One server. Threads may share it. Every method's errors are AutointerpError's family, with the server's sentence."""

    def __init__(self, base_url: str, token: str | None = None, *, timeout_s: float = 60.0) -> None:
        """``base_url``: as the server says it when it starts; ``token``: of `autointerp token add`, where it asks for one."""
        # without a token a server answers its own machine alone, and asks that no other page sent the request
        headers = {"sec-fetch-site": "same-origin"} if token is None else {"authorization": f"Bearer {token}"}
        # a token goes to this server alone: no redirects, no proxies of the environment
        self._http = httpx2.Client(
            base_url=base_url, headers=headers, timeout=timeout_s, follow_redirects=False, trust_env=False
        )

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # runs

    @route("GET", "/api/me")
    def me(self) -> Me:
        """Who the server takes this client for, and what it may do."""
        return self._get(Me, "/api/me")

    @route("GET", "/api/runs")
    def runs(self) -> tuple[RunLine, ...]:
        """All runs that it may see, the latest first."""
        return self._get(RunList, "/api/runs").runs

    @route("GET", "/api/runs/{run_id}")
    def run(self, run_id: str) -> RunView:
        """A run: its sources, how far it is, what came of it."""
        return self._get(RunView, _path("runs", run_id))

    @route("GET", "/api/runs/{run_id}/progress")
    def progress(self, run_id: str) -> ProgressView:
        """How far a run is, now."""
        return self._get(ProgressView, _path("runs", run_id, "progress"))

    @route("GET", "/api/catalogue")
    def catalogue(self) -> CatalogueView:
        """What a run can be asked for, by name."""
        return self._get(CatalogueView, "/api/catalogue")

    def plan(self, sources: Sequence[str], corpus: str, **settings: Any) -> PlanView:
        """What a run would ask of language models; ``settings`` as of :meth:`start`."""
        found = self._start(sources, corpus, settings | {"dry_run": True}, None).plan
        return _there(found, "a plan")

    @route("POST", "/api/runs")
    def start(self, sources: Sequence[str], corpus: str, *, key: str | None = None, **settings: Any) -> JobView:
        """Start a run of names of the catalogue.

        ``key``: your name for this request, so that it can be sent again. ``settings``: ``latents``, ``num_tokens``, ``explainers``,
        ``scorers``, ``explainer_endpoint``, ``judge_endpoint``, ``budget_tokens``, ``budget_usd``, ``name``, ``seed``
        (autointerp.server.jobs.request.RunRequest has them all).
        """
        return _there(self._start(sources, corpus, settings, key).job, "a job")

    def wait(self, what: JobView | str, *, limit_s: float | None = None) -> ProgressView:
        """Wait until a run that was started, or one by its id, has come to rest: done, failed, cancelled or paused.

        Errors: StoreError where the job was refused before it was a run, with the reason; TimeoutError.
        """
        last = None if limit_s is None else time.monotonic() + limit_s
        pause, run_id = 0.2, what if isinstance(what, str) else what.run_id
        job_id = None if isinstance(what, str) else what.job_id
        while True:
            job = None if job_id is None else self.job(job_id)
            if job is not None:
                run_id = job.run_id
                if run_id is None and job.state not in ("queued", "running"):
                    raise StoreError(job.error or f"the job {job.job_id} is {job.state} and made no run.")
            if run_id is not None and (job is None or job.state not in ("queued", "running")):
                found = self.progress(run_id)
                if found.ended or found.state == "paused":
                    return found
            if last is not None and time.monotonic() > last:
                raise TimeoutError(f"{run_id or job_id} has not ended in {limit_s:g} s")
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_PAUSE_S)

    @route("POST", "/api/runs/{run_id}/pause")
    def pause(self, run_id: str) -> SteeredView:
        """Have a run rest."""
        return self._post(SteeredView, _path("runs", run_id, "pause"))

    @route("POST", "/api/runs/{run_id}/resume")
    def resume(self, run_id: str) -> SteeredView:
        """Let it go on."""
        return self._post(SteeredView, _path("runs", run_id, "resume"))

    @route("POST", "/api/runs/{run_id}/cancel")
    def cancel(self, run_id: str) -> SteeredView:
        """End it as it is."""
        return self._post(SteeredView, _path("runs", run_id, "cancel"))

    @route("POST", "/api/runs/{run_id}/retry")
    def retry(self, run_id: str) -> SteeredView:
        """Have what failed tried again."""
        return self._post(SteeredView, _path("runs", run_id, "retry"))

    # jobs

    @route("GET", "/api/jobs")
    def jobs(self) -> tuple[JobView, ...]:
        """What the server was asked to have done, the latest first."""
        return self._get(JobList, "/api/jobs").jobs

    @route("GET", "/api/jobs/{job_id}")
    def job(self, job_id: str) -> JobView:
        """One of them."""
        return self._get(JobView, _path("jobs", job_id))

    @route("POST", "/api/jobs/{job_id}/cancel")
    def cancel_job(self, job_id: str) -> JobView:
        """End one that waits or is under way."""
        return self._post(JobView, _path("jobs", job_id, "cancel"))

    @route("POST", "/api/jobs/{job_id}/retry")
    def retry_job(self, job_id: str) -> JobView:
        """Have one done again that failed or was cancelled."""
        return self._post(JobView, _path("jobs", job_id, "retry"))

    @route("POST", "/api/runs/{run_id}/export")
    def export(self, run_id: str) -> JobView:
        """Have the dictionary made anew, with what people have said of labels since."""
        return self._post(JobView, _path("runs", run_id, "export"))

    def wait_export(self, export: JobView, *, limit_s: float | None = None) -> JobView:
        """Wait until an export is done. Errors: StoreError where it failed; TimeoutError."""
        last = None if limit_s is None else time.monotonic() + limit_s
        pause = 0.2
        while (found := self.job(export.job_id)).is_open:
            if last is not None and time.monotonic() > last:
                raise TimeoutError(f"the export {export.job_id} has not ended in {limit_s:g} s")
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_PAUSE_S)
        if found.state != "done":
            raise StoreError(found.error or f"the export {found.job_id} is {found.state}.")
        return found

    # the dictionary

    @route("GET", "/api/runs/{run_id}/latents")
    def latents_page(self, run_id: str, **asked: Any) -> DictionaryView:
        """One page of the dictionary; ``asked`` as of :meth:`latents`, and ``after``, the ``next`` of the page before."""
        return self._get(DictionaryView, _path("runs", run_id, "latents"), asked)

    def latents(
        self,
        run_id: str,
        *,
        source: str | None = None,
        status: Sequence[str] = (),
        where: Sequence[str] = (),
        words: str = "",
        sort: str = "latent",
        descending: bool = False,
    ) -> Iterator[LatentLine]:
        """All rows of the dictionary that fit, page after page; ``where`` holds bounds such as ``precision_low>=0.7``."""
        asked: dict[str, Any] = {"source": source, "status": list(status), "where": list(where), "words": words}
        asked |= {"sort": sort, "descending": descending, "limit": 200, "after": None}
        while True:
            found = self.latents_page(run_id, **asked)
            yield from found.rows
            if found.next is None:
                return
            asked["after"] = found.next

    @route("GET", "/api/runs/{run_id}/latents/{source}/{latent}")
    def latent(self, run_id: str, source: str, latent: int) -> LatentView:
        """One latent: label, figures, exemplars, mistakes, history."""
        return self._get(LatentView, _path("runs", run_id, "latents", source, latent))

    @route("POST", "/api/runs/{run_id}/latents/{source}/{latent}/review")
    def review(
        self,
        run_id: str,
        source: str,
        latent: int,
        action: Literal["accept", "reject", "edit"],
        *,
        by: str | None = None,
        text: str | None = None,
        note: str | None = None,
    ) -> ReviewedView:
        """Say what a person thinks of a label; ``text`` is the better one of an edit. With a token ``by`` is its name."""
        said = {"action": action, "by": by, "text": text, "note": note}
        return self._post(ReviewedView, _path("runs", run_id, "latents", source, latent, "review"), said)

    @route("POST", "/api/runs/{run_id}/latents/{source}/{latent}/propose")
    def propose(self, run_id: str, source: str, latent: int, explainer: str | None = None) -> ProposalView:
        """Have a language model write one more label, within the run's budget; :meth:`review` saves it."""
        path = _path("runs", run_id, "latents", source, latent, "propose")
        return self._post(ProposalView, path, {"explainer": explainer})

    @route("GET", "/api/runs/{run_id}/pictures/{name}")
    def picture(self, run_id: str, name: str) -> PictureView:
        """Two figures of every latent, with floors, as numbers."""
        return self._get(PictureView, _path("runs", run_id, "pictures", name))

    # search on the subject

    @route("GET", "/api/runs/{run_id}/search")
    def search(self, run_id: str) -> SearchView:
        """What can be searched in a run."""
        return self._get(SearchView, _path("runs", run_id, "search"))

    @route("POST", "/api/runs/{run_id}/search/text")
    def search_text(self, run_id: str, question: TextQuestion) -> TextAnswer:
        """Which latents fire on passages, and at which tokens."""
        return self._post(TextAnswer, _path("runs", run_id, "search", "text"), question.model_dump(mode="json"))

    @route("POST", "/api/runs/{run_id}/search/contrast")
    def search_contrast(self, run_id: str, question: ContrastQuestion) -> ContrastAnswer:
        """Which latents tell passages with a concept from those without it."""
        said = question.model_dump(mode="json")
        return self._post(ContrastAnswer, _path("runs", run_id, "search", "contrast"), said)

    @route("GET", "/api/runs/{run_id}/search/meaning")
    def search_meaning(
        self,
        run_id: str,
        words: str = "",
        *,
        source: str | None = None,
        status: Sequence[str] = (),
        where: Sequence[str] = (),
        limit: int = 50,
    ) -> MeaningSearchView:
        """Latents whose labels mean the like of some words, the nearest first; :meth:`make_meanings` comes before."""
        asked = {"words": words, "source": source, "status": list(status), "where": list(where), "limit": limit}
        return self._get(MeaningSearchView, _path("runs", run_id, "search", "meaning"), asked)

    @route("POST", "/api/runs/{run_id}/search/meaning")
    def make_meanings(self, run_id: str) -> MeaningState:
        """Have labels read for search by meaning; :meth:`search` says how far that is."""
        return self._post(MeaningState, _path("runs", run_id, "search", "meaning"))

    # files

    @route("GET", "/api/runs/{run_id}/downloads")
    def downloads(self, run_id: str) -> DownloadsView:
        """The files of the latest dictionary."""
        return self._get(DownloadsView, _path("runs", run_id, "downloads"))

    @route("GET", "/api/runs/{run_id}/dictionary/{name}")
    def download_file(self, run_id: str, name: str, to: Path) -> Path:
        """One file of the latest dictionary; it is there whole or not at all."""
        beside = to.with_name(f".{to.name}.part")
        path = f"{_path('runs', run_id, 'dictionary')}/{quote(name, safe='/=')}"
        try:
            with self._http.stream("GET", path) as answer:
                if answer.status_code != httpx2.codes.OK:
                    answer.read()
                    raise _error(answer)
                with beside.open("wb") as out:
                    for block in answer.iter_bytes(_BLOCK_BYTES):
                        out.write(block)
            os.replace(beside, to)
        except httpx2.HTTPError as error:
            raise _unreachable(error) from error
        finally:
            beside.unlink(missing_ok=True)
        return to

    def download(self, run_id: str, folder: Path | str) -> Path:
        """All files of the latest dictionary, for ``autointerp.load_dictionary(folder)``; the manifest comes last."""
        root = Path(folder).resolve()
        names = [file.name for file in self.downloads(run_id).files]
        for name in [*names[1:], *names[:1]]:
            to = (root / name).resolve()
            if not to.is_relative_to(root):
                raise ServerError(
                    f"the server names a file {name!r}, which is not in the folder: nothing was written there."
                )
            to.parent.mkdir(parents=True, exist_ok=True)
            self.download_file(run_id, name, to)
        return root

    # how

    def _start(self, sources: Sequence[str], corpus: str, settings: dict[str, Any], key: str | None) -> StartedView:
        said = {"sources": list(sources), "corpus": corpus, **settings}
        return self._post(StartedView, "/api/runs", said if key is None else said | {"key": key})

    def _get(self, view: type[_V], path: str, params: dict[str, Any] | None = None) -> _V:
        given = {name: value for name, value in (params or {}).items() if value not in (None, "", [])}
        return self._ask(view, "GET", path, params=given)

    def _post(self, view: type[_V], path: str, body: dict[str, Any] | None = None) -> _V:
        return self._ask(view, "POST", path, json=body)

    def _ask(self, view: type[_V], method: str, path: str, **given: Any) -> _V:
        try:
            answer = self._http.request(method, path, **given)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise _unreachable(error) from error
        if answer.status_code != httpx2.codes.OK:
            raise _error(answer)
        try:
            return view.model_validate_json(answer.content)
        except ValidationError as error:
            raise ServerError(
                f"the server's answer to {method} {path} is not what this version of autointerp knows (at "
                f"{'.'.join(map(str, error.errors()[0]['loc']))!r}): install the version that the server has."
            ) from error


def _path(*parts: object) -> str:
    return "/api/" + "/".join(quote(str(part), safe="") for part in parts)


def _there(found: _V | None, what: str) -> _V:
    if found is None:
        raise ServerError(f"the server's answer has not {what} in it: install the version that the server has.")
    return found


def _unreachable(error: Exception) -> ServerError:
    return ServerError(
        f"the server does not answer ({type(error).__name__}: {error}): see that it runs, and its address."
    )


def _error(answer: httpx2.Response) -> AutointerpError:
    """The error that an answer tells of."""
    try:
        said = str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        said = f"the server answers {answer.status_code}: see that the address is that of an autointerp server."
    return _ERRORS.get(answer.status_code, ServerError)(said)
