"""An example of a plug-in for argprune: a regularizer that another distribution offers by an entry point."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from argprune.solvers.prox import Penalty


@dataclass(frozen=True)
class SmoothL1(Penalty):
    """strength * sum_i (sqrt(w_i^2 + eps^2) - eps + |w_i|) / 2: half an l1 norm, half its smooth version."""

    strength: float = 1.0
    eps: float = 0.5
    convex: ClassVar[bool] = True
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"strength": 0.7}, {"strength": 0.3, "eps": 2.0})

    def profile(self, u: Tensor) -> Tensor:
        """r(u), written so that no digits are lost where u is much smaller than eps."""
        return self.strength * (u * (u / (torch.hypot(u, torch.full_like(u, self.eps)) + self.eps)) + u) / 2

    def slope(self, u: Tensor) -> Tensor:
        """r'(u)."""
        return self.strength * (u / torch.hypot(u, torch.full_like(u, self.eps)) + 1) / 2

    def shrink(self, u: Tensor, step: float | Tensor) -> Tensor:
        """The root of v - u + step r'(v), by bisection between 0 and u."""
        low, high = torch.zeros_like(u), u.clone()
        for _ in range(100):
            middle = low + (high - low) / 2
            above = middle - u + step * self.slope(middle) > 0
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return torch.where(u > step * self.strength / 2, low + (high - low) / 2, 0)

    def expression(self, x: Any) -> Any:
        """The same function of a CVXPY variable."""
        import cvxpy

        flat = cvxpy.vec(x, order="C")
        pairs = cvxpy.vstack([flat, cvxpy.Constant([self.eps] * flat.size)])
        smooth = cvxpy.sum(cvxpy.norm(pairs, 2, axis=0)) - self.eps * flat.size
        return self.strength * (smooth + cvxpy.norm1(flat)) / 2
