"""A task: texts with labels in three splits, and where they come from."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from argprune.tasks.folder import folder_tasks, read_folder
from argprune.tasks.stdlib_docs import read_stdlib_docs
from argprune.tasks.texts import Classification

EMBEDDED: dict[str, tuple[str, Callable[[], Classification]]] = {
    "stdlib-docs": ("which package a docstring of this Python's standard library documents", read_stdlib_docs)
}


@dataclass(frozen=True)
class TaskInfo:
    """A task's name, and what it is in one line."""

    name: str
    summary: str


def list_tasks(data_dir: str | Path | None = None) -> Sequence[TaskInfo]:
    """The embedded tasks and those that a data folder holds."""
    embedded = [TaskInfo(name, summary) for name, (summary, _) in EMBEDDED.items()]
    found = folder_tasks(Path(data_dir)) if data_dir is not None else []
    return embedded + [TaskInfo(name, f"classification in {data_dir}") for name in found]


def load_task(name: str, data_dir: str | Path | None = None) -> Classification:
    """The task of a name: an embedded one, or `data_dir`/name in the layout of docs/how-to/data.md.

    Raises ValueError in one line: unknown name (with the closest), corrupt row (with file and line), empty split.
    """
    if name in EMBEDDED:
        return EMBEDDED[name][1]()
    known = [task.name for task in list_tasks(data_dir)]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        where = (
            f" in {data_dir}" if data_dir is not None else "; for a folder of data give --data_dir or set ARGPRUNE_DATA"
        )
        raise ValueError(f"Unknown task {name!r}.{hint} Known: {', '.join(known)}{where}.")
    assert data_dir is not None
    return read_folder(Path(data_dir) / name)
