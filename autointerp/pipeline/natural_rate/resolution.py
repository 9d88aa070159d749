"""How often the run's judge says yes, twice, of windows that a label cannot fit (METHODS 4): it bounds every precision."""

from __future__ import annotations

from dataclasses import dataclass

from autointerp.judging.null_labels import FITS_NOTHING
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.control_kinds import SHUFFLED
from autointerp.pipeline.natural_rate.labels import estimated_judge
from autointerp.statistics.natural_rate import JudgeResolution


@dataclass(frozen=True, slots=True)
class RunResolution:
    """False yeses of the run's judge, over all its sources."""

    of_null_labels: JudgeResolution
    """On labels of things that nobody has heard of."""
    of_shuffled_labels: JudgeResolution
    """On silent windows under other latents' labels, which may really fit some: an upper bound."""


def judge_resolution(context: RunContext) -> RunResolution | None:
    """What the controls measured; None where no null label was judged."""
    judge = estimated_judge(context)
    if judge is None:
        return None
    counted = {FITS_NOTHING: [0, 0], SHUFFLED: [0, 0]}
    for row in context.store.controls(context.run_id):
        if row.component.partition("/")[0] != judge.kind:
            continue
        for kind, total in counted.items():
            judged, yes = row.values.get(f"{kind}_silent_judged"), row.values.get(f"{kind}_silent_yes")
            if isinstance(judged, int) and isinstance(yes, int):
                total[0] += judged
                total[1] += yes
    if not counted[FITS_NOTHING][0]:
        return None
    return RunResolution(JudgeResolution(*counted[FITS_NOTHING]), JudgeResolution(*counted[SHUFFLED]))
