"""Checks of how an operator treats tensors: dtypes, shapes, layouts, devices, extremes; purity."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from argprune.solvers.verify.cases import Case, degenerate, extreme, generic, shapes
from argprune.solvers.verify.report import Check
from argprune.solvers.verify.subject import Subject, run, skipped

HALF = (torch.bfloat16, torch.float16)


def manner_checks(subject: Subject) -> Iterator[Check]:
    """Every check of this module, those that do not apply as skipped."""
    yield purity(subject)
    yield other_shapes(subject)
    yield single_precision(subject)
    yield half_precision(subject)
    yield extremes(subject)
    yield in_place(subject)
    yield device(subject)


def purity(subject: Subject) -> Check:
    """The input is unchanged; the result is new, detached, like the input, repeatable, finite and without -0."""

    def measure(case: Case) -> tuple[float, float]:
        w = case.w.clone().requires_grad_()
        before = w.detach().clone()
        p = subject.prox(w, case.step)
        alike = (p.shape, p.dtype, p.device) == (w.shape, w.dtype, w.device)
        manners = {
            "input changed": torch.equal(w.detach(), before),
            "result shares memory with the input": p.data_ptr() != w.data_ptr(),
            "result requires grad": not p.requires_grad,
            "shape, dtype or device changed": alike,
            "not finite": bool(p.isfinite().all()),
            "not repeatable": torch.equal(p, subject.prox(w, case.step)),
            "value is no 0-dim tensor": _is_scalar(subject.operator.value(w)),
            "negative zero": not bool((p.signbit() & (p == 0)).any()),
        }
        wrong = [what for what, fine in manners.items() if not fine]
        if wrong:
            raise AssertionError(", ".join(wrong))
        return 0.0, 0.0

    cases = itertools.chain(generic(subject.seed, 1), degenerate(subject.seed))
    return run("purity", cases, measure)


def _is_scalar(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0


def other_shapes(subject: Subject) -> Check:
    """Other shapes and layouts give what the same entries, laid out plainly, give; or they are refused."""

    def measure(case: Case) -> tuple[float, float]:
        p = subject.prox(case.w, case.step)
        plain = subject.prox(case.w.clone(memory_format=torch.contiguous_format), case.step)
        if p.shape != case.w.shape or not bool(p.isfinite().all()):
            return math.inf, 0.0
        subject.operator.value(case.w)
        return float((p - plain).abs().max()) if p.numel() else 0.0, 1e-12

    return run("shapes", shapes(subject.seed), measure)


def single_precision(subject: Subject) -> Check:
    """float32 gives what float64 gives, to single precision; where a branch is undecided, an equal objective."""
    return run("float32", _ordinary(subject), lambda case: _precision(subject, case, torch.float32, 1e-5))


def half_precision(subject: Subject) -> Check:
    """bfloat16 and float16 give what float32 gives on the same entries, rounded once."""

    def measure(case: Case) -> tuple[float, float]:
        return max((_precision(subject, case, dtype, 1.01 * torch.finfo(dtype).eps) for dtype in HALF), key=_relative)

    return run("half", _ordinary(subject), measure)


def _relative(measured: tuple[float, float]) -> float:
    return measured[0] / measured[1]


def _ordinary(subject: Subject) -> Iterator[Case]:
    yield from generic(subject.seed, 2)
    yield from degenerate(subject.seed)


def _precision(subject: Subject, case: Case, dtype: torch.dtype, relative: float) -> tuple[float, float]:
    # The sum of all entries is a number of the dtype's; their squares need not be.
    limit = torch.finfo(dtype).max / 64
    narrow = case.w.clamp(-limit, limit).to(dtype)
    wide = narrow.float() if dtype in HALF else narrow.double()
    p, reference = subject.prox(narrow, case.step), subject.prox(wide, case.step)
    if p.dtype != dtype or not bool(p.isfinite().all()):
        return math.inf, 1.0
    level = subject.operator.value(narrow)
    if not bool(torch.isnan(level)) and float(subject.value(wide)) < math.inf and not math.isfinite(float(level)):
        return math.inf, 1.0
    apart = float((p.double() - reference.double()).abs().max())
    tolerance = relative * (1e-30 + max(float(x.double().abs().max()) for x in (case.w, reference)))
    if apart > tolerance and not subject.indicator:
        # At a jump of the prox two answers are equally good.
        own, other = (_objective(subject, x, wide, case.step) for x in (p, reference))
        if own - other <= 4 * relative * (abs(other) + float(wide.double().square().sum()) / (2 * case.step)):
            return 0.0, tolerance
    return apart, tolerance


def _objective(subject: Subject, x: Tensor, w: Tensor, step: float) -> float:
    return subject.value(x.double()) + float((x.double() - w.double()).square().sum()) / (2 * step)


def extremes(subject: Subject) -> Check:
    """Huge, tiny and subnormal entries at huge and tiny steps: finite, no larger than the input, signs kept."""

    def measure(case: Case) -> tuple[float, float]:
        p = subject.prox(case.w, case.step)
        if not bool(p.isfinite().all()) or bool(torch.isnan(subject.operator.value(case.w)).any()):
            return math.inf, 0.0
        if subject.indicator and subject.value(p) != 0:
            return math.inf, 0.0
        # Sets that do not hold 0 may carry entries away from it.
        holds_zero = math.isfinite(subject.value(torch.zeros_like(case.w)))
        if not holds_zero:
            return 0.0, 0.0
        # Norms relative to the largest entry: the huge would overflow.
        scale = case.w.double().abs().max().clamp(min=1e-300)
        before, after = (float((x.double() / scale).norm()) for x in (case.w, p))
        return max(after - before, 0.0), 64 * torch.finfo(case.w.dtype).eps * before

    cases = itertools.chain.from_iterable(extreme(subject.seed, t) for t in (torch.float64, torch.float32, *HALF))
    return run("extremes", cases, measure)


def in_place(subject: Subject) -> Check:
    """`prox_` changes its argument to what `prox` returns, bit by bit."""
    if not subject.has("prox_"):
        return skipped("in-place", "no prox_")

    def measure(case: Case) -> tuple[float, float]:
        target = case.w.clone()
        subject.operator.prox_(target, case.step)
        return float((target - subject.prox(case.w, case.step)).abs().max()), 0.0

    return run("in-place", itertools.chain(generic(subject.seed, 1), degenerate(subject.seed)), measure)


def device(subject: Subject) -> Check:
    """The accelerator gives what the CPU gives."""
    if not torch.cuda.is_available():
        return skipped("device", "no CUDA device here")

    def measure(case: Case) -> tuple[float, float]:
        on_device = subject.prox(case.w.cuda(), case.step)
        if on_device.device.type != "cuda":
            return math.inf, 0.0
        apart = float((on_device.cpu() - subject.prox(case.w, case.step)).abs().max())
        return apart, 1e-9 * (1 + float(case.w.abs().max()))

    return run("device", generic(subject.seed, 1), measure)
