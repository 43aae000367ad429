"""An operator under test: what it declares of itself, and a driver that tries one property on many inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from argprune.solvers.verify.cases import Case, generic
from argprune.solvers.verify.report import Check

# The error found and the error allowed; None where the property says nothing about the input.
Measure = Callable[[Case], tuple[float, float] | None]
# How an operator says that an input, a shape or a step is not for it.
REFUSALS = (ValueError, TypeError, NotImplementedError)


@dataclass(frozen=True)
class Subject:
    """An operator with the facts that decide which checks apply to it, and the seed of the random inputs."""

    operator: Any
    convex: bool
    separable: bool
    indicator: bool
    spectral: bool
    seed: int = 0

    @classmethod
    def of(cls, operator: Any, seed: int = 0) -> Subject:
        """Read the facts: declared by class variables; `indicator` where undeclared from the values taken."""
        declared = {name: bool(getattr(operator, name, False)) for name in ("convex", "separable", "spectral")}
        indicator = getattr(operator, "indicator", None)
        if indicator is None:
            indicator = hasattr(operator, "constraints") or _looks_like_a_set(operator, seed)
        return cls(operator, indicator=bool(indicator), seed=seed, **declared)

    @property
    def facts(self) -> dict[str, bool]:
        """The facts by name."""
        return {name: getattr(self, name) for name in ("convex", "separable", "indicator", "spectral")}

    def has(self, member: str) -> bool:
        """Whether the operator offers an optional member."""
        return hasattr(self.operator, member)

    def value(self, w: Tensor) -> float:
        """R(w) as a number."""
        return float(self.operator.value(w))

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """The operator's prox."""
        result: Tensor = self.operator.prox(w, step)
        return result


def _looks_like_a_set(operator: Any, seed: int) -> bool:
    """Whether the value is 0 or inf on random inputs, both of them met, and the prox does not depend on the step."""
    seen = set()
    for case in generic(seed):
        p, q = operator.prox(case.w, case.step), operator.prox(case.w, 2 * case.step)
        if not torch.allclose(p, q, rtol=1e-6):
            return False
        seen |= {float(operator.value(case.w)), float(operator.value(p))}
    return seen <= {0.0, math.inf} and math.inf in seen


def skipped(name: str, why: str) -> Check:
    """The check does not apply."""
    return Check(name, "skipped", note=why)


def run(name: str, cases: Iterable[Case], measure: Measure, note: str = "") -> Check:
    """Measure every case; the check fails where an error exceeds its tolerance or is NaN, or where a case raises.

    Inputs that the operator refuses (ValueError, TypeError) are left out; where all are, the check is skipped.
    """
    worst, failing, tried, refusal = Check(name, "passed", note=note), None, 0, ""
    severity = -1.0
    for case in cases:
        try:
            measured = measure(case)
        except REFUSALS as error:
            refusal = refusal or f"{case.name}: {type(error).__name__}: {error}"
            continue
        except Exception as error:
            failing, tried = case, tried + 1
            worst = replace(
                worst, status="failed", error=math.inf, where=case.name, note=f"{type(error).__name__}: {error}"
            )
            break
        if measured is None:
            continue
        tried += 1
        found, tolerance = measured
        if math.isnan(found):
            found = math.inf
        relative = found / tolerance if tolerance else (math.inf if found else 0.0)
        if relative > severity:
            severity = relative
            where = f"{case.name}, step {case.step:g}"
            worst = replace(worst, error=found, tolerance=tolerance, where=where)
            if relative > 1:
                failing, worst = case, replace(worst, status="failed")
    worst = replace(worst, tried=tried)
    if tried == 0:
        return skipped(name, f"refused: {refusal}" if refusal else "no input that it applies to")
    if failing is not None:
        smallest = _shrunk(failing, measure)
        worst = replace(worst, failing=smallest.source)
    return worst


def _fails(case: Case, measure: Measure) -> bool:
    try:
        measured = measure(case)
    except REFUSALS:
        return False
    except Exception:
        return True
    return measured is not None and not measured[0] <= measured[1]


def _shrunk(case: Case, measure: Measure, attempts: int = 80) -> Case:
    """A smaller and rounder input that still fails: fewer rows, columns and nonzeros, fewer digits."""
    changed = True
    while changed and attempts > 0:
        changed = False
        for w in _simpler(case.w):
            attempts -= 1
            candidate = Case(case.name, w, case.step)
            if attempts >= 0 and _fails(candidate, measure):
                case, changed = candidate, True
                break
    return case


def _simpler(w: Tensor) -> Iterable[Tensor]:
    if w.dim() == 2:
        for axis, size in enumerate(w.shape):
            if size > 1:
                yield w.narrow(axis, 0, size // 2).contiguous()
                yield w.narrow(axis, size // 2, size - size // 2).contiguous()
                yield w.narrow(axis, 0, size - 1).contiguous()
    nonzero = w.flatten().nonzero().flatten().tolist()
    if len(nonzero) > 1:
        half = torch.tensor(nonzero[: len(nonzero) // 2])
        for drop in (half, *(torch.tensor([index]) for index in nonzero)):
            fewer = w.detach().clone(memory_format=torch.contiguous_format)
            fewer.view(-1)[drop] = 0
            yield fewer
    rounder = torch.tensor([float(f"{x:.2g}") for x in w.detach().double().flatten().tolist()], dtype=w.dtype)
    rounder = rounder.reshape(w.shape)
    if not torch.equal(rounder, w) and bool(rounder.isfinite().all()):
        yield rounder
