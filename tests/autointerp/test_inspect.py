"""``autointerp inspect`` on the planted world: the text, the JSON, the picture, and what is refused in a sentence."""

from __future__ import annotations

import io
import json
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from rich.console import Console

from autointerp import cli, inspection
from sae_core.coder import Fact
from sae_core.health import CoderHealth
from tests import planted_world

ROOT = Path(__file__).parents[2]


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    planted_world.build(folder, num_documents=30)
    return folder


@pytest.fixture
def inspect(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], world: Path) -> Any:
    """Runs the command in this process, on a terminal of 120 columns, from within the world's folder."""

    def run(*arguments: str | Path) -> Said:
        monkeypatch.chdir(world)
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setattr(sys, "argv", ["autointerp", "inspect", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Said(code, *capsys.readouterr())

    return run


MEASURE = ("--subject", "subject", "--corpus", "corpus.jsonl", "--tokens", "2000", "--context-length", "64")


def test_a_coder_alone_is_described(inspect: Any) -> None:
    said = inspect("coder")
    assert said.code == 0, said.err
    lines = {line.split()[0]: line for line in said.out.splitlines() if line.strip()}
    assert lines["format"].split()[1] == "sae_lens"
    assert "jumprelu" in lines["architecture"]
    assert lines["latents"].split()[1] == str(planted_world.NUM_LATENTS)
    assert f"h.0 (width {planted_world.D})" in lines["reads"]
    assert f"h.0 (width {planted_world.D})" in lines["writes"]
    assert lines["normalisation"].split()[1] == "none"
    assert "JumpReLU(threshold=0.5, rectify=True)" in lines["activation"]
    assert len(lines["fingerprint"].split()[1]) == 64
    assert "read from" in said.out
    assert "cfg.json" in said.out, "each fact has its origin"
    assert "Health" not in said.out


@pytest.mark.long
def test_the_command_as_a_user_runs_it(world: Path, tmp_path: Path) -> None:
    """In a process of its own: text, JSON and picture of one measurement."""
    command = [sys.executable, "-m", "autointerp.cli", "inspect", str(world / "coder")]
    command += ["--subject", str(world / "subject"), "--corpus", str(world / "corpus.jsonl"), "--tokens", "2000"]
    command += ["--context-length", "64", "--device", "cpu"]
    command += ["--json", str(tmp_path / "out.json"), "--picture", str(tmp_path / "rates.png")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "no progress bar where there is no terminal"

    out = json.loads((tmp_path / "out.json").read_text())
    health, saebench = out["health"], out["saebench"]
    assert 1900 < health["num_tokens"] <= 2000
    assert out["measured_on"]["num_tokens"] == health["num_tokens"]
    assert health["dead_share"] == 1 / 16
    assert saebench["misc_metrics"]["frac_alive"] == 15 / 16
    assert saebench["sparsity"]["l0"] == health["l0"] > 0
    assert saebench["model_performance_preservation"]["ce_loss_score"] == health["loss_recovered"]
    assert health["loss_increase"] == pytest.approx(health["ce_coder"] - health["ce_clean"])
    assert saebench["reconstruction_quality"]["explained_variance"] == health["saebench_explained_variance"]
    assert "mse" not in saebench["reconstruction_quality"]
    assert sum(out["firing_rates"]["num_latents"]) == 15
    assert out["firing_rates"]["num_never"] == 1
    assert len(out["firing_rates"]["log10_edges"]) == len(out["firing_rates"]["num_latents"]) + 1

    for words in (
        f"1 of 16 latents fired on none of the {health['num_tokens']:,} tokens",
        f"{health['ce_clean']:.4f} nats clean",
        f"({health['loss_increase']:+.4f})",
        f"{health['bits_per_token']:.1f}: {health['position_bits']:.1f} for which",
        "it reads the same pass",
        "log10 of the firing rate per token",
    ):
        assert words in " ".join(done.stdout.split()), words
    never = next(line for line in done.stdout.splitlines() if line.strip().startswith("never"))
    assert never.split()[1] == "1"

    picture = (tmp_path / "rates.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", picture[16:24])
    assert (width, height) == (960, 630)
    assert 10_000 < len(picture) < 300_000


def test_json_to_stdout_is_nothing_but_json(inspect: Any) -> None:
    said = inspect("coder", "--json", "-")
    assert said.code == 0
    out = json.loads(said.out)
    assert out["coder"]["hookpoints_in"] == ["h.0"]
    assert out["coder"]["num_latents"] == 16
    assert {"name", "value", "origin"} == set(out["facts"][0])
    assert "health" not in out
    measured = json.loads(inspect("coder", *MEASURE, "--json", "-").out)
    assert measured["coder"] == out["coder"]
    assert measured["health"]["l0"] > 0


def test_another_hookpoint_and_dtype_are_taken(inspect: Any) -> None:
    said = inspect("coder", "--hookpoint", "h.1", "--dtype", "bfloat16", *MEASURE, "--json", "-")
    assert said.code == 0, said.err
    out = json.loads(said.out)
    assert out["coder"]["hookpoints_out"] == ["h.1"]
    assert out["coder"]["dtype"] == "bfloat16"
    assert any(fact["name"] == "hookpoint" and fact["origin"] == "given" for fact in out["facts"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["coder", "--subject", "subject"], "--subject is given and --corpus is not"),
        (["coder", "--corpus", "corpus.jsonl"], "--corpus is given and --subject is not"),
        (["coder", "--picture", "x.png"], "give --subject and --corpus too"),
        (["coder", "--hookpoint", "h.7", *MEASURE], "'h.7' is in layer 7, but GPT2LMHeadModel has 2 layers"),
        (
            ["coder", "--hookpoint", "h.0.mlp.c_fc", *MEASURE],
            "dimensions and hookpoint h.0.mlp.c_fc of the subject carries 4",
        ),
        (["absent"], "absent"),
        (["coder", "--k", "3"], "k is given"),
        (["coder", "--input-scale", "big"], "--input-scale is big"),
        (["coder", "--dtype", "float8"], "--dtype is 'float8'; use one of"),
        (["coder", *MEASURE[:4], "--context-length", "65", "--tokens", "100"], "the subject reads at most 64"),
        (["coder", *MEASURE, "--text-field", "body"], "'body'"),
        (["coder", *MEASURE[:4], "--context-length", "64", "--tokens", "9999999"], "set --tokens to at most"),
        (["coder", *MEASURE, "--picture", "no/such/folder.png"], "--picture is 'no/such/folder.png'"),
        (["coder", "--json", "subject"], "--json is 'subject', a folder"),
        (["coder", *MEASURE, "--device", "abacus"], "abacus"),
    ],
)
def test_what_does_not_fit_is_one_sentence(inspect: Any, arguments: list[str], expected: str) -> None:
    said = inspect(*arguments)
    assert (said.code, said.out) == (2, "")
    assert said.err.count("\n") == 1
    assert expected in said.err
    assert "extraction." not in said.err


def test_a_pickle_is_read_only_where_it_is_allowed(inspect: Any) -> None:
    folder = ROOT / "tests" / "fixtures" / "coders" / "dictionary_learning" / "AutoEncoder"
    said = inspect(folder)
    assert (said.code, said.out) == (2, "")
    assert said.err.count("\n") == 1
    assert "ae.pt is a torch pickle" in said.err
    assert "--allow-pickle" in said.err
    said = inspect(folder, "--allow-pickle")
    assert said.code == 0, said.err
    assert "dictionary_learning" in said.out


def figures(**changed: Any) -> CoderHealth:
    known: dict[str, Any] = {
        name: 0.5 for name, kind in CoderHealth.__annotations__.items() if kind in ("float", float)
    }
    known |= {"num_tokens": 1000, "num_predictions": 990, "inputs_from": "clean pass"}
    known |= {"fire_count": np.array([0, 1, 100, 101, 1000]), "explained_variance_by_hookpoint": (0.25, 0.75)}
    return CoderHealth(**(known | changed))


def found_with(health: CoderHealth) -> inspection.Inspection:
    coder = planted_world.build_coder()
    object.__setattr__(coder, "hookpoints_out", ("h.0", "h.1"))
    object.__setattr__(coder, "facts", (Fact("k [bold]", "1\x1b[2J", "given"),))
    return inspection.Inspection("a/[red]coder", coder, inspection.MeasureOptions("s", "c", 1000, 64), health)


def printed(found: inspection.Inspection, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    inspection.print_inspection(found, Console(file=stream, width=120))
    stream.seek(0)
    return stream.read()


def test_the_histogram_counts_every_latent_once() -> None:
    text = printed(found_with(figures()))
    cells = [line.split() for line in text.splitlines() if line.startswith("  ") and " to " in line]
    counts = {(words[0], words[2]): int(words[3]) for words in cells}
    assert counts[("-3.0", "-2.5")] == 1, "one token of 1,000"
    assert counts[("-0.5", "0.0")] == 1, "every token"
    assert counts[("-1.0", "-0.5")] == 2
    assert sum(counts.values()) == 4
    assert "never" in text.splitlines()[-1]
    assert "40%: 2 fire on more than 10%" in text
    assert "by hookpoint" in text
    assert "h.1 .7500" in text
    assert "it reads the clean pass" in text


def test_names_from_files_cannot_style_the_terminal_and_a_poor_one_gets_plain_bars() -> None:
    text = printed(found_with(figures()), "ascii")
    assert "a/[red]coder" in text
    assert "k [bold]" in text
    assert "\x1b" not in text
    assert "#" in text


def test_what_is_not_defined_is_null_and_a_dash(tmp_path: Path) -> None:
    nothing = figures(
        fire_count=np.zeros(5, dtype=np.int64), kl_zero=0.0, relative_reconstruction_bias=math.nan, ce_zero=0.5
    )
    out = json.loads(json.dumps(inspection.inspection_json(found_with(nothing)), allow_nan=False))
    assert out["saebench"]["shrinkage"]["relative_reconstruction_bias"] is None
    assert out["health"]["loss_recovered"] is out["health"]["kl_score"] is None
    text = printed(found_with(nothing))
    assert "loss recovered" in text
    assert "score –" in text
    inspection.draw_firing_rates(found_with(nothing), tmp_path / "silent")
    assert (tmp_path / "silent").read_bytes().startswith(b"\x89PNG")
    one = figures(num_tokens=1, fire_count=np.array([1, 0, 0, 0, 0]))
    inspection.draw_firing_rates(found_with(one), tmp_path / "one")
    assert "never" in printed(found_with(one))
