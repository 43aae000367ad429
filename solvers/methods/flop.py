"""FLOP: rank-1 components behind gates, trained under a constraint on the expected size.

    W = Q diag(z) P,   z hard-concrete of log_alpha: its median, or (noise) a sample
    minimise over P, Q, log_alpha   f(W), or E_z[f(W)]   subject to   E[size] = (1 - sparsity) * dense size

    whole <- the matrices that the ranks of least error at this size do not truncate;  they have no gates
    P, Q <- SVD of W, weighted by its inputs;   log_alpha <- log((1 - droprate) / droprate) + prior + noise
    for each step t of the pruning phase:
        z <- the median, or a sample, one a step;  g <- df/dz
        log_alpha <- Adam step with gradient g * dz/dlog_alpha + pressure * dE[size]/dlog_alpha, within the clamp
        P, Q <- optimizer's step
        lambda1, lambda2, pressure <- dual ascent on what the expected sparsity lacks of its warmed-up target
        in the last steps: log_alpha <- log_alpha - nu, so that the constraint holds
    ranks <- the components most probably open, within the size, exactly;   Q <- Q * z, of samples Q * E[z]
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
from torch.optim import Optimizer

from argprune.solvers.groups import Weight
from argprune.solvers.lagrangian import ExpectedSize, Gated, SizeConstraint, prefixed
from argprune.solvers.methods.base import State
from argprune.solvers.methods.low_rank import FactorPlan, Initial, LowRank, worth
from argprune.solvers.methods.size_gates import SizeGates
from argprune.solvers.processes import average_over_processes
from argprune.solvers.registry import register

# What a component without any worth counts as, so that it has a logarithm.
_TINY = 1e-12


@register(
    "methods", "flop", examples=[{"sparsity": 0.5, "multiple": 1}, {"sparsity": 0.5, "multiple": 1, "noise": True}]
)
@dataclass
class Flop(SizeGates, LowRank):
    """FLOP: low-rank factors with gated components, to a size.

    sparsity: fraction of the weights' numbers that the compact factors save, in [0, 1).
    initial, rank, embeddings: see `FactorPlan`. multiple: ranks are multiples of it, where that meets the size.
    informed: how much higher log_alpha starts for each standard deviation of the log of what a component is worth (its
    share of the squares of its matrix's singular values, over its size), >= 0; 0: all start alike.
    whole: matrices that `svd` would not truncate at this sparsity, scope "global", stay as they are, without gates; of
    no effect on a random start.
    As published: initial "random", informed 0, whole False, noise True.
    The other options: see `SizeGates`.
    """

    initial: Initial = "whitened"
    rank: Literal["break-even", "full"] | int = "break-even"
    embeddings: bool = False
    multiple: int = 8
    informed: float = 1.0
    whole: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        chooses = self.whole and self.sparsity > 0 and self.initial != "random"
        self._plan = FactorPlan(self.initial, self.rank, self.embeddings, self.sparsity if chooses else None)
        if self.multiple < 1:
            raise ValueError(f"flop: multiple {self.multiple}; ranks are multiples of at least 1.")
        if not 0 <= self.informed < math.inf:
            raise ValueError(f"flop: informed {self.informed}; it must be finite and >= 0.")

    @property
    def wants_factors(self) -> FactorPlan:
        """The start."""
        return self._plan

    def attach(self, weights: Sequence[Weight], total_steps: int) -> None:
        """Lay out the phases and the constraint; what a gate saves is a row of P and a column of Q."""
        super().attach(weights, total_steps)
        sets = [Gated(f.name, f.rank, {"parameters": float(f.unit_size)}) for f in self._factors]
        self._lay_out(ExpectedSize(sets, self._gates), total_steps)
        # The target is of the dense size, which is the one that users know; factors may start above or below it.
        self._factored_share = self._size.total("parameters") / self.dense_size
        self._whole_share = self._whole_size / self.dense_size
        target = max(0.0, 1 - (1 - self.sparsity - self._whole_share) / self._factored_share)
        self._constraint = SizeConstraint(target, kind=self.kind)

    def wrap_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Make the gates; the factors are where they will be trained now."""
        prior = self._prior()
        alike = prior is None or any(factors.values is None for factors in self._factors)
        self._make_gates(optimizer, self._factors[0].second.device, prior, alike=alike)
        return super().wrap_optimizer(optimizer)

    def _prior(self) -> list[Tensor] | None:
        """What the factorisation knows of the components, as an advance to their gates."""
        known = [factors for factors in self._factors if factors.values is not None]
        if not self.informed or self.initial == "random" or not known:
            return None
        logs = {f.name: (worth(f) / f.unit_size).clamp_min(_TINY).log() for f in known}
        spread, centre = torch.std_mean(torch.cat(list(logs.values())), correction=0)
        scale = self.informed / spread.clamp_min(_TINY)
        return [scale * (logs[f.name] - centre) if f.name in logs else torch.zeros(f.rank) for f in self._factors]

    @property
    def _gated(self) -> bool:
        return not self._kept and self._factors[0].gate is not None

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Let log_alpha learn from the loss and from the constraint."""
        if not self._gated:
            return
        of_loss = []
        # Gates are no parameters: whoever averages gradients over processes knows nothing of theirs.
        average_over_processes([f.gate.grad for f in self._factors if f.gate is not None and f.gate.grad is not None])
        for factors in self._factors:
            gate = factors.gate
            assert gate is not None
            slope = self._gates.slope(gate.detach())
            of_loss.append(torch.zeros_like(slope) if gate.grad is None else slope.mul_(gate.grad))
            gate.grad = None
        self._training.learn(of_loss, self._learning_share())

    @torch.no_grad()
    def after_step(self, step: int, learning_rate: float) -> None:
        """In the pruning phase, dual ascent and new gates; at its end, drop components."""
        if self._kept:
            return
        if step == self._end:
            self._close()
        elif step >= self._begin:
            self._expected = 1 - self._whole_share - (1 - self._constrain(step)) * self._factored_share
            for factors, gate in zip(self._factors, self._training.gates(), strict=True):
                factors.set_gate(gate)

    def _close(self) -> None:
        """Fold the gates in, and keep what is most probably open, by size * P(open), as much as the size takes."""
        for factors, gate in zip(self._factors, self._training.means(), strict=True):
            factors.set_gate(gate)
        opened = self._training.probabilities()
        self._drop([f.unit_size * p.cpu() for f, p in zip(self._factors, opened, strict=True)])

    @torch.no_grad()
    def finish(self) -> dict[str, Tensor]:
        """Which of the components that each weight started with are left."""
        if not self._kept:
            self._close()
        return self._masks()

    def state_dict(self) -> State:
        """Kept components; before, what the gates have learned, and their last sample."""
        state = super().state_dict() | {"expected_sparsity": self._expected}
        if self._kept:
            return state
        state |= {f"gate.{f.name}": f.gate.detach() for f in self._factors if f.gate is not None}
        return state | {f"gates.{name}": value for name, value in self._training.state_dict().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved, after `reshape`."""
        super().load_state_dict(state)
        self._expected = float(state["expected_sparsity"])
        if self._kept:
            return
        self._training.load_state_dict(prefixed(state, "gates."))
        for factors in self._factors:
            if f"gate.{factors.name}" in state:
                factors.set_gate(state[f"gate.{factors.name}"])

    def logs(self) -> dict[str, float]:
        """The sparsity stored; while there are gates, the one expected, the multipliers and how hard they push."""
        logs = super().logs()
        return {**logs, **self._gate_logs()} if self._gated else logs

    def report(self) -> dict[str, Any]:
        """Beside ranks and size, the sparsity expected of the gates at the end."""
        return {**super().report(), "expected_sparsity": self._expected}
