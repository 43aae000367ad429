"""Splitting a constrained problem by ADMM: the part that knows neither the loss nor the constraint set.

    minimise f(W)  subject to  W in S      <=>      minimise f(W) + indicator_S(Z)  subject to  W = Z

    W <- minimiser, or some descent, of f(W) + rho / 2 ||W - Z + U||^2        (the caller's)
    H <- relaxation * W + (1 - relaxation) * Z
    Z <- projection of H + U on S
    U <- U + H - Z                        (scaled dual: U = multiplier / rho; it may also come first, see `Splitting`)
    rho <- rule(rho, residuals),  U <- U * old rho / new rho

Reference: Boyd, Parikh, Chu, Peleato and Eckstein (2011), "Distributed optimization and statistical learning via the
alternating direction method of multipliers", sections 3.1 (scaled form), 3.3 (residuals), 3.4.1 (rho), 3.4.3
(over-relaxation).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from argprune.solvers.prox.base import check_parameter, widened

Projection = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Residuals:
    """How far W and Z are from agreeing, and Z from resting; norms are Frobenius norms.

    primal: ||W - Z||, in units of the weights; size: max(||W||, ||Z||), what it is relative to.
    dual: rho ||Z - previous Z||, in units of the loss's gradient; force: rho ||U||, the multiplier it is relative to.
    """

    primal: float
    dual: float
    size: float
    force: float

    @property
    def relative_primal(self) -> float:
        """primal / size; 0 where both are 0."""
        return _ratio(self.primal, self.size)

    @property
    def relative_dual(self) -> float:
        """dual / force, at most 1: until U has grown, the force says nothing; 0 where both are 0."""
        return _ratio(self.dual, max(self.force, self.dual))

    @staticmethod
    def total(parts: Iterable[Residuals]) -> Residuals:
        """The residuals of several matrices taken as one vector; `size` is that of the larger of each W and Z."""
        rows = [(part.primal, part.dual, part.size, part.force) for part in parts]
        return Residuals(*(math.hypot(*column) for column in zip(*rows, strict=True)))


class RhoRule(Protocol):
    """The next rho, from the present one and the residuals of the Z-step that was just taken."""

    def __call__(self, rho: float, residuals: Residuals) -> float:
        """A number > 0 (0 only for rho = 0)."""


@dataclass(frozen=True)
class ConstantRho:
    """rho as it is."""

    def __call__(self, rho: float, residuals: Residuals) -> float:
        """The same rho."""
        return rho


@dataclass(frozen=True)
class GrowingRho:
    """rho times `factor` at every Z-step: for sets that are not convex, where W = Z is not reached otherwise.

    factor: > 0; 1 is constant.
    """

    factor: float

    def __post_init__(self) -> None:
        check_parameter("GrowingRho", "factor", self.factor, strict=True)

    def __call__(self, rho: float, residuals: Residuals) -> float:
        """factor * rho."""
        return self.factor * rho


@dataclass(frozen=True)
class BalancedRho:
    """Residual balancing: rho up where the primal residual exceeds `threshold` times the dual one, down where below.

    threshold: > 1 (mu = 10 in the reference); factor: > 1 (tau = 2). relative: compare relative residuals, which do not
    depend on the units of weights and loss. Reference: Boyd et al. (2011), equation 3.13; relative: Wohlberg (2017),
    "ADMM penalty parameter selection by residual balancing", section 3.

    >>> rule = BalancedRho()
    >>> [rule(1.0, Residuals(primal, dual=1.0, size=1.0, force=1.0)) for primal in (20.0, 5.0, 0.05)]
    [2.0, 1.0, 0.5]
    """

    threshold: float = 10.0
    factor: float = 2.0
    relative: bool = False

    def __post_init__(self) -> None:
        check_parameter("BalancedRho", "threshold", self.threshold, above=1.0, strict=True)
        check_parameter("BalancedRho", "factor", self.factor, above=1.0, strict=True)

    def __call__(self, rho: float, residuals: Residuals) -> float:
        """factor * rho, rho / factor, or rho."""
        primal, dual = residuals.primal, residuals.dual
        if self.relative:
            primal, dual = residuals.relative_primal, residuals.relative_dual
        if primal > self.threshold * dual:
            return rho * self.factor
        if dual > self.threshold * primal:
            return rho / self.factor
        return rho


@dataclass(frozen=True)
class Split:
    """The state of one matrix: z in S, the scaled dual u, rho. Tensors are like W, float32 where W is narrower."""

    z: Tensor
    u: Tensor
    rho: float

    @property
    def center(self) -> Tensor:
        """Z - U: where the augmented term pulls W."""
        return self.z - self.u

    def rescaled(self, rho: float) -> Split:
        """The same multiplier rho * U at another rho."""
        if rho == self.rho:
            return self
        return Split(self.z, self.u * (self.rho / rho), rho)


@dataclass(frozen=True)
class Splitting:
    """The steps of ADMM that follow the caller's W-step.

    relaxation: alpha in [1, 2): 1 is plain ADMM, 1.5 to 1.8 over-relaxed. rule: the schedule of rho.
    dual_first: U <- U + H - Z with the Z that W was pulled to, then Z <- projection of W + U: ADMM with Z as its first
    block. An entry that a Z-step newly puts to zero is then pulled to 0; in the other order it meets U = W and is
    pulled to -W. `relaxation` is then the length of the dual's step, for which proofs reach (1 + sqrt 5) / 2.
    """

    relaxation: float = 1.0
    rule: RhoRule = ConstantRho()
    dual_first: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.relaxation < 2:
            raise ValueError(f"Splitting: relaxation {self.relaxation}; give 1 (plain) to below 2 (over-relaxed).")

    def init(self, w: Tensor, rho: float, project: Projection) -> Split:
        """Z = the projection of W, U = 0; rho >= 0."""
        check_parameter("Splitting", "rho", rho)
        z = project(widened(w.detach()))
        return Split(z, torch.zeros_like(z), rho)

    @torch.no_grad()
    def step(self, w: Tensor, split: Split, project: Projection) -> tuple[Split, Residuals]:
        """Z, U and rho after a W-step that ended at w, and the residuals at the rho of that step."""
        w = widened(w.detach())
        # A product with 1 and a sum with 0 * Z round nothing, but would turn an infinite Z into NaN.
        relaxed = w if self.relaxation == 1 else torch.lerp(split.z, w, self.relaxation)
        if self.dual_first:
            u = split.u + (relaxed - split.z)
            z = project(w + u)
        else:
            target = relaxed + split.u
            z = project(target)
            u = target - z
        residuals = Residuals(
            primal=_norm(w - z),
            dual=split.rho * _norm(z - split.z),
            size=max(_norm(w), _norm(z)),
            force=split.rho * _norm(u),
        )
        return Split(z, u, split.rho).rescaled(self.rule(split.rho, residuals)), residuals


@dataclass(frozen=True, eq=False)
class SquaredDistance:
    """R(w) = sum over the entries pulled of (w_i - center_i)^2 / 2, the augmented term at rho = 1.

    center: tensor of the weights' shape, float32 for narrower weights. pulled: like it, 1 where an entry is pulled, 0
    where it is free; None: all are pulled. Convex and separable; the prox (w + step * center) / (1 + step) is exact for
    every step >= 0, a float or a tensor. A regularizer for `ProximalOptimizer`.
    """

    center: Tensor
    pulled: Tensor | None = None
    convex: ClassVar[bool] = True
    separable: ClassVar[bool] = True

    def value(self, w: Tensor) -> Tensor:
        """Half the squared distance."""
        return self.gradient(w).square().sum() / 2

    def gradient(self, w: Tensor) -> Tensor:
        """w - center, 0 where an entry is free."""
        gap = widened(w) - self.center
        return gap if self.pulled is None else gap.mul_(self.pulled)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """A point between w and the center."""
        return self.prox_(w.detach().clone(), step)

    def prox_(self, w: Tensor, step: float | Tensor, part: slice | None = None) -> Tensor:
        """The same, in place; w and step hold the entries `part` of the flat tensor."""
        center, pulled = (t if t is None or part is None else t.reshape(-1)[part] for t in (self.center, self.pulled))
        assert center is not None
        wide, share = widened(w), step / (1 + step)
        if isinstance(share, Tensor):
            share = share.to(wide.dtype)
        if pulled is not None:
            share = pulled * share
        moved = wide.lerp_(center, share)
        return w if wide is w else w.copy_(moved)


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
