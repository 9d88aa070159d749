"""circuit-tracer's feature files, packed: an index of all layers and one file of records a layer. The labels, which have no place in them,
stand in files of their own (``labels/layer_N.jsonl``), from which ``graph_labels`` writes them into graphs.
"""

from __future__ import annotations

import gzip
import struct
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from autointerp.exchange.base import ExchangeFormat, Part
from autointerp.exchange.layers import cantor_pair, layers_of
from autointerp.exchange.output_files import GZIP_LEVEL, OutputFiles
from autointerp.exchange.run_reading import Row, RunReading, label_texts
from autointerp.exchange.strict_json import json_bytes, json_line, plain_text, short_float
from autointerp.exchange.windows import ActivationCounts, LatentWindows, LensTokens, ShownWindow
from autointerp.pipeline.dictionary_pages import SourceReading
from sae_core.errors import InputError
from sae_core.records import Source

INDEX_NAME = "index.json.gz"
LENGTH = struct.Struct("<I")
"""What stands before each record: its length in bytes. A latent that is not there has the length 0."""
CELLS = 50
"""Cells of the histogram of activations."""
TOP, SAMPLED = "Top activations", "Random sample"
"""Names of the two groups of windows."""


class CircuitTracerFormat(ExchangeFormat):
    """circuit-tracer's feature files."""

    kind: Literal["circuit-tracer"] = "circuit-tracer"
    """Name on the command line."""
    scan: str = Field(default="", max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")
    """What circuit-tracer calls the coders (``repository//folder@revision``); by default the coder's name."""

    def check(self, run: RunReading) -> None:
        """Refuses hookpoints without a layer, and two sources on one layer."""
        layers = layers_of(run.sources, "circuit-tracer")
        for layer, count in Counter(layers.values()).items():
            if count > 1:
                names = ", ".join(repr(name) for name, own in layers.items() if own == layer)
                raise InputError(
                    f"{names} are all on layer {layer}, of which circuit-tracer has one coder: choose one by --source."
                )

    def parts(self, run: RunReading) -> Iterator[Part]:
        """A layer each."""
        for name, layer in layers_of(run.sources, "circuit-tracer").items():
            yield Part(f"layer {layer}", partial(self._write_layer, run, run.context.source(name), layer))

    def _write_layer(self, run: RunReading, source: Source, layer: int, files: OutputFiles) -> Mapping[str, int]:
        reading, counts = run.source(source.name), Counter[str]()
        following = 0
        with (
            files.binary(f"features/{_file_of(layer)}") as features,
            files.binary(f"labels/layer_{layer}.jsonl") as labels,
        ):
            for row in run.rows(source.name, range(source.num_latents)):
                latent, what = row["latent"], f"latent {row['latent']} of {source.name!r}"
                features.write(LENGTH.pack(0) * (latent - following))
                following = latent + 1
                feature = self._feature(reading, row, layer)
                packed = gzip.compress(json_bytes(feature, what), GZIP_LEVEL, mtime=0)
                features.write(LENGTH.pack(len(packed)) + packed)
                counts.update(latents=1, windows=sum(len(q["examples"]) for q in feature["examples_quantiles"]))
                line = _label_line(run, source, row, layer)
                if line is not None:
                    labels.write(json_line(line, what))
                    counts["labels"] += 1
            features.write(LENGTH.pack(0) * (source.num_latents - following))
        return counts

    def _feature(self, reading: SourceReading, row: Row, layer: int) -> Row:
        latent, store = row["latent"], reading.exemplars
        windows = LatentWindows.of(store, latent)
        activity = ActivationCounts.of(store, latent)
        lens = LensTokens.of(store, reading.lens, latent)
        top = {window.place for window in windows.top}
        groups = [(TOP, [_example(window, False) for window in windows.top])]
        if windows.sampled:
            groups.append((SAMPLED, [_example(window, window.place in top) for window in windows.sampled]))
        peaks = sorted(window.at_peak for window in windows.sampled)
        return {
            "transcoder_id": plain_text(self.scan or reading.source.name),
            "index": cantor_pair(layer, latent),
            "examples_quantiles": [{"quantile_name": name, "examples": examples} for name, examples in groups],
            "top_logits": lens.promoted,
            "bottom_logits": lens.suppressed,
            "act_min": short_float(activity.low),
            "act_max": short_float(activity.high),
            "quantile_values": [peaks[round(n * (len(peaks) - 1) / 4)] for n in range(5)] if peaks else [],
            "histogram": activity.histogram(CELLS)[0],
            "activation_frequency": row["fire_rate"] or 0.0,
        }

    def finish(self, run: RunReading, files: OutputFiles, counts: Counter[str]) -> None:
        """The index: a map from layers to files and to where their records begin."""
        with files.gzipped(f"features/{INDEX_NAME}") as index:
            index.write(b"{")
            there = [
                n
                for n in layers_of(run.sources, "circuit-tracer").values()
                if (files.folder / "features" / _file_of(n)).is_file()
            ]
            for number, layer in enumerate(there):
                offsets = record_offsets(files.folder / "features" / _file_of(layer))
                index.write(b"," if number else b"")
                index.write(f'"{layer}":{{"filename":"{_file_of(layer)}","offsets":'.encode())
                index.write(json_bytes(offsets.tolist(), f"layer {layer}") + b"}")
            index.write(b"}")

    def described(self) -> str:
        """For a card."""
        return (
            "Feature files of circuit-tracer, packed: `features/index.json.gz` says, by layer, in which file and from which byte on a latent's "
            "record stands: four bytes of length (little endian), then gzipped JSON. A length of 0 is a latent that was not written. "
            "`tokens_acts_list` are the latent's activations at `tokens`, 0 at a BOS; the first group of windows are the strongest, the second "
            "were drawn at random among all in which the latent fires; `histogram` counts tokens in 50 cells from `act_min` to `act_max`, "
            "`quantile_values` are least, quartiles and largest of the second group's peaks. `labels/layer_N.jsonl` has one label a line; "
            "`feature` is the number that graphs have.\n\n"
            "```python\nfrom autointerp.exchange.feature_files import FeatureFiles\n\n"
            'feature = FeatureFiles("features").feature(layer=3, latent=17)\n```\n'
        )


def record_offsets(path: Path) -> array[int]:
    """Where the records of a packed file begin, and where the last one ends. Errors: InputError for a file that is cut."""
    offsets, at, size = array("q", [0]), 0, path.stat().st_size
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(LENGTH.size)
            at += LENGTH.size + (LENGTH.unpack(head)[0] if len(head) == LENGTH.size else size)
            if at > size:
                raise InputError(f"{str(path)!r} ends within a record: give a whole file.")
            offsets.append(at)
    return offsets


def _file_of(layer: int) -> str:
    return f"layer_{layer}.bin"


def _example(window: ShownWindow, repeated: bool) -> Row:
    return {
        "tokens_acts_list": window.values,
        "train_token_ind": window.peak,
        "is_repeated_datapoint": repeated,
        "tokens": window.tokens,
    }


def _label_line(run: RunReading, source: Source, row: Row, layer: int) -> Row | None:
    """A line that this program imports as it is; None where there is no label."""
    text, output = label_texts(row)
    if text is None:
        return None
    return {
        "layer": layer,
        "latent": row["latent"],
        "feature": cantor_pair(layer, row["latent"]),
        "label": plain_text(text),
        "label_output": None if output is None else plain_text(output),
        "precision_low": row["precision_low"],
        "source": source.name,
        "coder_fingerprint": source.coder_fingerprint,
        "explainer": row["explainer"],
        "model": row["explainer_model"],
        "author": run.run.id,
    }


__all__ = ["CELLS", "INDEX_NAME", "LENGTH", "SAMPLED", "TOP", "CircuitTracerFormat", "record_offsets"]
