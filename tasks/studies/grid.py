"""A study as data: one YAML file, and the points that it stands for.

    points = union over the mappings of `grid` of  base x product of the axes,   each with a dense reference

A point is a set of options of `argprune prune`. Its name is a function of those options alone, so that a
study can be changed, extended and started again: what was run before is recognised.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from argprune.tasks.settings import SHARED
from argprune.tasks.studies.search import Tuning, read_tuning, tuning_to_data

DENSE = "dense"
# What a study sets itself for every point; no part of a point's identity.
OWNED = ("output", "dense", "config", "resume")
_KEYS = ("output", "base", "reference", "tune", "grid")


@dataclass(frozen=True)
class Point:
    """One run: options of `argprune prune` without its output, and the point that is its dense reference.

    options: normalised (`sparsity` a float, `seed` there, `method` a mapping only where it has options).
    reference: None for method dense.
    """

    options: Mapping[str, Any]
    reference: Point | None = None

    @property
    def method(self) -> str:
        """The method's name, without its options."""
        return method_name(self.options)

    @property
    def name(self) -> str:
        """The run's folder: method, sparsity, seed, and 8 hex digits of the sha256 of all options."""
        text = json.dumps(canonical(self.options), sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        readable = f"{self.method}-s{self.options['sparsity']:g}-seed{self.options['seed']}"
        return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', readable)}-{digest}"


@dataclass(frozen=True)
class Study:
    """Points to run, below one folder.

    output: the folder, relative to the working directory. base: options of every point. reference: options
    that override base for the dense references. grid: one mapping or several; a list in it is an axis,
    anything else is fixed, `method.<option>` is an option of the method; several mappings are united. tune: how
    some options are chosen before (None: all are given); the points are then still without them. text: the YAML it
    came from. points: what it stands for, without duplicates, those that wait for no other first (set by the
    constructor).

    Raises ValueError, one line that names the key, for an empty grid or axis, keys that a study sets itself,
    values that are not plain data, and points without method or sparsity. The options' meaning is not checked
    here: see `load_study`.
    """

    output: Path
    grid: Mapping[str, Any] | Sequence[Mapping[str, Any]]
    base: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)
    tune: Tuning | None = None
    text: str = ""
    points: tuple[Point, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", tuple(self._expand()))

    def point(self, options: Mapping[str, Any], where: str = "tune") -> Point:
        """The point of some options, with the dense reference that the study gives it."""
        options = normalised(dict(options), where)
        if method_name(options) == DENSE:
            return Point(options)
        shared = {key: options[key] for key in SHARED if key in options}
        # A reference is what others learn from, and sees the texts as they are.
        base = overlay({}, _checked(self.base, "base"), "base")
        own = {key: value for key, value in base.items() if key not in ("distill", "augment")}
        dense = overlay({**own, **shared}, _checked(self.reference, "reference"), "reference")
        return Point(options, Point(normalised({**dense, "method": DENSE}, "reference")))

    def _expand(self) -> Iterator[Point]:
        """The points in the order in which they may start: those without a reference first, then the others."""
        base = overlay({}, _checked(self.base, "base"), "base")
        reference = _checked(self.reference, "reference")
        for key in reference:
            if key.partition(".")[0] in ("method", "sparsity", *SHARED):
                raise ValueError(f"reference: {key!r} is that of the points (and a reference is dense). Remove it.")
        self._check_tuned(reference, DENSE, "reference")
        free: dict[str, Point] = {}
        waiting: dict[str, Point] = {}
        for where, cell in _cells(self.grid):
            point = self.point(overlay(base, cell, where), where)
            self._check_tuned(cell, point.method, where)
            if point.reference is None:
                free.setdefault(point.name, point)
            else:
                point = Point(point.options, free.setdefault(point.reference.name, point.reference))
                waiting.setdefault(point.name, point)
        if self.tune is not None:
            _checked(self.tune.at, "tune: at")
            for method, space in {"": self.tune.space, **self.tune.methods}.items():
                where = f"tune: methods: {method}" if method else "tune: space"
                for key in _checked(dict.fromkeys(space), where):
                    if key in SHARED:
                        raise ValueError(
                            f"{where}: {key!r} is shared with the dense reference. Make it an axis of grid."
                        )
            methods = sorted({point.method for point in (*free.values(), *waiting.values())})
            for method in self.tune.methods:
                if method not in methods:
                    raise ValueError(f"tune: methods: {method!r} is not in the grid, which has {', '.join(methods)}.")
            self.tune.check_budget(methods)
        yield from free.values()
        yield from waiting.values()

    def _check_tuned(self, given: Mapping[str, Any], method: str, where: str) -> None:
        """Raise ValueError where an option is given to a method for which it is to be found."""
        space = self.tune.space_of(method) if self.tune is not None else {}
        for key in flatten(given):
            if key in space:
                raise ValueError(f"{where}: {key!r} of method {method} is tuned. Remove it here, or from tune.")

    def to_yaml(self) -> str:
        """The study file: the text that it was loaded from, comments included, or what says the same."""
        if self.text:
            return self.text
        keys = {"output": str(self.output), "base": self.base, "reference": self.reference, "grid": self.grid}
        if self.tune is not None:
            keys["tune"] = tuning_to_data(self.tune)
        return yaml.safe_dump(_plain(keys), sort_keys=False)


def load_study(path: str | Path) -> Study:
    """Read a study file (path) and check every point's options, before anything is started.

    Raises ValueError, one line with the file and the key at fault, for a file that cannot be read, is no YAML
    or no mapping, has unknown keys, or holds options that `argprune prune` would refuse.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        data = yaml.load(text, _Loader)
    except OSError as error:
        raise ValueError(f"{path}: cannot read the study: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text. Give a YAML file.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {_yaml_problem(error)}.") from error
    try:
        study = _from_mapping(data, text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    # Imported here: it brings torch and transformers, which what else is done with studies does not need.
    from argprune.tasks.prune import check_options

    for point in _to_check(study):
        try:
            check_options(canonical(point.options))
        except ValueError as error:
            raise ValueError(f"{path}: point {point.name}: {error}") from error
    return study


def _to_check(study: Study) -> Iterator[Point]:
    """The points; where options are tuned, with every value (of ranges, both ends) in one of them."""
    for point in study.points:
        space = study.tune.space_of(point.method) if study.tune is not None else {}
        if study.tune is None or not space:
            yield point
            continue
        tried = {option: domain.examples() for option, domain in space.items()}
        for position in range(max(map(len, tried.values()))):
            values = {option: examples[min(position, len(examples) - 1)] for option, examples in tried.items()}
            for at in ({}, study.tune.at):
                yield study.point(overlay(overlay(point.options, at, "tune: at"), values, "tune"))


def method_name(options: Mapping[str, Any]) -> str:
    """The method's name in options whose `method` is a name or a mapping {name: ..., option: ...}."""
    method = options["method"]
    return str(method["name"] if isinstance(method, Mapping) else method)


def flatten(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys: {"method": {"name": "rpp"}} becomes {"method.name": "rpp"}."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _from_mapping(data: object, text: str) -> Study:
    if not isinstance(data, Mapping):
        kind = "empty" if data is None else f"a {type(data).__name__}"
        raise ValueError(f"a study is a mapping of {', '.join(_KEYS)}; this file is {kind}.")
    for key in data:
        if key not in _KEYS:
            close = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(_KEYS)}."
            raise ValueError(f"unknown key {key!r}. {hint}")
    output = data.get("output")
    if not isinstance(output, str) or not output:
        raise ValueError(f"output: {output!r}; give the folder that the runs go to.")
    options = {key: {} if data.get(key) is None else data[key] for key in ("base", "reference")}
    tune = None if data.get("tune") is None else read_tuning(data["tune"])
    return Study(Path(output).expanduser(), grid=data.get("grid"), **options, tune=tune, text=text)  # type: ignore[arg-type]


def _cells(grid: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each combination of the axes of each mapping, and where in the file it stands."""
    several = isinstance(grid, Sequence) and not isinstance(grid, str)
    mappings: Sequence[Any] = grid if several else [grid]  # type: ignore[assignment]
    if not mappings or grid is None:
        raise ValueError("grid: empty. Give at least one axis, such as `sparsity: [0.5, 0.9]`.")
    for position, mapping in enumerate(mappings):
        where = f"grid[{position}]" if several else "grid"
        axes = []
        for key, value in _checked(mapping, where).items():
            values = value if isinstance(value, list | tuple) else [value]
            if not values:
                raise ValueError(f"{where}: {key!r} is an axis without values. Give one, or remove it.")
            axes.append([(key, entry) for entry in values])
        if not axes:
            raise ValueError(f"{where}: empty. Give at least one axis, such as `sparsity: [0.5, 0.9]`.")
        for cell in itertools.product(*axes):
            yield where, dict(cell)


def _checked(options: object, where: str) -> dict[str, Any]:
    """Options that are a mapping of names to plain data and leave alone what the study sets."""
    if not isinstance(options, Mapping):
        raise ValueError(f"{where}: {options!r} is not a mapping of options.")
    for key, value in options.items():
        if not isinstance(key, str):
            raise ValueError(f"{where}: the key {key!r} is not a name. Quote it.")
        if key in OWNED:
            raise ValueError(f"{where}: {key!r} is set by the study for every point. Remove it.")
        head, dot, option = key.partition(".")
        if dot and (head != "method" or option in ("", "name")):
            raise ValueError(f"{where}: {key!r}: dots are for `method.<option>` only; a method is `method: NAME`.")
        _check_plain(value, f"{where}: {key!r}")
    return {key: _plain(value) for key, value in options.items()}


def _check_plain(value: object, where: str) -> None:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where}: the key {key!r} is not a name. Quote it.")
            _check_plain(entry, where)
    elif isinstance(value, list | tuple):
        for entry in value:
            _check_plain(entry, where)
    elif not (value is None or isinstance(value, str | int | float)):
        raise ValueError(f"{where}: {value!r} is a {type(value).__name__}, not text or a number. Quote it.")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: {value} is not a finite number.")


def overlay(options: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options with changes: whole values first, then `method.<option>` into the method that is there then."""
    merged = {**options, **{key: value for key, value in changes.items() if "." not in key}}
    for key, value in changes.items():
        _, dot, option = key.partition(".")
        if not dot:
            continue
        if merged.get("method") is None:
            raise ValueError(f"{where}: {key!r} without a method. Add `method`, here or in base.")
        method = merged["method"]
        merged["method"] = {**(method if isinstance(method, Mapping) else {"name": method}), option: value}
    return merged


def normalised(options: dict[str, Any], where: str) -> dict[str, Any]:
    """Options in the form in which equal points are equal; `where` stands in the errors."""
    method = options.get("method")
    name = method.get("name") if isinstance(method, Mapping) else method
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: method {method!r}; give a name, or a mapping with `name` and options.")
    # Without options a mapping says no more than the name.
    options["method"] = dict(method) if isinstance(method, Mapping) and len(method) > 1 else name
    if name == DENSE:
        # Prunes nothing, whatever the axis of sparsity says to the methods beside it.
        options["sparsity"] = 0.0
    sparsity, seed = options.get("sparsity"), options.setdefault("seed", 0)
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float):
        raise ValueError(f"{where}: sparsity {sparsity!r} of method {name}; give a number, here or in base.")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"{where}: seed {seed!r} of method {name}; give an integer.")
    options["sparsity"] = float(sparsity)
    return options


def canonical(value: Any) -> Any:
    """The same data for 1 and 1.0, which YAML tells apart: whole numbers as int, of which any float can be made."""
    if isinstance(value, Mapping):
        return {key: canonical(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plain(value: Any) -> Any:
    """Mappings and sequences as dict and list, which is what the YAML dumper knows."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _yaml_problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).splitlines()[0]


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number (YAML 1.1 wants 1.0e-4) and a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = (key_node.tag, str(key_node.value))
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
