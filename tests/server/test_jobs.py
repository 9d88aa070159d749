"""Runs that a server is asked for, as real child processes on the planted world: from the request to the dictionary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

import autointerp
from sae_core.errors import InputError, StoreError, UnknownNameError
from tests.planted_world import NUM_LATENTS
from tests.server.job_world import Server, fill, wait_until

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    fill(folder / "home", folder / "world")
    with Server(folder / "home") as found:
        yield found


def test_a_run_that_is_asked_for_twice_is_done_once_and_its_dictionary_comes_home(
    server: Server, tmp_path: Path
) -> None:
    client = server.client
    first = client.start(["planted"], "words", key="double-click", name="mine")
    again = client.start(["planted"], "words", key="double-click", name="mine")
    assert first.job_id == again.job_id
    with pytest.raises(StoreError, match="another request"):
        client.start(["planted"], "words", key="double-click", latents="3")
    waiting = client.start(["planted"], "words", latents="4", name="second")
    assert waiting.state == "queued"
    assert [line.name for line in client.runs()] == []
    ended = client.wait(first, limit_s=100)
    assert ended.state == "done"
    assert all(stage.done == stage.total for stage in ended.stages)
    folder = client.download(ended.run_id, tmp_path / "dictionary")
    table = autointerp.load_dictionary(str(folder))
    rows = list(client.latents(ended.run_id))
    assert len(table) == len(rows) == NUM_LATENTS
    assert [row.label for row in rows] == [None if pd.isna(label) else label for label in table["label"]]
    by_rate = [row.latent for row in client.latents(ended.run_id, sort="fire_rate", descending=True)]
    assert by_rate == list(table.sort_values(["fire_rate", "latent"], ascending=[False, True])["latent"])

    said = client.review(ended.run_id, rows[5].source, 5, "edit", text="the word def", by="Ada")
    assert said.label == "the word def"
    assert client.latent(ended.run_id, rows[5].source, 5).label == "the word def"
    export = client.export(ended.run_id)
    assert client.wait_export(export, limit_s=60).state == "done"
    again_home = autointerp.load_dictionary(str(client.download(ended.run_id, tmp_path / "reviewed")))
    assert again_home.set_index("latent").label[5] == "the word def"

    second = client.wait(waiting, limit_s=100)
    assert second.state == "done"
    assert len(list(client.latents(second.run_id))) == 4
    assert {line.name for line in client.runs()} == {"mine", "second"}
    assert (server.home / f"mine-{first.job_id[:8]}" / "summary.json").is_file()


def test_what_cannot_be_done_says_why(server: Server) -> None:
    client = server.client
    with pytest.raises(UnknownNameError, match="planted"):
        client.start(["plantd"], "words")
    with pytest.raises(InputError, match="corpus"):
        client.start(["planted"], "../../etc/passwd")
    with pytest.raises(InputError, match="explainer_endpoint"):
        client.start(["planted"], "words", explainers=["max_activating"])
    with pytest.raises(InputError, match="extra"):
        client.start(["planted"], "words", base_url="http://127.0.0.1/")
    refused = client.start(["broken"], "words", name="refused")
    with pytest.raises(StoreError, match="coder"):
        client.wait(refused, limit_s=60)
    job = client.job(refused.job_id)
    assert (job.state, job.run_id) == ("failed", None)
    assert job.error_kind in ("CoderError", "MissingFileError")
    assert not list(server.home.glob("refused-*")), "a refusal leaves nothing behind"
    assert client.retry_job(job.job_id).state == "queued"
    assert wait_until(lambda: client.job(job.job_id).state == "failed", "the second refusal")


def test_a_plan_comes_before_the_run_and_is_that_of_the_command(server: Server) -> None:
    plan = server.client.plan(["planted"], "words", latents="5")
    assert (plan.num_latents, plan.lines, plan.expected) == (5, (), None)
    with pytest.raises(InputError, match="16"):
        server.client.plan(["planted"], "words", latents="17")
