"""A whole run of the planted world in other tools' formats: every window that is shown fires where the latent's meaning says."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from autointerp.commands.opening import open_context
from autointerp.exchange import export_exchange, format_of
from autointerp.exchange.feature_files import FeatureFiles
from tests import planted_world
from tests.autointerp.test_cli import CONFIG

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
FIRST_OF_CONTEXT = 8
"""The latent that fires on the first token behind the BOS."""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    planted_world.build(folder, num_documents=80)
    (folder / "run.toml").write_text(CONFIG)
    command = [sys.executable, "-m", "autointerp.cli", "run", str(folder / "run.toml"), "--out", str(folder / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "out"


def check_window(latent: int, tokens: list[str], values: list[float]) -> None:
    words = [token.strip() for token in tokens]
    assert len(words) == len(values)
    for place, value in enumerate(values):
        if words[place] == planted_world.BOS:
            assert value == 0
        elif place > 0 and latent == FIRST_OF_CONTEXT:
            assert value == pytest.approx(float(words[place - 1] == planted_world.BOS), abs=1e-4)
        elif place > 0:  # of a window's first token the one before is not shown
            assert value == pytest.approx(planted_world.MEANING[latent](words, place), abs=1e-4)


def test_windows_and_labels_of_a_real_run(out: Path, tmp_path: Path) -> None:
    context = open_context(str(out), None)
    table = pd.read_parquet(out / "dictionary").set_index("latent")
    labels = {int(n): str(text) for n, text in table.label.dropna().items()}
    export_exchange(context, tmp_path / "ct", format_of("circuit-tracer"))
    files = FeatureFiles(tmp_path / "ct" / "features")
    assert files.layers == [0]
    for latent in range(planted_world.NUM_LATENTS):
        feature = files.feature(0, latent)
        assert feature is not None
        examples = [example for group in feature["examples_quantiles"] for example in group["examples"]]
        assert bool(examples) == (table.status[latent] != "dead")
        assert feature["activation_frequency"] == pytest.approx(table.fire_rate[latent])
        assert sum(feature["histogram"]) == table.fire_count[latent]
        for example in examples:
            check_window(latent, example["tokens"], example["tokens_acts_list"])

    export_exchange(context, tmp_path / "np", format_of("neuronpedia"))
    within = tmp_path / "np" / "v1" / "subject" / "0-autointerp"
    lines: dict[str, list[dict[str, Any]]] = {}
    for kind in ("features", "activations", "explanations"):
        with gzip.open(within / kind / "batch-0.jsonl.gz", "rt") as file:
            lines[kind] = [json.loads(line) for line in file]
    for line in lines["activations"]:
        check_window(int(line["index"]), line["tokens"], line["values"])
    for line in lines["features"]:
        assert line["frac_nonzero"] == pytest.approx(table.fire_rate[int(line["index"])])
        assert line["maxActApprox"] == pytest.approx(max(table.max_activation[int(line["index"])], 0))
    told = {int(line["index"]): line["description"] for line in lines["explanations"]}
    assert told == labels
