"""Every reweighting rule majorises the penalty that it declares, and minimising the majoriser descends."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argprune.solvers.groups import Blocks, Rows
from argprune.solvers.prox import (
    L1,
    GroupReweighting,
    LogReweighting,
    PowerReweighting,
    QuantileReweighting,
    SquaredReweighting,
    WeightedGroupLasso,
)
from argprune.solvers.prox.reweighting import Reweighted, Reweighting

RULES: list[Any] = [
    LogReweighting(0.3, normalise=False),
    PowerReweighting(0.3, 0.5),
    PowerReweighting(0.3, 1.0),
    PowerReweighting(0.3, 1.7),
    SquaredReweighting(0.3),
    GroupReweighting(0.3),
    GroupReweighting(0.3, Blocks(2, 3), power=0.5),
]
rules = pytest.mark.parametrize("rule", RULES, ids=repr)


def normal(seed: int) -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weighted(rule: Any, factors: Tensor, w: Tensor) -> float:
    """What the factors weight, at w."""
    if rule.surrogate == "group-lasso":
        return float((factors * rule.groups.split(w).norm(dim=1)).sum())
    return float((factors * (w.square() if rule.surrogate == "squared-l2" else w.abs())).sum())


@rules
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-3, 0.1, 1.0, 10.0]))
@settings(max_examples=25)
def test_the_factors_majorise_the_declared_penalty(rule: Any, seed: int, scale: float) -> None:
    w = normal(seed)
    w[0] = 0
    x = w + scale * normal(seed + 1)
    factors = rule.factors(w)
    assert isinstance(rule, Reweighting)
    assert bool((factors > 0).all())
    bound = weighted(rule, factors, x) - weighted(rule, factors, w)
    assert float(rule.majorised(x) - rule.majorised(w)) <= bound + 1e-10 * (1 + abs(bound))


def minimised(rule: Any, factors: Tensor, a: Tensor) -> Tensor:
    """argmin of the majoriser plus ||x - a||^2 / 2."""
    if rule.surrogate == "squared-l2":
        return a / (1 + 2 * factors)
    if rule.surrogate == "group-lasso":
        return WeightedGroupLasso(1.0, factors, rule.groups).prox(a, 1.0)
    return Reweighted(L1(1.0), factors).prox(a, 1.0)


@rules
def test_majorise_minimise_never_ascends(rule: Any) -> None:
    for seed in range(5):
        a = 2 * normal(seed)
        w, values = a, []
        for _ in range(15):
            values.append(float((w - a).square().sum() / 2 + rule.majorised(w)))
            w = minimised(rule, rule.factors(w), a)
        assert all(after <= before + 1e-12 * (1 + abs(before)) for before, after in pairwise(values))
        assert values[-1] < values[0]


def test_an_adaptive_eps_is_the_quantile_of_what_the_rule_sees() -> None:
    w = torch.arange(1.0, 11.0).reshape(2, 5)
    rule = QuantileReweighting(0.5)
    assert rule.at(w).eps == 6.0
    torch.testing.assert_close(rule.factors(w), 1 / (w + 6))
    # Mostly zeros: the floor.
    assert QuantileReweighting(0.5, floor=0.01).at(torch.tensor([0.0, 0.0, 0.0, 1.0])).eps == 0.01
    groups = QuantileReweighting(0.4, groups=Rows())
    assert groups.surrogate == "group-lasso"
    assert groups.factors(w).shape == (2,)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PowerReweighting(0.0), "eps 0.0"),
        (lambda: PowerReweighting(0.1, -1.0), "power -1.0"),
        (lambda: SquaredReweighting(float("nan")), "eps nan"),
        (lambda: GroupReweighting(-1.0), "eps -1.0"),
        (lambda: QuantileReweighting(1.0), "quantile 1.0"),
    ],
)
def test_bad_parameters_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
