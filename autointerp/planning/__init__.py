"""What a run will ask of language models, worked out before it asks."""

from __future__ import annotations

from autointerp.planning.plan import PlanLine, RunPlan, plan_run
from autointerp.planning.planned import PlannedCalls, PlanSizes
from autointerp.planning.sizes import measured_sizes, plan_sizes

__all__ = ["PlanLine", "PlanSizes", "PlannedCalls", "RunPlan", "measured_sizes", "plan_run", "plan_sizes"]
