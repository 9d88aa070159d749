"""Plain text: a file of a folder is a document; the documents of a lone file are not known."""

from __future__ import annotations

import io
from collections.abc import Iterator

from sae_core.document import Document
from sae_core.errors import CorpusError
from sae_core.readers.field import Field, FieldKind
from sae_core.readers.file import CorpusFile

SUFFIXES = (".txt", ".md", ".py")
KINDS: tuple[FieldKind, ...] = ("text",)
_BLOCK_CHARACTERS = 1 << 20


def read(file: CorpusFile, field: Field) -> Iterator[Document]:
    """The text of a file; a file of a folder that is not UTF-8 gives nothing. Raises CorpusError."""
    with file.reading("text"), file.open() as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8")
        if file.lone:
            yield from _blocks(text, file)
            return
        try:
            whole = text.read()
        except UnicodeDecodeError:
            # A library's own test files hold other encodings on purpose; a file that is not UTF-8 is not text for the subject.
            return
        yield Document(file.name, whole)


def _blocks(text: io.TextIOWrapper, file: CorpusFile) -> Iterator[Document]:
    """A lone text in blocks that end at white space, since nothing says where its documents end."""
    rest, number = "", 0
    try:
        while block := text.read(_BLOCK_CHARACTERS):
            block = rest + block
            end = max(block.rfind("\n"), block.rfind(" ")) + 1 or len(block)
            number += 1
            yield Document(f"{file.name}:{number}", block[:end], known=False)
            rest = block[end:]
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{file.place} is not UTF-8 ({error.reason} in block {number + 1} of {_BLOCK_CHARACTERS:,} characters): write the file as UTF-8."
        ) from error
    if rest:
        yield Document(f"{file.name}:{number + 1}", rest, known=False)
