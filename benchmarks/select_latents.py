"""How long the k largest of a row take, by torch.topk and by the compiled selection, in microseconds a token.

python benchmarks/select_latents.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from sae_core.parts import compiled_selection

TOKENS, REPEATS = 2_048, 7


def microseconds(work: Callable[[], object]) -> float:
    """The median of some repeats, a token."""
    work()
    took = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return statistics.median(took) / TOKENS * 1e6


def main() -> None:
    """Print a row for each number of latents."""
    generator = torch.Generator().manual_seed(0)
    print(f"{'latents':>10}{'k':>5}{'torch.topk':>12}{'compiled':>10}")
    for latents, k in ((4_096, 32), (16_384, 32), (131_072, 64)):
        pre = torch.randn(TOKENS, latents, generator=generator)
        plain = microseconds(lambda pre=pre, k=k: pre.topk(k, dim=-1, sorted=False))
        ours = microseconds(lambda pre=pre, k=k: compiled_selection.top_k(pre, k, True))
        print(f"{latents:>10,}{k:>5}{plain:>12.1f}{ours:>10.1f}")


if __name__ == "__main__":
    main()
