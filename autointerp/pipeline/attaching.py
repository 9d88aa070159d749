"""Puts sparse coders on a subject's hookpoints. Imports torch: only from within GPU stages and the preflight."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from autointerp.config import CoderConfig, RunConfig
from autointerp.pipeline.control_sources import control_name
from autointerp.pipeline.folder import RunFolder
from sae_core.attachment import AttachedCoder, attach
from sae_core.coder import SparseCoder
from sae_core.loading import load_coder
from sae_core.records import Source

if TYPE_CHECKING:
    import torch

    from sae_core.subject import SubjectModel


def attach_configured(subject: SubjectModel, given: CoderConfig) -> AttachedCoder:
    """A configured coder on the module that it reads.

    Errors: MissingFileError, CoderError, UnknownNameError for a hookpoint that the subject does not have.
    """
    return attach(subject, load_configured(given, subject.device))


def load_configured(given: CoderConfig, device: str | torch.device = "cpu") -> SparseCoder:
    """A configured coder. Errors: MissingFileError, CoderError."""
    return load_coder(
        given.path,
        hookpoint=given.hookpoint,
        revision=given.revision,
        device=device,
        allow_pickle=given.allow_pickle,
        input_scale=given.input_scale,
        k=given.k,
        center_writing_weights=given.center_writing_weights,
    )


def check_interventions(subject: SubjectModel, attached: AttachedCoder) -> None:
    """Refuse a subject on which interventions cannot be measured, before anything is spent on it.

    Errors: SubjectError for attention that cannot be replaced and for heads that are not plain; CoderError where the
    directions do not fit.
    """
    from sae_core.intervention.divergence import Unembedding
    from sae_core.intervention.firing import coder_hookpoints
    from sae_core.intervention.resume import UpperLayers

    read, write = coder_hookpoints(subject, attached.coder)
    UpperLayers(subject, write, from_clean=read == write)
    Unembedding(subject)


def attach_directions(subject: SubjectModel, source: Source, folder: RunFolder) -> AttachedCoder:
    """The fake coder of random directions that the ``directions`` stage left for a control source."""
    from sae_core.random_directions import load_directions

    coder: SparseCoder = load_directions(folder.directions(source.name), device=subject.device)
    return attach(subject, coder)


def sources_of(config: RunConfig, subject: SubjectModel, attached: dict[str, AttachedCoder]) -> list[Source]:
    """The records of a run's sources: the configured coders, then a control for each.

    Errors: ConfigError where the selected latents reach beyond a coder.
    """
    real: list[Source] = []
    controls: list[Source] = []
    for name, given in zip(config.source_names(), config.coders, strict=True):
        coder = attached[name].coder
        config.select_latents(coder.num_latents, name)
        source = Source(
            name=name,
            subject=config.subject.model,
            subject_revision=subject.revision,
            hookpoint=", ".join(coder.hookpoints_out),
            coder=given.path,
            coder_fingerprint=coder.fingerprint,
            num_latents=coder.num_latents,
        )
        real.append(source)
        number = config.controls.random_directions
        if number:
            identity = f"random directions|{number}|{config.seed}|{coder.fingerprint}"
            controls.append(
                replace(
                    source,
                    name=control_name(name),
                    coder="random directions",
                    coder_fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
                    num_latents=number,
                    control=True,
                )
            )
    return real + controls
