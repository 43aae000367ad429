"""The floor of every comparison: scores that know nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from argprune.solvers.criteria.base import Accumulators, Criterion, Evidence, Surrogate
from argprune.solvers.registry import register


@register("criteria", "random")
@dataclass(frozen=True)
class Random(Criterion):
    """Uniform scores; equal `seed`s and shapes give equal scores, whatever the batches."""

    seed: int = 0
    surrogate: ClassVar[Surrogate] = "none"
    formula: ClassVar[str] = "uniform"

    def start(self, weight: Tensor) -> Accumulators:
        """Nothing is accumulated."""
        return {}

    def update(self, accumulators: Accumulators, evidence: Evidence) -> None:
        """Nothing is read."""

    def scores(self, accumulators: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        """Uniform in [0, 1)."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.rand(weight.shape, generator=generator).to(weight.device)
