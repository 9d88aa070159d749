"""Labels put in their latents' place in a whole run on the planted world, whose patterns are the truth or far from it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from autointerp.evidence import LatentEvidence
from autointerp.patterns.index import PoolIndex
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.dictionary_rows import latent_row
from autointerp.pipeline.finding import find_run
from autointerp.pipeline.stage import ChunkSpec
from autointerp.pipeline.stages import substitute
from autointerp.pipeline.stages.substitute import donors_of
from autointerp.pipeline.starting import open_run
from autointerp.pipeline.substituting import (
    LatentWindows,
    PlacedLabel,
    chosen_labels,
    context_pool,
    dealt_anew,
    exemplar_pool,
    judged_windows,
    sampled_latents,
)
from autointerp.pipeline.substitution_record import substitution_record
from autointerp.predictions.base import Predicted, PredictedWindow, TokenPredictor, WindowPredictor
from autointerp.scorers.substitution import SubstitutionScorer
from sae_core.intervention.substitution_evidence import OWN, JointSubstitutionEvidence, SubstitutionEvidence
from sae_core.records import Origin, Side
from tests import planted_world

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
num_tokens = 15000
context_length = 64
window_length = 16
[controls]
random_directions = 0
[[explainers]]
kind = "pattern"
[[scorers]]
kind = "pattern"
skip_repeated = false
[[scorers]]
kind = "substitution"
latents = 12
windows = 12
contexts = 16
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    world = tmp_path_factory.mktemp("world")
    planted_world.build(world)
    (world / "run.toml").write_text(CONFIG)
    command = [sys.executable, "-m", "autointerp.cli", "run", str(world / "run.toml"), "--out", str(world / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    store, run_id = find_run(str(world / "out"))
    return open_run(store, run_id, world / "out")


@pytest.fixture(scope="module")
def table(run: RunContext) -> pd.DataFrame:
    return pd.read_parquet(run.folder.dictionary).set_index("latent")


def evidence(run: RunContext) -> SubstitutionEvidence:
    return SubstitutionEvidence.load(run.folder.evidence("planted", "substitution", 0))


def test_labels_that_are_the_truth_keep_nearly_everything(run: RunContext, table: pd.DataFrame) -> None:
    measured = table[table["substitution"].notna()]
    assert len(measured) == 12
    assert table.loc[3, "status"] == "dead"
    assert 3 not in measured.index
    assert (measured["substitution"] > 0.9).all(), (
        "patterns of the planted world are exact up to the activations' spread"
    )
    assert (measured["substitution_high"] <= 1).all()
    low = measured["substitution_low"].dropna()
    assert (low <= measured.loc[low.index, "substitution"]).all()
    assert (measured["substitution"] - measured["substitution_shuffled"] > 0.5).all()
    assert measured["substitution_failure"].isna().all()
    assert table.loc[~table.index.isin(measured.index), "substitution_failure"].isna().all(), "not tried is no failure"


def test_show_says_the_same_and_more(run: RunContext, table: pd.DataFrame) -> None:
    latent = int(table["substitution"].first_valid_index())  # type: ignore[arg-type]
    row = latent_row(run, "planted", latent)
    assert row["substitution"] == table.loc[latent, "substitution"]
    assert row["substitution_ablation_kl"] > 0
    assert row["substitution_windows"] <= 12


def test_the_block_has_all_at_once_with_its_controls(run: RunContext) -> None:
    block = substitution_record(run)
    assert block is not None
    json.dumps(block)
    source = block["sources"]["planted"]
    assert source["latents"]["num"] == source["latents"]["num_scored"] == 12
    whole = source["all_at_once"]
    assert (whole["num_latents"], whole["num_left"], whole["contexts"]) == (15, 0, 16)
    assert whole["recovered"]["substituted"]["value"] > 0.95
    assert whole["recovered"]["shuffled"]["value"] < 0.3
    assert 0 < whole["kl"]["substituted"] < whole["kl"]["zero"]
    joint = JointSubstitutionEvidence.load(run.folder.evidence("planted", "joint_substitution", 0))
    assert (np.asarray(run.corpus.context_side)[joint.context] == Side.SCORE).all()


def test_windows_are_those_of_the_score_side_at_their_rates(run: RunContext) -> None:
    found, pool = evidence(run), run.exemplars("planted").pool(Side.SCORE)
    places = {(int(c), int(p)): row for row, (c, p) in enumerate(zip(pool.context, pool.position, strict=True))}
    assert pool.is_census
    for number, latent in enumerate(found.latents.tolist()):
        fires = set(pool.activations(latent)[0].tolist())
        rows = found.rows_of(latent, OWN, True)
        mine = [places[int(found.context[row]), int(found.position[row])] for row in rows]
        assert set(mine) <= fires
        assert len(mine) == len(set(mine)) > 0
        documents = [int(pool.document[row]) for row in mine]
        assert len(set(documents)) == min(len(documents), len({int(pool.document[row]) for row in fires}))
        silent = [places[int(found.context[r]), int(found.position[r])] for r in found.rows_of(latent, OWN, False)]
        assert not set(silent) & fires
        assert 0 < found.share_firing[number] < 1
    assert (found.donor != found.latents).all()


class Everywhere(TokenPredictor):
    """Predicts 1 on every token: the broadest of labels."""

    @classmethod
    def of(cls, explanation: object, verdicts: object) -> None:
        return None

    def predict(self, index: PoolIndex) -> Predicted:
        return Predicted(np.arange(index.num_positions, dtype=np.int32), np.ones(index.num_positions))


def latent_evidence(run: RunContext, latent: int) -> LatentEvidence:
    return LatentEvidence(latent, run.exemplars("planted"))


def test_a_label_that_fires_everywhere_is_predicted_in_every_silent_window(run: RunContext) -> None:
    windows = LatentWindows(latent_evidence(run, 5), 6, seed=0)
    placed = windows.placed(Everywhere(), scale=2.0)
    assert placed.share_silent == pytest.approx(1 - windows.share_firing)
    for window, activation in [*placed.firing, *placed.silent]:
        tokens = run.corpus.context(window.context)[window.position : window.position + window.length]
        assert activation.tolist() == [0.0 if token == 0 else 2.0 for token in tokens.tolist()]
    assert len(placed.firing) == len(placed.silent) == 6


def test_pools_of_contexts_and_of_exemplars_read_like_the_stores_own(run: RunContext) -> None:
    store = run.exemplars("planted")
    pool = store.pool(Side.SCORE)
    contexts = sorted(set(pool.context.tolist()))[:9]
    again = context_pool(run.corpus, contexts, 16, pool.context_tokens)
    rows = np.flatnonzero(np.isin(pool.context, contexts))
    order = rows[np.lexsort((pool.position[rows], pool.context[rows]))]
    for name in ("tokens", "first_token", "document", "context", "position"):
        np.testing.assert_array_equal(getattr(again, name), getattr(pool, name)[order])
    stored = store.exemplars(0, Side.SCORE, Origin.SAMPLED)[:8]
    few = exemplar_pool(stored, pool, frozenset({0}))
    for row, exemplar in enumerate(stored):
        at = np.flatnonzero((pool.context == exemplar.context) & (pool.position == exemplar.position))
        np.testing.assert_array_equal(few.tokens[row], pool.tokens[at[0]])
        assert few.first_token[row] == pool.first_token[at[0]]


class Judged(WindowPredictor):
    def __init__(self, windows: tuple[PredictedWindow, ...]) -> None:
        self._windows = windows

    @classmethod
    def of(cls, explanation: object, verdicts: object) -> None:
        return None

    @property
    def windows(self) -> tuple[PredictedWindow, ...]:
        return self._windows


def test_judged_windows_stand_for_all_of_their_kind(run: RunContext) -> None:
    context = int(run.exemplars("planted").pool(Side.SCORE).context[0])
    told = (
        PredictedWindow(context, 0, True, np.arange(1.0, 16.0)),
        PredictedWindow(context, 16, False, np.full(16, 0.5)),
    )
    pi, label = judged_windows(latent_evidence(run, 0), Judged(told), run.corpus, 16, frozenset({0}))
    assert pi == LatentWindows(latent_evidence(run, 0), 1, 0).share_firing
    assert label.share_silent == pytest.approx(1 - pi)
    assert label.firing[0][1].tolist() == [0.0, *np.arange(1.0, 16.0)], "the BOS has no prediction"
    assert label.silent[0][1].tolist() == [0.5] * 16
    dealt = dealt_anew(label, 0.0, seed=0)
    assert dealt.firing[0][1].tolist() == [0.5] * 16, "silent windows are all there is to draw from at a rate of 0"
    assert dealt.firing[0][0] == label.firing[0][0]
    assert dealt_anew(PlacedLabel(0.0, 0.0, [], []), 0.5, 0).firing == []


def test_simulated_windows_go_through_the_stage(run: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that foresees latent 0 exactly, and one that foresees nothing: 1 and 0."""
    pool = run.exemplars("planted").pool(Side.SCORE)
    window, column, value = pool.activations(0)
    fires = np.unique(window)[:4]
    silent = np.setdiff1d(np.arange(len(pool.tokens)), window)[:4]
    told = []
    for row in [*fires.tolist(), *silent.tolist()]:
        cells = np.zeros(pool.tokens.shape[1])
        cells[column[window == row]] = value[window == row]
        told.append(
            PredictedWindow(int(pool.context[row]), int(pool.position[row]), row in fires, cells[pool.counts[row]])
        )
    blank = [dataclasses.replace(one, activation=np.zeros_like(one.activation)) for one in told]
    label = chosen_labels(run, "planted", [0])[0][0]
    scorer = SubstitutionScorer()
    for ordinal, (windows, value_of) in enumerate([(told, 1.0), (blank, 0.0)], start=7):
        judged = Judged(tuple(windows))
        monkeypatch.setattr(substitute, "chosen_labels", lambda *_, judged=judged: {0: (label, judged)})
        spec = ChunkSpec(ordinal, "planted", {"latents": [0], "donors": [-1]}, 1)
        substitute.Substitute().run(run, spec, lambda done: None)
        path = run.folder.evidence("planted", "substitution", ordinal)
        found = SubstitutionEvidence.load(path)
        path.unlink()
        score = scorer.scored(label, dataclasses.replace(latent_evidence(run, 0), substitution=found))
        assert score.failure is None
        assert score.values["substitution"] == pytest.approx(value_of, abs=1e-6)
        assert score.values["substitution_silent_windows"] == 4
        control = score.values["substitution_shuffled"]
        assert isinstance(control, float)
        assert control < 0.9 if value_of else control == 0.0


def test_the_sample_and_the_donors_are_the_same_in_every_process(run: RunContext) -> None:
    chosen = sampled_latents(run, "planted", 5)
    assert chosen == sampled_latents(run, "planted", 12)[:5]
    donors = donors_of(run, "planted", chosen)
    assert sorted(donors) == sorted(chosen)
    assert all(donor != latent for donor, latent in zip(donors, chosen, strict=True))
    assert donors_of(run, "planted", chosen[:1]) == [-1], "a label is no control of itself"
    assert set(chosen_labels(run, "planted", [0, 3])) == {0}, "a dead latent has no label"


def test_one_rows_kl_is_that_of_a_hook(run: RunContext) -> None:
    """Latent 5 pushes the logit of ``return`` on ``def``; the row's KL comes from the plain model with its push taken away."""
    found = evidence(run)
    latent = 5 if 5 in found.latents else int(found.latents[0])
    row = int(found.rows_of(latent, OWN, True)[0])
    model, coder = planted_world.build_subject(), planted_world.build_coder()
    tokens = run.corpus.context(int(found.context[row]))
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    window = slice(int(found.position[row]), int(found.position[row]) + 16)
    kept: list[torch.Tensor] = []

    def take_away(_module: object, _args: object, output: object) -> object:
        hidden = output[0] if isinstance(output, tuple) else output
        assert isinstance(hidden, torch.Tensor)
        z = coder.encode(hidden[0])[:, latent].detach()
        z[0] = 0
        inside = torch.zeros_like(z)
        inside[window] = z[window]
        kept.append(inside)
        edited = hidden - (inside[:, None] * coder.decoder_weight[latent])[None]
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    with torch.no_grad():
        clean = model(input_ids=ids).logits[0].double().log_softmax(-1)
        handle = model.transformer.h[0].register_forward_hook(take_away)
        edited = model(input_ids=ids).logits[0].double().log_softmax(-1)
        handle.remove()
    kl = (clean.exp() * (clean - edited)).sum(-1)[window].sum()
    assert kept[0].count_nonzero() > 0
    assert found.kl_ablated[row] == pytest.approx(float(kl), rel=1e-3, abs=1e-6)
