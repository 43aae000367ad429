"""Gates that learn while a network trains: log_alpha, its optimizer, the constraints and the draws.

log_alpha <- log((1 - droprate) / droprate) + prior + noise
for each step:
    log_alpha <- Adam step with df/dlog_alpha + what the constraints push, within the clamp
    multipliers <- dual ascent;   near the end: log_alpha <- log_alpha - nu
    z <- a sample, or the median
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from argprune.solvers.lagrangian.constraints import Ascent, SizeConstraint, SizeLagrangian
from argprune.solvers.lagrangian.expected_size import ExpectedSize

# Standard deviation of log_alpha at the start, so that no two gates are equal. Reference: the authors' code.
_NOISE = 0.01
# Short memories: gates must turn within tens of steps when the constraint does. Adam's own would take a thousand.
_BETAS = (0.5, 0.95)


@dataclass(frozen=True)
class GateOptions:
    """How gates learn.

    droprate_init: in (0, 1), of the gates at the start. score_rate: peak learning rate of log_alpha, > 0. clamp:
    log_alpha stays within +-clamp, > 0, so that no gate is shut or open for good. target_warmup: fraction of the
    pruning phase in which targets rise; settle: fraction of it, at its end, in which a shift meets them exactly; both
    in [0, 1]. ascent: of the multipliers. noise: gates are samples; without it, their medians. Raises ValueError
    outside.
    """

    droprate_init: float = 0.05
    score_rate: float = 0.1
    clamp: float = 4.0
    target_warmup: float = 0.6
    settle: float = 0.1
    ascent: Ascent = field(default_factory=Ascent)
    noise: bool = True

    def __post_init__(self) -> None:
        for name in ("score_rate", "clamp"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} {getattr(self, name)}; it must be finite and > 0.")
        for name in ("target_warmup", "settle"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)}; it is a fraction of the pruning phase, in [0, 1].")


class GateTraining:
    """log_alpha of some sets of gates, float32, and what moves it.

    size: the sets, and the gates' distribution. constraints: on their expected size. options: see `GateOptions`.
    device: of the gates. prior: of each set, what its log_alphas start above the others, (count,); they stay within
    the clamp. The noise and all draws follow from torch's initial seed.
    """

    @torch.no_grad()
    def __init__(
        self,
        size: ExpectedSize,
        constraints: Sequence[SizeConstraint],
        options: GateOptions,
        device: torch.device,
        prior: Sequence[Tensor] | None = None,
    ) -> None:
        self._size, self._options, self._counts = size, options, [units.count for units in size.sets]
        self.lagrangian = SizeLagrangian(size, constraints, options.ascent)
        self._generator = torch.Generator(device).manual_seed(torch.initial_seed())
        start = size.gates.initial(options.droprate_init)
        self._log_alpha = torch.full((sum(self._counts),), start, device=device)
        self._log_alpha.add_(torch.empty_like(self._log_alpha).normal_(std=_NOISE, generator=self._generator))
        if prior is not None:
            self._log_alpha.add_(torch.cat(list(prior)).to(self._log_alpha)).clamp_(-options.clamp, options.clamp)
        self._adam = Adam([self._log_alpha], lr=options.score_rate, betas=_BETAS)

    @property
    def log_alphas(self) -> list[Tensor]:
        """log_alpha of each set, views."""
        return list(torch.split(self._log_alpha, self._counts))

    @torch.no_grad()
    def learn(self, of_loss: Sequence[Tensor], share: float) -> None:
        """One step: of_loss is df/dlog_alpha of each set; share: of the peak learning rate, in [0, 1]."""
        pushes = self.lagrangian.slopes(self.log_alphas, of_loss)
        self._log_alpha.grad = torch.cat(list(of_loss)).add_(torch.cat(pushes))
        self._adam.param_groups[0]["lr"] = self._options.score_rate * share
        self._adam.step()
        self._log_alpha.grad = None
        self._log_alpha.clamp_(-self._options.clamp, self._options.clamp)

    def constrain(self, done: float) -> list[float]:
        """Move the multipliers, or log_alpha to where the constraints hold; the sparsities expected then.

        done: how much of the pruning phase is over, in [0, 1].
        """
        progress = done / self._options.target_warmup if self._options.target_warmup else 1.0
        expected = self.lagrangian.ascend(self.log_alphas, progress)
        if done >= 1 - self._options.settle:
            expected = self.lagrangian.project(self.log_alphas, progress)
        return expected

    @torch.no_grad()
    def gates(self) -> list[Tensor]:
        """Gates of each set to compute a step with: a new sample, or the medians."""
        draws = torch.full_like(self._log_alpha, 0.5)
        if self._options.noise:
            draws.uniform_(generator=self._generator)
        return list(torch.split(self._size.gates.sample(self._log_alpha, draws, out=draws), self._counts))

    @torch.no_grad()
    def means(self) -> list[Tensor]:
        """E[z] of each set, float32; without noise, the medians."""
        if not self._options.noise:
            return self.gates()
        return list(torch.split(self._size.gates.mean(self._log_alpha).to(self._log_alpha.dtype), self._counts))

    def probabilities(self) -> list[Tensor]:
        """P(unit is there) of each set, float64."""
        return self._size.probabilities(self.log_alphas)

    def logs(self) -> dict[str, float]:
        """The multipliers and how hard they push; of several constraints, the name comes with each."""
        logs: dict[str, float] = {}
        several = len(self.lagrangian.constraints) > 1
        for constraint, dual in zip(self.lagrangian.constraints, self.lagrangian.multipliers, strict=True):
            suffix = f"_{constraint.name}" if several else ""
            logs |= {
                f"multiplier_linear{suffix}": dual.linear,
                f"multiplier_quadratic{suffix}": dual.quadratic,
                f"pressure{suffix}": dual.pressure,
            }
        return logs

    def state_dict(self) -> dict[str, Tensor]:
        """log_alpha with its moments, multipliers and the generator."""
        state = {"log_alpha": self._log_alpha, "generator": self._generator.get_state()}
        state |= {f"adam.{name}": value for name, value in self._adam.state[self._log_alpha].items()}
        return state | {f"lagrangian.{name}": value for name, value in self.lagrangian.state_dict().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        self._generator.set_state(state["generator"])
        self._log_alpha.copy_(state["log_alpha"])
        if "adam.step" in state:
            moments = {name: state[f"adam.{name}"].to(self._log_alpha.device) for name in ("exp_avg", "exp_avg_sq")}
            self._adam.state[self._log_alpha] = {"step": state["adam.step"], **moments}
        self.lagrangian.load_state_dict(prefixed(state, "lagrangian."))


def prefixed(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """What a state holds under a prefix, by the rest of the names."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
