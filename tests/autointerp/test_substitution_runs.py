"""Labels put in their latents' place in a whole run on the planted world, whose patterns are the truth or far from it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from autointerp.evidence import LatentEvidence
from autointerp.patterns.index import PoolIndex
from autointerp.patterns.overlap import overlap_mask
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
    scale_to,
    typical_activation,
)
from autointerp.pipeline.substitution_record import substitution_record
from autointerp.predictions.base import Predicted, PredictedWindow, TokenPredictor, WindowPredictor
from autointerp.scorers.substitution import SubstitutionScorer
from sae_core.intervention import substitution
from sae_core.intervention.substitution import SubstitutionResult, SubstitutionRow
from sae_core.intervention.substitution_evidence import CONTROL, OWN, JointSubstitutionEvidence, SubstitutionEvidence
from sae_core.intervention.windows import InterventionWindow
from sae_core.records import LatentStatistics, Origin, Side, WindowPool
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


class Sampled:
    """The run's store, as if its pool were a sample of a hundred times the text."""

    def __init__(self, run: RunContext) -> None:
        self._store = run.exemplars("planted")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def pool(self, side: Side) -> WindowPool:
        pool = self._store.pool(side)
        return dataclasses.replace(pool, num_windows_side=100 * len(pool.tokens))


def test_what_is_known_of_the_share_of_silent_windows(run: RunContext) -> None:
    """Its spread is that of two counts; a window that the pool does not hold counts where the pool is a sample."""
    evidence = latent_evidence(run, 5)
    fires = evidence.num_windows_firing(Side.SCORE)
    counted = LatentWindows(evidence, 6, seed=0).placed(Everywhere())
    pool = run.exemplars("planted").pool(Side.SCORE)
    kept = int(overlap_mask(run.exemplars("planted").pool(Side.EXPLAIN), pool).kept.sum())
    assert counted.spread == pytest.approx(1 / round(counted.share_silent * kept) + 1 / fires)
    assert counted.share_of_one == 0
    store: Any = Sampled(run)
    sampled = LatentWindows(dataclasses.replace(evidence, store=store), 6, seed=0).placed(Everywhere())
    assert sampled.share_of_one == pytest.approx(1 / kept)
    assert sampled.spread == counted.spread


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
    assert label.share_silent == label.share_of_one == pytest.approx(1 - pi), "one silent window stands for all"
    assert label.firing[0][1].tolist() == [0.0, *np.arange(1.0, 16.0)], "the BOS has no prediction"
    assert label.silent[0][1].tolist() == [0.5] * 16
    dealt = dealt_anew(label, 0.0, seed=0)
    assert dealt.firing[0][1].tolist() == [0.5] * 16, "silent windows are all there is to draw from at a rate of 0"
    assert dealt.firing[0][0] == label.firing[0][0]
    assert dealt_anew(PlacedLabel(0.0, 0.0, 0.0, [], []), 0.5, 0).firing == []


def test_predictions_are_dealt_as_often_as_such_windows_come() -> None:
    """The latent fires in 90% of the windows, and one window of each kind was judged."""
    windows = [InterventionWindow(0, 8 * number, 8, number) for number in range(400)]
    fires = (windows[0], np.full(8, 1.0, dtype=np.float32))
    silent = [(window, np.full(8, 2.0, dtype=np.float32)) for window in windows[1:]]
    dealt = dealt_anew(PlacedLabel(0.1, 0.0, 0.1, [fires], silent), 0.9, seed=0)
    given = [float(activation[0]) for _, activation in [*dealt.firing, *dealt.silent]]
    assert [window for window, _ in dealt.silent] == windows[1:]
    assert given.count(1.0) == pytest.approx(360, abs=5 * 6), "5 standard errors"


def typical(means: list[float]) -> LatentStatistics:
    """Latents that fired ten times on each side, with these mean activations."""
    count = len(means)
    return LatentStatistics(
        num_tokens=np.full(3, 100), num_windows=np.full(3, 20), fire_count=np.full((3, count), 10),
        num_windows_firing=np.full((3, count), 5), max_activation=np.ones((3, count), "f4"),
        sum_activation=10 * np.tile(means, (3, 1)), histogram=np.zeros((3, count, 4), "i8"),
    )  # fmt: skip


def test_a_donors_predictions_are_brought_to_the_receivers_size(
    run: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics = typical([1.0, 4.0, 0.0])
    assert [typical_activation(statistics, latent) for latent in range(3)] == [1.0, 4.0, 0.0]
    assert scale_to(statistics, 0, 1) == 0.25
    assert scale_to(statistics, 1, 0) == 4.0
    assert scale_to(statistics, 0, 2) == 1.0, "it is not known"
    # all at once
    said = {0: (np.array([3, 8]), np.array([1.0, 2.0])), 1: (np.array([5]), np.array([8.0]))}
    cells, owners, values = substitute._written_down(said, {0: 1, 1: 0}, {0: 0, 1: 1}, statistics)
    assert (cells.tolist(), owners.tolist(), values.tolist()) == ([3, 5, 8], [1, 0, 1], [4.0, 2.0, 8.0])
    # one by one
    rows: list[SubstitutionRow] = []

    def none(_s: object, _c: object, _t: object, given: list[SubstitutionRow], **_: object) -> SubstitutionResult:
        rows.extend(given)
        return SubstitutionResult(np.ones(len(given)), np.ones(len(given)), np.ones(len(given), "i4"))

    latent, donor = sampled_latents(run, "planted", 2)
    labels = chosen_labels(run, "planted", [latent, donor])
    told = {latent: (labels[latent][0], Everywhere()), donor: (labels[donor][0], Everywhere())}
    monkeypatch.setattr(substitution, "run_substitution", none)
    monkeypatch.setattr(substitute, "chosen_labels", lambda *_: told)
    monkeypatch.setattr(substitute, "scale_to", lambda _, to, of: 7.0 if (to, of) == (latent, donor) else 0.0)
    spec = ChunkSpec(9, "planted", {"latents": [latent], "donors": [donor]}, 1)
    substitute.Substitute().run(run, spec, lambda done: None)
    run.folder.evidence("planted", "substitution", 9).unlink()
    assert {float(row.predicted.max()) for row in rows} == {0.0, 1.0, 7.0}


def test_windows_that_fell_silent_are_left_out_and_counted() -> None:
    label = PlacedLabel(
        0.2,
        0.0,
        0.0,
        [(InterventionWindow(0, 8 * n, 8, n), np.ones(8, dtype=np.float32)) for n in range(3)],
        [(InterventionWindow(1, 8, 8, 9), np.ones(8, dtype=np.float32))],
    )
    jobs = substitute._Jobs()
    jobs.add(4, OWN, label)
    jobs.add(4, CONTROL, label)
    count = len(jobs.rows)
    firing = np.array([0 if row.window.position == 8 else 2 for row in jobs.rows], dtype=np.int32)
    result = SubstitutionResult(np.arange(count) * 1.0, np.arange(count) * 0.1, firing)
    shares = np.full((1, 2), 0.2)
    found = substitute._evidence(
        [4], jobs, result, shares, 0 * shares, np.full(1, 0.1), np.zeros(1), [0], [5], ["pattern"]
    )
    assert found.num_lost.tolist() == [1], "once, and not once an arm"
    for arm in (OWN, CONTROL):
        assert found.position[found.rows_of(4, arm, True)].tolist() == [0, 16]
        assert len(found.rows_of(4, arm, False)) == 1, "a silent window has nothing to lose"
    for row in range(len(found.latent)):
        assert found.kl_ablated[row] == (found.kl[row] - 1 if found.fires[row] else 0), "its own window's ablation"


def test_text_that_explainers_saw_is_edited_and_not_counted(run: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    store, corpus = run.exemplars("planted"), run.corpus
    own = store.pool(Side.SCORE)
    chosen = sorted(set(own.context.tolist()))[:4]
    pool = context_pool(corpus, chosen, 16, own.context_tokens)
    shown = pool.position == 16
    asked = []

    def mask(explain: WindowPool, judged: WindowPool) -> Any:
        asked.append((explain.side, judged is pool))
        return SimpleNamespace(kept=~shown)

    monkeypatch.setattr(substitute, "overlap_mask", mask)
    _, contexts = substitute._joint_contexts(run, "planted", chosen, [0, 1], pool)
    assert asked == [(Side.EXPLAIN, True)]
    for one in contexts:
        tokens = corpus.context(one.context)
        want = tokens != 0
        want[16:32] = False
        np.testing.assert_array_equal(one.scored, want)
    inside = [p for one in contexts for p in one.ways[0].position.tolist() if 16 <= p < 32]
    assert inside, "labels are put in place there all the same"


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
        assert found.share_of_one.tolist() == pytest.approx([(1 - found.share_firing[0]) / 4]), "four stand for all"
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
