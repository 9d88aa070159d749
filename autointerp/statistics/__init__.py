"""Estimates and their intervals, free of any I/O: arrays in, frozen results out."""

from __future__ import annotations

from autointerp.statistics.bootstrap import PairedDifference, paired_difference, resample_counts
from autointerp.statistics.correlation import Correlation, document_correlation
from autointerp.statistics.counted import (
    CountedRatios,
    Ratio,
    counted_ratios,
    counted_ratios_many,
    ratio_over_documents,
)
from autointerp.statistics.effect import CausalEffect, causal_effect, kl_floor
from autointerp.statistics.multiplicity import benjamini_hochberg, benjamini_yekutieli

__all__ = [
    "CausalEffect",
    "Correlation",
    "CountedRatios",
    "PairedDifference",
    "Ratio",
    "benjamini_hochberg",
    "benjamini_yekutieli",
    "causal_effect",
    "counted_ratios",
    "counted_ratios_many",
    "document_correlation",
    "kl_floor",
    "paired_difference",
    "ratio_over_documents",
    "resample_counts",
]
