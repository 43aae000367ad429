"""Powers of magnitudes below 1: R(w) = strength sum_i |w_i|^q, with q = 0 (a count), 1/2, 2/3 and any between 0 and 1.

The prox is 0 up to a threshold and there jumps to at least beta = (2 mu (1 - q))^(1 / (2 - q)), mu = step strength.
Beyond it, t = prox / u is the largest root of t - 1 + q s t^(q - 1) = 0 with s = mu u^(q - 2): a number of order one
whatever the scale of u. There the left side has a derivative between 1 - q / 2 and 1, so the root is well conditioned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from argprune.solvers.prox.base import Penalty, check_parameter
from argprune.solvers.registry import register


@register("regularizers", "l0", examples=[{"strength": 0.7}, {"strength": 0.0}])
@dataclass(frozen=True)
class L0(Penalty):
    """The number of nonzeros: R(w) = strength * count_nonzero(w).

    w: float tensor of any shape; strength >= 0, in units of loss per weight kept.
    Not convex; the prox is the hard threshold, a global minimiser for every step (0 where u and 0 tie). The slope is 0
    off zero and inf at 0.
    Reference: Blumensath and Davies (2008), "Iterative thresholding for sparse approximations".
    """

    strength: float

    def __post_init__(self) -> None:
        check_parameter("L0", "strength", self.strength)

    def profile(self, u: Tensor) -> Tensor:
        """r(u): strength off zero."""
        return self.strength * (u != 0).to(u.dtype)

    def slope(self, u: Tensor) -> Tensor:
        """r'(u) = 0; inf at 0 where strength > 0."""
        return torch.where(u == 0, torch.full_like(u, math.inf if self.strength > 0 else 0.0), 0)

    def shrink(self, u: Tensor, step: float | Tensor) -> Tensor:
        """u where it exceeds sqrt(2 step strength), else 0."""
        mu = torch.as_tensor(step * self.strength, dtype=u.dtype, device=u.device)
        return torch.where(u > math.sqrt(2) * mu.sqrt(), u, 0)


class _Power(Penalty):
    """r(u) = strength u^q, 0 < q < 1. A subclass gives the exponent and the root of order one."""

    strength: float

    def exponent(self) -> float:
        """q."""
        raise NotImplementedError

    def ratio(self, s: Tensor) -> Tensor:
        """The largest root t of t - 1 + q s t^(q - 1) = 0, for s from 0 to its value at the threshold."""
        raise NotImplementedError

    def profile(self, u: Tensor) -> Tensor:
        """r(u)."""
        return self.strength * u.pow(self.exponent())

    def slope(self, u: Tensor) -> Tensor:
        """r'(u); inf at 0 where strength > 0."""
        q = self.exponent()
        return self.strength * q * u.pow(q - 1) if self.strength > 0 else torch.zeros_like(u)

    def shrink(self, u: Tensor, step: float | Tensor) -> Tensor:
        """0 up to the threshold, u times the root beyond it."""
        q = self.exponent()
        mu = torch.as_tensor(step * self.strength, dtype=u.dtype, device=u.device)
        scale = mu.pow(1 / (2 - q))
        beta, threshold = _jump(q)
        keep = u > threshold * scale
        s = torch.where(keep, scale / u, 0).clamp(max=1 / threshold).pow(2 - q)
        return torch.where(keep, u * self.ratio(s).clamp(beta / threshold, 1), 0)


def _jump(q: float) -> tuple[float, float]:
    """Height of the jump and threshold, where mu = 1."""
    beta = (2 * (1 - q)) ** (1 / (2 - q))
    return beta, beta + q * beta ** (q - 1)


@register("regularizers", "lq", examples=[{"strength": 0.7}, {"strength": 0.4, "q": 0.3}, {"strength": 0.5, "q": 0.9}])
@dataclass(frozen=True)
class Lq(_Power):
    """The power q of the lq quasi-norm: R(w) = strength sum_i |w_i|^q.

    w: float tensor of any shape; strength >= 0; 0 < q < 1 (`L0` and `L1` are the ends).
    Concave in |w|; the prox is the global minimiser for every step: a threshold, and Newton's method beyond it.
    As a reweighting rule: factors = strength q |w|^(q - 1), inf at 0.
    Reference: Marjanovic and Solo (2012), "On lq optimization and matrix completion", theorem 1.
    """

    strength: float
    q: float = 0.5

    def __post_init__(self) -> None:
        check_parameter("Lq", "strength", self.strength)
        if not 0 < self.q < 1:
            raise ValueError(f"Lq: q {self.q}; it must lie strictly between 0 and 1 (use L0 or L1 at the ends).")

    def exponent(self) -> float:
        """q."""
        return self.q

    def ratio(self, s: Tensor) -> Tensor:
        """Newton's method from t = 1: the left side is convex, so the iterates go down to the largest root."""
        q, t = self.q, torch.ones_like(s)
        for _ in range(_newton_steps(q)):
            term = q * s * t.pow(q - 1)
            t = t - (t - 1 + term) / (1 - (1 - q) * term / t)
        return t


def _newton_steps(q: float) -> int:
    """Newton steps that reach the root to double precision at the threshold, where it is farthest from 1; plus one."""
    beta, threshold = _jump(q)
    s, t, count = threshold ** (q - 2), 1.0, 1
    while t - beta / threshold > 1e-15 * t and count < 60:
        term = q * s * t ** (q - 1)
        t -= (t - 1 + term) / (1 - (1 - q) * term / t)
        count += 1
    return count


@register("regularizers", "l_half", examples=[{"strength": 0.7}, {"strength": 0.0}])
@dataclass(frozen=True)
class LHalf(_Power):
    """The square root: R(w) = strength sum_i |w_i|^(1/2).

    w: float tensor of any shape; strength >= 0.
    Concave in |w|; the prox is the half threshold, the global minimiser for every step. As a reweighting rule:
    factors = strength / (2 sqrt|w|), inf at 0.
    Reference: Xu, Chang, Xu and Zhang (2012), "L1/2 regularization: a thresholding representation theory", theorem 1.
    """

    strength: float
    q: ClassVar[float] = 1 / 2

    def __post_init__(self) -> None:
        check_parameter("LHalf", "strength", self.strength)

    def exponent(self) -> float:
        """1/2."""
        return self.q

    def ratio(self, s: Tensor) -> Tensor:
        """y^2 with y^3 - y + s / 2 = 0 in trigonometric form, and one Newton step to its last digits."""
        y = (2 / math.sqrt(3)) * ((-(3 * math.sqrt(3) / 4) * s).acos() / 3).cos()
        y = y - (y * (y * y - 1) + s / 2) / (3 * y * y - 1)
        return y * y


@register("regularizers", "l_two_thirds", examples=[{"strength": 0.7}, {"strength": 0.0}])
@dataclass(frozen=True)
class LTwoThirds(_Power):
    """The power two thirds: R(w) = strength sum_i |w_i|^(2/3).

    w: float tensor of any shape; strength >= 0.
    Concave in |w|; the prox is the global minimiser for every step. As a reweighting rule: factors =
    (2/3) strength |w|^(-1/3), inf at 0.
    Reference: Cao, Sun and Xu (2013), "Fast image deconvolution using closed-form thresholding formulas of Lq
    (q = 1/2, 2/3) regularization"; their quartic, solved without the closed form's loss of digits at large u.
    """

    strength: float
    q: ClassVar[float] = 2 / 3

    def __post_init__(self) -> None:
        check_parameter("LTwoThirds", "strength", self.strength)

    def exponent(self) -> float:
        """2/3."""
        return self.q

    def ratio(self, s: Tensor) -> Tensor:
        """y^3 with y^4 - y + 2 s / 3 = 0, by Newton's method from 1, whose derivative is at least 1 on the way."""
        y = torch.ones_like(s)
        for _ in range(6):
            cube = y * y * y
            y = y - (y * (cube - 1) + s * (2 / 3)) / (4 * cube - 1)
        return y * y * y
