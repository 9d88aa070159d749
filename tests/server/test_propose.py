"""Asking for another label: what is shown to whom, what is booked, what is kept (nothing), and what is said when none comes."""

from __future__ import annotations

import html
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from autointerp.config import parse_config
from autointerp.failure import Failure, FailureKind
from autointerp.llm.protocol import Capability
from autointerp.llm.server import PlainAnswerer, Reply
from autointerp.llm.server.running import RunningServer
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.folder import DATABASE
from autointerp.review.proposing import PURPOSE, Proposal, propose_label
from autointerp.server.access import Scope
from autointerp.server.app import create_app
from autointerp.server.routes import reviews as review_routes
from autointerp.server.settings import ServerSettings
from autointerp.server.tokens import add_token
from autointerp.server.views import proposals
from autointerp.server.views.asking_alone import asking_alone
from autointerp.store import open_store
from autointerp.store.models import Base, LLMBudget, LLMCall, LLMReservation, Run
from autointerp.store.opening import sqlite_url
from sae_core.errors import (
    BudgetError,
    EndpointError,
    InputError,
    MissingFileError,
    StoreError,
    UnknownNameError,
)
from sae_core.records import Origin, Side
from tests.autointerp.explainer_world import ANY_SELF, make_store
from tests.autointerp.export_world import config_of, open_world
from tests.server.asking import bearer
from tests.server.served_world import RUN_ID, SOURCE

SAME_SITE = {"sec-fetch-site": "same-origin"}
LATENT = 45
PAGE = f"/runs/{RUN_ID}/latents/{SOURCE}/{LATENT}"
API = f"/api{PAGE}"
PRICES = {"usd_per_million_input_tokens": 2.0, "usd_per_million_output_tokens": 8.0}
BOOKS = {LLMCall.__tablename__, LLMBudget.__tablename__, LLMReservation.__tablename__}


class Writer(PlainAnswerer):
    """A model that labels with another text each time; ``asked`` has what was sent for a label."""

    def __init__(self, texts: Callable[[int], Reply] | None = None) -> None:
        super().__init__()
        self.asked: list[dict[str, Any]] = []
        self._texts = texts or (lambda number: Reply(json.dumps({"label": f"suggestion number {number}"})))

    def answer(self, request: dict[str, Any]) -> Reply:
        self.asked.append(request)
        return self._texts(len(self.asked))


def configure(folder: Path, *, probed: bool = True, **tables: Any) -> None:
    """Give the run in ``folder`` other tables; ``probed``: what its endpoints can do is known already."""
    config = parse_config(config_of(400, (SOURCE,)) | {"scorers": [{"kind": "pattern"}]} | tables, "the test")
    store = open_store(sqlite_url(folder / DATABASE))
    store.set_run_config(RUN_ID, config.stored())
    if probed:
        found = {"capabilities": sorted([Capability.JSON_SCHEMA, Capability.SEED])}
        for endpoint in config.build_endpoints():
            store.add_artefact(RUN_ID, f"capabilities/{endpoint.name}", found)
    store.close()


def asks(url: str, **fields: Any) -> dict[str, Any]:
    """Tables of a run whose second explainer asks the server at ``url``."""
    endpoint = {"kind": "openai", "name": "writer", "base_url": url, "model": "test", **PRICES} | fields
    return {"endpoints": [endpoint], "explainers": [{"kind": "pattern"}, {"kind": "max_activating"}]}


@pytest.fixture
def folder(served_run: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return shutil.copytree(served_run, tmp_path / "runs" / "own")


@pytest.fixture
def answerer() -> Writer:
    return Writer()


@pytest.fixture
def server(answerer: Writer) -> Iterator[RunningServer]:
    with RunningServer(answerer) as found:
        yield found


@pytest.fixture
def context(folder: Path) -> Callable[..., RunContext]:
    def opened(**tables: Any) -> RunContext:
        configure(folder, **tables)
        return open_world(folder)

    return opened


@pytest.fixture
def browser(folder: Path) -> Iterator[Callable[..., TestClient]]:
    """A browser on the machine of a run with these tables."""
    clients: list[TestClient] = []

    def opened(**tables: Any) -> TestClient:
        configure(folder, **tables)
        client = TestClient(create_app(ServerSettings(home=folder.parent)), base_url="http://127.0.0.1")
        clients.append(client)
        client.__enter__()
        return client

    yield opened
    for client in clients:
        client.__exit__(None, None, None)


def rows_but_calls(folder: Path) -> dict[str, list[Any]]:
    """Everything in the run's store that is no ledger."""
    store = open_store(sqlite_url(folder / DATABASE))
    found = {}
    with store.reading() as connection:
        for name, table in Base.metadata.tables.items():
            if name not in BOOKS:
                found[name] = sorted(map(repr, connection.execute(select(table)).all()))
    store.close()
    return found


def calls(folder: Path) -> list[Any]:
    """The ledger's rows of proposals."""
    store = open_store(sqlite_url(folder / DATABASE))
    with store.reading() as connection:
        rows = connection.execute(
            select(
                LLMCall.source, LLMCall.latent, LLMCall.outcome, LLMCall.key, LLMCall.input_tokens,
                LLMCall.output_tokens, LLMCall.cost_nano_usd,
            ).where(LLMCall.purpose == PURPOSE).order_by(LLMCall.id)
        ).all()  # fmt: skip
        held = connection.execute(select(LLMReservation.tokens)).scalars().all()
    store.close()
    assert not any(held), "what was reserved is settled"
    return list(rows)


def test_a_suggestion_is_booked_and_nothing_else_is_kept(
    browser: Callable[..., TestClient], folder: Path, server: RunningServer, answerer: Writer
) -> None:
    client = browser(**asks(server.url))
    before = rows_but_calls(folder)
    answer = client.post(f"{API}/propose", json={}, headers=SAME_SITE)
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert (said["text"], said["failure"], said["explainer"]) == ("suggestion number 1", None, "max_activating")
    assert rows_but_calls(folder) == before
    (row,) = calls(folder)
    assert (row.source, row.latent, row.outcome) == (SOURCE, LATENT, "reply")
    assert (row.input_tokens, row.output_tokens) == (said["input_tokens"], said["output_tokens"])
    assert min(row.input_tokens, row.output_tokens) > 0
    wanted = (2 * row.input_tokens + 8 * row.output_tokens) / 1e6
    assert said["cost_usd"] == pytest.approx(wanted) == pytest.approx(row.cost_nano_usd / 1e9)
    assert f"${wanted:.4f}" in said["sentence"]
    assert len(answerer.asked) == 1


def test_the_model_reads_windows_of_the_explain_side_alone(
    context: Callable[..., RunContext], server: RunningServer, answerer: Writer
) -> None:
    """Also where any other side is refused, and as the request itself says."""
    opened = context(**asks(server.url))
    hand = make_store(readable=[Side.EXPLAIN])
    opened._exemplars[SOURCE] = hand  # type: ignore[assignment]
    assert propose_label(opened, SOURCE, ANY_SELF).text == "suggestion number 1"
    (asked,) = answerer.asked
    shown = asked["messages"][-1]["content"]
    assert "xplain" in shown
    assert "scr" not in shown
    assert "chz" not in shown
    opened.store.close()
    store = open_world(opened.folder.root).exemplars(SOURCE)
    propose_label(open_world(opened.folder.root), SOURCE, LATENT)
    shown = answerer.asked[-1]["messages"][-1]["content"]
    windows = {
        side: {
            "".join(store.pieces.pieces(found.token_ids.tolist()[1:])).strip()
            for origin in Origin
            for found in store.exemplars(LATENT, side, origin)
        }
        for side in Side
    }
    plain = shown.replace("<<", "").replace(">>", "")
    assert any(text in plain for text in windows[Side.EXPLAIN])
    assert not any(text in plain for text in windows[Side.SCORE] | windows[Side.CHOOSE])


def test_each_suggestion_is_another_draw(
    context: Callable[..., RunContext], folder: Path, server: RunningServer, answerer: Writer
) -> None:
    """Though the explainer is configured to say the same again and again; of several drafts it is one, which the run has not drawn."""
    drafts = {"kind": "best_of_n", "n": 3, "temperature": 0.9}
    opened = context(**asks(server.url) | {"explainers": [{"kind": "max_activating"}, drafts]})
    found = [propose_label(opened, SOURCE, LATENT) for _ in range(3)]
    assert [one.text for one in found] == [f"suggestion number {n}" for n in (1, 2, 3)]
    assert [one["temperature"] for one in answerer.asked] == [0.7] * 3
    assert len({one["seed"] for one in answerer.asked} | {0}) == 4
    assert len({json.dumps(one["messages"]) for one in answerer.asked}) == 1
    assert len({row.key for row in calls(folder)}) == 3
    del answerer.asked[:]
    other = propose_label(opened, SOURCE, LATENT + 1, "best_of_n")
    assert (other.explainer, other.text) == ("best_of_n", "suggestion number 1")
    (asked,) = answerer.asked
    assert asked["temperature"] == 0.9
    assert asked["seed"] not in range(3)
    opened.store.close()


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply("no JSON at all"), FailureKind.UNPARSEABLE),
        (Reply("", refusal="I would rather not."), FailureKind.REFUSED),
        (Reply('{"label": "x', "length"), FailureKind.TRUNCATED),
    ],
)
def test_what_is_no_label_is_a_typed_failure(
    reply: Reply, kind: FailureKind, browser: Callable[..., TestClient], folder: Path
) -> None:
    with RunningServer(Writer(lambda number: reply)) as server:
        client = browser(**asks(server.url))
        said = client.post(f"{API}/propose", json={}, headers=SAME_SITE).json()
        assert (said["text"], said["failure"]) == (None, kind.value)
        assert said["why_none"] in said["sentence"]
        spent = [row.input_tokens for row in calls(folder)]
        assert said["input_tokens"] == sum(spent) > 0
        page = client.post(f"{PAGE}/propose", data={"text": "my own words"}, headers=SAME_SITE)
        assert page.status_code == 200
        assert "suggests nothing" in page.text
        assert "my own words</textarea>" in page.text


def test_an_endpoint_that_is_not_there_is_said(browser: Callable[..., TestClient]) -> None:
    client = browser(probed=False, **asks("http://127.0.0.1:9/v1"))
    answer = client.post(f"{API}/propose", json={}, headers=SAME_SITE)
    assert (answer.status_code, "cannot be asked" in answer.json()["detail"]) == (502, True), answer.text
    page = client.post(f"{PAGE}/propose", headers=SAME_SITE)
    assert page.status_code == 502
    assert 'role="alert"' in page.text
    assert "127.0.0.1" not in page.text + answer.text


def test_where_the_endpoint_is_stays_with_the_operator(
    browser: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it fails in the middle of the work."""
    failure = Failure(kind=FailureKind.SERVER_ERROR, message="Cannot connect to host 10.1.2.3:8000")
    found = Proposal(LATENT, "max_activating", "test", None, failure, 0, 0, None)
    monkeypatch.setattr(proposals, "propose_label", lambda *given: found)
    said = browser().post(f"{API}/propose", json={}, headers=SAME_SITE)
    assert said.json()["failure"] == "server_error"
    assert "10.1.2.3" not in said.text
    assert "its server failed" in said.json()["sentence"]


def test_nobody_waits_longer_than_the_limit(context: Callable[..., RunContext], folder: Path, answerer: Writer) -> None:
    with RunningServer(answerer, latency_s=30) as server:
        opened = context(**asks(server.url))
        begun = time.monotonic()
        with pytest.raises(EndpointError, match=r"no answer in 0\.4 s"):
            propose_label(opened, SOURCE, LATENT, limit_s=0.4)
        assert time.monotonic() - begun < 5
        opened.store.close()
    assert [row.outcome for row in calls(folder)] == ["lost"], "it may be billed"


def test_a_spent_budget_sends_nothing(
    browser: Callable[..., TestClient], folder: Path, server: RunningServer, answerer: Writer
) -> None:
    client = browser(**asks(server.url), budget={"tokens": 500})
    answer = client.post(f"{API}/propose", json={}, headers=SAME_SITE)
    assert answer.status_code == 429
    assert "budget of 500 tokens" in answer.json()["detail"]
    assert answerer.asked == []
    assert calls(folder) == []


def test_where_nobody_can_be_asked(context: Callable[..., RunContext], server: RunningServer) -> None:
    batch = asks(server.url, kind="openai_batch")
    for tables, says in (
        ({"explainers": [{"kind": "pattern"}]}, "none of its explainers"),
        ({**asks(server.url), "explainers": [{"kind": "output", "prompts": 0}]}, "none of its explainers"),
        (batch, "in batches"),
    ):
        opened = context(**tables)
        with pytest.raises(InputError, match=says):
            propose_label(opened, SOURCE, LATENT)
        opened.store.close()
    opened = context(**asks(server.url))
    for source, latent, explainer, kind, says in (
        (SOURCE, 0, None, InputError, "never fires"),
        (SOURCE, 400, None, StoreError, "no label row"),
        ("nowhere", LATENT, None, UnknownNameError, "nowhere"),
        (SOURCE, LATENT, "contrastive", UnknownNameError, "no explainer 'contrastive'"),
        (SOURCE, LATENT, "pattern", InputError, "none of its explainers"),
    ):
        with pytest.raises(kind, match=says):
            propose_label(opened, source, latent, explainer)
    opened.store.close()


def test_only_the_explainers_endpoint_is_asked(
    context: Callable[..., RunContext], server: RunningServer, answerer: Writer
) -> None:
    """A judge that is away is no reason."""
    tables = asks(server.url)
    tables["endpoints"].append({"kind": "openai", "name": "away", "base_url": "http://127.0.0.1:9/v1", "model": "j"})
    tables["scorers"] = [{"kind": "detection", "endpoint": "away"}]
    opened = context(**tables, probed=False)
    assert propose_label(opened, SOURCE, LATENT).text is not None
    opened.store.close()


def test_the_page_shows_the_suggestion_to_be_edited(browser: Callable[..., TestClient], folder: Path) -> None:
    hostile = "</textarea><script>alert(1)</script>"
    with RunningServer(Writer(lambda number: Reply(json.dumps({"label": hostile})))) as server:
        client = browser(**asks(server.url))
        page = client.get(PAGE).text
        assert f'formaction="{PAGE}/propose"' in page
        assert client.get(f"/api{PAGE}").json()["proposers"] == ["max_activating"]
        answer = client.post(f"{PAGE}/propose", data={"by": "ann", "note": "odd", "text": "old"}, headers=SAME_SITE)
    assert answer.status_code == 200
    (shown,) = re.findall(r"<textarea[^>]*>(.*?)</textarea>", answer.text, re.DOTALL)
    assert html.unescape(shown) == hostile
    assert "<script>alert" not in answer.text
    assert "<details open>" in answer.text
    assert re.search(
        r'role="status">test \(max_activating\) suggests this: [\d,]+ tokens read, .*\$0\.\d{4}', answer.text
    )
    assert 'value="ann"' in answer.text
    assert 'value="odd"' in answer.text
    (form,) = re.findall(r'<form class="review" method="post" action="([^"]*)"', answer.text)
    assert form == f"{PAGE}/review"
    (twin,) = re.findall(r'<a href="([^"]+)">This page as JSON</a>', answer.text)
    assert client.get(twin).status_code == 200
    # nothing is kept until somebody saves it
    assert client.get(API).json()["history"] == []
    saved = client.post(
        form, data={"action": "edit", "text": "as I see it", "by": "ann"}, headers=SAME_SITE, follow_redirects=False
    )
    assert saved.status_code == 303
    assert client.get(API).json()["label"] == "as I see it"


def test_without_a_model_there_is_no_button(browser: Callable[..., TestClient]) -> None:
    client = browser(explainers=[{"kind": "pattern"}])
    assert client.get(API).json()["proposers"] == []
    assert "/propose" not in client.get(PAGE).text
    answer = client.post(f"{PAGE}/propose", headers=SAME_SITE)
    assert answer.status_code == 400
    assert "cannot be asked" in answer.text


def with_tokens(folder: Path, owner: str | None, **bounds: Any) -> dict[str, str]:
    """Secrets of tokens; ``bounds`` are those of ann."""
    store = open_store(sqlite_url(folder.parent / DATABASE))
    scopes = {"ann": tuple(Scope), "reader": (Scope.READ,), "reviewer": (Scope.READ, Scope.REVIEW)}
    found = {
        name: add_token(
            store, name, [one for one in given if one is not Scope.ADMIN], **(bounds if name == "ann" else {})
        )
        for name, given in scopes.items()
    }
    store.close()
    run = open_store(sqlite_url(folder / DATABASE))
    with run.writing() as connection:
        connection.execute(update(Run).values(owner=owner))
    run.close()
    return found


def test_a_review_is_signed_by_the_token_whatever_it_says(
    browser: Callable[..., TestClient], folder: Path, server: RunningServer
) -> None:
    secrets = with_tokens(folder, None)
    client = browser(**asks(server.url))
    ann = bearer(secrets["ann"])
    page = client.get(PAGE, headers=ann).text
    assert 'name="by"' not in page
    assert "Signed by <b>ann</b>" in page
    said = client.post(f"{API}/review", json={"action": "reject", "by": "root"}, headers=ann)
    assert said.status_code == 200
    form = client.post(f"{PAGE}/review", data={"action": "accept", "by": "root"}, headers=ann, follow_redirects=False)
    assert form.status_code == 303
    assert client.post(f"{API}/review", json={"action": "reject"}, headers=ann).status_code == 200
    history = client.get(API, headers=ann).json()["history"]
    assert [(line["by"], line["action"]) for line in history] == [
        ("ann", "reject"), ("ann", "accept"), ("ann", "reject"),
    ]  # fmt: skip
    # who may not, is not shown how
    assert 'class="review"' not in client.get(PAGE, headers=bearer(secrets["reader"])).text
    page = client.get(PAGE, headers=bearer(secrets["reviewer"])).text
    assert "Save this text" in page
    assert "/propose" not in page
    refused = client.post(f"{API}/propose", json={}, headers=bearer(secrets["reviewer"]))
    assert (refused.status_code, "submit" in refused.json()["detail"]) == (403, True)


def test_without_a_token_a_review_needs_a_name(browser: Callable[..., TestClient]) -> None:
    client = browser()
    answer = client.post(f"{API}/review", json={"action": "reject"}, headers=SAME_SITE)
    assert (answer.status_code, "who you are" in answer.json()["detail"]) == (400, True)
    page = client.post(f"{PAGE}/review", data={"action": "edit", "text": "my words"}, headers=SAME_SITE)
    assert page.status_code == 400
    assert "my words</textarea>" in page.text
    assert 'name="by"' in page.text


@pytest.mark.parametrize(
    ("owner", "bound", "most", "status"),
    [
        ("ann", None, None, 200),
        (None, None, None, 200),
        (None, 10**9, 10**6, 429),  # nobody's token would pay for it
        ("ann", 10**9, 10**6, 200),
        ("ann", 10**9, None, 429),  # a run without a bound
        ("ann", 1000, 10**6, 429),
    ],
)
def test_a_token_with_a_bound_pays_for_it(
    owner: str | None,
    bound: int | None,
    most: int | None,
    status: int,
    browser: Callable[..., TestClient],
    folder: Path,
    server: RunningServer,
    answerer: Writer,
) -> None:
    secrets = with_tokens(folder, owner, budget_tokens=bound)
    client = browser(**asks(server.url), budget={} if most is None else {"tokens": most})
    answer = client.post(f"{API}/propose", json={}, headers=bearer(secrets["ann"]))
    assert answer.status_code == status, answer.text
    assert len(answerer.asked) == (status == 200)


def test_one_asks_at_a_time_for_a_run() -> None:
    inside, order = threading.Event(), []

    def other() -> None:
        with asking_alone("r"):
            inside.set()
            time.sleep(0.3)
            order.append("first")

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait()
    with asking_alone("another run"):
        order.append("meanwhile")
    with pytest.raises(StoreError, match="try again"), asking_alone("r", patience_s=0.01):
        raise AssertionError
    with asking_alone("r"):
        order.append("then")
    thread.join()
    assert order == ["meanwhile", "first", "then"]


def test_two_suggestions_at_once_leave_the_books_in_order(
    browser: Callable[..., TestClient], folder: Path, answerer: Writer
) -> None:
    with RunningServer(answerer, latency_s=0.2) as server:
        client = browser(**asks(server.url))
        found: list[Any] = []

        def ask() -> None:
            found.append(client.post(f"{API}/propose", json={}, headers=SAME_SITE).json())

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {one["text"] for one in found} == {f"suggestion number {n}" for n in (1, 2, 3)}
    rows = calls(folder)
    assert [row.outcome for row in rows] == ["reply"] * 3
    store = open_store(sqlite_url(folder / DATABASE))
    with store.reading() as connection:
        spent = connection.execute(select(LLMBudget.spent_tokens)).scalar_one()
        lost = connection.execute(select(LLMCall.id).where(LLMCall.purpose == "abandoned")).all()
    store.close()
    assert spent == sum(row.input_tokens + row.output_tokens for row in rows)
    assert not lost


def test_a_page_tells_no_path(browser: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch) -> None:
    client = browser()
    errors: list[Exception] = [
        MissingFileError("/srv/secret/place.bin is not there"),
        InputError("the file /srv/secret/place.bin is odd"),
        BudgetError("see /srv/secret/place.bin"),
    ]
    for error in errors:

        def fail(*given: Any, error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(review_routes, "reviewed", fail)
        monkeypatch.setattr(proposals, "propose_label", fail)
        form = {"action": "edit", "text": "x", "by": "ann"}
        for url in (f"{PAGE}/review", f"{PAGE}/propose"):
            page = client.post(url, data=form, headers=SAME_SITE)
            assert page.status_code >= 400
            assert 'role="alert"' in page.text
            assert "secret" not in page.text
