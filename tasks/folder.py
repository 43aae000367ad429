"""Classification tasks from a folder: <name>/<split>.jsonl.gz, one JSON object a line, as docs/how-to/data.md says.

Where a task has no labelled test part, its dev part is the test (it reports, and never trains), and the validation
part is cut from train by a hash of the text.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from argprune.tasks.texts import Classification, Row

_TRAIN = ("train", "train_10k", "train_rebuilt")
_DEV = ("dev", "dev_matched")
_COLUMNS = {"text", "label"}


def folder_tasks(data_dir: Path) -> list[str]:
    """Names of the classification tasks in a data folder."""
    names = []
    for folder in sorted(data_dir.iterdir()) if data_dir.is_dir() else []:
        path = _part(folder, _TRAIN)
        if path is not None and _is_classification(path):
            names.append(folder.name)
    return names


def read_folder(folder: Path) -> Classification:
    """The task in a folder. Raises ValueError with file and line for a corrupt row or a missing column."""
    train_path, dev_path = _part(folder, _TRAIN), _part(folder, _DEV)
    if train_path is None or dev_path is None:
        raise ValueError(
            f"{folder}: needs a train part and a dev part ({', '.join(f'{n}.jsonl.gz' for n in _TRAIN + _DEV)})."
        )
    train, dev = list(_rows(train_path)), list(_rows(dev_path))
    test_path = _part(folder, ("test",))
    if test_path is not None:
        splits = {"train": train, "validation": dev, "test": list(_rows(test_path))}
    else:
        held_out = [row for row in train if _hash_share(row) >= 0.9]
        splits = {
            "train": [row for row in train if _hash_share(row) < 0.9],
            "validation": held_out,
            "test": dev,
        }
    count = max((row.label for row in train), default=-1) + 1
    return Classification(folder.name, [str(label) for label in range(count)], splits)


def _part(folder: Path, names: tuple[str, ...]) -> Path | None:
    for name in names:
        path = folder / f"{name}.jsonl.gz"
        if path.is_file():
            return path
    return None


def _is_classification(path: Path) -> bool:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        try:
            first = json.loads(next(lines, "null"))
        except (json.JSONDecodeError, OSError, EOFError):
            # Reading the task says what is wrong, with the line; listing only asks whether it may be one.
            return True
    return isinstance(first, dict) and set(first) >= _COLUMNS and isinstance(first["label"], int)


def _rows(path: Path) -> Iterator[Row]:
    read = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield _row(json.loads(line))
                read += 1
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}, line {read + 1}: {error}") from error


def _row(value: Any) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"a row is a JSON object with text and label, not {type(value).__name__}")
    missing = sorted(_COLUMNS - set(value))
    if missing:
        raise ValueError(f"column {missing[0]!r} is missing; found {', '.join(sorted(value))}")
    text, label, pair = value["text"], value["label"], value.get("text_pair")
    if not isinstance(text, str) or not isinstance(pair, str | None):
        raise ValueError("text and text_pair must be strings")
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        raise ValueError(f"label {label!r} is not an integer from 0 on")
    return Row(text, label, pair)


def _hash_share(row: Row) -> float:
    digest = hashlib.sha256(f"{row.text}\n{row.pair}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32
