"""Proximal pruning with any regularizer: minimise f(W) + strength * sum_j R(W_j / scale_j), R by its prox.

    for each step t of the pruning phase:
        A <- optimizer's step on f from W
        strength_j <- given, or what makes s(t) of matrix j zero      (found by search: more strength, more zeros)
        W_j <- prox of strength_j * R(. / scale_j) at A_j
        every so often:  factors <- rule(W), where a reweighting rule was asked for
    support <- nonzeros of W
    for each step of the cool-down:  optimizer's step on f, restricted to the support

scale_j is the matrix's root mean square at the start, rounded to a power of two, so that eps, theta and gamma of a
regularizer mean the same for every matrix. `rpp` is the case R = l1 with reweighting "log", and has its own closed
form of the strength.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from argprune.solvers import registry
from argprune.solvers.groups import Groups, Transposed, Weight
from argprune.solvers.methods.base import State
from argprune.solvers.methods.penalised import Penalised
from argprune.solvers.methods.structures import (
    Structure,
    StructureName,
    count_tolerance,
    select_groups,
    tie_masks,
)
from argprune.solvers.prox.base import Regularizer
from argprune.solvers.prox.numerical import with_prox
from argprune.solvers.prox.optimizer import Metric
from argprune.solvers.prox.reweighting import Reweighted, Scaled
from argprune.solvers.prox.search import StrengthSearch
from argprune.solvers.registry import register
from argprune.solvers.schedules import Phases, check_sparsity


@register(
    "methods",
    "proximal",
    examples=[
        {"sparsity": 0.6},
        {"sparsity": 0.6, "regularizer": {"name": "mcp", "gamma": 2.0}, "metric": "metric"},
        {"sparsity": 0.6, "regularizer": "l0", "reweighting": "log"},
        {"sparsity": 0.5, "regularizer": {"name": "group_log_sum", "eps": 0.3}, "structure": "columns"},
    ],
)
@dataclass
class Proximal(Penalised):
    """Proximal pruning with any regularizer and any reweighting of its entries.

    sparsity: fraction of zeros over the prunable weights at the end, in [0, 1); exact, every matrix for itself.
    regularizer: a name (`argprune list regularizers`, or module:Class), or a mapping of `name` and constructor options;
    options that are lengths (eps, theta, gamma) are in units of the matrix's root mean square. Its own strength is 1
    unless given; what matters is the strength below.
    reweighting: "none", or a rule for the factors of entries, as a name (`argprune list reweightings`, or module:Class)
    or a mapping of `name` and constructor options: "log", factors 1 / (|w| + eps), "power", ...; separable regularizers
    only. eps_rw: the rule's eps unless given, > 0; lengths are in units of the root mean square. reweight_every: steps
    between reweightings.
    metric: the prox step: "decoupled" (learning rate), "metric" (exact in Adam's metric) or "constant" (`prox_step`).
    strength: penalty strength; None: found by search so that the prox itself reaches the sparsity.
    structure: the groups of a grouped regularizer: "rows", "columns", "block-rows" (`width` inputs wide, or in `strips`
    strips), "block-columns" (`height` outputs high, or in `strips` strips) or "blocks" (`height` x `width`), sizes 16
    unless given; the sparsity is then of groups. "elements" leaves the regularizer as it is.
    fused: compile the prox and, where the strength is given, the optimizer's step with it (seconds, once).
    warmup, cooldown: fractions of the run before the first prox and with the support fixed.
    """

    sparsity: float
    regularizer: str | dict[str, Any] = "l1"
    reweighting: str | dict[str, Any] = "none"
    eps_rw: float = 0.1
    reweight_every: int = 8
    metric: Metric = "decoupled"
    strength: float | None = None
    prox_step: float | None = None
    warmup: float = 0.06
    cooldown: float = 0.4
    fused: bool = False
    structure: StructureName = "elements"
    width: int | None = None
    height: int | None = None
    strips: int | None = None
    scope = "matrix"

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        self._phases = Phases(self.warmup, self.cooldown)
        self._check("proximal")
        self._rule = self._build_rule()
        self._structure = Structure(self.structure, self.width, self.height, self.strips)
        # Of weights stored as matrices, and of transposed ones.
        self._base, self._turned = self._build_regularizer(False), self._build_regularizer(True)
        separable = bool(getattr(self._base, "separable", False))
        if not separable and (self._rule is not None or self.metric == "metric"):
            wanted = "metric 'metric'" if self.metric == "metric" else f"reweighting {self.reweighting!r}"
            raise ValueError(f"proximal: {wanted} needs a separable regularizer; {self.regularizer!r} ties entries.")

    @property
    def needs_whole_weights(self) -> str | None:
        """Regularizers of entries can be shared out, those that tie entries not."""
        if self.structure != "elements" or not getattr(self._base, "separable", False):
            return f"regularizer {self.regularizer!r} ties entries"
        if self._rule is not None and not getattr(self._rule, "entrywise", False):
            return f"reweighting {self.reweighting!r} ranks all entries of a matrix"
        return None

    def _build_regularizer(self, transposed: bool) -> Any:
        if self.structure == "elements":
            return with_prox(registry.build("regularizers", self.regularizer))
        if self._structure.kinds:
            raise ValueError(
                f"proximal: structure {self.structure!r} is tied across matrices, and a regularizer is of one; "
                f"use method 'block-lasso', or a structure of matrices."
            )
        spec: dict[str, Any] = (
            {"name": self.regularizer} if isinstance(self.regularizer, str) else dict(self.regularizer)
        )
        if "groups" not in inspect.signature(registry.resolve("regularizers", str(spec.get("name")))).parameters:
            raise ValueError(
                f"proximal: structure {self.structure!r} needs a regularizer of groups, such as group_lasso or "
                f"group_mcp; {self.regularizer!r} has none."
            )
        groups: Groups = self._structure.groups()
        return with_prox(
            registry.build("regularizers", {**spec, "groups": Transposed(groups) if transposed else groups})
        )

    def _build_rule(self) -> Any:
        if self.reweighting == "none":
            return None
        spec: dict[str, Any] = (
            {"name": self.reweighting} if isinstance(self.reweighting, str) else dict(self.reweighting)
        )
        cls = registry.resolve("reweightings", str(spec.get("name")))
        if "eps" in inspect.signature(cls).parameters:
            spec.setdefault("eps", self.eps_rw)
        rule = registry.build("reweightings", spec)
        if rule.surrogate != "l1":
            raise ValueError(
                f"proximal: reweighting {self.reweighting!r} weights {rule.surrogate}; choose one of entries."
            )
        return rule

    def _measure(self, weights: Sequence[Weight]) -> None:
        self._ties = self._structure.ties(weights, None)
        sizes = [self._root_mean_square(weight) for weight in weights]
        self._scales = [2.0 ** round(math.log2(size)) if size > 0 else 1.0 for size in sizes]

    def _regularizer(self, index: int) -> Scaled:
        base = self._turned if self._weights[index].transposed else self._base
        return Scaled(base, self._scales[index])

    def _reweighted(self, index: int) -> Regularizer | None:
        if self._rule is None:
            return None
        scale = self._scales[index]
        factors = self._factors(self._rule, index, self._weights[index].parameter.detach() / scale)
        return Scaled(Reweighted(self._base, factors), scale)

    def _controller_for(self, target: Callable[[], float], exact: Callable[[], bool]) -> StrengthSearch:
        return StrengthSearch(target, exact)

    def _final_masks(self) -> list[Tensor]:
        if self.structure == "elements":
            return super()._final_masks()
        return tie_masks(self._weights, self._ties, select_groups(self._ties, self.sparsity, "matrix"))

    @property
    def tolerance(self) -> float | None:
        """What whole groups take."""
        return None if self.structure == "elements" else count_tolerance(self._ties, self.sparsity, "matrix")

    def state_dict(self) -> State:
        """Scales and factors beside what every method of this kind saves."""
        state = {**super().state_dict(), "scales": torch.tensor(self._scales, dtype=torch.float64)}
        for weight, regularizer in zip(self._weights, self._proximal.regularizers, strict=True):
            inner = getattr(regularizer, "regularizer", None)
            if isinstance(inner, Reweighted):
                state[f"factors.{weight.name}"] = inner.factors
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        super().load_state_dict(state)
        self._scales = state["scales"].tolist()
        restored: list[Regularizer] = []
        for index, weight in enumerate(self._weights):
            if f"factors.{weight.name}" in state:
                inner = Reweighted(self._base, self._saved(state, "factors", weight))
                restored.append(Scaled(inner, self._scales[index]))
            else:
                restored.append(self._regularizer(index))
        self._proximal.regularizers = restored
