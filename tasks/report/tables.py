"""Tidy tables of what was found: a row a run, a log value, a layer, a comparison, an export, a criterion."""

from __future__ import annotations

import inspect
import json
import math
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from argprune.solvers import registry
from argprune.tasks.report.folders import UNREADABLE, Found, Loaded, Problem, Proof, one_line, read_scores, read_sizes
from argprune.tasks.report.statistics import Test, bootstrap_tests, holm, seeds_test
from argprune.tasks.runs import CONFIG, METRICS
from argprune.tasks.settings import Settings
from argprune.tasks.studies.grid import flatten

Row = dict[str, Any]

# Options that do not tell methods apart: axes of the charts, and what changes no result.
_NOT_OF_A_VARIANT = (
    *("method.name", "task", "model", "seed", "sparsity", "dense", "output", "data_dir"),
    *("log_every", "checkpoint_every", "keep_checkpoints", "report_to"),
)
# Numbers that are part of what is asked, like all words and switches; other numbers are tuned.
_ASKED = (
    *("epochs", "max_steps", "batch_size", "max_length", "test rows"),
    *("method.height", "method.width", "method.size"),
)
# Metrics of which less is better, in runs that do not say so themselves; of all others more is.
_SMALLER = ("perplexity", "loss", "bits_per_character", "bits_per_byte")
DENSE = "dense"


@dataclass(frozen=True)
class Tables:
    """The rows of every table by its name, and the notes on how they came about.

    Of a run, `curve` is the method with what its runs differ in of what is asked (words, switches, budgets), `variant`
    the curve with the numbers that they differ in (learning rates, strengths), and `picked` whether the variant stands
    for its curve at its sparsity: of those with most seeds it is the best on validation.
    """

    runs: list[Row]
    logs: list[Row]
    layers: list[Row]
    comparisons: list[Row]
    exports: list[Row]
    criteria: list[Row]
    problems: list[Row]

    def named(self) -> dict[str, list[Row]]:
        """By the name of the file that a table goes to; empty ones too."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def smaller_is_better(row: Row) -> bool:
    """Whether less of a run's metric is better."""
    return not row["larger_is_better"]


def drop_unreadable(found: Found) -> None:
    """Move what no row can be made of, whoever wrote it, to the problems."""
    kept: list[Loaded] = []
    for run in found.runs:
        try:
            _run_row(run, Proof("", "")), list(_layer_rows(run)), _of_a_variant(run)
            kept.append(run)
        except UNREADABLE as error:
            found.problems.append(Problem(str(run.path), f"broken: {METRICS}: {one_line(error)}"))
    checks: list[tuple[str, Mapping[str, Any]]] = []
    for file, content in found.criteria:
        try:
            list(_criteria_rows(file, content))
            checks.append((file, content))
        except UNREADABLE as error:
            found.problems.append(Problem(file, f"broken: {one_line(error)}"))
    found.runs, found.criteria = kept, checks


def make_tables(found: Found, proofs: Mapping[str, Proof]) -> Tables:
    """All tables of a report, of what `drop_unreadable` has left. proofs: of runs by name."""
    rows = [_run_row(run, proofs[run.name]) for run in found.runs]
    labels = _label(found.runs)
    for row in rows:
        row["curve"], row["variant"] = labels[row["run"]]
    _pick(rows)
    return Tables(
        runs=rows,
        logs=[
            {"run": run.name, "step": step, "quantity": quantity, "value": value}
            for run in found.runs
            for quantity, (steps, values) in run.log.items()
            for step, value in zip(steps, values, strict=True)
        ],
        layers=[row for run in found.runs for row in _layer_rows(run)],
        comparisons=compare(rows, {run.name: run.path for run in found.runs}),
        exports=[row for place, facts in found.exports for row in _export_rows(place, facts, rows)],
        criteria=[row for file, content in found.criteria for row in _criteria_rows(file, content)],
        problems=[_problem_row(problem) for problem in found.problems],
    )


def command(run: Loaded) -> str:
    """The command that repeats a run."""
    return f"argprune prune --config {shlex.quote(str(run.path / CONFIG))} --output {shlex.quote(f'{run.path}-again')}"


def compare(rows: Sequence[Row], paths: Mapping[str, Path]) -> list[Row]:
    """Every pair of curves of a cell (see `cell_of`) at every sparsity, by what stands for each, paired by seeds.

    Runs that were tested on other examples are no pair. The difference is first minus second, of the metric on test.
    p-values with `_holm` are adjusted for all pairs of that cell and sparsity. `examples_*` need runs that kept how
    each test example was done; their difference is the mean over seeds.
    """
    cells: dict[tuple[str, str, str, float], dict[str, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row["picked"] and row["method"] != DENSE:
            cells[*cell_of(row), row["sparsity_target"]][row["curve"]][row["seed"]] = row
    return [row for cell, curves in sorted(cells.items()) for row in _compare_cell(cell, curves, paths)]


def cell_of(row: Row) -> tuple[str, str, str]:
    """What runs have in common that may stand side by side: task, model and metric."""
    return row["task"], row["model"], row["metric"]


def _compare_cell(
    cell: tuple[str, str, str, float], curves: Mapping[str, Mapping[int, Row]], paths: Mapping[str, Path]
) -> list[Row]:
    block: list[Row] = []
    by_example: list[tuple[Row, Any, str]] = []
    scores = {run["run"]: read_scores(paths[run["run"]]) for runs in curves.values() for run in runs.values()}
    for first, second in combinations(sorted(curves), 2):
        seeds = sorted(set(curves[first]) & set(curves[second]))
        pairs = [(curves[first][seed], curves[second][seed]) for seed in seeds]
        pairs = [pair for pair in pairs if _tested_alike(*pair, *(scores[run["run"]] for run in pair))]
        if not pairs:
            continue
        test = seeds_test([one["score"] - other["score"] for one, other in pairs])
        row: Row = {
            **dict(zip(("task", "model", "metric", "sparsity_target"), cell, strict=True)),
            "first": first,
            "second": second,
            "first_variant": pairs[0][0]["variant"],
            "second_variant": pairs[0][1]["variant"],
            "first_steps": pairs[0][0]["steps"],
            "second_steps": pairs[0][1]["steps"],
            "difference": test.interval.mean,
            "seeds": len(pairs),
            **_tested("seeds", test),
            "examples": None,
            **_tested("examples", None),
        }
        block.append(row)
        known = [(scores[one["run"]], scores[other["run"]]) for one, other in pairs]
        digests = {side and side[1] for pair in known for side in pair}
        # All of the same examples, or nothing is paired.
        if len(digests) == 1 and None not in digests:
            difference = np.mean([np.subtract(one[0], other[0], dtype=np.float64) for one, other in known], 0)  # type: ignore[index]
            by_example.append((row, difference, str(digests.pop())))
    for digest in {digest for _, _, digest in by_example}:
        same = [(row, difference) for row, difference, other in by_example if other == digest]
        tests = bootstrap_tests(np.stack([difference for _, difference in same], 1))
        for (row, difference), test in zip(same, tests, strict=True):
            row |= {"examples": len(difference), **_tested("examples", test)}
    for kind in ("seeds", "examples"):
        tested = [row for row in block if row[f"{kind}_p"] is not None]
        for row, value in zip(tested, holm([row[f"{kind}_p"] for row in tested]), strict=True):
            row[f"{kind}_p_holm"] = value
    return block


def _tested_alike(first: Row, second: Row, own: Any, other: Any) -> bool:
    """Whether two runs were tested on the same examples, as far as is known; own, other: `read_scores` of them."""
    counts = {first["test_rows"], second["test_rows"]} - {None}
    digests = {scores[1] for scores in (own, other) if scores}
    return len(counts) <= 1 and len(digests) <= 1


def _tested(kind: str, test: Test | None) -> Row:
    low, high = (test.interval.low, test.interval.high) if test else (None, None)
    return {
        f"{kind}_low": low,
        f"{kind}_high": high,
        f"{kind}_p": test.p_value if test else None,
        f"{kind}_p_holm": None,
    }


def _run_row(run: Loaded, proof: Proof) -> Row:
    metrics, metric = run.metrics, run.metrics["metric"]
    splits = {split: scores or {} for split, scores in metrics["pruned"].items()}
    row: Row = {
        "run": run.name,
        "path": str(run.path),
        "task": metrics["task"],
        "model": metrics["model"],
        "method": metrics["method"],
        "curve": "",
        "variant": "",
        "picked": False,
        "seed": metrics["seed"],
        "sparsity_target": float(metrics["sparsity"]["target"]),
        "sparsity_encoder": metrics["sparsity"]["encoder"],
        "sparsity_model": metrics["sparsity"]["model"],
        "metric": metric,
        "larger_is_better": bool(metrics.get("larger_is_better", metric not in _SMALLER)),
        "score": float(splits["test"][metric]),
        "validation_score": _real((splits.get("validation") or {}).get(metric)),
        "dense_score": _real(((metrics.get("dense") or {}).get("test") or {}).get(metric)),
        "steps": _real(metrics.get("steps")),
        "seconds_train": _real((metrics.get("seconds") or {}).get("train")),
        "test_rows": _real((metrics.get("rows") or {}).get("test")),
        "certificate": proof.state,
        "certificate_text": proof.text,
        "command": command(run),
    }
    row |= {f"compression_{where}": value for where, value in (metrics.get("compression") or {}).items()}
    row |= {f"{split}_{name}": value for split, scores in splits.items() for name, value in flatten(scores).items()}
    row |= {f"option.{name}": _cell(value) for name, value in flatten(run.config).items()}
    report = flatten(metrics.get("method_report") or {})
    return row | {f"report.{name}": value for name, value in report.items() if not isinstance(value, list)}


def _real(value: Any) -> Any:
    """A number, or None."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _label(runs: Sequence[Loaded]) -> dict[str, tuple[str, str]]:
    """By run, its curve and its variant."""
    alike: dict[tuple[str, ...], list[Loaded]] = defaultdict(list)
    for run in runs:
        alike[tuple(run.metrics[key] for key in ("task", "model", "method"))].append(run)
    labels: dict[str, tuple[str, str]] = {}
    for (_, _, method), same in alike.items():
        defaults = _defaults(method)
        flat = {run.name: _with_defaults(_of_a_variant(run), defaults) for run in same}
        keys = sorted({key for options in flat.values() for key in options})
        varying = [key for key in keys if len({repr(options.get(key)) for options in flat.values()}) > 1]
        asked = [key for key in varying if key in _ASKED or not all(_is_number(o.get(key)) for o in flat.values())]
        tuned = [key for key in varying if key not in asked]
        for name, options in flat.items():
            # What is as usual goes without saying.
            words = [key for key in asked if key in options and options[key] != defaults.get(key)]
            curve = _told(method, options, words)
            labels[name] = curve, _told(curve, options, [key for key in tuned if options.get(key) is not None])
    return labels


def _told(name: str, options: Mapping[str, Any], keys: Sequence[str]) -> str:
    told = [f"{key.removeprefix('method.')} {_short(options[key])}" for key in keys]
    return f"{name}, {', '.join(told)}" if told else name


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _of_a_variant(run: Loaded) -> dict[str, Any]:
    options = {key: value for key, value in flatten(run.config).items() if key not in _NOT_OF_A_VARIANT}
    # Runs on other test examples are not comparable, whatever their options say.
    tests = (run.metrics.get("rows") or {}).get("test")
    options = options if tests is None else options | {"test rows": tests}
    # `criterion: {name: pins}` is `criterion: pins`.
    return {key.removesuffix(".name"): value for key, value in options.items()}


def _with_defaults(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Options, and of a run older than some option what it had instead."""
    return {key: value for key, value in defaults.items() if value is not None} | {
        key: value for key, value in options.items() if value is not None or defaults.get(key) is not None
    }


def _defaults(method: str) -> dict[str, Any]:
    known = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}
    try:
        cls: Any = registry.resolve("methods", method)
    except (ValueError, ImportError):
        # A plug-in of somewhere else: its runs can be read all the same.
        cls = None
    if cls is not None and is_dataclass(cls):
        known |= {f"method.{f.name}": f.default for f in fields(cls) if f.init and f.default is not MISSING}
    elif cls is not None:
        signature = inspect.signature(cls).parameters.items()
        known |= {f"method.{key}": p.default for key, p in signature if p.default is not p.empty}
    return {key: value for key, value in known.items() if key not in _NOT_OF_A_VARIANT}


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _pick(rows: Sequence[Row]) -> None:
    """Mark the runs of the variant that stands for its curve, at each task, model and sparsity."""
    cells: dict[tuple[Any, ...], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        key = *cell_of(row), row["curve"], row["sparsity_target"]
        cells[key][row["variant"]].append(row)
    for variants in cells.values():
        sign = -1 if smaller_is_better(next(iter(variants.values()))[0]) else 1

        def order(variant: str, variants: Any = variants, sign: int = sign) -> tuple[float, float, str]:
            told = [row["validation_score"] for row in variants[variant]]
            score = sign * fmean(told) if all(isinstance(value, int | float) for value in told) else float("-inf")
            return -len({row["seed"] for row in variants[variant]}), -score, variant

        for row in variants[min(variants, key=order)]:
            row["picked"] = True


def _layer_rows(run: Loaded) -> Iterable[Row]:
    sizes = read_sizes(run.path)
    details = run.metrics.get("layers")
    errors = (
        {layer.get("name"): layer for layer in details if isinstance(layer, dict)} if isinstance(details, list) else {}
    )
    for position, (name, zeros) in enumerate((run.metrics.get("matrices") or {}).items()):
        layer, kind = split_name(name)
        found = errors.get(name, {})
        yield {
            "run": run.name,
            "position": position,
            "name": name,
            "layer": layer,
            "kind": kind,
            "entries": sizes.get(name),
            "sparsity": float(zeros),
            "error": found.get("error"),
            "held_out_error": found.get("held_out"),
        }


def split_name(name: str) -> tuple[str, str]:
    """A weight's layer, "" for none, and which matrix of it this is.

    >>> split_name("bert.encoder.layer.3.output.dense.weight")
    ('3', 'output.dense')
    """
    found = re.search(r"^(.*?)\.(\d+)\.(.*)$", name)
    if not found:
        return "", name.removesuffix(".weight")
    # Encoder and decoder both have a layer 0.
    side = re.search(r"(encoder|decoder)(?=\.)", found[1])
    both = f"{side[1]} {found[2]}" if side and side[1] == "decoder" else found[2]
    return both, found[3].removesuffix(".weight")


def _export_rows(place: str, facts: Mapping[str, Any], rows: Sequence[Row]) -> Iterable[Row]:
    run = str(facts.get("run", ""))
    same = [row for row in rows if Path(row["path"]).resolve() == Path(run).resolve()]
    of = same[0] if same else {}
    about = {
        "export": place,
        "run": of.get("run", run),
        "task": of.get("task"),
        "method": of.get("method"),
        "sparsity_target": of.get("sparsity_target"),
        "score": of.get("score"),
        "metric": of.get("metric"),
        "format": str(facts.get("format")),
        "reference": str(facts.get("reference", "masked")),
        "threads": facts.get("threads"),
        "bytes_reference": int(facts["bytes"]["masked"]),
        "bytes": int(facts["bytes"]["exported"]),
    }
    for timed in facts["latency"]:
        times = {"milliseconds_reference": float(timed["masked"]), "milliseconds": float(timed["exported"])}
        yield {**about, "batch": timed.get("batch"), "length": timed.get("length"), **times}


def _criteria_rows(file: str, content: Mapping[str, Any]) -> Iterable[Row]:
    for each in content["criteria"]:
        row: Row = {
            "file": file,
            "task": str(content.get("task")),
            "model": str(content.get("model")),
            "criterion": str(each["name"]),
            "surrogate": str(each.get("surrogate")),
            "blocks": each.get("blocks"),
            "proved_optimal": each.get("certified"),
        }
        for name in ("truth", "solver_gap", "sampling_error", "model_error", "rank", "correlation"):
            mean = each.get(name) or {}
            row["regret" if name == "truth" else name] = _real(mean.get("mean"))
            if name == "truth":
                row["regret_spread"] = _real(mean.get("spread"))
        yield row


def _problem_row(problem: Problem) -> Row:
    return {"place": problem.place, "reason": problem.reason}
