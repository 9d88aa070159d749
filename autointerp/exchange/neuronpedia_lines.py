"""What stands in a line of Neuronpedia's files: figures of a feature, one window of it, a label."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator

from autointerp.exchange.run_reading import Row, label_texts
from autointerp.exchange.strict_json import plain_text, short_float
from autointerp.exchange.windows import ActivationCounts, LatentWindows, LensTokens, ShownWindow
from autointerp.pipeline.dictionary_pages import SourceReading

CELLS = 50
"""Cells of the histogram of activations."""
INTERVALS = 5
"""Bands of activation among which random windows are dealt."""
OUTPUT_TYPE = "autointerp_output"
"""Type of the explanations of what latents do."""
_TOP = -1
"""What Neuronpedia has as the lower end and as the share of the band of the strongest windows."""
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_EMPTY_LISTS = (
    "vector", "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1", "correlated_neurons_indices",
    "correlated_neurons_pearson", "correlated_neurons_l1", "correlated_features_indices", "correlated_features_pearson",
    "correlated_features_l1", "logits_hist_data_bar_heights", "logits_hist_data_bar_values", "decoder_weights_dist",
)  # fmt: skip
"""Figures of Neuronpedia's that a run does not have."""


def labels_of(row: Row) -> Iterator[tuple[str, str]]:
    """Type and text of each label, that of what the latent fires on first."""
    text, output = label_texts(row)
    if text is not None:
        yield f"autointerp_{re.sub(r'[^A-Za-z0-9_-]+', '-', row['explainer'] or 'label')}", text
    if output is not None:
        yield OUTPUT_TYPE, output


def banded(
    windows: LatentWindows, activity: ActivationCounts
) -> Iterator[tuple[ShownWindow, tuple[float, float, float | None]]]:
    """Each window once with its band: lower end, upper end, share of tokens."""
    for window in windows.top:
        yield window, (_TOP, short_float(activity.high), _TOP)
    shown = {window.place for window in windows.top}
    width = (activity.high - activity.low) / INTERVALS
    bands = [(activity.low + n * width, activity.low + (n + 1) * width) for n in range(INTERVALS)]
    told = [(short_float(low), short_float(high), activity.share(low, high)) for low, high in bands]
    for window in windows.sampled:
        if window.place not in shown:
            number = int((window.at_peak - activity.low) / width) if width else 0
            yield window, told[min(max(number, 0), INTERVALS - 1)]


def feature_figures(
    reading: SourceReading, row: Row, shown: Iterable[tuple[ShownWindow, object]], activity: ActivationCounts
) -> Row:
    lens = LensTokens.of(reading.exemplars, reading.lens, row["latent"])
    heights, middles = activity.histogram(CELLS)
    return {
        "maxActApprox": max([short_float(activity.high), *(max(window.values) for window, _ in shown)]),
        "hasVector": False,
        "vectorLabel": None,
        "vectorDefaultSteerStrength": None,
        "hookName": None,
        "topkCosSimIndices": lens.neighbours,
        "topkCosSimValues": lens.cosines,
        "neg_str": lens.suppressed,
        "neg_values": lens.suppressed_logits,
        "pos_str": lens.promoted,
        "pos_values": lens.promoted_logits,
        "frac_nonzero": row["fire_rate"] or 0.0,
        "freq_hist_data_bar_heights": heights,
        "freq_hist_data_bar_values": middles,
        **{name: [] for name in _EMPTY_LISTS},
    }


def activation_figures(window: ShownWindow, band: tuple[float, float, float | None]) -> Row:
    largest = max(window.values)
    return {
        "tokens": window.tokens,
        "values": window.values,
        "maxValue": largest,
        "maxValueTokenIndex": window.values.index(largest),
        "minValue": min(window.values),
        "dataIndex": None,
        "dataSource": None,
        "binMin": band[0],
        "binMax": band[1],
        "binContains": band[2],
        "qualifyingTokenIndex": window.peak,
        "dfaValues": [],
        "dfaTargetIndex": None,
        "dfaMaxValue": None,
        "lossValues": [],
        "logitContributions": None,
    }


def last_part(model: object) -> str | None:
    """Last part of a language model's name; null for none."""
    return plain_text(model.rstrip("/").rpartition("/")[2]) if isinstance(model, str) and model else None


def notes_of(row: Row, run_id: str) -> str:
    """A label's figures in words, those that it has."""
    found = []
    for name in ("precision", "recall"):
        if row[name] is not None:
            low, high = row[f"{name}_low"], row[f"{name}_high"]
            between = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
            found.append(f"{name} {row[name]:.3f}{between}")
    if found and row["precision_method"]:
        found[-1] += f" ({row['precision_method']}, at the natural rate, on held-out text)"
    found += [f"F1 {row['f1']:.3f}"] if row["f1"] is not None else []
    found += (
        [f"causal effect {row['causal_effect']:+.3f} (ln against random pushes)"]
        if row["causal_effect"] is not None
        else []
    )
    return "; ".join([*found, f"autointerp run {run_id}"])


def cuid(*parts: object) -> str:
    """An id in the form of Neuronpedia's that follows from what it is of, so that importing again adds nothing."""
    number = int.from_bytes(hashlib.sha256(repr(parts).encode()).digest())
    signs = ""
    for _ in range(24):
        number, digit = divmod(number, 36)
        signs += _DIGITS[digit]
    return f"c{signs}"
