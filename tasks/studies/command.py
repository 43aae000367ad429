"""`argprune study`: run a study, collect its table, and say in one line how it went."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

from argprune.tasks.progress import print_summary
from argprune.tasks.runs import RunDirectory
from argprune.tasks.studies import (
    Executor,
    LocalExecutor,
    Study,
    StudyOutcome,
    collect,
    load_study,
    progress_for,
    run_study,
)
from argprune.tasks.studies.table import read_table
from argprune.tasks.studies.tuning import resolved_points


def study_command(arguments: Namespace) -> int:
    """Run the study of parsed arguments (those of `argprune study`); the exit status.

    0 where every point finished, 1 where one failed or is left, 130 on Ctrl-C. Raises ValueError for bad usage.
    """
    study = load_study(arguments.study)
    if arguments.collect is not None:
        # Before any run: a wrong file shall not be found after hours.
        read_table(arguments.collect)
    executor = _executor(arguments)
    try:
        outcome = run_study(
            study, executor=executor, retry=arguments.retry, progress=progress_for(quiet=arguments.quiet)
        )
    except KeyboardInterrupt:
        print("argprune: interrupted; the same command goes on.", file=sys.stderr)
        return 130
    if arguments.collect is not None:
        collect(study, arguments.collect)
    if not arguments.quiet:
        _summarise(study, outcome)
        print(f"study {study.output}: {outcome}")
    if not outcome.ok:
        print(f"argprune: error: {_complaint(outcome)}", file=sys.stderr)
    return 0 if outcome.ok else 1


def _executor(arguments: Namespace) -> Executor:
    if arguments.backend == "ray":
        from argprune.tasks.studies.ray_executor import RayExecutor

        cpus, gpus = 1 if arguments.cpus is None else arguments.cpus, arguments.gpus or 0.0
        return RayExecutor(arguments.jobs, address=arguments.ray_address, cpus=cpus, gpus=gpus)
    for option in ("gpus", "ray_address"):
        if getattr(arguments, option) is not None:
            raise ValueError(f"--{option.replace('_', '-')} is for --backend ray; the runs here share what there is.")
    return LocalExecutor(1 if arguments.jobs is None else arguments.jobs, threads=arguments.cpus)


def _summarise(study: Study, outcome: StudyOutcome) -> None:
    """A table of the finished runs for each task and model."""
    tables: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for point in resolved_points(study):
        if point.name in outcome.finished:
            metrics = RunDirectory(study.output / point.name).metrics()
            tables.setdefault((metrics["task"], metrics["model"]), {})[point.name] = metrics
    for runs in tables.values():
        names = sorted(runs, key=lambda name: _identity(runs[name]))
        # Runs that differ in other options than these are told apart by their folders.
        ambiguous = len({_identity(run) for run in runs.values()}) < len(runs)
        print_summary([runs[name] for name in names], names if ambiguous else None)


def _identity(run: dict[str, Any]) -> tuple[float, str, int]:
    return run["sparsity"]["target"], run["method"], run["seed"]


def _complaint(outcome: StudyOutcome) -> str:
    """What went wrong first, and what to do about it."""
    if outcome.failed:
        name, error = next(iter(outcome.failed.items()))
        return f"{outcome}; {name} failed: {error} (its log says more; --retry runs what failed again)"
    return f"{outcome}; {outcome.left[0]} was ended. The same command resumes it."
