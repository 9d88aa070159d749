"""What a killed export left that the next one goes on with: the list of its whole files."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import ValidationError

from autointerp.export.manifest import file_sha256
from autointerp.export.parts import DonePart

PROGRESS_NAME = "_progress.json"


class Progress:
    """The files of a folder that is being built that are whole, kept in the folder itself."""

    def __init__(self, building: Path, key: str, parts: list[DonePart]) -> None:
        self._building, self._key, self.parts = building, key, parts

    @classmethod
    def of(cls, left: Path, key: str) -> Progress | None:
        """What was left behind of the same export; None where it is another's, or cannot be read."""
        try:
            data = json.loads((left / PROGRESS_NAME).read_text(encoding="utf-8"))
            if data["key"] != key:
                return None
            return cls(left, key, [DonePart.model_validate(part) for part in data["parts"]])
        except (OSError, ValueError, ValidationError, KeyError, TypeError):
            return None

    @classmethod
    def begun(cls, building: Path, key: str) -> Progress:
        """Of a folder that is fresh, or was taken over: files that are not whole, and all after them, are removed."""
        found = (cls.of(building, key) if key else None) or cls(building, key, [])
        whole: list[DonePart] = []
        for part in found.parts:
            path = building / part.file.name
            if not path.is_file() or path.stat().st_size != part.file.bytes or file_sha256(path) != part.file.sha256:
                break
            whole.append(part)
        found.parts = whole
        kept = {building / part.file.name for part in whole}
        for path in building.rglob("*"):
            if path.is_file() and path not in kept and path.name != PROGRESS_NAME:
                path.unlink()
        found._keep()
        return found

    def add(self, part: DonePart) -> None:
        """Note one more whole file."""
        self.parts.append(part)
        self._keep()

    def end(self) -> None:
        """Remove the note: the dictionary is whole."""
        (self._building / PROGRESS_NAME).unlink(missing_ok=True)

    def _keep(self) -> None:
        if not self._key:
            return
        text = json.dumps({"key": self._key, "parts": [part.model_dump(mode="json") for part in self.parts]})
        temporary = self._building / f"{PROGRESS_NAME}.tmp"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._building / PROGRESS_NAME)
