"""A server that speaks the chat and completions API without a model: for tests, benches and dry runs.

It answers by an ``Answerer``, follows a script of faults, and keeps a ledger of every call and token. In a process of its own:
``python -m autointerp.llm.server``.
"""

from __future__ import annotations

from autointerp.llm.server.answers import Answerer, PlainAnswerer, Reply, TokenOdds
from autointerp.llm.server.faults import FAULTS, FaultRule, load_script, read_script
from autointerp.llm.server.ledger import Call, read_ledger, totals
from autointerp.llm.server.running import LLMServer, RunningServer

__all__ = [
    "FAULTS",
    "Answerer",
    "Call",
    "FaultRule",
    "LLMServer",
    "PlainAnswerer",
    "Reply",
    "RunningServer",
    "TokenOdds",
    "load_script",
    "read_ledger",
    "read_script",
    "totals",
]
