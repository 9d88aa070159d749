"""What a benchmark ran on, in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def machine(device: str) -> str:
    """The GPU's name, or cores, processor and torch."""
    import torch

    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    return f"{os.cpu_count()} cores, {name}, torch {torch.__version__}"
