"""Every reweighting rule majorises the penalty that it declares, and minimising the majoriser descends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argprune.solvers.groups import Blocks, Rows
from argprune.solvers.prox import (
    L1,
    MCP,
    GroupMCP,
    GroupReweighting,
    LogReweighting,
    PowerReweighting,
    QuantileReweighting,
    SquaredReweighting,
)
from argprune.solvers.prox.reweighting import Reweighting
from argprune.solvers.registry import registered
from argprune.solvers.verify import check_operator

RULES: list[Any] = [
    LogReweighting(0.3, normalise=False),
    PowerReweighting(0.3, 0.5),
    PowerReweighting(0.3, 1.0),
    PowerReweighting(0.3, 1.7),
    SquaredReweighting(0.3),
    GroupReweighting(0.3),
    GroupReweighting(0.3, Blocks(2, 3), power=0.5),
]
REGISTERED = [
    pytest.param(entry.cls(**kwargs), id=f"{name}-{index}")
    for name, entry in registered("reweightings").items()
    for index, kwargs in enumerate(entry.examples)
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


@pytest.mark.parametrize("rule", [*RULES, *REGISTERED])
def test_the_conformance_suite_passes_every_rule(rule: Any) -> None:
    report = check_operator(rule)
    assert report.passed
    assert {check.name for check in report.checks} == {"factors", "majorisation", "mm-descent"}


class Planted(LogReweighting):
    """Factors of another penalty than the one declared."""

    def factors(self, w: Tensor) -> Tensor:
        return (w.detach().abs() + self.eps).pow(-2)


class Negative(LogReweighting):
    """The sign of a factor forgotten."""

    def factors(self, w: Tensor) -> Tensor:
        return 1 / (w.detach() + self.eps)


def test_the_conformance_suite_finds_planted_bugs() -> None:
    failed = {check.name for check in check_operator(Planted(0.3, normalise=False)).failures}
    assert "majorisation" in failed
    assert "factors" in {check.name for check in check_operator(Negative(0.3, normalise=False)).failures}


class NotAPenaltyOfItsSlopes(MCP):
    def factors(self, w: Tensor) -> Tensor:
        return 1 - super().factors(w)


def test_a_concave_penalty_descends_by_its_slopes_or_is_refused() -> None:
    def descent(operator: Any) -> str:
        (check,) = (check for check in check_operator(operator).checks if check.name == "mm-descent")
        return check.status

    assert descent(MCP(0.7)) == "passed"
    assert descent(GroupMCP(0.7)) == "passed"
    assert descent(NotAPenaltyOfItsSlopes(0.7)) == "failed"
    assert descent(L1(0.7)) == "skipped"


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
