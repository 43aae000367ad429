"""Regularizers of group norms, R(w) = sum_g r(||w_g||): whole groups become zero together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from argprune.solvers.groups import Blocks, Columns, Groups, Rows, Whole
from argprune.solvers.prox.base import Formula, Penalty, check_parameter, load_cvxpy
from argprune.solvers.prox.concave import LogSum
from argprune.solvers.prox.folded import MCP, SCAD
from argprune.solvers.prox.radial import ConcaveRadial, Radial, metric_shrink, norms, ratio, split_expression
from argprune.solvers.registry import register


@dataclass(frozen=True, eq=False)
class _Linear(Penalty):
    """r(u) = weights u, the weights a number or one entry a group."""

    weights: float | Tensor

    def profile(self, u: Tensor) -> Tensor:
        """r(u)."""
        return self._on(u) * u

    def slope(self, u: Tensor) -> Tensor:
        """r'(u)."""
        return torch.ones_like(u) * self._on(u)

    def shrink(self, u: Tensor, step: float | Tensor) -> Tensor:
        """Soft threshold."""
        return (u - step * self._on(u)).clamp(min=0)

    def _on(self, u: Tensor) -> float | Tensor:
        return self.weights.to(u.device) if isinstance(self.weights, Tensor) else self.weights


def _group_soft_threshold(stack: Tensor, tau: Tensor, weight: Tensor) -> Tensor:
    norm = norms(stack)
    return stack * ratio((norm - tau * weight).clamp(min=0), norm).to(stack.dtype) + 0.0


class _Lasso(Radial):
    """The group lasso with weights, a number or one entry a group."""

    convex: ClassVar[bool] = True

    def weights(self, count: int) -> float | Tensor:
        """The weight of a norm: a number, or float64 (count, 1)."""
        raise NotImplementedError

    def penalty(self, count: int) -> Penalty:
        """r(u) = weight u."""
        return _Linear(self.weights(count))

    def formula(self) -> Formula | None:
        """The prox as one expression, for groups that need no copy; every strength has the same."""
        if not self.sliceable():
            return None
        return self._formula(_group_soft_threshold, torch.as_tensor(self.weights(1), dtype=torch.float64))

    def shrunk(self, stack: Tensor, tau: Tensor) -> Tensor:
        """The group soft threshold; in the metric of tau where the entries of a group have different steps."""
        if tau.shape[1] == 1:
            return super().shrunk(stack, tau)
        weights = self.weights(len(stack))
        weights = weights.to(tau.device) if isinstance(weights, Tensor) else weights
        return metric_shrink(stack, weights * tau)

    def expression(self, x: Any) -> Any:
        """The same function of a CVXPY variable."""
        cvxpy = load_cvxpy()
        norms = cvxpy.norm(split_expression(self.groups, x), 2, axis=1)
        weights = self.weights(norms.size)
        if isinstance(weights, Tensor):
            return cvxpy.sum(cvxpy.multiply(weights.flatten().cpu().numpy(), norms))
        return weights * cvxpy.sum(norms)


@register(
    "regularizers",
    "group_lasso",
    examples=[{"strength": 0.7}, {"strength": 0.5, "groups": Columns()}, {"strength": 0.0}],
)
@dataclass(frozen=True)
class GroupLasso(_Lasso):
    """The group lasso, R(w) = strength * sum_g ||w_g||_2.

    w: float tensor that `groups` can split; strength >= 0, in units of loss per unit of weight.
    Convex; the prox is the group soft threshold, exact for every step >= 0: a number, one entry a group, or one entry
    a weight (a diagonal metric: a root found to rounding, group by group).
    Reference: Yuan and Lin (2006), "Model selection and estimation in regression with grouped variables".
    """

    strength: float
    groups: Groups = field(default=Rows())

    def __post_init__(self) -> None:
        check_parameter("GroupLasso", "strength", self.strength)

    def weights(self, count: int) -> float:
        """strength."""
        return self.strength


@register(
    "regularizers",
    "weighted_group_lasso",
    examples=[{"strength": 0.7}, {"strength": 0.3, "factors": 2.0, "groups": Blocks(2, 3)}],
)
@dataclass(frozen=True, eq=False)
class WeightedGroupLasso(_Lasso):
    """The weighted group lasso, R(w) = strength * sum_g factors_g ||w_g||_2.

    w: float tensor that `groups` can split; strength >= 0; factors: a finite float >= 0, or a tensor of one such entry
    a group. Convex; the prox is exact for every step >= 0, of every shape that `GroupLasso` takes.
    Reference: Yuan and Lin (2006), whose factors are the square roots of the groups' sizes; reweighting as in Candes,
    Wakin and Boyd (2008).
    """

    strength: float
    factors: float | Tensor = 1.0
    groups: Groups = field(default=Rows())

    def __post_init__(self) -> None:
        check_parameter("WeightedGroupLasso", "strength", self.strength)
        factors = torch.as_tensor(self.factors)
        if not bool(((factors >= 0) & factors.isfinite()).all()):
            raise ValueError("WeightedGroupLasso: factors hold an entry < 0, inf or NaN; each must be finite and >= 0.")

    def sliceable(self) -> bool:
        """Whether all groups have the same factor."""
        return not isinstance(self.factors, Tensor)

    def weights(self, count: int) -> float | Tensor:
        """strength * factors."""
        if not isinstance(self.factors, Tensor):
            return self.strength * self.factors
        if self.factors.numel() not in (1, count):
            raise ValueError(f"WeightedGroupLasso: {self.factors.numel()} factors for {count} groups; give one each.")
        return self.strength * self.factors.detach().double().reshape(-1, 1)


@register(
    "regularizers",
    "group_mcp",
    examples=[{"strength": 0.7, "gamma": 2.5}, {"strength": 0.7, "groups": Columns()}, {"strength": 0.0}],
)
@dataclass(frozen=True)
class GroupMCP(ConcaveRadial):
    """The minimax concave penalty of group norms, R(w) = sum_g r(||w_g||_2), r of `MCP`.

    w: float tensor that `groups` can split; strength >= 0; gamma > 0, in units of the step.
    Concave in the norms; the prox is the global minimiser for every step >= 0, a number or one entry a group.
    Reference: Huang, Breheny and Ma (2012), "A selective review of group selection in high-dimensional models".
    """

    strength: float
    gamma: float = 3.0
    groups: Groups = field(default=Rows())

    def __post_init__(self) -> None:
        self.penalty(0)

    def penalty(self, count: int) -> Penalty:
        """r of the MCP."""
        return MCP(self.strength, self.gamma)


@register(
    "regularizers",
    "group_scad",
    examples=[{"strength": 0.7}, {"strength": 0.7, "groups": Whole()}, {"strength": 0.0}],
)
@dataclass(frozen=True)
class GroupSCAD(ConcaveRadial):
    """The smoothly clipped absolute deviation of group norms, R(w) = sum_g r(||w_g||_2), r of `SCAD`.

    w: float tensor that `groups` can split; strength >= 0; a > 2, in units of strength.
    Concave in the norms; the prox is the global minimiser for every step >= 0, a number or one entry a group.
    Reference: Huang, Breheny and Ma (2012), "A selective review of group selection in high-dimensional models".
    """

    strength: float
    a: float = 3.7
    groups: Groups = field(default=Rows())

    def __post_init__(self) -> None:
        self.penalty(0)

    def penalty(self, count: int) -> Penalty:
        """r of the SCAD."""
        return SCAD(self.strength, self.a)


@register(
    "regularizers",
    "group_log_sum",
    examples=[{"strength": 0.5, "eps": 0.1}, {"strength": 0.7, "eps": 1.5, "groups": Columns()}],
)
@dataclass(frozen=True)
class GroupLogSum(ConcaveRadial):
    """The log-sum of group norms, R(w) = sum_g r(||w_g||_2), r of `LogSum`.

    w: float tensor that `groups` can split; strength >= 0; eps > 0, in units of the norms.
    Concave in the norms; the prox is the global minimiser for every step >= 0, a number or one entry a group.
    Reference: Candes, Wakin and Boyd (2008), section 2.2, applied to the norms of groups.
    """

    strength: float
    eps: float
    groups: Groups = field(default=Rows())

    def __post_init__(self) -> None:
        self.penalty(0)

    def penalty(self, count: int) -> Penalty:
        """r of the log-sum."""
        return LogSum(self.strength, self.eps)
