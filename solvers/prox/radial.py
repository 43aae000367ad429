"""What grouped regularizers share: groups as rows of a stack, their norms without overflow, steps of every shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from argprune.solvers.groups import Columns, Groups, Rows, Whole
from argprune.solvers.prox.base import CHUNK, Formula, Penalty, check_step, fresh, load_cvxpy, widened

_EPSILON = torch.finfo(torch.float64).eps
_LARGEST = torch.finfo(torch.float64).max
# Newton gains a magnitude or more in each of them; far fewer are met in practice.
_NEWTON_STEPS = 100


class Grouped:
    """Base of the grouped regularizers: R(w) = sum_g R_g(w_g), w seen through `groups` as one row a group.

    A subclass states the sum and the prox of a stack (groups, size) that holds at least one entry. Everything else
    follows: bfloat16 and float16 computed in float32, empty tensors, and steps, which are a number, a tensor of one
    entry a group ((groups,) or (groups, 1)), or a tensor that broadcasts to w's shape.
    """

    convex: ClassVar[bool] = False
    separable: ClassVar[bool] = False
    strength: float
    groups: Groups

    def total(self, stack: Tensor) -> Tensor:
        """R of a stack, 0-dim, in float64 or the stack's dtype."""
        raise NotImplementedError

    def shrunk(self, stack: Tensor, tau: Tensor) -> Tensor:
        """The prox of a stack for strength > 0, a new tensor; tau: float64, (1, 1), (groups, 1) or (groups, size)."""
        raise NotImplementedError

    def sliceable(self) -> bool:
        """Whether the prox of some of the groups is computed without the others: they share all parameters."""
        return False

    def value(self, w: Tensor) -> Tensor:
        """R(w); float32 for narrower dtypes."""
        wide = widened(w)
        stack = self.groups.split(wide)
        return self.total(stack).to(wide.dtype) if stack.numel() else wide.new_zeros(())

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """The global minimiser for every step >= 0."""
        check_step(step)
        w = w.detach()
        stack = self.groups.split(widened(w))
        if w.numel() == 0 or self.strength == 0 or (not isinstance(step, Tensor) and step == 0):
            return unchanged(w)
        tau = group_steps(step, self.groups, w)
        result = self._shrunk(stack, tau)
        return finished(self.groups.join(result, w.shape), w)

    def _shrunk(self, stack: Tensor, tau: Tensor) -> Tensor:
        """`shrunk`, groups with step 0 left as they are; in parts that stay in the cache where that is possible."""
        rows = max(1, CHUNK // stack.shape[1])
        if tau.numel() == 1 and float(tau) > 0 and not self.sliceable():
            return self.shrunk(stack, tau)
        if not self.sliceable() or stack.device.type != "cpu" or len(stack) <= rows:
            return torch.where(tau > 0, self.shrunk(stack, tau), stack)
        result, taus = fresh(stack), tau.expand(len(stack), -1)
        for start in range(0, len(stack), rows):
            part = slice(start, start + rows)
            result[part] = torch.where(taus[part] > 0, self.shrunk(stack[part], taus[part]), stack[part])
        return result


class Radial(Grouped):
    """Base of the regularizers of group norms, R(w) = sum_g r(||w_g||_2), with the r of a `Penalty`.

    The prox is radial, x_g = w_g shrink(||w_g||) / ||w_g||, so that r's global minimiser gives the group's.
    """

    def sliceable(self) -> bool:
        """Yes, unless groups have penalties of their own."""
        return True

    def penalty(self, count: int) -> Penalty:
        """r, for the norms of `count` groups, which come as (count, 1)."""
        raise NotImplementedError

    def formula(self) -> Formula | None:
        """The prox as one expression, for groups that need no copy."""
        return self._formula(_RadialProx(self.penalty(0)))

    def _formula(self, function: Callable[..., Tensor], *constants: Tensor) -> Formula | None:
        if self.strength == 0 or not isinstance(self.groups, Rows | Columns | Whole):
            return None
        return Formula(function, constants, view=self.groups.split, entrywise=False)

    def total(self, stack: Tensor) -> Tensor:
        """sum_g r(||w_g||)."""
        return self.penalty(len(stack)).profile(norms(stack)).sum()

    def shrunk(self, stack: Tensor, tau: Tensor) -> Tensor:
        """The prox, group by group."""
        tau = one_a_group(type(self).__name__, tau)
        # Penalties are asked for steps > 0 only; groups whose step is 0 are put back by the caller.
        tau = torch.where(tau > 0, tau, 1).expand(len(stack), 1)
        return radially_shrunk(stack, tau, self.penalty(len(stack)))

    def distance(self, w: Tensor, grad: Tensor) -> Tensor:
        """Distance of -grad to the (limiting) subdifferential at w, one number a group; 0 where stationary."""
        stack, slopes = self.groups.split(widened(w)), self.groups.split(widened(grad))
        norm = norms(stack)
        slope = self.penalty(len(stack)).slope(norm)
        at_zero = (norms(slopes) - slope).clamp(min=0)
        elsewhere = norms(slopes + slope * directions(stack, norm))
        return torch.where(norm == 0, at_zero, elsewhere).squeeze(1).to(stack.dtype)


class ConcaveRadial(Radial):
    """Base of the concave ones among them, which offer the factors of the next round's reweighted group lasso."""

    def factors(self, w: Tensor) -> Tensor:
        """Slopes of the tangent at ||w_g||, one a group: sum_g factors_g ||w_g|| majorises R up to a constant."""
        stack = self.groups.split(widened(w.detach()))
        return self.penalty(len(stack)).slope(norms(stack)).squeeze(1).to(stack.dtype)


def radially_shrunk(stack: Tensor, tau: Tensor, penalty: Penalty) -> Tensor:
    """x_g = w_g shrink(||w_g||) / ||w_g||."""
    norm = norms(stack)
    return stack * ratio(penalty.shrink(norm, tau), norm).to(stack.dtype)


@dataclass(frozen=True)
class _RadialProx:
    penalty: Penalty

    def __call__(self, stack: Tensor, tau: Tensor) -> Tensor:
        return radially_shrunk(stack, tau, self.penalty) + 0.0


def scales(stack: Tensor) -> Tensor:
    """The largest magnitude of each group, (groups, 1), 1 for groups of zeros: what keeps squares in range."""
    if stack.shape[1] == 0:
        return stack.new_ones(len(stack), 1)
    largest = stack.detach().abs().amax(1, keepdim=True)
    return torch.where(largest > 0, largest, 1)


def norms(stack: Tensor) -> Tensor:
    """The l2 norms of groups, (groups, 1), float64; no overflow and no underflow whatever the entries."""
    if stack.dtype == torch.float32:
        # Squares of float32 are within what float64 holds.
        plain: Tensor = torch.linalg.vector_norm(stack, dim=1, keepdim=True, dtype=torch.float64)
        return plain
    scale = scales(stack)
    scaled: Tensor = torch.linalg.vector_norm(stack / scale, dim=1, keepdim=True, dtype=torch.float64)
    return (scale.double() * scaled).clamp(max=_LARGEST)


def directions(stack: Tensor, norm: Tensor) -> Tensor:
    """w_g / ||w_g||, float64; zeros where the norm is 0."""
    return stack.double() / torch.where(norm > 0, norm, 1)


def ratio(shrunk: Tensor, norm: Tensor) -> Tensor:
    """shrunk / norm; 0 where the norm is."""
    return torch.where(norm > 0, shrunk / norm, 0)


def group_steps(step: float | Tensor, groups: Groups, w: Tensor) -> Tensor:
    """A prox step in float64 as (1, 1), (groups, 1), or (groups, size) where the entries of a group differ.

    A tensor of w's shape is one entry a weight; else one of shape (groups,) or (groups, 1) is one entry a group; else
    it broadcasts to w's shape. Raises ValueError where it does not.
    """
    if not isinstance(step, Tensor):
        return torch.full((1, 1), step, dtype=torch.float64, device=w.device)
    tau = step.detach().to(w.device, torch.float64)
    if tau.numel() == 1:
        return tau.reshape(1, 1)
    count = len(groups.split(w))
    if tau.shape != w.shape and tau.shape in ((count,), (count, 1)):
        return tau.reshape(-1, 1)
    try:
        tau = tau.expand(w.shape)
    except RuntimeError:
        raise ValueError(
            f"step of shape {tuple(tau.shape)} for weights of shape {tuple(w.shape)} in {count} groups; "
            f"give a number, one entry a group, or a shape that broadcasts to the weights'."
        ) from None
    stack = groups.split(tau)
    uniform = bool((stack == stack[:, :1]).all())
    return stack[:, :1] if uniform else stack


def one_a_group(owner: str, tau: Tensor) -> Tensor:
    """tau, (1, 1) or (groups, 1). Raises ValueError where the entries of a group have different steps."""
    if tau.shape[1] != 1:
        raise ValueError(
            f"{owner}.prox: step of {tau.shape[1]} entries a group that differ; give a number, or one entry a group."
        )
    return tau


def unchanged(w: Tensor) -> Tensor:
    """A contiguous copy of w with zeros as +0."""
    return w.clone(memory_format=torch.contiguous_format).add_(0.0)


def finished(result: Tensor, w: Tensor) -> Tensor:
    """A computed prox, a new tensor, in w's dtype and contiguous, with zeros as +0."""
    return result.to(w.dtype).contiguous().add_(0.0)


def metric_shrink(stack: Tensor, thresholds: Tensor) -> Tensor:
    """argmin_x sum_g ||x_g|| + sum_i (x_i - w_i)^2 / (2 t_i): the prox of the group norms in a diagonal metric.

    stack, thresholds: (groups, size), thresholds t >= 0. Where n = ||x_g|| > 0, x_i = w_i n / (n + t_i), and n solves
    S(n) = sum_i (w_i / (n + t_i))^2 = 1, which has a root iff S(0) > 1; else x_g = 0. Since 1 / sqrt(S) is increasing
    and concave, Newton's method on it rises to the root from any point below.
    """
    scale = scales(stack).double()
    u, t = stack.double().abs() / scale, thresholds / scale
    nonzero = u > 0
    exists = _quotients(u, t, nonzero).square().sum(1, keepdim=True) > 1
    # Three lower bounds: n >= 0; n + t_i >= |w_i| for every i; S(n) >= ||w||^2 / (n + max t)^2.
    norm = torch.linalg.vector_norm(u, dim=1, keepdim=True)
    lower = torch.maximum((u - t).amax(1, keepdim=True), norm - t.amax(1, keepdim=True)).clamp(min=0)
    n = torch.where(exists, lower, 1)
    for _ in range(_NEWTON_STEPS):
        squares = _quotients(u, n + t, nonzero).square()
        total = squares.sum(1, keepdim=True)
        excess = total.sqrt() - 1
        rise = total * excess / _quotients(squares, n + t, nonzero).sum(1, keepdim=True)
        open_ = exists & (excess > 2 * _EPSILON) & (rise > _EPSILON * n)
        n = torch.where(exists & (rise > 0), torch.minimum(n + rise, norm), n)
        if not bool(open_.any()):
            break
    factors = torch.where(nonzero & exists, n / (n + t), 0)
    return stack * factors.to(stack.dtype)


def _quotients(above: Tensor, below: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, above / below, 0)


def split_expression(groups: Groups, x: Any) -> Any:
    """A CVXPY expression as (groups, size), the way `groups` splits tensors."""
    cvxpy = load_cvxpy()
    positions = torch.arange(x.size).reshape(x.shape)
    index = groups.split(positions)
    flat = cvxpy.vec(x, order="C")[index.flatten().numpy()]
    return cvxpy.reshape(flat, tuple(index.shape), order="C")
