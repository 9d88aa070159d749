"""Explainers: every module here that holds a concrete :class:`Explainer` adds its kind."""

from __future__ import annotations

from autointerp.explainers.base import Explainer

__all__ = ["Explainer"]
