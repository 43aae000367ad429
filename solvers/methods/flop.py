"""FLOP: rank-1 components behind random gates, trained under a constraint on the size.

    W = Q diag(z) P,   z hard-concrete of log_alpha
    minimise over P, Q, log_alpha   E_z[f(W)]   subject to   E[size] = (1 - sparsity) * dense size

    P, Q <- SVD of W;   log_alpha <- log((1 - droprate) / droprate) + noise
    for each step t of the pruning phase:
        z <- a sample, one a step;  g <- df/dz
        log_alpha <- Adam step with gradient g * dz/dlog_alpha + pressure * dE[size]/dlog_alpha, within the clamp
        P, Q <- optimizer's step
        lambda1, lambda2, pressure <- dual ascent on what the expected sparsity lacks of its warmed-up target
        in the last steps: log_alpha <- log_alpha - nu, so that the constraint holds
    ranks <- the components most probably open, within the size, exactly;   Q <- Q * E[z]
    drop the other components;   for each step of the cool-down: optimizer's step on f

Reference: Wang, Wohlwend and Lei, "Structured Pruning of Large Language Models" (2020). See docs/theory/flop.md for
what is published and what differs here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from argprune.solvers.groups import Weight
from argprune.solvers.lagrangian import Ascent, ExpectedSize, Gated, HardConcrete, SizeConstraint, SizeLagrangian
from argprune.solvers.methods.base import State
from argprune.solvers.methods.low_rank import FactorPlan, Initial, LowRank
from argprune.solvers.registry import register
from argprune.solvers.schedules import Phases, check_sparsity

# Standard deviation of log_alpha at the start, so that no two gates are equal. Reference: the authors' code.
_NOISE = 0.01
# Short memories: gates must turn within tens of steps when the constraint does. Adam's own would take a thousand.
_BETAS = (0.5, 0.95)


@register("methods", "flop", examples=[{"sparsity": 0.5, "multiple": 1}])
@dataclass
class Flop(LowRank):
    """FLOP: low-rank factors with gated components, to a size.

    sparsity: fraction of the weights' numbers that the compact factors save, in [0, 1).
    initial, rank, embeddings: see `FactorPlan`. multiple: ranks are multiples of it, where that meets the size.
    droprate_init: in (0, 1), of the gates at the start. score_rate: peak learning rate of log_alpha (Adam); it falls
    with that of the weights. clamp: log_alpha stays within +-clamp, > 0, so that no gate is shut or open for good.
    kind: "equality" (gates open again where too many closed) or "inequality".
    dual_rate, rho, dual_bound: see `Ascent`. temperature: of the gates, > 0.
    target_warmup: fraction of the pruning phase in which the target rises to the sparsity; settle: fraction of it, at
    its end, in which the constraint is met exactly by a shift.
    warmup, cooldown: fractions of the run before the gates and after the components are dropped.
    """

    sparsity: float
    initial: Initial = "svd"
    rank: Literal["break-even", "full"] | int = "break-even"
    embeddings: bool = False
    multiple: int = 8
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
    warmup: float = 0.06
    cooldown: float = 0.4

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        self._phases = Phases(self.warmup, self.cooldown)
        self._plan = FactorPlan(self.initial, self.rank, self.embeddings)
        self._gates = HardConcrete(self.temperature)
        self._initial_score = self._gates.initial(self.droprate_init)
        self._constraint = SizeConstraint(self.sparsity, kind=self.kind)
        self._ascent = Ascent(self.dual_rate, self.rho, self.dual_bound)
        for name in ("score_rate", "clamp"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"flop: {name} {getattr(self, name)}; it must be finite and > 0.")
        if self.multiple < 1:
            raise ValueError(f"flop: multiple {self.multiple}; ranks are multiples of at least 1.")
        for name in ("target_warmup", "settle"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"flop: {name} {getattr(self, name)}; it is a fraction of the pruning phase.")

    @property
    def wants_factors(self) -> FactorPlan:
        """The start."""
        return self._plan

    def attach(self, weights: Sequence[Weight], total_steps: int) -> None:
        """Lay out the phases and the constraint; what a gate saves is a row of P and a column of Q."""
        super().attach(weights, total_steps)
        self._begin, self._end = self._phases.steps(total_steps)
        sets = [Gated(f.name, f.rank, {"parameters": float(f.unit_size)}) for f in self._factors]
        self._size = ExpectedSize(sets, self._gates)
        # Of the dense size, which is the one that users know; the factors may start above or below it.
        start = self._size.total("parameters")
        target = max(0.0, 1 - (1 - self.sparsity) * self.dense_size / start)
        constraint = SizeConstraint(target, kind=self._constraint.kind)
        self._lagrangian = SizeLagrangian(self._size, [constraint], self._ascent)
        self._factored_share = start / self.dense_size
        self._expected = 0.0

    @torch.no_grad()
    def wrap_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Make log_alpha, float32; its noise, and the samples to come, follow from the run's seed."""
        super().wrap_optimizer(optimizer)
        self._peak = float(optimizer.defaults["lr"])
        device = self._factors[0].second.device
        self._generator = torch.Generator(device).manual_seed(torch.initial_seed())
        self._log_alpha = torch.full((sum(self._starts),), self._initial_score, device=device)
        self._log_alpha.add_(torch.empty_like(self._log_alpha).normal_(std=_NOISE, generator=self._generator))
        self._adam = Adam([self._log_alpha], lr=self.score_rate, betas=_BETAS)
        return optimizer

    @property
    def _scores(self) -> list[Tensor]:
        """log_alpha of each weight's components, views."""
        return list(torch.split(self._log_alpha, self._starts))

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Let log_alpha learn from the loss and from the constraint."""
        if self._kept or self._factors[0].gate is None:
            return
        of_loss = []
        for factors in self._factors:
            gate = factors.gate
            assert gate is not None
            slope = self._gates.slope(gate.detach())
            of_loss.append(slope if gate.grad is None else slope.mul_(gate.grad))
            gate.grad = None
        pushes = self._lagrangian.slopes(self._scores, of_loss)
        self._log_alpha.grad = torch.cat(of_loss).add_(torch.cat(pushes))
        now = float(self._optimizer.param_groups[0]["lr"])
        self._adam.param_groups[0]["lr"] = self.score_rate * (now / self._peak if self._peak else 1.0)
        self._adam.step()
        self._log_alpha.grad = None
        self._log_alpha.clamp_(-self.clamp, self.clamp)

    @torch.no_grad()
    def after_step(self, step: int, learning_rate: float) -> None:
        """In the pruning phase, dual ascent and new gates; at its end, drop components."""
        if self._kept:
            return
        if step == self._end:
            self._close()
        elif step >= self._begin:
            length = self._end - self._begin
            done = (step - self._begin) / length
            progress = done / self.target_warmup if self.target_warmup else 1.0
            [expected] = self._lagrangian.ascend(self._scores, progress)
            if done >= 1 - self.settle:
                [expected] = self._lagrangian.project(self._scores, progress)
            self._expected = 1 - (1 - expected) * self._factored_share
            draws = torch.empty_like(self._log_alpha).uniform_(generator=self._generator)
            sample = self._gates.sample(self._log_alpha, draws, out=draws)
            for factors, gate in zip(self._factors, torch.split(sample, self._starts), strict=True):
                factors.set_gate(gate)

    def _close(self) -> None:
        """Fold E[z] in, and keep what is most probably open: worth = size * P(open), of which the size takes most."""
        means = self._gates.mean(self._log_alpha).to(self._log_alpha.dtype)
        opened = torch.split(self._gates.open_probability(self._log_alpha), self._starts)
        for factors, gate in zip(self._factors, torch.split(means, self._starts), strict=True):
            factors.set_gate(gate)
        self._drop([f.unit_size * p.double().cpu() for f, p in zip(self._factors, opened, strict=True)])
        for factors in self._factors:
            factors.set_gate(None)

    @torch.no_grad()
    def finish(self) -> dict[str, Tensor]:
        """Which of the components that each weight started with are left."""
        if not self._kept:
            self._close()
        return self._masks()

    def state_dict(self) -> State:
        """Kept components; before, log_alpha with its moments, gates, multipliers and the generator."""
        state = super().state_dict() | {"generator": self._generator.get_state(), "expected_sparsity": self._expected}
        if self._kept:
            return state
        state["log_alpha"] = self._log_alpha
        state |= {f"adam.{name}": value for name, value in self._adam.state[self._log_alpha].items()}
        state |= {f"gate.{f.name}": f.gate.detach() for f in self._factors if f.gate is not None}
        return state | {f"lagrangian.{name}": value for name, value in self._lagrangian.state_dict().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved, after `reshape`."""
        super().load_state_dict(state)
        self._generator.set_state(state["generator"])
        self._expected = float(state["expected_sparsity"])
        if self._kept:
            return
        device = self._log_alpha.device
        self._log_alpha.copy_(state["log_alpha"])
        if "adam.step" in state:
            names = ("step", "exp_avg", "exp_avg_sq")
            moments = {name: state[f"adam.{name}"] for name in names}
            self._adam.state[self._log_alpha] = {k: v if k == "step" else v.to(device) for k, v in moments.items()}
        for factors in self._factors:
            if f"gate.{factors.name}" in state:
                factors.set_gate(state[f"gate.{factors.name}"].to(device))
        prefix = "lagrangian."
        self._lagrangian.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})

    def logs(self) -> dict[str, float]:
        """The sparsity stored; while there are gates, the one expected, the multipliers and how hard they push."""
        logs = super().logs()
        if not self._kept and self._factors[0].gate is not None:
            [dual] = self._lagrangian.multipliers
            logs |= {
                "expected_sparsity": self._expected,
                "constraint_violation": self.sparsity - self._expected,
                "multiplier_linear": dual.linear,
                "multiplier_quadratic": dual.quadratic,
                "pressure": dual.pressure,
            }
        return logs

    def report(self) -> dict[str, Any]:
        """Beside ranks and size, the sparsity expected of the gates at the end."""
        return {**super().report(), "expected_sparsity": self._expected}
