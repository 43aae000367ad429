"""Movement pruning: keep the weights that training moves away from zero, k falling on a cubic schedule.

    S <- 0
    for each step t:
        M <- the k(t) entries of largest S          (exactly k(t), per matrix or global; all of them in the warm-up)
        g <- df/dW' at W' = W * M                   (for pruned entries too)
        S <- optimizer's step with gradient g * W   (as if M were S: straight through)
        W <- optimizer's step with gradient g * M
    support <- M of the last pruning step
    for each step of the cool-down:  optimizer's step on f, restricted to the support

Reference: Sanh, Wolf and Rush, "Movement Pruning: Adaptive Sparsity by Fine-Tuning" (2020), section 4 ("hard"); see
docs/theory/movement.md for what is published and what differs here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from argprune.solvers.methods.base import largest_masks
from argprune.solvers.methods.straight_through import MaskScores, ScoreOptimizer
from argprune.solvers.registry import register
from argprune.solvers.schedules import Phases, check_sparsity


@register(
    "methods",
    "movement",
    examples=[{"sparsity": 0.6}, {"sparsity": 0.6, "scope": "global", "score_optimizer": "sgd", "every": 3}],
)
@dataclass
class Movement(MaskScores):
    """Movement pruning on a cubic schedule.

    sparsity: fraction of zeros over the prunable weights at the end, in [0, 1); exact.
    score_rate: peak learning rate of the scores; it rises and falls with that of the weights.
    score_optimizer: "adamw" (published) or "sgd", with which scores are sums of -g * W and the rate changes no rank.
    scope: "matrix" or "global". every: steps between masks.
    warmup, cooldown: fractions of the run before the first mask and with the support fixed.
    """

    sparsity: float
    score_rate: float = 1e-2
    score_optimizer: ScoreOptimizer = "adamw"
    scope: Literal["matrix", "global"] = "matrix"
    every: int = 1
    warmup: float = 0.06
    cooldown: float = 0.4

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        self._phases = Phases(self.warmup, self.cooldown)
        self._check("movement")
        if self.scope not in ("matrix", "global"):
            raise ValueError(f"movement: scope {self.scope!r}; choose 'matrix' or 'global'.")

    def _gradient(self, index: int, gradient: Tensor, dense: Tensor) -> Tensor:
        return self._movement(index, gradient, dense)

    def _masks(self, step: int) -> list[Tensor]:
        sparsity = self._schedule(step)
        if self.scope == "global":
            return self._largest(sparsity)
        return largest_masks(self._weights, self._scores.values, sparsity, self.scope)

    def _final_masks(self) -> list[Tensor]:
        return self._masks(self._end)
