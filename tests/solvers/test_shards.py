"""Methods on weights whose rows four ranks share, some of which have none, against the same on whole weights."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from processes import Threads
from torch import Tensor
from torch.optim import AdamW, Optimizer

from argprune.solvers.groups import Columns, Part, Tied, Weight
from argprune.solvers.ilp import Certificate, Selection, solve
from argprune.solvers.ilp.rows import kept_counts, smallest_of_shards
from argprune.solvers.ilp.solve import smallest_within
from argprune.solvers.methods import RPP, BlockLasso, Magnitude, Method, Proximal, SoftMovement
from argprune.solvers.registry import registered
from argprune.solvers.shards import Shard, ShardGroup

RANKS, TOTAL, RATE = 4, 16, 0.02
# Shares of 2, 2, 2 and 1 rows; of 2, 2, 1 and none; of 1, 1, 1 and none; of one rank alone.
SHAPES = ((7, 6), (5, 8), (3,), (1, 4))
GROUP = ShardGroup(cast(Any, None))
MORE: list[tuple[Any, dict[str, Any]]] = [
    (RPP, {"sparsity": 0.5, "metric": "constant", "prox_step": 0.1, "normalise": False}),
    (RPP, {"sparsity": 0.5, "strength": 0.05}),
    (Proximal, {"sparsity": 0.6, "reweighting": "log"}),
    (Proximal, {"sparsity": 0.6, "reweighting": "power", "metric": "metric"}),
    (SoftMovement, {"sparsity": 0.6, "least": 0.3}),
    (Magnitude, {"sparsity": 0.5, "structure": "rows", "every": 3}),
    (Magnitude, {"sparsity": 0.5, "structure": "block-rows", "width": 3, "scope": "global"}),
    (BlockLasso, {"sparsity": 0.5, "structure": "rows", "metric": "metric", "scope": "global"}),
    (BlockLasso, {"sparsity": 0.5, "structure": "block-rows", "strips": 2, "reweight_every": 3}),
    (BlockLasso, {"sparsity": 0.5, "structure": "block-rows", "width": 2, "penalty": "squared", "strength": 0.1}),
]
FOUND = [
    *((entry.cls, dict(kwargs)) for entry in registered("methods").values() for kwargs in entry.examples),
    *MORE,
]
SHARED = [
    pytest.param(cls, kwargs, id=f"{cls.__name__}-{index}")
    for index, (cls, kwargs) in enumerate(FOUND)
    if cls(**kwargs).needs_whole_weights is None
]


def share(whole: Tensor, rank: int, ranks: int = RANKS) -> Tensor:
    """A rank's rows, as FSDP shares them."""
    rows = math.ceil(len(whole) / ranks)
    return whole[rank * rows : (rank + 1) * rows]


def joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts))


def start(index: int) -> Tensor:
    """All different: equal entries come out of an optimizer's step unequal, by their places in vector registers."""
    return few_values(index) + torch.linspace(0, 0.05, math.prod(SHAPES[index]), dtype=torch.float64).view(
        SHAPES[index]
    )


def few_values(index: int) -> Tensor:
    """Ties within a tensor and between tensors."""
    shape = SHAPES[index]
    numbers = torch.arange(math.prod(shape), dtype=torch.float64)
    return ((numbers * 7 + index) % 5 + 1).mul(0.2 * (-1) ** index).view(shape)


def gradient(weight: Tensor, step: int) -> Tensor:
    """Of a loss that is a sum over entries."""
    return weight * (0.5 + 0.3 * math.sin(step)) - 0.1 * weight.sign() * (step % 3)


def train(method: Method, weights: list[Weight]) -> dict[str, Any]:
    """All that a run with these weights shows."""
    method.attach(weights, TOTAL)
    parameters = [weight.parameter for weight in weights]
    optimizer: Optimizer = method.wrap_optimizer(AdamW(parameters, lr=RATE, weight_decay=0.01))
    logs, states = [], []
    for step in range(TOTAL):
        rate = RATE * (1 - step / TOTAL)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for parameter in parameters:
            parameter.grad = gradient(parameter.detach(), step)
        method.before_step(step)
        optimizer.step()
        method.after_step(step, rate)
        logs.append(method.logs())
        if step in (4, 12):
            states.append({k: v.clone() if isinstance(v, Tensor) else v for k, v in method.state_dict().items()})
    masks = method.finish()
    values = {weight.name: weight.parameter.detach() for weight in weights}
    return {"masks": masks, "values": values, "logs": logs, "states": states, "report": method.report()}


def of_rank(rank: int, indices: Sequence[int]) -> list[Weight]:
    weights = []
    for index in indices:
        shape = SHAPES[index]
        rows = min(rank * math.ceil(shape[0] / RANKS), shape[0])
        shard = Shard(GROUP, torch.Size(shape), rows * math.prod(shape[1:]))
        parameter = torch.nn.Parameter(share(start(index), rank).clone())
        weights.append(Weight(f"weight{index}", parameter, shard=shard))
    return weights


@pytest.mark.parametrize(("cls", "kwargs"), SHARED)
def test_rows_on_many_ranks_are_pruned_as_one_process_prunes_them(cls: Any, kwargs: dict[str, Any]) -> None:
    if cls.__name__ == "FixedSupport":
        kwargs = {"sparsity": 0.0}
    # Structures are those of matrices.
    indices = [i for i, shape in enumerate(SHAPES) if len(shape) == 2 or "structure" not in kwargs]
    whole = [Weight(f"weight{index}", torch.nn.Parameter(start(index))) for index in indices]
    expected = train(cls(**kwargs), whole)
    found = Threads(RANKS).run(lambda rank: train(cls(**kwargs), of_rank(rank, indices)))
    for name, mask in expected["masks"].items():
        assert torch.equal(joined([one["masks"][name] for one in found]), mask), name
        values = joined([one["values"][name] for one in found])
        assert torch.allclose(values, expected["values"][name], rtol=0, atol=1e-12), name
    for index, state in enumerate(expected["states"]):
        parts = [one["states"][index] for one in found]
        assert all(part.keys() == state.keys() for part in parts)
        for key, value in state.items():
            check_state(key, value, [part[key] for part in parts])
    for one in found:
        for line, other in zip(one["logs"], expected["logs"], strict=True):
            assert line == pytest.approx(other, rel=1e-6, abs=1e-9)
        assert set(one["report"]) == set(expected["report"])


def check_state(key: str, value: Any, parts: list[Any]) -> None:
    """What is shaped like a weight's parameter is of each rank's rows, all else the same on all."""
    index = int(key[-1]) if ".weight" in key else None
    if isinstance(value, Tensor) and index is not None and value.shape == SHAPES[index]:
        assert torch.allclose(joined(parts).double(), value.double(), rtol=1e-6, atol=1e-9), key
    elif isinstance(value, Tensor):
        assert all(torch.allclose(part, value) and torch.equal(part, parts[0]) for part in parts), key
    elif isinstance(value, str):
        certificates = [Certificate.from_dict(json.loads(text)) for text in (value, *parts)]
        assert all(one.keep == certificates[0].keep and one.gap == 0 for one in certificates), key
        assert all(one == certificates[1] for one in certificates[1:])
        assert all(one.nu == pytest.approx(certificates[0].nu, rel=1e-6) for one in certificates), key
    else:
        assert all(part == pytest.approx(value, rel=1e-9) and part == parts[0] for part in parts), key


def costs_with_ties() -> list[Tensor]:
    return [few_values(index).abs() for index in range(len(SHAPES))]


@pytest.mark.parametrize("keep", [0, 1, 10, 37, 60, 88, 89])
def test_ties_go_where_one_process_gives_them(keep: int) -> None:
    costs = costs_with_ties()
    expected = solve(Selection(costs, keep)).masks
    found = Threads(RANKS).run(lambda rank: smallest_of_shards([share(c, rank) for c in costs], keep, GROUP))
    for index, mask in enumerate(expected):
        assert torch.equal(joined([masks[index] for masks in found]), mask)


def test_bounds_of_each_tensor_hold_over_all_ranks() -> None:
    costs = costs_with_ties()
    least, most = (0, 25, 2, 0), (20, 40, 3, 1)
    expected = smallest_within(costs, 50, least, most)
    found = Threads(RANKS).run(lambda rank: smallest_within([share(c, rank) for c in costs], 50, least, most, GROUP))
    for index, mask in enumerate(expected):
        assert torch.equal(joined([masks[index] for masks in found]), mask)


@pytest.mark.parametrize("per_tensor", [False, True])
def test_the_certificate_is_that_of_one_process(per_tensor: bool) -> None:
    costs = costs_with_ties()
    sizes = [cost.numel() for cost in costs]
    masks = solve(Selection(costs, [size // 2 for size in sizes] if per_tensor else 41)).masks
    expected = Certificate.of(costs, masks, per_tensor=per_tensor)

    def of_shards(rank: int) -> tuple[Certificate, float]:
        own, kept = ([share(each, rank) for each in tensors] for tensors in (costs, masks))
        made = Certificate.of_shards(own, kept, sizes, per_tensor, GROUP)
        return made, made.check(own, kept, GROUP)

    assert Threads(RANKS).run(of_shards) == [(expected, 0.0)] * RANKS


def test_a_worse_mask_has_a_gap_on_all_ranks_and_no_certificate_of_its_own() -> None:
    costs = costs_with_ties()
    masks = solve(Selection(costs, 30)).masks
    certificate = Certificate.of(costs, masks)
    worse = [mask.flip(0) for mask in masks]
    gap = certificate.check(costs, worse)

    def of_shards(rank: int) -> float:
        own, kept = ([share(each, rank) for each in tensors] for tensors in (costs, worse))
        assert kept_counts(kept, GROUP) == kept_counts(worse)
        with pytest.raises(ValueError, match="not optimal"):
            Certificate.of_shards(own, kept, [cost.numel() for cost in costs], False, GROUP)
        return certificate.check(own, kept, GROUP)

    assert gap > 0
    assert Threads(RANKS).run(of_shards) == pytest.approx([gap] * RANKS)


def test_groups_beyond_a_row_are_refused() -> None:
    [weight] = of_rank(0, [0])
    with pytest.raises(ValueError, match=r"some rows of weight0, and Columns\(\) go beyond a row"):
        Tied("weight0", [Part(weight, Columns())])
    turned = Weight("turned", torch.nn.Parameter(start(0)), transposed=True)
    method = Magnitude(0.5, structure="rows")
    assert method.needs_whole_weights is None
    method.attach([turned], TOTAL)
    assert method.needs_whole_weights == "structure 'rows' ties entries of several stored rows of turned"
