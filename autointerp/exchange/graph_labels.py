"""Labels in circuit-tracer's graphs: a graph is JSON whose nodes have a ``clerp``, the text that its page shows of a feature."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autointerp.exchange.layers import cantor_unpair
from sae_core.errors import InputError, MissingFileError

FEATURE = "cross layer transcoder"
"""Type of the nodes that stand for latents, also of transcoders of one layer."""
LARGEST_GRAPH_BYTES = 2**30


def read_graph(path: Path) -> dict[str, Any]:
    """A graph. Errors: MissingFileError, InputError."""
    if not path.is_file():
        raise MissingFileError(f"there is no graph at {str(path)!r}: give a JSON file of circuit-tracer's.")
    if path.stat().st_size > LARGEST_GRAPH_BYTES:
        raise InputError(f"{str(path)!r} is larger than {LARGEST_GRAPH_BYTES >> 30} GiB: it is no graph.")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is no JSON ({error}): give a graph of circuit-tracer's.") from error
    if not isinstance(found, dict) or not isinstance(found.get("nodes"), list):
        raise InputError(f"{str(path)!r} has no nodes: give a graph of circuit-tracer's.")
    return found


def latent_nodes(graph: Mapping[str, Any], what: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Layer, latent and node of each node that stands for a latent. Errors: InputError for one that contradicts itself."""
    for number, node in enumerate(graph["nodes"]):
        if not isinstance(node, dict) or node.get("feature_type") != FEATURE:
            continue
        feature, layer = node.get("feature"), str(node.get("layer"))
        place = f"node {number} of {what}"
        if type(feature) is not int or not 0 <= feature < 2**63:
            raise InputError(f"{place} has feature = {feature!r:.60}: it must be the number of layer and latent.")
        own_layer, latent = cantor_unpair(feature)
        if layer != str(own_layer):
            raise InputError(
                f"{place} is on layer {layer[:20]!r}, but its feature {feature} is latent {latent} of layer {own_layer}: "
                "give a graph whose features are numbered as circuit-tracer does."
            )
        yield own_layer, latent, node


def label_graph(graph: Mapping[str, Any], labels: Mapping[tuple[int, int], str], *, replace: bool = False) -> int:
    """Write labels, by layer and latent, into a graph's nodes; returns into how many.

    A node that has a text keeps it unless ``replace``: a person may have written it. Errors: InputError.
    """
    written = 0
    for layer, latent, node in latent_nodes(graph, "the graph"):
        label = labels.get((layer, latent))
        if label and (replace or not node.get("clerp")):
            node["clerp"] = label
            written += 1
    return written


def read_labels_of(folder: Path) -> dict[tuple[int, int], str]:
    """The labels of an export (its ``labels/layer_N.jsonl``), by layer and latent. Errors: InputError."""
    found: dict[tuple[int, int], str] = {}
    for path in sorted((folder / "labels").glob("layer_*.jsonl")):
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    value = json.loads(line)
                    found[int(value["layer"]), int(value["latent"])] = str(value["label"])
                except (ValueError, KeyError, TypeError) as error:
                    raise InputError(
                        f"line {number} of {str(path)!r} is no label ({error!r}): export again."
                    ) from error
    if not found:
        raise MissingFileError(f"{str(folder)!r} has no labels: give a folder that was exported for circuit-tracer.")
    return found
