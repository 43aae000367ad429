"""Gradual magnitude pruning: projection on the k largest entries, k falling on a cubic schedule.

    for each step t:
        W <- optimizer step on f
        at an event:  support <- the k(t) entries of largest |W|        (exactly k(t), per matrix or global)
                                 or groups of largest norm, over the root of their size
        W <- W on the support, 0 elsewhere

Reference: Zhu and Gupta (2017); the "NIP" baseline of Guo et al. (2019) as docs/theory/rpp.md reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from argprune.solvers.groups import Tied, Weight
from argprune.solvers.methods.base import Method, State, Support, magnitude_masks, zero_fraction
from argprune.solvers.methods.structures import (
    Structure,
    StructureName,
    count_tolerance,
    select_groups,
    tie_masks,
)
from argprune.solvers.registry import register
from argprune.solvers.schedules import CubicSparsity, Phases, check_sparsity


@register(
    "methods",
    "magnitude",
    examples=[
        {"sparsity": 0.6},
        {"sparsity": 0.6, "scope": "global", "nested": False},
        {"sparsity": 0.5, "structure": "columns"},
    ],
)
@dataclass
class Magnitude(Method):
    """Gradual magnitude pruning on a cubic schedule.

    sparsity: fraction of zeros over the prunable weights at the end, in [0, 1); exact, and of groups where the
    structure ties entries.
    warmup, cooldown: fractions of the run before the first and after the last event; the support is fixed at the end.
    every: steps between events. scope: "matrix" or "global".
    nested: True keeps a pruned weight pruned; False lets all weights move between events (projected gradient).
    structure: what is kept or pruned together: "elements", "rows", "columns", "block-rows" (`width` inputs wide, or in
    `strips` strips), "block-columns" (`height` outputs high, or in `strips` strips), "blocks" (`height` x `width`),
    "heads", "neurons" or "heads-and-neurons"; sizes are 16 unless given.
    """

    sparsity: float
    warmup: float = 0.06
    cooldown: float = 0.4
    every: int = 8
    scope: Literal["matrix", "global"] = "matrix"
    nested: bool = True
    structure: StructureName = "elements"
    width: int | None = None
    height: int | None = None
    strips: int | None = None

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        self._phases = Phases(self.warmup, self.cooldown)
        if self.every < 1:
            raise ValueError(f"magnitude: every {self.every}; events are at least 1 step apart.")
        if self.scope not in ("matrix", "global"):
            raise ValueError(f"magnitude: scope {self.scope!r}; choose 'matrix' or 'global'.")
        self._structure = Structure(self.structure, self.width, self.height, self.strips)
        self._given: Sequence[Tied] | None = None
        self._weights: Sequence[Weight] = ()

    @property
    def wants_ties(self) -> tuple[Literal["heads", "neurons"], ...]:
        """The units that the structure names."""
        return self._structure.kinds

    @property
    def needs_whole_weights(self) -> str | None:
        """Groups may go beyond a row; entries, and parts of rows, do not."""
        return self._structure.beyond_rows(self._weights)

    def tie(self, ties: Sequence[Tied]) -> None:
        """Take the units."""
        self._given = ties

    def attach(self, weights: Sequence[Weight], total_steps: int) -> None:
        """Take the weights and lay out the schedule."""
        self._weights, self._support = weights, Support(weights)
        self._ties = self._structure.ties(weights, self._given)
        self._begin, self._end = self._phases.steps(total_steps)
        self._schedule = CubicSparsity(self.sparsity, self._begin, self._end)
        self._ended = False

    def before_step(self, step: int) -> None:
        """Keep pruned weights out of the optimizer's moments."""
        self._support.zero_gradients()

    def after_step(self, step: int, learning_rate: float) -> None:
        """At an event, project; else keep the support."""
        if self._begin <= step <= self._end and ((step - self._begin) % self.every == 0 or step == self._end):
            self._support.fix(self._masks(self._schedule(step)))
            self._ended = step == self._end
            if not self.nested and step < self._end:
                self._support.release()
        else:
            self._support.zero_weights()

    def _masks(self, sparsity: float) -> list[Tensor]:
        if self.structure == "elements":
            return magnitude_masks(self._weights, sparsity, self.scope)
        return tie_masks(self._weights, self._ties, select_groups(self._ties, sparsity, self.scope))

    def finish(self) -> dict[str, Tensor]:
        """The masks of the last event, which takes place now where the loop ended before it."""
        self._support.fix(list(self._support.masks().values()) if self._ended else self._masks(self.sparsity))
        return self._support.masks()

    @property
    def tolerance(self) -> float | None:
        """What whole groups take."""
        return None if self.structure == "elements" else count_tolerance(self._ties, self.sparsity, self.scope)

    def state_dict(self) -> State:
        """The current masks, and whether they are the last."""
        return {**self._support.state_dict(), "ended": self._ended}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        self._support.load_state_dict(state)
        self._ended = bool(state["ended"])

    def logs(self) -> dict[str, float]:
        """The sparsity from real zeros."""
        return {"sparsity": zero_fraction(self._weights)}
