"""What a mask looks like: how unevenly rows, columns and heads are kept, against a random mask of equal density.

Of N entries K are kept. A random mask keeps a hypergeometric number c_j of the n entries of each of m groups, N = m n,
and

    X^2 = (N - 1) / N * sum_j (c_j - n K / N)^2 / (n K / N (1 - K / N))

has the mean m - 1 and is close to chi-square with m - 1 degrees of freedom. dispersion = X^2 / (m - 1) is 1 for random
masks, and the larger, the more whole groups are kept or pruned together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import chi2, hypergeom
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from argprune.models.prunable import find_weights
from argprune.models.structure import find_heads
from argprune.solvers.groups import Columns, Groups, Rows


@dataclass(frozen=True)
class Spread:
    """How the kept entries of a mask lie over groups of equal size.

    groups: their number. least, most: kept entries of a group, as shares of its size. empty: groups without any;
    empty_by_chance: as many a random mask has on average. dispersion: see above; None where all or nothing is kept, or
    there is one group. p_value: of a dispersion as large, of a random mask; None likewise.
    """

    groups: int
    least: float
    most: float
    empty: int
    empty_by_chance: float
    dispersion: float | None
    p_value: float | None


@dataclass(frozen=True)
class Pattern:
    """A mask's shape (outputs, inputs), its density, and its spread by rows, columns and, where it has some, heads.

    transposed: whether it is stored the other way round, as Conv1D stores its weight.
    """

    name: str
    shape: tuple[int, int]
    density: float
    rows: Spread
    columns: Spread
    heads: Spread | None = None
    transposed: bool = False


def measure_spread(mask: Tensor, groups: Groups) -> Spread:
    """The spread of a mask over groups.

    mask: bool (outputs, inputs). groups: of equal size, such as `Rows()`. Raises ValueError for another dtype.

    >>> measure_spread(torch.tensor([[True, True], [False, False]]), Rows()).dispersion
    3.0
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"measure_spread: mask of {mask.dtype}; give a boolean one, True = kept.")
    stack = groups.split(mask)
    counts = stack.sum(1).double()
    (number, size), kept = stack.shape, int(stack.sum())
    total = number * size
    share = kept / total
    dispersion = p_value = None
    if 0 < kept < total and number > 1:
        squares = float((counts - size * share).square().sum()) / (size * share * (1 - share))
        statistic = (total - 1) / total * squares
        dispersion = statistic / (number - 1)
        p_value = float(chi2.sf(statistic, number - 1))
    return Spread(
        number,
        float(counts.min()) / size,
        float(counts.max()) / size,
        int((counts == 0).sum()),
        number * float(hypergeom.pmf(0, total, kept, size)),
        dispersion,
        p_value,
    )


def find_patterns(model: nn.Module, masks: Mapping[str, Tensor]) -> list[Pattern]:
    """The pattern of each mask of a matrix, in order.

    model: the one that the masks are of, which knows where heads lie; models without known heads have none.
    masks: by weight name, bool, stored like the weights. Masks of biases, which have no rows, are left out.
    Raises ValueError for a name that is no prunable weight of the model.
    """
    transposed = {weight.name: weight.transposed for weight in find_weights(model, biases=True)}
    heads: dict[str, Groups] = {}
    try:
        ties = find_heads(model)
    except ValueError:
        # No attention of a known layout: there is nothing to say of heads.
        ties = []
    for tie in ties:
        heads |= {weight.name: groups for weight, groups in tie.parts}
    unknown = [name for name in masks if name not in transposed]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no prunable weight of this {type(model).__name__}; give its own masks.")
    patterns = []
    for name, mask in masks.items():
        if mask.ndim != 2:
            continue
        groups = heads.get(name)
        matrix = mask.t() if transposed[name] else mask
        patterns.append(
            Pattern(
                name,
                (matrix.shape[0], matrix.shape[1]),
                float(mask.double().mean()),
                measure_spread(matrix, Rows()),
                measure_spread(matrix, Columns()),
                None if groups is None else measure_spread(matrix, groups),
                transposed[name],
            )
        )
    return patterns


def density_map(mask: Tensor, size: int = 64) -> Tensor:
    """The share of kept entries in each of at most `size` x `size` equal parts of a mask, float32."""
    shape = [min(size, length) for length in mask.shape]
    return interpolate(mask.float()[None, None], size=shape, mode="area")[0, 0]


def neighbour_overlap(
    before: Tensor, after: Tensor, *, neighbours: int = 10, words: Sequence[int] | None = None
) -> float:
    """The share of each word's nearest neighbours that are so before and after, on average over words.

    before, after: (vocabulary, width) tables; widths may differ. neighbours: by the cosine, the word itself left out,
    from 1 to vocabulary - 1. words: rows to ask for; None: all. 1: all neighbours stay; chance gives
    neighbours / (vocabulary - 1). Raises ValueError for tables of different length, or numbers out of range.
    """
    if len(before) != len(after):
        raise ValueError(f"neighbour_overlap: tables of {len(before)} and {len(after)} words; give the same words.")
    if not 1 <= neighbours < len(before):
        raise ValueError(f"neighbour_overlap: {neighbours} neighbours of {len(before)} words; give 1 to one less.")
    rows = torch.arange(len(before)) if words is None else torch.as_tensor(list(words))
    if not len(rows) or int(rows.min()) < 0 or int(rows.max()) >= len(before):
        raise ValueError(f"neighbour_overlap: words must be rows from 0 to {len(before) - 1}, at least one.")
    first, second = (_nearest(table, rows, neighbours) for table in (before, after))
    return float((first[:, :, None] == second[:, None, :]).any(2).double().mean())


def _nearest(table: Tensor, rows: Tensor, neighbours: int) -> Tensor:
    unit = normalize(table.detach().float(), dim=1)
    found = []
    for part in rows.split(256):
        cosines = unit[part] @ unit.t()
        cosines[torch.arange(len(part)), part] = -torch.inf
        found.append(cosines.topk(neighbours).indices)
    return torch.cat(found)
