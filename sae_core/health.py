"""How well a coder stands for its subject's activations: sparsity, reconstruction, the subject's loss with it in place.

The definitions are those of SAEBench's core evaluation (``sae_bench/evals/core/main.py``, Karvonen et al. 2025), so that
numbers can be compared; where it has a name for a figure, the figure's docstring gives it. What holds for all of them:

- Special tokens (BOS, EOS, padding) count nowhere, as there: neither in activations, nor in a loss or KL at their place.
- The pass with the coder's output leaves special tokens' activations as they are (SAEBench with
  ``exclude_special_tokens_from_reconstruction``); the pass with zeros puts zeros at every token, special ones too.
- What is reconstructed is what the coder writes: a transcoder is compared with its module's true output.
- Means are over all tokens, where SAEBench takes the mean of its batches' means: the same for batches of one size.

Letters: B contexts of a batch, T tokens, N tokens that count, D width of all written hookpoints together, H hookpoints,
L latents, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_core.attachment import AttachedCoder, side_by_side
from sae_core.batches import context_batches, padded
from sae_core.coder import SparseCoder
from sae_core.editing import put
from sae_core.errors import CorpusError, NonFiniteError
from sae_core.hookpoints import Hookpoint, first_tensor
from sae_core.subject import SubjectModel
from sae_core.tokens import TokenCorpus

DENSE_RATE = 0.1
"""Share of tokens above which a latent that fires there is called dense."""
CELLS_PER_OCTAVE, LOWEST_OCTAVE, NUM_OCTAVES = 4, -10, 24
"""The grid of the description length: 96 cells of 2^(1/4) from 2^-10 to 2^14; what lies outside goes to the end cells."""

_LOGITS_LIMIT = 1 << 27
"""Logits of one pass: batches become smaller for large vocabularies."""
_CHUNK_LIMIT = 1 << 24
"""Values of one chunk of tokens x vocabulary, or tokens x latents."""
_NUM_CELLS = CELLS_PER_OCTAVE * NUM_OCTAVES
_SHORTEST_NORM = 1e-4
"""SAEBench divides by 1 in place of a norm below this."""


@dataclass(frozen=True)
class CoderHealth:
    """What one pass over a corpus says about a coder. NaN stands for what is not defined (a quotient of 0 and 0)."""

    num_tokens: int
    """N, the tokens that the figures are about; special tokens are not counted."""
    num_predictions: int
    """Tokens that count and have a next one in their context: what the cross-entropies are about."""
    fire_count: NDArray[np.int64]
    """[L] tokens on which each latent's activation is not 0."""
    l0: float
    """Active latents of a token, mean (``l0``)."""
    l1: float
    """Sum of the absolute activations of a token, mean (``l1``, which sums with the sign: the same where none is negative)."""
    sum_activation: float
    """Sum of the signed activations of a token, mean (SAEBench's ``l1``)."""
    mean_squared_error: float
    """Squared error, mean over tokens and dimensions. (``mse`` is another figure: it divides by a batch's tokens once more.)"""
    cosine: float
    """Cosine of output and reconstruction, mean over tokens, 0 where either is the zero vector (``cossim``, NaN there)."""
    explained_variance: float
    """1 - Σ|y - ŷ|² / Σ|y - mean(y)|² over all tokens; SAELens 6's ``explained_variance``.

    SAEBench's figure of this name takes the mean of squares for the mean, see :attr:`saebench_explained_variance`.
    """
    explained_variance_by_hookpoint: tuple[float, ...]
    """[H_out] the same for each written hookpoint by itself, in the coder's order."""
    saebench_explained_variance: float
    """``explained_variance`` as SAEBench computes it: 1 - E|y - ŷ|² / (E|y|² - (E|y|²/D)²), to compare with its tables."""
    explained_variance_legacy: float
    """1 - |y - ŷ|² / |y - mean(y)|² token by token, then the mean; mean(y) is a batch's (``explained_variance_legacy``).

    It depends a little on how many tokens are together in a batch.
    """
    l2_norm_in: float
    """Norm of the true activations, mean over tokens (``l2_norm_in``)."""
    l2_norm_out: float
    """Norm of the reconstruction, mean over tokens (``l2_norm_out``)."""
    l2_ratio: float
    """Norm of the reconstruction over the true norm, mean over tokens; below 1 is shrinkage (``l2_ratio``)."""
    relative_reconstruction_bias: float
    """E|ŷ|² / E[y·ŷ], 1 where no rescaling helps (``relative_reconstruction_bias``; Rajamanoharan et al. 2024, eq. 10)."""
    ce_clean: float
    """Cross-entropy of the next token, nats, mean over predictions, nothing replaced (``ce_loss_without_sae``)."""
    ce_coder: float
    """The same with the coder's output in place (``ce_loss_with_sae``)."""
    ce_zero: float
    """The same with zeros in place (``ce_loss_with_ablation``)."""
    kl_coder: float
    """KL(clean || with the coder's output), nats, mean over all tokens that count (``kl_div_with_sae``)."""
    kl_zero: float
    """KL(clean || with zeros), nats (``kl_div_with_ablation``)."""
    position_bits: float
    """Bits a token to say which latents fire: Σ over latents of the entropy of "it fires", at its own rate."""
    value_bits: float
    """Bits a token for the activations of those that fire: Σ over latents of rate x (entropy of sign + entropy of cell).

    Cells are those of a latent's |activation| on the grid of ratios 2^(1/4): a value is known to within 9%.
    """
    inputs_from: Literal["same pass", "clean pass"]
    """Where the coder's inputs come from when its output is in place.

    "same pass" where every read hookpoint comes before (or is) the first written one: what is read is then what the clean pass
    gives. "clean pass" where one comes later (crosscoders): it reads the clean pass, not what its own output has changed.
    """

    @property
    def fire_rate(self) -> NDArray[np.float64]:
        """[L] share of tokens on which each latent fires (``feature_density``)."""
        return self.fire_count / self.num_tokens

    @property
    def dead_share(self) -> float:
        """Share of latents that fired on none of the N tokens (1 - ``frac_alive``)."""
        return float((self.fire_count == 0).mean())

    @property
    def dense_share(self) -> float:
        """Share of latents that fire on more than 10% of the tokens (``freq_over_10_percent``)."""
        return self.share_firing_over(DENSE_RATE)

    def share_firing_over(self, rate: float) -> float:
        """Share of latents that fire on more than ``rate`` of the tokens."""
        return float((self.fire_rate > rate).mean())

    @property
    def fraction_of_variance_unexplained(self) -> float:
        """1 - explained variance."""
        return 1.0 - self.explained_variance

    @property
    def loss_increase(self) -> float:
        """H_coder - H_clean, nats."""
        return self.ce_coder - self.ce_clean

    @property
    def loss_recovered(self) -> float:
        """(H_zero - H_coder) / (H_zero - H_clean): 1 as the clean subject, 0 as with zeros (``ce_loss_score``)."""
        return _ratio(self.ce_zero - self.ce_coder, self.ce_zero - self.ce_clean)

    @property
    def kl_score(self) -> float:
        """(KL_zero - KL_coder) / KL_zero (``kl_div_score``)."""
        return _ratio(self.kl_zero - self.kl_coder, self.kl_zero)

    @property
    def bits_per_token(self) -> float:
        """Description length of a token's activations, position bits + value bits.

        After Ayonrinde et al. 2024, "Interpretability as Compression" (MDL-SAEs), with a code that knows each latent's own rate
        and histogram and takes latents as independent: compare coders at like explained variance. Plug-in entropies
        are too low for latents that fired a few times.
        """
        return self.position_bits + self.value_bits


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole != 0 else math.nan


@torch.inference_mode()
def measure_health(
    subject: SubjectModel,
    attached: AttachedCoder,
    corpus: TokenCorpus,
    *,
    batch_tokens: int = 4096,
    progress: Callable[[int], None] = lambda tokens: None,
) -> CoderHealth:
    """The health of a coder on the whole of ``corpus``: three passes of the subject a batch of about ``batch_tokens``.

    Memory depends on a batch and the latents (one histogram of 96 cells each), not on the corpus; a batch is made smaller where its logits
    would be more than 2^27. ``progress`` gets the tokens done.

    Raises:
        NonFiniteError: the subject, or the coder, gives NaN or infinite values.
        CorpusError: no context has two tokens of text, so that nothing is predicted.
    """
    batch_tokens = max(1, min(batch_tokens, _LOGITS_LIMIT // subject.vocab_size))
    special = np.asarray(sorted(subject.special_ids), dtype=np.int64)
    latents = _Latents.empty(attached.coder.num_latents, subject.device)
    outputs, effect = _Outputs(), _Effect()
    inputs_from: Literal["same pass", "clean pass"] = "same pass"
    for rows in context_batches(corpus, np.arange(corpus.num_contexts), batch_tokens):
        tokens = padded([corpus.context(int(row)) for row in rows])
        counts = (tokens >= 0) & ~np.isin(tokens, special)
        if not counts.any():
            continue
        following = np.pad(tokens[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
        keep = torch.from_numpy(counts).to(subject.device)
        device_tokens = torch.from_numpy(np.maximum(tokens, 0)).long().to(subject.device)

        captured, reached, clean = _clean_pass(subject, attached, device_tokens)
        if max(reached.index(h) for h in attached.read) > min(reached.index(h) for h in attached.write):
            inputs_from = "clean pass"
        hidden, target = attached.inputs(captured), side_by_side(attached.write, captured)
        if not bool(torch.isfinite(hidden).all() and torch.isfinite(target).all()):
            places = ", ".join(dict.fromkeys(map(str, (*attached.read, *attached.write))))
            raise NonFiniteError(
                f"the subject gives NaN or infinite values at hookpoint {places}, in a batch that holds document "
                f"{int(corpus.context_document[rows[0]])}: its weights are damaged, or the dtype overflows; use dtype float32."
            )
        reconstruction = _reconstruct(attached.coder, hidden[keep], latents)
        outputs.add(target[keep].float(), reconstruction.float())

        replaced = target.clone()
        replaced[keep] = reconstruction.to(target.dtype)
        places_and_next = (
            keep.flatten().nonzero().squeeze(1),
            torch.from_numpy(following).to(subject.device).flatten(),
        )
        for name, value in (("coder", replaced), ("zero", torch.zeros_like(target))):
            with put(subject, _by_hookpoint(attached, value)):
                edited = subject.logits(device_tokens)
            effect.add(name, clean, edited, *places_and_next)
        progress(latents.num_tokens)
    if effect.num_predictions == 0:
        raise CorpusError(
            "no context of the corpus has two tokens of text in a row, so no prediction can be measured: give a longer context length or more text."
        )
    return _health(latents, outputs, effect, attached, inputs_from)


def _clean_pass(
    subject: SubjectModel, attached: AttachedCoder, tokens_BT: Tensor
) -> tuple[dict[Hookpoint, Tensor], list[Hookpoint], Tensor]:
    """Activations [B, T, ...] at the coder's hookpoints, the order in which they were reached, logits [B, T, V]."""
    captured: dict[Hookpoint, Tensor] = {}

    def keep(hookpoint: Hookpoint, value: object) -> None:
        # A copy: the pass goes on, and a module may work in place.
        captured[hookpoint] = first_tensor(value).clone()

    with subject.hooks({*attached.read, *attached.write}, keep):
        logits = subject.logits(tokens_BT)
    return captured, list(captured), logits


def _reconstruct(coder: SparseCoder, x: Tensor, latents: _Latents) -> Tensor:
    """[N, D] what the coder writes for inputs [N, ...]; its activations are added to ``latents``.

    Raises NonFiniteError where either is NaN or infinite.
    """
    parts = []
    for chunk in torch.split(x, max(1, _CHUNK_LIMIT // coder.num_latents)):
        acts = coder.encode(chunk)
        out = coder.decode(acts, chunk).flatten(1)
        if not bool(torch.isfinite(acts).all() and torch.isfinite(out).all()):
            raise NonFiniteError(
                "the coder gives NaN or infinite values: its weights are damaged or do not fit this subject's activations."
            )
        latents.add(acts)
        parts.append(out)
    return torch.cat(parts)


def _by_hookpoint(attached: AttachedCoder, value: Tensor) -> dict[Hookpoint, Tensor]:
    """[..., H * D] cut into what belongs to each written hookpoint."""
    return dict(zip(attached.write, torch.split(value, attached.coder.d_out, dim=-1), strict=True))


@dataclass
class _Latents:
    """Sums over tokens, by latent."""

    fire_count: Tensor
    """[L] int64"""
    negative_count: Tensor
    """[L] int64, tokens with an activation below 0."""
    cells: Tensor
    """[L * cells] int32, firing tokens by |activation|."""
    num_tokens: int = 0
    sum_absolute: float = 0.0
    sum_signed: float = 0.0

    @classmethod
    def empty(cls, num_latents: int, device: torch.device) -> _Latents:
        def zeros(length: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(length, dtype=dtype, device=device)

        return cls(
            zeros(num_latents, torch.int64),
            zeros(num_latents, torch.int64),
            zeros(num_latents * _NUM_CELLS, torch.int32),
        )

    def add(self, acts_NL: Tensor) -> None:
        token, latent = acts_NL.nonzero(as_tuple=True)
        value = acts_NL[token, latent].float()
        magnitude = value.abs()
        length = len(self.fire_count)
        self.fire_count += torch.bincount(latent, minlength=length)
        self.negative_count += torch.bincount(latent[value < 0], minlength=length)
        cell = ((magnitude.log2() - LOWEST_OCTAVE) * CELLS_PER_OCTAVE).floor().clamp(0, _NUM_CELLS - 1).long()
        self.cells.scatter_add_(0, latent * _NUM_CELLS + cell, torch.ones_like(cell, dtype=torch.int32))
        self.num_tokens += len(acts_NL)
        self.sum_absolute += _sum64(magnitude)
        self.sum_signed += _sum64(value)

    def bits(self) -> tuple[float, float]:
        """Position bits and value bits of a token."""
        fires = self.fire_count.cpu().numpy().astype(np.float64)
        negative = self.negative_count.cpu().numpy().astype(np.float64)
        cells = self.cells.cpu().numpy().reshape(-1, _NUM_CELLS)
        position = float(_binary_bits(fires / self.num_tokens).sum())
        value = 0.0
        for start in range(0, len(fires), 1 << 16):  # float64 copies of some latents' cells at a time
            part = slice(start, start + (1 << 16))
            alive = fires[part] > 0
            n = fires[part][alive]
            counts = cells[part][alive].astype(np.float64)
            entropy = np.log2(n) - (counts * np.log2(np.maximum(counts, 1))).sum(axis=1) / n
            sign = _binary_bits(negative[part][alive] / n)
            value += float((n / self.num_tokens * (entropy + sign)).sum())
        return position, value


def _binary_bits(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy of a coin of probability p, bits."""
    inside = np.clip(p, 1e-300, 1.0)
    other = np.clip(1 - p, 1e-300, 1.0)
    return -(p * np.log2(inside) + (1 - p) * np.log2(other))


def _sum64(values: Tensor) -> float:
    """Sum in float64, on the CPU: not every accelerator has it."""
    return float(values.cpu().double().sum())


@dataclass
class _Outputs:
    """Sums over tokens that compare true with reconstructed activations."""

    num_tokens: int = 0
    mean: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    """[D] mean of the true activations."""
    centred: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    """[D] Σ(y - mean)²."""
    squared_error: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    """[D] Σ(y - ŷ)²."""
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, y_ND: Tensor, out_ND: Tensor) -> None:
        n = len(y_ND)
        error = y_ND - out_ND
        batch_mean = y_ND.mean(0)
        around = (y_ND - batch_mean).pow(2)
        around_D, error_D = around.sum(0).cpu().double().numpy(), error.pow(2).sum(0).cpu().double().numpy()
        if not (np.isfinite(around_D).all() and np.isfinite(error_D).all()):
            raise NonFiniteError(
                "the squares of the activations, or of the coder's errors, are too large for float32: the subject's or the coder's weights are damaged."
            )
        # Batches are merged by their means and centred sums (Chan, Golub & LeVeque 1983): E[y²] - E[y]² would lose a small
        # variance beside a large mean, which residual streams have.
        step = batch_mean.cpu().double().numpy() - self.mean
        total = self.num_tokens + n
        self.centred = self.centred + around_D + step**2 * (self.num_tokens * n / total)
        self.mean = self.mean + step * (n / total)
        self.squared_error = self.squared_error + error_D
        self.num_tokens = total

        norm_in, norm_out, dot = y_ND.norm(dim=-1), out_ND.norm(dim=-1), (y_ND * out_ND).sum(-1)
        product = norm_in * norm_out
        for name, value in (
            ("norm_in", norm_in),
            ("norm_out", norm_out),
            ("ratio", norm_out / torch.where(norm_in < _SHORTEST_NORM, 1.0, norm_in)),
            ("cosine", torch.where(product > 0, dot / product, 0.0)),
            ("squared_in", norm_in.pow(2)),
            ("squared_out", norm_out.pow(2)),
            ("dot", dot),
            ("legacy", 1 - error.pow(2).sum(-1) / around.sum(-1)),
        ):
            self.sums[name] = self.sums.get(name, 0.0) + _sum64(value)


@dataclass
class _Effect:
    """Sums over tokens of what a replaced pass does to the predictions, by pass."""

    num_predictions: int = 0
    clean: float = 0.0
    ce: dict[str, float] = field(default_factory=lambda: {"coder": 0.0, "zero": 0.0})
    kl: dict[str, float] = field(default_factory=lambda: {"coder": 0.0, "zero": 0.0})

    def add(self, name: str, clean_BTV: Tensor, edited_BTV: Tensor, place: Tensor, following: Tensor) -> None:
        """Add one pass: ``place`` [N] are the flat places that count, ``following`` [B*T] next token ids, -1 for none."""
        width = clean_BTV.shape[-1]
        clean, edited = clean_BTV.reshape(-1, width), edited_BTV.reshape(-1, width)
        for chunk in torch.split(place, max(1, _CHUNK_LIMIT // width)):
            log_p, log_q = clean[chunk].float().log_softmax(-1), edited[chunk].float().log_softmax(-1)
            p = log_p.exp()
            # a token that the subject never gives (logit -inf) adds 0, not 0 x inf
            kl = _sum64(torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1))
            has_next = following[chunk] >= 0
            predicted = following[chunk][has_next].long().unsqueeze(1)
            ce = -_sum64(log_q[has_next].gather(1, predicted))
            if not (math.isfinite(kl) and math.isfinite(ce)):
                raise NonFiniteError(
                    f"the subject gives NaN or infinite logits, {'with zeros' if name == 'zero' else 'with the output of the coder'} in place: use dtype float32."
                )
            self.kl[name] += kl
            self.ce[name] += ce
            if name == "coder":  # the clean side is the same in both passes
                self.clean -= _sum64(log_p[has_next].gather(1, predicted))
                self.num_predictions += len(predicted)


def _health(
    latents: _Latents,
    outputs: _Outputs,
    effect: _Effect,
    attached: AttachedCoder,
    inputs_from: Literal["same pass", "clean pass"],
) -> CoderHealth:
    n, width = outputs.num_tokens, len(outputs.mean)
    mean = {name: value / n for name, value in outputs.sums.items()}
    unexplained, variance = float(outputs.squared_error.sum()), float(outputs.centred.sum())
    by_hookpoint = zip(
        outputs.squared_error.reshape(len(attached.write), -1).sum(axis=1).tolist(),
        outputs.centred.reshape(len(attached.write), -1).sum(axis=1).tolist(),
        strict=True,
    )
    position_bits, value_bits = latents.bits()
    fire_count = latents.fire_count.cpu().numpy()
    return CoderHealth(
        num_tokens=n,
        num_predictions=effect.num_predictions,
        fire_count=fire_count,
        l0=float(fire_count.sum()) / n,
        l1=latents.sum_absolute / n,
        sum_activation=latents.sum_signed / n,
        mean_squared_error=unexplained / n / width,
        cosine=mean["cosine"],
        explained_variance=1 - _ratio(unexplained, variance),
        explained_variance_by_hookpoint=tuple(1 - _ratio(error, around) for error, around in by_hookpoint),
        saebench_explained_variance=1 - _ratio(unexplained / n, mean["squared_in"] - (mean["squared_in"] / width) ** 2),
        explained_variance_legacy=mean["legacy"],
        l2_norm_in=mean["norm_in"],
        l2_norm_out=mean["norm_out"],
        l2_ratio=mean["ratio"],
        relative_reconstruction_bias=_ratio(mean["squared_out"], mean["dot"]),
        ce_clean=effect.clean / effect.num_predictions,
        ce_coder=effect.ce["coder"] / effect.num_predictions,
        ce_zero=effect.ce["zero"] / effect.num_predictions,
        kl_coder=effect.kl["coder"] / n,
        kl_zero=effect.kl["zero"] / n,
        position_bits=position_bits,
        value_bits=value_bits,
        inputs_from=inputs_from,
    )
