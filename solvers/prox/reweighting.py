"""Reweighting rules: from weights to the factors of the next round's convex penalty.

A rule is one majorise-minimise step for a concave penalty P, which it declares: with s the convex function that the
factors weight (|w_i|, ||w_g|| or w_i^2), P(x) <= P(w) + sum factors(w) (s(x) - s(w)). Minimising any f plus the right
hand side, over and over, never increases f + P.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from argprune.solvers.groups import Blocks, Elements, Groups, Rows
from argprune.solvers.prox.base import Formula, check_parameter, formula_of, widened
from argprune.solvers.registry import register

Surrogate = Literal["l1", "group-lasso", "squared-l2"]


@runtime_checkable
class Reweighting(Protocol):
    """A reweighting rule. Where what it majorises depends on the round's weights, an optional `at(w)` gives that rule.

    surrogate: what the factors weight: "l1" (sum f_i |w_i|), "group-lasso" (sum f_g ||w_g||) or "squared-l2"
    (sum f_i w_i^2, which makes no zeros). Where a factor depends on its own entry alone, a rule may say so by an
    attribute `entrywise`, true; it then also works on parts of a matrix.
    """

    surrogate: Surrogate

    def factors(self, w: Tensor) -> Tensor:
        """Factors for the next round, > 0: like w, or one a group."""

    def majorised(self, w: Tensor) -> Tensor:
        """The concave penalty P(w), a 0-dim tensor, up to a constant."""


@register(
    "reweightings", "log", examples=[{"eps": 0.3}, {"eps": 0.3, "normalise": False}, {"eps": 1e-3, "normalise": False}]
)
@dataclass(frozen=True)
class LogReweighting:
    """factors_i = 1 / (|w_i| + eps), one majorise-minimise step for the concave penalty sum_i log(|w_i| + eps).

    eps: > 0, in units of the weights; below the magnitudes that shall survive. At w_i = 0 the factor is 1 / eps, so a
    small eps makes zeros final. normalise: multiply by the matrix mean of |w| + eps, which keeps one strength
    meaningful from round to round and from matrix to matrix (the printed method has no such factor); the penalty that
    is majorised then changes by that factor from round to round. surrogate: which penalty the factors weigh.
    Reference: Candes, Wakin and Boyd (2008), section 2.2; Guo et al. (2019).

    >>> import torch
    >>> LogReweighting(eps=1.0, normalise=False).factors(torch.tensor([0.0, -1.0, 3.0]))
    tensor([1.0000, 0.5000, 0.2500])
    """

    eps: float
    normalise: bool = True
    surrogate: Surrogate = "l1"

    def __post_init__(self) -> None:
        check_parameter("LogReweighting", "eps", self.eps, strict=True)

    @property
    def entrywise(self) -> bool:
        """Whether it works on parts of a matrix: but for the mean, which `factors_of_part` is told."""
        return type(self) is LogReweighting or not self.normalise

    def factors(self, w: Tensor) -> Tensor:
        """Factors for the next round: a new tensor of w's shape, entries > 0."""
        distance = w.detach().abs() + self.eps
        return distance.mean() / distance if self.normalise else 1 / distance

    def factors_of_part(self, w: Tensor, mean: float) -> Tensor:
        """The same for a part of a matrix (w); mean: of |w| + eps over all of the matrix."""
        distance = w.detach().abs() + self.eps
        return mean / distance if self.normalise else 1 / distance

    def at(self, w: Tensor) -> LogReweighting | _Rescaled:
        """The rule of the round that begins at w: its penalty has the factor that `normalise` gives the factors."""
        if not self.normalise:
            return self
        return _Rescaled(LogReweighting(self.eps, normalise=False), float((w.detach().abs() + self.eps).mean()))

    def majorised(self, w: Tensor) -> Tensor:
        """sum_i log(1 + |w_i| / eps)."""
        return (widened(w).abs() / self.eps).log1p().sum()


@dataclass(frozen=True)
class _Rescaled:
    rule: LogReweighting
    scale: float
    surrogate: Surrogate = "l1"

    def factors(self, w: Tensor) -> Tensor:
        return self.scale * self.rule.factors(w)

    def majorised(self, w: Tensor) -> Tensor:
        return self.scale * self.rule.majorised(w)


@register("reweightings", "power", examples=[{"eps": 0.3}, {"eps": 0.3, "power": 1.0}, {"eps": 0.01, "power": 1.7}])
@dataclass(frozen=True)
class PowerReweighting:
    """factors_i = 1 / (|w_i| + eps)^power: for power < 1 the slope of (|w| + eps)^(1 - power) / (1 - power).

    eps: > 0, in units of the weights. power: > 0; 1 is `LogReweighting`, above 1 the penalty is bounded.
    surrogate: which penalty the factors weigh.
    Reference: Foucart and Lai (2009), reweighting for l_q with q = 1 - power.
    """

    eps: float
    power: float = 0.5
    surrogate: Surrogate = "l1"
    entrywise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_parameter("PowerReweighting", "eps", self.eps, strict=True)
        check_parameter("PowerReweighting", "power", self.power, strict=True)

    def factors(self, w: Tensor) -> Tensor:
        """Factors for the next round: a new tensor of w's shape, entries > 0."""
        return (w.detach().abs() + self.eps).pow(-self.power)

    def majorised(self, w: Tensor) -> Tensor:
        """sum_i ((|w_i| + eps)^(1 - power) - eps^(1 - power)) / (1 - power), its limit the logarithm at power 1."""
        u = widened(w).abs()
        if self.power == 1:
            return (u / self.eps).log1p().sum()
        left = 1 - self.power
        total: Tensor = ((u + self.eps).pow(left) - self.eps**left).sum()
        return total / left


@register("reweightings", "squared", examples=[{"eps": 0.3}])
@dataclass(frozen=True)
class SquaredReweighting:
    """factors_i = 1 / (w_i^2 + eps^2), weights of w_i^2: iteratively reweighted least squares for log(w^2 + eps^2).

    eps: > 0, in units of the weights. A weighted square shrinks but never reaches zero, so that nothing is pruned by
    it alone. surrogate: which penalty the factors weigh.
    Reference: Chartrand and Yin (2008), p = 0; the squared form of the reweighted group lasso's own group.
    """

    eps: float
    surrogate: Surrogate = "squared-l2"

    def __post_init__(self) -> None:
        check_parameter("SquaredReweighting", "eps", self.eps, strict=True)

    def factors(self, w: Tensor) -> Tensor:
        """Factors for the next round: a new tensor of w's shape, entries > 0."""
        return 1 / (w.detach().square() + self.eps**2)

    def majorised(self, w: Tensor) -> Tensor:
        """sum_i log(1 + w_i^2 / eps^2)."""
        return (widened(w) / self.eps).square().log1p().sum()


@register("reweightings", "group", examples=[{"eps": 0.3}, {"eps": 0.3, "power": 0.5, "groups": Blocks(2, 3)}])
@dataclass(frozen=True)
class GroupReweighting:
    """factors_g = 1 / (||w_g|| + eps)^power, one majorise-minimise step for sum_g of a concave function of the norms.

    eps: > 0, in units of a group's norm. groups: whose norms. power: > 0; at 1 the penalty is sum_g log(||w_g|| + eps).
    surrogate: which penalty the factors weigh.
    Reference: Li et al. (2020), the reweighting of block-structured pruning; Candes, Wakin and Boyd (2008).
    """

    eps: float
    groups: Groups = field(default=Rows())
    power: float = 1.0
    surrogate: Surrogate = "group-lasso"

    def __post_init__(self) -> None:
        check_parameter("GroupReweighting", "eps", self.eps, strict=True)
        check_parameter("GroupReweighting", "power", self.power, strict=True)

    def factors(self, w: Tensor) -> Tensor:
        """Factors for the next round: a 1-D tensor with one entry a group, > 0."""
        return PowerReweighting(self.eps, self.power).factors(self._norms(w.detach()))

    def majorised(self, w: Tensor) -> Tensor:
        """sum_g log(1 + ||w_g|| / eps), or the power's."""
        return PowerReweighting(self.eps, self.power).majorised(self._norms(widened(w)))

    def _norms(self, w: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(self.groups.split(w), dim=1)
        return norms


@register("reweightings", "quantile", examples=[{"quantile": 0.5}, {"quantile": 0.7, "groups": Rows()}])
@dataclass(frozen=True)
class QuantileReweighting:
    """`PowerReweighting` (for groups `GroupReweighting`) whose eps is a quantile of the magnitudes that it sees.

    quantile: in (0, 1); about the sparsity wanted puts eps at the border between what goes and what stays. floor: the
    least eps, > 0, for where most magnitudes are zero. power: as of
    those. Each round majorises the penalty of its own eps (`at`).
    Reference: Candes, Wakin and Boyd (2008), section 3.3, the adaptive choice of eps.
    """

    quantile: float
    floor: float = 1e-3
    power: float = 1.0
    groups: Groups = field(default=Elements())

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise ValueError(f"QuantileReweighting: quantile {self.quantile}; it must be in (0, 1).")
        check_parameter("QuantileReweighting", "floor", self.floor, strict=True)
        check_parameter("QuantileReweighting", "power", self.power, strict=True)

    @property
    def surrogate(self) -> Surrogate:
        """What the factors weight."""
        return "l1" if isinstance(self.groups, Elements) else "group-lasso"

    def at(self, w: Tensor) -> PowerReweighting | GroupReweighting:
        """The rule with the eps that w gives."""
        norms = torch.linalg.vector_norm(self.groups.split(widened(w.detach())), dim=1)
        # Rank by rounding, not interpolation: kthvalue has no limit on the number of entries.
        rank = min(norms.numel(), 1 + int(self.quantile * norms.numel()))
        eps = max(self.floor, float(norms.kthvalue(rank).values)) if norms.numel() else self.floor
        if isinstance(self.groups, Elements):
            return PowerReweighting(eps, self.power)
        return GroupReweighting(eps, self.groups, self.power)

    def factors(self, w: Tensor) -> Tensor:
        """Factors for the next round, with eps from w."""
        return self.at(w).factors(w)

    def majorised(self, w: Tensor) -> Tensor:
        """The penalty with eps from w."""
        return self.at(w).majorised(w)


@dataclass(frozen=True, eq=False)
class Reweighted:
    """sum_i factors_i r_i(w_i): a separable regularizer whose entries count `factors` times.

    regularizer: separable. factors: a tensor of the weights' shape, entries >= 0.
    The prox is the regularizer's with the step multiplied entry by entry, exact wherever that is.
    """

    regularizer: Any
    factors: Tensor
    separable: bool = True

    def __post_init__(self) -> None:
        if not getattr(self.regularizer, "separable", False):
            raise ValueError(f"Reweighted: {type(self.regularizer).__name__} is not separable; its entries are tied.")

    def value(self, w: Tensor) -> Tensor:
        """sum_i factors_i r_i(w_i), where the regularizer has a `profile`; else its plain value."""
        if not hasattr(self.regularizer, "profile"):
            value: Tensor = self.regularizer.value(w)
            return value
        weighted: Tensor = (self.factors * self.regularizer.profile(widened(w).abs())).sum()
        return weighted

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """The regularizer's prox at step * factors."""
        result: Tensor = self.regularizer.prox(w, self.factors * step)
        return result

    def prox_(self, w: Tensor, step: float | Tensor, part: slice | None = None) -> Tensor:
        """The same in place; w and a tensor step hold the entries `part` of the flattened tensor."""
        factors = self.factors if part is None else self.factors.view(-1)[part]
        if hasattr(self.regularizer, "prox_"):
            self.regularizer.prox_(w, factors * step)
        else:
            w.copy_(self.regularizer.prox(w, factors * step))
        return w

    def formula(self) -> Formula | None:
        """The prox as one expression, where the regularizer's is."""
        inner = formula_of(self.regularizer)
        if inner is None:
            return None
        factors = self.factors.contiguous().view(-1)
        return Formula(_ReweightedProx(inner.function), (factors, *inner.constants))

    def sampled(self, stride: int, start: int = 0) -> Reweighted:
        """The same function of every stride-th entry of the flattened tensor, from entry `start` on."""
        return Reweighted(self.regularizer, self.factors.flatten()[start::stride])


@dataclass(frozen=True, eq=False)
class Scaled:
    """R(w / scale): a regularizer whose parameters (eps, theta, gamma) are meant in units of `scale`.

    scale: > 0. prox(w, step) = scale * R.prox(w / scale, step / scale^2); a scale that is a power of two costs no
    rounding.
    """

    regularizer: Any
    scale: float

    def __post_init__(self) -> None:
        check_parameter("Scaled", "scale", self.scale, strict=True)

    @property
    def separable(self) -> bool:
        """Whether the regularizer is."""
        return bool(getattr(self.regularizer, "separable", False))

    def value(self, w: Tensor) -> Tensor:
        """R(w / scale)."""
        value: Tensor = self.regularizer.value(w / self.scale)
        return value

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """scale * R.prox(w / scale, step / scale^2)."""
        result: Tensor = self.regularizer.prox(w.detach() / self.scale, step / self.scale**2)
        return result.mul_(self.scale)

    def prox_(self, w: Tensor, step: float | Tensor, part: slice | None = None) -> Tensor:
        """The same in place."""
        step = step / self.scale**2
        w.div_(self.scale)
        if hasattr(self.regularizer, "prox_"):
            self.regularizer.prox_(w, step, part) if part is not None else self.regularizer.prox_(w, step)
        else:
            w.copy_(self.regularizer.prox(w, step))
        return w.mul_(self.scale)

    def formula(self) -> Formula | None:
        """The prox as one expression, where the regularizer's is; every scale has the same."""
        inner = formula_of(self.regularizer)
        if inner is None:
            return None
        scale = torch.tensor(self.scale, dtype=torch.float64)
        return inner._replace(function=_ScaledProx(inner.function), constants=(scale, *inner.constants))

    def sampled(self, stride: int, start: int = 0) -> Scaled:
        """The same function of every stride-th entry of the flattened tensor, from entry `start` on."""
        inner = self.regularizer.sampled(stride, start) if hasattr(self.regularizer, "sampled") else self.regularizer
        return Scaled(inner, self.scale)


@dataclass(frozen=True)
class _ReweightedProx:
    function: Callable[..., Tensor]

    def __call__(self, w: Tensor, tau: Tensor, factors: Tensor, *constants: Tensor) -> Tensor:
        # Where a factor is 0 nothing changes; the functions take steps > 0 only.
        shrunk = self.function(w, torch.where(factors > 0, tau * factors, 1), *constants)
        return torch.where(factors > 0, shrunk, w) + 0.0


@dataclass(frozen=True)
class _ScaledProx:
    function: Callable[..., Tensor]

    def __call__(self, w: Tensor, tau: Tensor, scale: Tensor, *constants: Tensor) -> Tensor:
        return self.function(w / scale, tau / scale.square(), *constants) * scale + 0.0
