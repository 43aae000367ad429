"""`argprune verify prox`: the conformance suite over named or all operators, in processes, as a table and as JSON."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from argprune._version import __version__
from argprune.solvers.verify import Report, check_operator, examples, names
from argprune.tasks.outputs import check_target
from argprune.tasks.runs import write_json

Spec = Mapping[str, Any]


def verify_command(
    regularizers: Sequence[Spec], *, json_file: str | None, jobs: int, seed: int, speed: bool, quiet: bool
) -> int:
    """Check operators and print a table; 0 where all passed, 1 where one failed.

    regularizers: mappings of `name` and constructor options; empty for everything registered. Raises ValueError before
    anything is checked where one cannot be built, or where the JSON file cannot be written.
    """
    if jobs < 1:
        raise ValueError(f"jobs {jobs}; give at least 1.")
    if json_file is not None:
        check_target("json", json_file)
    specs = [dict(spec) for spec in regularizers] or [{"name": name} for name in names()]
    work = [(spec, index) for spec in specs for index in range(len(_instances(spec)))]
    began = time.perf_counter()
    console = Console(width=None if sys.stdout.isatty() else 160)
    order = {_label(spec, index): place for place, (spec, index) in enumerate(work)}
    reports: dict[str, Report] = {}
    for label, report in _checked(work, jobs, seed, speed):
        reports[label] = report
        if not quiet:
            state = "passed" if report.passed else "FAILED"
            console.print(f"[{len(reports)}/{len(work)}] {state} {report.operator}", markup=False, highlight=False)
    ordered = [reports[label] for label in sorted(reports, key=order.__getitem__)]
    failed = [report for report in ordered if not report.passed]
    if not quiet:
        console.print(_table(ordered))
    for report in failed:
        _explain(report, console)
    seconds = time.perf_counter() - began
    operators = len({report.name for report in ordered})
    checks = sum(check.status != "skipped" for report in ordered for check in report.checks)
    print(
        f"{operators} operators, {len(ordered)} instances, {checks} checks in {seconds:.0f} s: "
        + (f"{len(failed)} failed." if failed else "all passed.")
    )
    if json_file is not None:
        versions = {"argprune": __version__, "torch": torch.__version__}
        write_json(
            Path(json_file),
            {
                "passed": not failed,
                "operators": operators,
                "instances": len(ordered),
                "seconds": round(seconds, 1),
                "seed": seed,
                "versions": versions,
                "reports": [report.to_dict() for report in ordered],
            },
        )
    return 1 if failed else 0


def _instances(spec: Spec) -> list[Any]:
    options = {key: value for key, value in spec.items() if key != "name"}
    return examples(spec["name"], options)


def _label(spec: Spec, index: int) -> str:
    return f"{json.dumps(spec, sort_keys=True, default=str)}#{index}"


def _checked(work: Sequence[tuple[Spec, int]], jobs: int, seed: int, speed: bool) -> Iterator[tuple[str, Report]]:
    """Reports as they come, from worker processes where there is more than one instance to check."""
    if jobs == 1 or len(work) == 1:
        for spec, index in work:
            yield _label(spec, index), _check(spec, index, seed, speed)
        return
    # Spawned: a fork of a process that has used torch's threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(jobs, len(work)), mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        futures = {pool.submit(_check, spec, index, seed, speed): _label(spec, index) for spec, index in work}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _check(spec: Spec, index: int, seed: int, speed: bool) -> Report:
    return check_operator(_instances(spec)[index], spec["name"], seed=seed, speed=speed)


def _table(reports: Sequence[Report]) -> Table:
    table = Table(title="argprune verify prox", box=None, pad_edge=False)
    for header in ("operator", "", "checks", "closest to its tolerance", "error", "allowed", "where", "GB/s", "x copy"):
        table.add_column(header, overflow="fold")
    for report in reports:
        passed = sum(check.status == "passed" for check in report.checks)
        tried = sum(check.status != "skipped" for check in report.checks)
        worst = report.worst
        rate = (
            ("", "")
            if report.speed is None
            else (f"{report.speed.gigabytes_per_second:.2g}", f"{report.speed.ratio_to_copy:.1f}")
        )
        state = "[green]pass[/green]" if report.passed else "[red]FAIL[/red]"
        numbers = (f"{worst.error:.1e}", f"{worst.tolerance:.1e}")
        slow = " (slow)" if report.slow else ""
        table.add_row(report.name + slow, state, f"{passed}/{tried}", worst.name, *numbers, worst.where, *rate)
    return table


def _explain(report: Report, console: Console) -> None:
    console.print(f"\n{report.name}: {report.operator}", markup=False, highlight=False)
    if not report.failures:
        refused = next((check.note for check in report.checks if check.note.startswith("refused")), "no check applied")
        console.print(f"  nothing could be checked; {refused}", markup=False, highlight=False, soft_wrap=True)
    for check in report.failures:
        note = f"; {check.note}" if check.note else ""
        line = f"  {check.name}: error {check.error:.3g}, allowed {check.tolerance:.3g}, at {check.where}{note}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        if check.failing:
            console.print(f"    {check.failing}", markup=False, highlight=False, soft_wrap=True)
