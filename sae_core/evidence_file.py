"""Arrays under names, with a few numbers beside them, in one safetensors file: how evidence is kept. Torch-free."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sae_core.errors import DiskFullError, InputError, MissingFileError

FORMAT_VERSION = 1


class EvidenceTable:
    """Arrays under names, with a few numbers beside them, in one safetensors file.

    Fields annotated as arrays are stored as tensors and joined by :meth:`concatenate`, except those in ``_SHARED``,
    which all parts must agree on; all other fields are numbers in the header.
    """

    _KIND: ClassVar[str]
    _SHARED: ClassVar[tuple[str, ...]] = ()
    _LARGEST: ClassVar[tuple[str, ...]] = ()
    _SUMMED: ClassVar[tuple[str, ...]] = ()

    def save(self, path: Path) -> None:
        """Write to ``path``, at once or not at all.

        Raises:
            DiskFullError: no room for it.
        """
        arrays: dict[str, NDArray[Any]] = {}
        header: dict[str, Any] = {"kind": self._KIND, "format_version": FORMAT_VERSION}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                arrays[field.name] = np.ascontiguousarray(value)
            else:
                header[field.name] = value
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
        try:
            save_file(arrays, temporary, metadata={"evidence": json.dumps(header, sort_keys=True)})
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
                raise DiskFullError(
                    f"No room left on the disk for {path}; free some and start the run again."
                ) from error
            raise

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            MissingFileError: there is no such file.
            InputError: it is not evidence of this kind.
        """
        if not path.is_file():
            raise MissingFileError(f"{path} is not there; run the stage that writes it first.")
        try:
            with safe_open(path, framework="numpy") as file:
                header = json.loads((file.metadata() or {}).get("evidence", "{}"))
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except SafetensorError as error:
            raise InputError(f"{path} is not a whole safetensors file; delete it and run the stage again.") from error
        found = (header.pop("kind", None), header.pop("format_version", None))
        if found != (cls._KIND, FORMAT_VERSION):
            raise InputError(
                f"{path} holds {found[0]} of format {found[1]}; {cls._KIND} of format {FORMAT_VERSION} is needed."
            )
        absent = sorted({field.name for field in fields(cls)} - {*arrays, *header})  # type: ignore[arg-type]
        if absent:
            raise InputError(
                f"{path} was written by an older version: it has no {', '.join(absent)}; delete it and run the stage again."
            )
        return cls(**arrays, **header)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, in their order.

        Raises:
            InputError: no parts, or parts with different control directions.
        """
        if not parts:
            raise InputError(f"Nothing to join: give at least one part of {cls._KIND}.")
        values: dict[str, Any] = {}
        for field in fields(cls):  # type: ignore[arg-type]
            name = field.name
            given = [getattr(part, name) for part in parts]
            if name in cls._SHARED:
                if any(not np.array_equal(value, given[0]) for value in given):
                    raise InputError(f"The parts of {cls._KIND} differ in {name}; join parts of one run only.")
                values[name] = given[0]
            elif name in cls._LARGEST:
                values[name] = max(given)
            elif name in cls._SUMMED:
                values[name] = sum(given)
            else:
                values[name] = np.concatenate(given)
        return cls(**values)
