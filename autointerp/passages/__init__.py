"""Search by text and search by contrast: which latents fire on passages that a person gives. The subject runs late or in a child process."""

from __future__ import annotations

from autointerp.passages.answers import (
    ContrastAnswer,
    ContrastLatent,
    FoundLatent,
    PassageFiring,
    ReadPassage,
    TextAnswer,
)
from autointerp.passages.contrast import search_contrast
from autointerp.passages.errors import (
    SubjectBusyError,
    SubjectCrashedError,
    SubjectMemoryError,
    SubjectProcessError,
    SubjectTimeoutError,
)
from autointerp.passages.files import read_passages
from autointerp.passages.questions import ContrastQuestion, TextQuestion
from autointerp.passages.subject_process import SubjectProcess
from autointerp.passages.text import search_text

__all__ = [
    "ContrastAnswer",
    "ContrastLatent",
    "ContrastQuestion",
    "FoundLatent",
    "PassageFiring",
    "ReadPassage",
    "SubjectBusyError",
    "SubjectCrashedError",
    "SubjectMemoryError",
    "SubjectProcess",
    "SubjectProcessError",
    "SubjectTimeoutError",
    "TextAnswer",
    "TextQuestion",
    "read_passages",
    "search_contrast",
    "search_text",
]
