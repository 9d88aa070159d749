"""What a run found, for people: summary.json, the terminal, a picture, one latent.

``draw_overview`` is imported from :mod:`autointerp.report.overview`, so that nothing else loads matplotlib.
"""

from __future__ import annotations

from autointerp.report.highlight import ExemplarReader, exemplar_line, marked_tokens
from autointerp.report.show import print_latent, quotable_sentence
from autointerp.report.summary import build_summary, summary_json
from autointerp.report.terminal import print_best_and_worst, print_summary

__all__ = [
    "ExemplarReader",
    "build_summary",
    "exemplar_line",
    "marked_tokens",
    "print_best_and_worst",
    "print_latent",
    "print_summary",
    "quotable_sentence",
    "summary_json",
]
