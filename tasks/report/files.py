"""The tables of a report as files beside it: CSV for people, Parquet for programs."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from argprune.tasks.report.tables import Row, Tables
from argprune.tasks.runs import write_atomic


def table_paths(page: Path, tables: Tables | None = None) -> dict[str, list[Path]]:
    """By table, its CSV and Parquet files; of `tables` only those that have rows."""
    names = [name for name, rows in tables.named().items() if rows] if tables else [f.name for f in fields(Tables)]
    return {name: [page.with_name(f"{page.stem}-{name}{suffix}") for suffix in (".csv", ".parquet")] for name in names}


def write_tables(page: Path, tables: Tables) -> None:
    """Write every table that has rows, atomically; those of an earlier report that has more are removed."""
    named, kept = tables.named(), table_paths(page, tables)
    for name, paths in table_paths(page).items():
        if name not in kept:
            for path in paths:
                path.unlink(missing_ok=True)
            continue
        write_atomic(paths[0], _csv(named[name]))
        _write_parquet(paths[1], named[name])


def columns(rows: Sequence[Row]) -> list[str]:
    """All columns, in the order in which they come up first."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write_parquet(path: Path, rows: Sequence[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: pa.array(_column([row.get(name) for row in rows])) for name in columns(rows)})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _column(values: Sequence[Any]) -> list[Any]:
    """Values of one type: numbers where all are, else text; what is no value stays none."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool} or kinds <= {int} or kinds <= {str}:
        return list(values)
    if kinds <= {int, float}:
        return [None if value is None else float(value) for value in values]
    return [None if value is None else str(value) for value in values]


def describe(paths: Mapping[str, Sequence[Path]]) -> str:
    """The names of the tables' files, for a sentence."""
    return ", ".join(path.name for both in paths.values() for path in both if path.suffix == ".csv")
