"""Asking for runs, without doing them: who may, what is refused, the queue's rows, the pages; no child process is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from autointerp.server.app import create_app
from autointerp.server.catalogue import Catalogue, Entry, corpus_entry, endpoint_entry, source_entry
from autointerp.server.settings import ServerSettings
from autointerp.server.tokens import Scope, add_token
from autointerp.store import LabelStore, open_store
from autointerp.store.models import JobRow
from autointerp.store.opening import sqlite_url
from sae_core.errors import AutointerpError, ConfigError, MissingFileError, StoreError, UnknownNameError

KEY_NAME = "SOME_LLM_KEY"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose catalogue has a source that is only read when a run begins, a corpus and an endpoint with a price."""
    for name in ("subject", "coder"):
        (tmp_path / name).mkdir()
    (tmp_path / "corpus.jsonl").write_text("{}\n")
    (tmp_path / "home").mkdir()
    store = open_store(sqlite_url(tmp_path / "home" / "autointerp.db"))
    catalogue = Catalogue(store)
    tables = {"subject": {"model": "subject"}, "coders": [{"path": "coder"}], "extraction": {"context_length": 64}}
    found = source_entry("mine", tables, tmp_path, "the test")
    catalogue.add(Entry(found.kind, found.name, {**found.settings, "num_latents": 1_000}))
    catalogue.add(corpus_entry("words", {"path": "corpus.jsonl"}, tmp_path, "the test"))
    priced = {"usd_per_million_input_tokens": 1.0, "usd_per_million_output_tokens": 2.0}
    table = {"kind": "openai", "model": "m<b>", "base_url": "http://127.0.0.1:9/v1", "api_key_env": KEY_NAME, **priced}
    catalogue.add(endpoint_entry("llm", table))
    store.close()
    return tmp_path / "home"


def browser(home: Path, token: str | None = None) -> TestClient:
    """Whoever asks; nothing is done, since the server's life does not begin."""
    app = create_app(ServerSettings(home=home))
    headers = {"sec-fetch-site": "same-origin"} if token is None else {"authorization": f"Bearer {token}"}
    return TestClient(app, base_url="http://127.0.0.1", headers=headers, follow_redirects=False)


def store_of(home: Path) -> LabelStore:
    return open_store(sqlite_url(home / "autointerp.db"))


RUN: dict[str, Any] = {"sources": ["mine"], "corpus": "words"}
JUDGED = RUN | {
    "explainers": ["max_activating"],
    "scorers": ["detection"],
    "explainer_endpoint": "llm",
    "budget_tokens": 10**9,
}


def test_what_a_run_is_made_of_is_the_catalogues(home: Path) -> None:
    found = browser(home).post("/api/runs", json=JUDGED | {"latents": "0:7", "num_tokens": 5_000, "name": "night"})
    assert found.status_code == 200, found.text
    job = found.json()["job"]
    assert (job["state"], job["run_id"], job["name"], job["before"]) == ("queued", None, "night", 0)
    with store_of(home).reading() as connection:
        row = connection.execute(JobRow.__table__.select()).one()
    config = row.request["config"]
    assert config["subject"]["model"] == str(home.parent / "subject")
    assert [(coder["path"], coder["name"]) for coder in config["coders"]] == [(str(home.parent / "coder"), "mine")]
    assert config["corpus"]["path"] == str(home.parent / "corpus.jsonl")
    assert (config["latents"], config["budget"]["tokens"]) == ("0:7", 10**9)
    assert (config["extraction"]["num_tokens"], config["extraction"]["context_length"]) == (5_000, 64)
    assert [(one["kind"], one["endpoint"]) for one in config["explainers"] + config["scorers"]] == [
        ("max_activating", "llm"),
        ("detection", "llm"),
    ]
    assert (config["endpoints"][0]["name"], config["endpoints"][0]["api_key_env"]) == ("llm", KEY_NAME)
    assert Path(row.folder).parent == home
    assert Path(row.folder).name.startswith("night-")
    assert not Path(row.folder).exists()


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"sources": ["../mine"]}, 422, "sources"),
        ({"sources": []}, 422, "sources"),
        ({"sources": ["mine"] * 9}, 422, "sources"),
        ({"sources": ["mnie"]}, 404, "'mine'"),
        ({"corpus": "/etc/passwd"}, 422, "corpus"),
        ({"corpus": "http://127.0.0.1/"}, 422, "corpus"),
        ({"base_url": "http://127.0.0.1/"}, 422, "base_url"),
        ({"out": "/tmp/x"}, 422, "out"),
        ({"latents": "1,2"}, 422, "latents"),
        ({"latents": "7:7"}, 400, "empty"),
        ({"num_tokens": 0}, 422, "num_tokens"),
        ({"num_tokens": 10**12}, 422, "num_tokens"),
        ({"name": "../../x"}, 422, "name"),
        ({"explainers": ["imported"]}, 400, "path of the server"),
        ({"explainers": ["max_activating"]}, 400, "explainer_endpoint"),
        ({"explainers": ["patern"]}, 400, "'pattern'"),
        ({"explainer_endpoint": "llm", "explainers": ["max_activating"]}, 400, "budget"),
        ({"budget_usd": float("1e9")}, 422, "budget_usd"),
        ({"key": "a b"}, 422, "key"),
    ],
)
def test_what_is_refused(home: Path, change: dict[str, Any], status: int, said: str) -> None:
    found = browser(home).post("/api/runs", json=RUN | change)
    assert (found.status_code, said in found.json()["detail"]) == (status, True), found.text
    assert browser(home).get("/api/jobs").json() == {"jobs": []}


def test_a_key_makes_one_job_and_belongs_to_who_gave_it(home: Path) -> None:
    store = store_of(home)
    mine, other = (add_token(store, name, [Scope.READ, Scope.SUBMIT, Scope.CANCEL]) for name in ("ada", "bob"))
    ada, bob = browser(home, mine), browser(home, other)
    first = ada.post("/api/runs", json=RUN, headers={"Idempotency-Key": "k"}).json()["job"]
    assert ada.post("/api/runs", json=RUN | {"key": "k"}).json()["job"]["job_id"] == first["job_id"]
    assert ada.post("/api/runs", json=RUN | {"key": "k", "latents": "3"}).status_code == 409
    others = bob.post("/api/runs", json=RUN | {"key": "k"}).json()["job"]
    assert others["job_id"] != first["job_id"]
    # nobody learns of another's job
    for word in ("", "/cancel", "/retry"):
        ask = bob.post if word else bob.get
        found = ask(f"/api/jobs/{first['job_id']}{word}")
        missing = ask(f"/api/jobs/{'0' * 16}{word}")
        assert (found.status_code, found.json()) == (missing.status_code, missing.json()) == (404, missing.json())
    assert [job["job_id"] for job in bob.get("/api/jobs").json()["jobs"]] == [others["job_id"]]
    assert [job["job_id"] for job in bob.get("/api/runs").json()["jobs"]] == [others["job_id"]]
    assert ada.post(f"/api/jobs/{first['job_id']}/cancel").json()["state"] == "cancelled"
    assert ada.post(f"/api/jobs/{first['job_id']}/cancel").status_code == 409
    assert ada.post(f"/api/jobs/{first['job_id']}/retry").json()["state"] == "queued"


def test_scopes_and_quotas(home: Path) -> None:
    store = store_of(home)
    reader = browser(home, add_token(store, "reader", [Scope.READ]))
    assert reader.post("/api/runs", json=RUN).status_code == 403
    assert reader.get("/new").status_code == 403
    assert reader.get("/api/runs").json()["can_start"] is False
    few = browser(home, add_token(store, "few", [Scope.SUBMIT, Scope.READ], max_jobs=1, budget_tokens=10**9 + 1))
    assert few.get("/api/runs").json()["can_start"] is True
    too_dear = few.post("/api/runs", json=JUDGED | {"budget_tokens": 10**9 + 2})
    assert (too_dear.status_code, "budget" in too_dear.json()["detail"]) == (429, True)
    assert few.post("/api/runs", json=JUDGED).status_code == 200
    assert few.post("/api/runs", json=RUN).status_code == 429
    many = browser(home, add_token(store, "many", [Scope.SUBMIT], max_jobs=5, budget_tokens=10**9 + 1))
    assert many.post("/api/runs", json=JUDGED).status_code == 200
    assert many.post("/api/runs", json=JUDGED).status_code == 429, "one that waits counts with all that it may spend"


def test_where_workers_share_a_store_runs_are_left_to_them(home: Path) -> None:
    url = sqlite_url(home / "autointerp.db")
    store = store_of(home)
    secret = add_token(store, "ada", [Scope.READ, Scope.SUBMIT, Scope.CANCEL])
    app = create_app(ServerSettings(home=home, store_url=url))
    ada = TestClient(app, base_url="http://127.0.0.1", headers={"authorization": f"Bearer {secret}"})
    started = ada.post("/api/runs", json=JUDGED | {"key": "k"}).json()["job"]
    again = ada.post("/api/runs", json=JUDGED | {"key": "k"}).json()["job"]
    assert (started["state"], started["job_id"], started["run_id"]) == ("done", again["job_id"], again["run_id"])
    (head,) = store.runs()
    run = store.run(head.id)
    assert (run.id, run.submitted, run.owner, run.state) == (started["run_id"], True, "ada", "running")
    assert Path(run.folder).parent == home
    bob = add_token(store, "bob", [Scope.READ, Scope.CANCEL])
    hers = f"/api/runs/{run.id}/"
    assert ada.post(hers + "pause", headers={"authorization": f"Bearer {bob}"}).status_code == 404
    for word, state in (("pause", "paused"), ("resume", "running"), ("cancel", "cancelled"), ("resume", "running")):
        assert ada.post(hers + word).json()["state"] == state
        assert store.run_state(run.id) == state
    assert ada.post(hers + "retry").json()["chunks"] == 0
    assert ada.post(hers + "export").status_code == 403
    assert [job["state"] for job in ada.get("/api/jobs").json()["jobs"]] == ["done"], "and no other job was made"


def test_a_plan_is_that_of_the_command(home: Path) -> None:
    asked = JUDGED | {"latents": "100", "budget_tokens": 1_000, "dry_run": True}
    plan = browser(home).post("/api/runs", json=asked).json()["plan"]
    assert plan["num_latents"] == 100
    assert plan["explainers"] == ["max_activating"]
    line = next(line for line in plan["lines"] if line["what"] == "max_activating")
    assert (line["latents"], line["calls"]) == (100, 100)
    assert plan["expected"]["tokens"] == sum(line["tokens"] for line in plan["lines"])
    # the prices that the operator gave: 1 and 2 dollars a million
    assert plan["expected"]["usd"] > plan["expected"]["tokens"] / 1e6
    assert plan["over_budget"][0].startswith("The plan takes about")
    assert browser(home).get("/api/jobs").json() == {"jobs": []}
    beyond = browser(home).post("/api/runs", json=asked | {"latents": "1001"})
    assert (beyond.status_code, "1000 latents" in beyond.json()["detail"]) == (400, True)


def test_the_forms(home: Path) -> None:
    ada = browser(home)
    page = ada.get("/new")
    assert page.status_code == 200
    assert 'value="mine"' in page.text
    assert "m&lt;b&gt;" in page.text
    assert "m<b>" not in page.text
    assert "127.0.0.1:9" not in page.text + ada.get("/api/catalogue").text
    assert str(home.parent / "coder") not in page.text + ada.get("/api/catalogue").text
    form: dict[str, Any] = {"sources": ["mine"], "corpus": "words", "latents": "all", "key": "form-1"}
    planned = ada.post("/new", data=form | {"action": "plan", "num_tokens": "20,000"})
    assert (planned.status_code, "asks no language model" in planned.text) == (200, True)
    assert 'name="num_tokens" value="20,000"' in planned.text
    wrong = ada.post("/new", data=form | {"latents": "<script>x</script>"})
    assert wrong.status_code == 400
    assert "<script>x" not in wrong.text
    assert 'role="alert"' in wrong.text
    started = ada.post("/new", data=form)
    assert started.status_code == 303
    assert ada.post("/new", data=form).headers["location"] == started.headers["location"]
    shown = ada.get(started.headers["location"])
    assert (shown.status_code, "queued" in shown.text) == (200, True)
    assert started.headers["location"] in ada.get("/").text
    part = ada.get(started.headers["location"] + "/state")
    assert "data-live" in part.text
    assert ada.post(started.headers["location"] + "/cancel").status_code == 303
    assert "cancelled" in ada.get(started.headers["location"]).text


def test_the_catalogue_holds_what_was_checked(home: Path, tmp_path: Path) -> None:
    store = store_of(home)
    catalogue = Catalogue(store)
    assert [entry.name for entry in catalogue.entries("corpus")] == ["python-stdlib", "words"]
    assert [entry.name for entry in catalogue.entries("source")] == ["mine", "quickstart"]
    with pytest.raises(StoreError, match="already"):
        catalogue.add(catalogue.entry("corpus", "words"))
    with pytest.raises(StoreError, match="came with"):
        catalogue.remove("corpus", "python-stdlib")
    catalogue.remove("corpus", "words")
    with pytest.raises(UnknownNameError, match="python-stdlib"):
        catalogue.entry("corpus", "words")
    with pytest.raises(MissingFileError, match="not there"):
        corpus_entry("gone", {"path": "./nowhere.jsonl"}, tmp_path, "the test")
    with pytest.raises(ConfigError, match="NAME of an environment variable"):
        endpoint_entry("leaky", {"kind": "openai", "model": "m", "api_key_env": "sk-planted-0123"})
    tables: dict[str, Any] = {"subject": {"model": "a/b"}, "coders": [{"path": "a/c"}]}
    for rest, said in (
        ({"extraction": {"reuse": "x"}}, "reuse"),
        ({"labels": {"from": "x"}}, "labels.from"),
        ({"explainers": [{"kind": "imported", "path": "/x"}]}, "made elsewhere"),
        ({"coders": []}, "0 coders"),
        ({"extraction": {"num_tokenz": 3}}, "num_tokens"),
    ):
        with pytest.raises(ConfigError, match=said):
            source_entry("wrong", tables | rest, tmp_path, "the test")


def test_the_quickstart_is_one_click_away_in_a_fresh_home(tmp_path: Path) -> None:
    client = browser(tmp_path / "fresh")
    found = client.post("/api/runs", json={"sources": ["quickstart"], "corpus": "python-stdlib"})
    assert found.status_code == 200, found.text
    with store_of(tmp_path / "fresh").reading() as connection:
        row = connection.execute(JobRow.__table__.select()).one()
    from autointerp.config import load_config, parse_config

    example = load_config(Path(__file__).parents[2] / "examples" / "quickstart.toml")
    assert parse_config(row.request["config"], "the job").digest == example.digest, "the run of `make demo`, exactly"


class Told(NamedTuple):
    """What a command said."""

    returncode: int
    stdout: str
    stderr: str


def run_cli(arguments: list[str]) -> Told:
    """A command in this process; its errors as ``main`` prints them."""
    from autointerp.cli import REFUSED, app

    done = CliRunner().invoke(app, arguments)
    if isinstance(done.exception, AutointerpError):
        return Told(REFUSED, done.stdout, str(done.exception))
    return Told(done.exit_code, done.stdout, done.stderr)


def test_the_commands(tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    (tmp_path / "c.txt").write_text("text")
    done = run_cli(["corpus", "add", "notes", str(tmp_path / "c.txt"), "--set", "packed=true", "--home", home])
    assert (done.returncode, "notes" in done.stdout) == (0, True), done.stderr
    priced = ["--price", "0.1,0.4", "--api-key-env", KEY_NAME, "--home", home]
    done = run_cli(["endpoint", "add", "fast", "--base-url", "http://127.0.0.1:8000/v1", "--model", "m", *priced])
    assert done.returncode == 0, done.stderr
    given = ["--subject", "org/model", "--coder", "org/coder", "--hookpoint", "layers.3", "--unchecked"]
    sets = ["--set", "coders.0.k=32", "--set", "extraction.context_length=64", "--home", home]
    done = run_cli(["source", "add", "far", *given, *sets])
    assert done.returncode == 0, done.stderr
    catalogue = Catalogue(store_of(tmp_path / "home"))
    assert catalogue.entry("corpus", "notes").settings == {"path": str(tmp_path / "c.txt"), "packed": True}
    fast = catalogue.entry("endpoint", "fast").settings
    assert (fast["usd_per_million_output_tokens"], fast["api_key_env"]) == (0.4, KEY_NAME)
    far = json.loads(json.dumps(dict(catalogue.entry("source", "far").settings)))
    assert far["coder"] == {"path": "org/coder", "hookpoint": "layers.3", "k": 32, "name": "far"}
    assert far["rest"] == {"extraction": {"context_length": 64}}
    assert "far" in run_cli(["source", "list", "--home", home]).stdout
    for wrong, said in (
        (["corpus", "add", "notes", str(tmp_path / "c.txt")], "already"),
        (["corpus", "add", "a/b", str(tmp_path / "c.txt")], "no name"),
        (["corpus", "add", "gone", str(tmp_path / "nothing.txt")], "not there"),
        (["endpoint", "add", "x", "--model", "m", "--price", "cheap"], "two numbers"),
        (["endpoint", "add", "x", "--model", "m", "--base-url", "http://u:p@h/v1"], "base_url"),
        (["source", "add", "x", "--subject", "a/b"], "--coder"),
        (["source", "remove", "nothing"], "nothing"),
    ):
        done = run_cli([*wrong, "--home", home])
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert run_cli(["source", "remove", "far", "--home", home]).returncode == 0
