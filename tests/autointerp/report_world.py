"""A made-up run for the report tests: tables like a real run's, and a store of a few hand-made exemplars."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from sae_core.records import Exemplar, Origin, Side

WORDS = ["<s>", "def", " ", "self", "(", "\n", "[bold]", "import", "\x1b[31m", "é", "return", "x"]


class Pieces:
    def pieces(self, token_ids: Iterable[int]) -> list[str]:
        return [WORDS[token] for token in token_ids]


class Store:
    """Score-side exemplars for even latents, explain-side ones for odd latents, none above 90."""

    pieces = Pieces()

    def exemplars(self, latent: int, side: Side, origin: Origin) -> list[Exemplar]:
        if origin is not Origin.TOP or latent > 90 or side is not (Side.EXPLAIN if latent % 2 else Side.SCORE):
            return []
        return [exemplar(latent, side, [1, 2, 3, 4, 6, 5, 7, 8], [0, 0, 4.0, 1.0, 0, 0, 0, 0.5]) for _ in range(3)]


def exemplar(latent: int, side: Side, tokens: list[int], activations: list[float]) -> Exemplar:
    return Exemplar(
        latent,
        side,
        Origin.TOP,
        np.array(tokens, dtype=np.int32),
        np.array(activations, dtype=np.float32),
        np.array([0, 10], dtype=np.int32),
        document=1,
        context=1,
        position=2,
    )


def tables(num_latents: int = 400, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The dictionary and the control rows of a made-up run; every tenth latent is dead, rare or failed."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for latent in range(num_latents):
        status = "labelled" if latent % 10 else ("dead", "rare", "failed")[latent // 10 % 3]
        rate = float(10 ** rng.normal(-2.6, 0.6)) if status != "dead" else 0.0
        row: dict[str, Any] = {
            "source": "demo",
            "subject": "examples/subject",
            "subject_revision": "ef" * 32,
            "hookpoint": "layers.2",
            "coder_fingerprint": "ab" * 32,
            "corpus_fingerprint": "cd" * 32,
            "latent": latent,
            "status": status,
            "failure": "unparseable" if status == "failed" else None,
            "failure_message": "fires in 3 windows of the explain side; 10 are needed" if status == "rare" else None,
            "num_tokens": 500_000,
            "fire_rate": rate,
            "fire_count": int(rate * 500_000),
            "num_windows": 15_625,
            "num_windows_firing": int(rate * 15_625 * 3),
            "run_id": "r1",
            "code_version": "0.1.0",
        }
        if status == "labelled":
            precision = float(rng.beta(4, 1.3))
            recall = float(rng.beta(3, 1.6))
            f1 = 2 * precision * recall / (precision + recall)
            effect = float(rng.normal(0.9, 1.0))
            row |= {
                "label": f"label {latent % 350} [red]é\x1b",
                "precision": precision,
                "precision_low": precision * 0.9,
                "precision_high": min(1.0, precision * 1.1),
                "precision_method": "counted",
                "recall": recall,
                "recall_low": recall * 0.9,
                "recall_high": min(1.0, recall * 1.1),
                "f1": f1,
                "f1_low": f1 * 0.9,
                "f1_high": min(1.0, f1 * 1.1),
                "token_rule_f1": float(np.clip(f1 - rng.normal(0.08, 0.08), 0, 1)),
                "correlation": f1 * 0.9,
                "causal_effect": effect,
                "causal_effect_low": effect - 0.6,
                "causal_effect_high": effect + 0.6,
                "causal_q": float(rng.uniform()),
                "ablation_kl": float(np.exp(effect - 5)),
            }
            if latent % 8 == 1:
                row |= {"steering_kl": 0.1, "steering_alpha": 5.0, "steering_effect": 0.7}
            if latent % 40 == 7:
                row["steering_failure"] = "unreachable"
        rows.append(row)
    controls: list[dict[str, Any]] = []
    for latent in range(64):
        controls.append(
            {
                "kind": "random_direction",
                "latent": latent,
                "precision": float(rng.beta(1, 6)),
                "recall": float(rng.beta(1, 4)),
                "f1": float(rng.beta(1, 6)),
                "balanced_accuracy": 0.55,
                "causal_effect": float(rng.normal(0, 0.4)),
                "causal_effect_low": -1.0,
                "ablation_kl": 0.006,
            }
        )
    for latent in range(1, num_latents, 10):
        controls.append(
            {"kind": "shuffled", "latent": latent, "precision": 0.01, "recall": 0.02, "f1": float(rng.beta(1, 60)),
             "balanced_accuracy": float(rng.normal(0.505, 0.02))}
        )  # fmt: skip
        controls.append({"kind": "null_everything", "latent": latent, "precision": 0.01, "recall": 1.0, "f1": 0.02})
        controls.append({"kind": "null_nothing", "latent": latent, "precision": None, "recall": 0.0, "f1": 0.0})
    for row in rows:
        if row["status"] == "labelled":
            rule = row["token_rule_f1"]
            controls.append(
                {"kind": "token_rule", "latent": row["latent"], "precision": rule, "recall": rule, "f1": rule}
            )
    return pd.DataFrame(rows), pd.DataFrame(controls)
