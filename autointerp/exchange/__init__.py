"""Runs written in other tools' formats, and read back: Neuronpedia's bulk files, circuit-tracer's feature files. Torch-free.

A format is one module with a subclass of :class:`ExchangeFormat`; nothing else knows of it.
"""

from __future__ import annotations

from autointerp.exchange.base import ExchangeFormat, Part
from autointerp.exchange.exporting import ExchangeNote, export_exchange, read_note
from autointerp.exchange.finding import format_of, known_formats

__all__ = ["ExchangeFormat", "ExchangeNote", "Part", "export_exchange", "format_of", "known_formats", "read_note"]
