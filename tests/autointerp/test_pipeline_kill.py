"""A real run on the planted world is killed at ten seeded moments, goes on each time, and ends as if nothing had been."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests import planted_world
from tests.autointerp.test_cli import CONFIG

ROOT = Path(__file__).parents[2]
SEED = 20_260_101
EVENTS = ("after_claim", "before_write", "after_write")
STAGES = (
    "tokenize", "directions", "extract", "merge", "probe", "explain", "intervene", "score", "controls", "label", "export", "summarise",
)  # fmt: skip

# one process loads torch; each start is a fork of it, so that ten of them take seconds
FORKS = """
import json, os, sys
import torch, transformers, sae_core.extraction, sae_core.intervention.steering, sae_core.probe, sae_core.random_directions, sae_core.subject
from autointerp import cli
import autointerp.pipeline.attaching, autointerp.pipeline.stages, autointerp.pipeline.starting, autointerp.report.overview
config, codes = sys.argv[1], []
for out, fault in json.loads(sys.argv[2]):
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        os.environ["AUTOINTERP_FAULT"] = fault
        sys.argv = ["autointerp", "run", config, "--out", out]
        try:
            cli.main()
        except SystemExit as ended:
            os._exit(int(ended.code or 0))
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    codes.append(-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
print("codes", json.dumps(codes))
"""


def moments() -> list[str]:
    """Ten fault points in ten different stages, drawn by the seed, in the order in which a run passes them."""
    rng = np.random.default_rng(SEED)
    stages = sorted(rng.permutation(len(STAGES))[:10].tolist())
    return [f"{STAGES[stage]}:{EVENTS[int(rng.integers(3))]}:1" for stage in stages]


@pytest.mark.long
def test_ten_kills_change_nothing(tmp_path: Path) -> None:
    planted_world.build(tmp_path, num_documents=80)
    (tmp_path / "run.toml").write_text(CONFIG)
    faults = moments()
    starts = [(str(tmp_path / "killed"), fault) for fault in [*faults, ""]] + [(str(tmp_path / "whole"), "")]
    command = [sys.executable, "-c", FORKS, str(tmp_path / "run.toml"), json.dumps(starts)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    codes = json.loads(done.stdout.rpartition("codes ")[2] or "[]")
    assert codes == [-9] * len(faults) + [0, 0], f"seed {SEED}, {faults}\n{done.stderr[-2000:]}"
    killed, whole = (pd.read_parquet(tmp_path / name / "dictionary") for name in ("killed", "whole"))
    pd.testing.assert_frame_equal(killed.drop(columns="created_at"), whole.drop(columns="created_at"))
    figures = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("killed", "whole")]
    for figure in figures:
        for key in ("timings_s", "total_s"):
            figure.pop(key)
    assert figures[0] == figures[1]
    assert not list((tmp_path / "killed").rglob("*tmp*"))
