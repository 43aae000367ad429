"""Proofs for masks under budgets: prices that anybody can evaluate in one pass.

For every mask z within the limits, with k kept where a count is given, and r_i = c_i + lambda . a_i - nu,

    c.z - D(lambda, nu) = sum over kept r+  +  sum over pruned (-r)+  +  sum_j lambda_j (b_j - usage_j)  >= 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from argprune.solvers.ilp.items import Items
from argprune.solvers.ilp.problem import Selection


@dataclass(frozen=True)
class BudgetCertificate:
    """Prices of budgets for a mask: they show in one pass how far, at most, the mask is from optimal.

    limits: of each named budget; keep: the exact count, or None. prices: of each budget, >= 0, cost by weight; nu: dual
    value of the count, 0 without one. bound: D(prices, nu), below which no mask costs; gap: cost of the mask above it,
    0 = optimal. An optimal mask may have a positive gap, unlike with counts: budgets are knapsacks.
    Source: dossier paper-pins-sparsebert, section 6.

    >>> problem = Selection(torch.tensor([-3.0, -2.0, -2.0]), budgets={"flops": (torch.tensor([3.0, 1.0, 1.0]), 3.0)})
    >>> certificate = BudgetCertificate.of(problem, [torch.tensor([False, True, True])], {"flops": 1.0})
    >>> certificate.bound, certificate.gap, certificate.check(problem, [torch.tensor([True, False, False])])
    (-5.0, 1.0, 2.0)
    """

    limits: dict[str, float]
    keep: int | None
    prices: dict[str, float]
    nu: float
    bound: float
    gap: float

    @classmethod
    def of(
        cls, problem: Selection, masks: Tensor | Sequence[Tensor], prices: Mapping[str, float], nu: float = 0.0
    ) -> BudgetCertificate:
        """The certificate that prices of all budgets give. Raises ValueError for masks that break a limit or count."""
        items = Items.of(problem)
        limits = {knapsack.name: knapsack.limit for knapsack in problem.knapsacks}
        if prices.keys() != limits.keys() or not all(0 <= price < math.inf for price in prices.values()):
            raise ValueError(
                f"BudgetCertificate: prices {dict(prices)}; give finite ones >= 0 of the budgets {', '.join(limits)}."
            )
        if not math.isfinite(nu) or (nu != 0 and items.keep is None):
            raise ValueError(f"BudgetCertificate: nu {nu}; give a finite number, and 0 without a count.")
        ordered = {name: float(prices[name]) for name in limits}
        bound = items.bound(np.array(list(ordered.values())), nu)
        made = cls(limits, items.keep, ordered, float(nu), bound, 0.0)
        return cls(limits, items.keep, ordered, float(nu), bound, made.check(problem, masks))

    def check(self, problem: Selection, masks: Tensor | Sequence[Tensor]) -> float:
        """The gap of the mask, computed from nothing but the problem, the mask and the prices; 0 = optimal.

        One pass, in chunks, accumulated in float64. Raises ValueError if the mask breaks a limit, the count or a group,
        and for a problem with other limits.
        """
        items = Items.of(problem)
        limits = {knapsack.name: knapsack.limit for knapsack in problem.knapsacks}
        if limits != self.limits or items.keep != self.keep:
            raise ValueError(
                f"BudgetCertificate: of limits {self.limits} and keep {self.keep}; "
                f"the problem has limits {limits} and keep {items.keep}."
            )
        flags = items.flags(problem, masks)
        count = sum(int(kept.count_nonzero()) for kept in flags)
        if self.keep not in (None, count):
            raise ValueError(f"BudgetCertificate: the mask keeps {count}; it must keep {self.keep}.")
        usage = items.usage(flags)
        if not items.fits(usage):
            taken = dict(zip(limits, usage.tolist(), strict=True))
            raise ValueError(f"BudgetCertificate: the mask takes {taken}; the limits are {limits}.")
        prices = np.array(list(self.prices.values()))
        gap = float(prices @ np.maximum(items.limits - usage, 0.0))
        for part in items.priced(prices, self.nu, flags):
            assert part.kept is not None
            gap += float(torch.where(part.kept, part.priced, -part.priced).clamp(min=0).sum())
        return gap

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and dicts, for JSON."""
        return {
            "limits": dict(self.limits),
            "keep": self.keep,
            "prices": dict(self.prices),
            "nu": self.nu,
            "bound": self.bound,
            "gap": self.gap,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BudgetCertificate:
        """Undo `to_dict`. Raises ValueError for a missing or an unknown entry."""
        names = cls.__dataclass_fields__.keys()
        if data.keys() != names:
            raise ValueError(f"BudgetCertificate: entries {', '.join(sorted(data))}; give {', '.join(sorted(names))}.")
        return cls(
            limits={str(name): float(limit) for name, limit in data["limits"].items()},
            keep=None if data["keep"] is None else int(data["keep"]),
            prices={str(name): float(price) for name, price in data["prices"].items()},
            nu=float(data["nu"]),
            bound=float(data["bound"]),
            gap=float(data["gap"]),
        )
