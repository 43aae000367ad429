"""Groups that span several weights: an attention head, a neuron of a feed-forward layer.

    group g of the tie = union over parts of group g of the part's weight

What computes a unit and what reads it are pruned together, or pruning the one leaves the other without effect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from argprune.solvers.groups.base import Elements, Groups, Rows, Weight, group_sizes
from argprune.solvers.groups.blocks import BlockRows


class Part(NamedTuple):
    """A weight of a tie, and the groups of it that belong to the tie's groups, in the same order."""

    weight: Weight
    groups: Groups


@dataclass(frozen=True, eq=False)
class Tied:
    """Groups tied across weights; of a single weight, they are its groups.

    name: what holds them, such as a module's path. parts: (weight, groups) pairs with the same number of groups each;
    a weight occurs in one part only, and its own `groups` are ignored here. count: the number of groups; widths: the
    columns that each part has in a stack, padding included.
    Of a weight of which other processes hold other rows, groups must lie within rows: norms, sizes and what is kept are
    then of all groups, in the order of one process, stacks of this process's; all processes call the same methods.
    Raises ValueError for no parts, for a weight that occurs twice, where parts disagree on the number of groups, and
    for groups of sharded weights that go beyond a row.

    >>> first, second = (torch.nn.Parameter(torch.ones(shape)) for shape in ((4, 3), (3, 4)))
    >>> from argprune.solvers.groups import Columns, Rows
    >>> neurons = Tied("ffn", (Part(Weight("in", first), Rows()), Part(Weight("out", second), Columns())))
    >>> neurons.count, neurons.sizes().tolist()
    (4, [6, 6, 6, 6])
    """

    name: str
    parts: Sequence[Part]
    count: int = field(init=False)
    widths: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(Part(*part) for part in self.parts))
        if not self.parts:
            raise ValueError(f"Tied {self.name!r}: no parts; give at least one (weight, groups) pair.")
        if len({id(weight.parameter) for weight, _ in self.parts}) < len(self.parts):
            raise ValueError(f"Tied {self.name!r}: a weight occurs twice; give each of them once.")
        # Meta tensors have the shapes and no data: even a split that has to copy costs nothing.
        for weight, groups in self.parts:
            within_rows = isinstance(groups, Elements) or (
                isinstance(groups, Rows | BlockRows) and len(self.parts) == 1 and not weight.transposed
            )
            if weight.shard is not None and not within_rows:
                raise ValueError(
                    f"Tied {self.name!r}: this process has some rows of {weight.name}, and {groups} go beyond a row; "
                    f"give all of it."
                )
        shapes = [groups.split(torch.empty(_shape(w), device="meta")).shape for w, groups in self.parts]
        if len({count for count, _ in shapes}) > 1:
            listing = ", ".join(f"{count} of {w.name}" for (w, _), (count, _) in zip(self.parts, shapes, strict=True))
            raise ValueError(f"Tied {self.name!r}: parts differ in their number of groups: {listing}.")
        object.__setattr__(self, "count", shapes[0][0])
        object.__setattr__(self, "widths", tuple(width for _, width in shapes))

    @property
    def weights(self) -> list[Weight]:
        """The weights of the parts."""
        return [weight for weight, _ in self.parts]

    @property
    def reader(self) -> Part:
        """The last matrix: of units tied across matrices, the one that reads them, so that scaling it scales them."""
        return [part for part in self.parts if part.weight.parameter.ndim == 2][-1]

    def sizes(self) -> Tensor:
        """The number of entries of each group over all parts, int64 (count,); padding does not count."""
        sizes = [group_sizes(groups, _shape(w), w.parameter.device) for w, groups in self.parts]
        return torch.stack(sizes).sum(0)

    def stack(self) -> Tensor:
        """The detached weights as (count, size), the parts side by side; a view where there is one and it allows."""
        return self.split([weight.parameter.detach() for weight in self.weights])

    def split(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors stored like the parts' parameters (gradients, prox steps) as (count, size), side by side."""
        stacks = [
            groups.split(weight.oriented(tensor)) for (weight, groups), tensor in zip(self.parts, tensors, strict=True)
        ]
        return stacks[0] if len(stacks) == 1 else torch.cat(stacks, dim=1)

    def join(self, stack: Tensor) -> list[Tensor]:
        """Undo `split`: a tensor stored like each part's parameter."""
        pieces = torch.split(stack, list(self.widths), dim=1)
        return [
            weight.oriented(groups.join(piece, weight.matrix.shape))
            for (weight, groups), piece in zip(self.parts, pieces, strict=True)
        ]

    @torch.no_grad()
    def assign(self, stack: Tensor) -> None:
        """Write a (count, size) stack into the weights."""
        for weight, value in zip(self.weights, self.join(stack), strict=True):
            weight.parameter.copy_(value)

    def norms(self, rms: bool = False) -> Tensor:
        """The l2 norm of each group over all parts, float64 (count,); with `rms` its root mean square."""
        norms = self.whole(torch.linalg.vector_norm(self.stack(), dim=1, dtype=torch.float64))
        return norms / self.sizes().double().sqrt() if rms else norms

    def masks(self, kept: Tensor) -> list[Tensor]:
        """The masks of the parts, contiguous and stored like their parameters, from a bool (count,): True = kept."""
        if kept.shape != (self.count,):
            raise ValueError(f"Tied {self.name!r}: kept of shape {tuple(kept.shape)} for {self.count} groups.")
        return [mask.contiguous() for mask in self.join(self.own(kept)[:, None].expand(-1, sum(self.widths)))]

    def whole(self, values: Tensor) -> Tensor:
        """Values of all groups, (count,), from those of the groups that this process holds."""
        shard = self.parts[0].weight.shard
        if shard is None:
            return values
        return torch.cat([part.to(values.device) for part in shard.group.gather(values)])

    def own(self, values: Tensor) -> Tensor:
        """Of values of all groups, (count,), those of the groups that this process holds."""
        weight = self.parts[0].weight
        if weight.shard is None:
            return values
        whole = weight.shard.whole
        in_a_row = self.count // whole[0]
        first = weight.shard.start // math.prod(whole[1:]) * in_a_row
        return values[first : first + len(weight.parameter) * in_a_row]


def _shape(weight: Weight) -> torch.Size:
    """Of the whole matrix, with one row an output unit; of a sharded one, as it is stored."""
    return weight.matrix.shape if weight.shard is None else weight.shard.whole
