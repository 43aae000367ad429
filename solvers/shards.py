"""Weights of which every process holds some rows: what their entries add up to over all processes.

Fully sharded training leaves each process a part of every tensor, cut along its first dimension: rank 0 has the first
rows, rank 1 those that follow, and the last ranks may have none. A method works on the part it holds; what it sums,
counts or selects over a whole matrix goes through here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    # At run time this would be a circle: a weight says which of its rows it holds.
    from argprune.solvers.groups.base import Weight

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ShardGroup:
    """The processes that share the rows of weights; each method is called by all of them, in the same order.

    group: of torch.distributed, on the CPU (gloo): only numbers go over it.
    """

    group: dist.ProcessGroup

    @property
    def rank(self) -> int:
        """The number of this process, which is the order of the rows."""
        return dist.get_rank(self.group)

    def gather(self, value: T) -> list[T]:
        """What each process gave, in order of rank."""
        result: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(result, value, self.group)
        return result

    def add_up(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes, in double precision; counts up to 2^53 are exact."""
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums, group=self.group)
        return list(sums.tolist())


@dataclass(frozen=True, eq=False)
class Shard:
    """Which entries of a tensor a process holds: those from flat index `start` on, of a tensor of shape `whole`.

    group: the processes that hold the others.
    """

    group: ShardGroup
    whole: torch.Size
    start: int

    @property
    def numel(self) -> int:
        """The number of entries of the whole tensor."""
        return math.prod(self.whole)


def group_of(weights: Sequence[Weight]) -> ShardGroup | None:
    """The processes that share these weights' rows; None where this process has all of them."""
    shard = weights[0].shard if weights else None
    return None if shard is None else shard.group


def totals(weights: Sequence[Weight], values: Sequence[float]) -> list[float]:
    """What values of this process's entries of the weights add up to over all entries; sharded: all must call this."""
    group = group_of(weights)
    return list(values) if group is None else group.add_up(values)
