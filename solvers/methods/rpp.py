"""Reweighted proximal pruning: minimise f(W) + strength * sum_i factors_i |w_i|, with the factors reweighted.

    factors <- 1 / (|W| + eps_rw)                           (normalised to leave the strength comparable)
    for each step t of the pruning phase:
        A <- AdamW step on f from W                         (the penalty is never in the loss)
        strength <- given, or what makes s(t) of the entries zero
        W <- sign(A) max(|A| - tau_t * strength * factors, 0)
        every so often:  factors <- 1 / (|W| + eps_rw)
    support <- nonzeros of W
    for each step of the cool-down:  AdamW step on f, restricted to the support

Reference: Guo, Liu, Mungall, Lin and Wang, "Reweighted Proximal Pruning for Large-Scale Language Representation"
(2019); see docs/theory/rpp.md for what is printed, what is a reading, and what each metric converges to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from argprune.solvers.groups import Weight
from argprune.solvers.ilp.closed_form import keep_largest
from argprune.solvers.methods.base import Method, State, Support, keep_count, zero_fraction
from argprune.solvers.prox.controller import SparsityController
from argprune.solvers.prox.optimizer import Metric, ProximalOptimizer
from argprune.solvers.prox.reweighting import LogReweighting
from argprune.solvers.prox.separable import WeightedL1
from argprune.solvers.registry import register
from argprune.solvers.schedules import CubicSparsity, Phases, check_sparsity


@register(
    "methods",
    "rpp",
    examples=[{"sparsity": 0.6}, {"sparsity": 0.6, "scope": "global", "metric": "decoupled"}],
)
@dataclass
class RPP(Method):
    """Reweighted proximal pruning: weighted l1 by a prox after the optimizer's step, factors reweighted.

    sparsity: fraction of zeros over the prunable weights at the end, in [0, 1); exact.
    metric: the prox step: "metric" (exact in Adam's metric), "decoupled" (the learning rate; the published form) or
    "constant" (`prox_step`).
    strength: penalty strength; None: a controller chooses it so that the prox itself reaches the sparsity.
    eps_rw: epsilon of the reweighting, > 0, in units of each matrix's root mean square, or (`relative_eps` False) of w.
    normalise: scale the factors of a matrix so that reweighting does not change the strength's meaning.
    reweight_every: steps between reweightings. plain_first_round: factors 1 until the first, as published.
    scope: one strength a matrix ("matrix") or one for all ("global").
    warmup, cooldown: fractions of the run before the first prox and with the support fixed.
    """

    sparsity: float
    metric: Metric = "metric"
    strength: float | None = None
    prox_step: float | None = None
    eps_rw: float = 0.1
    relative_eps: bool = True
    normalise: bool = True
    reweight_every: int = 8
    plain_first_round: bool = False
    scope: Literal["matrix", "global"] = "matrix"
    warmup: float = 0.06
    cooldown: float = 0.4

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        self._phases = Phases(self.warmup, self.cooldown)
        LogReweighting(self.eps_rw)
        if self.strength is not None and not self.strength >= 0:
            raise ValueError(f"rpp: strength {self.strength}; it must be >= 0, or None for the controller.")
        if (self.metric == "constant") != (self.prox_step is not None):
            raise ValueError(f"rpp: prox_step {self.prox_step} with metric {self.metric!r}; only 'constant' takes one.")
        if self.reweight_every < 1:
            raise ValueError(f"rpp: reweight_every {self.reweight_every}; reweightings are at least 1 step apart.")
        if self.scope not in ("matrix", "global"):
            raise ValueError(f"rpp: scope {self.scope!r}; choose 'matrix' or 'global'.")

    def attach(self, weights: Sequence[Weight], total_steps: int) -> None:
        """Take the weights, lay out the schedule, and set each matrix's reweighting rule from its size now."""
        self._weights, self._support = weights, Support(weights)
        self._begin, self._end = self._phases.steps(total_steps)
        self._schedule = CubicSparsity(self.sparsity, self._begin, self._end)
        self._step = 0
        self._top_up = 0
        self._prox_sparsity = 0.0
        self._was_zero: list[Tensor] = []
        self._set_rules([float(w.parameter.detach().square().mean().sqrt()) for w in weights])

    def _set_rules(self, scales: Sequence[float]) -> None:
        # A matrix of zeros has no scale of its own; any positive epsilon then gives the same factors.
        scales = [scale or 1.0 for scale in scales]
        self._scales = torch.tensor(scales, dtype=torch.float64)
        eps = [self.eps_rw * scale if self.relative_eps else self.eps_rw for scale in scales]
        self._rules = [LogReweighting(e, self.normalise) for e in eps]

    def wrap_optimizer(self, optimizer: Optimizer) -> ProximalOptimizer:
        """The proximal optimizer, idle until the pruning phase begins."""
        self._controller = SparsityController(
            target=lambda: self._schedule(self._step), scope=self.scope, exact=lambda: self._step >= self._end
        )
        self._proximal = ProximalOptimizer(
            optimizer, self._weights, WeightedL1(1.0), metric=self.metric, step=self.prox_step, strength=0.0
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
        if (step - self._begin) % self.reweight_every == 0 and not (step == self._begin and self.plain_first_round):
            self._reweight()

    @torch.no_grad()
    def _reweight(self) -> None:
        self._was_zero = [weight.parameter.detach() == 0 for weight in self._weights]
        self._proximal.regularizers = [
            WeightedL1(1.0, rule.factors(weight.parameter))
            for rule, weight in zip(self._rules, self._weights, strict=True)
        ]

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
        total = sum(p.numel() for p in parameters)
        self._prox_sparsity = 1 - nonzero / total
        magnitudes = [p.abs() for p in parameters]
        if self.scope == "global":
            masks = keep_largest(magnitudes, keep_count(total, self.sparsity))
        else:
            masks = [keep_largest([m], keep_count(m.numel(), self.sparsity))[0] for m in magnitudes]
        self._support.fix(masks)
        self._top_up = nonzero - sum(int(p.count_nonzero()) for p in parameters)
        self._proximal.strength = 0.0
        self._proximal.regularizers = [WeightedL1(0.0)] * len(self._weights)

    def finish(self) -> dict[str, Tensor]:
        """The masks of the support."""
        if not self._support:
            self._fix_support()
        return self._support.masks()

    def state_dict(self) -> State:
        """Factors, masks and the counters of the report."""
        state = {**self._support.state_dict(), "scales": self._scales}
        state |= {"top_up": self._top_up, "prox_sparsity": self._prox_sparsity}
        for weight, regularizer in zip(self._weights, self._proximal.regularizers, strict=True):
            assert isinstance(regularizer, WeightedL1)
            if isinstance(regularizer.factors, Tensor):
                state[f"factors.{weight.name}"] = regularizer.factors
        for weight, zero in zip(self._weights, self._was_zero, strict=False):
            state[f"zero.{weight.name}"] = zero
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore factors and masks."""
        self._set_rules(state["scales"].tolist())
        self._support.load_state_dict(state)
        self._was_zero = [self._saved(state, "zero", w) for w in self._weights if f"zero.{w.name}" in state]
        self._top_up, self._prox_sparsity = int(state["top_up"]), float(state["prox_sparsity"])
        self._proximal.regularizers = [
            WeightedL1(1.0, self._saved(state, "factors", w)) if f"factors.{w.name}" in state else WeightedL1(1.0)
            for w in self._weights
        ]

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
            assert isinstance(regularizer, WeightedL1)
            penalty += strength * float(regularizer.value(weight.parameter.detach()))
        regrown = sum(
            int(((weight.parameter.detach() != 0) & zero).sum())
            for weight, zero in zip(self._weights, self._was_zero, strict=False)
        )
        return {
            "sparsity": zero_fraction(self._weights),
            "penalty": penalty,
            "strength_min": min(strengths),
            "strength_max": max(strengths),
            "regrown": regrown,
        }

    def report(self) -> dict[str, Any]:
        """The sparsity that the prox reached by itself, and how many weights a projection had to add."""
        return {"prox_sparsity": self._prox_sparsity, "top_up": self._top_up}
