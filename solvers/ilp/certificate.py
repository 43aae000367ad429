"""Proofs of optimality for masks under count constraints, cheap to make and to check.

The program: minimise sum_i c_i z_i over z in {0,1}^n with sum_i z_i = keep and, in each tensor l,
least_l <= sum_(i in l) z_i <= most_l. With a multiplier nu of the total and mu_l of the tensor (mu_l > 0 pushes its
count up from `least`, mu_l < 0 down from `most`), t_l = nu + mu_l, weak duality says for every feasible z

    c.z - D(nu, t) = sum over kept (c - t_l)+  +  sum over pruned (t_l - c)+
                     + sum_l [ (t_l - nu)+ (count_l - least_l) + (nu - t_l)+ (most_l - count_l) ]  >= 0,

and D is a lower bound on every feasible mask. One count alone (least = 0, most = size) has t_l = nu; one count a
tensor has least = most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from argprune.solvers.ilp.problem import Selection, chunks, matched, refuse_nan
from argprune.solvers.shards import ShardGroup


@dataclass(frozen=True)
class Certificate:
    """A dual solution for a mask: it shows in one pass how far, at most, the mask is from optimal.

    keep: the total count; least, most: each tensor's bounds. nu: dual value of the total, in units of the costs;
    thresholds: of each tensor, nu + its bounds' dual value. gap: cost of the mask above the bound, 0 = optimal.
    ties: entries whose cost equals their threshold. margin: the mask stays optimal if no cost moves by more than this,
    inf where it is the only one; 0 for ties and for masks that are not optimal.
    Source: dossier paper-pins-sparsebert, sections 4.2 to 4.5 and 5.

    >>> costs = torch.tensor([3.0, 1.0, 2.0])
    >>> certificate = Certificate.of(costs, torch.tensor([False, True, False]))
    >>> certificate.nu, certificate.margin, certificate.check(costs, torch.tensor([False, False, True]))
    (1.0, 0.5, 1.0)
    """

    keep: int
    least: tuple[int, ...]
    most: tuple[int, ...]
    nu: float
    thresholds: tuple[float, ...]
    gap: float
    ties: int
    margin: float

    @classmethod
    def of(
        cls,
        costs: Tensor | Sequence[Tensor],
        masks: Tensor | Sequence[Tensor],
        *,
        per_tensor: bool = False,
        least: Sequence[int] | None = None,
        most: Sequence[int] | None = None,
    ) -> Certificate:
        """The certificate of any mask against the best one with as many kept entries in total.

        costs: as for `Selection`; masks: bool, of the same shapes. per_tensor: against the best one with as many in
        every tensor; least, most: against the best one within these bounds. One pass where the mask is optimal, else
        the optimum is computed first. Raises ValueError for NaN, shapes that differ and counts out of the bounds.
        """
        tensors, kept = matched("Certificate", costs, masks)
        refuse_nan(tensors)
        counts = [int(mask.count_nonzero()) for mask in kept]
        problem = Selection(tensors, keep=counts if per_tensor else sum(counts), least=least, most=most)
        keep, low, high = problem.limits()
        _check_counts(counts, keep, low, high)
        edges = [_edges(cost, mask) for cost, mask in zip(tensors, kept, strict=True)]
        width = _width(counts, edges, low, high)
        optimal = width >= 0
        if not optimal:
            from argprune.solvers.ilp.solve import smallest_within

            best = smallest_within(tensors, keep, low, high)
            counts = [int(mask.count_nonzero()) for mask in best]
            edges = [_edges(cost, mask) for cost, mask in zip(tensors, best, strict=True)]
        nu, thresholds = _duals(counts, edges, low, high)
        ties = sum(_equal(cost, threshold) for cost, threshold in zip(tensors, thresholds, strict=True))
        made = cls(keep, low, high, nu, thresholds, 0.0, ties, width / 2 if optimal else 0.0)
        # Where every kept cost is at most the threshold and every pruned one at least, all terms of the gap are zero.
        return made if optimal else _with_gap(made, made.check(tensors, kept))

    @classmethod
    def of_shards(
        cls, costs: Sequence[Tensor], masks: Sequence[Tensor], sizes: Sequence[int], per_tensor: bool, group: ShardGroup
    ) -> Certificate:
        """The certificate of an optimal mask of tensors of which every process of a group holds some rows.

        costs, masks: this process's parts. sizes: entries of the whole tensors. per_tensor: as in `of`. All processes
        must call this, and have the same result: that of one process which holds everything. Raises ValueError for a
        mask that is not optimal.
        """
        counts = [int(count) for count in group.add_up([int(mask.count_nonzero()) for mask in masks])]
        everyone = group.gather([_edges(cost, mask) for cost, mask in zip(costs, masks, strict=True)])
        edges = [
            (max(low for low, _ in parts), min(high for _, high in parts)) for parts in zip(*everyone, strict=True)
        ]
        low, high = (tuple(counts), tuple(counts)) if per_tensor else ((0,) * len(sizes), tuple(sizes))
        width = _width(counts, edges, low, high)
        if width < 0:
            raise ValueError("Certificate: the mask of these shards is not optimal; give what was selected from them.")
        nu, thresholds = _duals(counts, edges, low, high)
        [ties] = group.add_up([sum(_equal(cost, at) for cost, at in zip(costs, thresholds, strict=True))])
        return cls(sum(counts), low, high, nu, thresholds, 0.0, int(ties), width / 2)

    def check(
        self, costs: Tensor | Sequence[Tensor], masks: Tensor | Sequence[Tensor], group: ShardGroup | None = None
    ) -> float:
        """The gap of the mask, computed from nothing but the costs, the mask and the dual values; 0 = optimal.

        group: where costs and masks are this process's rows of the tensors, the processes that hold the others; all
        must call this, and have the same result.
        One pass, in chunks, accumulated in float64; nothing is concatenated. Never NaN: equal infinities differ by 0.
        Raises ValueError if the mask does not hold exactly the stated counts, if shapes differ, and for NaN.
        """
        tensors, kept = matched("Certificate", costs, masks)
        if len(tensors) != len(self.thresholds):
            raise ValueError(f"Certificate: of {len(self.thresholds)} tensors; {len(tensors)} were given.")
        refuse_nan(tensors)
        counts = [int(mask.count_nonzero()) for mask in kept]
        slacks = [
            float(_slack(part, chosen, threshold))
            for cost, mask, threshold in zip(tensors, kept, self.thresholds, strict=True)
            for part, chosen in chunks(cost, mask)
        ]
        if group is not None:
            *summed, slack = group.add_up([*counts, sum(slacks)])
            counts, slacks = [int(count) for count in summed], [slack]
        _check_counts(counts, self.keep, self.least, self.most)
        terms = [
            _above(threshold, self.nu) * (count - low) if count > low else 0.0
            for threshold, count, low in zip(self.thresholds, counts, self.least, strict=True)
        ]
        terms += [
            _above(self.nu, threshold) * (high - count) if count < high else 0.0
            for threshold, count, high in zip(self.thresholds, counts, self.most, strict=True)
        ]
        return sum(terms + slacks)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON; infinities as strings, which JSON has no numbers for."""
        return {
            "keep": self.keep,
            "least": list(self.least),
            "most": list(self.most),
            "nu": _plain(self.nu),
            "thresholds": [_plain(value) for value in self.thresholds],
            "gap": _plain(self.gap),
            "ties": self.ties,
            "margin": _plain(self.margin),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Certificate:
        """Undo `to_dict`. Raises ValueError for a missing or an unknown entry."""
        names = cls.__dataclass_fields__.keys()
        if data.keys() != names:
            raise ValueError(f"Certificate: entries {', '.join(sorted(data))}; give {', '.join(sorted(names))}.")
        return cls(
            keep=int(data["keep"]),
            least=tuple(int(value) for value in data["least"]),
            most=tuple(int(value) for value in data["most"]),
            nu=float(data["nu"]),
            thresholds=tuple(float(value) for value in data["thresholds"]),
            gap=float(data["gap"]),
            ties=int(data["ties"]),
            margin=float(data["margin"]),
        )


def of_one_count(
    sizes: Sequence[int], keep: int, largest_kept: float, smallest_pruned: float, ties: int
) -> Certificate:
    """The certificate of an optimal mask under one count, from what selecting it has seen."""
    least, thresholds = (0,) * len(sizes), (largest_kept,) * len(sizes)
    margin = _difference(largest_kept, smallest_pruned) / 2
    return Certificate(keep, least, tuple(sizes), largest_kept, thresholds, 0.0, ties, margin)


def _with_gap(certificate: Certificate, gap: float) -> Certificate:
    return Certificate(**{**certificate.__dict__, "gap": gap})


def _check_counts(counts: Sequence[int], keep: int, least: Sequence[int], most: Sequence[int]) -> None:
    if sum(counts) != keep:
        raise ValueError(f"Certificate: the mask keeps {sum(counts)} entries; it must keep {keep}.")
    for index, (count, low, high) in enumerate(zip(counts, least, most, strict=True)):
        if not low <= count <= high:
            raise ValueError(f"Certificate: the mask keeps {count} of tensor {index}; it must keep {low} to {high}.")


def _edges(cost: Tensor, mask: Tensor) -> tuple[float, float]:
    """The largest kept and the smallest pruned cost; -inf and inf where there is none."""
    if cost.numel() == 0:
        return -math.inf, math.inf
    extremes = [
        (torch.where(kept, part, -math.inf).amax(), torch.where(kept, math.inf, part).amin())
        for part, kept in chunks(cost, mask)
    ]
    kept_most, pruned_least = zip(*extremes, strict=True)
    return float(torch.stack(kept_most).amax()), float(torch.stack(pruned_least).amin())


def _width(
    counts: Sequence[int], edges: Sequence[tuple[float, float]], least: Sequence[int], most: Sequence[int]
) -> float:
    """What the cheapest exchange of a kept entry for a pruned one costs; negative = the mask is not optimal.

    One exchange is enough to look at: counts of prefixes under bounds and a total are an M-convex set, on which a
    separable convex function without a better neighbour is minimal.
    """
    widths = [_difference(low, high) for low, high in edges]
    removable = [edge[0] for edge, count, low in zip(edges, counts, least, strict=True) if count > low]
    addable = [edge[1] for edge, count, high in zip(edges, counts, most, strict=True) if count < high]
    if removable and addable:
        widths.append(_difference(max(removable), min(addable)))
    return min(widths)


def _duals(
    counts: Sequence[int], edges: Sequence[tuple[float, float]], least: Sequence[int], most: Sequence[int]
) -> tuple[float, tuple[float, ...]]:
    """nu and thresholds for which all terms of an optimal mask's gap are zero.

    t_l must lie between the edges of its tensor, at or below nu where the count could fall, at or above where it could
    rise: so must nu lie, and the edge of the first kind serves, or else one of the second.
    """
    removable = [edge[0] for edge, count, low in zip(edges, counts, least, strict=True) if count > low]
    addable = [edge[1] for edge, count, high in zip(edges, counts, most, strict=True) if count < high]
    if removable or addable:
        nu = max(removable) if removable else min(addable)
        return nu, tuple(min(max(nu, low), high) for low, high in edges)
    # Every count is given, so that the total says nothing: its dual value may be anything.
    return 0.0, tuple(low if count else high for (low, high), count in zip(edges, counts, strict=True))


def _difference(low: float, high: float) -> float:
    """high - low, where equal infinities differ by nothing."""
    return 0.0 if low == high else high - low


def _above(a: float, b: float) -> float:
    return a - b if a > b else 0.0


def _slack(cost: Tensor, kept: Tensor, threshold: float) -> Tensor:
    """Sum over kept of (c - t)+ plus sum over pruned of (t - c)+ in float64; equal infinities add 0."""
    cost = cost.double()
    wrong = torch.where(kept, cost > threshold, cost < threshold)
    return torch.where(wrong, (cost - threshold).abs(), 0.0).sum()


def _equal(cost: Tensor, threshold: float) -> int:
    return sum(int((part == threshold).count_nonzero()) for (part,) in chunks(cost))


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
