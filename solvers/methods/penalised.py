"""What pruning by a prox after the optimizer's step has in common, whatever the regularizer.

for each step t of the pruning phase:
    A <- optimizer's step on f from W                   (the penalty is never in the loss)
    strength <- given, or what makes s(t) of the entries zero
    W <- prox of strength * R at A, with the step that the metric gives
    every so often:  reweight R
support <- nonzeros of W
for each step of the cool-down:  optimizer's step on f, restricted to the support
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from argprune.solvers.groups import Weight
from argprune.solvers.methods.base import Method, State, Support, magnitude_masks, zero_fraction
from argprune.solvers.prox.base import Regularizer
from argprune.solvers.prox.optimizer import Metric, ProximalOptimizer
from argprune.solvers.prox.reweighting import LogReweighting
from argprune.solvers.schedules import CubicSparsity, Phases
from argprune.solvers.shards import totals

# Of all entries, zeros beyond those asked for that are worth a warning.
_TOO_MUCH = 0.01


class Controller(Protocol):
    """What finds the strengths for the coming prox."""

    last: list[float]

    def __call__(self, optimizer: ProximalOptimizer) -> Sequence[float]:
        """One strength a weight."""


class Penalised(Method):
    """Base of `proximal` and `rpp`: phases, strength, support, counters. Subclasses say what the regularizers are."""

    # Fields of the subclasses, which are dataclasses; named here for the code below.
    metric: Metric
    strength: float | None
    prox_step: float | None
    fused: bool
    reweight_every: int
    scope: str
    _phases: Phases
    _free_first_round = False

    def _regularizer(self, index: int) -> Regularizer:
        """The regularizer of a weight before any reweighting, at strength 1."""
        raise NotImplementedError

    def _controller_for(self, target: Callable[[], float], exact: Callable[[], bool]) -> Controller:
        raise NotImplementedError

    def _reweighted(self, index: int) -> Regularizer | None:
        """The regularizer of a weight for the next round; None where nothing is reweighted."""
        raise NotImplementedError

    def _measure(self, weights: Sequence[Weight]) -> None:
        """Take what the regularizers need to know of the weights as they are at the start."""

    def _check(self, name: str) -> None:
        """Check the options that all methods of this kind share."""
        if self.strength is not None and not self.strength >= 0:
            raise ValueError(f"{name}: strength {self.strength}; it must be >= 0, or None for the controller.")
        if (self.metric == "constant") != (self.prox_step is not None):
            raise ValueError(
                f"{name}: prox_step {self.prox_step} with metric {self.metric!r}; only 'constant' takes one."
            )
        if self.reweight_every < 1:
            raise ValueError(f"{name}: reweight_every {self.reweight_every}; reweightings are at least 1 step apart.")

    def attach(self, weights: Sequence[Weight], total_steps: int) -> None:
        """Take the weights, lay out the schedule, and measure each matrix's size now."""
        self._weights, self._support = weights, Support(weights)
        self._begin, self._end = self._phases.steps(total_steps)
        self._schedule = CubicSparsity(self.sparsity, self._begin, self._end)
        self._step = 0
        self._top_up = 0
        self._prox_sparsity = 0.0
        self._was_zero: list[Tensor] = []
        self._measure(weights)

    def wrap_optimizer(self, optimizer: Optimizer) -> ProximalOptimizer:
        """The proximal optimizer, idle until the pruning phase begins."""
        self._controller = self._controller_for(lambda: self._schedule(self._step), lambda: self._step >= self._end)
        regularizers = [self._regularizer(index) for index in range(len(self._weights))]
        self._proximal = ProximalOptimizer(
            optimizer,
            self._weights,
            regularizers,
            metric=self.metric,
            step=self.prox_step,
            strength=0.0,
            fused=self.fused,
        )
        return self._proximal

    def before_step(self, step: int) -> None:
        """Reweight when due and set the strength that the coming prox uses; in the cool-down, mask the gradients."""
        self._step = step
        if self._support:
            self._support.zero_gradients()
            return
        if not self._begin <= step <= self._end:
            return
        self._proximal.strength = self._controller if self.strength is None else self.strength
        if (step - self._begin) % self.reweight_every == 0 and not (step == self._begin and self._free_first_round):
            self._reweight()

    def _factors(self, rule: Any, index: int, w: Tensor) -> Tensor:
        """The factors of a rule for a weight, of which this process may hold only some rows (w)."""
        weight = self._weights[index]
        if weight.shard is None or type(rule) is not LogReweighting:
            factors: Tensor = rule.factors(w)
            return factors
        [distance] = totals([weight], [float((w.detach().abs() + rule.eps).sum())])
        return rule.factors_of_part(w, distance / weight.numel)

    def _root_mean_square(self, weight: Weight) -> float:
        """Of all entries of a weight."""
        entries = weight.parameter.detach()
        if weight.shard is None:
            return float(entries.square().mean().sqrt())
        [squares] = totals([weight], [float(entries.square().sum())])
        return math.sqrt(squares / weight.numel)

    @torch.no_grad()
    def _reweight(self) -> None:
        self._was_zero = [weight.parameter.detach() == 0 for weight in self._weights]
        regularizers = [self._reweighted(index) for index in range(len(self._weights))]
        current = self._proximal.regularizers
        self._proximal.regularizers = [new or old for new, old in zip(regularizers, current, strict=True)]

    def after_step(self, step: int, learning_rate: float) -> None:
        """At the end of the pruning phase, take the prox's zeros as the support; afterwards, keep it."""
        if self._support:
            self._support.zero_weights()
        elif step == self._end:
            self._fix_support()

    @torch.no_grad()
    def _fix_support(self) -> None:
        parameters = [weight.parameter.detach() for weight in self._weights]
        nonzero = sum(int(p.count_nonzero()) for p in parameters)
        self._prox_sparsity = zero_fraction(self._weights)
        if self.strength is not None and self._prox_sparsity > self.sparsity + _TOO_MUCH:
            warnings.warn(
                f"strength {self.strength:g} made {self._prox_sparsity:.1%} of the entries zero, of which "
                f"{self.sparsity:.1%} are asked for: which of them stay in the support is chosen by their place. "
                "Give a smaller strength, or none, and it is found.",
                UserWarning,
                stacklevel=2,
            )
        self._support.fix(self._final_masks())
        [removed] = totals(self._weights, [nonzero - sum(int(p.count_nonzero()) for p in parameters)])
        self._top_up = int(removed)
        self._proximal.strength = 0.0
        self._proximal.regularizers = [self._regularizer(index) for index in range(len(self._weights))]

    def _final_masks(self) -> list[Tensor]:
        """The supports at the end of the pruning phase, of exactly the asked sparsity."""
        return magnitude_masks(self._weights, self.sparsity, self.scope)

    def finish(self) -> dict[str, Tensor]:
        """The masks of the support."""
        if not self._support:
            self._fix_support()
        return self._support.masks()

    def state_dict(self) -> State:
        """Masks, what reweighting knows, and the counters of the report."""
        state: State = {**self._support.state_dict(), "top_up": self._top_up, "prox_sparsity": self._prox_sparsity}
        for weight, zero in zip(self._weights, self._was_zero, strict=False):
            state[f"zero.{weight.name}"] = zero
        if self._controller.last:
            state["strengths"] = torch.tensor(self._controller.last, dtype=torch.float64)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        self._support.load_state_dict(state)
        self._was_zero = [self._saved(state, "zero", w) for w in self._weights if f"zero.{w.name}" in state]
        self._top_up, self._prox_sparsity = int(state["top_up"]), float(state["prox_sparsity"])
        if "strengths" in state:
            self._controller.last = state["strengths"].tolist()

    @staticmethod
    def _saved(state: Mapping[str, Any], what: str, weight: Weight) -> Tensor:
        saved: Tensor = state[f"{what}.{weight.name}"]
        return saved.to(weight.parameter.device)

    def logs(self) -> dict[str, float]:
        """Sparsity from real zeros, penalty, range of the strength over matrices, entries regrown since reweighting."""
        if self._proximal.strength == 0.0:
            return {"sparsity": zero_fraction(self._weights)}
        strengths = self._controller.last if self.strength is None else [self.strength] * len(self._weights)
        penalty = 0.0
        for weight, regularizer, strength in zip(self._weights, self._proximal.regularizers, strengths, strict=True):
            penalty += strength * float(regularizer.value(weight.parameter.detach()))
        regrown = sum(
            int(((weight.parameter.detach() != 0) & zero).sum())
            for weight, zero in zip(self._weights, self._was_zero, strict=False)
        )
        penalty, revived = totals(self._weights, [penalty, regrown])
        return {
            "sparsity": zero_fraction(self._weights),
            "penalty": penalty,
            "strength_min": min(strengths),
            "strength_max": max(strengths),
            "regrown": int(revived),
        }

    def report(self) -> dict[str, Any]:
        """The sparsity that the prox reached by itself, and how many weights a projection had to add."""
        return {"prox_sparsity": self._prox_sparsity, "top_up": self._top_up}
