"""Results of long measurements, a line of JSON for each, so that what was cut off can go on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_lines(path: Path | None) -> list[dict[str, Any]]:
    """Read the results of a file; none without a file.

    Raises:
        ValueError: if a line is no JSON, such as one that was cut off as the disk was full.
    """
    if path is None or not path.exists():
        return []
    results = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            results.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"each line of {path} must be a result as JSON, got {line[:40]!r} in line "
                f"{number}; take it out and start again"
            ) from error
    return results


def add_line(path: Path | None, result: Mapping[str, Any]) -> None:
    """Add a result to a file; nothing without one."""
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps(result) + "\n")
