"""No pruning: the reference that every method is compared with, trained on the same budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from argprune.solvers.groups import Weight
from argprune.solvers.methods.base import Method
from argprune.solvers.registry import register


@register("methods", "dense")
@dataclass
class Dense(Method):
    """Train without pruning; sparsity must be 0."""

    sparsity: float = 0.0

    def __post_init__(self) -> None:
        if self.sparsity != 0:
            raise ValueError(f"dense: sparsity {self.sparsity}; this method prunes nothing, so it must be 0.")

    @property
    def needs_whole_weights(self) -> None:
        """It only lets them be trained."""

    def attach(self, weights: Sequence[Weight], total_steps: int) -> None:
        """Remember the weights, for the masks."""
        self._weights = weights

    def finish(self) -> dict[str, Tensor]:
        """Masks that keep everything."""
        return {weight.name: torch.ones_like(weight.parameter, dtype=torch.bool) for weight in self._weights}
