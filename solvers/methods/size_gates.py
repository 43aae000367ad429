"""What methods share whose gates are trained until what is open has a given size: options, phases, steps.

for each step t of the pruning phase:
    log_alpha <- Adam step on the loss and the constraint;  multipliers <- dual ascent;  z <- a sample, or the median
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from argprune.solvers.lagrangian import Ascent, ExpectedSize, GateOptions, GateTraining, HardConcrete, SizeConstraint
from argprune.solvers.schedules import Phases, check_sparsity


@dataclass
class SizeGates:
    """Options and state of gates under a constraint on their expected size; to be inherited beside `Method`.

    sparsity: fraction of the size to remove, in [0, 1).
    droprate_init, score_rate (it falls with the learning rate of the weights), clamp, target_warmup, settle: see
    `GateOptions`. temperature: of the gates, > 0.
    kind: "equality" (gates open again where too many closed) or "inequality". dual_rate, rho, dual_bound: see `Ascent`.
    noise: compute with samples of the gates, new ones every step; without it, with their medians. None: with noise
    where gates start alike, which nothing else could tell apart.
    warmup, cooldown: fractions of the run before the gates and after what they close is pruned.
    Raises ValueError outside.
    """

    sparsity: float
    droprate_init: float = 0.05
    score_rate: float = 0.1
    clamp: float = 4.0
    kind: Literal["equality", "inequality"] = "equality"
    dual_rate: float = 2.0
    rho: float = 800.0
    dual_bound: float = 50.0
    temperature: float = 2 / 3
    target_warmup: float = 0.6
    settle: float = 0.1
    noise: bool | None = None
    warmup: float = 0.06
    cooldown: float = 0.4

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        self._phases = Phases(self.warmup, self.cooldown)
        self._gates = HardConcrete(self.temperature)
        self._gates.initial(self.droprate_init)
        self._constraint = SizeConstraint(self.sparsity, kind=self.kind)
        self._options = GateOptions(
            self.droprate_init,
            self.score_rate,
            self.clamp,
            self.target_warmup,
            self.settle,
            Ascent(self.dual_rate, self.rho, self.dual_bound),
        )

    def _lay_out(self, size: ExpectedSize, total_steps: int) -> None:
        """Take what the gates cost, and the steps of the run."""
        self._size, self._expected = size, 0.0
        self._begin, self._end = self._phases.steps(total_steps)

    def _make_gates(
        self, optimizer: Optimizer, device: torch.device, prior: Sequence[Tensor] | None = None, *, alike: bool = True
    ) -> None:
        """Make the gates, whose learning rate follows that of the optimizer's weights; alike: some start alike."""
        self._optimizer, self._peak = optimizer, float(optimizer.defaults["lr"])
        options = replace(self._options, noise=alike if self.noise is None else self.noise)
        self._training = GateTraining(self._size, [self._constraint], options, device, prior)

    def _learning_share(self) -> float:
        """What is left of the peak learning rate, in [0, 1]."""
        return float(self._optimizer.param_groups[0]["lr"]) / self._peak if self._peak else 1.0

    def _constrain(self, step: int) -> float:
        """Dual ascent, or the exact shift near the end of the pruning phase; the sparsity expected of the gates."""
        [expected] = self._training.constrain((step - self._begin) / (self._end - self._begin))
        return expected

    def _gate_logs(self) -> dict[str, float]:
        violation = self.sparsity - self._expected
        return {"expected_sparsity": self._expected, "constraint_violation": violation, **self._training.logs()}
