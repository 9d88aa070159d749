"""The processes that run subjects for the server, which has no torch: one a run, the last few."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import overload

from autointerp.passages import ContrastAnswer, ContrastQuestion, SubjectProcess, TextAnswer, TextQuestion
from autointerp.server.shelf import ServedRun

_MOST = 2
"""Subjects in memory at a time: each is a language model."""


class Subjects:
    """Asks the subjects of runs. Threads share one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: OrderedDict[str, SubjectProcess] = OrderedDict()

    @overload
    def ask(self, run: ServedRun, question: TextQuestion) -> TextAnswer: ...

    @overload
    def ask(self, run: ServedRun, question: ContrastQuestion) -> ContrastAnswer: ...

    def ask(self, run: ServedRun, question: TextQuestion | ContrastQuestion) -> TextAnswer | ContrastAnswer:
        """What the run's subject and coder say. Errors: SubjectProcessError, and what the search raises."""
        question.check()  # before anything is started for it
        return self._of(run).ask(question)

    def _of(self, run: ServedRun) -> SubjectProcess:
        dropped: list[SubjectProcess] = []
        with self._lock:
            found = self._processes.pop(run.run_id, None) or SubjectProcess(str(run.folder.root))
            self._processes[run.run_id] = found
            while len(self._processes) > _MOST:
                dropped.append(self._processes.popitem(last=False)[1])
        for process in dropped:
            process.close()
        return found

    def close(self) -> None:
        """End all of them."""
        with self._lock:
            left = list(self._processes.values())
            self._processes.clear()
        for process in left:
            process.close()
