"""How steering a latent changes the next token's logits on random prompts (METHODS 2, the ``output`` explainer).

The prompts are random tokens, the same for all latents of a run: what all of them share says what the latent does whatever stands
before. The latent is steered at the last token of each, by a displacement as long as the hookpoint's activation is there in the
mean, so that latents of long and of short decoder rows are pushed alike.

Letters in shapes: F latents, P prompts, T tokens of a prompt, D width of all output places together, R rows of a batch,
V vocabulary, K tokens of a list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_core.attachment import AttachedCoder, side_by_side
from sae_core.errors import NonFiniteError, SubjectError
from sae_core.hashing import seed_for
from sae_core.intervention.divergence import Unembedding
from sae_core.intervention.resume import CleanContext, Rows, UpperLayers
from sae_core.lens import TopTokens, known_tokens, top_tokens
from sae_core.lens_evidence import TokenChangeEvidence
from sae_core.subject import SubjectModel

PROMPT_TOKENS = 8
"""Random tokens of a prompt, the BOS not counted."""
_LOGITS = 1 << 24
"""Logits that are held at a time: 64 MiB."""


@torch.inference_mode()
def token_change(
    subject: SubjectModel,
    attached: AttachedCoder,
    latents: Sequence[int],
    prompts: int = 32,
    tokens: int = 10,
    seed: int = 0,
    batch_tokens: int = 1024,
    progress: Callable[[int], None] = lambda done: None,
) -> TokenChangeEvidence:
    """Mean change of the next token's logits, less its mean over the vocabulary, with each of ``latents`` steered.

    Of a subject that caps its logits, the logits before the cap: they are in the same order, and linear in the final state.
    Tokens are those that a text can hold: known to the tokenizer and not special. A latent whose decoder row is zero has
    strength 0 and no tokens. ``batch_tokens`` are run at a time, ``progress`` is told the latents done.

    Raises:
        SubjectError: interventions cannot be measured on the subject (its attention, its head).
        NonFiniteError: a steered pass gave NaN or infinite values.
    """
    chosen = np.unique(np.asarray(latents, dtype=np.int32))
    upper = UpperLayers(subject, attached.write, from_clean=attached.read == attached.write)
    unembedding = Unembedding(subject)
    clean = upper.clean(list(random_prompts(subject, prompts, seed)), attached.write)
    directions_FD = _rows_of(attached, chosen).to(subject.device)
    norms_F = directions_FD.norm(dim=-1)
    size = torch.stack([side_by_side(attached.write, c.captured)[-1].float().norm() for c in clean]).mean()
    strength_F = torch.where(norms_F > 0, size / norms_F, 0.0)
    change_FD = _mean_change(upper, clean, directions_FD * strength_F[:, None], batch_tokens, progress)
    raised, lowered = _ends(unembedding, change_FD, known_tokens(subject), tokens)
    silent = (norms_F == 0).cpu().numpy()
    raised, lowered = raised.without(silent), lowered.without(silent)
    return TokenChangeEvidence(chosen, strength_F.cpu().numpy(), *raised, *lowered, num_prompts=prompts)


def random_prompts(subject: SubjectModel, count: int, seed: int) -> NDArray[np.int32]:
    """[P, T] the BOS, where the subject has one, and tokens drawn uniformly from those that a text can hold.

    Raises:
        SubjectError: the tokenizer has none.
    """
    known = torch.nonzero(known_tokens(subject)).flatten().cpu().numpy()
    if not len(known):
        raise SubjectError(f"The tokenizer of the subject {subject.name} has no token but special ones; give another.")
    bos = [] if subject.bos_id is None else [subject.bos_id]
    rng = np.random.default_rng(seed_for(seed, "token change prompts"))
    length = min(PROMPT_TOKENS, subject.max_context - len(bos))
    body = rng.choice(known, size=(count, length)).astype(np.int32)
    return np.concatenate([np.tile(np.array(bos, dtype=np.int32), (count, 1)), body], axis=1)


def _rows_of(attached: AttachedCoder, latents: NDArray[np.int32]) -> Tensor:
    """[F, D] decoder rows, float32."""
    rows = attached.coder.decoder_weight
    return rows[torch.from_numpy(latents.astype(np.int64)).to(rows.device)].float()


def _mean_change(
    upper: UpperLayers,
    clean: Sequence[CleanContext],
    push_FD: Tensor,
    batch_tokens: int,
    progress: Callable[[int], None],
) -> Tensor:
    """[F, d] mean over the prompts of the change of the final hidden state at the last token.

    Rows lie prompt by prompt, so that a batch holds as few clean prefixes as can be. Raises NonFiniteError.
    """
    num_latents, last = len(push_FD), len(clean[0].tokens) - 1
    total = torch.zeros(num_latents, clean[0].final.shape[-1], device=push_FD.device)
    for start in range(0, len(clean) * num_latents, batch_tokens):
        row = np.arange(start, min(start + batch_tokens, len(clean) * num_latents))
        prompt, latent = np.divmod(row, num_latents)
        first = int(prompt[0])
        part = clean[first : int(prompt[-1]) + 1]
        rows = Rows(np.full(len(row), last), np.full(len(row), last + 1), prompt - first)
        of = torch.from_numpy(latent).to(push_FD.device)
        final = upper.run(part, rows, push_FD[of].to(upper.subject.dtype)).float()
        before = torch.stack([c.final[last].float() for c in part])
        total.index_add_(0, of, final - before[torch.from_numpy(prompt - first).to(before.device)])
        progress(int(row[-1] + 1) // len(clean))
    if not bool(torch.isfinite(total).all()):
        raise NonFiniteError(
            f"The subject {upper.subject.name} gave NaN or infinite values when it was steered at "
            f"{', '.join(map(str, upper.hookpoints))}; use dtype float32."
        )
    return total / len(clean)


def _ends(unembedding: Unembedding, change_FD: Tensor, known_V: Tensor, count: int) -> tuple[TopTokens, TopTokens]:
    """Tokens raised and lowered most; before a cap the head is linear: the logits' mean change is that of the mean state."""
    ends = []
    size = max(1, _LOGITS // len(known_V))
    for start in range(0, len(change_FD), size):
        delta = unembedding.delta_logits(change_FD[start : start + size])
        ends.append(top_tokens(delta - delta.mean(dim=-1, keepdim=True), known_V, count))
    raised, lowered = zip(*ends, strict=True)
    return _joined(raised), _joined(lowered)


def _joined(parts: Sequence[TopTokens]) -> TopTokens:
    return TopTokens(np.concatenate([p.ids for p in parts]), np.concatenate([p.logits for p in parts]))
