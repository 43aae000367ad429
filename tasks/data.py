"""Tasks by name: rows in three splits, what is to be told of them, and where they come from."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from argprune.tasks.folder import folder_tasks, read_folder, read_task
from argprune.tasks.hub import HUB, Hub
from argprune.tasks.kinds import MaskedLanguage
from argprune.tasks.language import Language, language_tasks, read_language
from argprune.tasks.sources import holds_rows
from argprune.tasks.stdlib_docs import read_stdlib_docs, read_stdlib_lm
from argprune.tasks.task_options import DEFAULTS, TaskOptions
from argprune.tasks.texts import Classification, Task

EMBEDDED: dict[str, tuple[str, Callable[[], Task]]] = {
    "stdlib-docs": ("which package a docstring of this Python's standard library documents", read_stdlib_docs),
    "stdlib-lm": ("language modelling of the docstrings of this Python's standard library", read_stdlib_lm),
}


@dataclass(frozen=True)
class TaskInfo:
    """A task's name, and a summary in one line."""

    name: str
    summary: str


def list_tasks(data_dir: str | Path | None = None) -> Sequence[TaskInfo]:
    """The embedded tasks and those that a data folder (data_dir) holds."""
    embedded = [TaskInfo(name, summary) for name, (summary, _) in EMBEDDED.items()]
    if data_dir is None:
        return embedded
    found = dict.fromkeys(language_tasks(Path(data_dir)), "language modelling") | folder_tasks(Path(data_dir))
    return embedded + [TaskInfo(name, f"{found[name]} in {data_dir}") for name in sorted(found)]


def load_classification(name: str, data_dir: str | Path | None = None) -> Classification:
    """`load_task(name, data_dir)` where only classification will do; ValueError in one line for another kind."""
    task = load_task(name, data_dir)
    if not isinstance(task, Classification):
        raise ValueError(f"Task {name!r} is of kind {task.kind}; give one of classification.")
    return task


def load_task(name: str, data_dir: str | Path | None = None, options: TaskOptions = DEFAULTS) -> Task:
    """The task of a name: an embedded one, `data_dir`/name, one of the hub's, or a folder or file, given by its path.

    Folders and files are laid out as docs/how-to/data.md says; a path is absolute, or begins with "." or "~", or has a
    "/". options: what else may be said of it.
    Raises ValueError in one line: unknown name (with the closest), corrupt row (with file and line), empty split, an
    option that the task does not have.
    """
    return _shortened(_load(name, data_dir, options), options)


def _load(name: str, data_dir: str | Path | None, options: TaskOptions) -> Task:
    if name in EMBEDDED:
        return _with_objective(EMBEDDED[name][1](), options)
    if name.startswith((".", "~")) or "/" in name or Path(name).is_absolute():
        return _read_path(name, options)
    if data_dir is not None and (Path(data_dir) / name).is_dir():
        # Listed or not: the reader says what is wrong with it, and the hub's rows would be others than the user's.
        return _read(Path(data_dir) / name, options)
    if name in HUB:
        return read_task(Hub.load(name), options)
    known = [task.name for task in list_tasks(data_dir)]
    close = difflib.get_close_matches(name, [*known, *HUB], n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    where = f" in {data_dir}" if data_dir is not None else "; for a folder of data give --data_dir or set ARGPRUNE_DATA"
    raise ValueError(f"Unknown task {name!r}.{hint} Known: {', '.join(known)}{where}; on the hub: {', '.join(HUB)}.")


def _read_path(name: str, options: TaskOptions) -> Task:
    path = Path(name).expanduser().resolve()
    if not path.exists():
        raise ValueError(f"No folder {name!r}. Give the folder of a task, its file, or the name of one in --data_dir.")
    return _read(path, options)


def _read(path: Path, options: TaskOptions) -> Task:
    # Of a folder that is neither, the reader of text says what would be right.
    if path.is_file() or holds_rows(path):
        return read_folder(path, options)
    return _with_objective(read_language(path), options)


def _with_objective(task: Task, options: TaskOptions) -> Task:
    """A task of text, or an embedded one, with what the options say of it."""
    if isinstance(task, Language):
        options.refuse("text", "objective")
        if options.objective == "masked-lm":
            return MaskedLanguage(task.name, task.splits)
        if options.objective not in (None, "causal-lm"):
            raise ValueError(
                f"Task {task.name}: objective {options.objective!r} of text; choose causal-lm or masked-lm."
            )
    else:
        options.refuse(f"task {task.name}")
    return task


def _shortened(task: Any, options: TaskOptions) -> Task:
    """The first rows of each split, as many as the options say."""
    if options.train_rows is None and options.eval_rows is None:
        return task
    most = {split: options.train_rows if split == "train" else options.eval_rows for split in task.splits}
    return replace(task, splits={split: rows[: most[split]] for split, rows in task.splits.items()})
