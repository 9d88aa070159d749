"""One corpus in every form that is read, and a tokenizer of single letters for it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
from tokenizers import Tokenizer, models, pre_tokenizers

from sae_core.tokens import TokenCorpus

TEXTS = [f"{chr(97 + i)} " * (5 + i) for i in range(20)]
EOS, BOS = 21, 22


def letters() -> Tokenizer:
    """A token a letter, from 1 on; 0 is unknown, 21 the EOS, 22 the BOS."""
    vocabulary = {chr(97 + i): i + 1 for i in range(20)} | {"?": 0, "</s>": EOS, "<s>": BOS}
    built = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return built


def grown(corpus: TokenCorpus, contexts: int) -> TokenCorpus:
    """The corpus as far as it was when it had so many contexts."""
    arrays = {name: getattr(corpus, name)[:contexts] for name in ("context_document", "context_side", "context_uid")}
    return replace(corpus, context_start=corpus.context_start[: contexts + 1], fingerprint="", **arrays)


def json_lines(rows: Sequence[Any], field: str = "body") -> bytes:
    return "".join(json.dumps({"n": 1, field: row}) + "\n" for row in rows).encode()


def zstd(content: bytes) -> bytes:
    """Compressed as one frame."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def table_of(rows: Sequence[Any], field: str = "body") -> pa.Table:
    return pa.table({"n": list(range(len(rows))), field: list(rows)})


def write(path: Path, rows: Sequence[Any], field: str = "body") -> Path:
    """A file of rows, of the kind that its name says; ``.stream.arrow`` is Arrow's stream format."""
    table = table_of(rows, field)
    name = path.name
    if name.endswith((".gz", ".zst", ".jsonl")):
        content = json_lines(rows, field)
        packed = gzip.compress(content, mtime=0) if name.endswith(".gz") else content
        path.write_bytes(zstd(content) if name.endswith(".zst") else packed)
    elif name.endswith(".parquet"):
        pq.write_table(table, path, row_group_size=7)
    elif name.endswith(".stream.arrow"):
        write_stream(path, table)
    elif name.endswith(".arrow"):
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=6)
    else:
        assert name.endswith(".feather")
        feather.write_feather(table, str(path), chunksize=6)
    return path


def write_stream(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=6)


def saved_dataset(folder: Path, shards: Sequence[Sequence[Any]], field: str = "body", **state: Any) -> Path:
    """A folder as ``datasets`` 5.2 writes it with ``save_to_disk``."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
    for name, rows in zip(names, shards, strict=True):
        write_stream(folder / name, table_of(rows, field))
    told = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "03f2", "_split": None, **state}
    (folder / "state.json").write_text(json.dumps(told, indent=2))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {field: {"dtype": "string", "_type": "Value"}}}))
    return folder
