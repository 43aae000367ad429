"""The intersection of two convex sets, projected onto by Dykstra's algorithm from the projections onto each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from argprune.solvers.prox.balls import Box, L1Ball, L2Ball, scaled_norm
from argprune.solvers.prox.base import Regularizer, check_parameter
from argprune.solvers.prox.sets import check_count, indicator, scalar_step
from argprune.solvers.registry import register


@register(
    "constraints",
    "intersection",
    examples=[{"first": L1Ball(2.0), "second": Box(-0.5, 0.5)}, {"first": L2Ball(1.5), "second": Box(low=0.0)}],
)
@dataclass(frozen=True)
class Intersection:
    """Tensors in two convex sets at once.

    first, second: sets of this package, or any with `prox`, `convex = True` and `indicator = True` or `constraints`;
    a set that is not convex, as those of sparse tensors, is refused (ValueError). 0 < tol < 1; num_steps >= 1.
    The projection is Dykstra's algorithm in float64, for every step, one step for all entries. It ends when the last
    three projections agree to tol times their norm. The result lies in `second`, within tol of `first`; it is within
    about tol of the exact projection where convergence is linear, as for polyhedra in general, within sqrt(tol) at
    worst. Feasible, for `value`, is what is within 2 tol plus 4 eps of w's dtype, relative to ||w||, of both sets.
    Raises ValueError where num_steps do not reach tol: the sets may not intersect, or meet at too acute an angle, or w
    is too far away; and where w is so far away that float64 cannot hold the answer to tol.
    Reference: Boyle and Dykstra (1986); for when to stop, Birgin and Raydan (2005), "Robust stopping criteria for
    Dykstra's algorithm", equation 13.
    """

    first: Regularizer
    second: Regularizer
    tol: float = 1e-12
    num_steps: int = 10_000
    convex: ClassVar[bool] = True
    separable: ClassVar[bool] = False
    indicator: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for member in (self.first, self.second):
            name = type(member).__name__
            if not (getattr(member, "indicator", False) or hasattr(member, "constraints")):
                raise ValueError(f"Intersection: {name} is not a set. Give two convex sets, such as L1Ball and Box.")
            if not getattr(member, "convex", False):
                raise ValueError(f"Intersection: {name} is not convex, and Dykstra's algorithm needs convex sets.")
        check_parameter("Intersection", "tol", self.tol, strict=True)
        if self.tol >= 1:
            raise ValueError(f"Intersection: tol {self.tol}; it is relative, so give a number below 1.")
        check_count("Intersection", "num_steps", self.num_steps, "the number of steps", least=1)

    def value(self, w: Tensor) -> Tensor:
        """0 if w is in both sets, to the tolerance, else inf."""
        wide = w.detach().double()
        scale, norm = scaled_norm(wide)
        allowed = (2 * self.tol + 4 * torch.finfo(w.dtype).eps) * float(norm)
        inside = [_norm((wide - member.prox(wide, 1.0)) / scale) <= allowed for member in (self.first, self.second)]
        # An infinite norm would allow anything.
        return indicator(wide.isfinite().all() & all(inside), w)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Projection."""
        scalar_step("Intersection", step)
        w = w.detach()
        return self._project(w.double().contiguous()).to(w.dtype, copy=True).add_(0.0)

    def constraints(self, x: Any) -> list[Any]:
        """The same set of a CVXPY variable."""
        members: tuple[Any, Any] = (self.first, self.second)
        return [constraint for member in members for constraint in member.constraints(x)]

    def _project(self, w: Tensor) -> Tensor:
        # A projection onto one set that is in the other is the projection onto both, without rounding.
        for one, other in ((self.first, self.second), (self.second, self.first)):
            candidate = one.prox(w, 1.0)
            if torch.equal(other.prox(candidate, 1.0), candidate):
                return candidate
        start = _norm(w)
        z, p, q = w, torch.zeros_like(w), torch.zeros_like(w)
        gap, size, extent = math.inf, 0.0, 0.0
        for index in range(self.num_steps):
            toward = z + p
            y = self.first.prox(toward, 1.0)
            p = toward - y
            moved = _norm(y - z) if index else math.inf
            toward = y + q
            z = self.second.prox(toward, 1.0)
            q = toward - z
            gap, size = math.hypot(moved, _norm(y - z)), max(_norm(y), _norm(z))
            # The changes of p and q are these differences: both are feasible and no increment moves any more.
            if gap <= self.tol * size:
                return z
            extent = max(extent, size)
            # z + p + q = w holds up to rounding, on which the answer rests.
            if not 4 * torch.finfo(torch.float64).eps * start <= self.tol * extent:
                raise ValueError(
                    f"Intersection: weights of norm {start:.3g} are too far from sets where projections have norms of "
                    f"{extent:.3g} for tol {self.tol:g}. Scale the weights down or raise tol."
                )
        raise ValueError(
            f"Intersection: {self.num_steps} steps end {gap:.3g} apart, tol allows {self.tol * size:.3g}. "
            f"Do {self.first} and {self.second} intersect? If so, raise num_steps or tol."
        )


def _norm(w: Tensor) -> float:
    return float(torch.linalg.vector_norm(w))
