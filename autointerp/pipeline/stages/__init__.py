"""The stages of a run, one a file; a run is the list STAGES and nothing else."""

from __future__ import annotations

from autointerp.pipeline.natural_rate.labels import MOST_ROUNDS as MOST_SCREENS
from autointerp.pipeline.stage import Stage
from autointerp.pipeline.stages.attribute import Attribute, AttributeRare
from autointerp.pipeline.stages.audit import Audit
from autointerp.pipeline.stages.check_endpoints import CheckEndpoints
from autointerp.pipeline.stages.choose import Choose
from autointerp.pipeline.stages.controls import Controls
from autointerp.pipeline.stages.directions import Directions
from autointerp.pipeline.stages.estimate import Estimate
from autointerp.pipeline.stages.explain import Explain
from autointerp.pipeline.stages.export import Export
from autointerp.pipeline.stages.extract import Extract
from autointerp.pipeline.stages.intervene import Intervene
from autointerp.pipeline.stages.label import Label
from autointerp.pipeline.stages.lens import Lens
from autointerp.pipeline.stages.merge import Merge
from autointerp.pipeline.stages.prepare import Prepare
from autointerp.pipeline.stages.probe import Probe
from autointerp.pipeline.stages.revise import MOST_ROUNDS, Revise, TryTexts
from autointerp.pipeline.stages.score import ScoreStage
from autointerp.pipeline.stages.screen import Screen
from autointerp.pipeline.stages.self_test import SelfTest
from autointerp.pipeline.stages.steer_texts import SteerTexts
from autointerp.pipeline.stages.substitute import Substitute
from autointerp.pipeline.stages.summarise import Summarise
from autointerp.pipeline.stages.token_change import TokenChange
from autointerp.pipeline.stages.tokenize import Tokenize
from autointerp.pipeline.stages.write import TryShuffled, TryWritten, Write

__all__ = ["PREPARATIONS", "STAGES"]

_FURTHER = [stage(number) for number in range(2, MOST_SCREENS + 1) for stage in (Screen, Estimate)]
_ROUNDS = [stage(number) for number in range(1, MOST_ROUNDS + 1) for stage in (TryTexts, Revise)]
PREPARATIONS: tuple[Stage, ...] = (Prepare(), CheckEndpoints())
"""What a submitted run does before its stages are planned; a run that is begun where it is worked has done it by then."""
STAGES: tuple[Stage, ...] = (
    Tokenize(),
    Directions(),
    Extract(),
    Merge(),
    Attribute(),
    AttributeRare(),
    Lens(),
    Probe(),
    TokenChange(),
    Explain(),
    *_ROUNDS,
    Intervene(),
    SteerTexts(),
    Choose(),
    Write(),
    TryWritten(),
    TryShuffled(),
    Screen(1),
    ScoreStage(),
    Controls(),
    Audit(),
    Estimate(1),
    *_FURTHER,
    Label(),
    Substitute(),
    SelfTest(),
    Export(),
    Summarise(),
)
