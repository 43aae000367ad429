"""Separable regularizers: R(w) = sum_i r_i(w_i), so that the prox acts on each entry alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from argprune.solvers.prox.base import (
    CHUNK,
    LONG_CHUNK,
    Formula,
    check_parameter,
    check_step,
    fresh,
    load_cvxpy,
    widened,
)
from argprune.solvers.registry import register


@register("regularizers", "l1", examples=[{"strength": 0.7}, {"strength": 0.0}])
@dataclass(frozen=True)
class L1:
    """The l1 norm, R(w) = strength * sum_i |w_i|.

    w: float tensor of any shape; strength >= 0, in units of loss per unit of weight.
    Convex; the prox is the soft threshold, exact for every step >= 0.
    """

    strength: float
    convex: ClassVar[bool] = True
    separable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_parameter("L1", "strength", self.strength)

    def value(self, w: Tensor) -> Tensor:
        """strength * ||w||_1."""
        return self.strength * widened(w).abs().sum()

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Soft threshold at step * strength."""
        check_step(step)
        if isinstance(step, Tensor):
            return self.prox_(w.detach().clone(), step)
        return _soft_threshold_into(fresh(w), w.detach(), step * self.strength)

    def prox_(self, w: Tensor, step: float | Tensor, part: slice | None = None) -> Tensor:
        """Soft threshold at step * strength, in place; which entries w holds (`part`) changes nothing."""
        check_step(step)
        return soft_threshold_(w, step, scale=self.strength)

    def formula(self) -> Formula:
        """The soft threshold as one expression; every strength has the same."""
        return Formula(_soft_threshold, (torch.tensor(self.strength, dtype=torch.float64),))

    def distance(self, w: Tensor, grad: Tensor) -> Tensor:
        """Distance of -grad to the subdifferential at w, entry by entry; 0 where stationary."""
        return _l1_distance(w, grad, self.strength)

    def expression(self, x: Any) -> Any:
        """The same function of a CVXPY variable."""
        cvxpy = load_cvxpy()
        return self.strength * cvxpy.norm1(cvxpy.vec(x, order="C"))


@register("regularizers", "weighted_l1", examples=[{"strength": 0.7}, {"strength": 0.3, "factors": 2.0}])
@dataclass(frozen=True, eq=False)
class WeightedL1:
    """The weighted l1 norm, R(w) = strength * sum_i factors_i |w_i|.

    w: float tensor of any shape; strength >= 0; factors: a float >= 0, or a tensor of w's shape, entries >= 0.
    Convex; the prox is the soft threshold at step * strength * factors, exact for every step >= 0.
    Reference: Candes, Wakin and Boyd (2008); Guo et al. (2019), the regularizer of RPP.
    """

    strength: float
    factors: float | Tensor = 1.0
    convex: ClassVar[bool] = True
    separable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_parameter("WeightedL1", "strength", self.strength)
        # A comparison with NaN is false, so this refuses NaN too.
        if not bool((torch.as_tensor(self.factors) >= 0).all()):
            raise ValueError("WeightedL1: factors hold a negative entry or NaN; every factor must be >= 0.")

    def value(self, w: Tensor) -> Tensor:
        """strength * sum_i factors_i |w_i|."""
        self._check_shape(w)
        return self.strength * (self.factors * widened(w).abs()).sum()

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Soft threshold at step * strength * factors."""
        return self.prox_(w.detach().clone(), step)

    def prox_(self, w: Tensor, step: float | Tensor, part: slice | None = None) -> Tensor:
        """Soft threshold at step * strength * factors, in place; w holds the entries `part` of the flat tensor."""
        check_step(step)
        if not isinstance(self.factors, Tensor):
            return soft_threshold_(w, step, scale=self.strength * self.factors)
        if part is None:
            self._check_shape(w)
        if w.dtype in (torch.bfloat16, torch.float16):
            # Thresholds may be beyond what the dtype holds. Adding 0 after the rounding turns its -0 into +0.
            wide = self.prox_(w.float(), widened(step) if isinstance(step, Tensor) else step, part)
            return w.copy_(wide).add_(0.0)
        factors = self.factors if part is None else self.factors.view(-1)[part]
        if isinstance(step, Tensor):
            # A part's step is scratch of the optimizer's.
            thresholds = step * factors if part is None else step.mul_(factors)
            return soft_threshold_(w, thresholds, scale=self.strength)
        return soft_threshold_(w, factors, scale=self.strength * step)

    def formula(self) -> Formula:
        """The soft threshold as one expression; every strength has the same."""
        strength = torch.tensor(self.strength, dtype=torch.float64)
        if not isinstance(self.factors, Tensor) or not self.factors.dim():
            return Formula(_soft_threshold, (strength * self.factors,))
        return Formula(_soft_threshold, (strength, self.factors.contiguous().view(-1)))

    def distance(self, w: Tensor, grad: Tensor) -> Tensor:
        """Distance of -grad to the subdifferential at w, entry by entry; 0 where stationary."""
        return _l1_distance(w, grad, self.strength * self.factors)

    def _check_shape(self, w: Tensor) -> None:
        if isinstance(self.factors, Tensor) and self.factors.dim() and self.factors.shape != w.shape:
            have, wanted = tuple(self.factors.shape), tuple(w.shape)
            raise ValueError(f"WeightedL1: factors of shape {have} for a tensor of shape {wanted}; give one an entry.")

    def expression(self, x: Any) -> Any:
        """The same function of a CVXPY variable."""
        cvxpy = load_cvxpy()
        factors = self.factors.double().numpy() if isinstance(self.factors, Tensor) else self.factors
        return self.strength * cvxpy.sum(cvxpy.multiply(factors, cvxpy.abs(x)))


def soft_threshold_(w: Tensor, threshold: float | Tensor, scale: float = 1.0) -> Tensor:
    """w <- sign(w) max(|w| - scale * threshold, 0), in place; zeros come out as +0.

    w: float tensor; threshold >= 0: a float or a tensor that broadcasts to w's shape; scale >= 0.
    """
    if not isinstance(threshold, Tensor):
        # No threshold needs to exceed what the dtype holds, and a clamp refuses one that does.
        limit = min(threshold * scale, torch.finfo(w.dtype).max)
        return w.sub_(w.clamp(-limit, limit))
    # The result is the point of [w - t, w + t] closest to 0.
    zero = w.new_zeros(())
    if w.device.type != "cpu" or not _same_layout(w, threshold):
        threshold = threshold.to(w.dtype)
        upper = torch.add(w, threshold, alpha=scale)
        return torch.clamp(zero, w.sub_(threshold, alpha=scale), upper, out=w)
    # Chunks that stay in the cache: memory is then read twice and written once, whatever the number of operations.
    buffer = w.new_empty(min(LONG_CHUNK, w.numel()))
    parts = torch.split(w.view(-1), LONG_CHUNK), torch.split(threshold.view(-1), LONG_CHUNK)
    for piece, limits in zip(*parts, strict=True):
        upper = torch.add(piece, limits, alpha=scale, out=buffer[: len(piece)])
        torch.clamp(zero, piece.sub_(limits, alpha=scale), upper, out=piece)
    return w


def _soft_threshold_into(out: Tensor, w: Tensor, threshold: float) -> Tensor:
    if w.dtype not in (torch.float32, torch.float64) or not w.is_contiguous():
        return soft_threshold_(out.copy_(w), threshold)
    limit = min(threshold, torch.finfo(w.dtype).max)
    for piece, target in zip(torch.split(w.view(-1), CHUNK), torch.split(out.view(-1), CHUNK), strict=True):
        torch.sub(piece, torch.clamp(piece, -limit, limit, out=target), out=target)
    return out


def _soft_threshold(w: Tensor, tau: Tensor, strength: Tensor, factors: Tensor | None = None) -> Tensor:
    limit = tau * strength
    limit = (limit if factors is None else limit * factors.to(w.dtype)).to(w.dtype)
    return w - torch.clamp(w, -limit, limit) + 0.0


def _same_layout(w: Tensor, threshold: Tensor) -> bool:
    same = w.shape == threshold.shape and w.dtype == threshold.dtype
    return same and w.is_contiguous() and threshold.is_contiguous()


def _l1_distance(w: Tensor, grad: Tensor, weight: float | Tensor) -> Tensor:
    at_zero = (grad.abs() - weight).clamp(min=0)
    return torch.where(w == 0, at_zero, (grad + weight * w.sign()).abs())
