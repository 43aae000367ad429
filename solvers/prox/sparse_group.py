"""Sparsity within and between groups: sparse group lasso, nested (tree) group lasso, exclusive lasso."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from argprune.solvers.groups import Blocks, Columns, Groups, Rows, Whole
from argprune.solvers.prox.base import check_parameter, check_step, load_cvxpy, widened
from argprune.solvers.prox.radial import (
    Grouped,
    directions,
    finished,
    group_steps,
    metric_shrink,
    norms,
    one_a_group,
    ratio,
    scales,
    split_expression,
    unchanged,
)
from argprune.solvers.prox.separable import soft_threshold_
from argprune.solvers.registry import register


@register(
    "regularizers",
    "sparse_group_lasso",
    examples=[{"strength": 0.7}, {"strength": 0.9, "l1_ratio": 0.2, "groups": Columns()}, {"strength": 0.0}],
)
@dataclass(frozen=True)
class SparseGroupLasso(Grouped):
    """The sparse group lasso, R(w) = strength * (l1_ratio ||w||_1 + (1 - l1_ratio) sum_g ||w_g||_2).

    w: float tensor that `groups` can split; strength >= 0; l1_ratio in [0, 1], 0 the group lasso and 1 the l1 norm.
    Convex; the prox is the soft threshold, then the group soft threshold, exact for every step >= 0: a number, one
    entry a group, or one entry a weight.
    Reference: Simon, Friedman, Hastie and Tibshirani (2013), "A sparse-group lasso".
    """

    strength: float
    l1_ratio: float = 0.5
    groups: Groups = field(default=Rows())
    convex: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_parameter("SparseGroupLasso", "strength", self.strength)
        if not 0 <= self.l1_ratio <= 1:
            raise ValueError(f"SparseGroupLasso: l1_ratio {self.l1_ratio}; it must be in [0, 1].")

    @property
    def _strengths(self) -> tuple[float, float]:
        return self.strength * self.l1_ratio, self.strength * (1 - self.l1_ratio)

    def total(self, stack: Tensor) -> Tensor:
        """strength * (l1_ratio ||w||_1 + (1 - l1_ratio) sum_g ||w_g||_2)."""
        entry, group = self._strengths
        return (entry * stack.abs().double()).sum() + (group * norms(stack)).sum()

    def sliceable(self) -> bool:
        """Yes."""
        return True

    def shrunk(self, stack: Tensor, tau: Tensor) -> Tensor:
        """Soft threshold, then group soft threshold; in the metric of tau where entries have different steps."""
        entry, group = self._strengths
        inner = soft_threshold_(stack.clone(), (entry * tau).expand(stack.shape))
        if tau.shape[1] != 1:
            return metric_shrink(inner, group * tau)
        return _group_threshold(inner, group * tau)

    def distance(self, w: Tensor, grad: Tensor) -> Tensor:
        """Distance of -grad to the subdifferential at w, one number a group; 0 where stationary."""
        entry, group = self._strengths
        stack, slopes = self.groups.split(widened(w)), self.groups.split(widened(grad)).double()
        norm = norms(stack)
        # A sum of sets: at zero the l1 box and the ball, else the box's faces and one point.
        boxed = (slopes.abs() - entry).clamp(min=0)
        at_zero = (norms(boxed) - group).clamp(min=0)
        moved = slopes + group * directions(stack, norm)
        off_zero = torch.where(stack == 0, boxed, (moved + entry * stack.sign()).abs())
        return torch.where(norm == 0, at_zero, norms(off_zero)).squeeze(1).to(stack.dtype)

    def expression(self, x: Any) -> Any:
        """The same function of a CVXPY variable."""
        cvxpy = load_cvxpy()
        entry, group = self._strengths
        stack = split_expression(self.groups, x)
        return entry * cvxpy.sum(cvxpy.abs(stack)) + group * cvxpy.sum(cvxpy.norm(stack, 2, axis=1))


@register(
    "regularizers",
    "tree_group_lasso",
    examples=[
        {"strength": 0.5},
        {"strength": 0.4, "levels": (Blocks(1, 3), Rows(), Whole()), "factors": (1.0, 0.5, 2.0)},
        {"strength": 0.4, "levels": (Blocks(2, 1), Columns())},
    ],
)
@dataclass(frozen=True)
class TreeGroupLasso:
    """The group lasso of nested groups, R(w) = strength * sum_l factors_l sum_{g in level l} ||w_g||_2.

    w: float tensor that every level can split; levels: hashable `Groups` from fine to coarse, every group within one
    of the next level (checked once a shape); strength >= 0; factors: one finite float >= 0 a level, all 1 where empty.
    Convex; the prox is the group soft thresholds of the levels, from fine to coarse, exact for every step >= 0: a
    number, or a tensor that is constant within each group of the last level.
    Reference: Jenatton, Mairal, Obozinski and Bach (2011), "Proximal methods for hierarchical sparse coding".
    """

    strength: float
    levels: tuple[Groups, ...] = (Rows(), Whole())
    factors: tuple[float, ...] = ()
    convex: ClassVar[bool] = True
    separable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        # Lists, as configuration files give them, would not be hashable.
        object.__setattr__(self, "levels", tuple(self.levels))
        object.__setattr__(self, "factors", tuple(self.factors))
        check_parameter("TreeGroupLasso", "strength", self.strength)
        if not self.levels:
            raise ValueError("TreeGroupLasso: no levels; give at least one Groups, from fine to coarse.")
        if self.factors and len(self.factors) != len(self.levels):
            raise ValueError(
                f"TreeGroupLasso: {len(self.factors)} factors for {len(self.levels)} levels; give one each."
            )
        for factor in self.factors:
            check_parameter("TreeGroupLasso", "factors", factor)

    def _weighted(self, shape: torch.Size) -> list[tuple[Groups, float]]:
        """The levels with their weights, for tensors of a shape."""
        _check_nested(self.levels, tuple(shape))
        factors = self.factors or (1.0,) * len(self.levels)
        return [(level, self.strength * factor) for level, factor in zip(self.levels, factors, strict=True)]

    def value(self, w: Tensor) -> Tensor:
        """strength * sum_l factors_l sum_g ||w_g||_2; float32 for narrower dtypes."""
        wide = widened(w)
        total = torch.zeros((), dtype=torch.float64, device=w.device)
        for level, weight in self._weighted(w.shape):
            total = total + (weight * norms(level.split(wide))).sum()
        return total.to(wide.dtype)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """The group soft thresholds of the levels, from fine to coarse."""
        check_step(step)
        w = w.detach()
        levels = self._weighted(w.shape)
        if w.numel() == 0 or self.strength == 0 or (not isinstance(step, Tensor) and step == 0):
            return unchanged(w)
        coarsest = self.levels[-1]
        tau = one_a_group("TreeGroupLasso", group_steps(step, coarsest, w))
        taus = coarsest.join(tau.expand(coarsest.split(w).shape), w.shape)
        x = widened(w)
        for level, weight in levels:
            x = level.join(_group_threshold(level.split(x), weight * level.split(taus)[:, :1]), w.shape)
        return finished(x, w)

    def distance(self, w: Tensor, grad: Tensor) -> Tensor:
        """Distance of -grad to the subdifferential at w, one number a group of the last level; 0 where stationary."""
        wide, residual = widened(w), widened(grad).double()
        levels = self._weighted(w.shape)
        for level, weight in levels:
            stack = level.split(wide)
            slopes = weight * directions(stack, norms(stack))
            residual = residual + level.join(slopes, w.shape)
        # What is left of it after the balls of the groups at zero, which are nested too: their prox, by Moreau.
        for level, weight in levels:
            stack, left = level.split(wide), level.split(residual)
            zero = norms(stack) == 0
            residual = level.join(torch.where(zero, _group_threshold(left, weight), left), w.shape)
        return norms(self.levels[-1].split(residual)).squeeze(1).to(wide.dtype)

    def expression(self, x: Any) -> Any:
        """The same function of a CVXPY variable."""
        cvxpy = load_cvxpy()
        return sum(
            weight * cvxpy.sum(cvxpy.norm(split_expression(level, x), 2, axis=1))
            for level, weight in self._weighted(torch.Size(x.shape))
        )


@register(
    "regularizers",
    "exclusive_lasso",
    examples=[{"strength": 0.7}, {"strength": 0.3, "groups": Columns()}, {"strength": 0.0}],
)
@dataclass(frozen=True)
class ExclusiveLasso(Grouped):
    """The exclusive lasso, R(w) = strength / 2 * sum_g ||w_g||_1^2: entries of a group compete, no group dies.

    w: float tensor that `groups` can split; strength >= 0, in units of loss per squared unit of weight.
    Convex; the prox is a soft threshold at a level of each group's own, found by sorting; exact for every step >= 0: a
    number, one entry a group, or one entry a weight.
    Reference: Zhou, Jin and Hoi (2010); Kowalski (2009), "Sparse regression using mixed norms", for the prox.
    """

    strength: float
    groups: Groups = field(default=Rows())
    convex: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_parameter("ExclusiveLasso", "strength", self.strength)

    def total(self, stack: Tensor) -> Tensor:
        """strength / 2 * sum_g ||w_g||_1^2."""
        scale = scales(stack).double()
        sums = (stack / scale).abs().sum(1, keepdim=True)
        # In this order, strength 0 gives 0 where the square alone would overflow.
        return (self.strength / 2 * scale * sums * scale * sums).sum()

    def shrunk(self, stack: Tensor, tau: Tensor) -> Tensor:
        """Soft threshold at strength tau_i ||x_g||_1, which depends on the entries that stay."""
        scale = scales(stack).double()
        u = stack.double().abs() / scale
        # Larger products than that behave alike, and would overflow where summed.
        c = (self.strength * tau).clamp(max=1e250)
        x = _exclusive(u, c) if c.shape[1] == 1 else _exclusive_metric(u, c)
        return (x * scale).copysign(stack)

    def distance(self, w: Tensor, grad: Tensor) -> Tensor:
        """Distance of -grad to the subdifferential at w, entry by entry; 0 where stationary."""
        wide, slopes = widened(w), widened(grad)
        stack = self.groups.split(wide)
        sums = (self.strength * stack.abs().sum(1, keepdim=True)).expand(stack.shape)
        weight = self.groups.join(sums, wide.shape)
        return torch.where(wide == 0, (slopes.abs() - weight).clamp(min=0), (slopes + weight * wide.sign()).abs())

    def expression(self, x: Any) -> Any:
        """The same function of a CVXPY variable."""
        cvxpy = load_cvxpy()
        sums = cvxpy.sum(cvxpy.abs(split_expression(self.groups, x)), axis=1)
        return self.strength / 2 * cvxpy.sum_squares(sums)


def _group_threshold(stack: Tensor, threshold: float | Tensor) -> Tensor:
    norm = norms(stack)
    return stack * ratio((norm - threshold).clamp(min=0), norm).to(stack.dtype)


def _exclusive(u: Tensor, c: Tensor) -> Tensor:
    """argmin over x >= 0 of c / 2 (sum_i x_i)^2 + ||x - u||^2 / 2, row by row; u in [0, 1], c (1, 1) or (rows, 1)."""
    descending = u.sort(dim=1, descending=True).values
    # Falls from the largest, not the values: their sums do not cancel, and ties stay exact, however large c is.
    top = descending[:, :1]
    falls = top - descending
    sums, number = falls.cumsum(1), torch.arange(1, u.shape[1] + 1, device=u.device)
    count = (c * (number * falls - sums) < descending).sum(1, keepdim=True).clamp(min=1)
    sums = sums.gather(1, count - 1)
    return ((u - c * (count * (top - u) - sums)) / (1 + c * count)).clamp(min=0)


def _exclusive_metric(u: Tensor, c: Tensor) -> Tensor:
    """argmin over x >= 0 of (sum_i x_i)^2 / 2 + sum_i (x_i - u_i)^2 / (2 c_i), row by row; c (rows, size)."""
    # Entries leave in the order of u / c; those of c = 0 never do.
    keys = torch.where(u > 0, u / c, 0)
    keys, order = keys.sort(dim=1, descending=True)
    sums, weights = u.gather(1, order).cumsum(1), c.gather(1, order).cumsum(1)
    count = (keys * (1 + weights) > sums).sum(1, keepdim=True).clamp(min=1)
    total = sums.gather(1, count - 1) / (1 + weights.gather(1, count - 1))
    return (u - c * total).clamp(min=0)


@lru_cache(maxsize=256)
def _check_nested(levels: tuple[Groups, ...], shape: tuple[int, ...]) -> None:
    """Raise ValueError unless every group of a level lies within one group of the next."""
    positions = torch.arange(torch.Size(shape).numel()).reshape(shape)
    for fine, coarse in pairwise(levels):
        stack = coarse.split(positions)
        owners = torch.arange(len(stack))[:, None].expand(stack.shape)
        within = fine.split(coarse.join(owners, positions.shape))
        if within.numel() and not bool((within == within[:, :1]).all()):
            raise ValueError(
                f"TreeGroupLasso: a group of {fine} lies across groups of {coarse}; order levels from fine to coarse."
            )
