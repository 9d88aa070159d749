"""What judges were asked and what failed, score by score, for labels and for the controls beside them (METHODS 6). Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autointerp.failure import LatentStatus
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.control_sources import real_name
from autointerp.pipeline.dictionary_rows import judge_kinds
from autointerp.review.effective import effective_labels
from autointerp.score import ScoreValue

LABELS, SHUFFLED, RANDOM_DIRECTION = "labels", "shuffled", "random_direction"


def judge_records(context: RunContext) -> list[dict[str, Any]]:
    """One record for each score of a judge about an alive latent.

    ``source`` (for random directions the one beside which they stand), ``arm`` (labels, shuffled or random_direction),
    ``scorer``, ``latent``, ``failure`` (kind, None where there is a figure), ``judged``, ``failed`` (questions with an answer
    and without; of written texts those that were run, and not), ``failures`` (questions without one by kind), ``models`` (that
    answered) and ``asked_model``. Of labels and directions those scores count that are about the chosen text or about the latent
    itself, of shuffled labels all.
    """
    kinds = judge_kinds(context)
    found: list[dict[str, Any]] = []
    for source in context.sources:
        labels = {label.latent: label for label in effective_labels(context.store, context.run_id, source.name)}
        arm = RANDOM_DIRECTION if source.control else LABELS
        for score in context.store.scores(context.run_id, source.name):
            label = labels.get(score.latent)
            if label is None or label.status == LatentStatus.DEAD.value or score.scorer not in kinds:
                continue
            if score.explainer in (None, label.explainer):
                failure = None if score.failure is None else score.failure.kind.value
                about = {"source": real_name(source.name), "arm": arm, "latent": score.latent}
                found.append({**about, **_record(score.scorer, failure, score.values)})
    for row in context.store.controls(context.run_id, kind=SHUFFLED):
        scorer = row.component.partition("/")[0]
        if scorer in kinds:
            about = {"source": row.source, "arm": SHUFFLED, "latent": row.latent}
            found.append({**about, **_record(scorer, row.failure_kind, row.values)})
    return found


def _record(scorer: str, failure: str | None, values: Mapping[str, ScoreValue]) -> dict[str, Any]:
    beginning = f"{scorer}_failed_"
    failures = {name.removeprefix(beginning): n for name, n in values.items() if name.startswith(beginning)}
    model = values.get("judge_model")
    return {
        "scorer": scorer,
        "failure": failure,
        "judged": values.get(f"{scorer}_judged") or values.get(f"{scorer}_tried") or 0,
        "failed": values.get(f"{scorer}_failed") or 0,
        "failures": failures,
        "models": str(model).split(", ") if model else [],
        "asked_model": values.get("judge_asked_model"),
    }
