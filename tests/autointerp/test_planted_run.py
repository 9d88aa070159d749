"""A whole run on the planted world, against what is known of it: what each latent fires on and what it does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from autointerp.pipeline.causal_columns import CAUSAL_COLUMNS
from autointerp.pipeline.dictionary_rows import control_records, latent_row
from autointerp.pipeline.finding import find_run
from autointerp.pipeline.left_out_check import left_out_check
from autointerp.pipeline.starting import open_run
from autointerp.store import LabelStore
from sae_core.exemplar_store import ExemplarStore
from sae_core.intervention.evidence import AblationEvidence
from sae_core.records import Side
from tests import planted_world
from tests.planted_world import GAIN, MEANING, NUM_LATENTS, VOCABULARY

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
random_directions = 8
[[explainers]]
kind = "pattern"
[[scorers]]
kind = "pattern"
skip_repeated = false
[[scorers]]
kind = "intervention"
windows = 20
control_directions = 8
steered_latents = 16
steering_prompts = 6
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = tmp_path_factory.mktemp("world")
    planted_world.build(world)
    (world / "run.toml").write_text(CONFIG)
    command = [sys.executable, "-m", "autointerp.cli", "run", str(world / "run.toml"), "--out", str(world / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return world / "out"


@pytest.fixture(scope="module")
def table(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "dictionary").set_index("latent")


def test_every_latent_has_a_label_or_a_typed_status(table: pd.DataFrame) -> None:
    assert list(table.index) == list(range(NUM_LATENTS))
    assert table.status[3] == "dead"
    assert pd.isna(table.label[3])
    assert pd.isna(table.precision[3])
    others = table.drop([3, 4])
    assert (others.status == "labelled").all()
    assert others.label.str.len().gt(0).all()
    assert others.label.is_unique


def test_labels_say_what_was_planted(table: pd.DataFrame) -> None:
    for latent, words in {1: ("self", "("), 5: ("def",), 6: ("return",), 7: ("cls",), 9: ("w0", "w9")}.items():
        assert all(word in table.label[latent] for word in words), table.label[latent]


def test_precision_and_recall_equal_a_count_by_hand(out: Path, table: pd.DataFrame) -> None:
    """The planted meanings are exact, so a right label's windows are those in which the meaning holds."""
    pool = ExemplarStore.open(out / "sources" / "planted" / "exemplars").pool(Side.SCORE)
    assert pool.is_census
    for latent in (0, 1, 5, 6, 7, 9, 12):
        assert (table.precision[latent], table.recall[latent], table.f1[latent]) == (1.0, 1.0, 1.0)
        assert 0.8 < table.precision_low[latent] < 1.0 == table.precision_high[latent]
        firing = 0
        for row, first, position in zip(pool.tokens, pool.first_token, pool.position, strict=True):
            words = [VOCABULARY[i] if i >= 0 else "" for i in row]
            places = [i for i in range(first, len(row)) if row[i] >= 0]
            firing += any(MEANING[latent](words, i) > 0 for i in places)
            assert (position == 0) == (first > pool.context_tokens)
        by_table = int(table.num_windows_firing[latent])
        store = ExemplarStore.open(out / "sources" / "planted" / "exemplars").statistics
        assert firing == store.num_windows_firing[Side.SCORE, latent]
        assert by_table == store.num_windows_firing[:, latent].sum()
        np.testing.assert_allclose(table["correlation"][latent], 1.0, atol=0.05)


def test_causal_effects_are_those_that_were_planted(table: pd.DataFrame) -> None:
    """5 moves a logit, 7 acts through block 1, 6 writes where nothing reads (the module's table).

    Where 5 or 7 fires, the clean logits are GAIN at one token, 1 at the token itself and 0 elsewhere, and the ablated
    ones lack the GAIN: the KL by hand, but for the layer norm, which takes 1% of the GAIN for the mean of the slots.
    """
    clean = np.zeros(len(VOCABULARY))
    clean[0] = 1.0
    ablated = clean.copy()
    clean[1] = GAIN
    p, q = (np.exp(x) / np.exp(x).sum() for x in (clean, ablated))
    by_hand = float((p * np.log(p / q)).sum())
    for latent in (5, 7):
        assert table.causal_effect_low[latent] > 0
        assert table.causal_random_low[latent] < 0 < table.causal_random_high[latent] < table.causal_effect[latent]
        assert table.causal_z[latent] > 1.96  # ten latents are few to learn tails from: q is .1 to .3
        assert table.ablation_kl[latent] == pytest.approx(by_hand, rel=0.02)
    assert (table.acts_at[5], table.acts_at[7]) == ("direct", "h.1")
    assert table.direct_share[5] == pytest.approx(1.0, abs=0.02)
    assert table.direct_share[7] == pytest.approx(0.0, abs=0.02)
    assert table.causal_effect_high[6] < 0
    assert table.causal_effect[6] < table.causal_random_low[6]
    assert table.causal_q[6] > 0.5 > table.causal_q[5]
    assert table.ablation_kl[6] < 2e-4  # what is left goes through the mean that the layer norm takes
    assert table.steering_kl[5] == pytest.approx(0.1, rel=0.35)
    assert table.lens_auroc[5] > 0.5, "its lens tokens rise on held-out prompts"
    assert table.output_tokens_auroc.isna().all(), "no explainer has asked what it raises"


def test_show_says_what_the_dictionary_says_of_effects(out: Path, table: pd.DataFrame) -> None:
    store, run_id = find_run(str(out))
    row = latent_row(open_run(store, run_id), "planted", 5)
    for column in (*CAUSAL_COLUMNS, "causal_effect", "direct_share", "acts_at"):
        assert row[column] == table[column][5], column


def test_a_run_checks_its_ranges_by_leaving_directions_out(out: Path) -> None:
    """20 windows and 8 directions of each latent that fires; the file is the truth of how many draws there are."""
    store, run_id = find_run(str(out))
    rows = AblationEvidence.load(out / "sources" / "planted" / "evidence" / "ablation-000000.safetensors")
    found = left_out_check(open_run(store, run_id))
    assert found is not None
    assert found["num_draws"] == 8 * int((rows.num_windows >= 2).sum())
    assert found["share_covered"] + found["share_below"] + found["share_above"] == pytest.approx(1.0)
    assert found["share_covered"] > 0.85, "few latents that are much alike: the planted world says little of the level"


@pytest.fixture(scope="module")
def controls(out: Path) -> pd.DataFrame:
    store, run_id = find_run(str(out))
    assert isinstance(store, LabelStore)
    return pd.DataFrame(control_records(open_run(store, run_id)))


def test_a_right_label_beats_a_wrong_one_on_every_value(table: pd.DataFrame, controls: pd.DataFrame) -> None:
    shuffled = controls[controls.kind == "shuffled"].set_index("latent")
    assert len(shuffled) >= 13
    right = table.loc[shuffled.index]
    for value in ("precision", "recall", "f1", "balanced_accuracy", "correlation"):
        difference = right[value].fillna(0) - shuffled[value].astype(float).fillna(0)
        assert difference.min() >= -0.02, (value, difference)
        assert difference.mean() > 0.3, (value, difference)


def test_empty_answers_score_what_they_must(table: pd.DataFrame, controls: pd.DataFrame) -> None:
    everything = controls[controls.kind == "null_everything"].set_index("latent")
    nothing = controls[controls.kind == "null_nothing"].set_index("latent")
    assert (nothing.recall.dropna() == 0).all()
    assert (everything.recall.dropna() == 1).all()
    rate = everything.precision.astype(float)
    np.testing.assert_allclose(everything.f1.astype(float), 2 * rate / (1 + rate), rtol=1e-6)
    assert (controls.kind == "random_direction").sum() == 8
