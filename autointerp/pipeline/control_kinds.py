"""Kinds of control rows (METHODS 6), and what else their readers look for in them."""

from __future__ import annotations

SHUFFLED = "shuffled"
"""A latent's scores under another latent's label."""
NULL_NOTHING = "null_nothing"
"""Scores of a label that fits nothing."""
NULL_EVERYTHING = "null_everything"
"""Scores of a label that fits everything."""
NULL_EMPTY = "null_empty"
"""Scores of an empty label."""
VERDICTS = "verdicts"
"""Among a row's values what the judge said of each window, as ``Verdicts.to_json`` writes it."""
