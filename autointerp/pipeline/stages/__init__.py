"""The stages of a run, one a file; a run is this list and nothing else."""

from __future__ import annotations

from autointerp.pipeline.stage import Stage
from autointerp.pipeline.stages.controls import Controls
from autointerp.pipeline.stages.directions import Directions
from autointerp.pipeline.stages.explain import Explain
from autointerp.pipeline.stages.export import Export
from autointerp.pipeline.stages.extract import Extract
from autointerp.pipeline.stages.intervene import Intervene
from autointerp.pipeline.stages.label import Label
from autointerp.pipeline.stages.merge import Merge
from autointerp.pipeline.stages.probe import Probe
from autointerp.pipeline.stages.score import ScoreStage
from autointerp.pipeline.stages.summarise import Summarise
from autointerp.pipeline.stages.tokenize import Tokenize

__all__ = ["STAGES"]

STAGES: tuple[Stage, ...] = (
    Tokenize(),
    Directions(),
    Extract(),
    Merge(),
    Probe(),
    Explain(),
    Intervene(),
    ScoreStage(),
    Controls(),
    Label(),
    Export(),
    Summarise(),
)
