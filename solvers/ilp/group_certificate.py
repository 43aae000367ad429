"""Proofs of optimality for masks with a count in every group, as N:M: one dual value for each group.

The program: minimise sum_i c_i z_i over z in {0,1}^n with sum_(i in g) z_i = k_g in every group g. For any duals nu_g
and any mask with these counts,

    c.z - D(nu) = sum over kept (c - nu_g)+  +  sum over pruned (nu_g - c)+  >= 0.

There may be as many groups as a quarter of the entries. The certificate keeps no dual value but the rule that they all
follow, nu_g = the k_g-th smallest cost of the group, for which D is the optimum: the gap is what the mask costs above
the best one. Where no kept cost exceeds a pruned one of its group, nu_g is the largest kept one, and all terms are 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor

from argprune.solvers import groups as partitions
from argprune.solvers.groups import Groups
from argprune.solvers.ilp.problem import matched, refuse_nan

# Entries looked at together.
_BATCH = 1 << 20
_NAMES = ("BlockColumns", "BlockRows", "Blocks", "Columns", "Elements", "Rows", "Runs", "Whole")


@dataclass(frozen=True)
class GroupCertificate:
    """What shows in one pass how far a mask is from the best one with as many kept entries in every group.

    keep: the count of every group, or one each, the groups of all tensors in order. gap: cost of the mask above the
    best one, 0 = optimal. ties: entries whose cost equals their group's dual value. margin: the mask stays optimal if
    no cost moves by more than this, inf where it is the only one; 0 for ties and for masks that are not optimal.
    Source: dossier paper-pins-sparsebert, section 5.

    >>> costs = torch.tensor([[3.0, 1.0, 2.0, 0.0]])
    >>> certificate = GroupCertificate.of(costs, torch.tensor([[False, True, False, True]]), partitions.Blocks(1, 2))
    >>> certificate.keep, certificate.gap, certificate.margin
    (1, 0.0, 1.0)
    >>> certificate.check(costs, torch.tensor([[True, False, False, True]]))
    2.0
    """

    groups: Groups
    keep: int | tuple[int, ...]
    gap: float
    ties: int
    margin: float

    @classmethod
    def of(cls, costs: Tensor | Sequence[Tensor], masks: Tensor | Sequence[Tensor], groups: Groups) -> GroupCertificate:
        """The certificate of any mask against the best one with as many in every group.

        costs: as for `Selection`; masks: bool, of the same shapes. One pass; groups that are not optimal are sorted.
        Raises ValueError for NaN and for shapes that differ.
        """
        tensors, kept = matched("GroupCertificate", costs, masks)
        refuse_nan(tensors)
        counts, gap, ties, width = [], 0.0, 0, math.inf
        for rows in _batches(tensors, kept, groups):
            counts.append(rows.counts)
            gap += rows.gap()
            ties += int((rows.costs == rows.duals()[:, None]).count_nonzero())
            width = min(width, rows.width())
        each = torch.cat(counts) if counts else torch.zeros(0, dtype=torch.int64)
        same = len(each) > 0 and bool((each == each[0]).all())
        keep = int(each[0]) if same else tuple(each.tolist())
        return cls(groups, keep, gap, ties, width / 2 if width >= 0 else 0.0)

    def check(self, costs: Tensor | Sequence[Tensor], masks: Tensor | Sequence[Tensor]) -> float:
        """The gap of the mask, computed from nothing but the costs, the mask, the counts and the groups; 0 = optimal.

        One pass, in batches of groups, accumulated in float64. Never NaN: equal infinities differ by 0.
        Raises ValueError if the mask does not hold the stated counts, if shapes differ, and for NaN.
        """
        tensors, kept = matched("GroupCertificate", costs, masks)
        refuse_nan(tensors)
        start, gap = 0, 0.0
        for rows in _batches(tensors, kept, self.groups):
            stop = start + len(rows.counts)
            keep = self.keep if isinstance(self.keep, int) else torch.tensor(self.keep[start:stop])
            self._check_counts(rows.counts.cpu(), torch.as_tensor(keep), start)
            gap += rows.gap()
            start = stop
        if not isinstance(self.keep, int) and start != len(self.keep):
            raise ValueError(f"GroupCertificate: of {len(self.keep)} groups; the costs have {start}.")
        return gap

    def _check_counts(self, counts: Tensor, keep: Tensor, start: int) -> None:
        if keep.dim() and len(keep) != len(counts):
            raise ValueError(f"GroupCertificate: of {start + len(keep)} groups; the costs have more.")
        wrong = (counts != keep).nonzero().flatten()
        if len(wrong):
            index = int(wrong[0])
            count, wanted = int(counts[index]), int(keep.expand(len(counts))[index])
            group = f"group {start + index}"
            raise ValueError(f"GroupCertificate: the mask keeps {count} of {group}; it must keep {wanted}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, for JSON; infinities as strings. The groups by name and sizes."""
        sizes: dict[str, Any] = {}
        if is_dataclass(self.groups) and not isinstance(self.groups, type):
            sizes = asdict(self.groups)
        return {
            "groups": {"name": type(self.groups).__name__, **sizes},
            "keep": self.keep if isinstance(self.keep, int) else list(self.keep),
            "gap": self.gap if math.isfinite(self.gap) else str(self.gap),
            "ties": self.ties,
            "margin": self.margin if math.isfinite(self.margin) else str(self.margin),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], groups: Groups | None = None) -> GroupCertificate:
        """Undo `to_dict`. groups: needed where they are none of `argprune.solvers.groups`.

        Raises ValueError for a missing or an unknown entry, and for groups of another name.
        """
        names = cls.__dataclass_fields__.keys()
        if data.keys() != names:
            raise ValueError(f"GroupCertificate: entries {', '.join(sorted(data))}; give {', '.join(sorted(names))}.")
        name, sizes = data["groups"]["name"], {key: data["groups"][key] for key in data["groups"] if key != "name"}
        if groups is None:
            if name not in _NAMES:
                raise ValueError(f"GroupCertificate: groups {name!r}, none of {', '.join(_NAMES)}; give groups.")
            groups = getattr(partitions, name)(**sizes)
        elif type(groups).__name__ != name:
            raise ValueError(f"GroupCertificate: groups {type(groups).__name__}; the certificate is of {name}.")
        keep = data["keep"]
        return cls(
            groups=groups,
            keep=keep if isinstance(keep, int) else tuple(int(count) for count in keep),
            gap=float(data["gap"]),
            ties=int(data["ties"]),
            margin=float(data["margin"]),
        )


@dataclass(frozen=True, eq=False)
class _Rows:
    """Some groups as rows of costs and flags, (rows, size); counts of kept, and the largest kept, smallest pruned."""

    costs: Tensor
    kept: Tensor
    counts: Tensor
    highest_kept: Tensor
    lowest_pruned: Tensor

    def duals(self) -> Tensor:
        """The counts-th smallest cost of each row, of the costs' dtype; the smallest where nothing is kept."""
        result = torch.where(self.counts > 0, self.highest_kept, self.lowest_pruned)
        worse = (self.highest_kept > self.lowest_pruned).nonzero().flatten()
        ordered = self.costs[worse].sort(dim=1).values
        result[worse] = ordered.gather(1, (self.counts[worse] - 1)[:, None]).flatten()
        return result

    def gap(self) -> float:
        worse = self.highest_kept > self.lowest_pruned
        if not bool(worse.any()):
            return 0.0
        costs, kept, duals = self.costs[worse].double(), self.kept[worse], self.duals()[worse, None].double()
        wrong = torch.where(kept, costs > duals, costs < duals)
        return float(torch.where(wrong, (costs - duals).abs(), 0.0).sum())

    def width(self) -> float:
        """What the cheapest exchange within a row costs; negative = not optimal."""
        low, high = self.highest_kept.double(), self.lowest_pruned.double()
        # Equal infinities differ by nothing, unless one of them stands for no entry at all.
        only = (self.counts == 0) | (self.counts == self.costs.shape[1])
        return float(torch.where(low == high, 0.0, high - low).masked_fill(only, math.inf).amin())


def _batches(tensors: Sequence[Tensor], masks: Sequence[Tensor], groups: Groups) -> Iterator[_Rows]:
    for cost, mask in zip(tensors, masks, strict=True):
        stack, flags = groups.split(cost), groups.split(mask)
        step = max(1, _BATCH // max(stack.shape[1], 1))
        for costs, kept in zip(torch.split(stack, step), torch.split(flags, step), strict=True):
            if costs.numel():
                highest = torch.where(kept, costs, -math.inf).amax(1)
                lowest = torch.where(kept, math.inf, costs).amin(1)
                yield _Rows(costs, kept, kept.sum(1), highest, lowest)
