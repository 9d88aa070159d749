"""Reads labels out of circuit-tracer's graphs: the ``clerp`` of each node that stands for a latent.

Graphs know layers and no sources: a layer's labels are those of the source of that name (``source = "3"``) or, where none is named, of the
source that is being labelled if its name has the layer in it (``layers.3``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from autointerp.exchange.graph_labels import latent_nodes, read_graph
from autointerp.exchange.layers import layer_of
from autointerp.imports.label_line import LabelLine, LabelRequest
from sae_core.errors import ConfigError, InputError


def circuit_tracer_labels(files: Sequence[Path], request: LabelRequest) -> Iterator[LabelLine]:
    """The texts of all graphs; the same latent comes once for each of its positions. Errors: ConfigError."""
    own_layer = None if request.source else layer_of(request.own_source)
    for path in files:
        try:
            for layer, latent, node in latent_nodes(read_graph(path), repr(path.name)):
                text = node.get("clerp")
                if not isinstance(text, str) or not text.strip():
                    continue
                yield LabelLine(
                    place=f"latent {latent} of layer {layer} in {path.name!r}",
                    latent=latent,
                    text=text,
                    source=request.own_source if layer == own_layer else str(layer),
                )
        except InputError as error:
            raise ConfigError(str(error)) from error
