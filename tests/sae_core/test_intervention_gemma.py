"""Interventions on capped logits, capped attention and sliding windows, against hooks on the plain model."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from sae_core.intervention.divergence import Unembedding
from sae_core.intervention.measure import measure, reference
from sae_core.intervention.resume import Rows, UpperLayers
from sae_core.subject import SubjectModel
from tests.sae_core.test_intervention_resume import plain_logits
from tests.sae_core.tiny_families import VOCAB, WIDTH, tiny_family

CAPS = {"gemma2": 3.0, "gemma3_text": None, "gemma3_multimodal": None, "mistral": None}
"""What final logits are capped at: low enough for the cap to bite."""
WINDOWS = (1, 2, 4, 9)
"""Positions that a block with a sliding window sees; rows are up to 12 long and start at 0 to 20."""


def subject_of(family: str, window: int) -> SubjectModel:
    """A tiny subject whose own attention is transformers' plain one; every other block of a Gemma slides."""
    subject = copy.deepcopy(tiny_family(family))
    subject.config._attn_implementation = "eager"
    text = subject.config.get_text_config()
    text._attn_implementation = "eager"
    text.final_logit_softcapping = CAPS[family]
    text.sliding_window = window
    for name, module in subject.model.named_modules():
        if getattr(module, "attn_logit_softcapping", None) is not None:
            module.attn_logit_softcapping = 0.8  # scores here are of the size of 1
        if getattr(module, "sliding_window", None) is not None:
            assert name.endswith("self_attn")
            module.sliding_window = window
    return subject


ROWS = Rows(
    start=np.array([5, 9, 5, 20, 0, 20]),
    stop=np.array([12, 21, 6, 26, 8, 21]),
    context=np.array([0, 0, 0, 0, 1, 1]),
)


@pytest.mark.parametrize("family", list(CAPS))
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", ["layers.0", "layers.1", "layers.1.mlp", "layers.0:input"])
def test_edited_rows_have_the_predictions_of_a_hook_on_the_plain_model(family: str, window: int, name: str) -> None:
    """Truth: the model's own eager attention, its own masks and its own logits, in one pass a row."""
    subject = subject_of(family, window)
    if family == "gemma3_multimodal":
        name = f"language_model.{name}"
    rng = np.random.default_rng(7)
    contexts = [rng.integers(0, VOCAB, size) for size in (26, 23)]
    upper, unembedding = UpperLayers(subject, subject.hookpoint(name)), Unembedding(subject)
    clean = upper.clean(contexts)
    references = [reference(unembedding, c, ids, [(0, len(ids))]) for c, ids in zip(clean, contexts, strict=True)]
    delta = torch.from_numpy(rng.normal(size=(int(ROWS.lengths.sum()), WIDTH))).float()
    measured = measure(upper, unembedding, references, ROWS, delta)
    for r, (start, stop, number) in enumerate(zip(ROWS.start, ROWS.stop, ROWS.context, strict=True)):
        mine, ids = torch.from_numpy(ROWS.row == r), contexts[number]
        before = plain_logits(subject, name, ids, 0, torch.zeros(1, WIDTH))[start:stop].double().log_softmax(-1)
        after = plain_logits(subject, name, ids, start, delta[mine])[start:stop].double().log_softmax(-1)
        kl = (before.exp() * (before - after)).sum(-1)
        assert float(kl.max()) > 0.001
        np.testing.assert_allclose(measured.kl[mine], kl, rtol=1e-4, atol=1e-5)
        following = torch.from_numpy(np.append(ids, 0)[start + 1 : stop + 1])
        ce = (before - after).gather(1, following[:, None])[:, 0]
        ce[torch.arange(start, stop) == len(ids) - 1] = 0
        np.testing.assert_allclose(measured.delta_ce[mine], ce, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_a_large_vocabulary_s_probabilities_are_made_batch_by_batch(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers, whether a context's clean probabilities are kept or not."""
    subject = subject_of(family, 4) if family == "gemma2" else tiny_family(family)
    contexts = [np.arange(26), np.arange(23)]
    upper, unembedding = UpperLayers(subject, subject.hookpoint("layers.0")), Unembedding(subject)
    delta = torch.randn(int(ROWS.lengths.sum()), WIDTH, generator=torch.Generator().manual_seed(3))
    found = []
    for most in (1 << 22, 10):
        monkeypatch.setattr("sae_core.intervention.measure._MOST_KEPT", most)
        references = [
            reference(unembedding, c, ids, [(0, len(ids))])
            for c, ids in zip(upper.clean(contexts), contexts, strict=True)
        ]
        assert (references[0].probabilities is None) == (most == 10)
        found.append(measure(upper, unembedding, references, ROWS, delta))
    np.testing.assert_allclose(found[0].kl, found[1].kl, rtol=1e-5)
    np.testing.assert_allclose(found[0].delta_ce, found[1].delta_ce, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cap", [0.01, 2.0, 30.0])
@pytest.mark.parametrize("push", [1e-4, 1.0, 300.0])
def test_capped_logits_have_the_kl_of_two_log_softmaxes(cap: float, push: float) -> None:
    """From float64 logits; at the smallest push float32 log-softmaxes would cancel to noise."""
    subject = copy.deepcopy(tiny_family("gemma2"))
    subject.config._attn_implementation = "eager"
    subject.config.final_logit_softcapping = cap
    unembedding = Unembedding(subject)
    generator = torch.Generator().manual_seed(1)
    final = torch.randn(3, WIDTH, generator=generator)
    index = torch.tensor([0, 0, 1, 2, 2, 1, 0])
    difference = push * torch.randn(len(index), WIDTH, generator=generator)
    following = torch.tensor([1, 2, 3, -1, 0, 2, 5])
    found = unembedding.divergence(
        unembedding.probabilities(final), index, difference, following, unembedding.before_cap(final)
    )
    head = subject.model.get_output_embeddings().weight.double()
    before = (torch.tanh(final.double() @ head.T / cap) * cap)[index].log_softmax(-1)
    after = (torch.tanh((final[index].double() + difference.double()) @ head.T / cap) * cap).log_softmax(-1)
    kl = (before.exp() * (before - after)).sum(-1)
    np.testing.assert_allclose(found.kl.numpy(), kl.numpy(), rtol=1e-3, atol=3e-11 if push < 1 else 1e-6)
    rows = torch.arange(len(index))
    ce = torch.where(following >= 0, (before - after)[rows, following.clamp_min(0)], 0.0)
    np.testing.assert_allclose(found.delta_ce.numpy(), ce.numpy(), rtol=1e-3, atol=1e-5 * min(1.0, push))


def test_a_head_that_is_neither_linear_nor_capped_as_known_is_refused() -> None:
    """The config says a cap that the model does not have."""
    from sae_core.errors import SubjectError

    subject = copy.deepcopy(tiny_family("llama"))
    subject.config.final_logit_softcapping = 0.5
    with pytest.raises(SubjectError, match="plain head"):
        Unembedding(subject)
