"""Train the quickstart's sparse coder on the quickstart's subject, and write the card of both.

    python examples/train_coder.py --subject examples/quickstart/subject --out examples/quickstart/coder/layers.1

A TopK SAE with an auxiliary loss that revives dead latents (Gao et al. 2024, "Scaling and evaluating sparse
autoencoders"), trained on the same text as the subject and saved in sparsify's layout in 16 bit. The figures of the
card are measured on the held-out modules, with the saved weights as ``load_coder`` reads them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from train_subject import CONTEXT, read_stdlib, token_stream
from transformers import PreTrainedTokenizerFast

from sae_core.coder import SparseCoder
from sae_core.loading import load_coder
from sae_core.subject import SubjectModel


class TopKAutoencoder(nn.Module):
    """Parts of the coder while it is trained; D width, L latents."""

    def __init__(self, width: int, num_latents: int, k: int, mean: Tensor) -> None:
        super().__init__()
        directions = torch.randn(num_latents, width)
        directions /= directions.norm(dim=1, keepdim=True)
        self.k = k
        self.W_dec = nn.Parameter(directions.clone())
        self.encoder_weight = nn.Parameter(directions.clone())
        self.encoder_bias = nn.Parameter(torch.zeros(num_latents))
        self.b_dec = nn.Parameter(mean.clone())

    def forward(self, x: Tensor, dead: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(loss, latents that fired, fraction of variance unexplained)`` of a batch [N, D]."""
        pre = (x - self.b_dec) @ self.encoder_weight.T + self.encoder_bias
        values, indices = pre.topk(self.k, dim=-1, sorted=False)
        acts = torch.zeros_like(pre).scatter(-1, indices, values.relu())
        error = x - (acts @ self.W_dec + self.b_dec)
        variance = (x - x.mean(0)).pow(2).sum()
        unexplained = error.pow(2).sum() / variance
        loss = unexplained
        num_dead = int(dead.sum())
        if num_dead >= 32:
            k_aux = min(128, num_dead)
            aux_values, aux_indices = pre.masked_fill(~dead, -torch.inf).topk(k_aux, dim=-1, sorted=False)
            aux = torch.zeros_like(pre).scatter(-1, aux_indices, aux_values.relu()) @ self.W_dec
            loss = loss + min(1.0, num_dead / 128) / 32 * (error.detach() - aux).pow(2).sum() / variance
        return loss, indices[values > 0].unique(), unexplained.detach()


def contexts(stream: np.ndarray, count: int, generator: np.random.Generator, bos: int) -> Tensor:
    """[count, CONTEXT] random contexts."""
    starts = generator.integers(0, len(stream) - CONTEXT, count)
    rows = np.stack([stream[s : s + CONTEXT] for s in starts]).astype(np.int64)
    rows[:, 0] = bos
    return torch.from_numpy(rows)


@torch.inference_mode()
def health(subject: SubjectModel, coder: SparseCoder, hookpoint: str, stream: np.ndarray, bos: int) -> dict[str, float]:
    """L0, dead share, variance explained and loss recovered on evenly spread contexts of ``stream``."""
    point = subject.hookpoint(hookpoint)
    starts = np.linspace(0, len(stream) - CONTEXT - 1, 512).astype(int)
    rows = np.stack([stream[s : s + CONTEXT] for s in starts]).astype(np.int64)
    rows[:, 0] = bos
    module = dict(subject.model.get_decoder().named_modules())[hookpoint]
    totals: dict[str, float] = dict.fromkeys(("clean", "coder", "zero"), 0.0)
    fired = torch.zeros(coder.num_latents, dtype=torch.bool, device=subject.device)
    l0, error, count = 0.0, 0.0, 0
    hidden_all: list[Tensor] = []

    def loss_with(batch: Tensor, replacement: Tensor | None) -> float:
        def hook(_module: nn.Module, _args: object, output: object) -> object:
            # The BOS keeps its own activation: coders are not trained on it.
            hidden = output[0] if isinstance(output, tuple) else output
            new = torch.cat([hidden[:, :1], replacement[:, 1:]], dim=1)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = module.register_forward_hook(hook) if replacement is not None else None
        try:
            logits = subject.logits(batch)[:, 1:-1].float()
        finally:
            if handle is not None:
                handle.remove()
        return float(nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 2:].flatten(), reduction="sum"))

    for batch in torch.from_numpy(rows).to(subject.device).split(16):
        hidden = subject.capture(batch, [point])[point]
        acts = coder.encode(hidden.flatten(0, 1))
        output = coder.decode(acts).view_as(hidden)
        body, decoded = hidden[:, 1:].flatten(0, 1), output[:, 1:].flatten(0, 1)
        active = acts.view(*hidden.shape[:2], -1)[:, 1:].flatten(0, 1) > 0
        fired |= active.any(0)
        l0 += float(active.sum())
        error += float((body - decoded).double().pow(2).sum())
        count += len(body)
        hidden_all.append(body)
        totals["clean"] += loss_with(batch, None)
        totals["coder"] += loss_with(batch, output)
        totals["zero"] += loss_with(batch, torch.zeros_like(hidden))
    everything = torch.cat(hidden_all).double()
    variance = float((everything - everything.mean(0)).pow(2).sum())
    scored = rows.shape[0] * (CONTEXT - 2)
    losses = {name: total / scored for name, total in totals.items()}
    return {
        "tokens_measured": count,
        "l0": l0 / count,
        "dead_share": float((~fired).float().mean()),
        "variance_explained": 1.0 - error / variance,
        "loss_clean_nats": losses["clean"],
        "loss_with_coder_nats": losses["coder"],
        "loss_with_zeros_nats": losses["zero"],
        "loss_recovered": (losses["zero"] - losses["coder"]) / (losses["zero"] - losses["clean"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder named after the hookpoint")
    parser.add_argument("--latents", type=int, default=2048)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--contexts", type=int, default=16, help="contexts of a step")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    hookpoint = args.out.name

    subject = SubjectModel.load(str(args.subject))
    point = subject.hookpoint(hookpoint)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.subject)
    train_texts, held_out_texts, _ = read_stdlib()
    stream, held_out = token_stream(tokenizer, train_texts), token_stream(tokenizer, held_out_texts)
    bos = tokenizer.bos_token_id
    generator = np.random.default_rng(args.seed)

    def activations(count: int) -> Tensor:
        """[count * (CONTEXT - 1), D]; the BOS is left out."""
        with torch.autocast(subject.device.type, torch.bfloat16):
            hidden = subject.capture(contexts(stream, count, generator, bos).to(subject.device), [point])[point]
        return hidden[:, 1:].flatten(0, 1).float().clone()

    coder = TopKAutoencoder(subject.width(point), args.latents, args.k, activations(32).mean(0)).to(subject.device)
    optimizer = torch.optim.Adam(coder.parameters(), lr=args.lr, betas=(0.9, 0.999))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / 100, max(0.02, 1.5 * (args.steps - s) / args.steps))
    )
    silent_for = torch.zeros(args.latents, dtype=torch.long, device=subject.device)
    started, running = time.monotonic(), 0.0
    for step in range(args.steps):
        x = activations(args.contexts)
        loss, fired, unexplained = coder(x, silent_for > 500_000)
        loss.backward()
        with torch.no_grad():
            # Directions stay on the unit sphere, so the gradient along them is dropped before Adam sees it.
            grad = coder.W_dec.grad
            grad -= (grad * coder.W_dec).sum(1, keepdim=True) * coder.W_dec
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        with torch.no_grad():
            coder.W_dec /= coder.W_dec.norm(dim=1, keepdim=True)
        silent_for += len(x)
        silent_for[fired] = 0
        running = float(unexplained) if step == 0 else 0.98 * running + 0.02 * float(unexplained)
        if (step + 1) % 100 == 0:
            rate = (step + 1) * len(x) / (time.monotonic() - started)
            dead = int((silent_for > 500_000).sum())
            print(f"step {step + 1} unexplained {running:.4f} dead {dead} {rate:,.0f} tokens/s", flush=True)

    args.out.mkdir(parents=True, exist_ok=True)
    tensors = {
        "encoder.weight": coder.encoder_weight,
        "encoder.bias": coder.encoder_bias,
        "W_dec": coder.W_dec,
        "b_dec": coder.b_dec,
    }
    save_file({n: t.detach().half().contiguous().cpu() for n, t in tensors.items()}, args.out / "sae.safetensors")
    config = {
        "activation": "topk",
        "expansion_factor": args.latents // subject.width(point),
        "normalize_decoder": True,
        "num_latents": args.latents,
        "k": args.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": subject.width(point),
    }
    (args.out / "cfg.json").write_text(json.dumps(config) + "\n", encoding="utf-8")
    figures = {
        "parameters": sum(t.numel() for t in tensors.values()),
        "tokens_seen": args.steps * args.contexts * (CONTEXT - 1),
        "latents": args.latents,
        "k": args.k,
        "held_out": health(subject, load_coder(str(args.out), device=subject.device), hookpoint, held_out, bos),
    }
    (args.out / "training.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
