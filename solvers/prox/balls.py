"""Convex sets with closed-form projections: l1 ball, l2 ball, simplex, box.

Thresholds and norms are computed in float64 whatever the dtype, and relative to the largest entry, so that neither
huge weights nor tiny sets lose digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from argprune.solvers.prox.base import Formula, check_parameter, fresh, load_cvxpy, pieces, widened
from argprune.solvers.prox.radial import norms
from argprune.solvers.prox.sets import indicator, power_of_two, scalar_step
from argprune.solvers.registry import register
from argprune.solvers.sampling import stride_of

# Entries that say about where a threshold lies, of at least as many times as many.
_SAMPLE = 1 << 10


@register("constraints", "l1_ball", examples=[{"radius": 2.0}, {"radius": 0.1}, {"radius": 0.0}])
@dataclass(frozen=True)
class L1Ball:
    """The l1 ball: sum_i |w_i| <= radius.

    w: float tensor of any shape, taken as one vector; radius >= 0. Convex; the projection is a soft threshold, for
    every step, one step for all entries. Feasible to 8 eps of w's dtype, relative to the radius.
    Reference: Duchi et al. (2008), "Efficient projections onto the l1-ball for learning in high dimensions", figure 1.
    """

    radius: float
    convex: ClassVar[bool] = True
    separable: ClassVar[bool] = False
    indicator: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_parameter("L1Ball", "radius", self.radius)

    def value(self, w: Tensor) -> Tensor:
        """0 if ||w||_1 <= radius, to the tolerance, else inf."""
        return indicator(w.detach().abs().sum(dtype=torch.float64) <= self.radius + slack(w, self.radius), w)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Projection."""
        scalar_step("L1Ball", step)
        w = w.detach()
        magnitudes = widened(w).abs()
        if bool(magnitudes.sum(dtype=torch.float64) <= self.radius):
            return fresh(w).copy_(w).add_(0.0)
        return onto_simplex(magnitudes, self.radius).copysign_(w).to(w.dtype).add_(0.0)

    def constraints(self, x: Any) -> list[Any]:
        """The same set of a CVXPY variable."""
        cvxpy = load_cvxpy()
        return [cvxpy.norm1(cvxpy.vec(x, order="C")) <= self.radius]


@register("constraints", "simplex", examples=[{}, {"total": 3.0}])
@dataclass(frozen=True)
class Simplex:
    """The simplex: w_i >= 0, sum_i w_i = total.

    w: float tensor of any shape, taken as one vector, of at least one entry (ValueError); total > 0. Convex; the
    projection is (w_i - theta)+, for every step, one step for all entries. The sum is met to 8 eps of w's dtype,
    relative to the total.
    Reference: Duchi et al. (2008), "Efficient projections onto the l1-ball for learning in high dimensions", figure 1.
    """

    total: float = 1.0
    convex: ClassVar[bool] = True
    separable: ClassVar[bool] = False
    indicator: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_parameter("Simplex", "total", self.total, strict=True)

    def value(self, w: Tensor) -> Tensor:
        """0 if w >= 0 and the sum is the total, to the tolerance, else inf."""
        w = w.detach()
        off = (w.sum(dtype=torch.float64) - self.total).abs()
        return indicator((w >= 0).all() & (off <= slack(w, self.total)), w)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Projection."""
        scalar_step("Simplex", step)
        if w.numel() == 0:
            raise ValueError(f"Simplex: a tensor of shape {tuple(w.shape)} cannot sum to {self.total:g}. Give entries.")
        return onto_simplex(widened(w.detach()), self.total).to(w.dtype)

    def constraints(self, x: Any) -> list[Any]:
        """The same set of a CVXPY variable."""
        return [x >= 0, load_cvxpy().sum(x) == self.total]


@register("constraints", "l2_ball", examples=[{"radius": 1.5}, {"radius": 0.0}])
@dataclass(frozen=True)
class L2Ball:
    """The l2 ball: ||w||_2 <= radius, the Frobenius norm of a matrix.

    w: float tensor of any shape, taken as one vector; radius >= 0. Convex; the projection is radius w / ||w|| outside,
    for every step, one step for all entries. Feasible to 8 eps of w's dtype, relative to the radius.
    """

    radius: float
    convex: ClassVar[bool] = True
    separable: ClassVar[bool] = False
    indicator: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_parameter("L2Ball", "radius", self.radius)

    def value(self, w: Tensor) -> Tensor:
        """0 if ||w||_2 <= radius, to the tolerance, else inf."""
        scale, norm = scaled_norm(w.detach())
        return indicator(norm * scale <= self.radius + slack(w, self.radius), w)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Projection."""
        scalar_step("L2Ball", step)
        w = w.detach()
        if w.dtype == torch.float32:
            # Squares of float32 are within what float64 holds, and where the quotient is normal it keeps its digits.
            length = float(torch.linalg.vector_norm(w, dtype=torch.float64))
            factor = self.radius / length if length > self.radius else 1.0
            if factor > torch.finfo(torch.float32).tiny:
                return torch.mul(w, factor, out=fresh(w)).add_(0.0)
        scale, norm = scaled_norm(w)
        unit = w.double() / scale / torch.where(norm > 0, norm, 1)
        return torch.where(norm <= self.radius / scale, w, (unit * self.radius).to(w.dtype)).add_(0.0)

    def formula(self) -> Formula:
        """The projection as one expression; every radius has the same."""
        return Formula(_onto_l2_ball, (torch.tensor(self.radius, dtype=torch.float64),), entrywise=False)

    def constraints(self, x: Any) -> list[Any]:
        """The same set of a CVXPY variable."""
        cvxpy = load_cvxpy()
        return [cvxpy.norm(cvxpy.vec(x, order="C"), 2) <= self.radius]


@register("constraints", "box", examples=[{"low": -0.5, "high": 0.5}, {"low": 0.0}, {"low": 0.2, "high": 0.2}])
@dataclass(frozen=True)
class Box:
    """The box: low <= w_i <= high.

    w: float tensor of any shape; low <= high, -inf and inf for no bound. Convex and separable; the projection clamps,
    exactly, for every step, a float or a tensor. The bounds are rounded to w's dtype.
    """

    low: float = -math.inf
    high: float = math.inf
    convex: ClassVar[bool] = True
    separable: ClassVar[bool] = True
    indicator: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.low <= self.high and self.low < math.inf and self.high > -math.inf):
            raise ValueError(f"Box: low {self.low}, high {self.high}; give low <= high, with a number between them.")

    def value(self, w: Tensor) -> Tensor:
        """0 if every entry is within the bounds, else inf."""
        w = w.detach()
        low, high = self._bounds(w)
        return indicator(((w >= low) & (w <= high)).all(), w)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Projection: clamp."""
        return self._clamped_into(fresh(w), w.detach())

    def prox_(self, w: Tensor, step: float | Tensor, part: slice | None = None) -> Tensor:
        """Projection, in place; which entries w holds (`part`) changes nothing."""
        return self._clamped_into(w, w)

    def _clamped_into(self, out: Tensor, w: Tensor) -> Tensor:
        low, high = self._bounds(w)
        for piece, _, target in pieces(w, 1.0, out):
            # Adding 0 turns -0 into +0.
            torch.clamp(piece, low, high, out=target).add_(0.0)
        return out

    def formula(self) -> Formula:
        """The projection as one expression."""
        return Formula(_Clamp(self.low, self.high))

    def constraints(self, x: Any) -> list[Any]:
        """The same set of a CVXPY variable."""
        lower = [x >= self.low] if self.low > -math.inf else []
        return lower + ([x <= self.high] if self.high < math.inf else [])

    def _bounds(self, w: Tensor) -> tuple[Tensor, Tensor]:
        return w.new_tensor(self.low), w.new_tensor(self.high)


@dataclass(frozen=True)
class _Clamp:
    low: float
    high: float

    def __call__(self, w: Tensor, tau: Tensor) -> Tensor:
        return w.clamp(self.low, self.high) + 0.0


def _onto_l2_ball(w: Tensor, tau: Tensor, radius: Tensor) -> Tensor:
    norm = norms(w.reshape(1, -1)).squeeze()
    return (w.double() * torch.where(norm > radius, radius / norm, 1)).to(w.dtype) + 0.0


def onto_simplex(w: Tensor, total: float) -> Tensor:
    """Projection of a tensor of any shape onto {x >= 0, sum_i x_i = total}; total >= 0. Computed in float64.

    The threshold is the fixed point of Michelot's iteration, which raises it to the mean excess of the entries above
    it: from below, in a finite number of passes over ever fewer entries, where sorting would take them all.
    Reference: Michelot (1986), "A finite algorithm for finding the projection of a point onto the canonical simplex".
    """
    if total == 0 or w.numel() == 0:
        return torch.zeros_like(w)
    # Flat, so that sums are taken in the same order whatever the strides.
    flat = w.reshape(-1)
    largest = flat.max().double()
    threshold = _simplex_threshold(flat, largest, total)
    out = fresh(flat)
    for piece, _, target in pieces(flat, 1.0, out):
        target.copy_((piece.double() - largest).div_(total).sub_(threshold).clamp_(min=0).mul_(total))
    return out.reshape(w.shape)


def _simplex_threshold(flat: Tensor, largest: Tensor, total: float) -> Tensor:
    """The t with sum_i ((w_i - largest) / total - t)+ = 1, float64 0-dim."""
    # Entries of the solution's support lie within `total` of the largest: in these units nothing is lost.
    low = -1 - 4 * torch.finfo(flat.dtype).eps
    if len(flat) > _SAMPLE**2:
        # A sample says about where the threshold is; entries well below cannot lie above it.
        sample = (flat[:: stride_of(len(flat), _SAMPLE)].double() - largest) / total
        guess = _michelot(sample, len(sample) / len(flat))
        excess = (sample - guess).clamp(min=0)
        spread = excess.std() / (excess > 0).double().mean() / len(sample) ** 0.5
        cut = max(low, float(guess - 6 * spread))
        threshold = _michelot(_above(flat, largest, total, cut), 1.0)
        if cut <= float(threshold):
            return threshold
    return _michelot(_above(flat, largest, total, low), 1.0)


def _above(flat: Tensor, largest: Tensor, total: float, cut: float) -> Tensor:
    """(w_i - largest) / total of the entries where that is at least about `cut`, float64."""
    return (flat[flat >= (largest + total * cut).to(flat.dtype)].double() - largest) / total


def _michelot(above: Tensor, total: float) -> Tensor:
    """The t with sum_i (above_i - t)+ = total, for a maximum of 0."""
    threshold = (above.sum() - total) / len(above)
    while len(kept := above[above > threshold]) < len(above):
        above = kept
        threshold = (above.sum() - total) / len(above)
    return threshold


def scaled_norm(w: Tensor) -> tuple[Tensor, Tensor]:
    """A power of two and ||w||_2 divided by it, 0-dim float64 tensors: the quotient neither overflows nor vanishes."""
    wide = w.double().flatten()
    scale = power_of_two(wide.abs().amax()) if w.numel() else wide.new_ones(())
    return scale, (wide / scale).square().sum().sqrt()


def slack(w: Tensor, size: float) -> float:
    """By how much a norm of `size` may grow when the entries are rounded to w's dtype."""
    info = torch.finfo(w.dtype)
    # Below the smallest normal number rounding is absolute.
    return 8 * info.eps * size + w.numel() * info.smallest_normal * info.eps
