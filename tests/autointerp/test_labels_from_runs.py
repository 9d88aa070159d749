"""Whole runs that take their labels from another one: what its explainers were shown and what people saw is not judged again.

Checked on the prompts as the server received them and on the windows that the stores name.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import pytest

from autointerp.llm.server import RunningServer
from autointerp.llm.server.ledger import Call
from sae_core.exemplar_store import ExemplarStore
from sae_core.records import Side
from tests import planted_world
from tests.autointerp.test_llm_runs import (
    CONFIG,
    answered,
    dictionary,
    environment,
    is_explanation,
    oracle,
    run,
    windows_of,
    write_config,
)
from tests.cli_process import run_cli
from tests.planted_text import SENTENCES

pytestmark = pytest.mark.long

EDITED = 5
TEXT = SENTENCES[EDITED] + " indeed"
DETECTION = '[[scorers]]\nkind = "detection"\n[labels]\nfrom = "{}"\n'


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels-world")
    planted_world.build(folder)
    return folder


@pytest.fixture(scope="module")
def first(world: Path) -> tuple[Path, list[Call], set[str]]:
    """A run whose label of one latent a person edits afterwards: its folder, what the server saw of the run, and the windows
    of that latent that were judged in it."""
    out = world / "first"
    with RunningServer(oracle(world)) as server:
        config = write_config(world, "first", server.url)
        done = run(config, out)
        assert done.returncode == 0, done.stderr
        calls, judged = server.calls, judged_places(out, EDITED)
        command("review", out, EDITED, "--edit", TEXT, "--by", "ann")
    assert len(judged) > 10
    return out, calls, judged


def command(*words: object) -> str:
    """What a command prints; it must go well."""
    done = run_cli(list(map(str, words)), environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


def judged_places(out: Path, latent: int) -> set[str]:
    with sqlite3.connect(out / "autointerp.db") as connection:
        rows = connection.execute(
            "SELECT items FROM verdict WHERE source = 'planted' AND latent = ? AND explainer NOT LIKE 'human%'",
            (latent,),
        ).fetchall()
    return {place for (items,) in rows for place in json.loads(items)["windows"]}


def long_windows(calls: Iterable[Call]) -> set[str]:
    """The quoted windows of some prompts; those of a few tokens, at the end of a document, can be equal by chance."""
    return {text for call in calls for text in windows_of(call) if len(text) > 24}


def config_of(world: Path, name: str, url: str, labels: Path, seed: int = 0, more: str = "") -> Path:
    path = world / f"{name}.toml"
    path.write_text(f"seed = {seed}\n" + CONFIG.replace("URL", url) + DETECTION.format(labels) + more)
    return path


def test_with_another_seed_nothing_that_an_explainer_was_shown_is_judged(
    world: Path, first: tuple[Path, list[Call], set[str]]
) -> None:
    labels, before, _ = first
    out = world / "other-seed"
    with RunningServer(oracle(world)) as server:
        done = run(config_of(world, "other-seed", server.url, labels, seed=1), out)
        assert done.returncode == 0, done.stderr
        judged = long_windows(answered(server.calls))
    shown = long_windows(call for call in answered(before) if is_explanation(call))
    assert len(shown) > 100
    assert len(judged) > 100
    assert not shown & judged
    table = dictionary(out)
    assert set(table[table.status == "labelled"].label_sides) == {"held_back"}
    # the person who edited saw windows of the first run's score side, which are others' text and places here
    seen, asked = texts_at(labels, first[2]), texts_at(out, judged_places(out, EDITED))
    assert len(seen) > 10
    assert len(asked) > 10
    assert not seen & asked


def texts_at(out: Path, places: set[str]) -> set[tuple[int, ...]]:
    """Token ids of the windows of the score side at some places, of those that are no short ends of documents."""
    pool = ExemplarStore.open(out / "sources" / "planted" / "exemplars").pool(Side.SCORE)
    named = (f"{context}:{position}" for context, position in zip(pool.context, pool.position, strict=True))
    rows = [row for row, name in enumerate(named) if name in places]
    texts = {tuple(int(token) for token in pool.tokens[row, pool.context_tokens :] if token >= 0) for row in rows}
    return {text for text in texts if len(text) > 12}


def test_an_edit_counts_at_once_and_is_judged_on_windows_that_the_person_has_not_seen(
    world: Path, first: tuple[Path, list[Call], set[str]]
) -> None:
    labels, _, seen = first
    assert dictionary(labels).label[EDITED] != TEXT  # written at the end of the run
    exported = world / "exported"
    command("export", labels, exported)
    for name, given in (("same-seed", labels), ("from-export", exported)):
        out = world / name
        with RunningServer(oracle(world)) as server:
            done = run(config_of(world, name, server.url, given), out)
        assert done.returncode == 0, done.stderr
        table = dictionary(out)
        assert table.label[EDITED] == TEXT, name
        assert table.label_sides[EDITED] == "same"
        judged = judged_places(out, EDITED)
        assert len(judged) > 10
        assert not judged & seen, name
        others = table[(table.status == "labelled") & (table.index != EDITED)]
        assert set(others.label_sides) == {"same"}


def test_a_dictionary_of_another_split_is_refused_and_where_allowed_it_is_said(
    world: Path, first: tuple[Path, list[Call], set[str]]
) -> None:
    exported = world / "exported-again"
    command("export", first[0], exported)
    with RunningServer(oracle(world)) as server:
        refused = run(config_of(world, "refused", server.url, exported, seed=1), world / "refused")
        assert refused.returncode == 2
        assert "its seed is 0, this run's 1" in refused.stderr
        assert "allow_other_split = true" in refused.stderr
        assert not (world / "refused").exists()
        out = world / "allowed"
        done = run(config_of(world, "allowed", server.url, exported, seed=1, more="allow_other_split = true\n"), out)
        assert done.returncode == 0, done.stderr
    labelled = dictionary(out)[dictionary(out).status == "labelled"]
    assert set(labelled.label_sides) == {"unknown"}
    assert json.loads((out / "summary.json").read_text())["labels"]["sides"] == {"unknown": len(labelled)}
    assert "it is not known which windows their writers were shown" in " ".join(done.stdout.replace("│", " ").split())
    said = " ".join(command("show", out, 1).split())
    assert "windows that its writer was shown may be among those scored" in said
