"""Extraction in whole runs: in passes, killed and gone on with, refused, on a broken subject; against an unbroken run's bytes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from autointerp.config import load_config
from autointerp.pipeline import memory_check
from autointerp.pipeline.finding import find_run
from autointerp.pipeline.starting import start_run
from sae_core.errors import ConfigError
from tests import planted_world
from tests.cli_process import run_cli
from tests.planted_world import VOCABULARY

ROOT = Path(__file__).parents[2]
CONFIG = """
[subject]
model = "subject"
[[coders]]
path = "coder"
name = "planted"
[corpus]
path = "corpus.jsonl"
[extraction]
num_tokens = 9000
context_length = 64
window_length = 16
shard_tokens = 2500
pool_windows = 150
[controls]
random_directions = 4
shuffled_latents = 1
[[scorers]]
kind = "pattern"
skip_repeated = false
"""
STORES = ("planted", "planted.random")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    planted_world.build(folder)
    (folder / "run.toml").write_text(CONFIG)
    return folder


def run(world: Path, out: str, *more: str, fault: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"AUTOINTERP_FAULT": fault} if fault else {})
    return run_cli(["run", str(world / "run.toml"), "--out", str(world / out), *more], environment)


def bytes_of(out: Path) -> dict[str, str]:
    """sha256 of every file of the exemplar stores but the index, which names the place of the coder."""
    files = {}
    for source in STORES:
        for path in sorted((out / "sources" / source / "exemplars").iterdir()):
            data = path.read_bytes()
            if path.name == "index.json":
                data = json.dumps(json.loads(data)["sha256"]).encode()
            files[f"{source}/{path.name}"] = hashlib.sha256(data).hexdigest()
    return files


@pytest.fixture(scope="module")
def unbroken(world: Path) -> dict[str, str]:
    done = run(world, "unbroken")
    assert done.returncode == 0, done.stderr
    assert "extraction of 16 latents with 10 + 20 exemplars a side needs about" in done.stderr + done.stdout
    assert "however long the corpus" in " ".join((done.stderr + done.stdout).split())
    return bytes_of(world / "unbroken")


@pytest.mark.long
def test_passes_over_ranges_of_latents_give_the_same_bytes(world: Path, unbroken: dict[str, str]) -> None:
    done = run(world, "passes", "--set", "extraction.latents_per_pass=5")
    assert done.returncode == 0, done.stderr
    store, run_id = find_run(str(world / "passes"), None)
    chunks = [chunk.spec for chunk in store.chunks(run_id) if chunk.stage == "extract"]
    assert sorted({tuple(spec["latents"]) for spec in chunks}) == [(0, 5), (5, 10), (10, 15), (15, 16)]
    assert bytes_of(world / "passes") == unbroken


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param("extract:after_claim:2", marks=pytest.mark.long),
        "extract:before_write:2",
        pytest.param("merge:after_claim:1", marks=pytest.mark.long),
    ],
)
def test_a_killed_extraction_goes_on_with_the_shards_that_are_missing(
    world: Path, unbroken: dict[str, str], fault: str
) -> None:
    out = "killed-" + fault.replace(":", "-")
    killed = run(world, out, fault=fault)
    assert killed.returncode == -9
    assert (world / out / "sources" / "planted" / "partials" / "000000.safetensors").is_file()
    done = run(world, out)
    assert done.returncode == 0, done.stderr
    store, run_id = find_run(str(world / out), None)
    stage, _, number = fault.partition(":")[0], *fault.rpartition(":")[1:]
    attempts = [chunk.attempts for chunk in store.chunks(run_id) if chunk.stage == stage]
    assert attempts.count(2) == 1, "only what was in hand is done again"
    assert attempts[0] == (2 if number == "1" else 1)
    assert bytes_of(world / out) == unbroken


@pytest.mark.long
def test_another_seed_draws_another_sample(world: Path, unbroken: dict[str, str]) -> None:
    done = run(world, "seeded", "--set", "seed=1")
    assert done.returncode == 0, done.stderr
    assert bytes_of(world / "seeded") != unbroken
    again = run(world, "again")
    assert again.returncode == 0, again.stderr
    assert bytes_of(world / "again") == unbroken


def test_what_does_not_fit_is_refused_before_anything_is_written(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_check, "available_bytes", lambda: 100_000)
    config = load_config(world / "run.toml")
    with pytest.raises(ConfigError, match=r"needs about [\d.]+ \w+ of memory beside the weights, and 1 MiB are free: "):
        start_run(config, "run", world / "big")
    assert not (world / "big").exists()


@pytest.mark.long
def test_a_broken_subject_stops_the_run_or_its_contexts_are_counted(world: Path) -> None:
    broken = world / "broken"
    broken.mkdir()
    for path in (world / "subject").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = load_file(broken / "model.safetensors")
    table = next(name for name in weights if name.endswith("wte.weight"))
    # finite, but beyond what a float32 can square
    weights[table][VOCABULARY.index("self")] = 3e38
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    given = ("--set", f'subject.model="{broken}"')
    stopped = run(world, "stopped", *given)
    assert stopped.returncode == 2
    assert "NaN" in stopped.stderr
    assert "first in batch" in stopped.stderr
    assert "document" in stopped.stderr
    done = run(
        world, "skipped", *given, "--set", 'extraction.non_finite="skip"', "--set", "controls.random_directions=0"
    )
    index = json.loads((world / "skipped" / "sources" / "planted" / "exemplars" / "index.json").read_text())
    assert index["skipped_contexts"] > 0
    assert index["skipped_tokens"] > index["skipped_contexts"]
    assert f"{index['skipped_contexts']:,} contexts" in " ".join((done.stdout + done.stderr).split())
