"""What a person sees of a run: a live bar on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rich import box
from rich import progress as rich_progress
from rich.console import Console
from rich.table import Table

# Metrics that are no shares of anything, and so are compared by their ratio.
_NO_SHARES = frozenset({"perplexity"})


class Progress(Protocol):
    """Told by the harness how a training goes."""

    def start(self, total: int, done: int) -> None:
        """A training of `total` steps begins (or goes on) after `done` of them."""

    def advance(self, step: int) -> None:
        """`step` steps are done."""

    def report(self, values: Mapping[str, Any]) -> None:
        """A logging line: step, loss and what the method says."""

    def stop(self) -> None:
        """The training has ended."""


class Quiet:
    """Says nothing."""

    def start(self, total: int, done: int) -> None: ...

    def advance(self, step: int) -> None: ...

    def report(self, values: Mapping[str, Any]) -> None: ...

    def stop(self) -> None: ...


class Bar:
    """A rich progress bar with loss, sparsity and time left."""

    def __init__(self, title: str, console: Console) -> None:
        self._title = title
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TextColumn("{task.fields[state]}"),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TimeRemainingColumn(),
            console=console,
        )

    def start(self, total: int, done: int) -> None:
        self._task = self._bar.add_task(self._title, total=total, completed=done, state="")
        self._bar.start()

    def advance(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def report(self, values: Mapping[str, Any]) -> None:
        self._bar.update(self._task, state=_state(values))

    def stop(self) -> None:
        self._bar.stop()


class Lines:
    """A plain line every tenth of the way."""

    def __init__(self, title: str, console: Console) -> None:
        self._title, self._console = title, console

    def start(self, total: int, done: int) -> None:
        self._total, self._done, self._began, self._said = total, done, time.monotonic(), done

    def advance(self, step: int) -> None:
        self._step = step

    def report(self, values: Mapping[str, Any]) -> None:
        step = int(values["step"])
        if step < self._total and step - self._said < self._total / 10:
            return
        self._said = step
        left = (time.monotonic() - self._began) / max(1, step - self._done) * (self._total - step)
        self._console.print(f"{self._title}  step {step}/{self._total}  {_state(values)}  {left:.0f} s left")

    def stop(self) -> None: ...


def make_progress(title: str, *, quiet: bool) -> Progress:
    """The progress display that fits the place: none, a bar, or lines; always on standard error."""
    if quiet:
        return Quiet()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    return Bar(title, console) if sys.stderr.isatty() else Lines(title, console)


def print_summary(
    runs: Sequence[Mapping[str, Any]], labels: Sequence[str] | None = None, console: Console | None = None
) -> None:
    """A table of finished runs of one task and model, one row each, from their metrics.

    labels: what to call the runs (default: by method, and by seed where there are several).

    Columns: the metric on the test split, points against dense, sparsity of the encoder's prunable weights, nonzero
    share of all parameters, optimizer steps, seconds of training. A single pruned run is preceded by its dense
    reference.
    """
    metric = runs[0]["metric"]
    title = f"{runs[0]['model']} on {runs[0]['task']}, test split"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for name in ("method", metric, "vs dense", "sparsity", "size", "steps", "train s"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    if len(runs) == 1 and runs[0]["dense"] is not None and runs[0]["method"] != "dense":
        table.add_row("dense", _score(metric, runs[0]["dense"]["test"][metric]), "", "0.0%", "100%", "", "")
    if labels is None:
        several_seeds = len({run["seed"] for run in runs}) > 1
        labels = [run["method"] + (f", seed {run['seed']}" if several_seeds else "") for run in runs]
    for label, run in zip(labels, runs, strict=True):
        score, dense, sparsity = run["pruned"]["test"][metric], run["dense"], run["sparsity"]
        pruned = dense is not None and run["method"] != "dense"
        table.add_row(
            label,
            _score(metric, score),
            _difference(metric, score, dense["test"][metric]) if pruned else "",
            f"{sparsity['encoder']:.1%}",
            f"{1 - sparsity['model']:.0%}",
            str(run["steps"]),
            f"{run['seconds']['train']:.0f}",
        )
    # A file or a pipe has no width; rich would assume 80 columns and cut names short.
    console = console or (Console() if sys.stdout.isatty() else Console(width=120))
    console.print(table)


def _score(metric: str, value: float) -> str:
    return f"{value:.2f}" if metric in _NO_SHARES else f"{value:.1%}"


def _difference(metric: str, value: float, dense: float) -> str:
    return f"{value / dense - 1:+.1%}" if metric in _NO_SHARES else f"{100 * (value - dense):+.1f} pt"


def _state(values: Mapping[str, Any]) -> str:
    parts = [f"loss {values['loss']:.3f}"] if "loss" in values else []
    parts += [f"sparsity {values['sparsity']:.1%}"] if "sparsity" in values else []
    return "  ".join(parts)
