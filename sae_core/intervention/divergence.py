"""How far an edit moves the next-token distribution, from final hidden states.

Letters in shapes: N edited tokens, P positions of a context, D width, V vocabulary.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from sae_core.errors import SubjectError
from sae_core.subject import SubjectModel

_CHUNK = 256
"""Tokens whose logits are held at a time: 256 rows of a 4,096-word vocabulary stay in a core's cache."""


class Divergence(NamedTuple):
    """What an edit does to the prediction after each token."""

    kl: Tensor
    """[N] KL(clean || edited) in nats."""
    delta_ce: Tensor
    """[N] change of the cross-entropy of the true next token in nats; 0 where none was given."""


class Unembedding:
    """The subject's head: from differences of final hidden states to differences of logits.

    The head must be linear (a scale is found out; a bias cancels).
    """

    def __init__(self, subject: SubjectModel) -> None:
        """Measure the head on a few tokens.

        Raises:
            SubjectError: the logits are not linear in the final hidden state (capped logits, say).
        """
        head = subject.model.get_output_embeddings()
        self.weight: Tensor = head.weight.float()
        self.bias: Tensor | None = None if getattr(head, "bias", None) is None else head.bias.float()
        tokens = torch.arange(min(8, subject.vocab_size), device=subject.device)[None]
        with torch.inference_mode():
            hidden = subject.base(input_ids=tokens, use_cache=False).last_hidden_state[0].float()
            logits = subject.logits(tokens)[0].float()
            raw = hidden @ self.weight.T
            shifted = logits if self.bias is None else logits - self.bias
            self.scale = float((raw * shifted).sum() / raw.pow(2).sum().clamp_min(1e-30))
            off = float((raw * self.scale - shifted).abs().max())
        precise = subject.dtype == torch.float32
        if off > (1e-3 if precise else 5e-2) * max(1.0, float(shifted.abs().max())):
            raise SubjectError(
                f"Interventions cannot be measured on the subject {subject.name}: its logits are not linear in the "
                "final hidden state (are they capped?); use a subject with a plain linear head."
            )

    @torch.inference_mode()
    def probabilities(self, final_PD: Tensor) -> Tensor:
        """[P, V] next-token distributions at clean final hidden states, float32."""
        logits = final_PD.float() @ self.weight.T * self.scale
        if self.bias is not None:
            logits += self.bias
        return logits.softmax(-1)

    @torch.inference_mode()
    def divergence(self, clean_PV: Tensor, index_N: Tensor, difference_ND: Tensor, next_token_N: Tensor) -> Divergence:
        """KL(clean || edited) and change of cross-entropy of edited tokens.

        With p the clean distribution and δ the change of the logits, ``KL = ln(Σ p e^δ) − Σ p δ``, computed from δ
        itself as ``log1p(Σ p expm1(δ)) − Σ p δ``. That is the same number as from two log-softmaxes, without their
        cancellation: what rounds is of the size of the edit, not of the logits, so that no edit gives exactly 0.

        Args:
            clean_PV: clean distributions at the positions that occur, see :meth:`probabilities`.
            index_N: [N] row of ``clean_PV`` that each token stands at.
            difference_ND: [N, D] edited minus clean final hidden state, in float32.
            next_token_N: [N] the token that follows, -1 where there is none.
        """
        order = torch.argsort(index_N, stable=True)
        index = index_N[order]
        difference = difference_ND.index_select(0, order)
        places = index.tolist()
        growth = torch.empty(len(places), dtype=torch.float32, device=difference.device)
        mean_delta = torch.empty_like(growth)
        weight = self.weight.T if self.scale == 1.0 else self.weight.T * self.scale
        buffer = torch.empty(min(_CHUNK, len(places)), weight.shape[1], device=difference.device)
        on_cpu = difference.device.type == "cpu"
        for begin in range(0, len(places), _CHUNK):
            end = min(begin + _CHUNK, len(places))
            delta = torch.mm(difference[begin:end], weight, out=buffer[: end - begin])
            # Tokens at one position share p, which a CPU then finds in its cache; a GPU rather gathers it.
            starts = [i for i in range(begin, end) if i == begin or places[i] != places[i - 1]]
            groups = list(itertools.pairwise([*starts, end])) if on_cpu else []
            for result in (mean_delta, growth):
                for a, b in groups:
                    torch.mv(delta[a - begin : b - begin], clean_PV[places[a]], out=result[a:b])
                if not on_cpu:
                    result[begin:end] = (delta * clean_PV[index[begin:end]]).sum(-1)
                if result is mean_delta:
                    delta.expm1_()
        log_growth = torch.log1p(growth)
        kl = log_growth - mean_delta
        following = next_token_N[order]
        risen = (difference * self.weight[following.clamp_min(0)]).sum(-1) * self.scale
        delta_ce = torch.where(following >= 0, log_growth - risen, 0.0)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return Divergence(kl.clamp_min(0.0)[back], delta_ce[back])

    @torch.inference_mode()
    def delta_logits(self, difference_XD: Tensor) -> Tensor:
        """[..., V] change of the logits that a change [..., D] of the final hidden state makes."""
        return difference_XD.float() @ self.weight.T * self.scale
