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


_MOST_EXPONENT = 60.0
"""Logit changes above this are added up by logsumexp: float32 overflows at e^88."""
_Groups = list[tuple[int, int]]


class Divergence(NamedTuple):
    """What an edit does to the prediction after each token."""

    kl: Tensor
    """[N] KL(clean || edited) in nats."""
    delta_ce: Tensor
    """[N] change of the cross-entropy of the true next token in nats; 0 where none was given."""


class Unembedding:
    """The subject's head: from differences of final hidden states to differences of logits.

    The head is linear (a scale is found out; a bias cancels), or linear with capped logits, ``cap tanh(logit / cap)``,
    as in Gemma 2.
    """

    def __init__(self, subject: SubjectModel) -> None:
        """Measure the head on a few tokens.

        Raises:
            SubjectError: the logits are neither linear in the final hidden state nor capped in the known way.
        """
        head = subject.model.get_output_embeddings()
        self.weight: Tensor = head.weight.float()
        self.bias: Tensor | None = None if getattr(head, "bias", None) is None else head.bias.float()
        tokens = torch.arange(min(8, subject.vocab_size), device=subject.device)[None]
        with torch.inference_mode():
            hidden = subject.base(input_ids=tokens, use_cache=False).last_hidden_state[0].float()
            logits = subject.logits(tokens)[0].float()
            raw = hidden @ self.weight.T
            cap = getattr(subject.config.get_text_config(), "final_logit_softcapping", None)
            self.cap: float | None = None if cap is None else float(cap)
            """What logits are capped at; None where they are not."""
            shifted = logits if self.bias is None else logits - self.bias
            self.scale = 1.0 if self.cap else float((raw * shifted).sum() / raw.pow(2).sum().clamp_min(1e-30))
            found = self._capped(raw * self.scale if self.bias is None else raw * self.scale + self.bias)
            off = float((found - logits).abs().max())
        precise = subject.dtype == torch.float32
        if off > (1e-3 if precise else 5e-2) * max(1.0, float(shifted.abs().max())):
            raise SubjectError(
                f"Interventions cannot be measured on the subject {subject.name}: its logits are not linear in the "
                "final hidden state, nor capped as Gemma 2's are; use a subject with a plain head."
            )

        # What all rows share moves all logits alike and changes no distribution; in float32 it would drown the rest.
        self.centred: Tensor = self.weight - self.weight.mean(0)

    def _capped(self, logits: Tensor) -> Tensor:
        """Logits as the subject gives them out."""
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    @torch.inference_mode()
    def probabilities(self, final_PD: Tensor) -> Tensor:
        """[P, V] next-token distributions at clean final hidden states, float32."""
        if self.cap is not None:
            return self._capped(self._logits(final_PD)).softmax(-1)
        logits = final_PD.float() @ self.centred.T * self.scale
        if self.bias is not None:
            logits += self.bias
        distributions: Tensor = logits.softmax(-1)
        return distributions

    @torch.inference_mode()
    def before_cap(self, final_PD: Tensor) -> Tensor | None:
        """[P, V] the logits at clean final hidden states before they are capped; None where they are not capped."""
        return None if self.cap is None else self._logits(final_PD)

    def _logits(self, final_PD: Tensor) -> Tensor:
        logits = final_PD.float() @ self.weight.T * self.scale
        return logits if self.bias is None else logits + self.bias

    @torch.inference_mode()
    def divergence(
        self,
        clean_PV: Tensor,
        index_N: Tensor,
        difference_ND: Tensor,
        next_token_N: Tensor,
        before_cap_PV: Tensor | None = None,
    ) -> Divergence:
        """KL(clean || edited) and change of cross-entropy of edited tokens.

        With p the clean distribution, δ the change of the logits, m = Σ p δ and d = δ − m, ``KL = ln(Σ p e^d)``, computed
        as ``log1p(Σ p expm1(d))``. That is the same number as from two log-softmaxes, without their cancellation: what
        rounds is of the size of the edit, not of the logits, so that no edit gives exactly 0. Taking m off first keeps
        an edit that moves all logits alike from drowning the rest (published subjects have such directions).

        Where logits are capped, δ is ``c tanh(u' / c) - c tanh(u / c)``, u and u' the logits before the cap, computed as
        ``c tanh((u' - u) / c) (1 - tanh(u / c) tanh(u' / c))``, which does not cancel either.

        Args:
            clean_PV: clean distributions at the positions that occur, see :meth:`probabilities`.
            index_N: [N] row of ``clean_PV`` that each token stands at.
            difference_ND: [N, D] edited minus clean final hidden state, in float32.
            next_token_N: [N] the token that follows, -1 where there is none.
            before_cap_PV: clean logits of the same positions, see :meth:`before_cap`; only a head with a cap needs them.
        """
        if (self.cap is None) != (before_cap_PV is None):
            raise ValueError("A head with a cap takes the clean logits before the cap, and no other head does.")
        order = torch.argsort(index_N, stable=True)
        index = index_N[order]
        difference = difference_ND.index_select(0, order)
        places = index.tolist()
        growth = torch.empty(len(places), dtype=torch.float32, device=difference.device)
        mean_delta, kl = torch.empty_like(growth), torch.empty_like(growth)
        # A cap sees what all logits share.
        head = self.centred if self.cap is None else self.weight
        weight = head.T if self.scale == 1.0 else head.T * self.scale
        following = next_token_N[order]
        risen = torch.empty_like(growth)
        buffer = torch.empty(min(_CHUNK, len(places)), weight.shape[1], device=difference.device)
        on_cpu = difference.device.type == "cpu"
        for begin in range(0, len(places), _CHUNK):
            end = min(begin + _CHUNK, len(places))
            delta = torch.mm(difference[begin:end], weight, out=buffer[: end - begin])
            if before_cap_PV is not None:
                delta = self._change_of_capped(before_cap_PV[index[begin:end]], delta)
            risen[begin:end] = delta.gather(1, following[begin:end, None].clamp_min(0))[:, 0]
            # Tokens at one position share p, which a CPU then finds in its cache; a GPU rather gathers it.
            starts = [i for i in range(begin, end) if i == begin or places[i] != places[i - 1]]
            groups = list(itertools.pairwise([*starts, end])) if on_cpu else []

            def expectation(
                values: Tensor, out: Tensor, begin: int = begin, end: int = end, groups: _Groups = groups
            ) -> None:
                for a, b in groups:
                    torch.mv(values[a - begin : b - begin], clean_PV[places[a]], out=out[a:b])
                if not groups:
                    out[begin:end] = (values * clean_PV[index[begin:end]]).sum(-1)

            expectation(delta, mean_delta)
            delta -= mean_delta[begin:end, None]
            if float(delta.max()) < _MOST_EXPONENT:
                expectation(delta.expm1_(), growth)
                kl[begin:end] = growth[begin:end].log1p()
            else:
                log_p = clean_PV[index[begin:end]].clamp_min(torch.finfo(torch.float32).tiny).log()
                kl[begin:end] = torch.logsumexp(log_p + delta, dim=-1)
        delta_ce = torch.where(following >= 0, kl + mean_delta - risen, 0.0)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return Divergence(kl.clamp_min(0.0)[back], delta_ce[back])

    def _change_of_capped(self, clean_nV: Tensor, delta_nV: Tensor) -> Tensor:
        """[n, V] change of the capped logits, from the clean ones before the cap and their change."""
        assert self.cap is not None
        after = torch.tanh((clean_nV + delta_nV) / self.cap)
        slope = 1 - torch.tanh(clean_nV / self.cap) * after
        return torch.tanh(delta_nV / self.cap) * slope * self.cap

    @torch.inference_mode()
    def delta_logits(self, difference_XD: Tensor) -> Tensor:
        """[..., V] change of the logits, before a cap, that a change [..., D] of the final hidden state makes."""
        return difference_XD.float() @ self.weight.T * self.scale
