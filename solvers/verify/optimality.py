"""Checks that a prox is the minimiser of its own objective, each against a solver that shares no code with it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from importlib.util import find_spec

import torch
from torch import Tensor

from argprune.solvers.verify.cases import SHAPE, Case, degenerate, generic, normal
from argprune.solvers.verify.measures import EPSILON, batchable, objective, objectives, rounding, values
from argprune.solvers.verify.oracles import Profile, best_support, conjugate_supremum, convex_problem, scalar_search
from argprune.solvers.verify.report import Check
from argprune.solvers.verify.subject import Subject, run, skipped

# Interior-point gaps are about 1e-8 of the objective; SCS is asked for 1e-9 and seldom gives all of it.
CONVEX_TOLERANCE = 1e-6
SEARCH_TOLERANCE = 1e-6
# Larger problems than these have more supports than one second enumerates.
_ENUMERABLE = 16
# Of the objective, in one search for all entries of an input.
_EVALUATIONS = 200_000


def optimality_checks(subject: Subject) -> Iterator[Check]:
    """Every check of this module, those that do not apply as skipped."""
    yield local_search(subject)
    yield convex_solvers(subject)
    yield duality(subject)
    yield scalar_global(subject)
    yield group_global(subject)
    yield spectral_global(subject)
    yield supports(subject)


def _cases(subject: Subject) -> Iterator[Case]:
    yield from generic(subject.seed)
    yield from degenerate(subject.seed)
    yield from kinks(subject)


def kinks(subject: Subject) -> Iterator[Case]:
    """Inputs just below and just above where the prox changes its pattern of zeros, along a ray."""
    w = normal(subject.seed + 7, *SHAPE)
    for step in (0.5, 1.0):
        low, high = 1e-3, 1e3
        pattern = [_pattern(subject, w, step, scale) for scale in (low, high)]
        if pattern[0] is None or pattern[1] is None or pattern[0] == pattern[1]:
            continue
        for _ in range(60):
            middle = math.sqrt(low * high)
            if _pattern(subject, w, step, middle) == pattern[0]:
                low = middle
            else:
                high = middle
        for side in (0.999, 1 - 1e-9, 1 + 1e-9, 1.001, 1.1):
            yield Case(f"kink x {side:.10g}", low * side * w, step)


def _pattern(subject: Subject, w: Tensor, step: float, scale: float) -> tuple[bool, ...] | None:
    try:
        return tuple((subject.prox(scale * w, step) == 0).flatten().tolist())
    except ValueError:
        return None


def local_search(subject: Subject) -> Check:
    """No point near the prox, between it and w, or with entries, rows or columns reset, has a lower objective."""

    def measure(case: Case) -> tuple[float, float]:
        p = subject.prox(case.w, case.step)
        own = objective(subject.operator, p, case.w, case.step)
        best = float(objectives(subject.operator, _competitors(p, case.w, subject.seed), case.w, case.step).min())
        return own - best if math.isfinite(own) else math.inf, rounding(case.w, case.step, min(abs(own), 1e300))

    note = "competitors: single entries, rows and columns reset; random moves of 1e-6 to 1"
    return run("local-search", _cases(subject), measure, note)


def _competitors(p: Tensor, w: Tensor, seed: int) -> Tensor:
    p, w = p.double(), w.double()
    scale = float(w.abs().max()) or 1.0
    stack = [w, torch.zeros_like(w), (p + w) / 2, -p, p / 2, 2 * p, 0.999 * p, 1.001 * p]
    for size in (1e-6, 1e-4, 1e-2, 1.0):
        moves = normal(seed + 11, 4, *p.shape) * size * scale
        stack += [*(p + moves), *(p + moves * (p != 0)), *(p - moves * (p != 0))]
    for index in range(p.numel()):
        for value in (0.0, float(w.flatten()[index]), (1 + 1e-6) * float(p.flatten()[index])):
            stack.append(_with(p, index, value))
    if p.dim() == 2:
        for axis in (0, 1):
            for index in range(p.shape[axis]):
                for source in (torch.zeros_like(p), w):
                    stack.append(p.index_copy(axis, torch.tensor([index]), source.narrow(axis, index, 1)))
    return torch.stack(stack)


def _with(p: Tensor, index: int, value: float) -> Tensor:
    other = p.clone(memory_format=torch.contiguous_format)
    other.view(-1)[index] = value
    return other


def _solver_cases(subject: Subject) -> Iterator[Case]:
    w = normal(subject.seed + 3, *SHAPE)
    with_zeros = w * (normal(subject.seed + 4, *SHAPE) > 0)
    yield Case("random", w, 0.5)
    yield Case("random", 2 * w, 1.0)
    yield Case("with zeros", with_zeros, 0.7)


def convex_solvers(subject: Subject) -> Check:
    """Value and minimiser agree with two convex solvers' of the function's own expression."""
    name = "convex-solvers"
    if not subject.convex or not (subject.has("expression") or subject.has("constraints")):
        return skipped(name, "not convex" if not subject.convex else "no expression")
    if find_spec("cvxpy") is None:
        return skipped(name, "cvxpy is not installed: pip install 'argprune[exact]'")
    used: dict[str, float] = {}

    def measure(case: Case) -> tuple[float, float]:
        p = subject.prox(case.w, case.step)
        solved = convex_problem(subject.operator, case.w, case.step)
        if not solved:
            raise RuntimeError("no convex solver found a solution of the expression")
        worst = 0.0
        squares = float((p - case.w).square().sum()) / (2 * case.step)
        # The sets' own feasibility is another check; here only the distance counts.
        own = squares if subject.indicator else objective(subject.operator, p, case.w, case.step)
        for solution in solved:
            used[solution.solver] = max(used.get(solution.solver, 0.0), abs(own - solution.objective))
            # A gap g of a problem that is 1/step strongly convex puts the minimiser within sqrt(2 step g).
            gap = CONVEX_TOLERANCE * (1 + abs(solution.objective))
            apart = float((p - solution.x).norm()) / math.sqrt(2 * case.step * gap)
            worst = max(worst, abs(own - solution.objective) / gap, apart)
        if not subject.indicator:
            import cvxpy

            x = cvxpy.Variable(case.w.shape)
            x.value = case.w.numpy()
            own_value = subject.value(case.w)
            worst = max(
                worst, abs(float(subject.operator.expression(x).value) - own_value) / (1e-6 * (1 + abs(own_value)))
            )
        return worst, 1.0

    check = run(name, _solver_cases(subject), measure, "error: in units of 1e-6 of the objective")
    agreement = ", ".join(f"{solver} within {gap:.1e}" for solver, gap in used.items())
    return check if check.status == "failed" and not agreement else _noted(check, agreement)


def _noted(check: Check, note: str) -> Check:
    from dataclasses import replace

    return replace(check, note=f"{check.note}; {note}" if check.note and note else check.note or note)


def duality(subject: Subject) -> Check:
    """Fenchel-Young holds with equality at p for g = (w - p) / step, so that Moreau's decomposition does."""
    name = "duality"
    if not subject.convex or not (subject.has("expression") or subject.has("constraints")):
        return skipped(name, "not convex" if not subject.convex else "no expression")
    if find_spec("cvxpy") is None:
        return skipped(name, "cvxpy is not installed: pip install 'argprune[exact]'")

    def measure(case: Case) -> tuple[float, float]:
        p = subject.prox(case.w, case.step)
        gradient = (case.w - p) / case.step
        inner = float((gradient * p).sum())
        own = 0.0 if subject.indicator else subject.value(p)
        supremum = conjugate_supremum(subject.operator, p, gradient, radius=1.0)
        return abs(supremum - (inner - own)), 1e-5 * (1 + abs(inner) + abs(own))

    note = "sup over a box around p of <g, x> - R(x), by Clarabel, against its value at p"
    return run(name, itertools.islice(_solver_cases(subject), 2), measure, note)


def scalar_global(subject: Subject) -> Check:
    """Entry by entry no point at all is better: branch and bound with interval bounds."""
    name = "scalar-global"
    if not subject.separable or subject.indicator:
        return skipped(name, "not separable" if not subject.separable else "a set")

    def measure(case: Case) -> tuple[float, float] | None:
        p = subject.prox(case.w, case.step).double()
        w = case.w.double()

        def profile(index: Tensor, x: Tensor) -> Tensor:
            stack = p.flatten().repeat(len(x), 1)
            stack[torch.arange(len(x)), index] = x
            base = values(subject.operator, p.unsqueeze(0))
            return values(subject.operator, stack.reshape(-1, *p.shape)) - base

        return _searched(profile, p.flatten(), w.flatten(), case.step, limit)

    cases: Iterator[Case] = itertools.chain(
        generic(subject.seed, 1), itertools.islice(degenerate(subject.seed), 8, 12), kinks(subject)
    )
    limit = _EVALUATIONS
    if not batchable(subject.operator, normal(0, *SHAPE)):
        # One evaluation at a time: fewer entries, fewer of them.
        cases = iter([Case(case.name, case.w.flatten()[None, :3], case.step) for case in cases])
        limit = _EVALUATIONS // 20
    return run(name, cases, measure, "r nondecreasing in the magnitude (tested) bounds every interval from below")


def _searched(
    profile: Profile, p: Tensor, w: Tensor, step: float, limit: int = _EVALUATIONS
) -> tuple[float, float] | None:
    """Improvement over the candidate, in units of what is allowed; None where the profile is not monotone."""
    pairs = torch.arange(len(w))
    scale = torch.maximum(w.abs(), p.abs()).clamp(min=1e-300)
    grid = torch.linspace(0, 1, 33, dtype=torch.float64)
    for sign in (1, -1):
        points = sign * scale[:, None] * grid
        sampled = profile(pairs.repeat_interleave(33), points.flatten()).reshape(-1, 33)
        # Infinite values, outside a box, compare as they should.
        slack = 64 * EPSILON * (1 + sampled[sampled.isfinite()].abs().max() if bool(sampled.isfinite().any()) else 1)
        if not bool((sampled[:, 1:] >= sampled[:, :-1] - slack).all()) and not bool(sampled.isinf().all(1).any()):
            return None
    zero = torch.zeros_like(w)
    start = profile(pairs, p) + (p - w).square() / (2 * step)
    level = w.square() / (2 * step)
    tolerance = SEARCH_TOLERANCE * (start - profile(pairs, zero)).abs() + 1e-13 * level + 1e-300
    found = scalar_search(profile, zero, w, step, p, tolerance, limit)
    if not found.resolved and not bool((found.improvement > tolerance).any()):
        return None
    return float((found.improvement / tolerance).max().clamp(min=0)), 1.0


def group_global(subject: Subject) -> Check:
    """Group by group: the value depends on norms alone, the prox is radial, and its norm is globally optimal."""
    name = "group-global"
    groups = getattr(subject.operator, "groups", None)
    if groups is None or subject.convex or subject.indicator:
        return skipped(name, "no groups" if groups is None else "other checks apply")

    def measure(case: Case) -> tuple[float, float] | None:
        w = case.w.double()
        stack = groups.split(w)
        rotated = groups.join(_rotated(stack, subject.seed), w.shape)
        if abs(subject.value(w) - subject.value(rotated)) > 1e-9 * (1 + abs(subject.value(w))):
            return None
        prox = groups.split(subject.prox(w, case.step))
        norms, prox_norms = stack.norm(dim=1), prox.norm(dim=1)
        units = stack / norms.clamp(min=1e-300)[:, None]
        off_ray = float((prox - prox_norms[:, None] * units).abs().max()) / (1e-9 * (1 + float(norms.max())))

        def profile(index: Tensor, x: Tensor) -> Tensor:
            filled = prox.repeat(len(x), 1, 1)
            filled[torch.arange(len(x)), index] = x[:, None] * units[index]
            joined = torch.stack([groups.join(f, w.shape) for f in filled])
            return values(subject.operator, joined) - values(subject.operator, groups.join(prox, w.shape).unsqueeze(0))

        searched = _searched(profile, prox_norms, norms, case.step)
        return None if searched is None else (max(searched[0], off_ray), 1.0)

    cases = itertools.chain(generic(subject.seed, 1), itertools.islice(degenerate(subject.seed), 8, 12), kinks(subject))
    return run(name, cases, measure, "reduced to one dimension a group by rotation invariance (tested)")


def _rotated(stack: Tensor, seed: int) -> Tensor:
    rotation, _ = torch.linalg.qr(normal(seed + 5, stack.shape[1], stack.shape[1]))
    rotated: Tensor = stack @ rotation
    return rotated


def spectral_global(subject: Subject) -> Check:
    """For functions of singular values: the prox keeps the singular vectors, and no singular value can do better."""
    name = "spectral-global"
    if not subject.spectral or subject.convex:
        return skipped(name, "not spectral" if not subject.spectral else "the convex solvers judge it")

    def measure(case: Case) -> tuple[float, float] | None:
        w = case.w.double()
        left, singular, right = torch.linalg.svd(w, full_matrices=False)
        p = subject.prox(w, case.step)
        core = left.t() @ p @ right.t()
        diagonal = core.diagonal()
        scale = 1 + float(singular.max())
        off_diagonal = float((left @ torch.diag(diagonal) @ right - p).abs().max()) / (1e-9 * scale)
        own = objective(subject.operator, p, w, case.step)
        # Candidates in the space of singular values: every entry over a range, and every subset of them zeroed.
        candidates = [diagonal * torch.tensor(mask) for mask in itertools.product((0.0, 1.0), repeat=len(diagonal))]
        candidates += [singular * torch.tensor(mask) for mask in itertools.product((0.0, 1.0), repeat=len(diagonal))]
        for index in range(len(diagonal)):
            for value in torch.linspace(0, 1.2 * float(singular[0]), 200, dtype=torch.float64).tolist():
                candidates.append(_with(diagonal, index, value))
        stack = torch.stack([left @ torch.diag(c) @ right for c in candidates])
        if subject.indicator:
            # Rounding makes exact ranks of products unreliable; feasibility is what `values` says with a tolerance.
            feasible = values(subject.operator, stack) == 0
            squares = (stack - w).square().flatten(1).sum(1) / (2 * case.step)
            own = float((p - w).square().sum()) / (2 * case.step)
            best = float(torch.where(feasible, squares, torch.inf).min())
        else:
            best = float(objectives(subject.operator, stack, w, case.step).min())
        improvement = (own - best) / (1e-9 * (1 + abs(own)))
        return max(off_diagonal, improvement, 0.0), 1.0

    cases = (Case("random", normal(subject.seed + i, *SHAPE) * 2, step) for i, step in enumerate((0.3, 0.7, 1.5)))
    return run(name, cases, measure, "in the space of singular values: all subsets, and lines through the prox")


def supports(subject: Subject) -> Check:
    """For sets of sparse tensors: of all supports of a small tensor, none that is feasible keeps more."""
    name = "supports"
    if not subject.indicator or subject.convex or subject.spectral:
        return skipped(name, "no set of supports")

    def measure(case: Case) -> tuple[float, float] | None:
        p = subject.prox(case.w, 1.0)
        if not torch.equal(p, torch.where(p != 0, case.w, 0)):
            return math.inf, 0.0
        if subject.value(p) != 0:
            return math.inf, 0.0
        best, _ = best_support(subject.operator, case.w)
        kept, possible = (float(x.double().square().sum()) for x in (p, best))
        return possible - kept, 64 * EPSILON * possible

    def small() -> Iterator[Case]:
        # The first few shapes that the operator takes: what divides by N and M differs from set to set.
        taken = 0
        for shape in ((2, 3), (2, 4), (4, 2), (2, 6), (3, 4), (4, 3), (4, 4), (12,)):
            if math.prod(shape) > _ENUMERABLE or taken == 3 or (taken and math.prod(shape) > 12):
                continue
            w = normal(subject.seed, *shape)
            try:
                subject.prox(w, 1.0)
            except ValueError:
                continue
            taken += 1
            yield Case(f"random {shape}", w, 1.0)
            yield Case(f"ties {shape}", w.sign(), 1.0)
            yield Case(f"integers {shape}", (2 * w).round(), 1.0)

    return run(name, small(), measure, "all 2^n supports enumerated")
