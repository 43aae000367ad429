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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from argprune.solvers.groups import Weight
from argprune.solvers.methods.base import State
from argprune.solvers.methods.penalised import Penalised
from argprune.solvers.prox.controller import SparsityController
from argprune.solvers.prox.optimizer import Metric
from argprune.solvers.prox.reweighting import LogReweighting
from argprune.solvers.prox.separable import WeightedL1
from argprune.solvers.registry import register
from argprune.solvers.schedules import Phases, check_sparsity


@register(
    "methods",
    "rpp",
    examples=[{"sparsity": 0.6}, {"sparsity": 0.6, "scope": "global", "metric": "decoupled"}],
)
@dataclass
class RPP(Penalised):
    """Reweighted proximal pruning: weighted l1 by a prox after the optimizer's step, factors reweighted.

    sparsity: fraction of zeros over the prunable weights at the end, in [0, 1); exact.
    metric: the prox step: "metric" (exact in Adam's metric), "decoupled" (the learning rate; the published form) or
    "constant" (`prox_step`).
    strength: penalty strength; None: a controller chooses it so that the prox itself reaches the sparsity.
    eps_rw: epsilon of the reweighting, > 0, in units of each matrix's root mean square, or (`relative_eps` False) of w.
    normalise: scale the factors of a matrix so that reweighting does not change the strength's meaning.
    reweight_every: steps between reweightings. plain_first_round: factors 1 until the first, as published.
    scope: one strength a matrix ("matrix") or one for all ("global").
    fused: compile the prox and, where the strength is given, the optimizer's step with it (seconds, once).
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
    fused: bool = False

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        self._phases = Phases(self.warmup, self.cooldown)
        LogReweighting(self.eps_rw)
        self._check("rpp")
        if self.scope not in ("matrix", "global"):
            raise ValueError(f"rpp: scope {self.scope!r}; choose 'matrix' or 'global'.")

    @property
    def needs_whole_weights(self) -> None:
        """The l1 norm is one of entries."""

    @property
    def _free_first_round(self) -> bool:  # type: ignore[override]
        return self.plain_first_round

    def _measure(self, weights: Sequence[Weight]) -> None:
        self._set_rules([self._root_mean_square(weight) for weight in weights])

    def _set_rules(self, scales: Sequence[float]) -> None:
        # A matrix of zeros has no scale of its own; any positive epsilon then gives the same factors.
        scales = [scale or 1.0 for scale in scales]
        self._scales = torch.tensor(scales, dtype=torch.float64)
        eps = [self.eps_rw * scale if self.relative_eps else self.eps_rw for scale in scales]
        self._rules = [LogReweighting(e, self.normalise) for e in eps]

    def _regularizer(self, index: int) -> WeightedL1:
        return WeightedL1(1.0)

    def _reweighted(self, index: int) -> WeightedL1:
        return WeightedL1(1.0, self._factors(self._rules[index], index, self._weights[index].parameter))

    def _controller_for(self, target: Callable[[], float], exact: Callable[[], bool]) -> SparsityController:
        return SparsityController(target, self.scope, exact)

    def state_dict(self) -> State:
        """Factors and scales beside what every method of this kind saves."""
        state = {**super().state_dict(), "scales": self._scales}
        for weight, regularizer in zip(self._weights, self._proximal.regularizers, strict=True):
            assert isinstance(regularizer, WeightedL1)
            if not isinstance(regularizer.factors, float):
                state[f"factors.{weight.name}"] = regularizer.factors
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        super().load_state_dict(state)
        self._set_rules(state["scales"].tolist())
        self._proximal.regularizers = [
            WeightedL1(1.0, self._saved(state, "factors", w)) if f"factors.{w.name}" in state else WeightedL1(1.0)
            for w in self._weights
        ]
