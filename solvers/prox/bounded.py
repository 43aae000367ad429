"""Convex penalties within bounds: R(w) = sum_i r(|w_i|) where lower <= w_i <= upper for every i, inf elsewhere.

In one dimension, and so for separable functions, the prox of a convex function restricted to an interval is the prox
of the function, clamped to the interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from argprune.solvers.prox.base import Formula, check_parameter, check_step, fresh, load_cvxpy, pieces, widened
from argprune.solvers.prox.smooth import ElasticNet
from argprune.solvers.registry import register


class Bounded:
    """Base of convex separable penalties within bounds. A subclass gives the penalty and the bounds.

    The bounds are rounded to w's dtype, for the value as for the prox, whose result satisfies them exactly.
    At step 0 the prox is the projection onto the bounds, the limit of small steps.
    """

    convex: ClassVar[bool] = True
    separable: ClassVar[bool] = True

    def penalty(self) -> ElasticNet:
        """The convex penalty that the bounds restrict; l1 is the elastic net of ratio 1."""
        raise NotImplementedError

    def bounds(self) -> tuple[float, float]:
        """lower and upper, lower <= upper, either of which may be infinite."""
        raise NotImplementedError

    def value(self, w: Tensor) -> Tensor:
        """sum_i r(|w_i|) within the bounds, else inf; float32 for narrower dtypes."""
        lower, upper = self._rounded(w)
        return torch.where(((w < lower) | (w > upper)).any(), math.inf, self.penalty().value(w))

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """The prox of the penalty, clamped to the bounds; exact for every step >= 0."""
        return self.prox_(fresh(w).copy_(w.detach()), step)

    def prox_(self, w: Tensor, step: float | Tensor, part: slice | None = None) -> Tensor:
        """The same, in place; which entries w holds (`part`) changes nothing."""
        check_step(step)
        penalty, (lower, upper) = self.penalty(), self._rounded(w)
        for piece, tau, _ in pieces(w, step, w):
            # Adding 0 turns a -0 into +0.
            penalty.prox_(piece, tau).clamp_(lower, upper).add_(0.0)
        return w

    def formula(self) -> Formula:
        """The prox as one expression."""
        return Formula(_Clamped(self.penalty().formula().function, *self.bounds()))

    def distance(self, w: Tensor, grad: Tensor) -> Tensor:
        """Distance of -grad to the subdifferential at w, entry by entry; 0 where stationary, inf out of bounds."""
        lower, upper = self._rounded(w)
        w, grad = widened(w), widened(grad)
        slope = self.penalty().slope(w.abs())
        # The subdifferential is an interval: the penalty's one-sided derivatives, with an end let go at each bound.
        left = torch.where(w <= lower, -math.inf, torch.where(w > 0, slope, -slope))
        right = torch.where(w >= upper, math.inf, torch.where(w < 0, -slope, slope))
        found = torch.maximum(left + grad, -grad - right).clamp(min=0)
        return torch.where((w < lower) | (w > upper), math.inf, found)

    def expression(self, x: Any) -> Any:
        """The same function of a CVXPY variable, inf out of bounds included."""
        lower, upper = self.bounds()
        constraints = [x >= lower] if lower > -math.inf else []
        constraints += [x <= upper] if upper < math.inf else []
        return self.penalty().expression(x) + load_cvxpy().transforms.indicator(constraints)

    def _rounded(self, w: Tensor) -> tuple[float, float]:
        lower, upper = torch.tensor(self.bounds(), dtype=w.dtype).tolist()
        return lower, upper


@dataclass(frozen=True)
class _Clamped:
    function: Callable[..., Tensor]
    lower: float
    upper: float

    def __call__(self, w: Tensor, tau: Tensor) -> Tensor:
        return self.function(w, tau).clamp(self.lower, self.upper) + 0.0


@register("regularizers", "nonnegative_l1", examples=[{"strength": 0.7}, {"strength": 0.0}])
@dataclass(frozen=True)
class NonNegativeL1(Bounded):
    """l1 on nonnegative tensors: R(w) = strength sum_i w_i where every w_i >= 0, else inf.

    w: float tensor of any shape; strength >= 0.
    Convex; the prox is (w - step strength)+, exact for every step; its zeros and bounds hold exactly.
    Reference: Beck (2017), "First-order methods in optimization", table 6.1.
    """

    strength: float

    def __post_init__(self) -> None:
        check_parameter("NonNegativeL1", "strength", self.strength)

    def penalty(self) -> ElasticNet:
        """l1."""
        return ElasticNet(self.strength, ratio=1.0)

    def bounds(self) -> tuple[float, float]:
        """0 and inf."""
        return 0.0, math.inf


@register("regularizers", "box_l1", examples=[{"strength": 0.7}, {"strength": 0.3, "lower": -0.3, "upper": 0.6}])
@dataclass(frozen=True)
class BoxL1(Bounded):
    """l1 on a box: R(w) = strength sum_i |w_i| where every w_i lies in [lower, upper], else inf.

    w: float tensor of any shape; strength >= 0; lower <= 0 <= upper, in units of the weights, so that 0 is allowed.
    Convex; the prox is the clamped soft threshold, exact for every step; the bounds, in w's dtype, hold exactly.
    Reference: Beck (2017), "First-order methods in optimization", table 6.1 and theorem 6.6.
    """

    strength: float
    lower: float = -1.0
    upper: float = 1.0

    def __post_init__(self) -> None:
        check_parameter("BoxL1", "strength", self.strength)
        if not self.lower <= 0 <= self.upper:
            raise ValueError(f"BoxL1: bounds [{self.lower}, {self.upper}]; they must satisfy lower <= 0 <= upper.")

    def penalty(self) -> ElasticNet:
        """l1."""
        return ElasticNet(self.strength, ratio=1.0)

    def bounds(self) -> tuple[float, float]:
        """lower and upper."""
        return self.lower, self.upper


@register("regularizers", "nonnegative_elastic_net", examples=[{"strength": 0.7}, {"strength": 0.7, "ratio": 0.0}])
@dataclass(frozen=True)
class NonNegativeElasticNet(Bounded):
    """The elastic net on nonnegative tensors: R(w) = strength sum_i (ratio w_i + (1 - ratio) w_i^2 / 2), w >= 0.

    w: float tensor of any shape; strength >= 0; ratio in [0, 1]. inf where an entry is negative.
    Convex; the prox is (w - step strength ratio)+ / (1 + step strength (1 - ratio)), exact for every step.
    Reference: Zou and Hastie (2005); Beck (2017), "First-order methods in optimization", table 6.1.
    """

    strength: float
    ratio: float = 0.5

    def __post_init__(self) -> None:
        check_parameter("NonNegativeElasticNet", "strength", self.strength)
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"NonNegativeElasticNet: ratio {self.ratio}; it must lie in [0, 1].")

    def penalty(self) -> ElasticNet:
        """The elastic net."""
        return ElasticNet(self.strength, self.ratio)

    def bounds(self) -> tuple[float, float]:
        """0 and inf."""
        return 0.0, math.inf
