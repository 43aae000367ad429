"""Options as plain data: what config.yaml and study files hold, and the objects they stand for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from argprune.solvers import registry
from argprune.solvers.methods import Dense, Method, OneShot
from argprune.tasks.data import EMBEDDED
from argprune.tasks.distillation import find_distillation
from argprune.tasks.settings import Settings, resolve_precision
from argprune.tasks.sharding import check_shardable


@dataclass(frozen=True)
class Plan:
    """A checked set of options: settings, method, and the folder of the dense reference (None: inside the run)."""

    settings: Settings
    method: Method
    method_name: str
    dense: str | None = None

    def to_options(self) -> dict[str, Any]:
        """Plain data that `plan` turns back into an equal plan."""
        settings = {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.settings).items()
        }
        method = {"name": self.method_name, **method_options(self.method)}
        return {"method": method, "sparsity": self.method.sparsity, **settings, "dense": self.dense}


def plan(options: Mapping[str, Any]) -> Plan:
    """Check options and build what they stand for. Raises ValueError in one line.

    options: the fields of `Settings`; `method`, a name or a mapping with `name` and the method's options; `sparsity`
    (needed by every method that prunes); `dense`, a folder.
    """
    rest = dict(options)
    name, own = method_mapping(rest.pop("method", None))
    sparsity, dense = rest.pop("sparsity", None), rest.pop("dense", None)
    known = {field.name for field in fields(Settings)}
    unknown = sorted(set(rest) - known)
    if unknown:
        raise ValueError(
            f"Unknown option {unknown[0]!r}. Known: {', '.join(sorted(known | {'method', 'sparsity', 'dense'}))}."
        )
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in rest.items()}
    for key in ("include", "exclude", "report_to"):
        if isinstance(values.get(key), str):
            values[key] = (values[key],)
    embedded = values.get("task", Settings.task) in EMBEDDED
    # Where the data folder lies is no part of a run that does not read it.
    values["data_dir"] = None if embedded else values.get("data_dir") or os.environ.get("ARGPRUNE_DATA")
    try:
        settings = Settings(**values)
    except TypeError as error:
        raise ValueError(f"Bad option: {error}.") from error
    settings = Settings(**{**asdict(settings), "precision": resolve_precision(settings.precision)})
    method = make_method(name, sparsity, own)
    if settings.epochs == 0 and settings.max_steps is None and not isinstance(method, Dense | OneShot):
        raise ValueError(f"epochs 0, but method {name!r} prunes while it trains; give epochs, or a one-shot method.")
    check_shardable(settings, name, method, distills=find_distillation(settings, method) is not None)
    if settings.augment is not None and isinstance(method, OneShot):
        raise ValueError(f"augment, but method {name!r} trains nothing; leave augment out.")
    if settings.biases and isinstance(method, OneShot):
        raise ValueError(f"biases true, but method {name!r} prunes matrices; leave biases out.")
    return Plan(settings, method, name, dense)


def make_method(name: str, sparsity: float | None, options: Mapping[str, Any]) -> Method:
    """Build a registered or named method. Raises ValueError in one line for an unknown name or a bad option."""
    cls = method_class(name)
    if sparsity is None:
        if cls is not Dense:
            raise ValueError(f"Method {name!r} needs sparsity: the fraction of prunable weights to remove, in [0, 1).")
        sparsity = 0.0
    if not isinstance(sparsity, int | float):
        raise ValueError(f"sparsity {sparsity!r} is not a number.")
    known = [field.name for field in _option_fields(cls)]
    for key in options:
        if key not in known:
            raise ValueError(f"Method {name!r} has no option {key!r}. It has: {', '.join(known) or 'none'}.")
    build: Any = cls
    try:
        method: Method = build(sparsity=float(sparsity), **options)
    except TypeError as error:
        raise ValueError(f"Method {name!r}: {error}.") from error
    return method


def method_class(name: str) -> type[Method]:
    """The class of a registered or named method. Raises ValueError in one line where there is none."""
    cls = registry.resolve("methods", name)
    if not issubclass(cls, Method):
        raise ValueError(f"{name!r} is no method: {cls.__name__} is not a subclass of argprune.solvers.methods.Method.")
    return cls


def method_options(method: Method) -> dict[str, Any]:
    """The options of a method but its sparsity, as plain data."""
    return {field.name: getattr(method, field.name) for field in _option_fields(type(method))}


def _option_fields(cls: type) -> list[Any]:
    return [field for field in fields(cls) if field.init and field.name != "sparsity"]


def method_mapping(method: Any) -> tuple[str, dict[str, Any]]:
    """A method's name, and its own options. Raises ValueError where `method` is neither a name nor such a mapping."""
    if isinstance(method, str):
        return method, {}
    if isinstance(method, Mapping) and isinstance(method.get("name"), str):
        return method["name"], {key: value for key, value in method.items() if key != "name"}
    if method is None:
        raise ValueError(f"No method. Give one of: {', '.join(registry.registered('methods'))}.")
    raise ValueError(f"method {method!r}; give a name, or a mapping with 'name' and the method's options.")
