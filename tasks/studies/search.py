"""What a study tunes: the section `tune` of a study file, as data.

    tune:
      space:   {learning_rate: {low: 1e-5, high: 1e-3, log: true}}    searched for every method that prunes
      methods: {rpp: {method.eps_rw: [0.01, 0.1]}}                    searched for one method besides, or instead
      at:      {sparsity: 0.9, seed: 0}                               options of every trial, over the points' own
      trials:  12                                                     for every method alike

A dense reference is tuned only where `methods` names `dense`.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Sampler = Literal["tpe", "random", "grid"]
_RANGE_KEYS = ("low", "high", "log", "int")
_DENSE = "dense"
# A learning rate of 0.00031 rather than 0.00031415926535: no result hangs on the fourth digit.
_DIGITS = 3


@dataclass(frozen=True)
class Choice:
    """One of several values, of any kind."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("an empty list; give the values to try.")

    def examples(self) -> tuple[Any, ...]:
        """Values that must be good for all to be good: every one."""
        return self.values


@dataclass(frozen=True)
class Range:
    """A number from low to high, both included; uniform, or log-uniform. integer: whole numbers only."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} {value!r}; give a finite number.")
            if self.integer and value != int(value):
                raise ValueError(f"{name} {value!r} of whole numbers; give one.")
        if not isinstance(self.log, bool) or not isinstance(self.integer, bool):
            raise ValueError("log and int are true or false.")
        if not self.low < self.high:
            raise ValueError(f"low {self.low!r} is not below high {self.high!r}.")
        if self.log and not self.low > 0:
            raise ValueError(f"low {self.low!r} of a log-uniform range; it must be > 0.")

    def examples(self) -> tuple[Any, ...]:
        """Values that must be good for all to be good: the two ends."""
        return self.rounded(self.low), self.rounded(self.high)

    def rounded(self, value: float) -> float | int:
        """The value as a run is given it: whole, or of three digits, and never outside."""
        if self.integer:
            return int(value)
        return min(max(float(f"{value:.{_DIGITS}g}"), float(self.low)), float(self.high))


Domain = Choice | Range
Space = Mapping[str, Domain]


@dataclass(frozen=True)
class Tuning:
    """How the options of a study are chosen, by their score on validation.

    space: what is searched for every method that prunes. methods: by method, what is searched besides, or instead.
    trials: runs for each method, task, model (whatever the points differ in) alike, >= 1; None only with sampler
    grid, which tries every combination once. at: options of the trials, over those of the points: at which sparsity,
    on which seed. sampler: `tpe` learns from earlier trials, `random` and `grid` do not. seed: of the sampler.
    batch: trials that `tpe` suggests at a time, >= 1; the first batch is drawn at random. The suggestions do not
    depend on how many runs go on side by side, nor on when anything was killed.
    """

    space: Space = field(default_factory=dict)
    methods: Mapping[str, Space] = field(default_factory=dict)
    trials: int | None = None
    at: Mapping[str, Any] = field(default_factory=dict)
    sampler: Sampler = "tpe"
    seed: int = 0
    batch: int = 4

    def __post_init__(self) -> None:
        if self.sampler not in get_args(Sampler):
            raise ValueError(f"tune: sampler {self.sampler!r}; choose of {', '.join(get_args(Sampler))}.")
        for name, least in (("seed", 0), ("batch", 1), ("trials", 1)):
            value = getattr(self, name)
            if name == "trials" and value is None and self.sampler == "grid":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"tune: {name} {value!r}; give a whole number >= {least}.")
        if not self.space and not any(self.methods.values()):
            raise ValueError("tune: nothing to search. Give `space`, such as {learning_rate: [1e-4, 3e-4]}.")
        if "method" in self.at:
            raise ValueError("tune: at: every method has its own trials. Remove 'method'.")
        spaces = {"space": self.space, **{f"methods: {name}": space for name, space in self.methods.items()}}
        for where, space in spaces.items():
            for option in space:
                if option in ("method", "seed", "sparsity") or option in self.at:
                    raise ValueError(f"tune: {where}: {option!r} is not searched, but fixed. Remove it.")

    def check_budget(self, methods: Iterable[str]) -> None:
        """Raise ValueError where the methods of a study, which are searched by grid, would not have equal budgets.

        methods: their names. Every combination once is an equal budget only where there are equally many.
        """
        if self.sampler != "grid":
            return
        sizes = {}
        for name in methods:
            space = self.space_of(name)
            if continuous := [option for option, domain in space.items() if isinstance(domain, Range)]:
                raise ValueError(f"tune: sampler grid needs lists, but {continuous[0]!r} is a range. Give its values.")
            if space:
                sizes[name] = math.prod(len(domain.examples()) for domain in space.values())
        for name, size in sizes.items():
            wanted = self.trials if self.trials is not None else next(iter(sizes.values()))
            if size != wanted:
                raise ValueError(
                    f"tune: {size} combinations for {name}, but {wanted} trials for each. Give lists of equal sizes."
                )

    def space_of(self, method: str) -> Space:
        """What is searched for a method; empty: it is not tuned."""
        return {**({} if method == _DENSE else self.space), **self.methods.get(method, {})}

    def trials_of(self, space: Space) -> int:
        """How many trials a space gets."""
        if self.trials is not None:
            return self.trials
        return math.prod(len(domain.examples()) for domain in space.values())

    def batch_of(self, space: Space) -> int:
        """How many trials are suggested at a time: all, where none learns from another."""
        return self.batch if self.sampler == "tpe" else self.trials_of(space)


def combinations(space: Space) -> list[dict[str, Any]]:
    """Every combination of a space of choices, the last option changing fastest."""
    return [
        dict(zip(space, values, strict=True)) for values in itertools.product(*(d.examples() for d in space.values()))
    ]


def read_tuning(data: object) -> Tuning:
    """The section `tune` of a study file. Raises ValueError, one line that names the key."""
    values = dict(_mapping(data, "tune"))
    known = list(Tuning.__dataclass_fields__)
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            raise ValueError(
                f"tune: unknown key {key!r}. "
                + (f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}.")
            )
    methods = _mapping(values.get("methods") or {}, "tune: methods")
    values["space"] = _space(values.get("space") or {}, "tune: space")
    values["methods"] = {name: _space(space, f"tune: methods: {name}") for name, space in methods.items()}
    values["at"] = _mapping(values.get("at") or {}, "tune: at")
    return Tuning(**values)


def tuning_to_data(tuning: Tuning) -> dict[str, Any]:
    """Plain data that `read_tuning` turns back into an equal one."""
    return {
        **{name: getattr(tuning, name) for name in ("trials", "at", "sampler", "seed", "batch")},
        "space": space_to_data(tuning.space),
        "methods": {name: space_to_data(space) for name, space in tuning.methods.items()},
    }


def space_to_data(space: Space) -> dict[str, Any]:
    """A space as a study file has it."""
    return {
        option: list(domain.values)
        if isinstance(domain, Choice)
        else {"low": domain.low, "high": domain.high, "log": domain.log, "int": domain.integer}
        for option, domain in space.items()
    }


def _mapping(data: object, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: {data!r} is not a mapping.")
    return data


def _space(data: object, where: str) -> dict[str, Domain]:
    space: dict[str, Domain] = {}
    for option, given in _mapping(data, where).items():
        try:
            space[option] = _domain(given)
        except ValueError as error:
            raise ValueError(f"{where}: {option!r}: {error}") from error
    return space


def _domain(given: object) -> Domain:
    if isinstance(given, list | tuple):
        return Choice(tuple(given))
    if not isinstance(given, Mapping):
        raise ValueError(f"{given!r}; give a list of values, or {{low: ..., high: ..., log: true}}.")
    for key in given:
        if key not in _RANGE_KEYS:
            raise ValueError(f"unknown key {key!r}. A range has {', '.join(_RANGE_KEYS)}.")
    if not {"low", "high"} <= set(given):
        raise ValueError("a range needs low and high.")
    return Range(given["low"], given["high"], given.get("log", False), given.get("int", False))
