"""Size constraints on gated units, driven by dual ascent: several at once, along a target that warms up.

    minimise over log_alpha, max over multipliers    E_z[f] + sum_c pressure_c * unit_c * E[size_c] / (mean cost)

    target_c(t)  = start + (target_c - start) * min(1, (t - begin) / warm-up)      start: what is expected at `begin`
    lack_c       = target_c(t) - (1 - E[size_c] / total_c)

The pressure is measured in the gradients that the loss gives the gates: at 1, a half-open gate of mean cost is pushed
as hard as the loss pushes gates on average (root mean square). One rate of ascent then serves networks of any size and
runs of any length; a multiplier in units of the loss must be found for each (dossier paper-flop, section 6.2).

Ascent approaches a target; `project` meets it: it takes the same nu from every log_alpha that the constraint counts,
which for gates of equal cost, seen as Bernoulli variables, is the Bregman projection of their distribution (relative
entropy) onto the constraint, and nu its dual variable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from argprune.solvers.lagrangian.expected_size import ExpectedSize
from argprune.solvers.lagrangian.multipliers import Multipliers

# Of `project`: the farthest shift, halvings of that interval, turns of several constraints, and what counts as met.
_FARTHEST = 50.0
_HALVINGS = 40
_TURNS = 20
_CLOSE = 1e-4


@dataclass(frozen=True)
class SizeConstraint:
    """Expected sparsity of some sets of gated units: at least, or exactly, a target.

    target: fraction of the size to remove, in [0, 1). budget: which cost ("parameters", "flops", ...). members:
    positions of the sets that it counts; None: all. kind: "inequality" leaves alone what is small enough. name: of
    its multipliers in the log.
    """

    target: float
    budget: str = "parameters"
    members: tuple[int, ...] | None = None
    kind: Literal["inequality", "equality"] = "inequality"
    name: str = "size"

    def __post_init__(self) -> None:
        if not 0 <= self.target < 1:
            raise ValueError(f"constraint {self.name!r}: target {self.target}; it is a fraction to remove, in [0, 1).")
        if self.kind not in ("inequality", "equality"):
            raise ValueError(f"constraint {self.name!r}: kind {self.kind!r}; choose 'inequality' or 'equality'.")


@dataclass(frozen=True)
class Ascent:
    """How the multipliers move.

    rate: of dual ascent, > 0. rho: of the augmented Lagrangian, >= 0, the damping. bound: the most that the pressure
    may be, > 0, in units of the loss's gradients. restart: see `Multipliers.ascend`. The defaults were found on two
    small networks (docs/theory/flop.md): without rho, sparsity swings by 0.3 around targets.
    """

    rate: float = 2.0
    rho: float = 800.0
    bound: float = 50.0
    restart: bool = False

    def __post_init__(self) -> None:
        for name, least in (("rate", "> 0"), ("rho", ">= 0"), ("bound", "> 0")):
            value = getattr(self, name)
            if not 0 <= value < math.inf or (value == 0 and least == "> 0"):
                raise ValueError(f"Ascent: {name} {value}; it must be finite and {least}.")


class SizeLagrangian:
    """Constraints on the expected size of gated units, and their multipliers.

    At each step: `slopes` gives what the constraints add to the gradients of log_alpha, `ascend` moves the multipliers,
    by the rates of `ascent`.
    Raises ValueError for no constraint, a budget that costs nothing, and positions out of range.
    """

    def __init__(self, size: ExpectedSize, constraints: Sequence[SizeConstraint], ascent: Ascent | None = None) -> None:
        if not constraints:
            raise ValueError("SizeLagrangian: no constraint; give at least one.")
        self._size, self.constraints, self._ascent = size, tuple(constraints), ascent or Ascent()
        self._members = []
        for constraint in constraints:
            everything = range(len(size.sets))
            members = everything if constraint.members is None else constraint.members
            if not set(members) <= set(everything):
                raise ValueError(f"constraint {constraint.name!r}: sets {members}; there are {len(size.sets)}.")
            if size.total(constraint.budget, members) <= 0:
                raise ValueError(f"constraint {constraint.name!r}: nothing that it counts costs {constraint.budget!r}.")
            self._members.append(tuple(members))
        self.multipliers = [Multipliers() for _ in constraints]
        self._start: list[float] | None = None

    @torch.no_grad()
    def sparsities(self, log_alphas: Sequence[Tensor]) -> list[float]:
        """The sparsity that each constraint expects of the gates now."""
        result, cached = [], dict[str, list[Tensor]]()
        for constraint, members in zip(self.constraints, self._members, strict=True):
            if constraint.budget not in cached:
                cached[constraint.budget] = self._size.sizes(log_alphas, constraint.budget)
            sizes = cached[constraint.budget]
            held = float(sum(sizes[index] for index in members))
            result.append(1 - held / self._size.total(constraint.budget, members))
        return result

    @torch.no_grad()
    def slopes(self, log_alphas: Sequence[Tensor], of_loss: Sequence[Tensor]) -> list[Tensor]:
        """What the constraints push each log_alpha with; `of_loss`, df/dlog_alpha, tells the unit."""
        prices: list[dict[str, float]] = [{} for _ in self._size.sets]
        for constraint, members, dual in zip(self.constraints, self._members, self.multipliers, strict=True):
            count = sum(self._size.sets[index].count for index in members)
            dual.observe(sum(float(of_loss[index].double().square().sum()) for index in members) / count)
            mean_cost = self._size.total(constraint.budget, members) / count
            # The slope of P at a half-open gate is 1/4.
            price = 4 * dual.pressure * math.sqrt(dual.mean_square) / mean_cost
            for index in members:
                prices[index][constraint.budget] = prices[index].get(constraint.budget, 0.0) + price
        return [slope.to(a.dtype) for slope, a in zip(self._size.slopes(log_alphas, prices), log_alphas, strict=True)]

    def ascend(self, log_alphas: Sequence[Tensor], progress: float) -> list[float]:
        """Move the multipliers, and return the sparsities expected now.

        progress: how much of the target's warm-up is over, in [0, 1]; 1 afterwards.
        """
        now = self.sparsities(log_alphas)
        if self._start is None:
            self._start = now
        ascent, targets = self._ascent, self._targets(progress)
        for constraint, dual, target, sparsity in zip(self.constraints, self.multipliers, targets, now, strict=True):
            dual.ascend(
                target - sparsity,
                ascent.rate,
                ascent.bound,
                rho=ascent.rho,
                equality=constraint.kind == "equality",
                restart=ascent.restart,
            )
        return now

    @torch.no_grad()
    def project(self, log_alphas: Sequence[Tensor], progress: float = 1.0) -> list[float]:
        """Shift the log_alphas of each constraint, in place, until all constraints hold; returns the sparsities then.

        The result is within 1e-4 where one shift can reach it; several constraints take turns, which may end short of
        that where they contradict each other.
        """
        if self._start is None:
            self._start = self.sparsities(log_alphas)
        targets = self._targets(progress)
        for _ in range(_TURNS):
            for index, target in enumerate(targets):
                self._shift(log_alphas, index, target)
            now = self.sparsities(log_alphas)
            if all(self._met(*each) for each in zip(self.constraints, targets, now, strict=True)):
                break
        return now

    def _targets(self, progress: float) -> list[float]:
        assert self._start is not None
        # A start that is beyond the target already, as a constraint on one layer may find it, needs no warm-up.
        begins = [min(start, each.target) for start, each in zip(self._start, self.constraints, strict=True)]
        return [
            begin + (constraint.target - begin) * min(progress, 1.0)
            for begin, constraint in zip(begins, self.constraints, strict=True)
        ]

    @staticmethod
    def _met(constraint: SizeConstraint, target: float, sparsity: float) -> bool:
        if constraint.kind == "inequality":
            return sparsity >= target - _CLOSE
        return abs(sparsity - target) <= _CLOSE

    def _shift(self, log_alphas: Sequence[Tensor], index: int, target: float) -> None:
        """Bisect for the shift of one constraint; sparsity rises with it."""
        constraint, members = self.constraints[index], self._members[index]
        total = self._size.total(constraint.budget, members)

        def sparsity(shift: float) -> float:
            moved = [a - shift if i in members else a for i, a in enumerate(log_alphas)]
            sizes = self._size.sizes(moved, constraint.budget)
            return 1 - float(sum(sizes[i] for i in members)) / total

        low, high = (0.0 if constraint.kind == "inequality" else -_FARTHEST), _FARTHEST
        if self._met(constraint, target, sparsity(0.0)):
            return
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if sparsity(middle) < target else (low, middle)
        for i in members:
            log_alphas[i].sub_(high)

    def state_dict(self) -> dict[str, Tensor]:
        """Multipliers and where the targets' warm-up began."""
        rows = torch.tensor([astuple(dual) for dual in self.multipliers], dtype=torch.float64)
        start = torch.tensor(self._start if self._start is not None else [], dtype=torch.float64)
        return {"multipliers": rows, "start": start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        self.multipliers = [Multipliers(*row) for row in state["multipliers"].tolist()]
        self._start = state["start"].tolist() or None
