"""How large a gated network is expected to be, and how that moves with each gate.

    E[size] = sum_u cost_u * prod_{g in gates(u)} P(z_g > 0)

A unit (a rank-1 component, a head, a neuron, a weight) is there if all the gates it stands behind are open: its own,
and that of the layer it lies in, if layers have gates. Gates are drawn independently, so that probabilities multiply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from argprune.solvers.lagrangian.hard_concrete import HardConcrete


@dataclass(frozen=True, eq=False)
class Gated:
    """Units behind one gate each: what they cost, and behind which other gates they stand.

    count: of units. costs: budget's name -> cost of a unit, a number >= 0 or a tensor (count,); a budget that is not
    named costs nothing. within: position of the set of gates that these units also stand behind, an earlier one; all
    of them stand behind its gate `which` (a number, or int64 (count,)).
    Raises ValueError for counts, costs and positions out of range.
    """

    name: str
    count: int
    costs: Mapping[str, float | Tensor] = field(default_factory=dict)
    within: int | None = None
    which: int | Tensor = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"Gated {self.name!r}: count {self.count}; there is at least one unit.")
        for budget, cost in self.costs.items():
            values = torch.as_tensor(cost)
            if values.numel() not in (1, self.count) or not bool((values >= 0).all() & values.isfinite().all()):
                raise ValueError(
                    f"Gated {self.name!r}: cost of {budget!r} is {cost}; give a finite number >= 0, or {self.count}."
                )

    def cost(self, budget: str, like: Tensor) -> Tensor:
        """The cost of each unit, (count,), float64 on the device of `like`."""
        return torch.as_tensor(self.costs.get(budget, 0.0), dtype=torch.float64, device=like.device).expand(self.count)

    def behind(self, like: Tensor) -> Tensor:
        """Which gate of `within` each unit stands behind, int64 (count,)."""
        return torch.as_tensor(self.which, device=like.device).expand(self.count)


class ExpectedSize:
    """The expected size of some sets of gated units, budget by budget; all sums in float64.

    sets: `within` of each names an earlier one. gates: the distribution of all gates.

    >>> size = ExpectedSize([Gated("layer", 2, {"parameters": 10.0})])
    >>> totals = size.sizes([torch.tensor([20.0, -20.0])], "parameters")
    >>> [round(float(total), 4) for total in totals]
    [10.0]
    """

    def __init__(self, sets: Sequence[Gated], gates: HardConcrete | None = None) -> None:
        for index, units in enumerate(sets):
            if units.within is None:
                continue
            if not 0 <= units.within < index:
                raise ValueError(f"ExpectedSize: {units.name!r} lies within set {units.within}; give an earlier one.")
            which, count = torch.as_tensor(units.which), sets[units.within].count
            if not bool(((which >= 0) & (which < count)).all()):
                raise ValueError(f"ExpectedSize: {units.name!r} stands behind gate {units.which} of {count}.")
        self.sets, self.gates = tuple(sets), gates or HardConcrete()

    def total(self, budget: str, members: Sequence[int] | None = None) -> float:
        """The size with all gates open, of all sets or of those at positions `members`."""
        chosen = self.sets if members is None else [self.sets[index] for index in members]
        return sum(float(units.cost(budget, torch.empty(0)).sum()) for units in chosen)

    def probabilities(self, log_alphas: Sequence[Tensor]) -> list[Tensor]:
        """P(unit is there), float64 (count,) for each set; differentiable."""
        alive: list[Tensor] = []
        for units, log_alpha in zip(self.sets, log_alphas, strict=True):
            own = self.gates.open_probability(log_alpha.double())
            alive.append(own if units.within is None else own * alive[units.within][units.behind(log_alpha)])
        return alive

    def sizes(self, log_alphas: Sequence[Tensor], budget: str) -> list[Tensor]:
        """The expected size of each set, float64 scalars; differentiable."""
        alive = self.probabilities(log_alphas)
        return [(units.cost(budget, p) * p).sum() for units, p in zip(self.sets, alive, strict=True)]

    @torch.no_grad()
    def slopes(self, log_alphas: Sequence[Tensor], prices: Sequence[Mapping[str, float]]) -> list[Tensor]:
        """The gradient in each log_alpha of sum_sets sum_budgets price * E[size], float64; in closed form.

        prices: of each set, budget's name -> price; what is not named costs nothing.
        """
        own = [self.gates.open_probability(log_alpha.double()) for log_alpha in log_alphas]
        alive = self.probabilities(log_alphas)
        # How the priced size moves with the probability that a unit is there, its children included.
        worth = [
            sum((price * units.cost(budget, p) for budget, price in priced.items()), start=torch.zeros_like(p))
            for units, p, priced in zip(self.sets, own, prices, strict=True)
        ]
        slopes: list[Tensor] = [torch.empty(0)] * len(own)
        # Children come after their parents, so what they add is complete when a parent's turn comes.
        for index in reversed(range(len(own))):
            units, p = self.sets[index], own[index]
            above = torch.ones_like(p)
            if units.within is not None:
                behind = units.behind(p)
                above = alive[units.within][behind]
                worth[units.within].index_add_(0, behind, worth[index] * p)
            slopes[index] = worth[index] * above * p * (1 - p)
        return slopes
