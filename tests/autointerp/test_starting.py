"""Starts that meet: in one folder, in one store, with another configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autointerp.config import RunConfig, load_config
from autointerp.llm.prior_calls import PriorCalls
from autointerp.pipeline import starting
from autointerp.pipeline.folder import RunFolder
from autointerp.pipeline.starting import first_difference, start_run
from sae_core.errors import ConfigError, StoreError
from sae_core.records import Source
from tests.autointerp.test_config import MINIMAL


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL)
    source = Source("coder", "m", "0", "layers.0", "coder", "0" * 64, 4)
    monkeypatch.setattr(starting, "preflight", lambda config, folder: ([source], {}, "", PriorCalls()))
    return path


def meanwhile(monkeypatch: pytest.MonkeyPatch, other: RunConfig, out: Path) -> list[str]:
    """While the next start checks its input, another one starts and is done with it."""
    checked, begun = starting.preflight, []

    def slow(config: RunConfig, folder: Any) -> Any:
        monkeypatch.setattr(starting, "preflight", checked)
        begun.append(start_run(other, "other", out).context.run_id)
        return checked(config, folder)

    monkeypatch.setattr(starting, "preflight", slow)
    return begun


def test_a_start_that_was_overtaken_by_another_configuration_gives_way(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    begun = meanwhile(monkeypatch, load_config(file, ["seed=1"]), out)
    with pytest.raises(StoreError, match=r"belongs to another run, .*\(seed was 1, is 0\)"):
        start_run(load_config(file), "late", out)
    again = start_run(load_config(file, ["seed=1"]), "again", out)
    assert again.context.run_id == begun[0]


def test_a_start_that_was_overtaken_by_its_like_joins_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = meanwhile(monkeypatch, load_config(file), tmp_path / "out")
    late = start_run(load_config(file), "late", tmp_path / "out")
    assert late.context.run_id == begun[0]
    assert len(late.context.store.runs()) == 1
    late.undo_if_nothing_done()
    assert late.context.store.has_run(begun[0]), "a run that another start made is not undone"


def test_folders_that_share_a_store_keep_their_runs_apart(file: Path, tmp_path: Path) -> None:
    shared = f"store.url=sqlite:///{tmp_path}/shared.db"
    one = start_run(load_config(file), "one", tmp_path / "one").context
    two = start_run(load_config(file, [shared]), "two", tmp_path / "two").context
    assert one.run_id == two.run_id, "each is the first of its store"
    with pytest.raises(StoreError, match=r"kept in its own autointerp\.db, and store\.url now asks for .*shared\.db"):
        start_run(load_config(file, [shared]), "one", tmp_path / "one")
    with pytest.raises(StoreError, match=r"set store\.url to"):
        start_run(load_config(file), "two", tmp_path / "two")
    three = start_run(load_config(file, [shared]), "three", tmp_path / "three").context
    assert three.run_id.endswith("-2")
    (tmp_path / "three" / "run.json").write_text((tmp_path / "two" / "run.json").read_text())
    with pytest.raises(StoreError, match="is that of the folder"):
        start_run(load_config(file, [shared]), "three", tmp_path / "three")
    (tmp_path / "two").rename(tmp_path / "moved")
    assert start_run(load_config(file, [shared]), "two", tmp_path / "moved").context.run_id == two.run_id


def test_a_refused_start_leaves_no_folder_of_its_own(file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    started = start_run(load_config(file), "x", tmp_path / "mine" / "a" / "b")
    started.undo_if_nothing_done()
    assert list((tmp_path / "mine").iterdir()) == []


def test_the_first_difference_is_named() -> None:
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1}}) == ""
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 2}}) == "a.b was 1, is 2"
    assert first_difference({"c": [{"k": "x"}]}, {"c": [{"k": "y"}]}) == "c.0.k was 'x', is 'y'"
    assert first_difference({}, {"new": 3}) == "new was not set, is 3"


def test_labels_that_predict_nothing_are_not_put_in_their_latents_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SettingsAreFine(Exception):
        pass

    def further(*_: object) -> None:
        raise SettingsAreFine

    monkeypatch.setattr(starting, "check_endpoints", further)
    path = tmp_path / "run.toml"
    endpoint = '[[endpoints]]\nkind = "openai"\nname = "one"\nbase_url = "http://127.0.0.1:1/v1"\nmodel = "m"\n'
    explainer = '[[explainers]]\nkind = "max_activating"\n'
    substitution = '[[scorers]]\nkind = "substitution"\n'

    def check(more: str) -> None:
        path.write_text(MINIMAL + endpoint + explainer + substitution + more)
        starting.preflight(load_config(path), RunFolder(tmp_path / "out"))

    with pytest.raises(
        ConfigError, match=r"labels of 'max_activating' predict no activations: add .*kind = \"pattern\""
    ):
        check("")
    for enough in (
        "latents = 0\ncontexts = 0\n",
        '[[explainers]]\nkind = "pattern"\n',
        '[[scorers]]\nkind = "simulation"\n',
    ):
        with pytest.raises(SettingsAreFine):
            check(enough)
