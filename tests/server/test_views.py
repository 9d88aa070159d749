"""What pages show is what is stored: compared with the exported table, plain readings of the store, and brute force."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from autointerp.judging.verdicts import Verdicts
from autointerp.pipeline.dictionary_rows import latent_row
from sae_core.records import HISTOGRAM_EDGES, Origin, Side
from tests.autointerp.export_world import open_world, verdict_rows
from tests.made_up_world import words_of
from tests.server.conftest import SIZE
from tests.server.served_world import RUN_ID, SOURCE

LATENTS = f"/api/runs/{RUN_ID}/latents"
SAME_SITE = {"sec-fetch-site": "same-origin"}


@pytest.fixture(scope="module")
def table(served_run: Path) -> pd.DataFrame:
    return pd.read_parquet(served_run / "dictionary")


def get(client: TestClient, url: str, **params: Any) -> dict[str, Any]:
    answer = client.get(url, params=params)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_every_page_has_a_twin(client: TestClient) -> None:
    """The same path below /api/, and the page links to it."""
    routes = [route for route in client.app.routes if isinstance(route, APIRoute)]  # type: ignore[attr-defined]
    routes = routes or list(_routes(client))
    paths = {(method, route.path) for route in routes for method in route.methods or ()}
    pages = {(method, path) for method, path in paths if not path.startswith("/api/") and method == "GET"}
    assert len(pages) > 5
    alone = {"/", "/login", "/logout", "/new", "/jobs/{job_id}/state"}  # /api/runs; forms; a part of /jobs/{job_id}
    missing = [path for _, path in pages if path not in alone and ("GET", f"/api{path}") not in paths]
    assert missing == []
    for path in ("/", f"/runs/{RUN_ID}", f"/runs/{RUN_ID}/latents?sort=f1", f"/runs/{RUN_ID}/latents/{SOURCE}/5"):
        (link,) = re.findall(r'<a href="([^"]+)">This page as JSON</a>', client.get(path).text)
        assert client.get(link).headers["content-type"] == "application/json"


def _routes(client: TestClient) -> list[APIRoute]:
    """Of a FastAPI that keeps the routes of its routers apart."""
    found: list[APIRoute] = []
    left = list(client.app.routes)  # type: ignore[attr-defined]
    while left:
        route = left.pop()
        if isinstance(route, APIRoute):
            found.append(route)
        left += getattr(getattr(route, "original_router", None), "routes", [])
    return found


@pytest.mark.parametrize("descending", [False, True])
def test_the_table_is_the_exported_one(client: TestClient, table: pd.DataFrame, descending: bool) -> None:
    """All rows by following cursors, sorted and filtered as pandas does it."""
    wanted = table[(table.precision_low >= 0.2) & (table.status == "labelled")]
    wanted = wanted.sort_values(["f1", "latent"], ascending=[not descending, True], na_position="last")
    params: dict[str, Any] = {
        "sort": "f1", "descending": descending, "where": "precision_low>=0.2", "status": "labelled", "limit": 37,
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    while True:
        page = get(client, LATENTS, **params)
        rows += page["rows"]
        if page["next"] is None:
            break
        params["after"] = page["next"]
    assert 50 < len(rows) == page["num_found"]
    assert page["num_rows"] == SIZE
    assert [row["latent"] for row in rows] == wanted.latent.tolist()
    assert [row["label"] for row in rows] == wanted.label.tolist()
    for name in ("precision", "f1", "fire_rate"):
        found = [row["figures"][name]["value"] for row in rows]
        np.testing.assert_array_equal(np.array(found, float), wanted[name].to_numpy(float))
    lows = np.array([row["figures"]["precision"]["low"] for row in rows], float)
    np.testing.assert_array_equal(lows, wanted.precision_low.to_numpy(float))


def test_words_of_labels_are_found(client: TestClient, table: pd.DataFrame) -> None:
    found = get(client, LATENTS, words="number 123")
    assert [row["latent"] for row in found["rows"]] == table[
        table.label == "the word number 123, also after a colon"
    ].latent.tolist()


@pytest.mark.parametrize("latent", [0, 1, 2, 5, 24, 25, 27, 33, 101, SIZE - 1])
def test_a_latents_row_is_that_of_the_store(client: TestClient, served_run: Path, latent: int) -> None:
    view = get(client, f"{LATENTS}/{SOURCE}/{latent}")
    context = open_world(served_run)
    wanted = {name: value for name, value in latent_row(context, SOURCE, latent).items() if value is not None}
    wanted["created_at"] = wanted["created_at"].isoformat()
    context.store.close()
    assert view["row"] == json.loads(json.dumps(wanted))
    assert view["label"] == wanted.get("label")
    assert view["status"] == wanted["status"]
    assert (view["previous"], view["next"]) == (
        latent - 1 if latent else None,
        latent + 1 if latent < SIZE - 1 else None,
    )


def test_exemplars_are_the_stored_windows_shaded_by_activation(client: TestClient, served_run: Path) -> None:
    context = open_world(served_run)
    store = context.exemplars(SOURCE)
    view = get(client, f"{LATENTS}/{SOURCE}/5")
    strong, weak = words_of(5)
    groups = view["exemplars"]
    assert groups[0]["name"] == "Strongest"
    tops = store.exemplars(5, Side.SCORE, Origin.TOP)
    scale = float(np.abs(store.statistics.max_activation[:, 5]).max())
    assert len(groups[0]["windows"]) == len(tops) > 0
    for shown, stored in zip(groups[0]["windows"], tops, strict=True):
        before = shown["num_before"]
        assert before == len(stored.context_ids)
        assert not any(shown["strengths"][:before])
        np.testing.assert_allclose(shown["strengths"][before:], np.abs(stored.activations) / scale, atol=5e-5)
        pairs = zip(shown["texts"], shown["strengths"], strict=True)
        firing = [text.strip() for text, strength in pairs if strength > 0]
        assert firing
        assert set(firing) <= {strong, weak}
        assert (shown["document"], shown["context"], shown["position"]) == (
            stored.document,
            stored.context,
            stored.position,
        )
    sampled = store.exemplars(5, Side.SCORE, Origin.SAMPLED)
    assert sum(int(group["note"].split(" of ")[0]) for group in groups[1:]) == len(sampled)
    histogram = view["histogram"]
    counts = np.asarray(store.statistics.histogram[:, 5]).sum(0)
    assert sum(histogram["counts"]) == counts.sum() == np.asarray(store.statistics.num_windows_firing[:, 5]).sum()
    at = list(HISTOGRAM_EDGES).index(histogram["edges"][0])
    assert histogram["counts"] == counts[1:-1][at : at + len(histogram["counts"])].tolist()
    context.store.close()


def test_mistakes_are_what_the_judge_got_wrong(client: TestClient) -> None:
    for latent in (5, 6, 9, 14):
        view = get(client, f"{LATENTS}/{SOURCE}/{latent}")
        (row,) = verdict_rows(SOURCE, range(latent, latent + 1))
        wanted = {"false positive": [0, 0], "miss": [0, 0]}
        for item in Verdicts.from_json(json.loads(row["items"])).items:
            if item.confirmed is not None:
                counts = wanted["miss" if item.truth else "false positive"]
                counts[1] += 1
                counts[0] += item.confirmed is not item.truth
        found = {group["kind"]: [group["num_wrong"], group["num_judged"]] for group in view["mistakes"]}
        assert found == (
            {kind: counts for kind, counts in wanted.items() if counts[0]}
            if view["row"]["explainer"] == "contrastive"
            else {}
        )


def test_a_pool_window_is_read_with_its_activations(served_run: Path) -> None:
    context = open_world(served_run)
    store = context.exemplars(SOURCE)
    pool = store.pool(Side.SCORE)
    rows, columns, values = pool.activations(7)
    for row in [*np.unique(rows)[:3], next(r for r in range(len(pool.tokens)) if r not in set(rows))]:
        found = store.pool_window(7, Side.SCORE, int(pool.context[row]), int(pool.position[row]))
        assert found is not None
        wanted = np.zeros(pool.tokens.shape[1], np.float32)
        wanted[columns[rows == row]] = values[rows == row]
        kept = np.asarray(pool.tokens[row][pool.context_tokens :]) >= 0
        np.testing.assert_array_equal(found.activations, wanted[pool.context_tokens :][kept])
        np.testing.assert_array_equal(found.token_ids, np.asarray(pool.tokens[row][pool.context_tokens :])[kept])
    assert store.pool_window(7, Side.SCORE, 10**6, 0) is None
    context.store.close()


def test_pictures_hold_every_latent_with_both_figures(client: TestClient, table: pd.DataFrame) -> None:
    for name, x, y in (("precision-recall", "recall", "precision"), ("f1-rate", "fire_rate", "f1")):
        view = get(client, f"/api/runs/{RUN_ID}/pictures/{name}")
        both = table[table[x].notna() & table[y].notna() & ((table[x] > 0) | (name == "precision-recall"))]
        assert view["num_latents"] == len(both) > 100
        found = {(point["latent"], point["x"], point["y"]) for point in view["points"]}
        assert found == set(zip(both.latent.tolist(), both[x].tolist(), both[y].tolist(), strict=True))
    assert client.get(f"/api/runs/{RUN_ID}/pictures/f1-rates").status_code == 404
    # nobody ablated these, and so there is nothing to draw
    assert get(client, f"/api/runs/{RUN_ID}/pictures/effect-control")["num_latents"] == 0
    assert "no such figures" in client.get(f"/runs/{RUN_ID}/pictures/effect-control").text


def test_cells_of_many_latents_hold_each_once(
    client: TestClient, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, served_run: Path
) -> None:
    from autointerp.browsing import open_columns
    from autointerp.server.views import pictures

    monkeypatch.setattr(pictures, "MOST_POINTS", 10)
    columns = open_columns(served_run / "dictionary", served_run.parent / "columns-of-a-test")
    for spec in pictures.PICTURES[:2]:
        view = pictures.drawn("r", columns, spec)
        assert view.points == ()
        assert sum(cell.count for cell in view.cells) == view.num_latents > 100
        x, y = columns.numbers(spec.x), columns.numbers(spec.y)
        cell = max(view.cells, key=lambda one: one.count)
        last = (x <= cell.x_high) if cell.x_high == view.x_range[1] else (x < cell.x_high)
        top = (y <= cell.y_high) if cell.y_high == view.y_range[1] else (y < cell.y_high)
        assert int(((x >= cell.x_low) & last & (y >= cell.y_low) & top).sum()) == cell.count


def test_a_review_is_seen_at_once_everywhere(own_client: TestClient) -> None:
    """In the table, on the page, in what is to be exported; the figures of the label before stand no longer beside the new one."""
    url = f"{LATENTS}/{SOURCE}/45"
    before = get(own_client, url)
    assert before["row"]["precision_method"]
    said = own_client.post(
        f"{url}/review", json={"action": "reject", "by": "ann", "note": "too broad"}, headers=SAME_SITE
    )
    assert said.status_code == 200, said.text
    assert said.json()["status"] == "failed"
    after = get(own_client, url)
    assert (after["status"], after["label"]) == ("failed", None)
    assert after["why_none"].startswith("rejected by ann")
    assert [line["action"] for line in after["history"]] == ["reject"]
    page = get(own_client, LATENTS, words="number 45")
    row = next(row for row in page["rows"] if row["latent"] == 45)
    assert (row["status"], row["label"], row["reviewed"]) == ("failed", None, "rejected by ann")
    assert page["num_reviewed"] == 1
    assert get(own_client, f"/api/runs/{RUN_ID}/downloads")["num_reviewed"] == 1


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"action": "edit", "by": "ann"}, "an edit has a text"),
        ({"action": "accept", "by": "ann", "text": "x"}, "only an edit has one"),
        ({"action": "praise", "by": "ann"}, "action"),
        ({"action": "accept", "by": ""}, "by"),
        ({"action": "accept", "by": "ann", "run": "other"}, "extra"),
    ],
)
def test_a_review_that_is_none_is_one_sentence(own_client: TestClient, body: dict[str, str], says: str) -> None:
    answer = own_client.post(f"{LATENTS}/{SOURCE}/45/review", json=body, headers=SAME_SITE)
    assert answer.status_code in (400, 422)
    assert set(answer.json()) == {"status", "title", "detail"}
    assert says in answer.json()["detail"]


def test_downloads_are_the_exported_files(client: TestClient, table: pd.DataFrame, tmp_path: Path) -> None:
    listed = get(client, f"/api/runs/{RUN_ID}/downloads")
    for file in listed["files"]:
        body = client.get(f"/api/runs/{RUN_ID}/dictionary/{file['name']}")
        assert body.status_code == 200
        assert len(body.content) == file["bytes"]
        (tmp_path / file["name"]).write_bytes(body.content)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path), table)
    for name in ("../autointerp.db", "..%2fautointerp.db", "/etc/passwd", "part-00009.parquet", "manifest.json/.."):
        assert client.get(f"/api/runs/{RUN_ID}/dictionary/{name}").status_code in (404, 400), name


def test_the_progress_of_a_run_is_that_of_the_store(client: TestClient) -> None:
    progress = get(client, f"/api/runs/{RUN_ID}/progress")
    assert (progress["state"], progress["ended"]) == ("done", True)
    statuses = {"dead": SIZE // 20, "too_few_windows": 0, "rare": SIZE // 20, "unparseable": SIZE // 20}
    found = progress["failures"]
    assert found["dead"] == statuses["dead"]
    assert sum(found.values()) == 3 * SIZE // 20
    assert len(progress["latest"]) == 12


def test_figures_of_a_run_that_goes_on_are_those_of_now(own_client: TestClient, tmp_path: Path) -> None:
    """Whoever looked before the estimates were there sees them once they are."""
    from sqlalchemy import delete, insert, select, update

    from autointerp.store.models import EstimateRow, Run

    context = open_world(tmp_path / "runs" / "own")
    with context.store.writing() as connection:
        estimates = [row._asdict() for row in connection.execute(select(EstimateRow.__table__)).all()]
        connection.execute(delete(EstimateRow))
        connection.execute(update(Run).values(state="running"))
    judged = next(row["latent"] for row in estimates if row["latent"] % 7 != 3 and row["failure_kind"] is None)
    before = get(own_client, f"{LATENTS}/{SOURCE}/{judged}")
    with context.store.writing() as connection:
        connection.execute(insert(EstimateRow), estimates)
    after = get(own_client, f"{LATENTS}/{SOURCE}/{judged}")
    context.store.close()
    assert "precision" not in before["row"]
    assert after["row"]["precision_method"] == "judged"


def test_folders_that_move_or_are_no_runs_are_followed(own_client: TestClient, tmp_path: Path) -> None:
    url = f"{LATENTS}/{SOURCE}/5"
    assert get(own_client, url)["exemplars"]
    (tmp_path / "runs" / "foreign").mkdir()
    (tmp_path / "runs" / "foreign" / "run.json").write_text('{"wandb": 1}')
    (tmp_path / "runs" / "own").rename(tmp_path / "runs" / "moved")
    assert get(own_client, url)["exemplars"]
    assert [run["run_id"] for run in get(own_client, "/api/runs")["runs"]] == [RUN_ID]
    import shutil

    shutil.rmtree(tmp_path / "runs" / "moved")
    assert own_client.get(url).status_code == 404
    assert get(own_client, "/api/runs")["runs"] == []


def test_enter_saves_what_was_typed_and_a_rejection_can_be_taken_back(own_client: TestClient) -> None:
    path = f"/runs/{RUN_ID}/latents/{SOURCE}/47"
    form = re.search(r'<form class="review".*?</form>', own_client.get(path).text, re.S)
    assert form is not None
    assert re.findall(r'name="action" value="(\w+)"', form[0]) == ["edit", "accept", "reject"]
    changed = own_client.post(
        f"{path}/review", data={"action": "accept", "text": "other", "by": "ann"}, headers=SAME_SITE
    )
    assert changed.status_code == 400
    assert "the text was changed" in changed.text
    own_client.post(f"{path}/review", data={"action": "reject", "by": "ann"}, headers=SAME_SITE)
    assert "Take the label back" in own_client.get(path).text
    own_client.post(f"{path}/review", data={"action": "accept", "by": "ann"}, headers=SAME_SITE)
    assert get(own_client, f"/api{path}")["label"] == "the word number 47, also after a colon"


@pytest.mark.parametrize(
    ("value", "name", "text"),
    [
        (0.0039, "ablation_kl_typical", "0.0039"), (3e-10, "causal_q", "3e-10"), (0.713, "precision", ".71"), (0.0, "f1", ".00"),
        (12345.6, "attribution_kl_total", "12,346"), (1.0, "fire_rate", "100%"), (0.997, "fire_rate", "100%"), (0.0031, "fire_rate", "0.31%"),
        (-1.23, "causal_effect", "-1.23"), (0.4, "causal_effect_low", "+.40"), (None, "f1", "–"),
    ],
)  # fmt: skip
def test_figures_are_written_so_that_they_can_be_told_apart(value: float | None, name: str, text: str) -> None:
    from autointerp.server.pages import figure_text

    assert figure_text(value, name) == text


def test_a_bound_is_the_same_when_it_is_read_again() -> None:
    from autointerp.export.filters import Bound

    for text in ("fire_count>=1234567", "attribution_kl_total<1234.5678", "causal_q<=1e-10", "f1>=0.1"):
        bound = Bound.parse(text)
        assert Bound.parse(str(bound)) == bound


def test_a_latent_that_the_run_did_not_label_has_its_exemplars(own_client: TestClient, tmp_path: Path) -> None:
    """Searches and neighbours lead to it."""
    from sqlalchemy import delete

    from autointerp.store.models import LabelRow

    context = open_world(tmp_path / "runs" / "own")
    with context.store.writing() as connection:
        connection.execute(delete(LabelRow).where(LabelRow.latent == 9))
    context.store.close()
    view = get(own_client, f"{LATENTS}/{SOURCE}/9")
    assert (view["status"], view["label"], view["figures"], view["row"]) == ("not labelled", None, [], {})
    assert view["exemplars"][0]["windows"]
    page = own_client.get(f"/runs/{RUN_ID}/latents/{SOURCE}/9")
    assert page.status_code == 200
    assert '<form class="review"' not in page.text
