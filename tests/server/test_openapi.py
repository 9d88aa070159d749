"""The API is what its description says: every route, with values that fit and values that do not, by schemathesis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    negative_data_rejection,
    positive_data_acceptance,
    unsupported_method,
)

from autointerp.passages import SubjectProcessError
from autointerp.server.app import create_app
from autointerp.server.jobs.dependency import jobs_of
from autointerp.server.settings import ServerSettings
from tests.server.asking import SAMPLES, Home, bearer, make_home, served_routes
from tests.server.real_server import served_in_thread

THERE = {"run_id", "source", "latent"}
PROBLEM = {"$ref": "#/components/schemas/Problem"}
# what fits the description may still be refused: a run that is not there, a name that the catalogue does not have
EXCLUDED = [positive_data_acceptance]


class NoSubjects:
    """Answers in the place of processes that would load a subject."""

    def ask(self, run: Any, question: Any) -> NoReturn:
        question.check()
        raise SubjectProcessError("the subject cannot be run here.")

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def home(served_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    return make_home(served_run, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def app(home: Home) -> FastAPI:
    """Jobs are queued and not done: nothing runs beside."""
    found = create_app(ServerSettings(home=home.folder))
    found.state.subjects = NoSubjects()
    jobs_of(found).runner.start = lambda: None  # type: ignore[method-assign]
    jobs_of(found).runner.stop = lambda: None  # type: ignore[method-assign]
    return found


@pytest.fixture(scope="module")
def described(app: FastAPI, home: Home) -> Iterator[Any]:
    with served_in_thread(app) as port:
        url = f"http://127.0.0.1:{port}/api/openapi.json"
        yield schemathesis.openapi.from_url(url, headers=bearer(home.secrets["root"]))


@pytest.mark.parametrize("examples", [6, pytest.param(80, marks=pytest.mark.long)])
def test_every_route_is_as_it_is_described(described: Any, home: Home, examples: int) -> None:
    for name, cases in operations(described):

        @settings(max_examples=examples, derandomize=examples < 10)
        @given(cases)
        def check(case: Any) -> None:
            case.call_and_validate(headers=bearer(home.secrets["root"]), excluded_checks=EXCLUDED)

        told(name, check)


@pytest.mark.parametrize("examples", [6, pytest.param(80, marks=pytest.mark.long)])
def test_so_is_every_route_of_a_run_that_is_there(described: Any, home: Home, examples: int) -> None:
    """With ids that lead somewhere, which nobody would make up."""
    for name, cases in operations(described):

        @settings(max_examples=examples, derandomize=examples < 10)
        @given(cases)
        def check(case: Any) -> None:
            for one in THERE & set(case.path_parameters or {}):
                case.path_parameters[one] = SAMPLES[one]
            # a value that did not fit may be the one that was replaced
            excluded = [*EXCLUDED, negative_data_rejection, unsupported_method]
            case.call_and_validate(headers=bearer(home.secrets["root"]), excluded_checks=excluded)

        if "{run_id}" in name:
            told(name, check)


def operations(described: Any) -> Iterator[tuple[str, Any]]:
    """Method and path of each, and requests to it: some that fit, some that do not."""
    for found in described.get_all_operations():
        operation = found.ok()
        ways = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]
        yield f"{operation.method.upper()} {operation.path}", st.one_of(ways)


def told(name: str, check: Callable[[], None]) -> None:
    """Do it, and say of which route a failure is."""
    try:
        check()
    except Exception as error:
        error.add_note(name)
        raise


def test_every_route_of_the_api_is_described_with_its_errors(app: FastAPI, home: Home) -> None:
    client = TestClient(create_app(ServerSettings(home=home.folder)), base_url="http://127.0.0.1")
    description = client.get("/api/openapi.json", headers=bearer(home.secrets["bob"])).json()
    found = {(method.upper(), path): one for path, each in description["paths"].items() for method, one in each.items()}
    wanted = {
        (route.method, route.path.replace(":path}", "}"))
        for route in served_routes(app)
        if route.path.startswith("/api/")
    }
    assert set(found) == wanted
    for key, one in found.items():
        for status in ("4XX", "5XX"):
            assert one["responses"][status]["content"]["application/json"]["schema"] == PROBLEM, key
        assert one["security"] == [{"HTTPBearer": []}], key
        assert one.get("description"), f"{key} does not say what it is for"
