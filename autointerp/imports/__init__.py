"""Labels that others wrote: our own dictionaries, parquet and JSON lines, and Neuronpedia's explanation files. Torch-free."""

from __future__ import annotations

from autointerp.imports.label_line import ImportedLabel, ImportedLabels, LabelFormat, LabelRequest, Sides, clean_label
from autointerp.imports.reading import read_labels

__all__ = ["ImportedLabel", "ImportedLabels", "LabelFormat", "LabelRequest", "Sides", "clean_label", "read_labels"]
