"""The fake coder fires as often as the latents it stands in for, on text that set its thresholds and on other text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sae_core.attachment import AttachedCoder
from sae_core.parts.activation import JumpReLU
from sae_core.parts.encoder import AffineEncoder
from sae_core.random_directions import fit_directions, load_directions, save_directions
from sae_core.subject import SubjectModel
from sae_core.tokens import TokenCorpus
from tests.sae_core.test_extraction import attached, corpus, subject, world  # noqa: F401


def test_rates_and_norms_are_those_of_real_latents(
    subject: SubjectModel,  # noqa: F811
    attached: AttachedCoder,  # noqa: F811
    corpus: TokenCorpus,  # noqa: F811
    tmp_path: Path,
) -> None:
    fake = fit_directions(subject, attached, corpus, range(corpus.num_contexts), num_directions=8, seed=3)
    rows = [corpus.context(c) for c in range(corpus.num_contexts)]
    hidden = torch.cat(
        [
            attached.inputs(subject.capture(torch.from_numpy(np.array(row)).long()[None], attached.read))[0, 1:]
            for row in rows
        ]
    )
    real_rates = (attached.coder.encode(hidden) != 0).float().mean(0)
    rates = (fake.encode(hidden) != 0).float().mean(0)
    for rate in rates:
        assert (real_rates[real_rates > 0] - rate).abs().min() < 0.02
    norms = fake.directions.norm(dim=1)
    real_norms = attached.coder.directions.norm(dim=1)
    assert all((real_norms - norm).abs().min() < 1e-5 for norm in norms)
    path = tmp_path / "directions.safetensors"
    save_directions(path, fake)
    back = load_directions(path)
    assert back.fingerprint == fake.fingerprint
    torch.testing.assert_close(back.encode(hidden[:50]), fake.encode(hidden[:50]))
    assert (
        fit_directions(subject, attached, corpus, range(corpus.num_contexts), num_directions=8, seed=3).fingerprint
        == fake.fingerprint
    )
    assert (
        fit_directions(subject, attached, corpus, range(corpus.num_contexts), num_directions=8, seed=4).fingerprint
        != fake.fingerprint
    )


def test_directions_beside_a_dead_coder_never_fire(
    subject: SubjectModel,  # noqa: F811
    attached: AttachedCoder,  # noqa: F811
    corpus: TokenCorpus,  # noqa: F811
) -> None:
    encoder = attached.coder.encoder
    assert isinstance(encoder, AffineEncoder)
    dead = replace(attached.coder, encoder=replace(encoder, bias=torch.full((attached.coder.num_latents,), -1e6)))
    fake = fit_directions(
        subject, replace(attached, coder=dead), corpus, range(corpus.num_contexts), num_directions=5, seed=3
    )
    assert isinstance(fake.encoder, AffineEncoder)
    assert isinstance(fake.encoder.activation, JumpReLU)
    assert torch.isinf(fake.encoder.activation.threshold).all()
    assert not (fake.encode(1e6 * torch.randn(20, fake.d_in)) != 0).any()
