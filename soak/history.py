"""What every process of a soak writes down: one JSON object a line, whole or not at all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any


class History:
    """Appends to one file; a line is one write, so that a kill leaves no half of one behind another's."""

    def __init__(self, folder: Path, name: str) -> None:
        """Write ``<name>-<pid>.jsonl`` in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}-{os.getpid()}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, what: str, **facts: object) -> None:
        """Write one line."""
        line = {"t": time.time(), "what": what, **facts}
        os.write(self._file, (json.dumps(line, default=str) + "\n").encode())


def read_histories(folder: Path, name: str) -> Generator[dict[str, Any]]:
    """Read the lines of all processes of one name; the last of a killed one may be cut short."""
    for path in sorted(folder.glob(f"{name}-*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue
