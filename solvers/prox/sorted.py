"""Norms of the sorted magnitudes |w|_(1) >= |w|_(2) >= ...: SLOPE (sorted l1, OWL) and the k-support norm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from argprune.solvers.groups import Groups, Rows, Whole
from argprune.solvers.prox.base import check_parameter, load_cvxpy, widened
from argprune.solvers.prox.radial import Grouped, group_steps, one_a_group, scales, split_expression
from argprune.solvers.registry import register

Shape = Literal["linear", "oscar", "bh"]


@register(
    "regularizers",
    "slope",
    examples=[
        {"strength": 0.7},
        {"strength": 0.2, "shape": "oscar", "amount": 0.3},
        {"strength": 0.5, "shape": "bh", "amount": 0.4, "groups": Rows()},
    ],
)
@dataclass(frozen=True, eq=False)
class SLOPE(Grouped):
    """The sorted l1 norm, R(w) = strength * sum_g sum_i factors_i |w_g|_(i), factors nonincreasing: SLOPE, OWL.

    w: float tensor that `groups` can split; strength >= 0. factors: a 1-D tensor of a group's size, finite,
    nonincreasing and >= 0, or None for those of a shape, of n entries: "linear", from 1 down to amount in [0, 1];
    "oscar", 1 + amount (n - i), amount >= 0; "bh", Phi^-1(1 - amount i / (2 n)), amount in (0, 1].
    Convex; the prox sorts, and runs an isotonic regression over the entries that stay (both on the CPU, the latter one
    group after another); exact for every step >= 0, a number or one entry a group.
    Reference: Bogdan et al. (2015), "SLOPE - adaptive variable selection via convex optimization", algorithm 3;
    Bondell and Reich (2008) for OSCAR.
    """

    strength: float
    shape: Shape = "linear"
    amount: float = 0.5
    factors: Tensor | None = None
    groups: Groups = field(default=Whole())
    convex: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_parameter("SLOPE", "strength", self.strength)
        if self.shape not in get_args(Shape):
            raise ValueError(f"SLOPE: shape {self.shape!r}; choose from {', '.join(get_args(Shape))}.")
        check_parameter("SLOPE", "amount", self.amount, strict=self.shape == "bh")
        if self.shape != "oscar" and self.amount > 1:
            raise ValueError(f"SLOPE: amount {self.amount}; for shape {self.shape!r} it must be <= 1.")
        given = self.factors
        if given is not None and not (
            given.dim() == 1 and bool((given.isfinite() & (given >= 0)).all()) and bool((given[1:] <= given[:-1]).all())
        ):
            raise ValueError("SLOPE: factors must be a 1-D tensor of finite entries >= 0, from largest to smallest.")

    def _factors(self, size: int, device: torch.device) -> Tensor:
        """float64 (size,)."""
        if self.factors is not None:
            if len(self.factors) != size:
                raise ValueError(f"SLOPE: {len(self.factors)} factors for groups of {size} entries; give one an entry.")
            return self.factors.detach().to(device=device, dtype=torch.float64)
        rank = torch.arange(1, size + 1, dtype=torch.float64, device=device)
        if self.shape == "linear":
            return 1 - (1 - self.amount) * (rank - 1) / max(size - 1, 1)
        if self.shape == "oscar":
            return 1 + self.amount * (size - rank)
        quantiles: Tensor = torch.special.ndtri(self.amount * rank / (2 * size))
        return -quantiles

    def total(self, stack: Tensor) -> Tensor:
        """strength * sum_g sum_i factors_i |w_g|_(i)."""
        ordered = stack.double().abs().sort(dim=1, descending=True).values
        return (self.strength * self._factors(stack.shape[1], stack.device) * ordered).sum()

    def shrunk(self, stack: Tensor, tau: Tensor) -> Tensor:
        """Isotonic regression of the sorted magnitudes less step * strength * factors, its negative part cut off."""
        decreasing, excess, scale = self._sorted(stack, tau)
        magnitudes = stack.abs().cpu().numpy()
        result = np.zeros_like(magnitudes)
        for row, last in enumerate(_last_positive(excess)):
            if last >= 0:
                # What comes after is zero, so that only the entries up to there need their order.
                places = np.flatnonzero(magnitudes[row] >= decreasing[row, last])
                places = places[_decreasing_order(magnitudes[row, places])]
                result[row, places] = _nonincreasing(excess[row, : len(places)]).clip(min=0) * scale[row]
        shrunk = torch.from_numpy(result).to(stack.device).copysign_(stack)
        # The largest magnitude of a group that holds a NaN is NaN.
        return torch.where(stack.isnan(), stack, shrunk) if np.isnan(decreasing[:, 0]).any() else shrunk

    def zeros(self, w: Tensor, step: float | Tensor) -> int:
        """How many entries the prox makes zero; in a fraction of its time."""
        stack = self.groups.split(widened(w.detach()))
        if self.strength == 0 or stack.numel() == 0:
            return int((w == 0).sum())
        _, excess, _ = self._sorted(stack, group_steps(step, self.groups, w))
        return stack.numel() - int((_last_positive(excess) + 1).sum())

    def _sorted(self, stack: Tensor, tau: Tensor) -> tuple[Any, Any, Any]:
        """Magnitudes from largest to smallest; less their thresholds, in units of a group's largest; those units."""
        tau = one_a_group("SLOPE", tau).cpu()
        scale = scales(stack).double().cpu()
        decreasing = np.sort(stack.abs().cpu().numpy(), axis=1)[:, ::-1]
        # Any larger threshold makes the group zero too, and infinite ones would make NaN.
        limits = (self.strength * tau / scale * self._factors(stack.shape[1], tau.device)).clamp(max=1e200).numpy()
        return decreasing, decreasing / scale.numpy() - limits, scale.numpy()

    def expression(self, x: Any) -> Any:
        """The same function of a CVXPY variable: a sum of norms of the k largest, by the factors' differences."""
        cvxpy = load_cvxpy()
        stack = cvxpy.abs(split_expression(self.groups, x))
        rows, size = stack.shape
        factors = self._factors(size, torch.device("cpu"))
        # The last term is a plain sum, which sum_largest of all entries, in CVXPY 1.9, fails to be.
        total = factors[-1].item() * cvxpy.sum(stack)
        for k, difference in enumerate((factors[:-1] - factors[1:]).tolist(), start=1):
            if difference > 0:
                total = total + difference * sum(cvxpy.sum_largest(stack[row], k) for row in range(rows))
        return self.strength * total


@register(
    "regularizers",
    "k_support",
    examples=[{"strength": 0.7, "k": 3}, {"strength": 2.0, "k": 2, "groups": Rows()}, {"strength": 0.5, "k": 1}],
)
@dataclass(frozen=True)
class KSupport(Grouped):
    """Half the squared k-support norm, R(w) = strength / 2 * sum_g (||w_g||_k^sp)^2: elastic nets tightened to k.

    The norm's unit ball is the convex hull of the vectors with at most k nonzeros and l2 norm <= 1. R is the square,
    not the norm itself: 1/2 ||w||_1^2 for k = 1, the ridge 1/2 ||w||_2^2 for k >= a group's size.
    w: float tensor that `groups` can split; strength >= 0, in units of loss per squared unit of weight; k >= 1.
    Convex; the prox is found among sorted breakpoints, exact for every step >= 0, a number or one entry a group.
    Reference: Argyriou, Foygel and Srebro (2012), "Sparse prediction with the k-support norm", propositions 2.1 and 5.1
    """

    strength: float
    k: int = 1
    groups: Groups = field(default=Whole())
    convex: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_parameter("KSupport", "strength", self.strength)
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"KSupport: k {self.k!r}; it must be an integer >= 1.")

    def total(self, stack: Tensor) -> Tensor:
        """strength / 2 * the squared norms."""
        k = min(self.k, stack.shape[1])
        scale = scales(stack).double()
        u = (stack.double().abs() / scale).sort(dim=1, descending=True).values
        tails = u.flip(1).cumsum(1).flip(1)
        places = k - torch.arange(k, device=u.device)
        # The entries that count by their squares: as many as exceed what is left, shared by the places left.
        alone = (u[:, :k] * places > tails[:, :k]).sum(1, keepdim=True).clamp(max=k - 1)
        squares = pad(u.square().cumsum(1), (1, 0)).gather(1, alone)
        squares = squares + tails.gather(1, alone).square() / (k - alone)
        # In this order, strength 0 gives 0 where the square alone would overflow.
        return (self.strength / 2 * scale * squares * scale).sum()

    def shrunk(self, stack: Tensor, tau: Tensor) -> Tensor:
        """x_i = w_i theta_i / (theta_i + c), with c = strength * step and theta in [0, 1]^n, sum k, the best of all."""
        scale = scales(stack).double()
        c = (self.strength * one_a_group("KSupport", tau)).clamp(max=1e100)
        u = stack.double().abs() / scale
        x = torch.where((u > 0).sum(1, keepdim=True) <= self.k, u / (1 + c), _k_support(u, c, self.k))
        return (x * scale).copysign(stack)

    def expression(self, x: Any) -> Any:
        """The same function of a CVXPY variable; for 1 < k < size its `value` is a solver's, to about 1e-6."""
        cvxpy = load_cvxpy()
        stack = split_expression(self.groups, x)
        rows, size = stack.shape
        if self.k >= size:
            return self.strength / 2 * cvxpy.sum_squares(stack)
        if self.k == 1:
            return self.strength / 2 * cvxpy.sum_squares(cvxpy.sum(cvxpy.abs(stack), axis=1))
        # sup over a of <a, w> - (sum of the k largest a_i^2) / 2, as a support function: at (w, -1), of an epigraph.
        a = cvxpy.Variable(size + 1)
        supremum = cvxpy.suppfunc(a, [cvxpy.sum_largest(cvxpy.square(a[:size]), self.k) / 2 <= a[size]])
        return self.strength * sum(supremum(cvxpy.hstack([stack[row], np.array([-1.0])])) for row in range(rows))


def _nonincreasing(z: Any) -> Any:
    """The projection of an array onto the nonincreasing sequences."""
    from scipy.optimize import isotonic_regression

    return isotonic_regression(z, increasing=False).x


def _decreasing_order(magnitudes: Any) -> Any:
    """Indices that sort an array of magnitudes from largest to smallest."""
    if magnitudes.dtype != np.float32:
        return np.argsort(-magnitudes)
    # A magnitude's bits are ordered as it is, and NumPy sorts integers much faster than it finds an order of floats.
    low = np.uint64(32)
    keys = magnitudes.view(np.uint32).astype(np.uint64) << low | np.arange(len(magnitudes), dtype=np.uint64)
    keys.sort()
    return (keys[::-1] & np.uint64(2**32 - 1)).astype(np.int64)


def _last_positive(excess: Any) -> Any:
    """Row by row, the last index at which the nonincreasing projection is positive; -1 where it is nowhere.

    The projection is the slope of the least concave majorant of the partial sums, which rises up to their maximum.
    """
    sums = np.cumsum(excess, axis=1)
    last = np.argmax(sums, axis=1)
    return np.where(np.take_along_axis(sums, last[:, None], 1)[:, 0] > 0, last, -1)


def _k_support(u: Tensor, c: Tensor, k: int) -> Tensor:
    """The prox of rows with more than k nonzeros and largest entry 1; c > 0, (1, 1) or (rows, 1).

    theta_i = u_i q - c clipped to [0, 1], and x_i = theta_i / q where it is not; q, here c + p, makes theta sum to k.
    In p, theta_i = p u_i - c (1 - u_i), nothing cancels for large c.
    """
    ordered = u.sort(dim=1, descending=True).values
    falls = c * (1 - ordered)
    # Where an entry enters (theta leaves 0), and where it is full (theta reaches 1); both nondecreasing along a row.
    enters, fills = (torch.where(ordered > 0, each / ordered, torch.inf) for each in (falls, 1 + falls))
    # Stable, so that no entry is full before it has entered.
    points, order = torch.cat([enters, fills], dim=1).sort(dim=1, stable=True)
    enter = order < u.shape[1]
    entered, full = enter.cumsum(1), (~enter).cumsum(1)
    # Summed from the small end, so that differences keep the digits of small entries.
    tails = pad(ordered.flip(1).cumsum(1).flip(1), (0, 1))
    fallen = pad(falls.cumsum(1), (1, 0))
    slope = tails.gather(1, full) - tails.gather(1, entered)
    offset = full - (fallen.gather(1, entered) - fallen.gather(1, full))
    below = torch.where(slope > 0, points * slope, 0) + offset <= k
    last = (below & points.isfinite()).sum(1, keepdim=True).clamp(min=1) - 1
    slope, offset = slope.gather(1, last), offset.gather(1, last)
    p = torch.where(slope > 0, (k - offset) / slope, points.gather(1, last))
    theta = p * u - c * (1 - u)
    return torch.where(theta >= 1, u / (1 + c), theta.clamp(min=0) / (c + p))
