"""What criteria read, drawn; their scores on it; every registered criterion."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from argprune.solvers.criteria import Criterion, Evidence
from argprune.solvers.registry import registered

SPECS = [
    pytest.param({"name": name, **options}, id=f"{name}-{index}")
    for name, entry in registered("criteria").items()
    for index, options in enumerate(entry.examples)
]
every = pytest.mark.parametrize("spec", SPECS)
LAYERWISE = ("wanda", "sparsegpt", "obc")
seeds = st.integers(0, 2**31 - 1)


def batches_of(
    seed: int, shape: tuple[int, int] = (3, 7), number: int = 4, dtype: torch.dtype = torch.float32
) -> list[Evidence]:
    """Evidence with everything a criterion may read: batches of several sizes, steps that are no gradient steps."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    mix = torch.eye(shape[1]) + torch.randn(shape[1], shape[1], generator=generator) / 2
    return [
        Evidence(
            weight=weight.to(dtype),
            gradient=torch.randn(shape, generator=generator).to(dtype),
            stepped=(weight + 0.1 * torch.randn(shape, generator=generator)).to(dtype),
            learning_rate=0.05,
            examples=1 + index % 3,
            inputs=(torch.randn(5 + 2 * index, shape[1], generator=generator) @ mix).to(dtype),
        )
        for index in range(number)
    ]


def scores_of(criterion: Criterion, batches: Sequence[Evidence], weight: Tensor | None = None) -> Tensor:
    weight = batches[0].weight if weight is None else weight
    accumulators = criterion.start(weight)
    for batch in batches:
        criterion.update(accumulators, batch)
    return criterion.scores(accumulators, weight)


def close(one: Tensor, other: Tensor, digits: float = 1e-5) -> None:
    """Equal up to float32's rounding of sums of the scores' size."""
    torch.testing.assert_close(one.double(), other.double(), rtol=digits, atol=digits * float(other.abs().max()))


def hessian_of(batches: Sequence[Evidence], damping: float) -> Tensor:
    """2 X^T X / tokens of all batches' inputs, damped by a share of the mean diagonal."""
    x = torch.cat([batch.inputs for batch in batches if batch.inputs is not None]).double()
    h = 2 * x.T @ x / len(x)
    return h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
