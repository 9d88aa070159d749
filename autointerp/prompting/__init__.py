"""Prompts: files of ``prompts/`` made into requests, and untrusted text quoted as data in them."""

from __future__ import annotations

from autointerp.prompting.prompt import Prompt, load_prompt
from autointerp.prompting.quoting import Quoted, quote_windows

__all__ = ["Prompt", "Quoted", "load_prompt", "quote_windows"]
