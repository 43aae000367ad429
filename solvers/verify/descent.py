"""Majorise-minimise: the factors of reweighting rules and of concave penalties bound what they say, and descend."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from argprune.solvers.groups import Groups
from argprune.solvers.prox.groupwise import WeightedGroupLasso
from argprune.solvers.prox.reweighting import Reweighted
from argprune.solvers.prox.separable import L1
from argprune.solvers.verify.cases import Case, degenerate, generic, normal
from argprune.solvers.verify.report import Check
from argprune.solvers.verify.subject import Subject, run, skipped

_ROUNDS = 8
# Rounding, relative to the objective.
_SLACK = 1e-12
_SURROGATES = ("l1", "group-lasso", "squared-l2")


def rule_checks(rule: Any, seed: int) -> Iterator[Check]:
    """The checks of a reweighting rule: anything with `surrogate`, `factors(w)` and `majorised(w)`."""
    yield _positive(rule, seed)
    yield _rule_majorisation(rule, seed)
    yield _rule_descent(rule, seed)


def descent(subject: Subject) -> Check:
    """Reweighted l1 (or group lasso) with a concave penalty's own slopes never increases ||x - a||^2 / 2 + R(x)."""
    if not _gives_slopes(subject):
        return skipped("mm-descent", "no slopes of a concave penalty")
    operator = subject.operator

    def measure(case: Case) -> tuple[float, float] | None:
        a, w, worst = case.w, case.w, 0.0
        before = float(operator.value(a))
        for turn in range(_ROUNDS):
            factors = operator.factors(w)
            if not bool(factors.isfinite().all()):
                # The infinite slope of a power at 0 would hold an entry there; the rounds so far count.
                return (worst, _SLACK) if turn else None
            w = _minimiser(factors, a, getattr(operator, "groups", None))
            after = float((w - a).square().sum() / 2 + operator.value(w))
            worst, before = max(worst, (after - before) / (1 + abs(before))), after
        return worst, _SLACK

    return run("mm-descent", generic(subject.seed), measure)


def majorisation(subject: Subject) -> Check:
    """R(x) <= R(w) + sum factors (|x| - |w|): the tangent that reweighting minimises lies above a concave penalty."""
    if not _gives_slopes(subject):
        return skipped("majorisation", "no slopes of a concave penalty")

    def measure(case: Case) -> tuple[float, float] | None:
        factors = subject.operator.factors(case.w)
        if not bool(factors.isfinite().all()):
            return None
        groups = getattr(subject.operator, "groups", None)

        def size(x: Tensor) -> Tensor:
            return x.abs() if factors.shape == x.shape else groups.split(x).norm(dim=1)  # type: ignore[union-attr]

        before, worst = subject.value(case.w), 0.0
        for x in _others(case.w, subject.seed):
            gain = (factors.reshape(-1) * (size(x) - size(case.w)).reshape(-1)).sum()
            worst = max(worst, subject.value(x) - before - float(gain))
        return worst, 1e-10 * (1 + abs(before))

    return run("majorisation", generic(subject.seed), measure)


def _gives_slopes(subject: Subject) -> bool:
    # Where `factors` is data, it is a weight of the operator's own.
    return not subject.convex and callable(getattr(subject.operator, "factors", None))


def _positive(rule: Any, seed: int) -> Check:
    def measure(case: Case) -> tuple[float, float]:
        if rule.surrogate not in _SURROGATES:
            raise RuntimeError(f"surrogate {rule.surrogate!r}; choose one of {', '.join(_SURROGATES)}.")
        factors = rule.factors(case.w)
        count = len(rule.groups.split(case.w)) if rule.surrogate == "group-lasso" else case.w.numel()
        sound = bool(((factors > 0) & factors.isfinite()).all()) and factors.numel() == count
        return float(not sound), 0.5

    note = "finite factors > 0, one an entry or a group"
    return run("factors", itertools.chain(generic(seed), degenerate(seed)), measure, note)


def _rule_majorisation(rule: Any, seed: int) -> Check:
    """P(x) <= P(w) + sum factors (s(x) - s(w))."""

    def measure(case: Case) -> tuple[float, float]:
        fixed = _fixed(rule, case.w)
        factors, before = rule.factors(case.w).reshape(-1), float(fixed.majorised(case.w))
        worst, size = 0.0, 1 + abs(before)
        for x in _others(case.w, seed):
            gain = float((factors * (_sizes(rule, x) - _sizes(rule, case.w))).sum())
            worst, size = max(worst, float(fixed.majorised(x)) - before - gain), max(size, abs(gain))
        return worst, 1e-12 * size

    return run("majorisation", itertools.chain(generic(seed), degenerate(seed)), measure, "of the penalty declared")


def _rule_descent(rule: Any, seed: int) -> Check:
    """Minimising ||x - a||^2 / 2 plus the majoriser never increases ||x - a||^2 / 2 + P(x)."""

    def measure(case: Case) -> tuple[float, float] | None:
        a, w, worst = case.w, case.w, 0.0
        for _ in range(_ROUNDS):
            fixed = _fixed(rule, w)
            factors = rule.factors(w)
            if rule.surrogate == "squared-l2":
                x = a / (1 + 2 * factors)
            else:
                x = _minimiser(factors, a, rule.groups if rule.surrogate == "group-lasso" else None)
            before, after = (float((v - a).square().sum() / 2 + fixed.majorised(v)) for v in (w, x))
            worst, w = max(worst, (after - before) / (1 + abs(before))), x
        return worst, _SLACK

    return run("mm-descent", itertools.chain(generic(seed), degenerate(seed)), measure)


def _fixed(rule: Any, w: Tensor) -> Any:
    """What declares the penalty of the round that begins at w, for rules that adapt to the weights (`at`)."""
    return rule.at(w) if hasattr(rule, "at") else rule


def _sizes(rule: Any, x: Tensor) -> Tensor:
    if rule.surrogate == "group-lasso":
        norms: Tensor = rule.groups.split(x).norm(dim=1)
        return norms
    return x.square().reshape(-1) if rule.surrogate == "squared-l2" else x.abs().reshape(-1)


def _minimiser(factors: Tensor, a: Tensor, groups: Groups | None) -> Tensor:
    """argmin of ||x - a||^2 / 2 + sum factors |x|, or of the norms of groups."""
    if factors.shape == a.shape or groups is None:
        return Reweighted(L1(1.0), factors).prox(a, 1.0)
    return WeightedGroupLasso(1.0, factors, groups).prox(a, 1.0)


def _others(w: Tensor, seed: int) -> Iterator[Tensor]:
    """Points near and far from w."""
    for scale in (1e-3, 0.3, 3.0):
        yield w + scale * normal(seed + 81, *w.shape)
        yield (1 + scale) * w
        yield w / (1 + scale)
