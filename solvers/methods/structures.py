"""Which groups a method prunes, and which of them it keeps: exact counts by size-normalised norms.

keep = argmax over sets K of groups of sum_{g in K} ||w_g|| / sqrt(size_g) subject to a count of groups or entries
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from argprune.solvers.groups import BlockColumns, BlockRows, Blocks, Columns, Elements, Groups, Part, Rows, Tied, Weight
from argprune.solvers.ilp.closed_form import keep_largest
from argprune.solvers.methods.base import keep_count

Scope = Literal["matrix", "global"]
StructureName = Literal[
    "elements", "rows", "columns", "block-rows", "block-columns", "blocks", "heads", "neurons", "heads-and-neurons"
]

_TIES: dict[str, tuple[Literal["heads", "neurons"], ...]] = {
    "heads": ("heads",),
    "neurons": ("neurons",),
    "heads-and-neurons": ("heads", "neurons"),
}
_TAKES = {"block-rows": ("width", "strips"), "block-columns": ("height", "strips"), "blocks": ("width", "height")}
_SIZE = 16


@dataclass(frozen=True)
class Structure:
    """How a method ties entries, from its options.

    name: "elements", "rows", "columns"; "block-rows" (parts of rows in strips `width` inputs wide, or in `strips`
    strips), "block-columns" (parts of columns in strips `height` outputs high, or in `strips` strips), "blocks" (of
    `height` x `width`); "heads", "neurons" or both, which are tied across matrices and come with the model.
    A width or height that a structure needs and that is not given is 16. Sizes need not divide a matrix's.

    >>> Structure("block-rows", strips=8).groups()
    BlockRows(width=None, strips=8)
    """

    name: StructureName
    width: int | None = None
    height: int | None = None
    strips: int | None = None

    def __post_init__(self) -> None:
        if self.name not in get_args(StructureName):
            raise ValueError(f"structure {self.name!r}; choose one of {', '.join(get_args(StructureName))}.")
        takes = _TAKES.get(self.name, ())
        for option in ("width", "height", "strips"):
            if getattr(self, option) is not None and option not in takes:
                raise ValueError(
                    f"structure {self.name!r} with {option} {getattr(self, option)}; it takes "
                    f"{' or '.join(takes) or 'no size'}."
                )
        if not self.kinds:
            self.groups()

    @property
    def kinds(self) -> tuple[Literal["heads", "neurons"], ...]:
        """The units tied across matrices that it stands for."""
        return _TIES.get(self.name, ())

    def beyond_rows(self, weights: Sequence[Weight]) -> str | None:
        """Why some groups of these weights are not within one row as it is stored; None where all are."""
        if self.name not in ("elements", "rows", "block-rows"):
            return f"structure {self.name!r} ties entries of several rows"
        turned = next((weight.name for weight in weights if weight.transposed and self.name != "elements"), None)
        return None if turned is None else f"structure {self.name!r} ties entries of several stored rows of {turned}"

    def groups(self) -> Groups:
        """The groups of each matrix. Raises ValueError for units that are tied across matrices."""
        match self.name:
            case "elements":
                return Elements()
            case "rows":
                return Rows()
            case "columns":
                return Columns()
            case "block-rows":
                return BlockRows(_given(self.width, self.strips), self.strips)
            case "block-columns":
                return BlockColumns(_given(self.height, self.strips), self.strips)
            case "blocks":
                return Blocks(_given(self.height) or 0, _given(self.width) or 0, pad=True)
        raise ValueError(f"structure {self.name!r} ties entries across matrices, which have no groups of their own.")

    def ties(self, weights: Sequence[Weight], given: Sequence[Tied] | None) -> list[Tied]:
        """The groups of all weights: of each matrix by itself, or as given where they are tied across matrices.

        Raises ValueError where ties are needed and not given, where they leave out a weight or hold one twice, and
        for a weight of one axis where the structure is one of matrices.
        """
        if not self.kinds:
            groups = self.groups()
            for weight in weights:
                if weight.parameter.ndim != 2 and not isinstance(groups, Elements):
                    raise ValueError(
                        f"{weight.name}: shape {tuple(weight.parameter.shape)}, and structure {self.name!r} is one of "
                        f"matrices. Leave biases out (biases: false)."
                    )
            return [Tied(weight.name, [Part(weight, groups)]) for weight in weights]
        if given is None:
            raise ValueError(f"structure {self.name!r} is tied across matrices: call `tie` before `attach`.")
        uses = [id(weight.parameter) for tie in given for weight in tie.weights]
        for weight in weights:
            if (found := uses.count(id(weight.parameter))) != 1:
                raise ValueError(f"{weight.name} lies in {found} ties; each weight to prune must lie in exactly one.")
        if len(uses) > len(weights):
            raise ValueError(f"ties of {len(uses)} weights for {len(weights)} weights to prune; tie no others.")
        return list(given)


def _given(size: int | None, strips: int | None = None) -> int | None:
    """The size to build groups with: as given, or the default where nothing else says how large they are."""
    return _SIZE if size is None and strips is None else size


def select_groups(ties: Sequence[Tied], sparsity: float, scope: Scope) -> list[Tensor]:
    """Which groups to keep, a bool (count,) for each tie: those of largest root mean square.

    sparsity: in [0, 1). scope: "matrix" keeps exactly `keep_count` groups of each tie; "global" as many of all
    together as bring the entries kept closest to `keep_count` of all entries. Equal norms are kept in order.
    """
    norms = [tie.norms(rms=True) for tie in ties]
    if scope == "matrix":
        return [keep_largest([norm], keep_count(len(norm), sparsity))[0] for norm in norms]
    sizes = torch.cat([tie.sizes() for tie in ties])
    order = torch.cat(norms).sort(descending=True, stable=True).indices
    return keep_largest(norms, closest_count(sizes[order], keep_count(int(sizes.sum()), sparsity)))


def closest_count(sizes: Tensor, entries: int) -> int:
    """How many of the first groups together hold closest to `entries` entries, the fewer where two are as close.

    >>> closest_count(torch.tensor([4, 4, 2]), 5), closest_count(torch.tensor([4, 4, 2]), 9)
    (1, 2)
    """
    held = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    return int((held - entries).abs().argmin())


def tie_masks(weights: Sequence[Weight], ties: Sequence[Tied], kept: Sequence[Tensor]) -> list[Tensor]:
    """The masks of the weights, in their order, from which groups of each tie are kept."""
    masks = {
        id(weight.parameter): mask
        for tie, groups in zip(ties, kept, strict=True)
        for weight, mask in zip(tie.weights, tie.masks(groups), strict=True)
    }
    return [masks[id(weight.parameter)] for weight in weights]


def count_tolerance(ties: Sequence[Tied], sparsity: float, scope: Scope) -> float:
    """By how many entries what `select_groups` keeps may differ from (1 - sparsity) of all, over every choice of it."""
    sizes = [tie.sizes().sort().values for tie in ties]
    if scope == "global":
        return max(float(size[-1]) for size in sizes if len(size)) / 2 + 0.5
    tolerance = 0.0
    for size in sizes:
        keep, wanted = keep_count(len(size), sparsity), (1 - sparsity) * float(size.sum())
        fewest, most = float(size[:keep].sum()), float(size[len(size) - keep :].sum())
        tolerance += max(wanted - fewest, most - wanted)
    return tolerance
