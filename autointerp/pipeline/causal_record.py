"""What a run found of effects that no column of the dictionary holds: blocks of ``summary.json``. Torch-free."""

from __future__ import annotations

from typing import Any

from autointerp.pipeline.attribution_agreement import attribution_agreement
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.left_out_check import left_out_check
from autointerp.pipeline.substitution_record import substitution_record


def causal_record(context: RunContext) -> dict[str, Any]:
    """``left_out``, ``attribution`` by source and ``substitution``; each None, or empty, where the run has none."""
    agreement = {s.name: attribution_agreement(context, s.name) for s in context.sources if not s.control}
    return {
        "left_out": left_out_check(context),
        "attribution": {name: found for name, found in agreement.items() if found is not None},
        "substitution": substitution_record(context),
    }
