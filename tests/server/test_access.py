"""Who may do what: every route that there is, for everybody who may ask. A route that asks for no scope fails here."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient
from sqlalchemy import Connection, select, update
from typer.testing import CliRunner

from autointerp import cli
from autointerp.pipeline.folder import DATABASE
from autointerp.server import dependencies
from autointerp.server.access import LOCAL, Principal, Scope
from autointerp.server.app import create_app
from autointerp.server.guards import needs_tokens
from autointerp.server.quotas import FREE, Bound, check_quota
from autointerp.server.serving import check_tokens
from autointerp.server.sessions import COOKIE
from autointerp.server.settings import ServerSettings
from autointerp.server.tokens import add_token, digest_of, has_usable_tokens, revoke_token, token_of, tokens
from autointerp.store import LabelStore, open_store
from autointerp.store.column_types import utc_now
from autointerp.store.models import BrowserSession, LLMBudget, Run, TokenRow
from autointerp.store.opening import sqlite_url
from sae_core.errors import AutointerpError, BudgetError, ConfigError, InputError, StoreError, UnknownNameError
from tests.server.asking import (
    ANY_SCOPE,
    EVERYTHING,
    OPEN,
    SAMPLES,
    Home,
    ServedRoute,
    bearer,
    make_home,
    served_routes,
)
from tests.server.served_world import RUN_ID, SOURCE

REACHED = 418
SAFE = ("GET", "HEAD")


@pytest.fixture(scope="module")
def home(served_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    return make_home(served_run, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def asked(home: Home) -> Iterator[TestClient]:
    """The server of a run of ann's, whom everybody shows a token."""
    app = create_app(ServerSettings(home=home.folder))
    with TestClient(app, base_url="http://127.0.0.1", follow_redirects=False) as found:
        yield found


def routes(client: TestClient) -> list[ServedRoute]:
    return served_routes(client.app)  # type: ignore[arg-type]


def send(client: TestClient, route: ServedRoute, url: str | None = None, **headers: str) -> Any:
    return client.request(route.method, url or route.url(), headers=headers)


def test_every_route_asks_for_one_scope(asked: TestClient) -> None:
    found = routes(asked)
    assert len(found) > 15
    assert {(route.method, route.path) for route in found if not route.scopes} == ANY_SCOPE
    for route in found:
        assert len(route.scopes) <= 1, route
        if route.method not in SAFE:
            assert Scope.READ not in route.scopes, f"{route} changes something"


@pytest.mark.parametrize("who", ["nobody", "a guess", "past", "gone", "half a token", "two tokens", "basic"])
def test_whoever_shows_no_good_token_comes_nowhere(asked: TestClient, home: Home, who: str) -> None:
    shown = {
        "nobody": [],
        "a guess": ["Bearer ait_" + "A" * 43],
        "past": ["Bearer " + home.secrets["past"]],
        "gone": ["Bearer " + home.secrets["gone"]],
        "half a token": ["Bearer " + home.secrets["ann"][:-1]],
        "two tokens": ["Bearer " + home.secrets["ann"]] * 2,
        "basic": ["Basic " + home.secrets["ann"]],
    }[who]
    addresses = [(route.method, route.url()) for route in routes(asked) if (route.method, route.path) not in OPEN]
    addresses += [("GET", "/api/openapi.json"), ("GET", "/not-there"), ("GET", "/api/not-there")]
    for method, url in addresses:
        answer = asked.request(method, url, headers=[("authorization", one) for one in shown])
        assert answer.status_code == 401, (method, url)
        assert answer.headers["www-authenticate"].startswith("Bearer")
        if url.startswith("/api/"):
            assert set(answer.json()) == {"status", "title", "detail"}
        assert RUN_ID not in answer.text.replace(url, "")
    assert asked.get("/login").status_code == 200
    assert asked.get("/static/style.css").status_code == 200


def test_a_token_without_the_scope_is_refused(served_run: Path, tmp_path: Path) -> None:
    """Of a run that all may see."""
    home = make_home(served_run, tmp_path / "home", owner=None)
    with TestClient(create_app(ServerSettings(home=home.folder)), base_url="http://127.0.0.1") as client:
        for route in routes(client):
            for scope in route.scopes:
                lacking = "ann" if scope is Scope.ADMIN else f"without-{scope}"
                answer = send(client, route, **bearer(home.secrets[lacking]))
                assert answer.status_code == 403, route
                assert scope.value in answer.text


def test_anothers_run_is_a_run_that_is_not_there(asked: TestClient, home: Home) -> None:
    """The same answer, to the byte."""
    count = 0
    for route in routes(asked):
        if "{run_id}" not in route.path:
            continue
        count += 1
        theirs = send(asked, route, **bearer(home.secrets["bob"]))
        nobodys = send(asked, route, route.url(SAMPLES | {"run_id": "not-there-1"}), **bearer(home.secrets["bob"]))
        assert theirs.status_code == nobodys.status_code == 404, route
        assert theirs.text == nobodys.text
    assert count > 10
    for url in ("/", "/api/runs"):
        assert RUN_ID not in asked.get(url, headers=bearer(home.secrets["bob"])).text
        for who in ("ann", "root"):
            assert RUN_ID in asked.get(url, headers=bearer(home.secrets[who])).text


@pytest.mark.parametrize("who", ["ann", "root"])
def test_the_right_token_opens_every_route(asked: TestClient, home: Home, who: str) -> None:
    def reached() -> None:
        raise HTTPException(REACHED)

    headers = bearer(home.secrets[who])
    for route in routes(asked):
        if route.method in SAFE:
            answer = send(asked, route, **headers)
            allowed = {200, 404} if "{job_id}" in route.path else {200}
            assert answer.status_code in allowed, (route, answer.text[:300])
        elif (route.method, route.path) not in ANY_SCOPE:
            # that it comes as far as the run shows that it may; what it would change is for other tests
            overrides = asked.app.dependency_overrides  # type: ignore[attr-defined]
            overrides[dependencies._run] = reached
            try:
                answer = asked.request(route.method, route.url(), headers=headers, json={"not": "a field"})
            finally:
                overrides.clear()
            assert answer.status_code in (REACHED, 400, 404, 422), (route, answer.text[:300])


def test_an_owner_that_is_nobody_is_everybody(served_run: Path, tmp_path: Path) -> None:
    home = make_home(served_run, tmp_path / "home", owner=None)
    with TestClient(create_app(ServerSettings(home=home.folder)), base_url="http://127.0.0.1") as client:
        for who in ("ann", "bob", "root"):
            assert client.get(f"/api/runs/{RUN_ID}", headers=bearer(home.secrets[who])).status_code == 200
        assert client.get("/api/runs", headers=bearer(home.secrets["bob"])).json()["runs"][0]["run_id"] == RUN_ID
        assert client.get("/api/me", headers=bearer(home.secrets["bob"])).json() == {
            "name": "bob", "scopes": sorted(scope.value for scope in EVERYTHING), "needs_token": True,
        }  # fmt: skip


def log_in(client: TestClient, secret: str, go_on: str = "/") -> Any:
    same = {"origin": "http://127.0.0.1"}
    return client.post("/login", data={"token": secret, "go_on": go_on}, headers=same, follow_redirects=False)


@pytest.fixture
def browser(asked: TestClient, home: Home) -> Iterator[tuple[TestClient, Home]]:
    """A browser in which nobody has logged in."""
    asked.cookies.clear()
    yield asked, home
    asked.cookies.clear()
    asked.base_url = "http://127.0.0.1"  # type: ignore[assignment]


def token_of_its_own(home: Home, name: str) -> str:
    """One that a test may revoke."""
    store = home.store()
    secret = add_token(store, name, EVERYTHING)
    store.close()
    return secret


def test_a_browser_logs_in_and_out(browser: tuple[TestClient, Home]) -> None:
    client, home = browser
    answer = client.get(f"/runs/{RUN_ID}?x=1")
    assert answer.status_code == 401
    (go_on,) = re.findall(r'name="go_on" value="([^"]*)"', answer.text)
    assert go_on == f"/runs/{RUN_ID}?x=1"
    answer = log_in(client, home.secrets["ann"], go_on)
    assert (answer.status_code, answer.headers["location"]) == (303, go_on)
    cookie = answer.headers["set-cookie"].lower()
    for part in ("httponly", "samesite=strict", "path=/", "max-age=604800"):
        assert part in cookie
    assert "secure" not in cookie
    assert home.secrets["ann"].lower() not in cookie
    assert client.get(go_on).status_code == 200
    assert client.get("/api/me").json()["name"] == "ann"
    assert "Logged in as ann" in client.get("/login").text
    kept = client.cookies[COOKIE]
    store = home.store()
    with store.reading() as connection:
        rows = connection.execute(select(BrowserSession.digest, BrowserSession.token)).all()
    assert (digest_of(kept), "ann") in [tuple(row) for row in rows]
    answer = client.post("/logout", headers={"sec-fetch-site": "same-origin"})
    assert answer.status_code == 303
    assert COOKIE not in client.cookies
    # whoever has the cookie still has nothing
    assert client.get("/", headers={"cookie": f"{COOKIE}={kept}"}).status_code == 401
    store.close()


def test_a_cookie_is_sent_over_https_only_where_there_is_https(browser: tuple[TestClient, Home]) -> None:
    client, home = browser
    client.base_url = "https://127.0.0.1"  # type: ignore[assignment]
    answer = client.post("/login", data={"token": home.secrets["ann"]}, headers={"origin": "https://127.0.0.1"})
    assert answer.status_code == 303
    assert "; secure" in answer.headers["set-cookie"].lower()


@pytest.mark.parametrize("how", ["revoked", "token expires", "session expires"])
def test_a_session_ends_with_its_token(browser: tuple[TestClient, Home], how: str) -> None:
    client, home = browser
    name = how.replace(" ", "-")
    assert log_in(client, token_of_its_own(home, name)).status_code == 303
    assert client.get("/").status_code == 200
    store, before = home.store(), utc_now() - timedelta(seconds=1)
    if how == "revoked":
        revoke_token(store, name)
    else:
        table, of = (TokenRow, TokenRow.name) if how == "token expires" else (BrowserSession, BrowserSession.token)
        with store.writing() as connection:
            connection.execute(update(table).where(of == name).values(expires_at=before))
    assert client.get("/").status_code == 401
    store.close()


@pytest.mark.parametrize("name", ["past", "gone", "nobody"])
def test_a_token_of_no_use_logs_nobody_in(browser: tuple[TestClient, Home], name: str) -> None:
    client, home = browser
    answer = log_in(client, home.secrets.get(name, "ait_x"))
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert 'role="alert"' in answer.text


@pytest.mark.parametrize(
    "go_on",
    ["//evil.example", "/\\evil.example", "https://evil.example", "evil.example", "javascript:alert(1)", "/ok\r\nx: y",
     "/\t/evil.example", "/%0a\n", "///evil.example", "\\\\evil.example", "/a b", ""],
)  # fmt: skip
def test_logging_in_leads_nowhere_else(browser: tuple[TestClient, Home], go_on: str) -> None:
    client, home = browser
    answer = log_in(client, home.secrets["ann"], go_on)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/"
    page = client.get("/login", params={"go_on": go_on})
    assert page.status_code == 200
    assert 'href="/"' in page.text
    assert "evil" not in page.text


def test_at_most_twenty_browsers_a_token(browser: tuple[TestClient, Home]) -> None:
    client, home = browser
    secret = token_of_its_own(home, "many")
    cookies = []
    for _ in range(22):
        log_in(client, secret)
        cookies.append(client.cookies[COOKIE])
        client.cookies.clear()
    assert len(set(cookies)) == 22
    answers = [client.get("/api/me", headers={"cookie": f"{COOKIE}={one}"}).status_code for one in cookies]
    assert answers == [401] * 2 + [200] * 20


WRITE = f"/api/runs/{RUN_ID}/latents/{SOURCE}/5/review"
REVIEW = {"action": "accept", "by": "ann"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:81"}, 403),
        ({"origin": "http://127.0.0.1.evil.example"}, 403),
        ({"origin": "127.0.0.1"}, 403),
        ({"authorization": "Bearer bogus"}, 401),
        ({"authorization": "Bearer bogus", "sec-fetch-site": "same-origin"}, 401),
        ({"authorization": "Bearer {ann}", "sec-fetch-site": "cross-site"}, 403),
        ({"authorization": "Bearer {ann}"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"origin": "http://127.0.0.1"}, 200),
        ({"origin": "http://127.0.0.1:80"}, 200),
    ],
)
def test_what_changes_something_comes_from_a_page_of_the_server(
    browser: tuple[TestClient, Home], headers: dict[str, str], status: int
) -> None:
    client, home = browser
    log_in(client, home.secrets["ann"])
    given = {name: value.format(ann=home.secrets["ann"]) for name, value in headers.items()}
    answer = client.post(WRITE, json=REVIEW, headers=given)
    assert answer.status_code == status, answer.text


def test_a_good_token_without_a_cookie_needs_no_origin(browser: tuple[TestClient, Home]) -> None:
    client, home = browser
    assert client.post(WRITE, json=REVIEW, headers=bearer(home.secrets["ann"])).status_code == 200
    with_cookie = bearer(home.secrets["ann"]) | {"cookie": "anything=1"}
    assert client.post(WRITE, json=REVIEW, headers=with_cookie).status_code == 403


def test_reading_writes_nothing(asked: TestClient, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """GET and HEAD open no transaction that may write."""

    writing, written = LabelStore.writing, []

    def noted(self: LabelStore) -> AbstractContextManager[Connection]:
        if threading.current_thread().name != "jobs":  # it works beside what is asked
            written.append(threading.current_thread().name)
        return writing(self)

    monkeypatch.setattr(LabelStore, "writing", noted)
    for route in routes(asked):
        for method in SAFE if route.method in SAFE else ():
            answer = asked.request(method, route.url(), headers=bearer(home.secrets["root"]))
            assert answer.status_code in (200, 404, 405), route
            assert written == [], route


def test_one_machine_needs_no_token_until_one_is_added(served_run: Path, tmp_path: Path) -> None:
    settings = ServerSettings(home=tmp_path / "home", runs=(served_run,))
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        assert client.get(f"/runs/{RUN_ID}").status_code == 200
        assert client.get("/api/me").json()["needs_token"] is False
        assert client.get("/", headers={"authorization": "Bearer bogus"}).status_code == 401
        assert client.post("/login", data={"token": "x"}).status_code == 403
        store = open_store(sqlite_url(settings.home / DATABASE))
        secret = add_token(store, "ann", [Scope.READ])
        assert client.get("/").status_code == 401
        assert client.get("/", headers=bearer(secret)).status_code == 200
        revoke_token(store, "ann")  # the server does not become open again
        assert client.get("/").status_code == 401
        store.close()


@pytest.mark.parametrize(
    ("host", "hosts", "wide"),
    [
        ("127.0.0.1", (), False), ("localhost", (), False), ("::1", (), False), ("127.0.0.2", ("localhost:9000",), False),
        ("0.0.0.0", (), True), ("::", (), True), ("", (), True), ("192.0.2.1", (), True), ("example.org", (), True),
        ("127.0.0.1", ("labels.example.org",), True), ("127.0.0.1", ("localhost.example.org",), True),
    ],
)  # fmt: skip
def test_whoever_lets_others_in_needs_tokens(tmp_path: Path, host: str, hosts: tuple[str, ...], wide: bool) -> None:
    settings = ServerSettings(home=tmp_path, host=host, hosts=hosts)
    assert needs_tokens(settings) is wide
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        assert client.get("/api/me").status_code == (401 if wide else 200)
        store = client.app.state.shelf.own  # type: ignore[attr-defined]
        if not wide:
            check_tokens(settings, "127.0.0.1", store)
            return
        with pytest.raises(ConfigError, match="autointerp token add"):
            check_tokens(settings, "127.0.0.1", store)
        add_token(store, "brief", [Scope.READ])
        check_tokens(settings, "127.0.0.1", store)
        revoke_token(store, "brief")
        with pytest.raises(ConfigError):
            check_tokens(settings, "127.0.0.1", store)


def test_a_name_that_turns_out_to_be_a_public_address_is_one(tmp_path: Path) -> None:
    settings = ServerSettings(home=tmp_path, host="localhost")
    with pytest.raises(ConfigError), open_store(sqlite_url(tmp_path / "a.db")).reading():
        check_tokens(settings, "192.0.2.1", open_store(sqlite_url(tmp_path / "a.db")))


def command(*words: str) -> str:
    """What a command prints. Errors: as it raises them."""
    done = CliRunner().invoke(cli.app, ["token", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command_line_makes_lists_and_revokes_tokens(tmp_path: Path) -> None:
    at = ("--home", str(tmp_path))
    assert "no tokens" in command("list", "--home", str(sqlite_home(tmp_path)))
    made = (
        "add",
        "ann",
        "--scope",
        "read",
        "--scope",
        "review",
        "--expires",
        "30",
        "--budget-usd",
        "5",
        "--max-jobs",
        "3",
    )
    secret = command(*made, *at).strip()
    store = open_store(sqlite_url(tmp_path / DATABASE))
    token = token_of(store, secret)
    assert token is not None
    assert token.scopes == {Scope.READ, Scope.REVIEW}
    assert token.expires_at is not None
    assert timedelta(days=29) < token.expires_at - utc_now() < timedelta(days=31)
    assert (token.budget_nano_usd, token.max_jobs) == (5 * 10**9, 3)
    listed = command("list", *at)
    assert "ann" in listed
    assert "read review" in listed
    assert secret not in listed
    for wrong, says in (
        (["add", "ann", "--scope", "read"], "given before"),
        (["add", "bob"], "--scope"),
        (["add", "bob", "--scope", "reed"], "did you mean 'read'"),
        (["add", "../bob", "--scope", "read"], "cannot be called"),
        (["add", "bob", "--scope", "read", "--expires", "-1"], "--expires"),
        (["add", "bob", "--scope", "read", "--expires", "1e300"], "calendar"),
        (["add", "bob", "--scope", "read", "--budget-usd", "nan"], "--budget-usd"),
        (["revoke", "bob"], "did you mean"),
        (["revoke", "zzz"], "no token called"),
    ):
        with pytest.raises(AutointerpError) as raised:
            command(*wrong, *at)
        assert says in str(raised.value) or says == "did you mean"
    command("revoke", "ann", *at)
    assert token_of(store, secret) is None
    assert "revoked" in command("list", *at)
    store.close()


def sqlite_home(folder: Path) -> Path:
    """A home whose store is there."""
    open_store(sqlite_url(folder / DATABASE)).close()
    return folder


def test_a_server_for_others_does_not_start_without_a_token(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--host 0\.0\.0\.0 lets others reach this server"):
        CliRunner().invoke(
            cli.app, ["serve", "--home", str(tmp_path), "--host", "0.0.0.0", "--port", "0"], catch_exceptions=False
        )


def test_only_a_hash_of_a_token_is_kept(tmp_path: Path) -> None:
    store = open_store(sqlite_url(tmp_path / "a.db"))
    secrets = {add_token(store, f"t{number}", [Scope.READ]) for number in range(20)}
    assert len(secrets) == 20
    assert all(len(secret) >= 43 + 4 for secret in secrets)
    assert [token.name for token in tokens(store)] == [f"t{number}" for number in range(20)]
    assert has_usable_tokens(store)
    store.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert not any(secret.encode() in kept for secret in secrets)


@pytest.mark.parametrize("name", ["", "-a", "a/b", "a b", "x" * 41, "ä", "a\n", ".."])
def test_a_token_has_a_plain_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        add_token(open_store(sqlite_url(tmp_path / "a.db")), name, [Scope.READ])


def add_run(store: LabelStore, name: str, owner: str | None, state: str, cap: int | None, spent: int) -> None:
    budget = {"tokens": cap, "usd": None}
    config = {"endpoints": [{"kind": "scripted"}], "budget": budget}
    run = Run(id=name, name=name, digest=name, ordinal=1, config=config, state=state, folder="f", code_version="1")
    run.owner = owner
    store.create_run(run)
    with store.writing() as connection:
        connection.execute(LLMBudget.__table__.insert(), [{"run_id": name, "spent_tokens": spent, "spent_nano_usd": 0}])  # type: ignore[attr-defined]


def test_what_a_token_may_have_done_is_bounded(label_store: LabelStore) -> None:
    """1000 tokens: 300 spent, 400 that a paused run may still spend, 100 waiting; of others' runs nothing counts."""
    add_token(label_store, "ann", [Scope.SUBMIT], max_jobs=2, budget_tokens=1_000)
    add_token(label_store, "bob", [Scope.SUBMIT])
    ann = Principal("ann", frozenset({Scope.SUBMIT}), "ann")
    add_run(label_store, "ended", "ann", "done", 900, 300)
    add_run(label_store, "paused", "ann", "paused", 400, 50)
    add_run(label_store, "of-bob", "bob", "running", 10**9, 10**9)
    add_run(label_store, "of-nobody", None, "running", None, 10**9)

    def check(asked: Bound, jobs: int = 0, who: Principal = ann) -> None:
        check_quota([label_store], label_store, who, jobs=jobs, asked=asked, waiting=[Bound(100, None)])

    check(Bound(200, None))
    check(FREE)
    with pytest.raises(BudgetError, match=r"1,?001 tokens"):
        check(Bound(201, None))
    with pytest.raises(BudgetError, match="budget in tokens"):
        check(Bound(None, 10))
    with pytest.raises(BudgetError, match="2 jobs"):
        check(FREE, jobs=2)
    check(Bound(None, None), jobs=99, who=LOCAL)
    check(Bound(None, None), jobs=99, who=Principal("bob", frozenset(), "bob"))
    with pytest.raises(UnknownNameError):
        check(FREE, who=Principal("eve", frozenset(), "eve"))
    with pytest.raises(StoreError):
        add_token(label_store, "ann", [Scope.READ])
