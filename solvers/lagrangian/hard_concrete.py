"""Hard-concrete gates: random numbers in [0, 1] that are 0 with a probability one can differentiate.

    s = sigmoid((log(u / (1 - u)) + log_alpha) / temperature)       u uniform on (0, 1)
    z = clip(low + (high - low) s, 0, 1)                            low < 0 < 1 < high
    P(z > 0) = sigmoid(log_alpha - temperature log(-low / high))

Reference: Louizos, Welling and Kingma, "Learning Sparse Neural Networks through L0 Regularization" (2018), equations
10 to 13.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class HardConcrete:
    """The distribution of a gate z given its parameter log_alpha, with derivatives in closed form.

    temperature: > 0; the smaller, the closer z to 0 and 1. low, high: what s is stretched to, low < 0 and high > 1.
    Tensors are floating, one entry a gate. Keep log_alpha in float32 or better: bfloat16 loses steps of 1e-3.

    >>> gates = HardConcrete()
    >>> round(gates.initial(0.1), 3)
    2.197
    >>> gates.deterministic(torch.tensor([-3.0, 0.0, 3.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """

    temperature: float = 2 / 3
    low: float = -0.1
    high: float = 1.1

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"HardConcrete: temperature {self.temperature}; it must be finite and > 0.")
        if not (-math.inf < self.low < 0 and 1 < self.high < math.inf):
            raise ValueError(f"HardConcrete: low {self.low}, high {self.high}; need low < 0 and high > 1.")

    def initial(self, droprate: float) -> float:
        """The log_alpha at which the median of s is 1 - droprate; droprate in (0, 1)."""
        if not 0 < droprate < 1:
            raise ValueError(f"HardConcrete: droprate {droprate}; it must lie in (0, 1).")
        return math.log((1 - droprate) / droprate)

    def sample(self, log_alpha: Tensor, uniform: Tensor, out: Tensor | None = None) -> Tensor:
        """Gates z for draws `uniform` in [0, 1) of log_alpha's shape; `out` may be `uniform` itself.

        A draw of 0 gives a closed gate, so that nothing need be cut off the draws.
        """
        gate = torch.logit(uniform, out=out)
        gate.add_(log_alpha).div_(self.temperature).sigmoid_()
        return gate.mul_(self.high - self.low).add_(self.low).clamp_(0, 1)

    def slope(self, gate: Tensor, out: Tensor | None = None, work: Tensor | None = None) -> Tensor:
        """dz / dlog_alpha at a sampled gate z, from z alone: s follows from z where the clip does not act.

        (z - low) (high - z) / (temperature (high - low)) for 0 < z < 1, else 0. `work` is overwritten.
        """
        slope = torch.addcmul(gate, gate, gate, value=-1, out=out)
        # z - z^2 is 0 where the clip acts and > 0 elsewhere.
        inside = torch.sign(slope, out=work)
        if self.low + self.high != 1:
            slope.add_(gate, alpha=self.low + self.high - 1)
        slope.add_(-self.low * self.high).mul_(inside)
        return slope.div_(self.temperature * (self.high - self.low))

    def open_probability(self, log_alpha: Tensor, out: Tensor | None = None) -> Tensor:
        """P(z > 0); its derivative in log_alpha is p (1 - p)."""
        shift = self.temperature * math.log(-self.low / self.high)
        return torch.sub(log_alpha, shift, out=out).sigmoid_()

    def expected_open(self, log_alpha: Tensor, work: Tensor | None = None) -> float:
        """The expected number of gates that are not 0, the expected l0 norm; summed in float64."""
        return float(self.open_probability(log_alpha, work).sum(dtype=torch.float64))

    def mean(self, log_alpha: Tensor) -> Tensor:
        """E[z] = int_0^1 P(z > t) dt, to 1e-9, by Gauss-Legendre quadrature; float64.

        What a network has seen of a gate on average, where `deterministic` is off by up to 0.13.

        >>> HardConcrete().mean(torch.tensor([-3.0, 0.0, 3.0], dtype=torch.float64))
        tensor([0.0604, 0.5000, 0.9396], dtype=torch.float64)
        """
        points, weights = _legendre()
        t = points.to(log_alpha.device)
        shifts = self.temperature * torch.logit((t - self.low) / (self.high - self.low))
        beyond = torch.sigmoid(log_alpha.double().unsqueeze(-1) - shifts)
        return beyond @ weights.to(log_alpha.device)

    def deterministic(self, log_alpha: Tensor) -> Tensor:
        """The gates to evaluate with: clip(low + (high - low) sigmoid(log_alpha), 0, 1)."""
        return torch.sigmoid(log_alpha).mul_(self.high - self.low).add_(self.low).clamp_(0, 1)


@cache
def _legendre() -> tuple[Tensor, Tensor]:
    """Points and weights of Gauss-Legendre quadrature over [0, 1]."""
    points, weights = np.polynomial.legendre.leggauss(64)
    return torch.from_numpy((points + 1) / 2), torch.from_numpy(weights / 2)
