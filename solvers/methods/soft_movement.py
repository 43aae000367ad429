"""Soft movement pruning: scores above one threshold are kept, and a penalty pushes all scores down.

    minimise  f(W * M) + strength_t * (mean over matrices of the mean of sigmoid(S)),   M = 1[sigmoid(S) > threshold_t]

    S <- 0
    for each step t:
        strength_t <- strength * s(t) / sparsity
        threshold_t <- what s(t) of all entries lie below, or threshold * s(t) / sparsity
        M <- 1[sigmoid(S) > threshold_t], and the largest S where a matrix would keep less than `least` of its entries
        g <- df/dW' at W' = W * M                   (for pruned entries too)
        S <- optimizer's step with gradient g * W + strength_t * (the penalty's derivative)
        W <- optimizer's step with gradient g * M
    support <- the entries of largest S: exactly `sparsity` of all entries pruned, `least` of every matrix kept
    for each step of the cool-down:  optimizer's step on f, restricted to the support

Reference: Sanh, Wolf and Rush, "Movement Pruning: Adaptive Sparsity by Fine-Tuning" (2020), section 4 ("soft"); see
docs/theory/movement.md for what is published and what differs here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from argprune.solvers.groups import Weight
from argprune.solvers.ilp import keep_largest
from argprune.solvers.ilp.rows import kept_counts, largest_of_shards
from argprune.solvers.methods.base import State
from argprune.solvers.methods.straight_through import MaskScores, ScoreOptimizer
from argprune.solvers.registry import register
from argprune.solvers.schedules import Phases, check_sparsity
from argprune.solvers.shards import group_of, totals


@register(
    "methods",
    "soft-movement",
    examples=[{"sparsity": 0.6}, {"sparsity": 0.6, "threshold": 0.48, "strength": 5.0, "every": 2}],
)
@dataclass
class SoftMovement(MaskScores):
    """Soft movement pruning: one threshold for all matrices, which share the kept entries among themselves.

    sparsity: fraction of zeros over the prunable weights at the end, in [0, 1 - least]; exact.
    threshold: None: the one that the cubic schedule of the sparsity asks for at each step; a number in (0, 1), as
    published (0.1): it rises from 0 on that schedule, and what it misses of the sparsity is closed at the end.
    strength: of the penalty at the end of the schedule, >= 0, in units of the loss.
    least: fraction of every matrix that is kept whatever its scores, in [0, 1 - sparsity].
    score_rate, score_optimizer, every, warmup, cooldown: as for `movement`.
    """

    sparsity: float
    threshold: float | None = None
    strength: float = 400.0
    least: float = 0.005
    score_rate: float = 1e-2
    score_optimizer: ScoreOptimizer = "adamw"
    every: int = 1
    warmup: float = 0.06
    cooldown: float = 0.4
    scope = "global"

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        self._phases = Phases(self.warmup, self.cooldown)
        self._check("soft-movement")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(
                f"soft-movement: threshold {self.threshold}; it bounds a sigmoid: give a number in (0, 1), or None."
            )
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"soft-movement: strength {self.strength}; it must be finite and >= 0.")
        if not 0 <= self.least <= 1 - self.sparsity:
            raise ValueError(
                f"soft-movement: least {self.least} with sparsity {self.sparsity}; need 0 <= least <= 1 - sparsity."
            )

    def attach(self, weights: Sequence[Weight], total_steps: int) -> None:
        """Take the weights and lay out the schedule."""
        super().attach(weights, total_steps)
        self._least = [int(self.least * weight.numel) for weight in weights]
        self._reached = {"threshold": 0.0, "threshold_sparsity": 0.0}

    def _progress(self, step: int) -> float:
        """How far the schedule has come after step `step`: 0 before the first masks, 1 at the end."""
        return self._schedule(step) / self.sparsity if self.sparsity else 0.0

    def _gradient(self, index: int, gradient: Tensor, dense: Tensor) -> Tensor:
        result = self._movement(index, gradient, dense)
        # The masks that this gradient belongs to are those of the step before, and so is the strength.
        strength = self.strength * self._progress(self._step - 1)
        if strength:
            share = torch.sigmoid(self._scores.values[index], out=self._scores.buffer(index, 1))
            slope = torch.addcmul(share, share, share, value=-1, out=share)
            result.add_(slope, alpha=strength / (self._weights[index].numel * len(self._weights)))
        return result

    def _masks(self, step: int) -> list[Tensor]:
        if self.threshold is None:
            return self._largest(self._schedule(step), self._least)
        threshold = self.threshold * self._progress(step)
        # sigmoid(S) > threshold, without a sigmoid; at 0 every score passes.
        bound = math.log(threshold / (1 - threshold)) if threshold else -math.inf
        masks = [score > bound for score in self._scores.values]
        group = group_of(self._weights)
        counts = kept_counts(masks, group)
        for index, (score, least) in enumerate(zip(self._scores.values, self._least, strict=True)):
            if counts[index] < least:
                [masks[index]] = (
                    keep_largest([score], least) if group is None else largest_of_shards([score], least, group)
                )
        return masks

    def _final_masks(self) -> list[Tensor]:
        gates = self._masks(self._end)
        kept = sum(kept_counts(gates, group_of(self._weights)))
        reached = 1 - kept / sum(weight.numel for weight in self._weights)
        self._reached = {"threshold": self._threshold_of(gates), "threshold_sparsity": reached}
        return gates if self.threshold is None else self._largest(self.sparsity, self._least)

    def _threshold_of(self, masks: Sequence[Tensor]) -> float:
        """The sigmoid of the smallest score kept, of the matrices that keep more than they must."""
        group = group_of(self._weights)
        bounds = [
            float(score[mask].min())
            for score, mask, count, least in zip(
                self._scores.values, masks, kept_counts(masks, group), self._least, strict=True
            )
            # Of a sharded matrix, the kept entries may all be in other processes' rows.
            if count > least and bool(mask.any())
        ]
        bound = min(bounds, default=math.inf)
        if group is not None:
            bound = min(group.gather(bound))
        return float(torch.tensor(bound, dtype=torch.float64).sigmoid())

    def state_dict(self) -> State:
        """What the threshold reached beside what every method of this kind saves."""
        return {**super().state_dict(), **self._reached}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        super().load_state_dict(state)
        self._reached = {name: float(state[name]) for name in self._reached}

    def logs(self) -> dict[str, float]:
        """Until the support is fixed, also the threshold in force and the penalty."""
        logs = super().logs()
        if not self._support and self._gates:
            sums = totals(self._weights, [float(torch.sigmoid(score).sum()) for score in self._scores.values])
            means = [total / weight.numel for total, weight in zip(sums, self._weights, strict=True)]
            logs["penalty"] = self.strength * self._progress(self._step) * sum(means) / len(means)
            logs["threshold"] = self._threshold_of(self._gates)
        return logs

    def report(self) -> dict[str, Any]:
        """The threshold at the end of the pruning phase, and the sparsity that it alone had reached."""
        return dict(self._reached)
