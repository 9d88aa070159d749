"""One latent's row of the labelled dictionary, and the rows of all controls. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from autointerp.failure import LatentStatus
from autointerp.judging.steered_judge import OUTPUT_LABEL
from autointerp.pipeline.causal_columns import causal_columns
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.control_kinds import NULL_EVERYTHING, SHUFFLED, VERDICTS
from autointerp.pipeline.control_sources import real_name
from autointerp.pipeline.dictionary_pages import SourceReading, page_of
from autointerp.pipeline.label_figures import estimate_values, first_explainer, score_values
from autointerp.pipeline.natural_rate.labels import last_estimates
from autointerp.score import Score
from sae_core.errors import StoreError

_RULE = "token_rule_"
"""Beginning of the names of a score's values that are about the token rule."""


def latent_row(context: RunContext, source: str, latent: int) -> dict[str, Any]:
    """One latent's row with all that is stored of it: values that are no columns of the dictionary, and why judges have none.

    Errors: NotLabelledError, UnknownNameError, StoreError.
    """
    record = context.source(source)
    return row_read(SourceReading.of(context, record, context.store.run(context.run_id).code_version), latent)


class NotLabelledError(StoreError):
    """The run has no row for a latent: it labels others, or has not come to it yet."""


def row_read(reading: SourceReading, latent: int) -> dict[str, Any]:
    """The same of what ``reading`` knows. Errors: NotLabelledError."""
    import pyarrow as pa

    from autointerp.export import dictionary_schema
    from autointerp.pipeline.dictionary_table import page_table

    context, record = reading.context, reading.source
    page = page_of(reading, latent)
    if page is None:
        raise NotLabelledError(
            f"latent {latent} of {record.name!r} has no label in the run {context.run_id}: the source has "
            f"{record.num_latents} latents, the run labels those of latents = {context.config.latents!r}, and its state is "
            f"{context.store.run(context.run_id).state!r}."
        )
    fields = {field.name: field for field in dictionary_schema(judge_kinds(context))}
    for name in (f"{before}{kind}_failure" for kind in judge_kinds(context) for before in ("", OUTPUT_LABEL)):
        for told in (name, f"{name}_message"):
            fields.setdefault(told, pa.field(told, pa.string()))
    more: dict[str, list[Any]] = {}
    for values in (*(score.values for score in page.scores), *page.estimates.values()):
        for name, value in json.loads(values).items():
            if name not in fields and value is not None:
                more.setdefault(name, []).append(value)
    fields |= {name: pa.field(name, pa.array(found).type) for name, found in more.items()}
    schema = pa.schema(list(fields.values()))
    row: dict[str, Any] = page_table(page, schema).to_pylist()[0]
    return row


def judge_kinds(context: RunContext) -> tuple[str, ...]:
    """Kinds of the scorers whose headline is a figure of their own: those that judge rather than count or intervene."""
    return tuple(scorer.kind for scorer in context.scorers if scorer.headline == f"{scorer.kind}_score")


def control_records(context: RunContext) -> list[Mapping[str, Any]]:
    """Rows of all controls as the summary reads them: ``source, kind, latent`` and the values.

    A control source's own scores are the kind ``random_direction`` of the source beside which it stands; values that
    scorers call ``token_rule_*`` are the kind ``token_rule`` of the latent that they are about.
    """
    merged: dict[tuple[str, str, int], dict[str, Any]] = {}
    for row in context.store.controls(context.run_id):
        record = merged.setdefault((row.source, row.kind, row.latent), {})
        own = {name: value for name, value in row.values.items() if name != VERDICTS}
        record |= {name: value for name, value in own.items() if record.get(name) is None}
    for source in context.sources:
        scores: dict[int, list[Score]] = {}
        for score in context.store.scores(context.run_id, source.name):
            scores.setdefault(score.latent, []).append(score)
        random_effects = causal_columns(context, source.name) if source.control else None
        estimates = last_estimates(context, source.name)
        labels = context.store.labels(context.run_id, source.name)
        chosen = {label.latent: label.explainer for label in labels}
        dead = {label.latent for label in labels if label.status == LatentStatus.DEAD.value}
        for latent, own_scores in scores.items():
            values = score_values(own_scores, chosen.get(latent), first_explainer(context))
            estimate = estimates.get((latent, chosen.get(latent) or ""))
            if estimate is not None and values.get("precision_method") is None:
                values = estimate_values(estimate) | values
            if random_effects is not None:
                record = dict(values) | random_effects.of(latent)
                merged[(real_name(source.name), "random_direction", latent)] = record
            elif latent not in dead:  # the rule stands beside labels, and those are of alive latents
                rule = {name.removeprefix(_RULE): value for name, value in values.items() if name.startswith(_RULE)}
                if rule:
                    merged[(source.name, "token_rule", latent)] = rule
                if isinstance(rate := values.get("natural_rate"), float):  # follows from pi alone (METHODS 4)
                    always = {"precision": rate, "recall": 1.0, "f1": 2 * rate / (1 + rate)}
                    merged.setdefault((source.name, NULL_EVERYTHING, latent), {}).update(always)
        for (latent, explainer), estimate in estimates.items():
            if explainer.startswith(f"{SHUFFLED}/") and not source.control:
                record = merged.setdefault((source.name, SHUFFLED, latent), {})
                record |= {name: v for name, v in estimate_values(estimate).items() if record.get(name) is None}
    return [
        {"source": source, "kind": kind, "latent": latent, **values}
        for (source, kind, latent), values in merged.items()
    ]
