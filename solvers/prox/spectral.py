"""Functions of the singular values of a matrix: nuclear norms, rank, spectral norm, and the set of bounded rank.

With W = U diag(s) V^T, each prox keeps the singular vectors and acts on s alone. All take matrices only (ValueError)
and one step for all entries. The decomposition is computed in float32 or float64 (bfloat16 and float16 in float32), on
W divided by a power of two, so that no entry is too large or too small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from argprune.solvers.prox.balls import onto_simplex
from argprune.solvers.prox.base import check_parameter, load_cvxpy, widened
from argprune.solvers.prox.sets import check_count, indicator, power_of_two, scalar_step
from argprune.solvers.registry import register


@register("regularizers", "nuclear", examples=[{"strength": 0.7}, {"strength": 0.0}])
@dataclass(frozen=True)
class Nuclear:
    """The nuclear norm, R(W) = strength * sum_i s_i(W).

    W: float matrix; strength >= 0. Convex; the prox soft-thresholds the singular values at step * strength, exact for
    every step >= 0, one step for all entries.
    Reference: Cai, Candes and Shen (2010), "A singular value thresholding algorithm", theorem 2.1.
    """

    strength: float
    convex: ClassVar[bool] = True
    separable: ClassVar[bool] = False
    spectral: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_parameter("Nuclear", "strength", self.strength)

    def value(self, w: Tensor) -> Tensor:
        """strength * sum_i s_i."""
        return _weighted_sum("Nuclear", w, self.strength)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Soft threshold of the singular values."""
        return _soft_threshold("Nuclear", w, scalar_step("Nuclear", step), self.strength)

    def distance(self, w: Tensor, grad: Tensor) -> Tensor:
        """Distance (Frobenius norm, 0-dim) of -grad to the subdifferential at w, whose rank is the numerical one."""
        decomposed = _Singular("Nuclear", w)
        left, right = decomposed.leading(decomposed.values > decomposed.rounding())
        grad = widened(grad.detach())
        # Off both singular subspaces the subdifferential is a ball of the spectral norm; elsewhere it is one point.
        corner = grad - left @ (left.mT @ grad)
        corner = corner - (corner @ right) @ right.mT
        excess = (torch.linalg.svdvals(corner) - self.strength).clamp(min=0)
        rest = grad - corner + self.strength * left @ right.mT
        return torch.hypot(_norm(rest), _norm(excess))

    def expression(self, x: Any) -> Any:
        """The same function of a CVXPY variable."""
        return self.strength * load_cvxpy().normNuc(x)


@register(
    "regularizers",
    "weighted_nuclear",
    examples=[{"strength": 0.5, "weights": (0.0, 1.0, 3.0)}, {"strength": 0.7, "weights": (1.0,)}],
)
@dataclass(frozen=True)
class WeightedNuclear:
    """The weighted nuclear norm, R(W) = strength * sum_i weights_i s_i(W), s_1 >= s_2 >= ...

    W: float matrix; strength >= 0; weights: finite, >= 0, nondecreasing (ValueError), so that large singular values are
    shrunk less; where there are more singular values than weights, the last weight stands for the rest. Not convex
    unless all are equal; the prox is still exact for every step >= 0: soft threshold of s_i at step * strength *
    weights_i. For weights in another order no closed form is known. One step for all entries.
    Reference: Chen, Dong and Chan (2013), "Reduced rank regression via adaptive nuclear norm penalization", theorem
    2.1; Gu, Zhang, Zuo and Feng (2014), "Weighted nuclear norm minimization".
    """

    strength: float
    weights: tuple[float, ...]
    convex: ClassVar[bool] = False
    separable: ClassVar[bool] = False
    spectral: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_parameter("WeightedNuclear", "strength", self.strength)
        object.__setattr__(self, "weights", tuple(float(weight) for weight in self.weights))
        if not self.weights:
            raise ValueError("WeightedNuclear: no weights; give at least one, for the largest singular value.")
        for weight in self.weights:
            check_parameter("WeightedNuclear", "weights hold", weight)
        if list(self.weights) != sorted(self.weights):
            raise ValueError(
                f"WeightedNuclear: weights {self.weights}; the closed form needs them nondecreasing, from the largest "
                "singular value to the smallest."
            )

    def value(self, w: Tensor) -> Tensor:
        """strength * sum_i weights_i s_i."""
        return _weighted_sum("WeightedNuclear", w, self.strength, self.weights)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Soft threshold of the singular values, each at its own weight."""
        return _soft_threshold("WeightedNuclear", w, scalar_step("WeightedNuclear", step), self.strength, self.weights)


@register("regularizers", "rank", examples=[{"strength": 0.7}, {"strength": 0.0}])
@dataclass(frozen=True)
class Rank:
    """The rank, R(W) = strength * rank(W).

    W: float matrix; strength >= 0, in units of loss per unit of rank. Not convex; the prox keeps the singular values
    above sqrt(2 step strength), the global minimiser for every step >= 0, one step for all entries. The value counts
    the singular values that exceed rounding, see `RankBall`.
    Reference: Eckart and Young (1936); Mirsky (1960).
    """

    strength: float
    convex: ClassVar[bool] = False
    separable: ClassVar[bool] = False
    spectral: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_parameter("Rank", "strength", self.strength)

    def value(self, w: Tensor) -> Tensor:
        """strength times the numerical rank."""
        return self.strength * _Singular("Rank", w).rank().to(widened(w).dtype)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Hard threshold of the singular values."""
        tau = scalar_step("Rank", step)
        decomposed = _Singular("Rank", w)
        # The product under the root may overflow; the product of roots cannot.
        cut = math.sqrt(2) * math.sqrt(tau) * math.sqrt(self.strength) / decomposed.scale
        return decomposed.truncated(decomposed.values > cut)


@register("regularizers", "spectral_norm", examples=[{"strength": 0.7}, {"strength": 0.0}])
@dataclass(frozen=True)
class SpectralNorm:
    """The spectral norm, R(W) = strength * s_1(W), the largest singular value.

    W: float matrix; strength >= 0. Convex; by Moreau's identity the prox is W less the projection onto the nuclear norm
    ball of radius step * strength: singular values are clipped at a level found by sorting. Exact for every step >= 0,
    one step for all entries.
    Reference: Parikh and Boyd (2014), "Proximal algorithms", section 6.7.
    """

    strength: float
    convex: ClassVar[bool] = True
    separable: ClassVar[bool] = False
    spectral: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_parameter("SpectralNorm", "strength", self.strength)

    def value(self, w: Tensor) -> Tensor:
        """strength * s_1."""
        return _weighted_sum("SpectralNorm", w, self.strength, (1.0, 0.0))

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Clips the largest singular values."""
        tau = scalar_step("SpectralNorm", step) * self.strength
        decomposed = _Singular("SpectralNorm", w)
        if tau == 0 or not len(decomposed.values):
            return decomposed.unchanged()
        values = decomposed.values.double()
        radius = tau / decomposed.scale
        if float(values.sum()) <= radius:
            return torch.zeros_like(decomposed.original)
        level = (values - onto_simplex(values, radius))[0].clamp(min=0)
        return decomposed.with_values(torch.minimum(values, level))

    def distance(self, w: Tensor, grad: Tensor) -> Tensor:
        """Distance (Frobenius norm, 0-dim) of -grad to the subdifferential at w, with numerical multiplicity of s_1."""
        decomposed = _Singular("SpectralNorm", w)
        grad = widened(grad.detach())
        if not len(decomposed.values):
            return _norm(grad)
        if float(decomposed.values[0]) == 0:
            # At 0 the subdifferential is the ball of the dual norm.
            values = torch.linalg.svdvals(grad).double()
            inside = values.sum() <= self.strength
            nearest = torch.where(inside, values, onto_simplex(values, self.strength))
            return _norm(values - nearest).to(grad.dtype)
        # Values that a prox made equal differ by the rounding of the product and of its decomposition.
        left, right = decomposed.leading(decomposed.values >= decomposed.values[0] - 4 * decomposed.rounding())
        # Else it is strength * U1 H V1^T over the positive semidefinite H of trace 1, on the singular space of s_1.
        core = -(left.mT @ grad @ right)
        outside = _norm(grad + left @ core @ right.mT)
        spectrum = torch.linalg.eigvalsh((core + core.mT) / 2).double()
        apart = _norm(spectrum - onto_simplex(spectrum, self.strength)).to(grad.dtype)
        return _norm(torch.stack([outside, apart, _norm(core - core.mT) / 2]))

    def expression(self, x: Any) -> Any:
        """The same function of a CVXPY variable."""
        return self.strength * load_cvxpy().sigma_max(x)


@register("constraints", "rank_ball", examples=[{"rank": 1}, {"rank": 2}, {"rank": 10}])
@dataclass(frozen=True)
class RankBall:
    """Matrices of rank at most `rank`; rank >= 0.

    W: float matrix. Not convex; the projection is the truncated singular value decomposition, for every step, one step
    for all entries. A singular value counts where it exceeds max(rows, columns) eps s_1, the usual numerical rank, plus
    eps / 2 ||W||_F for W's own dtype, which rounding the entries of a matrix of low rank may add.
    Reference: Eckart and Young (1936), "The approximation of one matrix by another of lower rank".
    """

    rank: int
    convex: ClassVar[bool] = False
    separable: ClassVar[bool] = False
    indicator: ClassVar[bool] = True
    spectral: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("RankBall", "rank", self.rank, "a rank")

    def value(self, w: Tensor) -> Tensor:
        """0 if the numerical rank is at most `rank`, else inf."""
        return indicator(_Singular("RankBall", w).rank() <= self.rank, w)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Projection: the `rank` largest singular values and their vectors."""
        scalar_step("RankBall", step)
        decomposed = _Singular("RankBall", w)
        order = torch.arange(len(decomposed.values), device=w.device)
        return decomposed.truncated(order < self.rank)


class _Singular:
    """The singular value decomposition of a matrix over a power of two, `scale`; `values` are those of the quotient."""

    def __init__(self, owner: str, w: Tensor) -> None:
        if w.dim() != 2:
            raise ValueError(f"{owner}: a tensor of shape {tuple(w.shape)}; singular values are those of a matrix.")
        self.original = w.detach()
        wide = widened(self.original)
        scale = power_of_two(wide.abs().amax()) if w.numel() else wide.new_ones(())
        self.scale = float(scale)
        self.values: Tensor
        self._left: Tensor
        self._right: Tensor
        self._left, self.values, self._right = torch.linalg.svd(wide / scale, full_matrices=False)
        self._scale = scale

    def rounding(self) -> Tensor:
        """What rounding may add to a singular value that is 0 or repeated, in units of `values`."""
        info = torch.finfo(self.original.dtype)
        largest = self.values.amax() if len(self.values) else self.values.new_zeros(())
        relative = max(self.original.shape) * torch.finfo(self.values.dtype).eps * largest
        # Below the smallest normal number entries are rounded to multiples of the smallest of all.
        absolute = math.sqrt(self.original.numel()) * (info.smallest_normal / self.scale * info.eps)
        return relative + info.eps / 2 * _norm(self.values) + absolute

    def rank(self) -> Tensor:
        """The numerical rank."""
        return (self.values > self.rounding()).sum()

    def leading(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Left and right singular vectors, as columns, of the chosen values."""
        return self._left[:, chosen], self._right[chosen].mT

    def with_values(self, values: Tensor) -> Tensor:
        """The matrix with other singular values, in the dtype of the original."""
        # Adding 0 turns -0 into +0.
        product = (self._left * values.to(self._left.dtype)) @ self._right
        return (product * self._scale).to(self.original.dtype).add_(0.0)

    def truncated(self, kept: Tensor) -> Tensor:
        """The matrix without the singular values that are not kept; bit by bit the original where none is lost."""
        if not bool((self.values * ~kept).any()):
            return self.unchanged()
        return self.with_values(torch.where(kept, self.values, 0))

    def unchanged(self) -> Tensor:
        """A copy of the original."""
        return self.original.clone(memory_format=torch.contiguous_format).add_(0.0)


def _weighted_sum(owner: str, w: Tensor, strength: float, weights: Sequence[float] = (1.0,)) -> Tensor:
    decomposed = _Singular(owner, w)
    # The scale last: 0 times a sum that overflows is not 0.
    return strength * (_spread(weights, decomposed.values) * decomposed.values).sum() * decomposed.scale


def _soft_threshold(owner: str, w: Tensor, step: float, strength: float, weights: Sequence[float] = (1.0,)) -> Tensor:
    decomposed = _Singular(owner, w)
    if step * strength == 0:
        return decomposed.unchanged()
    # As 0 * inf is no number, products are capped at what exceeds every singular value of a scaled matrix.
    factors = _spread(weights, decomposed.values)
    thresholds = (factors * min(step * strength / decomposed.scale, 1e30)).clamp(max=1e30)
    return decomposed.with_values((decomposed.values - thresholds).clamp(min=0))


def _spread(weights: Sequence[float], values: Tensor) -> Tensor:
    """One weight a singular value; the last weight stands for those beyond."""
    index = torch.arange(len(values), device=values.device).clamp(max=len(weights) - 1)
    return values.new_tensor(weights)[index]


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x)
    return norm
