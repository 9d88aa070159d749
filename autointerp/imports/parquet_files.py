"""Reads labels from parquet: our own dictionaries, and any table with a column of latents and one of labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from autointerp.imports.label_line import LabelLine, LabelRequest, latent_number
from sae_core.errors import ConfigError, did_you_mean

_DICTIONARY = frozenset({"latent", "label", "status", "source", "coder_fingerprint"})
"""Columns that tell a dictionary of ours from another table."""
_BESIDE = (
    "source",
    "coder_fingerprint",
    "corpus_fingerprint",
    "explainer_model",
    "explainer",
    "label_sides",
    "run_id",
    "status",
    "failure_message",
)
"""Columns that are read too where they are there."""
_NOBODY: Mapping[str, Mapping[str, Sequence[str]]] = MappingProxyType({})


def is_dictionary(path: Path) -> bool:
    """Whether a parquet file has the columns of a dictionary. Errors: ConfigError."""
    with _opened(path) as file:
        return set(file.schema_arrow.names) >= _DICTIONARY


def parquet_labels(
    files: Sequence[Path], request: LabelRequest, seen: Mapping[str, Mapping[str, Sequence[str]]] = _NOBODY
) -> Iterator[LabelLine]:
    """Rows of all files; a null label is a row without a text.

    ``seen`` has the windows that people who edited labels may have seen, by source and latent.
    """
    for path in files:
        with _opened(path) as file:
            _check_columns(path, file.schema_arrow, request)
            beside = [name for name in _BESIDE if name in file.schema_arrow.names and _is_text(file.schema_arrow, name)]
            partition = _partition(path)
            columns = list(dict.fromkeys([request.latent_column, request.label_column, *beside]))
            row = 0
            try:
                for batch in file.iter_batches(batch_size=16_384, columns=columns):
                    for values in batch.to_pylist():
                        row += 1
                        place = f"row {row} of {path.name!r}"
                        status, source = values.get("status"), values.get("source") or partition
                        latent = latent_number(values[request.latent_column], place)
                        windows = seen.get(source, {}).get(str(latent))
                        yield LabelLine(
                            place=place,
                            latent=latent,
                            text=values[request.label_column],
                            source=source,
                            fingerprint=values.get("coder_fingerprint") or "",
                            model=values.get("explainer_model") or "",
                            kind=values.get("explainer") or "",
                            author=values.get("run_id") or "",
                            corpus=values.get("corpus_fingerprint") or "",
                            sides=values.get("label_sides") or "",
                            seen=None if windows is None else tuple(windows),
                            reason=values.get("failure_message") or (f"its status is {status}" if status else ""),
                        )
            except (pa.ArrowException, OSError) as error:
                raise ConfigError(
                    f"{str(path)!r} cannot be read after row {row} ({error}): give a whole file."
                ) from error


def _partition(path: Path) -> str:
    """The source that the folder of a partition names (``source=NAME``), "" for any other folder."""
    name = path.parent.name
    return unquote(name.removeprefix("source=")) if name.startswith("source=") else ""


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read as parquet ({error}): give a whole parquet file.") from error


def _is_text(schema: pa.Schema, name: str) -> bool:
    kind = schema.field(name).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _check_columns(path: Path, schema: pa.Schema, request: LabelRequest) -> None:
    for column, field in ((request.latent_column, "latent_column"), (request.label_column, "label_column")):
        if schema.names.count(column) != 1:
            how = "no" if column not in schema.names else "more than one"
            raise ConfigError(
                f"{path.name!r} has {how} column {column!r}: {did_you_mean(column, schema.names)} (set {field})"
            )
    kind = schema.field(request.latent_column).type
    if not (pa.types.is_integer(kind) or _is_text(schema, request.latent_column)):
        raise ConfigError(
            f"the column {request.latent_column!r} of {path.name!r} holds {kind}, not whole numbers: set latent_column to the "
            "one that has the latents."
        )
    if not (_is_text(schema, request.label_column) or pa.types.is_null(schema.field(request.label_column).type)):
        raise ConfigError(
            f"the column {request.label_column!r} of {path.name!r} holds {schema.field(request.label_column).type}, not texts: "
            "set label_column to the one that has the labels."
        )
