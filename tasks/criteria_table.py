"""The tables of `argprune verify criteria`, and what they say in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from argprune.solvers.verify.criteria import BlockReport
from argprune.solvers.verify.summary import Mean, Summary
from argprune.solvers.verify.surrogates import KINDS

if TYPE_CHECKING:
    from argprune.tasks.criteria_command import Check

_BAR = 8
_SHORT: dict[str, str] = {"diagonal": "diag.", "quadratic": "quadr."}
_EIGHTHS = " ▏▎▍▌▋▊▉█"
# What the signed 0-1 linear program and its second-order correction are called, where they were checked.
SIGNED, MENDED = "pins", "second_order"


@dataclass(frozen=True)
class Layer:
    """A weight: its blocks, their summaries, and by criterion what the whole weight loses."""

    name: str
    shape: tuple[int, ...]
    reports: tuple[BlockReport, ...]
    criteria: Sequence[Summary]
    references: Sequence[Summary]
    matrix: Mapping[str, float]

    @property
    def label(self) -> str:
        """The layer's number, and which of its weights this is."""
        parts = self.name.removesuffix(".weight").split(".")
        number = next((part for part in parts if part.isdigit()), "")
        kind = ".".join(part for part in parts[-3:] if part not in ("dense", number))
        return f"{number}.{kind}" if number else kind


@dataclass(frozen=True)
class Results:
    """All that a check found. source: the folder or name of the model; seconds: of the whole."""

    check: Check
    source: str
    layers: tuple[Layer, ...]
    criteria: Sequence[Summary]
    references: Sequence[Summary]
    formulas: Mapping[str, str]
    seconds: float


def print_results(results: Results, console: Console) -> None:
    """Print the tables and the reading."""
    check = results.check
    blocks = sum(len(layer.reports) for layer in results.layers)
    each = f"{check.size} weights" if check.rows == 1 else f"{check.size} columns of {check.rows} rows"
    console.print()
    console.print(Text(f"{check.model} on {check.task}: which {check.kept} of {each} to keep", style="bold"))
    console.print(
        f"{blocks} blocks of {len(results.layers)} layers; criteria see {check.calibration} training texts, "
        f"the loss is of {check.examples} held-out ones; {results.seconds:.0f} s",
        style="dim",
        highlight=False,
    )
    console.print(_main_table(results))
    console.print(_layer_table(results))
    for line in reading(results):
        console.print(f"• {line}", highlight=False, markup=False)
    console.print()


def _main_table(results: Results) -> Table:
    table = Table(
        title="Regret as a share of what random masks lose: 0 is the exact optimum, 1 is random",
        caption="linear to refit: regret in each surrogate, bold in the one that the criterion declares\n"
        "TRUE LOSS = solver gap + sampling error + model error; corr.: of scores with true losses of single removals\n"
        "optimum*: of the surrogate with the gradient of the held-out texts",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("criterion", no_wrap=True)
    table.add_column("TRUE LOSS", justify="right", no_wrap=True)
    table.add_column("±", justify="left", style="dim", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("rank", justify="right", no_wrap=True)
    for kind in KINDS:
        table.add_column(_SHORT.get(kind, kind), justify="right", no_wrap=True)
    for header in ("gap", "sampling", "model"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("corr.", justify="right", no_wrap=True)
    most = max((summary.truth.mean for summary in results.criteria if summary.truth), default=1.0)
    for summary in results.criteria:
        table.add_row(*_cells(summary, most))
    table.add_section()
    for summary in results.references:
        table.add_row(*_cells(summary, most), style="dim")
    return table


def _cells(summary: Summary, most: float) -> list[Text | str]:
    truth = summary.truth
    share = truth.mean if truth else 0.0
    colour = "green" if share < 1 / 3 else "yellow" if share < 1 else "red"
    priced = [
        Text(_number(summary.surrogates[kind]), style="bold" if kind == summary.surrogate else "") for kind in KINDS
    ]
    return [
        summary.name.replace(" optimum (held-out)", " optimum*"),
        Text(_number(truth), style=f"bold {colour}"),
        f"{truth.spread:.2f}" if truth else "",
        Text(_bar(share, most), style=colour),
        f"{summary.rank.mean:.1f}" if summary.rank else "",
        *priced,
        *(_number(part) for part in (summary.solver_gap, summary.sampling_error, summary.model_error)),
        _number(summary.correlation),
    ]


def _layer_table(results: Results) -> Table:
    whole = any(layer.matrix for layer in results.layers)
    table = Table(
        title="By layer: the share in its blocks" + (" | what the whole weight loses at that density" if whole else ""),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
    )
    table.add_column("criterion", no_wrap=True)
    for layer in results.layers:
        table.add_column(layer.label, justify="right")
    if whole:
        for layer in results.layers:
            table.add_column(f"all of {layer.label}", justify="right", style="cyan")
    by_layer = [{summary.name: summary for summary in layer.criteria} for layer in results.layers]
    for summary in results.criteria:
        cells = [_spread(layer[summary.name].truth) for layer in by_layer]
        if whole:
            cells += [f"{layer.matrix[summary.name]:+.4f}" for layer in results.layers]
        table.add_row(summary.name, *cells)
    table.add_section()
    scale = [max(report.random - report.best for report in layer.reports) for layer in results.layers]
    table.add_row("1 is, in loss, up to", *(f"{value:.1e}" for value in scale), *[""] * len(scale) * whole, style="dim")
    return table


def reading(results: Results) -> list[str]:
    """What the tables say, a sentence or two a line."""
    ranked = [summary for summary in results.criteria if summary.truth is not None]
    if not ranked:
        return ["All masks lose the same: these blocks do not tell criteria apart."]
    first, last = ranked[0], ranked[-1]
    lines = [
        f"Least true regret: {first.name} ({_number(first.truth)} of random's); most: {last.name} "
        f"({_number(last.truth)})."
    ]
    errors = {one.name.partition(" ")[0]: one for one in results.references if one.name.endswith(" optimum")}
    informed = {one.name.partition(" ")[0]: one for one in results.references if one.name.endswith("(held-out)")}
    parts = [
        f"{kind} {_number(errors[kind].truth)} = {_value(errors[kind].truth) - _value(informed[kind].truth):.2f} "
        f"sampling + {_number(informed[kind].truth)} model"
        for kind in KINDS
    ]
    lines.append(f"Surrogate error, the true regret of exact optima: {'; '.join(parts)}.")
    exact = [summary.name for summary in ranked if summary.certified == summary.blocks]
    if exact:
        lines.append(f"Solver gap 0, proved in all blocks: {', '.join(exact)}.")
    better = [summary.name for summary in ranked if summary.solver_gap and round(summary.solver_gap.mean, 2) < 0]
    if better:
        lines.append(
            f"Solver gap below 0, in truth better than the exact optimum of their surrogate: {', '.join(better)}."
        )
    alike = [", ".join(names) for names in _alike(results)]
    if alike:
        lines.append(f"The same masks in all blocks: {'; '.join(alike)}.")
    named = {summary.name: summary for summary in ranked}
    if SIGNED in named:
        rank = named[SIGNED].rank
        assert rank is not None
        line = f"The signed 0-1 linear program ({SIGNED}) has mean rank {rank.mean:.1f} of {len(ranked)} in blocks"
        if MENDED in named:
            line += (
                f"; curvature ({MENDED}) takes it from {_number(named[SIGNED].truth)} to {_number(named[MENDED].truth)}"
            )
        lines.append(line + ".")
    for layer in results.layers:
        if layer.matrix:
            order = sorted(layer.matrix, key=layer.matrix.__getitem__)
            text = f"All of {layer.label}: {order[0]} loses least ({layer.matrix[order[0]]:+.4f}), {order[-1]} most "
            text += f"({layer.matrix[order[-1]]:+.4f})"
            if SIGNED in layer.matrix:
                text += f"; {SIGNED} is {1 + order.index(SIGNED)} of {len(order)}"
            if MENDED in layer.matrix:
                text += f", {MENDED} {1 + order.index(MENDED)}"
            lines.append(text + ".")
    proofs = [report.proof for layer in results.layers for report in layer.reports]
    if "screened" in proofs:
        worst = max(report.error / report.spread for layer in results.layers for report in layer.reports)
        lines.append(
            "The best is of all masks: each within 3 times a fitted polynomial's error of the best was evaluated, that "
            f"error being at most {worst:.1%} of the masks' standard deviation; --exhaustive evaluates every mask."
        )
    if "best known" in proofs:
        lines.append("Too many masks to know the best: regrets are against the best known.")
    return lines


def _alike(results: Results) -> list[list[str]]:
    """Groups of criteria that choose the same masks in every block."""
    reports = [report for layer in results.layers for report in layer.reports]
    groups: dict[tuple[tuple[int, ...], ...], list[str]] = {}
    for index, judged in enumerate(reports[0].criteria):
        groups.setdefault(tuple(report.criteria[index].kept for report in reports), []).append(judged.name)
    return [names for names in groups.values() if len(names) > 1]


def _value(mean: Mean | None) -> float:
    return mean.mean if mean is not None else 0.0


def _number(mean: Mean | None) -> str:
    # Adding 0 turns a rounded -0.00 into 0.00.
    return "" if mean is None else f"{round(mean.mean, 2) + 0.0:.2f}"


def _spread(mean: Mean | None) -> str:
    return "" if mean is None else f"{mean.mean:.2f} ± {mean.spread:.2f}"


def _bar(value: float, most: float) -> str:
    eighths = round(8 * _BAR * min(max(value / most, 0.0), 1.0)) if most > 0 else 0
    full, rest = divmod(eighths, 8)
    return "█" * full + (_EIGHTHS[rest] if rest else "")
