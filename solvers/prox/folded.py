"""Folded concave penalties in closed form (MCP, SCAD, capped l1): flat beyond a point, so big weights are unbiased."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from argprune.solvers.prox.base import Penalty, check_parameter
from argprune.solvers.registry import register


@register("regularizers", "mcp", examples=[{"strength": 0.7, "gamma": 2.5}, {"strength": 0.0}])
@dataclass(frozen=True)
class MCP(Penalty):
    """The minimax concave penalty: r(u) = strength u - u^2 / (2 gamma) up to gamma strength, constant beyond.

    w: float tensor of any shape; strength >= 0; gamma > 0, in units of the step (gamma -> inf is l1).
    Concave; the prox is the global minimiser for every step: firm threshold below gamma, hard threshold from there on.
    Reference: Zhang (2010), "Nearly unbiased variable selection under minimax concave penalty".
    """

    strength: float
    gamma: float = 3.0

    def __post_init__(self) -> None:
        check_parameter("MCP", "strength", self.strength)
        check_parameter("MCP", "gamma", self.gamma, strict=True)

    def profile(self, u: Tensor) -> Tensor:
        """r(u)."""
        u = u.clamp(max=self.gamma * self.strength)
        return u * (self.strength - u / (2 * self.gamma))

    def slope(self, u: Tensor) -> Tensor:
        """r'(u) = (strength - u / gamma)+."""
        return (self.strength - u / self.gamma).clamp(min=0)

    def shrink(self, u: Tensor, step: float | Tensor) -> Tensor:
        """Firm threshold where step < gamma; else u where it exceeds strength sqrt(step gamma), and 0."""
        tau = torch.as_tensor(step, dtype=u.dtype, device=u.device)
        firm = (u - tau * self.strength).clamp(min=0) / (1 - tau / self.gamma)
        firm = torch.where(u > self.gamma * self.strength, u, torch.minimum(firm, u))
        hard = torch.where(u > self.strength * (tau * self.gamma).sqrt(), u, 0)
        return torch.where(tau < self.gamma, firm, hard)


@register(
    "regularizers", "scad", examples=[{"strength": 0.7}, {"strength": 0.5, "a": 2.5}, {"strength": 0.0, "a": 10.0}]
)
@dataclass(frozen=True)
class SCAD(Penalty):
    """Smoothly clipped absolute deviation: r'(u) = min(strength, (a strength - u)+ / (a - 1)), r(0) = 0.

    w: float tensor of any shape; strength >= 0; a > 2, where flatness begins in units of strength (a -> inf is l1).
    Concave; the prox is the global minimiser for every step, also from a - 1 on, where the three-branch form ends.
    As a reweighting rule: factors = slope, the local linear approximation of Zou and Li (2008).
    Reference: Fan and Li (2001), "Variable selection via nonconcave penalized likelihood", equations 2.7 and 2.8.
    """

    strength: float
    a: float = 3.7

    def __post_init__(self) -> None:
        check_parameter("SCAD", "strength", self.strength)
        check_parameter("SCAD", "a", self.a, above=2.0, strict=True)

    def profile(self, u: Tensor) -> Tensor:
        """r(u), in one formula: l1 up to strength, less a parabola up to a strength, constant beyond."""
        u = u.clamp(max=self.a * self.strength)
        return self.strength * u - (u - self.strength).clamp(min=0).square() / (2 * (self.a - 1))

    def slope(self, u: Tensor) -> Tensor:
        """r'(u)."""
        return ((self.a * self.strength - u) / (self.a - 1)).clamp(0, self.strength)

    def shrink(self, u: Tensor, step: float | Tensor) -> Tensor:
        """u beyond a threshold; below it the soft threshold or, where step < a - 1, the line that joins the two."""
        tau = torch.as_tensor(step, dtype=u.dtype, device=u.device)
        a, strength, flat = self.a, self.strength, self.a * self.strength
        soft = (u - tau * strength).clamp(min=0)
        joined = torch.maximum(soft, flat - (flat - u) * ((a - 1) / (a - 1 - tau)))
        # From step a - 1 on the line turns back: u and the soft threshold compete, then u and 0 once that is 0.
        even = torch.where(tau < a + 1, strength * (a + 1 + tau) / 2, strength * (tau * (a + 1)).sqrt())
        below = torch.where(tau < a - 1, torch.minimum(joined, u), soft)
        return torch.where(u > torch.where(tau < a - 1, flat, even), u, below)


@register("regularizers", "capped_l1", examples=[{"strength": 0.7, "theta": 0.5}, {"strength": 0.0, "theta": 1.0}])
@dataclass(frozen=True)
class CappedL1(Penalty):
    """Capped l1: r(u) = strength min(u, theta).

    w: float tensor of any shape; strength >= 0; theta > 0, in units of the weights (theta -> inf is l1).
    Concave; the prox is the global minimiser for every step. At u = theta, where r has a kink, the slope is 0.
    As a reweighting rule: factors are `strength` below theta and 0 from there on (multi-stage convex relaxation).
    Reference: Zhang (2010), "Analysis of multi-stage convex relaxation for sparse regularization", section 2.
    """

    strength: float
    theta: float

    def __post_init__(self) -> None:
        check_parameter("CappedL1", "strength", self.strength)
        check_parameter("CappedL1", "theta", self.theta, strict=True)

    def profile(self, u: Tensor) -> Tensor:
        """r(u)."""
        return self.strength * u.clamp(max=self.theta)

    def slope(self, u: Tensor) -> Tensor:
        """r'(u): strength below theta, 0 from there on."""
        return torch.where(u < self.theta, torch.full_like(u, self.strength), 0)

    def shrink(self, u: Tensor, step: float | Tensor) -> Tensor:
        """u beyond the point where it costs what the soft threshold (or 0, where that is 0) costs; that one below."""
        mu = torch.as_tensor(step * self.strength, dtype=u.dtype, device=u.device)
        even = torch.where(mu <= 2 * self.theta, self.theta + mu / 2, (2 * mu).sqrt() * self.theta**0.5)
        return torch.where(u > even, u, (u - mu).clamp(min=0))
