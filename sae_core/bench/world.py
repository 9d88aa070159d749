"""A subject, a coder and a corpus to time things on: made from a seed, nothing is downloaded.

The subject is a GPT-NeoX with random weights. Its coder is a TopK whose biases spread the latents' firing rates as
real ones are spread: some fire in most windows, many hardly ever. Tokens follow Zipf's law.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models

from sae_core.attachment import AttachedCoder, attach
from sae_core.coder import SparseCoder
from sae_core.hashing import hash64
from sae_core.parts.activation import TopK
from sae_core.parts.encoder import AffineEncoder
from sae_core.subject import SubjectModel
from sae_core.tokens import TokenCorpus, sides_of

VOCABULARY, CONTEXT_LENGTH, CONTEXTS_A_DOCUMENT = 8_192, 256, 4
HOOKPOINT = "layers.2"


@dataclass(frozen=True)
class BenchWorld:
    """What is timed."""

    subject: SubjectModel
    attached: AttachedCoder
    corpus: TokenCorpus

    @property
    def weight_bytes(self) -> int:
        """Weights of the subject and of the coder's encoder and decoder."""
        coder = self.attached.coder
        tensors = [*self.subject.model.parameters(), coder.encoder.weight, coder.decoder_weight]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def make_world(
    num_latents: int,
    num_tokens: int,
    folder: Path,
    *,
    k: int = 32,
    width: int = 256,
    layers: int = 4,
    hookpoint: str = HOOKPOINT,
    device: str = "cpu",
) -> BenchWorld:
    """A subject of ``layers`` layers, a coder of ``num_latents`` at ``hookpoint``, and ``num_tokens`` tokens in full contexts."""
    import transformers

    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
        max_position_embeddings=CONTEXT_LENGTH,
        bos_token_id=None,
        eos_token_id=None,
    )
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    model: torch.nn.Module = transformers.GPTNeoXForCausalLM(config)
    subject = SubjectModel(model.to(device), tokenizer, name="bench", revision="0")
    corpus = _corpus(num_tokens, tokenizer, folder)
    return BenchWorld(subject, attach(subject, _coder(subject, corpus, num_latents, k, width, hookpoint)), corpus)


def _corpus(num_tokens: int, tokenizer: Tokenizer, folder: Path) -> TokenCorpus:
    contexts = max(1, num_tokens // CONTEXT_LENGTH)
    document = np.arange(contexts) // CONTEXTS_A_DOCUMENT
    rates = 1.0 / np.arange(1, VOCABULARY + 1) ** 1.2
    tokens = np.random.default_rng(0).choice(VOCABULARY, size=contexts * CONTEXT_LENGTH, p=rates / rates.sum())
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return TokenCorpus(
        folder=folder,
        tokens=tokens.astype(np.int32),
        context_start=np.arange(contexts + 1, dtype=np.int64) * CONTEXT_LENGTH,
        context_document=document.astype(np.int32),
        context_side=sides_of(hash64(document), 0),
        context_uid=hash64(np.arange(contexts)),
        num_documents=int(document[-1]) + 1,
        num_tokens=contexts * CONTEXT_LENGTH,
        fingerprint="bench",
        bos_id=None,
    )


def _coder(subject: SubjectModel, corpus: TokenCorpus, num_latents: int, k: int, width: int, name: str) -> SparseCoder:
    """Unit directions, and biases of half the spread of the pre-activations around their mean."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.functional.normalize(torch.randn(num_latents, width, generator=generator), dim=1)
    spread = 0.5 * torch.randn(num_latents, generator=generator)
    weight, spread = weight.to(subject.device), spread.to(subject.device)
    hookpoint = subject.hookpoint(name)
    sample = np.stack([corpus.context(context) for context in range(min(16, corpus.num_contexts))])
    hidden = subject.capture(torch.from_numpy(sample).long(), [hookpoint])[hookpoint].reshape(-1, width).clone()
    mean = hidden.mean(0)
    bias = spread * ((hidden - mean) @ weight.T).std() - weight @ mean
    return SparseCoder(
        encoder=AffineEncoder(weight, bias, TopK(k)),
        decoder_weight=weight,
        decoder_bias=torch.zeros(width, device=subject.device),
        hookpoints_in=(name,),
        hookpoints_out=(name,),
        format="bench",
        architecture="topk",
        fingerprint="bench",
    )
