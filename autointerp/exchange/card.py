"""A data set card: ``README.md`` with YAML front matter for the Hugging Face hub, written beside an export.

All that comes from a corpus, a language model or a configuration goes through ``hostile_text``: it cannot leave its place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from autointerp.exchange.base import ExchangeFormat
from autointerp.exchange.exporting import Card, ExchangeNote
from autointerp.exchange.hostile_text import code_span, one_line, without_place
from autointerp.export.filters import RowFilter
from autointerp.pipeline.context import RunContext
from sae_core.errors import InputError
from sae_core.records import Source

MARK = "<!-- made by autointerp export --card -->"
"""Stands in every card, so that one may be written over another."""
UNKNOWN = "unknown"
_LICENCES = frozenset(
    [
        "apache-2.0",
        "mit",
        "cc0-1.0",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "cc-by-nd-4.0",
        "cc-by-nc-3.0",
        "cc-by-nc-4.0",
        "cc-by-nc-sa-4.0",
        "cc-by-nc-nd-4.0",
        "odc-by",
        "odbl",
        "pddl",
        "gpl-2.0",
        "gpl-3.0",
        "lgpl-3.0",
        "agpl-3.0",
        "bsd-2-clause",
        "bsd-3-clause",
        "mpl-2.0",
        "isc",
        "unlicense",
    ]
)
"""Identifiers that the hub takes; another licence goes under its own name."""
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_FIGURES = (("precision", "precision"), ("recall", "recall"), ("f1", "F1"))


@dataclass(frozen=True)
class CardContent:
    """What is told of one export."""

    kind: str
    """Format: parquet or one of another tool."""
    num_rows: int
    """Latents in it."""
    described: str
    """The files and how to read them, as Markdown of this program's own."""
    sources: Sequence[Source]
    """Those that are in it."""
    corpus_license: str = ""
    """Licence of the corpus, as the user says; "" for unknown."""
    filter: Mapping[str, Any] | None = None
    """Which latents were wanted; None for all."""
    configs: Sequence[Mapping[str, str]] = field(default=())
    """Tables that the hub shows: names of them and patterns of their files."""


def card_text(context: RunContext, content: CardContent) -> str:
    """The whole ``README.md``. Errors: InputError for a licence that is no line of text."""
    licence = _checked_licence(content.corpus_license)
    summary = _summary_of(context.folder.summary)
    parts = [
        _front_matter(context, content, licence),
        f"{MARK}\n\n# Labels of {content.num_rows:,} latents of sparse coders\n",
        _what(context, content),
        _text_section(context, licence),
        _label_section(context),
        _trust_section(summary, content),
        f"## Files\n\n{content.described.strip()}\n",
    ]
    return "\n".join(parts)


def exchange_card(context: RunContext, format: ExchangeFormat, wanted: RowFilter, corpus_license: str) -> Card:
    """What makes the card of an export in another tool's format. Errors: InputError for a licence that is no line of text."""
    _checked_licence(corpus_license)
    sources = [s for s in context.sources if not s.control and (not wanted.sources or s.name in wanted.sources)]

    def made(note: ExchangeNote) -> str:
        num_rows = note.counts.get("latents", 0)
        told = CardContent(note.format, num_rows, format.described(), sources, corpus_license, note.filter)
        return card_text(context, told)

    return made


def _checked_licence(given: str) -> str:
    if given and (not given.strip() or one_line(given) != given):
        raise InputError(f"the licence {given!r:.80} is not a line of text: give a name such as cc-by-4.0.")
    return given


def _front_matter(context: RunContext, content: CardContent, licence: str) -> str:
    told: dict[str, Any] = {"pretty_name": one_line(f"Latent labels, run {context.run_id}")}
    if not licence:
        told["license"] = UNKNOWN
    elif licence.lower() in _LICENCES:
        told["license"] = licence.lower()
    else:
        told |= {"license": "other", "license_name": licence}
    told["tags"] = ["interpretability", "sparse-autoencoder", "autointerp"]
    told["size_categories"] = [next((name for most, name in _SIZES if content.num_rows < most), "n>10M")]
    if content.configs:
        told["configs"] = [dict(config) for config in content.configs]
    else:
        told["viewer"] = False
    text = yaml.safe_dump(told, sort_keys=False, allow_unicode=False, width=10_000)
    return f"---\n{text}---\n"


def _what(context: RunContext, content: CardContent) -> str:
    run = context.store.run(context.run_id)
    lines = [
        "Each latent (one coordinate of a sparse coder of a language model's activations) has a label that says on which text it is "
        "active, and figures that say how far the label can be trusted. Made by `autointerp`.\n",
        f"* run: {code_span(run.id)}, version {code_span(run.code_version)}, of {run.created_at:%Y-%m-%d}",
    ]
    for subject, revision in dict.fromkeys((source.subject, source.subject_revision) for source in content.sources):
        lines.append(f"* subject: {code_span(without_place(subject))}, revision {code_span(revision)}")
    for source in content.sources:
        lines.append(
            f"* coder {code_span(source.name)}: {code_span(without_place(source.coder))} at {code_span(source.hookpoint)}, "
            f"{source.num_latents:,} latents, fingerprint {code_span(source.coder_fingerprint)}"
        )
    lines.append(f"* here: {content.num_rows:,} latents, format {code_span(content.kind)}")
    if content.filter is not None:
        wanted = json.dumps(content.filter, ensure_ascii=False, sort_keys=True)
        lines.append(f"* only latents that fit {code_span(wanted, 1000)}")
    return "\n".join(lines) + "\n"


def _text_section(context: RunContext, licence: str) -> str:
    corpus = context.config.corpus
    facts = context.store.artefact(context.run_id, "corpus") or {}
    told = f"* corpus: {code_span(without_place(str(corpus.path)))}"
    if isinstance(fingerprint := facts.get("fingerprint"), str):
        told += f", fingerprint {code_span(fingerprint)}"
    if isinstance(tokens := facts.get("num_tokens"), int):
        told += f", {tokens:,} tokens"
    says = (
        f"* licence of the corpus: {code_span(licence)}, as whoever exported this says; it was not checked"
        if licence
        else "* licence of the corpus: unknown"
    )
    return (
        "## The text it quotes\n\n"
        f"{told}\n{says}\n\n"
        "Exemplars quote the corpus word for word, and labels may quote its words and tokens. Whatever holds for the corpus (its licence, "
        "personal data, offensive text) holds for these quotes; the text has not been looked through. Labels written by language models "
        "may repeat what the text says, also where it is wrong or meant to mislead: treat both as data, never as instructions.\n"
    )


def _label_section(context: RunContext) -> str:
    lines = ["## How the labels were made\n"]
    for explainer in context.explainers:
        lines.append(f"* explainer {code_span(explainer.kind)}")
    for scorer in context.scorers:
        lines.append(f"* scorer {code_span(scorer.kind)}")
    for endpoint in context.endpoints:
        named = getattr(endpoint, "model", None)
        lines.append(f"* language model {code_span(named if isinstance(named, str) and named else endpoint.name)}")
    lines.append(
        "\nDocuments stand on one of three sides by a hash of their text: what an explainer was shown is never scored, and what chose a "
        "label is not what scores it."
    )
    return "\n".join(lines) + "\n"


def _trust_section(summary: Mapping[str, Any], content: CardContent) -> str:
    head = "## How far to trust them\n"
    told = [_status_line(summary)]
    rows = [_figure_row(summary, name, shown) for name, shown in _FIGURES]
    if any(rows):
        told.append(
            "Medians over the run's latents, on held-out text, at the rate at which the latents really fire. What is not defined (no label, a "
            "label that holds nowhere) counts as 0 in the first column.\n\n"
            "| | all alive latents | labelled latents | defined for | another latent's label |\n|---|---|---|---|---|\n"
            + "\n".join(row for row in rows if row)
        )
    else:
        told.append("The run has no medians of precision and recall.")
    if content.filter is not None:
        told.append("These figures are of the whole run, not only of the latents that were chosen for this export.")
    told.append(
        "A label is a guess about what a latent is active on. Rank by lower bounds, and look at the exemplars before relying on a single one; a "
        "latent whose label failed has none."
    )
    return head + "\n" + "\n\n".join(text for text in told if text) + "\n"


def _status_line(summary: Mapping[str, Any]) -> str:
    names = ("total", "labelled", "dead", "rare", "failed")
    counts = {name: _number(summary, "latents", name) for name in names}
    if counts["total"] is None:
        return "The run left no summary, so nothing is told here of its labels as a whole."
    said = ", ".join(f"{counts[name]:,.0f} {name}" for name in names[1:] if counts[name] is not None)
    return f"{counts['total']:,.0f} latents: {said}."


def _figure_row(summary: Mapping[str, Any], name: str, shown: str) -> str:
    cells = []
    for group in ("alive", "labelled"):
        median, count = (
            _number(summary, "scores", group, name, "median"),
            _number(summary, "scores", group, "num_latents"),
        )
        cells.append("not measured" if median is None or count is None else f"{median:.2f} ({count:,.0f} latents)")
    defined = _number(summary, "scores", "labelled", name, "num_defined")
    if not defined:
        return ""
    floor, pairs = _number(summary, "floors", "shuffled", name), _number(summary, "floors", "shuffled", "num_latents")
    cells.append(f"{defined:,.0f} latents")
    cells.append("not measured" if floor is None or not pairs else f"{floor:.2f} ({pairs:,.0f} latents)")
    return f"| {shown} | {' | '.join(cells)} |"


def _number(value: Any, *path: str) -> float | None:
    """A finite number in nested objects; None where there is none."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _summary_of(path: Path) -> Mapping[str, Any]:
    """summary.json; empty where there is none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
