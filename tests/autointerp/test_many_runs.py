"""A store with years of nights in it: what looks for a run among many, and what a chunk asks of its run, reads no configurations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from autointerp.cluster.contexts import RunContexts
from autointerp.cluster.submitting import submit_run
from autointerp.config import load_config
from autointerp.nightly.base import _run_id
from autointerp.nightly.schedule import parse_schedule
from autointerp.pipeline.finding import find_run
from autointerp.store import LabelStore, open_store
from autointerp.store.models import Run
from sae_core.errors import StoreError

CONFIG = """
subject.model = "subject"
corpus.path = "corpus.txt"
[[coders]]
path = "coder"
[[endpoints]]
kind = "scripted"
name = "judge"
replies = ["yes"]
[[explainers]]
kind = "max_activating"
endpoint = "judge"
"""


@pytest.fixture
def store(store_url: str) -> Iterator[LabelStore]:
    opened = open_store(store_url)
    yield opened
    opened.close()


def add_run(store: LabelStore, number: int, name: str = "n") -> None:
    store.create_run(
        Run(
            id=f"night-{number:04d}",
            name=name,
            digest=str(number),
            ordinal=1,
            config={},
            state="done",
            folder=f"/f/{number}",
            code_version="0",
        )
    )


def test_runs_are_found_among_others_whose_configurations_nobody_reads(
    store: LabelStore, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others' configurations are no JSON: whoever read one would say so."""
    for number in range(1, 13):
        add_run(store, number, "first" if number == 1 else "n")
    with store.writing() as connection:
        connection.execute(text("UPDATE run SET config = '{broken' WHERE id <> 'night-0012'"))
    assert [(run.id, run.state, run.folder) for run in store.runs()][::11] == [
        ("night-0001", "done", "/f/1"),
        ("night-0012", "done", "/f/12"),
    ]
    assert store.run("night-0012").config == store.run("night-0012"[:9] + "2").config == {}
    with pytest.raises(StoreError, match=r"beginning of 12 runs \(night-0001, night-0002"):
        store.run("night-")
    with pytest.raises(StoreError, match=r"no run 'day'; it has night-0008, .*, night-0012: give one of these"):
        store.run("day")
    monkeypatch.setenv("AUTOINTERP_STORE__URL", store_url)
    found, run_id = find_run("night-0012")
    found.close()
    assert run_id == "night-0012"
    schedule: dict[str, Any] = {"name": "s", "run": "first", "scorers": [{"kind": "pattern"}]}
    assert _run_id(store, parse_schedule(schedule, "the test")) == "night-0001"


def submitted(store_url: str, folder: Path) -> str:
    (folder / "subject").mkdir()
    (folder / "coder").mkdir()
    (folder / "corpus.txt").write_text("text")
    (folder / "run.toml").write_text(CONFIG)
    config = load_config(folder / "run.toml", (), {"AUTOINTERP_STORE__URL": store_url})
    return submit_run(config, "run", folder / "out").run_id


def test_a_process_reads_a_runs_configuration_once_and_again_when_it_has_changed(
    store: LabelStore, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = submitted(store_url, tmp_path)
    contexts, read = RunContexts(store, 2), store.run
    first = contexts.of(run_id)
    asked: list[str] = []

    def counted(wanted: str) -> Run:
        asked.append(wanted)
        return read(wanted)

    monkeypatch.setattr(store, "run", counted)
    assert all(contexts.of(run_id) is first for _ in range(5))
    assert asked == []
    other = open_store(store_url)  # as another process does
    config = other.run(run_id).config
    other.set_run_config(run_id, config | {"budget": {"tokens": 7}})
    second = contexts.of(run_id)
    assert second.config.budget.tokens == 7
    assert contexts.of(run_id) is second
    other.set_run_config(run_id, config | {"budget": {"tokens": 7}})  # the same again
    assert contexts.of(run_id) is second
    with other.writing() as connection:
        connection.execute(text("DELETE FROM run"))
    other.close()
    with pytest.raises(StoreError, match="has no run"):
        contexts.of(run_id)
    contexts.close()
