"""A task: texts in three splits, with labels or to be predicted themselves, and where they come from."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from argprune.tasks.folder import folder_tasks, read_folder
from argprune.tasks.language import is_text_folder, language_tasks, read_language
from argprune.tasks.stdlib_docs import read_stdlib_docs, read_stdlib_lm
from argprune.tasks.texts import Classification, Task

EMBEDDED: dict[str, tuple[str, Callable[[], Task]]] = {
    "stdlib-docs": ("which package a docstring of this Python's standard library documents", read_stdlib_docs),
    "stdlib-lm": ("language modelling of the docstrings of this Python's standard library", read_stdlib_lm),
}


@dataclass(frozen=True)
class TaskInfo:
    """A task's name, and what it is in one line."""

    name: str
    summary: str


def list_tasks(data_dir: str | Path | None = None) -> Sequence[TaskInfo]:
    """The embedded tasks and those that a data folder holds."""
    embedded = [TaskInfo(name, summary) for name, (summary, _) in EMBEDDED.items()]
    if data_dir is None:
        return embedded
    found = dict.fromkeys(folder_tasks(Path(data_dir)), "classification")
    found |= dict.fromkeys(language_tasks(Path(data_dir)), "language modelling")
    return embedded + [TaskInfo(name, f"{found[name]} in {data_dir}") for name in sorted(found)]


def load_classification(name: str, data_dir: str | Path | None = None) -> Classification:
    """`load_task` where only classification will do: ValueError in one line for a task of another kind."""
    task = load_task(name, data_dir)
    if not isinstance(task, Classification):
        raise ValueError(f"Task {name!r} is of kind {task.kind}; give one of classification.")
    return task


def load_task(name: str, data_dir: str | Path | None = None) -> Task:
    """The task of a name: an embedded one, `data_dir`/name, or the folder itself, where the name is written as a path.

    Folders are laid out as docs/how-to/data.md says; a path is absolute, or begins with "." or "~", or has a "/".
    Raises ValueError in one line: unknown name (with the closest), corrupt row (with file and line), empty split.
    """
    if name in EMBEDDED:
        return EMBEDDED[name][1]()
    if name.startswith((".", "~")) or "/" in name or Path(name).is_absolute():
        return _read_path(name)
    known = [task.name for task in list_tasks(data_dir)]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        where = (
            f" in {data_dir}" if data_dir is not None else "; for a folder of data give --data_dir or set ARGPRUNE_DATA"
        )
        raise ValueError(f"Unknown task {name!r}.{hint} Known: {', '.join(known)}{where}.")
    assert data_dir is not None
    return _read(Path(data_dir) / name)


def _read_path(name: str) -> Task:
    folder = Path(name).expanduser().resolve()
    if not folder.is_dir():
        raise ValueError(f"No folder {name!r}. Give the folder of a task, or the name of one in --data_dir.")
    return _read(folder)


def _read(folder: Path) -> Task:
    # Of a folder that is neither, the reader of text says what would be right.
    has_rows = any(folder.glob("*.jsonl.gz"))
    return read_folder(folder) if has_rows and not is_text_folder(folder) else read_language(folder)
