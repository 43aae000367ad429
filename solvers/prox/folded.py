"""Folded concave penalties with closed forms: MCP and SCAD; flat beyond a point, so that large weights are unbiased."""

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
        firm = torch.where(u > self.gamma * self.strength, u, firm)
        hard = torch.where(u > self.strength * (tau * self.gamma).sqrt(), u, 0)
        return torch.where(tau < self.gamma, firm, hard)
