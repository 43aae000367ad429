"""Selection from tensors of which every process holds some rows: the masks of one process, a part on each.

`solve_sharded` finds the threshold without moving costs. It gives ties to the smaller rank first; here the processes
hold parts of the same tensors, and ties go where one process gives them: to the earlier tensor, then the smaller flat
index, which rises with the rank.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from argprune.solvers.ilp.certificate import Certificate
from argprune.solvers.ilp.sharded import solve_sharded
from argprune.solvers.ilp.threshold import split_ties
from argprune.solvers.shards import ShardGroup


def smallest_of_shards(costs: Sequence[Tensor], keep: int, group: ShardGroup) -> list[Tensor]:
    """Masks (True = kept) of this process's parts of the `keep` smallest costs over all tensors; all must call this.

    costs: parts of the same tensors in the same order on all processes, cut along the first dimension in order of
    rank; a part may be empty. keep: of all the entries, 0 <= keep <= their number. group: the processes.
    Raises ValueError on every process for NaN on any, and for a count out of range.
    """
    certificate = solve_sharded(costs, keep, group.group).certificate
    assert isinstance(certificate, Certificate)
    threshold = certificate.nu
    # Contiguous: a comparison keeps the strides of a transposed cost, and `view` below needs flat memory.
    masks = [(cost < threshold).contiguous() for cost in costs]
    equal = [(cost == threshold).flatten().nonzero().flatten() for cost in costs]
    told = group.gather((sum(int(mask.count_nonzero()) for mask in masks), [len(ties) for ties in equal]))
    rank, size = group.rank, len(told)
    # By tensor, then by rank.
    places = [ties[index] for index in range(len(costs)) for _, ties in told]
    kept = split_ties(places, keep - sum(below for below, _ in told))
    for index, (mask, ties) in enumerate(zip(masks, equal, strict=True)):
        mask.view(-1)[ties[: kept[index * size + rank]]] = True
    return masks


def largest_of_shards(scores: Sequence[Tensor], keep: int, group: ShardGroup) -> list[Tensor]:
    """The same for the `keep` largest scores: what `keep_largest` keeps of the whole tensors; all must call this."""
    return smallest_of_shards([-score for score in scores], keep, group)


def kept_counts(masks: Sequence[Tensor], group: ShardGroup | None = None) -> list[int]:
    """How many entries of each tensor are kept, over all processes of a group."""
    own = [int(mask.count_nonzero()) for mask in masks]
    return own if group is None else [int(count) for count in group.add_up(own)]
