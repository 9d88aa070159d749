"""Neuronpedia's bulk files: features, activations and explanations, and the lines about model, release and sources that its import reads.

A batch holds the features of a range of latents, and the activations and explanations of the same. Where Neuronpedia has a figure that a run
does not, the list is empty. Explanations' scores have no place in the bulk files, so a label's figures stand in its notes.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Literal

from pydantic import Field

from autointerp.exchange.base import ExchangeFormat, Part
from autointerp.exchange.layers import layers_of
from autointerp.exchange.neuronpedia_lines import (
    OUTPUT_TYPE,
    activation_figures,
    banded,
    cuid,
    feature_figures,
    labels_of,
    last_part,
    notes_of,
)
from autointerp.exchange.output_files import OutputFiles
from autointerp.exchange.run_reading import Row, RunReading, iso_time
from autointerp.exchange.strict_json import json_line, plain_text
from autointerp.exchange.windows import ActivationCounts, LatentWindows
from autointerp.pipeline.dictionary_pages import SourceReading
from sae_core.errors import InputError
from sae_core.records import Source

BATCH = 1024
"""Latents of a batch."""
_TYPE, _MODEL = "labels of type ", "labels by "
"""Beginnings of the names of counts."""
_NOTES = (
    "pos_values and neg_values: logits of the decoder direction alone, scaled to root mean square 1, through the final norm and the "
    "unembedding. freq_hist_data: tokens by activation, silent ones left out. Windows are shown without the text before them."
)


class NeuronpediaFormat(ExchangeFormat):
    """Neuronpedia's bulk files."""

    kind: Literal["neuronpedia"] = "neuronpedia"
    """Name on the command line."""
    model_id: str = Field(default="", pattern=r"^([A-Za-z0-9_-][A-Za-z0-9._-]{0,127})?$")
    """Neuronpedia's id of the subject; by default the last part of its name."""
    source_set: str = Field(default="autointerp", pattern=r"^[A-Za-z0-9]+([_-]?[A-Za-z0-9]+)*$", max_length=64)
    """Name of the set of sources, e.g. res-16k; a source's id is its layer, a dash and this."""
    author: str = Field(default="autointerp", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """Id of the user of Neuronpedia under whom all is imported; it must be there."""

    def check(self, run: RunReading) -> None:
        """Refuses hookpoints without a layer and several subjects."""
        layers_of(run.sources, "Neuronpedia")
        subjects = sorted({source.subject for source in run.sources})
        if len(subjects) > 1:
            raise InputError(
                f"the sources are on {len(subjects)} subjects, and Neuronpedia's files on one: choose by --source."
            )

    def parts(self, run: RunReading) -> Iterator[Part]:
        """A batch of a source each."""
        ids = self.source_ids(run)
        for source in run.sources:
            for number, latents in run.batches(source, BATCH):
                write = partial(self._write_batch, run, source, ids[source.name], number, latents)
                yield Part(f"{ids[source.name]}/{number}", write)

    def model_name(self, run: RunReading) -> str:
        """Neuronpedia's id of the subject."""
        given = run.sources[0].subject if run.sources else ""
        named = re.sub(r"[^a-z0-9._-]+", "-", given.rstrip("/").rpartition("/")[2].lower()).strip("-.")
        return self.model_id or named or "subject"

    def source_ids(self, run: RunReading) -> dict[str, str]:
        """Neuronpedia's ids by the sources' names; where two are on one layer, the name is put behind. Errors: InputError."""
        layers = layers_of(run.sources, "Neuronpedia")
        several = {layer for layer, count in Counter(layers.values()).items() if count > 1}
        found: dict[str, str] = {}
        for name, layer in layers.items():
            suffix = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
            found[name] = f"{layer}-{self.source_set}" + (f"__{suffix}" if layer in several else "")
        if len(set(found.values())) < len(found):
            raise InputError(
                f"two sources would have the same id of Neuronpedia ({', '.join(sorted(found.values()))}): choose one by --source."
            )
        return found

    def _write_batch(
        self, run: RunReading, source: Source, source_id: str, number: int, latents: range, files: OutputFiles
    ) -> Mapping[str, int]:
        within, counts = f"v1/{self.model_name(run)}/{source_id}", Counter[str]()
        reading = run.source(source.name)
        common = {"modelId": self.model_name(run), "layer": source_id}
        with ExitStack() as stack:
            kinds = ("features", "activations", "explanations")
            outs = [stack.enter_context(files.gzipped(f"{within}/{kind}/batch-{number}.jsonl.gz")) for kind in kinds]
            for row in run.rows(source.name, latents):
                counts["latents"] += 1
                self._write_latent(run, reading, common, row, outs, counts)
        return counts

    def _write_latent(
        self,
        run: RunReading,
        reading: SourceReading,
        common: Mapping[str, str],
        row: Row,
        outs: list[gzip.GzipFile],
        counts: Counter[str],
    ) -> None:
        latent, what = row["latent"], f"latent {row['latent']} of {reading.source.name!r}"
        windows = LatentWindows.of(reading.exemplars, latent)
        activity = ActivationCounts.of(reading.exemplars, latent)
        made = dict(common) | {"index": str(latent), "creatorId": self.author, "createdAt": run.began_at}
        shown = list(banded(windows, activity))
        feature = made | {"sourceSetName": self.source_set} | feature_figures(reading, row, shown, activity)
        outs[0].write(json_line(feature, what))
        for place, (window, band) in enumerate(shown):
            line = {"id": cuid(run.run.id, *made.values(), "window", place)} | made | activation_figures(window, band)
            outs[1].write(json_line(line, what))
        for type_name, text in labels_of(row):
            line = self._explanation(run, common, row, type_name, text)
            outs[2].write(json_line(line, what))
            # Neuronpedia refuses types and models that it does not know, so they are told at the end
            named = [
                f"{_TYPE}{type_name}",
                *([f"{_MODEL}{line['explanationModelName']}"] if line["explanationModelName"] else []),
            ]
            counts.update(["labels", *named])
        counts["windows"] += len(shown)

    def _explanation(self, run: RunReading, common: Mapping[str, str], row: Row, type_name: str, text: str) -> Row:
        model = row["explainer_model"] if type_name != OUTPUT_TYPE else None
        return {
            "id": cuid(run.run.id, *common.values(), row["latent"], type_name),
            **common,
            "index": str(row["latent"]),
            "description": plain_text(text),
            "authorId": self.author,
            "typeName": type_name,
            "explanationModelName": last_part(model),
            "notes": notes_of(row, run.run.id) if type_name != OUTPUT_TYPE else f"autointerp run {run.run.id}",
            "createdAt": iso_time(row["created_at"]) if row["created_at"] is not None else run.began_at,
        }

    def finish(self, run: RunReading, files: OutputFiles, counts: Counter[str]) -> None:
        """The lines about model, release, set and source, and about the types and models that explanations name."""
        made = {"creatorId": self.author, "createdAt": run.began_at}
        model, author = self.model_name(run), {"creatorName": self.author}
        release = f"{model}-{self.source_set}"
        told = f"Labels by autointerp, run {run.run.id}"
        lines: dict[str, Row] = {
            "release": {"name": release, "description": told, "descriptionShort": told, "urls": []} | author | made,
            "model": {
                "id": model,
                "displayNameShort": model,
                "displayName": model,
                "layers": 0,
                "neuronsPerLayer": 0,
                "owner": "",
                "updatedAt": run.began_at,
            }
            | made,
            "sourceset": {"modelId": model, "name": self.source_set, "description": told, "releaseName": release}
            | {"urls": []}
            | author
            | made,
        }
        for name, source_id in self.source_ids(run).items():
            store = run.source(name).exemplars
            source = {"id": source_id, "modelId": model, "setName": self.source_set, "hasDashboards": True}
            source |= {"num_tokens_in_prompt": store.settings.window_length, "notes": _NOTES} | made
            for kind, line in (lines | {"source": source}).items():
                with files.binary(f"v1/{model}/{source_id}/{kind}.jsonl") as file:
                    file.write(json_line(line, kind))
        with files.binary("v1/config/explanation_type.jsonl") as file:
            for type_name in _named(counts, _TYPE):
                said = "What the latent does" if type_name == OUTPUT_TYPE else "What the latent fires on"
                line = {"name": type_name, "displayName": type_name, "description": f"{said}, by autointerp."}
                file.write(json_line(line | author | made, "type"))
        with files.binary("v1/config/explanation_model_type.jsonl") as file:
            for name in _named(counts, _MODEL):
                line = {
                    "name": name,
                    "displayName": name,
                    "description": name,
                    "creatorName": "",
                    "createdAt": run.began_at,
                }
                file.write(json_line(line, "model"))

    def described(self) -> str:
        """For a card."""
        return (
            "Neuronpedia's bulk files, gzipped JSON lines below `v1/`: `features/` (one latent a line), `activations/` (one window a line; "
            "`values` are the latent's activations at `tokens`, 0 at a BOS) and `explanations/` (one label a line, its figures in "
            "`notes`). Windows with `binMin` -1 are the strongest; the others were drawn at random among all in which the latent fires, and "
            "`binContains` is the share of all tokens with an activation from `binMin` to `binMax`. `frac_nonzero` is the share of tokens on "
            "which the latent fires, `maxActApprox` its largest activation. Lists are empty where the run has no such figure.\n\n"
            "```python\nimport gzip, json\n\n"
            'with gzip.open("v1/MODEL/SOURCE/explanations/batch-0.jsonl.gz", "rt") as file:\n'
            "    labels = [json.loads(line) for line in file]\n```\n"
        )


def _named(counts: Mapping[str, int], what: str) -> list[str]:
    return sorted(name.removeprefix(what) for name in counts if name.startswith(what))


__all__ = ["BATCH", "NeuronpediaFormat"]
