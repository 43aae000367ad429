"""Convex penalties with a quadratic part: squared l2 (weight decay), Huber, elastic net."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from argprune.solvers.prox.base import Penalty, check_parameter, load_cvxpy
from argprune.solvers.registry import register


@register("regularizers", "squared_l2", examples=[{"strength": 0.7}, {"strength": 0.0}])
@dataclass(frozen=True)
class SquaredL2(Penalty):
    """Half the squared l2 norm, the ridge: R(w) = strength / 2 sum_i w_i^2.

    w: float tensor of any shape; strength >= 0, the weight decay of the optimizers. Prunes nothing by itself.
    Convex; the prox divides by 1 + step strength, exact for every step. The value overflows where w^2 does.
    Reference: Parikh and Boyd (2014), "Proximal algorithms", section 6.1.1.
    """

    strength: float
    convex: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_parameter("SquaredL2", "strength", self.strength)

    def profile(self, u: Tensor) -> Tensor:
        """r(u)."""
        return u * (self.strength / 2 * u)

    def slope(self, u: Tensor) -> Tensor:
        """r'(u) = strength u."""
        return self.strength * u

    def shrink(self, u: Tensor, step: float | Tensor) -> Tensor:
        """u / (1 + step strength)."""
        return u / (1 + step * self.strength)

    def expression(self, x: Any) -> Any:
        """The same function of a CVXPY variable."""
        return self.strength / 2 * load_cvxpy().sum_squares(x)


@register("regularizers", "huber", examples=[{"strength": 0.7, "delta": 0.5}, {"strength": 0.3}])
@dataclass(frozen=True)
class Huber(Penalty):
    """The Huber function, a smooth l1: r(u) = strength u^2 / (2 delta) up to delta, strength (u - delta / 2) beyond.

    w: float tensor of any shape; strength >= 0, the slope beyond delta; delta > 0, in units of the weights
    (delta -> 0 is l1). Prunes nothing by itself.
    Convex and differentiable; the prox is exact for every step.
    Reference: Huber (1964), "Robust estimation of a location parameter"; Beck (2017), "First-order methods in
    optimization", example 6.54 (r is the Moreau envelope of strength |.|, up to the scale of delta).
    """

    strength: float
    delta: float = 1.0
    convex: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_parameter("Huber", "strength", self.strength)
        check_parameter("Huber", "delta", self.delta, strict=True)

    def profile(self, u: Tensor) -> Tensor:
        """r(u)."""
        near = u.clamp(max=self.delta)
        return self.strength * (near * (near / (2 * self.delta)) + (u - near))

    def slope(self, u: Tensor) -> Tensor:
        """r'(u) = strength min(u / delta, 1)."""
        return self.strength * (u / self.delta).clamp(max=1)

    def shrink(self, u: Tensor, step: float | Tensor) -> Tensor:
        """The larger of the prox of the parabola and that of the line."""
        mu = torch.as_tensor(step * self.strength, dtype=u.dtype, device=u.device)
        return torch.maximum(u * (self.delta / (self.delta + mu)), u - mu)

    def expression(self, x: Any) -> Any:
        """The same function of a CVXPY variable."""
        cvxpy = load_cvxpy()
        return self.strength / (2 * self.delta) * cvxpy.sum(cvxpy.huber(x, self.delta))


@register("regularizers", "elastic_net", examples=[{"strength": 0.7}, {"strength": 0.7, "ratio": 0.2}])
@dataclass(frozen=True)
class ElasticNet(Penalty):
    """The elastic net: r(u) = strength (ratio u + (1 - ratio) u^2 / 2).

    w: float tensor of any shape; strength >= 0; ratio in [0, 1]: 1 is l1, 0 is half the squared l2 norm.
    Convex; the prox, a soft threshold then a division, is exact for every step. The value overflows where w^2 does.
    Reference: Zou and Hastie (2005), "Regularization and variable selection via the elastic net"; Parikh and Boyd
    (2014), "Proximal algorithms", section 6.5.3.
    """

    strength: float
    ratio: float = 0.5
    convex: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_parameter("ElasticNet", "strength", self.strength)
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"ElasticNet: ratio {self.ratio}; it must lie in [0, 1] (1 is l1, 0 is squared l2).")

    def profile(self, u: Tensor) -> Tensor:
        """r(u)."""
        return u * (self.strength * self.ratio + self.strength * (1 - self.ratio) / 2 * u)

    def slope(self, u: Tensor) -> Tensor:
        """r'(u) = strength (ratio + (1 - ratio) u)."""
        return self.strength * self.ratio + self.strength * (1 - self.ratio) * u

    def shrink(self, u: Tensor, step: float | Tensor) -> Tensor:
        """(u - step strength ratio)+ / (1 + step strength (1 - ratio))."""
        threshold, decay = step * (self.strength * self.ratio), step * (self.strength * (1 - self.ratio))
        return (u - threshold).clamp(min=0) / (1 + decay)

    def expression(self, x: Any) -> Any:
        """The same function of a CVXPY variable."""
        cvxpy = load_cvxpy()
        l1 = cvxpy.norm1(cvxpy.vec(x, order="C"))
        return self.strength * (self.ratio * l1 + (1 - self.ratio) / 2 * cvxpy.sum_squares(x))
