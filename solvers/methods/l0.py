"""L0 regularization: every weight behind a random gate, whose probability of being open is penalised.

    minimise over W, log_alpha   E_z[f(W * z)] + strength * mean P(z > 0),       z hard-concrete of log_alpha

    log_alpha <- log((1 - droprate) / droprate) + noise
    for each step t of the pruning phase:
        z <- a sample;  g <- df/dW' at W' = W * z
        c <- s(t) - (1 - mean P(z > 0))                              (what the expected sparsity lacks)
        lambda1 <- lambda1 + dual_rate * c;   lambda2 <- lambda2 + dual_rate * c^2
        strength <- given, or lambda1 + 2 lambda2 c                  (of the Lagrangian term lambda1 c + lambda2 c^2)
        log_alpha <- Adam step with gradient g * W * dz/dlog_alpha + strength * d mean P(z > 0) / dlog_alpha
        W <- optimizer's step with gradient g * z
    support <- the entries of largest log_alpha;   W <- W * deterministic z on the support, 0 elsewhere
    for each step of the cool-down:  optimizer's step on f, restricted to the support

lambda1 and the strength are held between 0 and dual_bound, in units of the gradients that the loss gives the gates.

Reference: Louizos, Welling and Kingma, "Learning Sparse Neural Networks through L0 Regularization" (2018); the
Lagrangian is that of Wang, Wohlwend and Lei (2020). See docs/theory/l0.md for what is published and what differs here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from argprune.solvers.groups import Weight
from argprune.solvers.ilp.closed_form import keep_largest
from argprune.solvers.lagrangian import HardConcrete, Multipliers
from argprune.solvers.methods.base import State, keep_count
from argprune.solvers.methods.straight_through import StraightThrough
from argprune.solvers.registry import register
from argprune.solvers.schedules import Phases, check_sparsity

# Standard deviation of log_alpha at the start, so that no two gates are equal. Reference: the authors' code.
_NOISE = 0.01


@register(
    "methods",
    "l0",
    examples=[{"sparsity": 0.6}, {"sparsity": 0.6, "strength": 0.1, "scope": "matrix"}],
)
@dataclass
class L0(StraightThrough):
    """L0 regularization with hard-concrete gates on single weights.

    sparsity: fraction of zeros over the prunable weights at the end, in [0, 1); exact.
    strength: penalty strength, >= 0, in units of the loss; None: multipliers drive the expected sparsity along the
    cubic schedule.
    droprate_init: in (0, 1), of the gates at the start; 0.1 leaves a mean gate of 0.85 or so.
    score_rate: peak learning rate of log_alpha (Adam); it rises and falls with that of the weights.
    dual_rate: rate of ascent of the multipliers, > 0. dual_bound: the most that they may push, > 0. Both in a unit at
    which the penalty moves a half-open gate as the loss does on average.
    temperature: of the gates, > 0.
    scope: "global" (one constraint, the matrices share the budget) or "matrix" (each meets it).
    warmup, cooldown: fractions of the run before the gates and with the support fixed.
    """

    sparsity: float
    strength: float | None = None
    droprate_init: float = 0.1
    score_rate: float = 0.1
    dual_rate: float = 1.0
    dual_bound: float = 4.0
    temperature: float = 2 / 3
    scope: Literal["matrix", "global"] = "global"
    warmup: float = 0.06
    cooldown: float = 0.4

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        self._phases = Phases(self.warmup, self.cooldown)
        self._check("l0")
        self._hard_concrete = HardConcrete(self.temperature)
        self._initial_score = self._hard_concrete.initial(self.droprate_init)
        if self.strength is not None and not 0 <= self.strength < math.inf:
            raise ValueError(f"l0: strength {self.strength}; it must be finite and >= 0, or None for the multipliers.")
        for name in ("dual_rate", "dual_bound"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"l0: {name} {getattr(self, name)}; it must be finite and > 0.")
        if self.scope not in ("matrix", "global"):
            raise ValueError(f"l0: scope {self.scope!r}; choose 'matrix' or 'global'.")

    def attach(self, weights: Sequence[Weight], total_steps: int) -> None:
        """Take the weights, lay out the schedule, and say which gates share a constraint."""
        super().attach(weights, total_steps)
        indices = list(range(len(weights)))
        self._constraints = [[index] for index in indices] if self.scope == "matrix" else [indices]
        self._multipliers = [Multipliers() for _ in self._constraints]
        self._squares = [0.0] * len(weights)
        self._expected_sparsity, self._gates_changed = 0.0, 0

    @torch.no_grad()
    def wrap_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Make log_alpha; its noise, and the samples to come, follow from the run's seed."""
        super().wrap_optimizer(optimizer)
        device = self._weights[0].parameter.device
        self._generator = torch.Generator(device).manual_seed(torch.initial_seed())
        for log_alpha in self._scores.values:
            noise = torch.empty_like(log_alpha).normal_(std=_NOISE, generator=self._generator)
            log_alpha.add_(noise)
        return optimizer

    def before_step(self, step: int) -> None:
        """Let log_alpha learn under the strength of now; later, mask the gradients."""
        total = sum(weight.parameter.numel() for weight in self._weights)
        self._forces = [0.0] * len(self._weights)
        for strength, constraint in zip(self._strengths(), self._constraints, strict=True):
            for index in constraint:
                self._forces[index] = strength / total
        self._squares = [0.0] * len(self._weights)
        super().before_step(step)

    def _strengths(self) -> list[float]:
        """The penalty's strength on the mean of P(z > 0) over all gates, in units of the loss; one a constraint."""
        if self.strength is not None:
            return [self.strength] * len(self._constraints)
        # The derivative of P at a half-open gate is 1/4.
        total = sum(weight.parameter.numel() for weight in self._weights)
        return [4 * total * math.sqrt(dual.mean_square) * dual.pressure for dual in self._multipliers]

    def _gradient(self, index: int, gradient: Tensor, dense: Tensor) -> Tensor | None:
        if not self._gates:
            return None
        result, log_alpha = self._scores.buffer(index), self._scores.values[index]
        work, more = self._scores.buffer(index, 1), self._scores.buffer(index, 2)
        self._hard_concrete.slope(self._gates[index], out=work, work=more)
        torch.mul(work.mul_(gradient), dense, out=result)
        self._squares[index] = float(torch.linalg.vector_norm(result)) ** 2
        share = self._hard_concrete.open_probability(log_alpha, out=work)
        slope = torch.addcmul(share, share, share, value=-1, out=more)
        return result.add_(slope, alpha=self._forces[index])

    def _new_gates(self, step: int) -> list[Tensor]:
        gates = self._gates or [torch.empty_like(log_alpha) for log_alpha in self._scores.values]
        for gate, log_alpha in zip(gates, self._scores.values, strict=True):
            self._hard_concrete.sample(log_alpha, gate.uniform_(generator=self._generator), out=gate)
        expected = self._expected()
        for dual, constraint, sparsity in zip(self._multipliers, self._constraints, expected, strict=True):
            if self._gates:
                size = sum(self._weights[index].parameter.numel() for index in constraint)
                dual.observe(sum(self._squares[index] for index in constraint) / size)
            dual.ascend(self._schedule(step) - sparsity, self.dual_rate, self.dual_bound)
        return gates

    def _expected(self) -> list[float]:
        """The expected sparsity of the gates, one a constraint; keeps that of all together for log and report."""
        opened = [
            self._hard_concrete.expected_open(log_alpha, work=self._scores.buffer(index))
            for index, log_alpha in enumerate(self._scores.values)
        ]
        sizes = [scores.numel() for scores in self._scores.values]
        self._expected_sparsity = 1 - sum(opened) / sum(sizes)
        return [1 - sum(opened[i] for i in group) / sum(sizes[i] for i in group) for group in self._constraints]

    def _final_masks(self) -> list[Tensor]:
        self._expected()
        scores = self._scores.values
        masks: list[Tensor] = []
        for constraint in self._constraints:
            group = [scores[index] for index in constraint]
            masks += keep_largest(group, keep_count(sum(score.numel() for score in group), self.sparsity))
        self._gates_changed = 0
        for weight, log_alpha, mask in zip(self._weights, scores, masks, strict=True):
            gate = self._hard_concrete.deterministic(log_alpha)
            self._gates_changed += int(((gate > 0) != mask).sum())
            weight.parameter.mul_(gate)
        return masks

    def state_dict(self) -> State:
        """Multipliers, generator and counters beside what every method of this kind saves."""
        return {
            **super().state_dict(),
            "multipliers": torch.tensor([astuple(dual) for dual in self._multipliers], dtype=torch.float64),
            "generator": self._generator.get_state(),
            "expected_sparsity": self._expected_sparsity,
            "gates_changed": self._gates_changed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        super().load_state_dict(state)
        self._multipliers = [Multipliers(*row) for row in state["multipliers"].tolist()]
        self._generator.set_state(state["generator"])
        self._expected_sparsity = float(state["expected_sparsity"])
        self._gates_changed = int(state["gates_changed"])

    def logs(self) -> dict[str, float]:
        """Real zeros; while there are gates, the sparsity expected of them and the range of the penalty's strength."""
        logs = super().logs()
        if not self._support and self._gates:
            strengths = self._strengths()
            logs |= {
                "expected_sparsity": self._expected_sparsity,
                "strength_min": min(strengths),
                "strength_max": max(strengths),
            }
        return logs

    def report(self) -> dict[str, Any]:
        """The sparsity expected of the gates at the end, and how many of them the exact count decides otherwise."""
        return {"expected_sparsity": self._expected_sparsity, "gates_changed": self._gates_changed}
