"""What a row is, and the file that collects the rows of one device."""

import dataclasses
import json
import os
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

Result = dict[str, Any]
# Up to its first `yield` a row submits its compilations; after it, it measures and returns the result.
Run = Callable[[Any], Generator[None, None, Result]]


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table.

    Rows of one `process` share its models; those of one `wave` compile together before the first of them is measured.
    `seconds` is an estimate for an H100 with 16 CPU cores. `needs` names packages without which the row is left out.
    """

    name: str
    process: str
    wave: int
    seconds: float
    run: Run
    needs: tuple[str, ...] = ()


class Results:
    """The rows of one device in a JSON file, written beside and renamed after every row."""

    def __init__(self, path: Path):
        self.path = path
        self.content: dict[str, Any] = {"rows": {}}
        if path.exists():
            self.content = json.loads(path.read_text())

    @property
    def rows(self) -> Mapping[str, Result]:
        """Results by the rows' names."""
        return self.content["rows"]

    def describe(self, description: Mapping[str, Any]) -> None:
        """Writes what the rows were measured with."""
        self.content |= description
        self._write()

    def put(self, name: str, result: Result) -> None:
        """Writes one row."""
        self.content["rows"][name] = result
        self._write()

    def is_done(self, name: str) -> bool:
        """Whether a row is there and succeeded; one that failed or was left out is tried again."""
        result = self.rows.get(name)
        return result is not None and not any(word in result for word in ("failed", "error", "left_out", "running"))

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".partial")
        beside.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(beside, self.path)
