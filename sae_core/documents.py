"""Documents from what people have: files of text, rows or token ids, folders of them, data sets of the hub, Python's own library.

Documents come one after the other, never all at once; exact duplicates are dropped as they are read. ``docs/corpora.md``
has the forms, ``sae_core/readers/`` one reader a kind of file.
"""

from __future__ import annotations

import re
from collections.abc import Generator

import numpy as np

from sae_core.corpus_files import PYTHON_STDLIB, CorpusFiles, Place, find_files
from sae_core.document import Document
from sae_core.errors import CorpusError
from sae_core.readers import text as plain_text
from sae_core.readers.field import Field
from sae_core.readers.scanning import reader_of
from sae_core.seen_digests import SeenDigests

__all__ = ["PYTHON_STDLIB", "Document", "documents_in", "read_documents"]
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_documents(
    path: str,
    *,
    text_field: str = "text",
    suffixes: tuple[str, ...] = (),
    revision: str | None = None,
    seed: int = 0,
    split: str | None = None,
    subset: str | None = None,
) -> Generator[Document, None, None]:
    """The texts of the corpus at ``path``: :func:`documents_in` the files that are found there.

    Raises CorpusError or MissingFileError.
    """
    field = Field("text", text_field)
    yield from documents_in(find_files(Place(path, suffixes, split, subset, revision, seed), field), field)


def documents_in(
    found: CorpusFiles, field: Field, *, vocabulary: int | None = None, leading_id: int | None = None
) -> Generator[Document, None, None]:
    """Each distinct document of the files once, empty ones left out.

    Token ids must lie below ``vocabulary``; a ``leading_id`` at a row's beginning (the BOS, which the cut adds) is taken
    off. Raises CorpusError.
    """
    seen = SeenDigests()
    for file in found.files:
        for document in (reader_of(file.name) or plain_text).read(file, field):
            if document.ids is not None:
                document = _checked_ids(document, vocabulary, leading_id)
            elif _SURROGATE.search(document.text):
                # Half a surrogate pair, as JSON escapes can write it, is no character to any tokenizer.
                clean = document.text.encode("utf-8", "replace").decode("utf-8")
                document = Document(document.name, clean, document.known)
            if not document.empty and seen.add(document.digest):
                yield document


def _checked_ids(document: Document, vocabulary: int | None, leading_id: int | None) -> Document:
    ids = document.ids
    assert ids is not None
    if not len(ids):
        return document
    if vocabulary is not None and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        bad = int(ids[(ids < 0) | (ids >= vocabulary)][0])
        raise CorpusError(
            f"{document.name} holds the token id {bad:,}, and the subject's ids go from 0 to {vocabulary - 1:,}: "
            "give ids of the subject's own tokenizer, or the text."
        )
    if leading_id is not None and int(ids[0]) == leading_id:
        return Document(document.name, known=document.known, ids=np.ascontiguousarray(ids[1:]))
    return document
