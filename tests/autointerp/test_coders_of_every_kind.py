"""Transcoders, cross-layer transcoders, crosscoders and normalised SAEs in one run, labelled and intervened on like any SAE."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.autointerp.test_other_families import WORDS, label

D, LATENTS = 32, 24
HEAD = """
seed = 3
latents = "0:12"
[subject]
model = "subject"
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
"""
INTERVENTION = """
[[scorers]]
kind = "intervention"
windows = 4
steered_latents = 3
steering_prompts = 3
attribution_tokens = 2000
[[scorers]]
kind = "substitution"
latents = 6
windows = 6
contexts = 6
"""


def write_subject(folder: Path, model: torch.nn.Module) -> None:
    model.save_pretrained(folder / "subject")  # type: ignore[operator]
    vocabulary = {word: i for i, word in enumerate([*WORDS, "<|endoftext|>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="word0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder / "subject")
    rng = np.random.default_rng(0)
    with (folder / "texts.jsonl").open("w") as out:
        for _ in range(120):
            out.write(json.dumps({"body": " ".join(rng.choice(WORDS, 60))}) + "\n")


def directions(rows: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=generator), dim=1)


def write_transcoder_set(folder: Path) -> None:
    folder.mkdir(parents=True)
    config = {"model_name": "tiny", "model_kind": "transcoder_set", "feature_input_hook": "mlp.hook_in"}
    (folder / "config.yaml").write_text(
        yaml.safe_dump(config | {"feature_output_hook": "hook_mlp_out", "activation": "topk", "k": 3})
    )
    for layer in range(3):
        reads, writes = directions(LATENTS, D, layer), directions(LATENTS, D, 10 + layer)
        tensors = {"W_enc": reads, "W_dec": writes, "b_enc": torch.zeros(LATENTS), "b_dec": torch.zeros(D)}
        save_file(tensors, folder / f"layer_{layer}.safetensors")


def write_cross_layer_transcoder(folder: Path) -> None:
    folder.mkdir(parents=True)
    config = {"model_name": "tiny", "model_kind": "cross_layer_transcoder", "feature_input_hook": "hook_resid_mid"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"feature_output_hook": "hook_mlp_out"}))
    for i in range(3):
        encoder = {
            f"W_enc_{i}": directions(LATENTS, D, 20 + i),
            f"b_enc_{i}": torch.full((LATENTS,), -0.1),
            f"b_dec_{i}": torch.zeros(D),
        }
        save_file(encoder, folder / f"W_enc_{i}.safetensors")
        writes = directions(LATENTS, D * (3 - i), 30 + i).view(LATENTS, 3 - i, D).contiguous()
        save_file({f"W_dec_{i}": writes}, folder / f"W_dec_{i}.safetensors")


def write_crosscoder(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"activation_dim": D, "dict_size": LATENTS, "num_layers": 2}))
    save_file(
        {
            "encoder.weight": directions(2 * D, LATENTS, 40).view(2, D, LATENTS).contiguous(),
            "encoder.bias": torch.full((LATENTS,), -0.05),
            "decoder.weight": directions(2 * LATENTS, D, 41).view(2, LATENTS, D).contiguous(),
            "decoder.bias": torch.zeros(2, D),
        },
        folder / "model.safetensors",
    )


def write_normalised_sae(folder: Path) -> None:
    folder.mkdir(parents=True)
    reads = directions(LATENTS, D, 50)
    save_file(
        {"W_enc": reads.T.contiguous(), "W_dec": reads, "b_enc": torch.zeros(LATENTS), "b_dec": torch.zeros(D)},
        folder / "sae_weights.safetensors",
    )
    config = {
        "architecture": "topk",
        "k": 3,
        "d_in": D,
        "d_sae": LATENTS,
        "normalize_activations": "layer_norm",
        "apply_b_dec_to_input": False,
    }
    metadata = {"hook_name": "blocks.0.hook_resid_post", "sae_lens_version": "6.0.0"}
    (folder / "cfg.json").write_text(json.dumps(config | {"metadata": metadata}))


def write_pickled_dictionary(folder: Path) -> None:
    folder.mkdir(parents=True)
    reads = directions(LATENTS, D, 60)
    weights = {
        "encoder.weight": reads,
        "encoder.bias": torch.zeros(LATENTS),
        "decoder.weight": reads.T.contiguous(),
        "b_dec": torch.zeros(D),
    }
    torch.save(weights | {"k": torch.tensor(3), "threshold": torch.tensor(0.01)}, folder / "ae.pt")
    trainer = {
        "dict_class": "BatchTopKSAE",
        "activation_dim": D,
        "dict_size": LATENTS,
        "layer": 1,
        "submodule_name": "resid_post_layer_1",
    }
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))


def test_all_are_labelled_in_one_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 61,
        "hidden_size": D,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    write_subject(tmp_path, LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=64, initializer_range=0.2)))
    write_transcoder_set(tmp_path / "plt")
    write_cross_layer_transcoder(tmp_path / "clt")
    write_crosscoder(tmp_path / "crosscoder")
    write_normalised_sae(tmp_path / "normalised")
    write_pickled_dictionary(tmp_path / "pickled")
    coders = """
[[coders]]
path = "plt"
hookpoint = "layers.1"
[[coders]]
path = "clt"
hookpoint = "layers.1"
[[coders]]
path = "crosscoder"
hookpoint = ["layers.0", "layers.2"]
name = "crosscoder"
[[coders]]
path = "normalised"
[[coders]]
path = "pickled"
allow_pickle = true
"""
    (tmp_path / "run.toml").write_text(HEAD + coders + INTERVENTION)
    done = label(tmp_path)
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(tmp_path / "out" / "dictionary")
    hookpoints = dict(table.groupby("source").hookpoint.first())
    assert hookpoints == {
        "plt-layers.1": "blocks.1.hook_mlp_out",
        "clt-layers.1": "blocks.1.hook_mlp_out, blocks.2.hook_mlp_out",
        "crosscoder": "layers.0, layers.2",
        "normalised": "blocks.0.hook_resid_post",
        "pickled": "resid_post_layer_1",
    }
    for source, rows in table.groupby("source"):
        labelled = rows[rows.status == "labelled"]
        assert len(rows) == 12
        assert len(labelled) >= 6, source
        assert labelled.causal_effect.notna().sum() >= 5, source
        assert labelled.precision.notna().sum() >= 5, source
        assert labelled.attribution_kl.notna().sum() >= 5, source
        assert (labelled.attribution_kl.dropna() > 0).all(), source
        assert labelled.substitution.notna().sum() >= 4, source
        assert (labelled.substitution.dropna() <= 1).all(), source
    block = json.loads((tmp_path / "out" / "summary.json").read_text())["substitution"]["sources"]
    for source in hookpoints:
        whole = block[source]["all_at_once"]
        assert whole["num_latents"] >= 6, source
        assert 0 < whole["kl"]["substituted"] < whole["kl"]["zero"], source


def test_a_pickle_is_refused_without_the_opt_in(tmp_path: Path) -> None:
    write_pickled_dictionary(tmp_path / "pickled")
    write_subject(
        tmp_path,
        LlamaForCausalLM(
            LlamaConfig(vocab_size=61, hidden_size=D, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
        ),
    )
    (tmp_path / "run.toml").write_text(HEAD + '[[coders]]\npath = "pickled"\n')
    done = label(tmp_path)
    assert done.returncode == 2
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("autointerp: ")]
    assert "ae.pt is a torch pickle" in sentence
    assert "allow_pickle" in sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_gemma_scope_on_a_gemma_is_labelled(tmp_path: Path) -> None:
    """Capped logits rule the intervention scorer out; labels and counted scores need no edits."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=61, hidden_size=D, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=6,
        intermediate_size=64, max_position_embeddings=64, sliding_window=16,
    )  # fmt: skip
    write_subject(tmp_path, Gemma2ForCausalLM(config))
    widths = {"res": D, "att": 4 * 6, "mlp": D, "transcoders": D}
    coders = ""
    for site, width in widths.items():
        folder = tmp_path / f"gemma-scope-2b-pt-{site}" / "layer_1" / "width_16k" / "average_l0_9"
        folder.mkdir(parents=True)
        reads = directions(LATENTS, width, len(site)).numpy()
        np.savez(
            folder / "params.npz", W_enc=reads.T.copy(), W_dec=reads, b_enc=np.zeros(LATENTS, np.float32),
            b_dec=np.zeros(width, np.float32), threshold=np.full(LATENTS, 0.02, np.float32),
        )  # fmt: skip
        coders += f'[[coders]]\npath = "{folder.relative_to(tmp_path).as_posix()}"\nname = "{site}"\n'
    (tmp_path / "run.toml").write_text(HEAD + coders)
    done = label(tmp_path)
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(tmp_path / "out" / "dictionary")
    assert dict(table.groupby("source").hookpoint.first()) == {
        "res": "layers.1",
        "att": "layers.1.self_attn.o_proj:input",
        "mlp": "layers.1.post_feedforward_layernorm",
        "transcoders": "layers.1.post_feedforward_layernorm",
    }
    assert (table[table.status == "labelled"].groupby("source").latent.count() >= 6).all()
