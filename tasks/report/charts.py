"""What the page's script draws: points, curves and bars as plain data, and how each curve looks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from argprune.tasks.report.folders import Found, Loaded
from argprune.tasks.report.statistics import quantile
from argprune.tasks.report.tables import DENSE, Row, Tables, cell_of, smaller_is_better, split_name

# Of logs: what says nothing that the others do not.
_NOT_DRAWN = ("epoch", "tokens", "seconds", "bound")
# Values of logs on one page; where there are more, some are left out between.
_LOG_VALUES = 120_000
_COLOURS, _DASHES, _MARKERS = 10, 4, 5


def curve_looks(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """By label how a curve looks: a colour a method, a dash and a marker a curve of it."""
    methods = [*sorted({row["method"] for row in rows if row["method"] != DENSE}), DENSE]
    labels = sorted({(row["method"], row["curve"]) for row in rows}, key=lambda pair: (methods.index(pair[0]), pair[1]))
    looks: dict[str, dict[str, Any]] = {}
    seen: dict[str, int] = {}
    for method, label in labels:
        position, number = methods.index(method), seen.get(method, 0)
        seen[method] = number + 1
        looks[label] = {
            "label": label,
            "method": method,
            "colour": position % _COLOURS,
            "dash": (position // _COLOURS + number) % _DASHES,
            "marker": (position + number) % _MARKERS,
        }
    return looks


def chart_data(
    found: Found, tables: Tables, cells: Sequence[tuple[str, str, str]], curves: Mapping[str, Any]
) -> dict[str, Any]:
    """What the page's script reads."""
    places = {label: index for index, label in enumerate(curves)}
    of_cell = [[row for row in tables.runs if cell_of(row) == cell] for cell in cells]
    measures = Counter((task, model) for task, model, _ in cells)
    freedom = max(1, len(tables.runs))
    names, layers = _layers(tables)
    steps, logs = _logs(found.runs)
    return {
        "cells": [
            {
                # Named only where it tells cells apart.
                "label": " · ".join((task, Path(model).name, *[metric] * (measures[task, model] > 1))),
                "metric": metric,
                "percent": is_share(rows),
                "smaller": smaller_is_better(rows[0]),
            }
            for (task, model, metric), rows in zip(cells, of_cell, strict=True)
        ],
        "curves": list(curves.values()),
        "runs": [
            _run(index, row, cells.index(cell_of(row)), places[row["curve"]]) for index, row in enumerate(tables.runs)
        ],
        "t": [round(quantile(degrees), 6) for degrees in range(1, min(freedom, 200) + 1)],
        "steps": steps,
        "logs": logs,
        "matrices": names,
        "layers": layers,
        "comparisons": [_comparison(row, cells.index(cell_of(row))) for row in tables.comparisons],
        "exports": [_export(row, tables.runs, places) for row in tables.exports],
        "formats": sorted({row["format"] for row in tables.exports}),
        "criteria": [_criteria(file, content, tables.criteria) for file, content in found.criteria],
    }


def _run(index: int, row: Row, cell: int, curve: int) -> dict[str, Any]:
    return {
        "index": index,
        "name": row["run"],
        "cell": cell,
        "curve": curve,
        "variant": row["variant"],
        "dense": row["method"] == DENSE,
        "seed": row["seed"],
        "target": row["sparsity_target"],
        "encoder": row["sparsity_encoder"],
        "score": _number(row["score"]),
        "picked": row["picked"],
    }


def _comparison(row: Row, cell: int) -> dict[str, Any]:
    return {
        "cell": cell,
        "target": row["sparsity_target"],
        "first": row["first"],
        "second": row["second"],
        "firstSteps": row["first_steps"],
        "secondSteps": row["second_steps"],
        "difference": _number(row["difference"]),
        "seeds": row["seeds"],
        "examples": row["examples"],
    } | {
        f"{kind[0]}{short}": _number(row[f"{kind}_{name}"])
        for kind in ("seeds", "examples")
        for short, name in (("low", "low"), ("high", "high"), ("p", "p"), ("pholm", "p_holm"))
    }


def _criteria(file: str, content: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "label": f"{Path(str(content.get('model'))).name} on {content.get('task')} ({Path(file).name})",
        "rows": [
            {
                "name": row["criterion"],
                "regret": _number(row["regret"]),
                "spread": _number(row["regret_spread"]),
                "solver": _number(row["solver_gap"]),
                "sampling": _number(row["sampling_error"]),
                "model": _number(row["model_error"]),
                "blocks": row["blocks"],
                "proved": row["proved_optimal"],
            }
            for row in rows
            if row["file"] == file
        ],
    }


def _export(row: Row, runs: Sequence[Row], places: Mapping[str, int]) -> dict[str, Any]:
    same = [run for run in runs if run["run"] == row["run"]]
    return {
        "name": same[0]["variant"] if same else Path(row["run"]).name or row["export"],
        "method": row["method"],
        "curve": places[same[0]["curve"]] if same else None,
        **{name: row[name] for name in ("format", "batch", "length", "threads")},
        "ms": row["milliseconds"],
        "msBefore": row["milliseconds_reference"],
        "mb": row["bytes"] / 1e6,
        "mbBefore": row["bytes_reference"] / 1e6,
    }


def is_share(rows: Sequence[Row]) -> bool:
    """Whether scores are shares, which are told in percent."""
    return not smaller_is_better(rows[0]) and all(-1 <= row["score"] <= 1 for row in rows)


def _number(value: Any, digits: int = 6) -> float | None:
    """A number short enough for the page; None for what JSON does not have."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def _logs(runs: Sequence[Loaded]) -> tuple[list[tuple[int, ...]], dict[str, dict[int, list[Any]]]]:
    """Lists of steps, and by quantity and run which of these it has and its values; thinned alike where many."""
    drawn = [
        (index, name, steps, values)
        for index, run in enumerate(runs)
        for name, (steps, values) in run.log.items()
        if name not in _NOT_DRAWN
    ]
    most = max(30, _LOG_VALUES // max(1, len(drawn)))
    order = ("loss", "sparsity", "penalty")
    drawn.sort(key=lambda each: (order.index(each[1]) if each[1] in order else len(order), each[1]))
    known: dict[tuple[int, ...], int] = {}
    logs: dict[str, dict[int, list[Any]]] = {}
    for index, name, steps, values in drawn:
        # The last one stays: it is what the run came to.
        every = math.ceil(len(steps) / most)
        kept = [at for at in range(len(steps)) if (len(steps) - 1 - at) % every == 0]
        told = [_number(values[at], 4) for at in kept]
        if any(told):
            place = known.setdefault(tuple(steps[at] for at in kept), len(known))
            logs.setdefault(name, {})[index] = [place, told]
    return list(known), logs


def _layers(tables: Tables) -> tuple[list[list[tuple[str, str]]], dict[int, dict[str, Any]]]:
    """Lists of names of matrices, and by run which of these it has, with sparsities and sizes."""
    by_run: dict[str, list[Row]] = {}
    for row in tables.layers:
        by_run.setdefault(row["run"], []).append(row)
    names: list[list[tuple[str, str]]] = []
    layers: dict[int, dict[str, Any]] = {}
    for index, run in enumerate(tables.runs):
        rows = by_run.get(run["run"], [])
        if not rows or not any(row["sparsity"] for row in rows):
            continue
        own = [split_name(row["name"]) for row in rows]
        if own not in names:
            names.append(own)
        sizes = [row["entries"] for row in rows]
        layers[index] = {
            "names": names.index(own),
            "sparsity": [_number(row["sparsity"], 4) or 0 for row in rows],
            "sizes": sizes if all(sizes) else None,
        }
    return names, layers
