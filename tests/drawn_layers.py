"""Layers of drawn weights and inputs, small enough to know the best weights on every support."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from argprune.solvers.admm import (
    NM,
    Grouped,
    Layer,
    Moments,
    Support,
    Unstructured,
    solve_layer,
)
from argprune.solvers.groups import Blocks, Columns, Rows

SUPPORTS: list[Support] = [
    Unstructured(0.6),
    Unstructured(0.6, "row"),
    NM(2, 4),
    Grouped(Blocks(2, 4), 0.5),
    Grouped(Rows(), 0.5),
    Grouped(Columns(), 0.5),
]
# (solver, support) that are refused, in one line.
REFUSED = {("obs", Grouped)}


def make_layer(
    support: Support, rows: int = 6, columns: int = 16, tokens: int = 200, seed: int = 0, factors: int = 4
) -> Layer:
    """Normal weights; inputs of a few shared factors and noise, with scales that differ."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mixing, scale = normal(factors, columns), (normal(columns) / 2).exp()
    moments = Moments(columns, folds=4)
    for _ in range(4):
        moments.update((normal(tokens // 4, factors) @ mixing + normal(tokens // 4, columns)) * scale)
    return Layer(normal(rows, columns), moments, support)


def all_masks(support: Support, rows: int, columns: int) -> list[Tensor]:
    """Every mask that a support allows, as many kept as it says; for tiny matrices."""
    shape = torch.Size((rows, columns))
    if isinstance(support, Grouped):
        stack = support.groups.split(torch.zeros(shape, dtype=torch.bool))
        keep = int(support.groups.split(support.select(torch.ones(shape))).all(1).sum())
        chosen = itertools.combinations(range(len(stack)), keep)
        return [
            support.groups.join(
                torch.zeros_like(stack).index_fill_(0, torch.tensor(group, dtype=torch.long), True), shape
            )
            for group in chosen
        ]
    width = {"row": columns, "matrix": rows * columns}.get(getattr(support, "scope", ""), getattr(support, "m", 0))
    keep = int(support.select(torch.ones(shape)).sum()) * width // (rows * columns)
    cells = [
        torch.zeros(width, dtype=torch.bool).index_fill_(0, torch.tensor(kept, dtype=torch.long), True)
        for kept in itertools.combinations(range(width), keep)
    ]
    return [torch.cat(parts).view(shape) for parts in itertools.product(cells, repeat=rows * columns // width)]


def refitted(weight: Tensor, gram: Tensor, mask: Tensor) -> Tensor:
    """The best weights on a support, by the normal equations of each row."""
    result = torch.zeros_like(weight)
    for row, kept in enumerate(mask):
        if kept.any():
            result[row, kept] = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ weight[row])
    return result


def optimum(layer: Layer) -> float:
    """The least relative error over all supports; rows meet only in the mask, so each row's masks are solved once."""
    rows, columns = layer.dense.shape
    subsets = (torch.arange(2**columns)[:, None] >> torch.arange(columns) & 1).bool()
    costs = torch.empty(rows, len(subsets), dtype=torch.float64)
    for row in range(rows):
        weight = layer.dense[row : row + 1]
        for number, subset in enumerate(subsets):
            error = weight - refitted(weight, layer.gram, subset[None])
            costs[row, number] = (error @ layer.gram * error).sum()
    masks = torch.stack(all_masks(layer.support, rows, columns))
    numbers = (masks * 2 ** torch.arange(columns)).sum(2)
    least = costs.gather(1, numbers.t()).sum(0).min()
    return float(least / (layer.dense @ layer.gram * layer.dense).sum())


def skip_refused(name: str, support: Support) -> None:
    refused = (name, type(support)) in REFUSED or (name == "sparsegpt" and support == Grouped(Rows(), 0.5))
    if refused:
        with pytest.raises(ValueError, match=r"Give "):
            solve_layer(make_layer(support), name)
        pytest.skip("refused, as it should be")
