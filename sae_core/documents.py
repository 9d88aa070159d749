"""Documents from what people have: a folder, .txt, .jsonl, .parquet, a hub data set, Python's own library.

Documents come one after the other, never all at once; exact duplicates are dropped as they are read.
"""

from __future__ import annotations

import hashlib
import json
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sae_core.errors import CorpusError
from sae_core.hashing import seed_for
from sae_core.hub import local_folder

PYTHON_STDLIB = "python-stdlib"
"""Corpus path that means the standard library of the running interpreter."""
DEFAULT_SUFFIXES = (".txt", ".md", ".py", ".jsonl", ".parquet")
_MAX_FILE_BYTES = 256 * 1024
"""In a folder of texts: a larger source file is a generated table. Does not bind .txt, .jsonl and .parquet."""
_BLOCK_CHARACTERS = 1 << 20
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it came from."""

    name: str
    """File relative to the corpus, with ``:row`` for a row of a table."""
    text: str
    known: bool = True
    """False where the text's documents are not known (a lone .txt): then each context is a document of its own."""

    @property
    def digest(self) -> int:
        """Signed 64-bit digest of the text: the document's identity, on whichever machine it is read."""
        return int.from_bytes(
            hashlib.blake2b(self.text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big", signed=True
        )


def read_documents(
    path: str, *, text_field: str = "text", suffixes: tuple[str, ...] = (), revision: str | None = None, seed: int = 0
) -> Iterator[Document]:
    """The corpus at ``path``, each distinct text once, empty ones left out.

    The files of a folder come in an order drawn from ``seed``, so that the first n tokens are a fair sample of it.
    Raises CorpusError or MissingFileError.
    """
    seen: set[int] = set()
    for document in _read(path, text_field, suffixes, revision, seed):
        if not document.text.strip():
            continue
        if _SURROGATE.search(document.text):
            # Half a surrogate pair, as JSON escapes can write it, is no character to any tokenizer.
            clean = document.text.encode("utf-8", "replace").decode("utf-8")
            document = Document(document.name, clean, document.known)
        digest = document.digest
        if digest not in seen:
            seen.add(digest)
            yield document


def _read(path: str, text_field: str, suffixes: tuple[str, ...], revision: str | None, seed: int) -> Iterator[Document]:
    if path == PYTHON_STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        yield from _read_folder(root, text_field, suffixes or (".py",), seed)
        return
    root = local_folder(path, what="corpus.path", revision=revision, repo_type="dataset")
    if root.is_dir():
        yield from _read_folder(root, text_field, suffixes or DEFAULT_SUFFIXES, seed)
        return
    reader = _READERS.get(root.suffix)
    if reader is None:
        raise CorpusError(
            f"corpus.path is {path!r}; a corpus is a folder or a file that ends in {', '.join(_READERS)}."
        )
    if root.suffix in (".jsonl", ".parquet"):
        yield from reader(root, root.name, text_field)
    else:
        yield from _read_blocks(root)


def _read_folder(root: Path, text_field: str, suffixes: tuple[str, ...], seed: int) -> Iterator[Document]:
    names = [
        relative
        for p in sorted(root.rglob("*"))
        if p.suffix in suffixes and p.is_file() and _wanted(p, relative := p.relative_to(root).as_posix())
    ]
    if not names:
        raise CorpusError(
            f"corpus.path is {str(root)!r}, and no file in it ends in {', '.join(suffixes)}: set corpus.suffixes to what is there."
        )
    order = np.random.default_rng(seed_for(seed, "file order")).permutation(len(names))
    for index in order:
        file = root / names[index]
        yield from _READERS.get(file.suffix, _read_text)(file, names[index], text_field)


def _wanted(path: Path, relative: str) -> bool:
    parts = relative.split("/")
    if any(part in ("site-packages", "dist-packages", "__pycache__") or part.startswith(".") for part in parts):
        return False
    return path.suffix in (".txt", ".jsonl", ".parquet") or path.stat().st_size <= _MAX_FILE_BYTES


def _read_text(path: Path, name: str, text_field: str) -> Iterator[Document]:
    try:
        yield Document(name, path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        # A library's own test files hold other encodings on purpose; a file that is not UTF-8 is not text for the subject.
        return


def _read_blocks(path: Path) -> Iterator[Document]:
    """A lone text in blocks that end at white space, since nothing says where its documents end."""
    with path.open(encoding="utf-8", errors="replace") as file:
        rest, number = "", 0
        while block := file.read(_BLOCK_CHARACTERS):
            block = rest + block
            end = max(block.rfind("\n"), block.rfind(" ")) + 1 or len(block)
            number += 1
            yield Document(f"{path.name}:{number}", block[:end], known=False)
            rest = block[end:]
        if rest:
            yield Document(f"{path.name}:{number + 1}", rest, known=False)


def _read_jsonl(path: Path, name: str, text_field: str) -> Iterator[Document]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except UnicodeDecodeError as error:
                raise CorpusError(
                    f"{path}, line {number} is not UTF-8 ({error.reason}): write the file as UTF-8."
                ) from error
            except json.JSONDecodeError as error:
                raise CorpusError(
                    f"{path}, line {number} is not JSON ({error.msg}): a .jsonl corpus has one JSON object a line."
                ) from error
            if not isinstance(row, dict) or not isinstance(row.get(text_field), str):
                keys = ", ".join(map(repr, row)) if isinstance(row, dict) else type(row).__name__
                raise CorpusError(
                    f"{path}, line {number} has no text under {text_field!r} (it has {keys}): set corpus.text_field."
                )
            yield Document(f"{name}:{number}", row[text_field])


def _read_parquet(path: Path, name: str, text_field: str) -> Iterator[Document]:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise CorpusError(f"{path} is not a readable parquet file ({error}): fetch it again.") from error
    with file:
        if text_field not in file.schema_arrow.names:
            raise CorpusError(
                f"{path} has no column {text_field!r} (it has {', '.join(file.schema_arrow.names)}): set corpus.text_field."
            )
        row = 0
        for batch in file.iter_batches(batch_size=256, columns=[text_field]):
            for value in batch.column(0).to_pylist():
                row += 1
                if isinstance(value, str):
                    yield Document(f"{name}:{row}", value)


_READERS: dict[str, Callable[[Path, str, str], Iterator[Document]]] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".py": _read_text,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
