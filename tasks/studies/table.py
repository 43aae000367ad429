"""The results of a study as one tidy table: a row a run, a column a quantity, as CSV."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from argprune.tasks.runs import write_atomic
from argprune.tasks.studies.grid import OWNED, Study, flatten, method_name
from argprune.tasks.studies.records import StudyRun
from argprune.tasks.studies.tuning import resolved_points

Row = dict[str, Any]

_IDENTITY = ("run", "method", "task", "model", "seed")
_SIZES = ("sparsity_encoder", "sparsity_model", "compression_encoder", "compression_model")
# What a row is told by, and sorted by.
_KEYS = ("run", "task", "model", "method", "sparsity_target", "seed", "precision", "status")
# Options with a column of their own.
_NAMED = ("method", "method.name", "task", "model", "seed", "sparsity")


def collect(study: Study | str | Path, csv_path: str | Path) -> list[Row]:
    """Write one row for every finished or failed run, and return these rows.

    study: a study, of whose runs those for tuning alone are left out, or the folder of its runs (all that are
    there, those of earlier versions of the study included). csv_path: new, or an earlier table, whose rows stay unless
    the same run has finished again in the same precision (a failed one's: unless it is there again): one table may hold
    several studies, even collected at the same time, and outlives the folders of their runs. Rows by task, model,
    method, sparsity, seed and folder.

    Columns: run (the folder's name), method, task, model, seed, sparsity_target, sparsity_encoder,
    sparsity_model, compression_encoder, compression_model, <split>_<metric> of the pruned model,
    dense_<split>_<metric> of its dense reference, steps, seconds_train, precision (of auto, the one that was taken),
    option.<name> for each option that is not the same at all points, report.<name> from the method (lists left out),
    status and error. No value: an empty cell.

    Raises ValueError for a folder that is none or holds no runs, where a run's files cannot be read, and where
    the table cannot be written or csv_path is no such table.
    """
    csv_path = Path(csv_path)
    with _held(csv_path):
        earlier = read_table(csv_path)
        rows = _rows(study)
        _write(csv_path, sorted([*_kept(earlier, rows), *rows], key=_order))
    return rows


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Keep other processes from a table (path): what one writes between our reading and writing would be lost."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock")).acquire()
    except OSError as error:
        raise _unwritable(path, error) from error
    with lock:
        yield


def _unwritable(path: Path, error: OSError) -> ValueError:
    return ValueError(f"{path}: cannot write the table: {error.strerror}. Give another file.")


def _rows(study: Study | str | Path) -> list[Row]:
    """A row for every finished or failed run, in order."""
    if isinstance(study, Study):
        options = {point.name: dict(point.options) for point in resolved_points(study)}
        runs = [StudyRun(study.output, name) for name in options]
    else:
        runs = _runs_below(Path(study))
        options = {run.name: _options(run) for run in runs}
    done = [run for run in runs if run.state() != "left"]
    rows = sorted((_row(run, options[run.name]) for run in done), key=_order)
    varying = _varying(options.values())
    for row in rows:
        flat = flatten(options[row["run"]])
        row |= {f"option.{name}": flat.get(name) for name in varying}
    return rows


def read_table(path: str | Path) -> list[dict[str, str]]:
    """The rows of a table that `collect` wrote, none where there is no file; ValueError for any other file."""
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            header, rows = reader.fieldnames or (), list(reader)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unwritable(path, error) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a table of a study: {error}. Give another file.") from error
    missing = [name for name in _KEYS if name not in header]
    if missing:
        raise ValueError(f"{path}: not a table of a study: no column {missing[0]!r}. Give another file.")
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ValueError(
                f"{path}: row {line} has another number of cells than the header. Mend it, or move the file."
            )
    return rows


def _kept(earlier: Iterable[Row], rows: Sequence[Row]) -> Iterator[Row]:
    """The earlier rows that none of the new ones replaces: what finished, by the same in the same precision alone."""
    found = {row["run"] for row in rows}
    finished = {(row["run"], row["precision"] or "") for row in rows if row["status"] == "finished"}
    for row in earlier:
        again = row["run"] in found if row["status"] == "failed" else (row["run"], row["precision"]) in finished
        if not again:
            yield row


def _runs_below(folder: Path) -> list[StudyRun]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder. Give a study's output.")
    runs = [StudyRun(folder, path.name) for path in sorted(folder.iterdir()) if path.is_dir()]
    runs = [run for run in runs if run.state() != "left"]
    if not runs:
        raise ValueError(f"{folder}: no finished or failed run in it. Give a study's output.")
    return runs


def _options(run: StudyRun) -> dict[str, Any]:
    """What the study gave the run; for one that was made by hand, what it says itself."""
    options = run.options()
    if options is None:
        options = run.metrics().get("config", {}) if run.state() == "finished" else {}
    return {key: value for key, value in options.items() if key not in OWNED}


def _row(run: StudyRun, options: Mapping[str, Any]) -> Row:
    row: Row = {
        "run": run.name,
        "method": method_name(options) if "method" in options else None,
        **{name: options.get(name) for name in ("task", "model", "seed")},
        "sparsity_target": options.get("sparsity"),
        "status": run.state(),
        "error": "",
    }
    if row["status"] == "failed":
        return row | {"error": run.error()["error"]}
    metrics = run.metrics()
    row |= {name: metrics[name] for name in _IDENTITY if name in metrics}
    for quantity in ("sparsity", "compression"):
        row |= {f"{quantity}_{where}": value for where, value in (metrics.get(quantity) or {}).items()}
    for prefix, results in (("", metrics.get("pruned")), ("dense_", metrics.get("dense"))):
        for split, scores in (results or {}).items():
            row |= {f"{prefix}{split}_{metric}": value for metric, value in flatten(scores or {}).items()}
    row["steps"] = metrics.get("steps")
    row["seconds_train"] = (metrics.get("seconds") or {}).get("train")
    row["precision"] = metrics.get("config", {}).get("precision")
    report = flatten(metrics.get("method_report") or {})
    # A list has no place in one cell; metrics.json holds it.
    return row | {f"report.{name}": value for name, value in report.items() if not isinstance(value, list)}


def _order(row: Row) -> tuple[Any, ...]:
    names = [str(row[name]) for name in ("task", "model", "method")]
    return (*names, float(row["sparsity_target"] or 0), int(row["seed"] or 0), row["run"])


def _varying(points: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the options that some points have and others have not, or have another value of."""
    flat = [flatten(options) for options in points]
    names = sorted({name for options in flat for name in options if name not in _NAMED})
    missing = object()

    def varies(name: str) -> bool:
        return any(options.get(name, missing) != flat[0].get(name, missing) for options in flat)

    return [name for name in names if varies(name)]


def _write(path: Path, rows: list[Row]) -> None:
    """The columns in groups; within those that depend on study, task and method, by name."""
    head = [*_IDENTITY, "sparsity_target", *_SIZES]
    tail = ["steps", "seconds_train", "precision"]
    last = ["status", "error"]
    found = {name for row in rows for name in row} - {*head, *tail, *last}
    options, reports = (sorted(name for name in found if name.startswith(prefix)) for prefix in ("option.", "report."))
    scores = sorted(found - {*options, *reports}, key=lambda name: (name.startswith("dense_"), name))
    file = io.StringIO()
    columns = [*head, *scores, *tail, *options, *reports, *last]
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    try:
        write_atomic(path, file.getvalue())
    except OSError as error:
        raise _unwritable(path, error) from error


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value
