"""A budget of real ablations: which latents get one, what the others have, and whether the screen agrees with them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import spearmanr
from transformers import LlamaConfig, LlamaForCausalLM

from autointerp.config import load_config
from autointerp.evidence import AblationChoice, AblationRequest, EvidenceRequest, SteeringRequest
from autointerp.pipeline.ablation_budget import FEWEST_RANDOM, ablated_latents, choose_latents, stands_for_dictionary
from autointerp.pipeline.attribution_agreement import attribution_agreement
from autointerp.pipeline.attributions import read_attribution
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.folder import RunFolder
from autointerp.pipeline.stages.intervene import steered_latents
from autointerp.pipeline.starting import store_url
from autointerp.store import open_store
from sae_core.attribution_evidence import AttributionEvidence
from sae_core.exemplar_store import ExemplarStore
from sae_core.hashing import seed_for
from sae_core.intervention.evidence import AblationEvidence
from sae_core.records import Side
from tests.autointerp.test_coders_of_every_kind import D, directions, write_subject
from tests.autointerp.test_other_families import label

LATENTS, BUDGET = 64, 40


class Context(SimpleNamespace):
    """What the choice reaches of a run."""

    def request(self, kind: type[EvidenceRequest]) -> EvidenceRequest | None:
        return self.asked

    def source(self, name: str) -> Any:
        return SimpleNamespace(control=name.endswith("control"))

    def exemplars(self, source: str) -> Any:
        return SimpleNamespace(statistics=SimpleNamespace(fire_count=self.fires))

    def latents(self, source: str) -> list[int]:
        return self.selected

    def attribution(self, source: str) -> AttributionEvidence | None:
        return self.found

    def ablation_choices(self, source: str) -> Any:
        return choose_latents(self, source)  # type: ignore[arg-type]


def context(
    budget: int | None, size: int = 1000, *, share: float = 0.05, seed: int = 0, attributed: bool = True
) -> Any:
    """``size`` latents of which every tenth is dead and 1, 11, ... fire on no token of the score side; latent f's screen is f."""
    fires = np.full((3, size), 5)
    fires[:, ::10] = 0
    fires[Side.SCORE, 1::10] = 0
    count = fires[Side.SCORE].astype(np.int64)
    sums = np.arange(size) * count.astype(float)
    zero = np.zeros(size)
    found = AttributionEvidence(np.arange(size, dtype=np.int32), count, zero, zero, sums, size, 9, 1, 0, 0)
    return Context(
        asked=AblationRequest(latents=budget, random_share=share),
        fires=fires,
        selected=list(range(size)),
        found=found if attributed else None,
        config=SimpleNamespace(seed=seed),
    )


def chosen(run: Any, choice: AblationChoice, source: str = "one") -> list[int]:
    return sorted(latent for latent, why in choose_latents(run, source).items() if why == choice)


def test_without_a_budget_all_alive_latents_are_ablated() -> None:
    alive = [latent for latent in range(1000) if latent % 10]
    assert chosen(context(None), AblationChoice.ALL) == alive
    assert chosen(context(900), AblationChoice.ALL) == alive
    assert ablated_latents(context(None), "one", range(1000)) == alive
    assert ablated_latents(context(None), "one", [7, 20, 33]) == [7, 33]
    assert chosen(context(40), AblationChoice.ALL, "one-control") == alive


def test_a_random_part_and_then_the_largest() -> None:
    run = context(100)
    random, screened = chosen(run, AblationChoice.RANDOM), chosen(run, AblationChoice.SCREEN)
    assert len(random) == math.ceil(0.05 * 900)
    assert len(screened) == 100 - len(random)
    fire = [f for f in range(999, 0, -1) if f % 10 > 1 and f not in random]
    assert screened == sorted(fire[: len(screened)])
    assert len(chosen(run, AblationChoice.LEFT_OUT)) == 900 - 100
    assert ablated_latents(run, "one", range(1000)) == sorted({*random, *screened})
    again, other = context(100), context(100, seed=1)
    assert choose_latents(again, "one") == choose_latents(run, "one")
    assert chosen(other, AblationChoice.RANDOM) != random
    assert chosen(run, AblationChoice.RANDOM, "two") != random


def test_the_random_part_is_at_least_32_and_at_most_half_of_the_budget() -> None:
    assert len(chosen(context(100, share=0.001), AblationChoice.RANDOM)) == FEWEST_RANDOM == 32
    for run, random, screened in (
        (context(20), 10, 10),
        (context(7), 4, 3),
        (context(1), 1, 0),
        (context(60, share=1.0), 30, 30),
        (context(1000, 40_000), 500, 500),  # 5% of the latents that fire are 1,800
    ):
        assert len(chosen(run, AblationChoice.RANDOM)) == random
        assert len(chosen(run, AblationChoice.SCREEN)) == screened


def test_the_sample_that_is_steered_is_a_permutation_s_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of one draw over a plain list of the latents that fire on both sides, which is kept once it is drawn."""
    fires = np.full((3, 50), 5)
    fires[:, ::10] = 0
    fires[Side.SCORE, 1::10] = 0
    fires[Side.EXPLAIN, 2::10] = 0
    fires[Side.CHOOSE, 3::10] = 0
    reuse = SimpleNamespace(reuse=None)
    config = SimpleNamespace(seed=3, extraction=reuse, select_latents=lambda count, source: range(4, count))
    run = RunContext(config, RunFolder(Path()), None, "r")  # type: ignore[arg-type]
    monkeypatch.setattr(RunContext, "request", lambda self, kind: SteeringRequest(latents=12))
    record = SimpleNamespace(control=False, num_latents=50)
    monkeypatch.setattr(RunContext, "source", lambda self, name: record)
    opened: list[str] = []

    def exemplars(self: RunContext, source: str) -> Any:
        opened.append(source)
        return SimpleNamespace(statistics=SimpleNamespace(fire_count=fires))

    monkeypatch.setattr(RunContext, "exemplars", exemplars)
    alive = [latent for latent in range(4, 50) if latent % 10 > 2]
    expected = np.random.default_rng(seed_for(3, "steered latents", "one")).permutation(alive)[:12].tolist()
    assert run.steering_order("one") == expected
    assert run.steering_order("one") == expected
    assert steered_latents(run, "one") == frozenset(expected)
    assert opened == ["one"]
    record.control = True
    assert run.steering_order("one-control") == []


def test_the_random_part_is_uniform_and_blind_to_the_screen() -> None:
    draws = np.concatenate([chosen(context(100, seed=s), AblationChoice.RANDOM) for s in range(60)])
    assert not (draws % 10 == 0).any()
    halves = (draws < 500).mean()
    assert abs(halves - 0.5) < 4 * np.sqrt(0.25 / len(draws))
    assert 0.05 < (draws % 10 == 1).mean() < 0.18, "latents without an attribution are drawn as often as others"


def test_without_attribution_the_whole_budget_is_random() -> None:
    run = context(100, attributed=False)
    assert len(chosen(run, AblationChoice.RANDOM)) == 100
    assert not chosen(run, AblationChoice.SCREEN)


def test_what_the_screen_chose_is_not_the_dictionary() -> None:
    counts = [stands_for_dictionary({"causal_chosen": why}) for why in ("all", "random", "screen", None)]
    assert counts == [True, True, False, False]
    assert not stands_for_dictionary({})


CONFIG = f"""
seed = 3
chunk_latents = 16
[subject]
model = "subject"
device = "cpu"
[[coders]]
path = "coder"
name = "one"
[corpus]
path = "texts.jsonl"
text_field = "body"
[extraction]
num_tokens = 6000
context_length = 48
window_length = 16
[controls]
random_directions = 12
shuffled_latents = 10
[[explainers]]
kind = "pattern"
[[scorers]]
kind = "pattern"
[[scorers]]
kind = "intervention"
windows = 4
steered_latents = 0
latents = {BUDGET}
attribution_tokens = 300
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama and an SAE: latents 0 and 1 never fire, 2 to 5 rarely, directions have lengths from 0.01 to 1."""
    folder = tmp_path_factory.mktemp("budget")
    torch.manual_seed(0)
    shape = {"vocab_size": 61, "hidden_size": D, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = LlamaForCausalLM(
        LlamaConfig(**shape, intermediate_size=64, max_position_embeddings=64, initializer_range=0.2)
    )
    write_subject(folder, model)
    (folder / "coder").mkdir()
    reads = directions(LATENTS, D, 50)
    length = torch.logspace(-2, 0, LATENTS)[torch.randperm(LATENTS, generator=torch.Generator().manual_seed(1))]
    threshold = torch.full((LATENTS,), 0.6)
    threshold[:2] = 100.0
    threshold[2:6] = torch.tensor([6.1, 5.25, 7.2, 8.95])  # a little below the largest that there are
    tensors = {
        "W_enc": reads.T.contiguous(),
        "W_dec": reads * length[:, None],
        "b_enc": torch.zeros(LATENTS),
        "b_dec": torch.zeros(D),
        "threshold": threshold,
    }
    save_file(tensors, folder / "coder" / "sae_weights.safetensors")
    config = {"architecture": "jumprelu", "d_in": D, "d_sae": LATENTS, "normalize_activations": "none"}
    config |= {"apply_b_dec_to_input": False, "metadata": {"hook_name": "blocks.1.hook_resid_post"}}
    (folder / "coder" / "cfg.json").write_text(json.dumps(config))
    (folder / "run.toml").write_text(CONFIG)
    done = label(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def run(world: Path) -> RunContext:
    folder = RunFolder(world / "out")
    config = load_config(world / "run.toml")
    store = open_store(store_url(config, folder))
    note = folder.read_note()
    assert note is not None
    return RunContext(config, folder, store, note.run_id)


@pytest.fixture(scope="module")
def table(world: Path) -> pd.DataFrame:
    return pd.read_parquet(world / "out" / "dictionary").set_index("latent")


def test_the_right_latents_are_ablated(world: Path, run: RunContext, table: pd.DataFrame) -> None:
    evidence = world / "out" / "sources" / "one" / "evidence"
    files = sorted(evidence.glob("ablation-*.safetensors"))
    asked = sorted(latent for path in files for latent in AblationEvidence.load(path).latents.tolist())
    assert asked == ablated_latents(run, "one", range(LATENTS))
    assert len(asked) == BUDGET
    fire = ExemplarStore.open(world / "out" / "sources" / "one" / "exemplars").statistics.fire_count
    alive = np.flatnonzero(fire.sum(axis=0)).tolist()
    assert len(alive) > BUDGET + 10
    why = table.causal_chosen
    assert sorted(table.index[why.notna()]) == asked
    assert (why == "random").sum() == BUDGET // 2
    assert (why == "screen").sum() == BUDGET - BUDGET // 2
    screened = table[why == "screen"].attribution_kl
    left = table.loc[[latent for latent in alive if pd.isna(why[latent])]]
    assert screened.min() >= left.attribution_kl.max()
    assert left[["causal_effect", "ablation_kl", "causal_q"]].isna().all().all()
    assert table.causal_effect[asked].notna().mean() > 0.8
    scores = {score.latent: score for score in run.store.scores(run.run_id, "one") if score.scorer == "intervention"}
    assert all(scores[latent].failure is None for latent in left.index)


def test_every_latent_that_fires_on_the_score_side_has_the_screen(world: Path, run: RunContext, table: Any) -> None:
    sampled = read_attribution(run.folder, "one", rare=False)
    assert sampled is not None
    fire = ExemplarStore.open(world / "out" / "sources" / "one" / "exemplars").statistics.fire_count
    alive = fire[Side.SCORE] > 0
    assert (sampled.count[alive] == 0).any(), "some latent fires in none of the sample's contexts"
    np.testing.assert_array_equal(table.attribution_kl.notna().to_numpy(), alive)
    assert table.attribution_kl[[0, 1]].isna().all()
    assert (table.status[[0, 1]] == "dead").all()
    total = table.attribution_kl * fire.sum(axis=0)
    np.testing.assert_allclose(table.attribution_kl_total[alive], total[alive])
    control = run.attribution(next(source.name for source in run.sources if source.control))
    assert control is not None
    assert (control.count > 0).sum() >= 8


def test_the_screen_agrees_with_ablation(run: RunContext, table: pd.DataFrame) -> None:
    found = attribution_agreement(run, "one")
    assert found is not None
    rows = table[(table.causal_chosen == "random") & table.ablation_kl.notna() & table.attribution_kl.notna()]
    assert found["num_latents"] == len(rows)
    assert found["spearman"] == pytest.approx(spearmanr(rows.attribution_kl, rows.ablation_kl).statistic)
    assert found["spearman"] > 0.8
    assert found["spearman_low"] < found["spearman"] < found["spearman_high"]
    assert found["median_ablation_kl"] == pytest.approx(rows.ablation_kl.median())
    assert sum(band["num_latents"] for band in found["bands"]) == len(rows)
    assert found["bands"][0]["spearman"] is None
    assert found["bands"][-1]["rate_below"] == 1.0
    assert found["num_chosen"]["random"] == BUDGET // 2
    assert found["num_chosen"]["screen"] == BUDGET - BUDGET // 2
    assert json.loads(json.dumps(found)) == found
