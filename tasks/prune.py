"""The main job: fine-tune a pretrained model on a task while a method prunes it, into a run directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from argprune.models import load_model
from argprune.solvers.methods import Dense, OneShot
from argprune.tasks.data import load_task
from argprune.tasks.job import Job
from argprune.tasks.options import Plan, plan
from argprune.tasks.ranks import Ranks, open_ranks
from argprune.tasks.runs import MASKS, MODEL, RunDirectory, held, one_line, usable
from argprune.tasks.settings import SHARED
from argprune.tasks.task_options import TaskOptions

# A reference is trained on the task alone: it may be the teacher.
_ALONE = {"distill": None, "augment": None}


@dataclass(frozen=True)
class Run:
    """A finished run: its folder (path), and what its metrics.json says."""

    path: Path
    metrics: Mapping[str, Any]

    def masks(self) -> dict[str, Tensor]:
        """Boolean masks by weight name, True = kept."""
        return load_file(self.path / MASKS)

    def model(self) -> PreTrainedModel:
        """The pruned model, in evaluation mode."""
        config = self.metrics["config"]
        task = load_task(self.metrics["task"], config["data_dir"], TaskOptions.of(config))
        return load_model(str(self.path / MODEL), kind=task.kind, **task.model_options())


def prune(
    model: str,
    task: str,
    *,
    method: str | Mapping[str, Any] = "rpp",
    sparsity: float | None = None,
    output: str | os.PathLike[str],
    dense: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Fine-tune and prune `model` on `task`; everything about it ends in the folder `output`.

    model: `minilm`, a hub id or a folder. task: `stdlib-docs`, or a task of `data_dir`. method: a name, `module:Class`,
    or a mapping with `name` and the method's options. sparsity: fraction of zeros over the prunable weights, in [0, 1).
    dense: the folder of the dense reference, trained there first if it is not finished (default: `output`/dense).
    resume: go on with an unfinished run, to the bits of an uninterrupted one; a finished one is returned as it is.
    overwrite: replace a run. quiet: no progress. settings: fields of `argprune.tasks.settings.Settings`.

    Raises ValueError for bad input, before any training and before any file changes; RunError where training fails.
    """
    options = {"model": model, "task": task, "method": method, "sparsity": sparsity, **settings}
    options["dense"] = None if dense is None else str(dense)
    try:
        # For what it says of bad values.
        plan(options)
    except ValueError as error:
        if not isinstance(error.__cause__, TypeError):
            raise
    checked = plan(_typed(options))
    return execute(checked, Path(output), resume=resume, overwrite=overwrite, quiet=quiet)


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError in one line unless the options of a run are good, as far as can be told without a model."""
    plan(_typed(options))


def _typed(options: Mapping[str, Any]) -> dict[str, Any]:
    # Imported here: which types the options have is known to the command line, above this package.
    from argprune.prune_command import typed

    return typed(options)


def execute(planned: Plan, output: Path, *, resume: bool, overwrite: bool, quiet: bool) -> Run:
    """Carry out a plan (planned) in a folder (output); resume, overwrite, quiet: see `prune`."""
    # Trainer and save_pretrained would draw bars of their own between ours.
    logging.disable_progress_bar()
    ranks = open_ranks()
    quiet = quiet or not ranks.is_first
    run, options = RunDirectory(output), planned.to_options()
    ranks.check_same({**options, "output": str(output), "resume": resume, "overwrite": overwrite})

    reference = None if isinstance(planned.method, Dense) else Path(planned.dense or output / "dense")

    def check() -> Mapping[str, Any] | None:
        if reference is not None:
            _check_apart(reference, output)
        _check_model(planned.settings.model, output)
        with usable(output):
            run.check(options, resume=resume, overwrite=overwrite)
        return run.metrics() if run.finished and not overwrite else None

    finished = ranks.first(check)
    if finished is not None:
        return Run(output, finished)
    job = ranks.all(lambda: Job.prepare(planned, ranks))
    problem = ranks.first(lambda: reference and _disagreement(planned, reference))
    # A reference inside the run is replaced with it; one that others may share is not.
    replace_reference = problem is not None and overwrite and planned.dense is None
    if problem and not replace_reference:
        raise ValueError(problem)

    def claim() -> Mapping[str, Any] | None:
        run.check(options, resume=resume, overwrite=overwrite)
        if run.finished and not overwrite:
            # Another process was at it while this one got ready.
            return run.metrics()
        run.sweep()
        if overwrite or run.empty:
            run.begin(options)
        if reference is not None and replace_reference:
            RunDirectory(reference).begin(_reference_options(planned))
        return None

    with one_line(output), ranks.holding(lambda: held(_lock(run), output, wait=False)):
        finished = ranks.first(claim)
        if finished is not None:
            return Run(output, finished)
        dense = None if reference is None else _run_reference(planned, reference, ranks, quiet=quiet)
        if isinstance(planned.method, OneShot):
            # What it prunes is what the reference has learned.
            assert reference is not None
            job = job.starting_from(reference / MODEL)
        job = job.ready()
        metrics = job.run(run, dense, reference, quiet=quiet)
    return Run(output, metrics)


def _lock(run: RunDirectory) -> FileLock:
    """A run's lock, not yet taken. Raises ValueError where its folder cannot be written to, before any work."""
    with usable(run.path):
        lock = run.lock()
        (run.path / ".lock").touch()
    return lock


def _check_apart(reference: Path, output: Path) -> None:
    """Raise ValueError where a run would be its own dense reference, whatever the two paths are called."""
    if reference.resolve() == output.resolve():
        raise ValueError(f"Output {output} is the dense reference {reference} itself; give another folder.")


def _check_model(model: str, output: Path) -> None:
    """Raise ValueError where a run would replace the model that it starts from."""
    source, made = Path(model).expanduser().resolve(), (output / MODEL).resolve()
    if source.is_dir() and (source == made or made in source.parents):
        raise ValueError(f"Model {model} is in output {output}, which is to be replaced; give another folder.")


def _disagreement(planned: Plan, reference: Path) -> str | None:
    """Why the run in a folder cannot be the dense reference of a plan; None where it can, or is yet to be made.

    Raises ValueError for what is no run, and so nothing to replace either.
    """
    run = RunDirectory(reference)
    with usable(reference, "Dense reference"):
        if reference.exists() and not reference.is_dir():
            raise ValueError(f"Dense reference {reference} is a file; give a dense run, or a new folder.")
        if run.empty:
            return None
        if not run.begun:
            raise ValueError(f"Dense reference {reference} is a folder, but no run; give a dense run, or a new folder.")
    saved, wanted = run.config(), planned.to_options()
    if saved["method"]["name"] != "dense":
        return f"Dense reference {reference} is a run of method {saved['method']['name']!r}, not dense."
    for key in SHARED:
        if saved.get(key) != wanted[key]:
            return (
                f"Dense reference {reference} has {key} {saved.get(key)!r}, this run {wanted[key]!r}; they must agree."
            )
    return None


def _reference_options(planned: Plan) -> dict[str, Any]:
    """The options of the dense reference of a plan."""
    alone = {**planned.to_options(), "method": "dense", "sparsity": 0.0, "dense": None, **_ALONE}
    return plan(alone).to_options()


def _run_reference(planned: Plan, reference: Path, ranks: Ranks, *, quiet: bool) -> Mapping[str, Any]:
    run = RunDirectory(reference)

    def claim() -> tuple[Mapping[str, Any] | None, Mapping[str, Any]]:
        if run.finished:
            return run.metrics(), {}
        run.sweep()
        if run.empty:
            run.begin(_reference_options(planned))
        return None, run.config()

    # Several runs may share a reference: the first trains it, the others wait for it.
    with ranks.holding(lambda: held(_lock(run), reference, wait=True)):
        metrics, options = ranks.first(claim)
        if metrics is not None:
            return metrics
        return Job.prepare(plan(options), ranks).ready().run(run, None, None, quiet=quiet)
