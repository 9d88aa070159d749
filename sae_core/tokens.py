"""The token corpus: documents cut into contexts, once, as arrays on disk that every later stage maps. Torch-free.

A context holds the subject's BOS (where its tokenizer has one) and then at most ``context_length - 1`` tokens of
one document; documents are not packed together, so that a context stands on exactly one side.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sae_core.documents import Document, read_documents
from sae_core.errors import CorpusError
from sae_core.hashing import hash64, seed_for
from sae_core.records import SIDE_SHARES

FORMAT_VERSION = 1
_ENCODE_TOGETHER = 64
"""Documents given to the tokenizer's threads at once."""


@dataclass(frozen=True)
class CorpusSpec:
    """What to read and how to cut it."""

    path: str
    """Folder, file, hub data set id, or :data:`sae_core.documents.PYTHON_STDLIB`."""
    num_tokens: int
    """Tokens to read, the BOS of each context not counted."""
    context_length: int
    """Tokens of a context, the BOS counted."""
    text_field: str = "text"
    """Field of a .jsonl row or column of a .parquet file that holds the text."""
    suffixes: tuple[str, ...] = ()
    """Files of a folder to read, by their ending; empty for the defaults."""
    tokens_per_document: int | None = None
    """At most this many tokens of each document, a stretch drawn by the document's hash; None for all of it."""
    revision: str | None = None
    """Commit of a hub data set."""
    seed: int = 0
    """Orders a folder's files and deals documents to sides."""


@dataclass(frozen=True)
class TokenCorpus:
    """A corpus on disk. C contexts, M documents."""

    folder: Path
    tokens: NDArray[np.int32]
    """[num stored tokens] flat, the contexts one after the other."""
    context_start: NDArray[np.int64]
    """[C + 1] context c is ``tokens[context_start[c]:context_start[c + 1]]``."""
    context_document: NDArray[np.int32]
    """[C] ordinal of its document."""
    context_side: NDArray[np.uint8]
    """[C] its side."""
    context_uid: NDArray[np.uint64]
    """[C] hash of (document's digest, place in the document): the context's identity wherever it is read."""
    num_documents: int
    num_tokens: int
    """Tokens of text, BOS not counted."""
    fingerprint: str
    """sha256 over the documents' digests, the tokenizer and the cut."""
    bos_id: int | None

    @property
    def num_contexts(self) -> int:
        return len(self.context_document)

    def context(self, ordinal: int) -> NDArray[np.int32]:
        """Token ids of one context, BOS included."""
        return self.tokens[self.context_start[ordinal] : self.context_start[ordinal + 1]]

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a finished corpus lies in ``folder``."""
        return (folder / "corpus.json").is_file()

    @staticmethod
    def open(folder: Path) -> TokenCorpus:
        """Map the corpus that :func:`build_corpus` left in ``folder``."""
        meta = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        if meta["format_version"] != FORMAT_VERSION:
            raise CorpusError(
                f"{folder} holds a corpus of format {meta['format_version']}, this version reads {FORMAT_VERSION}: delete it."
            )

        def array(name: str) -> Any:
            return np.load(folder / f"{name}.npy", mmap_mode="r")

        return TokenCorpus(
            folder=folder,
            tokens=np.memmap(folder / "tokens.bin", dtype=np.int32, mode="r"),
            context_start=array("context_start"),
            context_document=array("context_document"),
            context_side=array("context_side"),
            context_uid=array("context_uid"),
            num_documents=meta["num_documents"],
            num_tokens=meta["num_tokens"],
            fingerprint=meta["fingerprint"],
            bos_id=meta["bos_id"],
        )


def sides_of(uids: NDArray[np.uint64] | NDArray[np.int64], seed: int) -> NDArray[np.uint8]:
    """[n] side of each document (or context, where documents are not known) from its digest; METHODS 1's shares."""
    uniform = hash64(seed_for(seed, "sides"), uids.view(np.int64)).astype(np.float64) / 2.0**64
    edges = np.cumsum([SIDE_SHARES[side] for side in sorted(SIDE_SHARES)])[:-1]
    return np.searchsorted(edges, uniform, side="right").astype(np.uint8)


def build_corpus(
    spec: CorpusSpec,
    tokenizer: Tokenizer,
    bos_id: int | None,
    folder: Path,
    progress: Callable[[int], None] = lambda tokens: None,
) -> TokenCorpus:
    """Read, tokenize and cut ``spec.num_tokens`` tokens into ``folder``; ``corpus.json`` is written last.

    Raises CorpusError where there is nothing to read or fewer tokens than asked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    budget = spec.num_tokens
    body = spec.context_length - (bos_id is not None)
    if body < 1:
        raise CorpusError(
            f"extraction.context_length is {spec.context_length}; a context must hold a token beside the BOS."
        )
    lengths: list[int] = []
    owners: list[int] = []
    uids: list[int] = []
    side_keys: list[int] = []
    num_documents = 0
    fingerprint = hashlib.sha256(
        repr(
            (FORMAT_VERSION, spec.num_tokens, spec.context_length, spec.tokens_per_document, bos_id, spec.seed)
        ).encode()
        + tokenizer.to_str().encode()
    )
    prefix = np.asarray([] if bos_id is None else [bos_id], dtype=np.int32)
    with (folder / "tokens.bin").open("wb") as out:
        for document, all_ids in _tokenized(spec, tokenizer):
            ids = _stretch(all_ids, spec.tokens_per_document, document.digest)[:budget]
            if not len(ids):
                continue
            fingerprint.update(document.digest.to_bytes(8, "big", signed=True))
            starts = range(0, len(ids), body)
            places = hash64(document.digest, np.arange(len(starts)))
            for place, start in zip(places.tolist(), starts, strict=True):
                row = np.concatenate([prefix, ids[start : start + body]])
                out.write(row.tobytes())
                lengths.append(len(row))
                uids.append(place)
                owners.append(num_documents)
                side_keys.append(document.digest if document.known else place - (1 << 63))
                num_documents += not document.known
            num_documents += document.known
            budget -= len(ids)
            progress(spec.num_tokens - budget)
            if budget == 0:
                break
    num_tokens = spec.num_tokens - budget
    if num_tokens == 0:
        raise CorpusError(f"corpus.path is {spec.path!r}, and it holds no text: give a corpus with documents in it.")
    if budget:
        raise CorpusError(
            f"corpus.path {spec.path!r} gives {num_tokens:,} tokens and extraction.num_tokens asks for {spec.num_tokens:,}: "
            f"set extraction.num_tokens to at most {num_tokens:,}, or give more text."
        )
    np.save(folder / "context_start.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    np.save(folder / "context_document.npy", np.asarray(owners, dtype=np.int32))
    np.save(folder / "context_uid.npy", np.asarray(uids, dtype=np.uint64))
    np.save(folder / "context_side.npy", sides_of(np.asarray(side_keys, dtype=np.int64), spec.seed))
    tokenizer.save(str(folder / "tokenizer.json"))
    meta = {
        "format_version": FORMAT_VERSION,
        "path": spec.path,
        "num_documents": num_documents,
        "num_tokens": num_tokens,
        "context_length": spec.context_length,
        "bos_id": bos_id,
        "seed": spec.seed,
        "fingerprint": fingerprint.hexdigest(),
    }
    temporary = folder / "corpus.json.tmp"
    temporary.write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / "corpus.json")
    return TokenCorpus.open(folder)


def _stretch(ids: NDArray[np.int32], limit: int | None, digest: int) -> NDArray[np.int32]:
    if limit is None or len(ids) <= limit:
        return ids
    start = int(hash64(digest, -1)) % (len(ids) - limit + 1)
    return ids[start : start + limit]


def _tokenized(spec: CorpusSpec, tokenizer: Tokenizer) -> Iterator[tuple[Document, NDArray[np.int32]]]:
    """Documents with their token ids, no special token added; tokenized some at a time on the tokenizer's threads."""
    documents = read_documents(
        spec.path, text_field=spec.text_field, suffixes=spec.suffixes, revision=spec.revision, seed=spec.seed
    )
    waiting: list[Document] = []

    def encoded() -> Iterator[tuple[Document, NDArray[np.int32]]]:
        batch = tokenizer.encode_batch_fast([d.text for d in waiting], add_special_tokens=False)
        for document, encoding in zip(waiting, batch, strict=True):
            yield document, np.asarray(encoding.ids, dtype=np.int32)

    for document in documents:
        waiting.append(document)
        if len(waiting) == _ENCODE_TOGETHER:
            yield from encoded()
            waiting = []
    yield from encoded()
