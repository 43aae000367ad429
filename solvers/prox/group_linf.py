"""The group l-infinity norm: sum_g max_i |w_gi|, whose prox clips the largest magnitudes of each group."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from argprune.solvers.groups import Columns, Groups, Rows
from argprune.solvers.prox.base import check_parameter, load_cvxpy, widened
from argprune.solvers.prox.radial import Grouped, norms, scales, split_expression
from argprune.solvers.registry import register


@register(
    "regularizers",
    "group_linf",
    examples=[{"strength": 0.7}, {"strength": 1.5, "groups": Columns()}, {"strength": 0.0}],
)
@dataclass(frozen=True)
class GroupLInf(Grouped):
    """The l1 / l-infinity norm, R(w) = strength * sum_g max_i |w_gi|.

    w: float tensor that `groups` can split; strength >= 0, in units of loss per unit of weight.
    Convex; the prox is w less its projection onto the l1 ball (Moreau), which clips each group at a level found by
    sorting; exact for every step >= 0: a number, one entry a group, or one entry a weight.
    Reference: Turlach, Venables and Wright (2005); Duchi et al. (2008), "Efficient projections onto the l1-ball".
    """

    strength: float
    groups: Groups = field(default=Rows())
    convex: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_parameter("GroupLInf", "strength", self.strength)

    def total(self, stack: Tensor) -> Tensor:
        """strength * sum_g max_i |w_gi|."""
        return (self.strength * stack.abs().amax(1).double()).sum()

    def shrunk(self, stack: Tensor, tau: Tensor) -> Tensor:
        """Clip each group at the level c >= 0 where sum_i (|w_i| - c)+ / tau_i = strength, or at 0."""
        scale = scales(stack).double()
        u = stack.double().abs() / scale
        positive = tau > 0
        # In units of the smallest positive step, so that no reciprocal overflows; a weight of step 0 yields to nothing.
        smallest = torch.where(positive, tau, torch.inf).amin(1, keepdim=True)
        smallest = torch.where(smallest.isfinite(), smallest, 0)
        yields = torch.where(positive, smallest / tau, 0).expand_as(u)
        u_sorted, order = u.sort(dim=1, descending=True)
        fall = u_sorted[:, :1] - u_sorted
        weight = yields.gather(1, order)
        weights, falls = weight.cumsum(1), (weight * fall).cumsum(1)
        limit = self.strength * smallest / scale
        # The entries above the level: lowering the top to the k-th of them uses less than the limit.
        count = (weights * fall - falls < limit).sum(1, keepdim=True).clamp(min=1)
        weights, falls = weights.gather(1, count - 1), falls.gather(1, count - 1)
        lowered = (limit + falls) / torch.where(weights > 0, weights, 1)
        level = (u_sorted[:, :1] - lowered).clamp(min=0)
        # Entries of step 0 stay, and the others then have nothing to gain below them.
        level = torch.maximum(level, torch.where(positive, 0, u).amax(1, keepdim=True))
        level = (level * scale).to(stack.dtype)
        return torch.minimum(torch.maximum(stack, -level), level)

    def distance(self, w: Tensor, grad: Tensor) -> Tensor:
        """Distance of -grad to the subdifferential at w, one number a group; 0 where stationary."""
        stack, slopes = self.groups.split(widened(w)), -self.groups.split(widened(grad)).double()
        if stack.numel() == 0:
            return stack.new_zeros(len(stack))
        magnitude = stack.abs()
        top = magnitude.amax(1, keepdim=True)
        # Off zero: signed slopes on the simplex over the largest entries, 0 elsewhere.
        largest = magnitude == top
        signed = slopes * stack.sign()
        off_zero = torch.where(largest, signed - _on_simplex(signed, largest, self.strength), slopes)
        # At zero: the l1 ball.
        outside = slopes.abs().sum(1, keepdim=True) > self.strength
        at_zero = slopes.abs() - _on_simplex(slopes.abs(), torch.ones_like(largest), self.strength)
        residual = torch.where(top > 0, off_zero, torch.where(outside, at_zero, 0))
        return norms(residual).squeeze(1).to(stack.dtype)

    def expression(self, x: Any) -> Any:
        """The same function of a CVXPY variable."""
        cvxpy = load_cvxpy()
        return self.strength * cvxpy.sum(cvxpy.max(cvxpy.abs(split_expression(self.groups, x)), axis=1))


def _on_simplex(z: Tensor, members: Tensor, radius: float) -> Tensor:
    """Each row's members projected onto the entries >= 0 that sum to radius; 0 for the others."""
    descending = torch.where(members, z, -torch.inf).sort(dim=1, descending=True).values
    sums = torch.where(descending.isfinite(), descending, 0).cumsum(1)
    thresholds = (sums - radius) / torch.arange(1, z.shape[1] + 1, device=z.device)
    count = (descending > thresholds).sum(1, keepdim=True).clamp(min=1)
    return torch.where(members, (z - thresholds.gather(1, count - 1)).clamp(min=0), 0)
