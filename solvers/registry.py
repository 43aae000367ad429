"""Named plug-ins: regularizers, reweighting rules, criteria, constraint sets and methods.

A plug-in joins in one of three ways: the `@register` decorator (this package), an entry point in the group
`argprune.<kind>` (another distribution), or `module:Class` given by the user. Entry points and modules are imported
only when the user names them.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar, get_args

Kind = Literal["regularizers", "reweightings", "criteria", "constraints", "methods"]
C = TypeVar("C", bound=type)

_HOMES = {
    "criteria": "argprune.solvers.criteria",
    "regularizers": "argprune.solvers.prox",
    "reweightings": "argprune.solvers.prox",
    "constraints": "argprune.solvers.prox",
    "methods": "argprune.solvers.methods",
}
_SINGULAR = {
    "regularizers": "regularizer",
    "reweightings": "reweighting",
    "criteria": "criterion",
    "constraints": "constraint",
    "methods": "method",
}


@dataclass(frozen=True)
class Entry:
    """A registered name, its class (cls), and examples: constructor arguments for the conformance suite."""

    name: str
    cls: type
    examples: tuple[Mapping[str, Any], ...]


_entries: dict[str, dict[str, Entry]] = {kind: {} for kind in get_args(Kind)}


def register(kind: Kind, name: str, *, examples: Sequence[Mapping[str, Any]] = ({},)) -> Callable[[C], C]:
    """Class decorator: make a class known as `name` among the plug-ins of a kind.

    examples: keyword arguments, one mapping an instance that the conformance suite builds.
    Raises ValueError where the name is taken.
    """

    def add(cls: C) -> C:
        if name in _entries[kind]:
            raise ValueError(
                f"register: {kind} already has {name!r} ({_entries[kind][name].cls.__qualname__}). Choose another name."
            )
        _entries[kind][name] = Entry(name, cls, tuple(examples))
        return cls

    return add


def registered(kind: Kind) -> dict[str, Entry]:
    """The entries of a kind that this process has registered, by name."""
    if kind in _HOMES:
        importlib.import_module(_HOMES[kind])
    return dict(sorted(_entries[kind].items()))


def installed(kind: Kind) -> dict[str, EntryPoint]:
    """The entry points of a kind that other distributions offer, by name; nothing is imported."""
    return {point.name: point for point in entry_points(group=f"argprune.{kind}")}


def resolve(kind: Kind, name: str) -> type:
    """The class behind a registered name, an entry point, or `module:Class`, of a kind ("regularizers", ...).

    Raises ValueError with the closest names where there is none, or where the module or class cannot be imported.
    """
    known = registered(kind)
    if name in known:
        return known[name].cls
    points = installed(kind)
    if name in points:
        loaded = points[name].load()
    elif ":" in name:
        module, _, attribute = name.rpartition(":")
        try:
            loaded = getattr(_import(module), attribute)
        except (ImportError, AttributeError, OSError, SyntaxError) as error:
            raise ValueError(
                f"Cannot load {_SINGULAR[kind]} {name!r}: {error}. Give an importable module:Class, or file.py:Class."
            ) from error
    else:
        choices = sorted({*known, *points})
        close = difflib.get_close_matches(name, choices, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"Unknown {_SINGULAR[kind]} {name!r}.{hint} Known: {', '.join(choices)}; or give module:Class."
        )
    if not isinstance(loaded, type):
        raise ValueError(f"{_SINGULAR[kind]} {name!r} is {type(loaded).__name__}, not a class. Give module:Class.")
    return loaded


def build(kind: Kind, spec: str | Mapping[str, Any]) -> Any:
    """The instance that a name, or a mapping of `name` and constructor options, stands for; `strength` defaults to 1.

    kind: "regularizers", "methods", ... spec: the name or the mapping.

    Raises ValueError in one line for an unknown name, an unknown or missing option, or a bad value.
    """
    options: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"{_SINGULAR[kind]} {spec!r}; give a name, or a mapping with `name` and options.")
    cls = resolve(kind, name)
    parameters = list(inspect.signature(cls).parameters)
    if "strength" in parameters:
        options.setdefault("strength", 1.0)
    try:
        return cls(**options)
    except TypeError as error:
        known = ", ".join(parameters) or "none"
        raise ValueError(f"{_SINGULAR[kind]} {name!r}: {error}. Its options: {known}.") from error


def _import(module: str) -> ModuleType:
    """Import a module as a script in the working directory would, or a file by its path."""
    if not module.endswith(".py"):
        here = os.getcwd()
        if here not in sys.path:
            sys.path.insert(0, here)
        return importlib.import_module(module)
    path = Path(module).resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no module in {module}")
    if path.stem not in sys.modules or getattr(sys.modules[path.stem], "__file__", None) != str(path):
        loaded = importlib.util.module_from_spec(spec)
        # Registered under its stem, so that its objects can be pickled.
        sys.modules[path.stem] = loaded
        try:
            spec.loader.exec_module(loaded)
        except BaseException:
            del sys.modules[path.stem]
            raise
    return sys.modules[path.stem]
