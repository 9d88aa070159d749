"""A tiny Llama with a hand-made coder, for tests of interventions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM

from sae_core.intervention.windows import InterventionWindow
from sae_core.subject import SubjectModel

VOCAB, WIDTH = 40, 24
WINDOW = 8


@dataclass(frozen=True)
class HandMadeCoder:
    """Latent f fires on token ``f + 1`` with activation 2, whatever stands around it."""

    signatures: torch.Tensor
    directions: torch.Tensor
    hookpoints_in: tuple[str, ...] = ("embed_tokens",)
    hookpoints_out: tuple[str, ...] = ("layers.0",)

    def encode(self, x_ND: torch.Tensor) -> torch.Tensor:
        distance = (x_ND[:, None] - self.signatures).abs().amax(-1)
        return (distance < 1e-5).float() * 2.0

    def output_scale(self, x: torch.Tensor) -> None:
        return None


@dataclass(frozen=True)
class World:
    subject: SubjectModel
    coder: HandMadeCoder
    contexts: list[np.ndarray]

    def tokens(self, ordinal: int) -> np.ndarray:
        return self.contexts[ordinal]

    def windows(self, latent: int) -> list[InterventionWindow]:
        """Every window in which the latent fires."""
        found = []
        for c, ids in enumerate(self.contexts):
            for at in range(0, len(ids), WINDOW):
                if (ids[at : at + WINDOW] == latent + 1).any():
                    found.append(InterventionWindow(c, at, len(ids[at : at + WINDOW]), document=c))
        return found


def make_world() -> World:
    torch.manual_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.3,
        )
    )
    # The last coordinate is read by nothing above the hookpoint: neither by a block nor by the head.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")):
                parameter[:, -1] = 0
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter[-1] = 0
        model.lm_head.weight[:, -1] = 0
    tokenizer = Tokenizer(WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0"))
    subject = SubjectModel(model, tokenizer, name="tiny", revision="test")
    subject.special_ids = frozenset({0})
    rng = np.random.default_rng(0)
    directions = torch.from_numpy(rng.normal(size=(6, WIDTH))).float()
    directions[1] *= 1e-4
    directions[2] = 0
    coder = HandMadeCoder(model.model.embed_tokens.weight[1:7].clone(), directions)
    contexts = [np.append(0, rng.integers(1, VOCAB, 36)).astype(np.int32) for _ in range(24)]
    return World(subject, coder, contexts)
