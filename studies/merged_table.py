"""Tables that outlive the folders of their runs: new rows replace earlier ones of the same key, the others stay."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from argprune.tasks.runs import write_atomic


def write_merged(path: Path, rows: Sequence[Mapping[str, Any]], key: str) -> int:
    """Write the table, and return the number of its rows; floats with six digits.

    rows: at least one, all of the same columns, `key` among them. path: new, or a table of these columns, whose rows
    with other values of `key` come first. Raises ValueError for other columns.
    """
    columns, found = list(rows[0]), {str(row[key]) for row in rows}
    kept: list[Mapping[str, Any]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if list(reader.fieldnames or ()) != columns:
                raise ValueError(f"{path}: columns {reader.fieldnames}; expected {columns}. Give another file.")
            kept = [row for row in reader if row[key] not in found]
    table = [*kept, *rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()})
    write_atomic(path, text.getvalue())
    return len(table)
