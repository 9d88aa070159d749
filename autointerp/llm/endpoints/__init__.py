"""Endpoints: every module here that holds a concrete :class:`Endpoint` adds its kind."""

from __future__ import annotations

from autointerp.llm.endpoints.base import Endpoint

__all__ = ["Endpoint"]
