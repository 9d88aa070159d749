"""Documents cut into contexts, once, as a :class:`sae_core.token_corpus.TokenCorpus` that every later stage maps. Torch-free.

A context holds the subject's BOS (where its tokenizer has one) and then at most ``context_length - 1`` tokens of
one document; or, packed, of several documents of one side. So a context stands on exactly one side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sae_core.corpus_files import CorpusFiles, Place, find_files
from sae_core.corpus_writer import TOKENIZER, CorpusWriter, token_format
from sae_core.document import Document
from sae_core.documents import documents_in
from sae_core.errors import CorpusError, InputError
from sae_core.hashing import hash64, seed_for
from sae_core.packing import PackedContext, Packer
from sae_core.readers.field import Field
from sae_core.records import SIDE_SHARES
from sae_core.token_cache import TokenCache, cache_key
from sae_core.token_corpus import FORMAT_VERSION, TokenCorpus

__all__ = ["FORMAT_VERSION", "CorpusSpec", "CorpusStopped", "Renderer", "TokenCorpus", "build_corpus", "sides_of"]
_TOGETHER_CHARACTERS = 1 << 20
"""Text given to the tokenizer's threads at once."""
_TOGETHER_DOCUMENTS = 4096
_LEAST_CHARACTERS = 1 << 16
_CHARACTERS_PER_TOKEN = 8
"""On the high side, so that little more is read than asked for."""
_TOP_BIT = np.uint64(1 << 63)


class CorpusStopped(Exception):
    """The caller's ``stop`` ended the building of a corpus; it is no error."""


class Renderer(Protocol):
    """Makes a text of a conversation; :class:`sae_core.chat.ChatTemplate` is one."""

    @property
    def key(self) -> str:
        """The same for what renders alike."""
        ...

    def __call__(self, messages: Sequence[Mapping[str, Any]]) -> str: ...


@dataclass(frozen=True)
class CorpusSpec:
    """What to read and how to cut it."""

    path: str
    """Folder, file, hub data set id, or :data:`sae_core.documents.PYTHON_STDLIB`."""
    num_tokens: int
    """Tokens to read; the BOS of each context and the EOS between packed documents are not counted."""
    context_length: int
    """Tokens of a context, the BOS counted."""
    text_field: str = "text"
    """Field of a row, or column of a table, that holds the text."""
    suffixes: tuple[str, ...] = ()
    """Files of a folder to read, by their ending; empty for the defaults."""
    tokens_per_document: int | None = None
    """At most this many tokens of each document, a stretch drawn by the document's hash; None for all of it."""
    revision: str | None = None
    """Commit of a hub data set."""
    seed: int = 0
    """Orders a folder's files and deals documents to sides."""
    tokens_field: str | None = None
    """Field that holds token ids, read in the place of a text."""
    messages_field: str | None = None
    """Field that holds a conversation, read in the place of a text."""
    split: str | None = None
    """Split of a data set."""
    subset: str | None = None
    """Configuration or folder of a data set."""
    packed: bool = False
    """Whether the documents of a side are joined, by the EOS, and cut into full contexts; where the documents are not
    known (a lone .txt) there is nothing to join."""

    @property
    def field(self) -> Field:
        """The field of a row that is read."""
        if self.tokens_field is not None:
            return Field("tokens", self.tokens_field)
        return Field("text", self.text_field) if self.messages_field is None else Field("messages", self.messages_field)

    def files(self) -> CorpusFiles:
        """The files to read. Raises CorpusError or MissingFileError."""
        place = Place(self.path, self.suffixes, self.split, self.subset, self.revision, self.seed)
        return find_files(place, self.field)

    def check_readable(self) -> None:
        """Read the first document. Raises CorpusError where there is none, MissingFileError where there is no such place."""
        with closing(documents_in(self.files(), self.field)) as documents:
            if next(documents, None) is None:
                raise self.no_text()

    def no_text(self) -> CorpusError:
        """The error for a corpus without documents."""
        return CorpusError(f"corpus.path is {self.path!r}, and it holds no text: give a corpus with documents in it.")


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
    *,
    leading_id: int | None = None,
    eos_id: int | None = None,
    render: Renderer | None = None,
    cache: TokenCache | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> TokenCorpus:
    """Read, tokenize and cut ``spec.num_tokens`` tokens into ``folder``; ``corpus.json`` is written last.

    Args:
        spec: what to read and how to cut it.
        tokenizer: the subject's.
        bos_id: begins each context, None for nothing.
        folder: where the corpus goes; what is there of another is replaced.
        progress: gets the tokens done; what it raises ends the work.
        leading_id: taken off where a row of ids or a conversation begins with it; by default ``bos_id``.
        eos_id: stands between packed documents.
        render: makes texts of conversations.
        cache: where a finished corpus of the same text is taken from, and kept.
        stop: asked often; once it says so, the work ends.

    Raises:
        CorpusError: there is nothing to read, fewer tokens than asked, or something that cannot be read.
        MissingFileError: there is no such place.
        CorpusStopped: ``stop`` said so.
    """
    cut = _Cut.of(spec, tokenizer, bos_id, bos_id if leading_id is None else leading_id, eos_id)
    if spec.field.kind == "messages" and render is None:
        raise CorpusError(
            "corpus.messages_field is set, and the subject's tokenizer gives no chat template: set corpus.text_field instead."
        )
    files = spec.files()
    key = ""
    if cache is not None:
        key = _key(spec, files, tokenizer, cut, render)
        if cache.take(key, folder):
            corpus = TokenCorpus.open(folder)
            progress(corpus.num_tokens)
            return corpus
    facts = {
        "format_version": FORMAT_VERSION,
        "path": spec.path,
        "commit": files.commit,
        "context_length": spec.context_length,
        "packed": spec.packed,
        "bos_id": bos_id,
        "seed": spec.seed,
    }
    with CorpusWriter(folder, token_format(cut.vocabulary), facts) as writer:
        tokenizer.save(str(folder / TOKENIZER))
        with closing(_tokenized(spec, files, tokenizer, cut, render, stop)) as documents:
            _write(spec, documents, writer, cut, tokenizer, progress)
    if cache is not None and _key(spec, _found_again(spec, files), tokenizer, cut, render) == key:
        cache.keep(key, folder)  # not where a file has changed while it was read
    return TokenCorpus.open(folder)


@dataclass(frozen=True)
class _Cut:
    """How documents become contexts."""

    body: int
    """Tokens of a context beside its BOS."""
    vocabulary: int
    """Ids lie below it."""
    bos_id: int | None
    leading_id: int | None
    eos_id: int | None
    """None where documents are not joined."""

    @staticmethod
    def of(
        spec: CorpusSpec, tokenizer: Tokenizer, bos_id: int | None, leading_id: int | None, eos_id: int | None
    ) -> _Cut:
        """Raises CorpusError where a context is too short, or documents are to be joined and there is no EOS."""
        body = spec.context_length - (bos_id is not None)
        if body < 1 + spec.packed:
            raise CorpusError(
                f"extraction.context_length is {spec.context_length}; a context must hold {'two tokens' if spec.packed else 'a token'} "
                "beside the BOS."
            )
        if spec.packed and eos_id is None:
            raise CorpusError(
                "corpus.packed joins documents by the EOS, and the subject's tokenizer has none: set corpus.packed to false."
            )
        known = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        vocabulary = max(known, *(i for i in (bos_id, leading_id, eos_id) if i is not None), 0) + 1
        return _Cut(body, vocabulary, bos_id, leading_id, eos_id if spec.packed else None)


def _key(spec: CorpusSpec, files: CorpusFiles, tokenizer: Tokenizer, cut: _Cut, render: Renderer | None) -> str:
    shape = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
    return cache_key(
        FORMAT_VERSION, asdict(spec), files.identity(), shape, asdict(cut), None if render is None else render.key
    )


def _found_again(spec: CorpusSpec, files: CorpusFiles) -> CorpusFiles:
    """The files as they are now; those of a commit do not change."""
    if files.commit is not None:
        return files
    try:
        return spec.files()
    except (InputError, OSError):
        return CorpusFiles((), None)


def _write(
    spec: CorpusSpec,
    documents: Iterable[tuple[Document, NDArray[np.int32]]],
    writer: CorpusWriter,
    cut: _Cut,
    tokenizer: Tokenizer,
    progress: Callable[[int], None],
) -> None:
    told = (FORMAT_VERSION, spec.num_tokens, spec.context_length, spec.tokens_per_document, cut.bos_id, spec.seed)
    fingerprint = hashlib.sha256(repr((*told, cut.eos_id)).encode() + tokenizer.to_str().encode())
    packer = None if cut.eos_id is None else Packer(cut.body, cut.eos_id)
    budget, num_documents = spec.num_tokens, 0
    for document, all_ids in documents:
        digest = document.digest
        ids = _stretch(all_ids, spec.tokens_per_document, digest)[:budget]
        if not len(ids):
            continue
        fingerprint.update(digest.to_bytes(8, "big", signed=True))
        if packer is not None and document.known:
            side = int(sides_of(np.asarray([digest]), spec.seed)[0])
            _add_packed(writer, cut, [(side, c) for c in packer.add(ids, num_documents, digest, side)])
            num_documents += 1
        else:
            places = hash64(digest, np.arange(-(-len(ids) // cut.body)))
            ordinals = num_documents + np.arange(len(places), dtype=np.int64) * (not document.known)
            keys = np.full(len(places), digest) if document.known else (places ^ _TOP_BIT).view(np.int64)
            tokens, lengths = _cut_up(ids, cut)
            writer.add(tokens, lengths, ordinals, sides_of(keys, spec.seed), places)
            num_documents += 1 if document.known else len(places)
        budget -= len(ids)
        writer.tell(num_documents, spec.num_tokens - budget)
        progress(spec.num_tokens - budget)
        if budget == 0:
            break
    num_tokens = spec.num_tokens - budget
    if num_tokens == 0:
        raise spec.no_text()
    if budget:
        raise CorpusError(
            f"corpus.path {spec.path!r} gives {num_tokens:,} tokens and extraction.num_tokens asks for {spec.num_tokens:,}: "
            f"set extraction.num_tokens to at most {num_tokens:,}, or give more text."
        )
    if packer is not None:
        _add_packed(writer, cut, packer.rest())
    writer.finish(num_documents, num_tokens, fingerprint.hexdigest())


def _add_packed(writer: CorpusWriter, cut: _Cut, contexts: Sequence[tuple[int, PackedContext]]) -> None:
    if not contexts:
        return
    prefix = np.asarray([] if cut.bos_id is None else [cut.bos_id], dtype=np.int32)
    rows = [np.concatenate([prefix, context.ids]) for _, context in contexts]
    writer.add(
        np.concatenate(rows),
        np.asarray([len(row) for row in rows], dtype=np.int64),
        np.asarray([context.document for _, context in contexts], dtype=np.int64),
        np.asarray([side for side, _ in contexts], dtype=np.uint8),
        hash64([context.digest for _, context in contexts], [context.offset for _, context in contexts]),
    )


def _cut_up(ids: NDArray[np.int32], cut: _Cut) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """A document's contexts, BOS included, one after the other, and the length of each."""
    lengths = np.full(-(-len(ids) // cut.body), cut.body)
    lengths[-1] = len(ids) - (len(lengths) - 1) * cut.body
    if cut.bos_id is None:
        return ids, lengths
    return np.insert(ids, np.arange(0, len(ids), cut.body), cut.bos_id), lengths + 1


def _stretch(ids: NDArray[np.int32], limit: int | None, digest: int) -> NDArray[np.int32]:
    if limit is None or len(ids) <= limit:
        return ids
    start = int(hash64(digest, -1)) % (len(ids) - limit + 1)
    return ids[start : start + limit]


def _tokenized(
    spec: CorpusSpec,
    files: CorpusFiles,
    tokenizer: Tokenizer,
    cut: _Cut,
    render: Renderer | None,
    stop: Callable[[], bool],
) -> Generator[tuple[Document, NDArray[np.int32]], None, None]:
    """Documents with their token ids, no special token added; tokenized some at a time on the tokenizer's threads."""
    waiting: list[tuple[Document, str]] = []
    characters, useful, given = 0, 0, 0
    limit = spec.tokens_per_document or spec.num_tokens
    documents = documents_in(files, spec.field, vocabulary=cut.vocabulary, leading_id=cut.leading_id)

    def encoded() -> Iterable[tuple[Document, NDArray[np.int32]]]:
        batch = tokenizer.encode_batch_fast([text for _, text in waiting if text], add_special_tokens=False)
        encodings = iter(batch)
        for document, text in waiting:
            if document.ids is not None:
                yield document, document.ids.astype(np.int32)
            elif text:
                ids = np.asarray(next(encodings).ids, dtype=np.int32)
                begins = document.messages is not None and len(ids) and int(ids[0]) == cut.leading_id
                yield document, ids[1:] if begins else ids

    with closing(documents):
        for document in documents:
            if stop():
                raise CorpusStopped
            text = document.text
            if document.messages is not None and render is not None:
                text = render(document.messages)
            waiting.append((document, text))
            size = len(text) if document.ids is None else _CHARACTERS_PER_TOKEN * len(document.ids)
            characters += size
            useful += min(size, _CHARACTERS_PER_TOKEN * limit)
            wanted = max(_LEAST_CHARACTERS, _CHARACTERS_PER_TOKEN * (spec.num_tokens - given))
            if characters >= _TOGETHER_CHARACTERS or useful >= wanted or len(waiting) == _TOGETHER_DOCUMENTS:
                for document, ids in encoded():
                    given += min(len(ids), limit)
                    yield document, ids
                waiting, characters, useful = [], 0, 0
        if stop():
            raise CorpusStopped
        yield from encoded()
