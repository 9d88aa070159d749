"""The command line on the planted world: what a user sees, and what is refused in a sentence with nothing written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest

from autointerp import cli
from tests import planted_world

ROOT = Path(__file__).parents[2]
CONFIG = """
chunk_latents = 6
[subject]
model = "subject"
[[coders]]
path = "coder"
[corpus]
path = "corpus.jsonl"
[extraction]
num_tokens = 6000
context_length = 64
window_length = 16
shard_tokens = 2500
[controls]
random_directions = 4
[[explainers]]
kind = "pattern"
[[scorers]]
kind = "pattern"
[[scorers]]
kind = "intervention"
windows = 4
steered_latents = 4
steering_prompts = 4
"""


class Said(NamedTuple):
    code: int
    out: str
    err: str


class Shell:
    """Runs the command in this process, so that torch is loaded once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str | Path) -> Said:
        self._monkeypatch.setattr(sys, "argv", ["autointerp", *map(str, arguments)])
        self._capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Said(code, *self._capsys.readouterr())


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    for name in ("AUTOINTERP_FAULT", "AUTOINTERP_STORE__URL"):
        monkeypatch.delenv(name, raising=False)
    return Shell(monkeypatch, capsys)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    planted_world.build(folder, num_documents=80)
    (folder / "run.toml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def finished(world: Path) -> Path:
    """The output folder of a whole run."""
    out = world / "out"
    command = [sys.executable, "-m", "autointerp.cli", "run", str(world / "run.toml"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("where the time went", "labels, all alive latents", "Best labels"):
        assert word in done.stdout
    assert "extract: " in done.stderr, "without a terminal progress is plain lines"
    return out


def test_a_run_leaves_the_files_that_others_rely_on(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"dictionary", "summary.json", "overview.png", "autointerp.db", "run.json"} <= names
    assert (finished / "dictionary" / "_manifest.json").is_file()
    assert (finished / "overview.png").read_bytes().startswith(b"\x89PNG")
    assert not list(finished.rglob("*.tmp*")), "no half-written file stays"
    assert not list(finished.rglob("partials"))
    table = pd.read_parquet(finished / "dictionary")
    assert table["latent"].tolist() == list(range(planted_world.NUM_LATENTS))
    assert set(table["status"]) == {"labelled", "dead", "rare"}
    assert table["status"][3] == "dead"
    assert table["status"][4] == "rare", "all its windows on the score side repeat the explain side"
    assert "fires in 0 of" in table["failure_message"][4]
    assert table["num_judged"][4] == table["num_judged"][0] > 0
    assert {
        "source",
        "label",
        "fire_rate",
        "precision_low",
        "recall_high",
        "precision_method",
        "f1",
        "causal_effect",
    } <= set(table)
    assert {"coder_fingerprint", "run_id"} <= set(table)
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["run"]["run_id"] == table["run_id"][0] == json.loads((finished / "run.json").read_text())["run_id"]


def test_running_again_says_that_there_is_nothing_to_do(finished: Path, world: Path, shell: Shell) -> None:
    before = (finished / "autointerp.db").read_bytes()
    said = shell("run", world / "run.toml", "--out", finished)
    assert said.code == 0
    assert "there is nothing to do" in said.out
    assert (finished / "autointerp.db").read_bytes() == before


def test_status_show_and_export(
    finished: Path, world: Path, tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = json.loads((finished / "run.json").read_text())["run_id"]
    for target in (finished, finished / "autointerp.db", f"sqlite:///{finished / 'autointerp.db'}"):
        said = shell("status", target)
        assert said.code == 0
        assert f"run {run_id} (run): done" in said.out
    monkeypatch.chdir(world)
    assert run_id in shell("status").out, "runs below the current folder are found"
    for name in (finished, run_id, run_id[:5]):
        said = shell("show", name, "1")
        assert said.code == 0
        assert '"self" after "("' in said.out
    assert "dead" in shell("show", run_id, "3", "--source", "coder").out
    said = shell("export", run_id, tmp_path / "copy")
    assert said.code == 0
    assert "16 latents" in said.out
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "copy"), pd.read_parquet(finished / "dictionary"))


def test_results_that_were_deleted_are_written_again(finished: Path, world: Path, shell: Shell, tmp_path: Path) -> None:
    before = pd.read_parquet(finished / "dictionary")
    (finished / "summary.json").unlink()
    shutil.rmtree(finished / "dictionary")
    said = shell("run", world / "run.toml", "--out", finished)
    assert said.code == 0
    assert "summary.json" in said.out
    assert "written again" in said.out
    pd.testing.assert_frame_equal(pd.read_parquet(finished / "dictionary"), before)
    assert "corpus" in json.loads((finished / "summary.json").read_text())
    assert "nothing to do" in shell("run", world / "run.toml", "--out", finished).out


def test_a_dead_coder_runs_to_the_end(world: Path, tmp_path: Path, shell: Shell) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(world / "coder", world / "silent", dirs_exist_ok=True)
    tensors = load_file(world / "silent" / "sae_weights.safetensors")
    save_file({**tensors, "b_enc": tensors["b_enc"] * 0 - 1e6}, world / "silent" / "sae_weights.safetensors")
    said = shell("run", world / "run.toml", "--out", tmp_path / "out", "--set", "coders.0.path=silent")
    assert said.code == 0, said.err
    assert "0 of 16 latents labelled · 16 dead" in said.out
    assert "corpus " in said.err, "the fingerprint is told"
    assert "directions" in said.out, "where the time went"
    assert next(iter(json.loads((tmp_path / "out" / "summary.json").read_text())["timings_s"])) == "load"


def test_an_output_path_that_cannot_be_a_folder_is_a_sentence(
    finished: Path, world: Path, tmp_path: Path, shell: Shell
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    for given in (tmp_path / "file" / "sub", tmp_path / "dangling", tmp_path / ("x" * 300)):
        said = shell("run", world / "run.toml", "--out", given)
        assert (said.code, said.err.count("\n")) == (2, 1), said
        assert "--out" in said.err
    said = shell("export", finished, tmp_path / "file" / "sub")
    assert said.code == 2
    assert "cannot be written to" in said.err or "is a file" in said.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["show", "RUN", "99"], "latent 99 of 'coder' has no label"),
        (["show", "RUN", "1", "--source", "codr"], "no source 'codr': did you mean 'coder'"),
        (["show", "zzz", "1"], "no run 'zzz' was found"),
        (["show", "WORLD", "1"], "is not the output of a run"),
        (["status", "WORLD/absent"], "there is no store at"),
        (["export", "RUN", "WORLD/subject"], "subject"),
    ],
)
def test_questions_without_an_answer_are_refused(
    finished: Path, world: Path, shell: Shell, arguments: list[str], expected: str
) -> None:
    given = [a.replace("RUN", str(finished)).replace("WORLD", str(world)) for a in arguments]
    said = shell(*given)
    assert said.code == 2
    assert expected in said.err
    assert said.err.count("\n") == 1


def test_the_folder_of_another_run_is_refused(finished: Path, world: Path, shell: Shell) -> None:
    said = shell("run", world / "run.toml", "--out", finished, "--set", "seed=5")
    assert said.code == 2
    assert "belongs to another run" in said.err
    assert "(seed was 0, is 5)" in said.err
    assert "choose another --out, or delete" in said.err


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (["subject.model=./absent"], "absent"),
        (["coders.0.path=./absent"], "absent"),
        (["corpus.path=./absent.jsonl"], "absent.jsonl"),
        (["coders.0.hookpoint=h.7"], "'h.7' is in layer 7, but GPT2LMHeadModel has 2 layers"),
        (["coders.0.hookpoint=h.0.mlp.c_fc"], "dimensions"),
        (["extraction.num_tokns=5"], "did you mean 'extraction.num_tokens'"),
        (["explainers.0.kind=patern"], "did you mean 'pattern'"),
        (["latents=0:17"], "has 16 latents"),
        (["corpus.path=empty"], "empty"),
        (["corpus.text_field=body"], "has no text under 'body'"),
        (["extraction.num_tokens=10000000"], "extraction.num_tokens"),
        (["coders.0.path=nan"], "NaN"),
        (["store.url=nonsense"], "store.url"),
        (["store.url=postgresql://h:port/x"], "store.url"),
        (["store.url=mysql://h/x"], "allowed are 'sqlite'"),
        (["explainers=[]"], "explainers is an empty list"),
        (["scorers.1.kind=pattern", "scorers.1={kind='pattern'}"], "one of each kind is allowed"),
        (["coders.0.name=a.random"], "names that end in '.random'"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    world: Path, tmp_path: Path, shell: Shell, sets: list[str], expected: str
) -> None:
    (world / "empty").mkdir(exist_ok=True)
    if not (world / "nan").exists():
        import torch
        from safetensors.torch import load_file, save_file

        shutil.copytree(world / "coder", world / "nan")
        tensors = load_file(world / "nan" / "sae_weights.safetensors")
        tensors["W_dec"] = torch.full_like(tensors["W_dec"], float("nan"))
        save_file(tensors, world / "nan" / "sae_weights.safetensors")
    out = tmp_path / "out"
    said = shell("run", world / "run.toml", "--out", out, *(a for s in sets for a in ("--set", s)))
    assert said.code == 2, said
    errors = [line for line in said.err.splitlines() if line.startswith("autointerp: ")]
    assert len(errors) == 1
    assert expected in errors[0]
    assert "Traceback" not in said.err
    assert not out.exists()


def test_a_full_disk_is_seen_before_anything_is_written(
    world: Path, tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10 * 2**20))
    said = shell("run", world / "run.toml", "--out", tmp_path / "out")
    assert said.code == 2
    assert "10 MiB are free there: free some space" in said.err
    assert not (tmp_path / "out").exists()


def test_a_coder_that_changed_under_a_run_is_refused(world: Path, tmp_path: Path, shell: Shell) -> None:
    from autointerp.config import load_config
    from autointerp.pipeline.starting import start_run

    folder = tmp_path / "moved"
    shutil.copytree(world, folder, ignore=shutil.ignore_patterns("out"))
    started = start_run(load_config(folder / "run.toml"), "x", folder / "o")
    started.context.store.close()
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "coder" / "sae_weights.safetensors")
    tensors["W_dec"] = 2 * tensors["W_dec"]
    save_file(tensors, folder / "coder" / "sae_weights.safetensors")
    said = shell("run", folder / "run.toml", "--out", folder / "o")
    assert said.code == 2
    assert "has other weights now than when the run" in said.err


def test_help_and_version(shell: Shell) -> None:
    assert shell("--version").out.startswith("autointerp ")
    for command in ("run", "status", "show", "export"):
        assert command in shell("--help").out
        assert shell(command, "--help").code == 0
    assert shell("rnu").code == 2


def test_reading_commands_load_no_torch(finished: Path, tmp_path: Path) -> None:
    for arguments in (
        ["status", str(finished)],
        ["show", str(finished), "1"],
        ["export", str(finished), str(tmp_path / "d")],
    ):
        code = (
            "import sys; from autointerp import cli\n"
            f"sys.argv = ['autointerp', *{arguments!r}]\n"
            "try: cli.main()\n"
            "except SystemExit as ended: assert not ended.code, ended.code\n"
            "print(sorted({'torch', 'transformers', 'celery'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.stdout.splitlines()[-1] == "[]", done.stderr
