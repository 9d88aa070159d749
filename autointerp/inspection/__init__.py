"""What ``autointerp inspect`` says about a coder: what it is, and, with a subject and a corpus, how well it does there.

The same content three times: on the terminal, as JSON, and the firing rates as a picture. Torch is loaded by :func:`look` only.
"""

from autointerp.inspection.description import inspection_json, saebench_metrics
from autointerp.inspection.looking import (
    Inspection,
    LoadOptions,
    MeasureOptions,
    check_destination,
    input_scale_of,
    look,
)
from autointerp.inspection.picture import draw_firing_rates
from autointerp.inspection.printing import print_inspection

__all__ = [
    "Inspection",
    "LoadOptions",
    "MeasureOptions",
    "check_destination",
    "draw_firing_rates",
    "input_scale_of",
    "inspection_json",
    "look",
    "print_inspection",
    "saebench_metrics",
]
