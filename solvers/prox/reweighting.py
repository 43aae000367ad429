"""Reweighting rules: from weights to the factors of the next round's convex penalty."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LogReweighting:
    """factors_i = 1 / (|w_i| + eps), one majorise-minimise step for the concave penalty sum_i log(|w_i| + eps).

    eps: > 0, in units of the weights; below the magnitudes that shall survive. At w_i = 0 the factor is 1 / eps, so a
    small eps makes zeros final. normalise: multiply by the matrix mean of |w| + eps, which keeps one strength
    meaningful from round to round and from matrix to matrix (the printed method has no such factor).
    Reference: Candes, Wakin and Boyd (2008), section 2.2; Guo et al. (2019).

    >>> import torch
    >>> LogReweighting(eps=1.0, normalise=False).factors(torch.tensor([0.0, -1.0, 3.0]))
    tensor([1.0000, 0.5000, 0.2500])
    """

    eps: float
    normalise: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.eps < float("inf"):
            raise ValueError(f"LogReweighting: eps {self.eps}; it must be finite and > 0.")

    def factors(self, w: Tensor) -> Tensor:
        """Factors for the next round: a new tensor of w's shape, entries > 0."""
        distance = w.detach().abs() + self.eps
        return distance.mean() / distance if self.normalise else 1 / distance
