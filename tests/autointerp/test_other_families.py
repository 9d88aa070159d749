"""A GPT-NeoX subject without a BOS rule, a sparsify SAE and a sparsify transcoder beside it, and a jsonl corpus."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedTokenizerFast,
)

from tests.cli_process import run_cli

ROOT = Path(__file__).parents[2]
WORDS = [f"word{i}" for i in range(60)]
CONFIG = """
seed = 3
latents = "0:20"
[subject]
model = "subject"
[[coders]]
path = "coders/layers.0"
[[coders]]
path = "coders/layers.1.mlp"
name = "transcoder"
[corpus]
path = "texts.jsonl"
text_field = "body"
[extraction]
num_tokens = 6000
context_length = 48
window_length = 16
[controls]
random_directions = 3
shuffled_latents = 10
[[explainers]]
kind = "pattern"
[[scorers]]
kind = "pattern"
[[scorers]]
kind = "intervention"
windows = 4
steered_latents = 3
steering_prompts = 3
"""


def write_world(folder: Path) -> None:
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder / "subject")
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate([*WORDS, "<|endoftext|>"])}, unk_token="word0")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder / "subject")
    for hookpoint, transcode in (("layers.0", False), ("layers.1.mlp", True)):
        coder = folder / "coders" / hookpoint
        coder.mkdir(parents=True)
        directions = torch.nn.functional.normalize(torch.randn(24, 32), dim=1)
        tensors = {
            "encoder.weight": directions.clone(),
            "encoder.bias": torch.zeros(24),
            "W_dec": directions,
            "b_dec": torch.zeros(32),
        }
        save_file(tensors, coder / "sae.safetensors")
        facts = {"activation": "topk", "num_latents": 24, "k": 3, "d_in": 32, "transcode": transcode}
        (coder / "cfg.json").write_text(json.dumps(facts))
    rng = np.random.default_rng(0)
    with (folder / "texts.jsonl").open("w") as out:
        for _ in range(120):
            out.write(json.dumps({"body": " ".join(rng.choice(WORDS, 60))}) + "\n")
    (folder / "run.toml").write_text(CONFIG)


def label(folder: Path) -> subprocess.CompletedProcess[str]:
    """``autointerp run`` of the world in ``folder``."""
    return run_cli(["run", str(folder / "run.toml"), "--out", str(folder / "out")])


def test_a_subject_that_cannot_be_intervened_on_is_refused_at_once(tmp_path: Path) -> None:
    """GPT-J brings its own attention, which cannot be replaced: said before a token is read, with nothing written."""
    write_world(tmp_path)
    torch.manual_seed(0)
    config = GPTJConfig(vocab_size=61, n_embd=32, n_layer=3, n_head=4, n_inner=64, n_positions=64, rotary_dim=4)
    GPTJForCausalLM(config).save_pretrained(tmp_path / "subject")
    for name in ("layers.0", "layers.1.mlp"):
        (tmp_path / "coders" / name).rename(tmp_path / "coders" / name.replace("layers", "h"))
    (tmp_path / "run.toml").write_text(CONFIG.replace("coders/layers", "coders/h"))
    done = label(tmp_path)
    assert done.returncode == 2, done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("autointerp: ")]
    assert "subject" in sentence
    assert "attention (GPTJModel) is not replaceable" in sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_gemma_with_capped_logits_and_short_sliding_windows_is_labelled(tmp_path: Path) -> None:
    write_world(tmp_path)
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        max_position_embeddings=64,
        sliding_window=12,
        attn_logit_softcapping=0.5,
        final_logit_softcapping=0.05,
        bos_token_id=None,
        pad_token_id=None,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path / "subject")
    done = label(tmp_path)
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(tmp_path / "out" / "dictionary")
    measured = table[["ablation_kl", "causal_effect"]].dropna()
    assert len(measured) >= 10
    assert (measured.ablation_kl > 0).all()


@pytest.mark.long
def test_a_neox_folder_with_sparsify_coders_is_labelled(tmp_path: Path) -> None:
    write_world(tmp_path)
    done = label(tmp_path)
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(tmp_path / "out" / "dictionary")
    assert sorted(table.groupby("source").latent.count().items()) == [("layers.0", 20), ("transcoder", 20)]
    assert set(table.status) <= {"labelled", "dead", "rare"}
    labelled = table[table.status == "labelled"]
    assert len(labelled) >= 20
    assert labelled.label.str.len().gt(0).all()
    measured = labelled[["precision_low", "precision", "precision_high", "causal_effect"]].dropna()
    assert len(measured) >= 15
    assert (measured.precision_low <= measured.precision).all()
    assert (measured.precision <= measured.precision_high).all()
    assert table[table.source == "transcoder"].hookpoint.unique().tolist() == ["layers.1.mlp"]
