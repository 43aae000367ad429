"""Identities and inequalities that every prox satisfies, whatever its function: no solver needed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from argprune.solvers.verify.cases import SHAPE, STEPS, Case, degenerate, generic, normal
from argprune.solvers.verify.descent import descent, majorisation
from argprune.solvers.verify.measures import EPSILON, objective, rounding, values
from argprune.solvers.verify.report import Check
from argprune.solvers.verify.subject import Subject, run, skipped

# Some projections (simplex, Dykstra) end within this of the set they project on, relative to the input.
_FEASIBLE = 1e-7
_ORDINARY = 1e4


def identity_checks(subject: Subject) -> Iterator[Check]:
    """Every check of this module, those that do not apply as skipped."""
    yield monotone(subject)
    yield step_to_zero(subject)
    yield step_order(subject)
    yield envelope_gradient(subject)
    yield stationary(subject)
    yield tilt(subject)
    yield scaling(subject)
    yield signs(subject)
    yield permutations(subject)
    yield projection(subject)
    yield tensor_step(subject)
    yield majorisation(subject)
    yield descent(subject)


def monotone(subject: Subject) -> Check:
    """<p - q, w - v> >= 0 for any prox; for a convex function >= ||p - q||^2 (firmly non-expansive)."""

    def measure(case: Case) -> tuple[float, float]:
        worst = 0.0
        p = subject.prox(case.w, case.step)
        for move in (normal(subject.seed + 21, *SHAPE), 1e-3 * normal(subject.seed + 22, *SHAPE), -case.w / 2):
            other = case.w + move
            q = subject.prox(other, case.step)
            product = float(((p - q) * (case.w - other)).sum())
            bound = float((p - q).square().sum()) if subject.convex else 0.0
            worst = max(worst, bound - product)
        return worst, _tolerance(subject, case)

    cases = itertools.chain(generic(subject.seed), degenerate(subject.seed))
    return run("firmly-nonexpansive" if subject.convex else "monotone", cases, measure)


def _tolerance(subject: Subject, case: Case) -> float:
    """Rounding of inner products, plus what an iterative projection may leave."""
    size = 1 + float(case.w.square().sum())
    return size * (1e-13 if not subject.indicator else _FEASIBLE if subject.convex else 1e-13)


def step_to_zero(subject: Subject) -> Check:
    """||p - w||^2 <= 2 step (R(w) - R(p)): the prox tends to w, at a known rate, as the step goes to 0."""

    def measure(case: Case) -> tuple[float, float] | None:
        before = subject.value(case.w)
        if not math.isfinite(before):
            return None
        worst = 0.0
        for step in (case.step, 1e-2, 1e-5):
            p = subject.prox(case.w, step)
            # A projection of a member of the set is the member.
            after = 0.0 if subject.indicator else subject.value(p)
            excess = float((p - case.w).square().sum()) - 2 * step * (before - after)
            slack = (
                2 * step * 64 * EPSILON * case.w.numel() * (abs(before) + abs(after)) + _tolerance(subject, case) ** 2
            )
            worst = max(worst, excess / (slack + 1e-13 * float(case.w.square().sum()) + 1e-300))
        exact = subject.prox(case.w, 0.0)
        if not subject.indicator and not torch.equal(exact, case.w):
            return math.inf, 1.0
        return worst, 1.0

    return run("step-to-zero", itertools.chain(generic(subject.seed), degenerate(subject.seed)), measure)


def step_order(subject: Subject) -> Check:
    """R(prox(w, step)) does not increase with the step, and the distance to w does not decrease."""
    if subject.indicator:
        return skipped("step-order", "a projection does not depend on the step")

    def measure(case: Case) -> tuple[float, float]:
        # Larger entries at the smallest step ask for digits that a root in closed form (a cubic's) need not have.
        case = replace(case, w=case.w.clamp(-_ORDINARY, _ORDINARY))
        steps = sorted({*STEPS, case.step, 1e-3, 30.0})
        ps = []
        for step in steps:
            try:
                ps.append(subject.prox(case.w, step))
            except ValueError:
                break
        levels = [subject.value(p) for p in ps]
        distances = [float((p - case.w).norm()) for p in ps]
        size = max(map(abs, levels))
        rises = [(b - a) / (1e-10 * (1 + size)) for a, b in itertools.pairwise(levels)]
        falls = [(a - b) / (1e-10 * (1 + max(distances))) for a, b in itertools.pairwise(distances)]
        return max([0.0, *rises, *falls]), 1.0

    return run("step-order", itertools.chain(generic(subject.seed), degenerate(subject.seed)), measure)


def envelope_gradient(subject: Subject) -> Check:
    """The Moreau envelope's gradient, by autograd through the objective at p, is what differences of it say."""

    def measure(case: Case) -> tuple[float, float] | None:
        p = subject.prox(case.w, case.step)
        w = case.w.clone().requires_grad_()
        quadratic = (p.detach() - w).square().sum() / (2 * case.step)
        (gradient,) = torch.autograd.grad(quadratic, w)
        direction = normal(subject.seed + 31, *case.w.shape)
        direction /= direction.norm()
        small = 1e-5
        ahead, behind = (_envelope(subject, case.w + s * direction, case.step) for s in (small, -small))
        here = _envelope(subject, case.w, case.step)
        # The envelope lies below the quadratic that its gradient and curvature 1/step give: true for any prox.
        slope = float((gradient * direction).sum())
        curvature = small**2 / (2 * case.step)
        over = max(ahead - here - small * slope, behind - here + small * slope) - curvature
        # For a convex function the envelope is convex, so that it lies above its tangent.
        under = max(here + small * slope - ahead, here - small * slope - behind) if subject.convex else 0.0
        slack = 4 * rounding(case.w, case.step, max(abs(here), abs(ahead))) + 1e-4 * curvature
        # Around an inexact projection the squared distance is uncertain by its feasibility.
        if subject.indicator and subject.convex:
            slack += _FEASIBLE * float(case.w.norm()) / case.step
        return max(over, under), slack

    return run("envelope-gradient", generic(subject.seed), measure, "differences of 1e-5 bracket the slope")


def _envelope(subject: Subject, w: Tensor, step: float) -> float:
    p = subject.prox(w, step)
    if subject.indicator:
        return float((p - w).square().sum()) / (2 * step)
    return objective(subject.operator, p, w, step)


def stationary(subject: Subject) -> Check:
    """distance(p, (p - w) / step) is 0 at the prox, and for a convex function at least ||y - p|| / step elsewhere."""
    if not subject.has("distance"):
        return skipped("stationary", "no distance")

    def measure(case: Case) -> tuple[float, float]:
        p = subject.prox(case.w, case.step)
        distance = subject.operator.distance
        at_prox = float(distance(p, (p - case.w) / case.step).abs().max())
        # (p - w) / step loses as many digits as w is larger than the step.
        slack = 1e-11 * (1 + float(case.w.abs().max())) * (1 + 1 / case.step)
        worst = at_prox / slack
        if subject.convex:
            for scale in (1e-2, 1.0):
                y = p + scale * normal(subject.seed + 41, *case.w.shape)
                bound = float((y - p).norm()) / case.step
                found = float(distance(y, (y - case.w) / case.step).norm())
                worst = max(worst, (bound * (1 - 1e-9) - found) / (10 * slack))
        return worst, 1.0

    return run("stationary", itertools.chain(generic(subject.seed), degenerate(subject.seed)), measure)


def tilt(subject: Subject) -> Check:
    """Adding <c, x> to R translates the prox: prox(w - step c) beats other points on the tilted objective."""

    def measure(case: Case) -> tuple[float, float]:
        c = 0.3 * normal(subject.seed + 51, *case.w.shape)
        p = subject.prox(case.w - case.step * c, case.step)
        others = torch.stack(
            [subject.prox(case.w + d, case.step) for d in (0 * c, case.step * c, -0.5 * case.step * c)]
        )
        stack = torch.cat([p.unsqueeze(0), others])
        squares = (stack - case.w).square().flatten(1).sum(1) / (2 * case.step)
        total = (stack * c).flatten(1).sum(1) + squares
        if not subject.indicator:
            total = total + values(subject.operator, stack)
        slack = 1e-12 * (1 + float(total.abs().max()))
        if subject.indicator and subject.convex:
            slack += _FEASIBLE * (1 + float(case.w.norm())) / case.step
        return float(total[0] - total[1:].min()), slack

    return run("translation", generic(subject.seed), measure)


def scaling(subject: Subject) -> Check:
    """Where R(t x) = t^k R(x): prox(t w, t^(2-k) step) = t prox(w, step). The degree k is read off the values."""
    degree = _degree(subject)
    if degree is None:
        return skipped("scaling", "not positively homogeneous")

    def measure(case: Case) -> tuple[float, float]:
        p = subject.prox(case.w, case.step)
        worst = 0.0
        for t in (0.25, 3.0, 64.0):
            scaled = subject.prox(t * case.w, t ** (2 - degree) * case.step) / t
            worst = max(worst, float((scaled - p).abs().max()))
        loose = subject.indicator and subject.convex
        return worst, (_FEASIBLE if loose else 1e-9) * (1 + float(case.w.abs().max()))

    return run("scaling", generic(subject.seed), measure, f"R is homogeneous of degree {degree:.4g}")


def _degree(subject: Subject) -> float | None:
    if subject.indicator:
        members = [subject.prox(case.w, 1.0) for case in itertools.islice(generic(subject.seed), 0, 12, 4)]
        inside = all(subject.value(t * p) == 0 for p in members for t in (0.25, 3.0, 64.0))
        return 0.0 if inside else None
    ratios = []
    for case in itertools.islice(generic(subject.seed), 0, 12, 4):
        levels = [subject.value(t * case.w) for t in (0.25, 1.0, 3.0)]
        if not all(math.isfinite(level) and level > 0 for level in levels):
            return None
        ratios += [math.log(levels[1] / levels[0]) / math.log(4), math.log(levels[2] / levels[1]) / math.log(3)]
    spread = max(ratios) - min(ratios)
    return ratios[0] if spread < 1e-9 else None


def signs(subject: Subject) -> Check:
    """Where flipping signs leaves R unchanged, it flips those of the prox."""

    def measure(case: Case) -> tuple[float, float] | None:
        flips = normal(subject.seed + 61, *case.w.shape).sign()
        worst = None
        # Levels of a rank say too little to tell whether single entries may flip; those of rows may.
        flips = flips[:, :1].expand_as(flips) if subject.spectral else flips
        for flip in (-torch.ones_like(flips), flips):
            if not _same_value(subject, case.w, flip * case.w):
                continue
            apart = float((flip * subject.prox(case.w, case.step) - subject.prox(flip * case.w, case.step)).abs().max())
            worst = max(worst or 0.0, apart)
        return None if worst is None else (worst, _agreement(subject, case.w))

    return run("signs", generic(subject.seed), measure)


def permutations(subject: Subject) -> Check:
    """Where permuting entries, rows or columns leaves R unchanged, it permutes the prox (inputs without ties)."""

    def measure(case: Case) -> tuple[float, float] | None:
        def permuted(w: Tensor, kind: str) -> Tensor:
            if kind == "entries":
                return w.flatten()[torch.arange(w.numel()).flip(0)].reshape(w.shape)
            return w.flip(0) if kind == "rows" else w.flip(1)

        worst = None
        for kind in ("rows", "columns") if subject.spectral else ("entries", "rows", "columns"):
            if not _same_value(subject, case.w, permuted(case.w, kind)):
                continue
            p, q = subject.prox(case.w, case.step), subject.prox(permuted(case.w, kind), case.step)
            worst = max(worst or 0.0, float((permuted(p, kind) - q).abs().max()))
        return None if worst is None else (worst, _agreement(subject, case.w))

    return run("permutations", generic(subject.seed), measure)


def _same_value(subject: Subject, w: Tensor, other: Tensor) -> bool:
    """Whether R is invariant under what made `other` of w, tried on w and on points near the prox."""
    p = subject.prox(w, 1.0)
    # Where w goes, p must be able to follow.
    carried = _carried(w, other, p)
    if subject.indicator:
        return all(subject.value(s * p) == subject.value(s * carried) for s in (1.0, 0.5, 1.01))
    levels = [(subject.value(a), subject.value(b)) for a, b in ((w, other), (p, carried))]
    return all(math.isfinite(a) and abs(a - b) <= 1e-12 * (1 + abs(a)) for a, b in levels)


def _carried(w: Tensor, other: Tensor, p: Tensor) -> Tensor:
    """p under the signed permutation that takes w to other (entries of w differ in magnitude)."""
    order, target = w.flatten().abs().argsort(), other.flatten().abs().argsort()
    flip = other.flatten()[target] * w.flatten()[order]
    carried = torch.empty_like(p).flatten()
    carried[target] = p.flatten()[order] * flip.sign()
    return carried.reshape(p.shape)


def _agreement(subject: Subject, w: Tensor) -> float:
    loose = subject.indicator and subject.convex
    return (_FEASIBLE if loose else 1e-10) * (1 + float(w.abs().max()))


def projection(subject: Subject) -> Check:
    """A projection lands in the set, stays there, and does not depend on the step."""
    if not subject.indicator:
        return skipped("projection", "not a set")

    def measure(case: Case) -> tuple[float, float]:
        p = subject.prox(case.w, case.step)
        if subject.value(p) != 0:
            return math.inf, 0.0
        again = subject.prox(p, case.step)
        other_step = subject.prox(case.w, 10 * case.step)
        apart = max(float((again - p).abs().max()), float((other_step - p).abs().max()))
        return apart, _FEASIBLE * (1 + float(p.abs().max())) if subject.convex or subject.spectral else 0.0

    return run("projection", itertools.chain(generic(subject.seed), degenerate(subject.seed)), measure)


def tensor_step(subject: Subject) -> Check:
    """A constant tensor step is a scalar step; for a separable R entries keep their own."""

    def measure(case: Case) -> tuple[float, float]:
        constant = subject.prox(case.w, torch.full_like(case.w, case.step))
        worst = float((constant - subject.prox(case.w, case.step)).abs().max())
        if subject.separable:
            steps = case.step * (0.5 + normal(subject.seed + 71, *case.w.shape).abs())
            varied = subject.prox(case.w, steps)
            for index in (0, case.w.numel() // 2, case.w.numel() - 1):
                alone = subject.prox(case.w, float(steps.flatten()[index])).flatten()[index]
                worst = max(worst, float((varied.flatten()[index] - alone).abs()))
        elif not subject.indicator:
            worst = max(worst, _diagonal_gap(subject, case))
        return worst, 1e-10 * (1 + float(case.w.abs().max()))

    return run("tensor-step", generic(subject.seed), measure)


def _diagonal_gap(subject: Subject, case: Case) -> float:
    """By how much a competitor beats the prox in a diagonal metric; 0 where the operator refuses such a metric."""
    steps = case.step * (0.5 + normal(subject.seed + 72, *case.w.shape).abs())
    try:
        p = subject.prox(case.w, steps)
    except (ValueError, TypeError):
        return 0.0
    stack = [p]
    for size in (1e-5, 1e-3, 1e-1):
        moves = size * normal(subject.seed + 73, 8, *case.w.shape)
        stack += [*(p + moves), *(p + moves * (p != 0))]
    stack += [s * p for s in (0.0, 0.99, 1.01)]
    batch = torch.stack(stack)
    total = values(subject.operator, batch) + ((batch - case.w).square() / (2 * steps)).flatten(1).sum(1)
    gain = float(total[0] - total[1:].min())
    return gain if gain > 1e-11 * (1 + float(total[0].abs())) else 0.0
