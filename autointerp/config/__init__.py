"""A run's configuration, declared once: TOML file, ``--set key=value`` and ``AUTOINTERP_*`` environment.

Order of precedence: ``--set``, then the environment, then the file, then the defaults of :mod:`~autointerp.config.sections`.
Nothing of the machine is read at import. Paths in a file are relative to that file.
"""

from __future__ import annotations

from autointerp.config.keys import known_keys
from autointerp.config.loading import load_config, parse_config
from autointerp.config.run import RunConfig, canonical_json
from autointerp.config.sections import (
    CONTROL_SUFFIX,
    BudgetConfig,
    CoderConfig,
    ControlsConfig,
    CorpusConfig,
    ExtractionConfig,
    LabelsConfig,
    PrecisionConfig,
    Section,
    StoreConfig,
    SubjectConfig,
)

__all__ = [
    "CONTROL_SUFFIX",
    "BudgetConfig",
    "CoderConfig",
    "ControlsConfig",
    "CorpusConfig",
    "ExtractionConfig",
    "LabelsConfig",
    "PrecisionConfig",
    "RunConfig",
    "Section",
    "StoreConfig",
    "SubjectConfig",
    "canonical_json",
    "known_keys",
    "load_config",
    "parse_config",
]
