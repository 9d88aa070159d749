"""Train the quickstart's subject: a small Llama-style model of the Python standard library.

    python examples/train_subject.py --out examples/quickstart/subject [--steps 6000]

Text: the standard library's own .py files as they lie on this machine, tests included, without the
modules of ``HELD_OUT_SHARE`` (chosen by a hash of the top-level module's name, so that every Python
version keeps the same ones out). Writes a Hugging Face folder in 16-bit safetensors and
``training.json`` with the figures that the card quotes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sysconfig
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HELD_OUT_SHARE = 0.1
MAX_FILE_BYTES = 256 * 1024  # beyond this stand generated tables, not code that somebody wrote
CONTEXT = 256
BOS = "<|endoftext|>"


def module_name(path: Path) -> str:
    """Top-level module of a file relative to the library's folder; ``test/test_x.py`` counts as ``x``."""
    parts = path.with_suffix("").parts
    if parts[0] == "test" and len(parts) > 1:
        return parts[1].removeprefix("test_")
    return parts[0]


def is_held_out(module: str) -> bool:
    """Whether the module is kept out of the training (a hash of its name alone decides)."""
    digest = hashlib.sha256(f"autointerp-quickstart:{module}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def read_stdlib() -> tuple[list[str], list[str], list[str]]:
    """Training texts, held-out texts and the names of the held-out modules; exact duplicates dropped."""
    root = Path(sysconfig.get_paths()["stdlib"])
    train: list[str] = []
    held_out: list[str] = []
    names: set[str] = set()
    seen: set[str] = set()
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if relative.parts[0] in ("site-packages", "dist-packages") or path.stat().st_size > MAX_FILE_BYTES:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if not text.strip() or text in seen:
            continue
        seen.add(text)
        module = module_name(relative)
        if is_held_out(module):
            names.add(module)
            held_out.append(text)
        else:
            train.append(text)
    return train, held_out, sorted(names)


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE; every sequence starts with ``BOS``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, model_max_length=CONTEXT)


def token_stream(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """All texts as one [num_tokens] uint16 array, each document behind its BOS."""
    encoded = tokenizer.backend_tokenizer.encode_batch(texts)
    return np.concatenate([np.asarray(e.ids, dtype=np.uint16) for e in encoded])


def batch(stream: np.ndarray, size: int, generator: np.random.Generator, bos: int) -> torch.Tensor:
    """[size, CONTEXT] contexts at random offsets, each starting with BOS as the extraction's do."""
    starts = generator.integers(0, len(stream) - CONTEXT, size)
    rows = np.stack([stream[s : s + CONTEXT] for s in starts]).astype(np.int64)
    rows[:, 0] = bos
    return torch.from_numpy(rows)


@torch.inference_mode()
def held_out_loss(model: LlamaForCausalLM, stream: np.ndarray, bos: int, num_contexts: int = 256) -> float:
    """Mean next-token loss in nats over contexts spread evenly over the held-out stream."""
    starts = np.linspace(0, len(stream) - CONTEXT - 1, num_contexts).astype(int)
    rows = np.stack([stream[s : s + CONTEXT] for s in starts]).astype(np.int64)
    rows[:, 0] = bos
    losses = [model(input_ids=chunk, labels=chunk).loss.item() for chunk in torch.from_numpy(rows).split(32)]
    return float(np.mean(losses))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--resume", action="store_true", help="go on from --out's weights (optimizer states start anew)"
    )
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    train_texts, held_out_texts, held_out_modules = read_stdlib()
    tokenizer = train_tokenizer(train_texts, args.vocab_size)
    stream, held_out = token_stream(tokenizer, train_texts), token_stream(tokenizer, held_out_texts)
    print(f"{len(stream):,} training tokens, {len(held_out):,} held out ({', '.join(held_out_modules)})", flush=True)

    config = LlamaConfig(
        vocab_size=args.vocab_size,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    first_step = 0
    model = LlamaForCausalLM(config)
    if args.resume:
        first_step = json.loads((args.out / "training.json").read_text())["steps"]
        model.load_state_dict(LlamaForCausalLM.from_pretrained(args.out, dtype=torch.float32).state_dict())
    model = model.to(device)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed_tokens" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    warmup, decay_from = 100, int(0.4 * args.steps)

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        step += first_step
        return min(1.0, max(0.02, (args.steps - step) / (args.steps - decay_from)))

    schedules = [torch.optim.lr_scheduler.LambdaLR(o, scale) for o in optimizers]
    compiled = torch.compile(model)
    generator = np.random.default_rng((args.seed, first_step))
    bos = tokenizer.bos_token_id
    started = time.monotonic()
    running = 0.0
    for step in range(first_step, args.steps):
        rows = batch(stream, args.batch_size, generator, bos).to(device)
        with torch.autocast(device, torch.bfloat16):
            loss = compiled(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        running = loss.item() if step == first_step else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 50 == 0:
            rate = (step + 1 - first_step) * rows.numel() / (time.monotonic() - started)
            print(f"step {step + 1} loss {running:.3f} {rate:,.0f} tokens/s", flush=True)
        if (step + 1) % 1000 == 0 or step + 1 == args.steps:
            model.eval()
            figures = {
                "parameters": sum(p.numel() for p in model.parameters()),
                "tokens_seen": (step + 1) * args.batch_size * CONTEXT,
                "training_tokens": len(stream),
                "held_out_tokens": len(held_out),
                "held_out_loss_nats": held_out_loss(model, held_out, bos),
                "train_loss_nats": held_out_loss(model, stream, bos),
                "held_out_modules": held_out_modules,
                "steps": step + 1,
                "planned_steps": args.steps,
                "python": sysconfig.get_python_version(),
            }
            model.train()
            print({k: v for k, v in figures.items() if k != "held_out_modules"}, flush=True)
            args.out.mkdir(parents=True, exist_ok=True)
            weights = {k: v.detach().half() for k, v in model.state_dict().items()}
            half = LlamaForCausalLM(config).half()
            half.load_state_dict(weights)
            half.save_pretrained(args.out)
            tokenizer.save_pretrained(args.out)
            (args.out / "training.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
