"""Smooth concave penalties of magnitudes: logarithm, Geman, exponential (Laplace), transformed l1.

With mu = step strength, a minimiser v > 0 is the largest root of the stationarity condition v - u + mu r'(v) = 0, here
with r at strength 1; it competes with 0 and wins where mu r(v) / v < u - v / 2. Where step is so small that the
objective is convex, it is the minimiser whenever it is positive and nothing is compared. Each root is computed as
u less a correction of known sign, which keeps its digits at every scale of u.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from argprune.solvers.prox.base import Penalty, check_parameter
from argprune.solvers.registry import register


@register("regularizers", "log_sum", examples=[{"strength": 0.7, "eps": 0.5}, {"strength": 0.3, "eps": 2.0}])
@dataclass(frozen=True)
class LogSum(Penalty):
    """The log-sum penalty: r(u) = strength log(1 + u / eps).

    w: float tensor of any shape; strength >= 0; eps > 0, in units of the weights.
    Concave in |w|; the prox is the global minimiser for every step. As a reweighting rule: factors =
    strength / (|w| + eps), those of `LogReweighting`, whose majorised penalty this is.
    Reference: Candes, Wakin and Boyd (2008), section 2.2; Gong et al. (2013), "GIST", table 2.
    """

    strength: float
    eps: float

    def __post_init__(self) -> None:
        check_parameter("LogSum", "strength", self.strength)
        check_parameter("LogSum", "eps", self.eps, strict=True)

    def profile(self, u: Tensor) -> Tensor:
        """r(u)."""
        return self.strength * _log_one_plus(u, self.eps)

    def slope(self, u: Tensor) -> Tensor:
        """r'(u) = strength / (u + eps)."""
        return self.strength / (u + self.eps)

    def shrink(self, u: Tensor, step: float | Tensor) -> Tensor:
        """The larger root of (v - u) (v + eps) + mu = 0, or 0."""
        mu = torch.as_tensor(step * self.strength, dtype=u.dtype, device=u.device)
        size, root = u + self.eps, mu.sqrt()
        # The discriminant over size^2; negative where there is no root, and v is then NaN and loses below.
        gap = 1 - 2 * root / size
        v = u - 2 * root * (root / (size * (1 + (gap * (2 - gap)).sqrt())))
        return torch.where((v > 0) & ((root <= self.eps) | (mu * _log_one_plus(v, self.eps) / v < u - v / 2)), v, 0)


@register("regularizers", "geman", examples=[{"strength": 0.7, "eps": 0.5}, {"strength": 0.3, "eps": 2.0}])
@dataclass(frozen=True)
class Geman(Penalty):
    """The Geman penalty: r(u) = strength u / (u + eps), at most strength.

    w: float tensor of any shape; strength >= 0; eps > 0, in units of the weights: r(eps) is half of strength.
    Concave in |w|; the prox is the global minimiser for every step. As a reweighting rule: factors =
    strength eps / (|w| + eps)^2.
    Reference: Geman and Reynolds (1992); Lu et al. (2014), "Generalized nonconvex nonsmooth low-rank minimization".
    """

    strength: float
    eps: float

    def __post_init__(self) -> None:
        check_parameter("Geman", "strength", self.strength)
        check_parameter("Geman", "eps", self.eps, strict=True)

    def profile(self, u: Tensor) -> Tensor:
        """r(u)."""
        return self.strength * (u / (u + self.eps))

    def slope(self, u: Tensor) -> Tensor:
        """r'(u) = strength eps / (u + eps)^2."""
        return _geman_slope(u, self.strength, self.eps)

    def shrink(self, u: Tensor, step: float | Tensor) -> Tensor:
        """The largest root of a cubic, or 0."""
        return _geman_shrink(u, step * self.strength, self.eps)


@register("regularizers", "transformed_l1", examples=[{"strength": 0.7, "beta": 0.5}, {"strength": 0.3, "beta": 3.0}])
@dataclass(frozen=True)
class TransformedL1(Penalty):
    """Transformed l1: r(u) = strength (beta + 1) u / (beta + u), between l0 (beta -> 0) and l1 (beta -> inf).

    w: float tensor of any shape; strength >= 0; beta > 0, in units of the weights; r(1) = strength.
    Concave in |w|; the prox is the global minimiser for every step: `Geman` with eps = beta and strength (beta + 1).
    As a reweighting rule: factors = strength (beta + 1) beta / (beta + |w|)^2.
    Reference: Zhang and Xin (2017), "Minimization of transformed l1 penalty: closed form representation and iterative
    thresholding algorithms", theorem 1.
    """

    strength: float
    beta: float = 1.0

    def __post_init__(self) -> None:
        check_parameter("TransformedL1", "strength", self.strength)
        check_parameter("TransformedL1", "beta", self.beta, strict=True)

    def profile(self, u: Tensor) -> Tensor:
        """r(u)."""
        return self.strength * (self.beta + 1) * (u / (u + self.beta))

    def slope(self, u: Tensor) -> Tensor:
        """r'(u) = strength (beta + 1) beta / (u + beta)^2."""
        return _geman_slope(u, self.strength * (self.beta + 1), self.beta)

    def shrink(self, u: Tensor, step: float | Tensor) -> Tensor:
        """The largest root of a cubic, or 0."""
        return _geman_shrink(u, step * (self.strength * (self.beta + 1)), self.beta)


@register("regularizers", "laplace", examples=[{"strength": 0.7, "eps": 0.5}, {"strength": 0.3, "eps": 2.0}])
@dataclass(frozen=True)
class Laplace(Penalty):
    """The exponential (Laplace) penalty: r(u) = strength (1 - exp(-u / eps)), at most strength.

    w: float tensor of any shape; strength >= 0; eps > 0, in units of the weights.
    Concave in |w|; the prox is the global minimiser for every step. As a reweighting rule: factors =
    strength exp(-|w| / eps) / eps, those of feature selection concave (Bradley and Mangasarian 1998).
    Reference: Trzasko and Manduca (2009), "Highly undersampled magnetic resonance image reconstruction via homotopic
    l0-minimization"; the root by Lambert's function, Corless et al. (1996), equation 4.22.
    """

    strength: float
    eps: float

    def __post_init__(self) -> None:
        check_parameter("Laplace", "strength", self.strength)
        check_parameter("Laplace", "eps", self.eps, strict=True)

    def profile(self, u: Tensor) -> Tensor:
        """r(u)."""
        return -self.strength * torch.expm1(-u / self.eps)

    def slope(self, u: Tensor) -> Tensor:
        """r'(u) = strength exp(-u / eps) / eps."""
        return (self.strength / self.eps) * torch.exp(-u / self.eps)

    def shrink(self, u: Tensor, step: float | Tensor) -> Tensor:
        """u + eps W(-mu exp(-u / eps) / eps^2) with the principal branch of Lambert's function, or 0."""
        mu = torch.as_tensor(step * self.strength, dtype=u.dtype, device=u.device)
        p = torch.exp(mu.log() - 2 * math.log(self.eps) - u / self.eps)
        v = u - self.eps * _lambert(p)
        wins = -mu * torch.expm1(-v / self.eps) / v < u - v / 2
        return torch.where((v > 0) & ((mu.sqrt() <= self.eps) | wins), v, 0)


def _log_one_plus(u: Tensor, eps: float) -> Tensor:
    """log(1 + u / eps), also where u / eps overflows."""
    ratio = u / eps
    return torch.where(ratio.isinf(), u.log() - math.log(eps), torch.log1p(ratio))


def _geman_slope(u: Tensor, strength: float, eps: float) -> Tensor:
    size = u + eps
    return (strength / size) * (eps / size)


def _geman_shrink(u: Tensor, step: float | Tensor, eps: float) -> Tensor:
    """Prox of u / (u + eps): v + eps = (u + eps) t with t^3 - t^2 + step eps / (u + eps)^3 = 0."""
    mu = torch.as_tensor(step, dtype=u.dtype, device=u.device)
    size = u + eps
    sine = (1.5 * math.sqrt(3)) * (mu.pow(1 / 3) * eps ** (1 / 3) / size).pow(1.5)
    # 1 - t of the largest root in trigonometric form; NaN where there is no root, which loses below.
    v = u - size * ((4 / 3) * (sine.asin() / 3).sin().square())
    return torch.where((v > 0) & (((2 * mu).sqrt() <= eps) | (mu / (v + eps) < u - v / 2)), v, 0)


def _lambert(p: Tensor) -> Tensor:
    """The d in [0, 1] with d exp(-d) = p, that is -W(-p) on the principal branch; NaN where p > 1 / e."""
    q = (2 * (1 - math.e * p)).sqrt()
    d = torch.where(p < 0.2, p * (1 + p * (1 + p * 1.5)), 1 - q * (1 - q * (1 / 3 - q * (11 / 72 - q * (43 / 540)))))
    # Next to the branch point, d = 1, the series is exact to rounding and Halley's formula would be 0 / 0.
    settled = q < torch.finfo(p.dtype).eps ** 0.25
    for _ in range(3):
        term = p * d.exp()
        excess, rest = d - term, 1 - term
        d = torch.where(settled, d, d - 2 * excess * rest / (2 * rest.square() + excess * term))
    return d
