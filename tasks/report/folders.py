"""What a report is made of, found on disk: runs, exports, and files of `argprune verify criteria`.

Whatever cannot be read becomes a `Problem`, one line for the page; nothing here stops a report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from argprune.models.export import EXPORT
from argprune.tasks.certificate import check_certificate
from argprune.tasks.runs import CERTIFICATE, CONFIG, LOG, MASKS, METRICS, SCORES, RunDirectory
from argprune.tasks.studies.grid import load_study
from argprune.tasks.studies.records import StudyRun
from argprune.tasks.studies.tuning import resolved_points

# What reading files that somebody else wrote, or half wrote, raises.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, yaml.YAMLError)
_NEEDED = ("task", "method", "model", "seed", "metric", "pruned", "sparsity", "config")
_YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Problem:
    """A place that the report says nothing more of, and why, in one line."""

    place: str
    reason: str


@dataclass(frozen=True)
class Loaded:
    """A finished run: its folder, and what its files say.

    name: unique in a report. log: quantity -> (steps, values), numbers only. notes: what of it could not be read.
    """

    name: str
    path: Path
    metrics: Mapping[str, Any]
    log: Mapping[str, tuple[list[int], list[float]]]
    notes: tuple[str, ...] = ()

    @property
    def config(self) -> Mapping[str, Any]:
        """Every option of the run."""
        config: Mapping[str, Any] = self.metrics["config"]
        return config


@dataclass
class Found:
    """All that a report's arguments lead to."""

    runs: list[Loaded] = field(default_factory=list)
    exports: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    criteria: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class Proof:
    """What became of checking a certificate: "verified", "fails", "missing" or "unreadable", and a sentence."""

    state: str
    text: str
    kind: str = ""


def find(arguments: Iterable[Path]) -> Found:
    """What the arguments of `argprune report` lead to; runs in order of their places, each once.

    An argument is a run directory, an export, a folder of either, a study's YAML file, or a file of `argprune verify
    criteria --json`. Raises ValueError for one that is none of these.
    """
    found, seen = Found(), set[Path]()
    folders: list[Path] = []
    for argument in arguments:
        if argument.is_dir():
            folders += _within(argument, found)
        elif argument.suffix in _YAML and argument.is_file():
            study = load_study(argument)
            folders += [study.output / point.name for point in resolved_points(study)]
            if undecided := len(study.points) - len(resolved_points(study)):
                found.problems.append(Problem(str(argument), f"{undecided} points wait for tuning"))
        elif argument.suffix == ".json" and argument.is_file():
            _read_file(argument, found)
        elif argument.exists():
            raise ValueError(f"{argument} is no run: give folders of runs, a study's YAML, or JSON of verify criteria.")
        else:
            raise ValueError(f"{argument}: no such file or folder; give folders of runs.")
    names: set[str] = set()
    for folder in folders:
        _read_folder(folder, found, names, seen)
    return found


def read_scores(run: Path) -> tuple[Any, str] | None:
    """How each test example was done, (rows,) float, and a digest of these examples; None where that was not kept."""
    try:
        with safe_open(run / SCORES, "np") as file:
            return file.get_tensor("test"), file.metadata()["rows"]
    except UNREADABLE:
        return None


def read_sizes(run: Path) -> dict[str, int]:
    """Entries of each masked weight, from the header of the file of masks; empty where there is none."""
    try:
        with safe_open(run / MASKS, "np") as file:
            return {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except UNREADABLE:
        return {}


def prove(run: Path) -> Proof:
    """Check a run's certificate against its files, as they are now."""
    try:
        stored = json.loads((run / CERTIFICATE).read_text(encoding="utf-8"))
        kind = str(stored["kind"])
        holds = check_certificate(run)
    except FileNotFoundError as error:
        missing = Path(str(error.filename or CERTIFICATE)).name
        if missing == CERTIFICATE:
            return Proof("missing", f"no {CERTIFICATE}")
        return Proof("unreadable", f"{missing} is missing, nothing can be checked")
    except UNREADABLE as error:
        return Proof("unreadable", f"cannot be checked: {one_line(error)}")
    if holds:
        what = f"{stored['kept']:,} of {stored['total']:,}"
        return Proof("verified", f"{what} {'numbers' if kind == 'size' else 'weights'} kept, as asked", kind)
    if not stored["holds"]:
        off = f"{stored['kept']:,} kept, {stored['wanted']:,.0f} asked for, {stored['tolerance']:,.0f} off allowed"
        return Proof("fails", f"says itself that it does not hold: {off}, {stored.get('revived', 0):,} came back", kind)
    return Proof("fails", "the files are not those that it was made of", kind)


def one_line(error: BaseException) -> str:
    """An error's message without line breaks, at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = f"no {text}" if isinstance(error, KeyError) else text
    return text if len(text) <= 200 else text[:199] + "…"


def _within(folder: Path, found: Found) -> list[Path]:
    """The folder itself where it is a run or an export, else those in it."""
    if _is_run(folder) or (folder / EXPORT).is_file():
        return [folder]
    inside = [child for child in sorted(folder.iterdir()) if child.is_dir()]
    folders = [child for child in inside if _is_run(child) or (child / EXPORT).is_file()]
    # Of a study: points that were planned and never started have options and no folder.
    for file in sorted(folder.glob("*.yaml")):
        if file.name != "study.yaml" and not (folder / file.stem).is_dir():
            found.problems.append(Problem(str(file.with_suffix("")), "not started: it has options and no folder"))
    return folders


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (CONFIG, METRICS, "error.json"))


def _read_folder(folder: Path, found: Found, names: set[str], seen: set[Path]) -> None:
    if folder.resolve() in seen:
        return
    seen.add(folder.resolve())
    if (folder / EXPORT).is_file():
        _read_file(folder / EXPORT, found)
        return
    run = RunDirectory(folder)
    if not run.finished:
        found.problems.append(Problem(str(folder), _unfinished(folder)))
        return
    try:
        loaded = _load(folder, _unique(folder, names))
    except UNREADABLE as error:
        found.problems.append(Problem(str(folder), f"broken: {METRICS}: {one_line(error)}"))
        return
    names.add(loaded.name)
    found.runs.append(loaded)
    found.problems += [Problem(str(folder), note) for note in loaded.notes]
    if (folder / "dense" / METRICS).is_file():
        # The reference that a run trained for itself.
        _read_folder(folder / "dense", found, names, seen)


def _unfinished(folder: Path) -> str:
    point = StudyRun(folder.parent, folder.name)
    if not folder.is_dir():
        return "not started"
    if point.state() == "failed":
        try:
            return f"failed: {one_line(ValueError(point.error()['error']))}"
        except UNREADABLE:
            return "failed, and its error.json cannot be read"
    return f"not finished (no {METRICS}); go on with --resume"


def _unique(folder: Path, names: set[str]) -> str:
    """The folder's name, with as much of its path before it as tells it from the others."""
    parts = folder.parts[-1:] if folder.name else (str(folder.resolve().name),)
    if parts == ("dense",):
        parts = folder.parts[-2:]
    while "/".join(parts) in names and len(parts) < len(folder.parts):
        parts = folder.parts[-len(parts) - 1 :]
    name = "/".join(parts)
    while name in names:
        name += "'"
    return name


def _load(folder: Path, name: str) -> Loaded:
    metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    if not isinstance(metrics, dict):
        raise ValueError("not a JSON object")
    missing = [key for key in _NEEDED if key not in metrics]
    if missing:
        raise ValueError(f"no {missing[0]!r}")
    # Numbers that the page is made of; a file of other things fails here and not later.
    score = metrics["pruned"]["test"][metrics["metric"]]
    numbers = [score, metrics["sparsity"]["encoder"], metrics["sparsity"]["model"], metrics["sparsity"]["target"]]
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        raise ValueError(f"{metrics['metric']} and sparsity must be finite numbers")
    for key in ("task", "method", "model", "metric"):
        metrics[key] = str(metrics[key])
    metrics["seed"] = int(metrics["seed"])
    dict(metrics["config"]), dict(metrics.get("matrices") or {})
    log, notes = _read_log(folder / LOG)
    return Loaded(name, folder, metrics, log, notes)


def _read_log(path: Path) -> tuple[dict[str, tuple[list[int], list[float]]], tuple[str, ...]]:
    """Numbers of a log by quantity; lines that are no JSON are left out and said to be."""
    log: dict[str, tuple[list[int], list[float]]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}, (f"no {LOG}: its training is not drawn",)
    except (OSError, UnicodeDecodeError) as error:
        return {}, (f"{LOG} cannot be read: {one_line(error)}",)
    bad = 0
    for line in lines:
        try:
            values = json.loads(line)
            step = int(values["step"])
        except (ValueError, TypeError, KeyError):
            bad += 1
            continue
        for name, value in values.items():
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                steps, numbers = log.setdefault(str(name), ([], []))
                steps.append(step)
                numbers.append(float(value))
    return log, (f"{bad} of {len(lines)} lines of {LOG} are broken and left out",) if bad else ()


def _read_file(path: Path, found: Found) -> None:
    """A file of `argprune verify criteria`, or of `argprune export`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        if "latency" in content:
            for side in ("masked", "exported"):
                float(content["bytes"][side]), [float(row[side]) for row in content["latency"]]
            found.exports.append((str(path.parent), content))
        elif "criteria" in content and "layers" in content:
            for each in content["criteria"]:
                str(each["name"]), each["truth"] and float(each["truth"]["mean"])
            found.criteria.append((str(path), content))
        else:
            raise ValueError("neither of argprune verify criteria nor of argprune export")
    except UNREADABLE as error:
        found.problems.append(Problem(str(path), f"broken: {one_line(error)}"))
