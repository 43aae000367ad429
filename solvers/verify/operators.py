"""The conformance suite of prox operators: every check, run over one operator."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from argprune.solvers.prox.numerical import with_prox
from argprune.solvers.prox.reweighting import Reweighting
from argprune.solvers.registry import Kind, build, registered, resolve
from argprune.solvers.verify.descent import rule_checks
from argprune.solvers.verify.identities import identity_checks
from argprune.solvers.verify.manners import manner_checks
from argprune.solvers.verify.optimality import optimality_checks
from argprune.solvers.verify.report import Report
from argprune.solvers.verify.speed import ENTRIES, measure_speed
from argprune.solvers.verify.subject import Subject

# What is flagged as slow is timed on fewer entries.
_SLOW_ENTRIES = 1 << 12


def check_operator(operator: Any, name: str | None = None, *, seed: int = 0, speed: bool = False) -> Report:
    """Check that an operator's prox is that of its value, and that it treats tensors well.

    operator: anything with `value(w)` and `prox(w, step)` on (4, 6) tensors; optional members and declared facts as
    `argprune.solvers.prox.Regularizer` says. Inputs it refuses with ValueError or TypeError are left out. Without a
    `prox`, the numerical one that a method would use is checked. Or a reweighting rule (`prox.Reweighting`), which is
    checked to majorise the penalty that it declares.
    name: in the report, for the class's own. seed: of the inputs. speed: also time it on a million entries. Nothing
    here uses or moves torch's global random state.
    """
    began = time.perf_counter()
    if isinstance(operator, Reweighting) and not hasattr(operator, "prox"):
        rule = tuple(rule_checks(operator, seed))
        facts = {"reweighting": True}
        return Report(name or type(operator).__name__, repr(operator), facts, rule, time.perf_counter() - began)
    operator = with_prox(operator)
    slow = bool(getattr(operator, "slow", False))
    subject = Subject.of(operator, seed)
    checks = (*optimality_checks(subject), *identity_checks(subject), *manner_checks(subject))
    measured = measure_speed(operator, _SLOW_ENTRIES if slow else ENTRIES) if speed else None
    return Report(
        name=name or type(operator).__name__,
        operator=repr(operator),
        facts=subject.facts,
        checks=checks,
        seconds=time.perf_counter() - began,
        speed=measured,
        slow=slow,
    )


def examples(name: str, options: Mapping[str, Any] | None = None) -> list[Any]:
    """Instances to check of a registered name, an entry point, or `module:Class`.

    options: constructor arguments; without them a class is built with the arguments that it was registered with,
    those of its own `examples` attribute, or none. Raises ValueError where it cannot be built.
    """
    kind = _kind(name)
    entry = registered(kind).get(name)
    cls = resolve(kind, name)
    own: Sequence[Mapping[str, Any]] = entry.examples if entry else getattr(cls, "examples", ({},))
    return [build(kind, {**kwargs, "name": name}) for kwargs in ([options] if options else own)]


_KINDS: tuple[Kind, ...] = ("regularizers", "constraints", "reweightings")


def _kind(name: str) -> Kind:
    return next((kind for kind in _KINDS if name in registered(kind)), "regularizers")


def names() -> list[str]:
    """Every registered regularizer, constraint set and reweighting rule."""
    return [name for kind in _KINDS for name in registered(kind)]
