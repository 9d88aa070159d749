"""KL from differences of final hidden states against two log-softmaxes in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from sae_core.intervention.divergence import Unembedding
from tests.sae_core.intervention_world import World, make_world


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


@pytest.mark.parametrize("common", [0.0, -40.0, 40.0, -120.0, 120.0])
@pytest.mark.parametrize("push", [1e-3, 1.0, 30.0])
def test_kl_is_that_of_two_log_softmaxes_whatever_all_logits_share(world: World, common: float, push: float) -> None:
    """Adding the same number to every logit changes no distribution, so it must change no KL (the softmax's own law)."""
    subject = copy.deepcopy(world.subject)
    head = subject.model.get_output_embeddings().weight
    generator = torch.Generator().manual_seed(1)
    width = head.shape[1]
    shared = torch.randn(width, generator=generator)
    shared /= shared.norm()
    head.data += shared - (head.data @ shared)[:, None] * shared
    unembedding = Unembedding(subject)
    final = torch.randn(3, width, generator=generator)
    index = torch.tensor([0, 0, 1, 2, 2, 1, 0])
    difference = push * torch.randn(len(index), width, generator=generator)
    difference = difference - (difference @ shared)[:, None] * shared + common * shared
    following = torch.tensor([1, 2, 3, -1, 0, 2, 5])
    clean = unembedding.probabilities(final)
    found = unembedding.divergence(clean, index, difference, following)
    weight = head.double() * unembedding.scale
    before = (final.double() @ weight.T)[index].log_softmax(-1)
    after = ((final[index].double() + difference.double()) @ weight.T).log_softmax(-1)
    kl = (before.exp() * (before - after)).sum(-1)
    np.testing.assert_allclose(found.kl.numpy(), kl.numpy(), rtol=2e-3, atol=2e-6)
    rows = torch.arange(len(index))
    ce = torch.where(following >= 0, (before - after)[rows, following.clamp_min(0)], 0.0)
    np.testing.assert_allclose(found.delta_ce.numpy(), ce.numpy(), rtol=2e-3, atol=2e-4 * max(1.0, abs(common)))
