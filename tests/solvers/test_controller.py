"""SparsityController: the strength that makes a wanted fraction of the entries zero."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch.optim import AdamW

from argprune.solvers.prox import LogReweighting, ProximalOptimizer, WeightedL1
from argprune.solvers.prox.controller import SparsityController

METRICS: tuple[dict[str, Any], ...] = (
    {"metric": "decoupled"},
    {"metric": "constant", "step": 0.3},
    {"metric": "metric"},
)
metrics = pytest.mark.parametrize("options", METRICS, ids=lambda options: options["metric"])
scopes = pytest.mark.parametrize("scope", ["matrix", "global"])


def build(
    shapes: list[tuple[int, int]],
    target: float,
    scope: Literal["matrix", "global"],
    exact: bool,
    options: dict[str, Any],
    dtype: torch.dtype = torch.float64,
) -> ProximalOptimizer:
    """Matrices of different scales, weighted l1 with factors, gradients set."""
    weights = [torch.nn.Parameter((i + 1) * torch.randn(s, dtype=dtype)) for i, s in enumerate(shapes)]
    rule = LogReweighting(0.1)
    regularizers = [WeightedL1(0.5 + i, rule.factors(w)) for i, w in enumerate(weights)]
    for w in weights:
        w.grad = torch.randn_like(w)
    controller = SparsityController(lambda: target, scope, lambda: exact)
    return ProximalOptimizer(AdamW(weights, lr=0.01), weights, regularizers, strength=controller, **options)


def zeros(optimizer: ProximalOptimizer) -> list[int]:
    return [w.parameter.numel() - int(w.parameter.count_nonzero()) for w in optimizer.weights]


@metrics
@scopes
@pytest.mark.parametrize("target", [0.003, 0.1, 0.5, 0.87, 0.999])
def test_exact_counts(options: dict[str, Any], scope: Literal["matrix", "global"], target: float) -> None:
    """In float64 neighbouring critical strengths are far apart beside the roundings, so the count is the wanted one."""
    optimizer = build([(30, 17), (41, 23), (5, 5)], target, scope, True, options)
    for _ in range(3):
        for weight in optimizer.weights:
            weight.parameter.grad = torch.randn_like(weight.parameter)
        # Without what was zeroed before: a weight of exactly 0 stays there at any strength.
        with torch.no_grad():
            for weight in optimizer.weights:
                weight.parameter.add_(0.01 * torch.randn_like(weight.parameter))
        optimizer.step()
        if scope == "matrix":
            assert zeros(optimizer) == [round(target * n) for n in (510, 943, 25)]
        else:
            assert sum(zeros(optimizer)) == round(target * (510 + 943 + 25))
            assert len(set(optimizer.strengths())) == 1


@metrics
@scopes
def test_exact_counts_in_float32(options: dict[str, Any], scope: Literal["matrix", "global"]) -> None:
    optimizer = build([(300, 170), (100, 100)], 0.6, scope, True, options, torch.float32)
    optimizer.step()
    # Critical strengths of 51,000 entries lie some 1e-5 apart, roundings are 1e-7: one entry may slip at the threshold.
    if scope == "matrix":
        assert zeros(optimizer) == pytest.approx([30_600, 6_000], rel=0, abs=1)
    else:
        assert sum(zeros(optimizer)) == pytest.approx(36_600, rel=0, abs=1)


@metrics
@scopes
def test_sampled_counts(options: dict[str, Any], scope: Literal["matrix", "global"]) -> None:
    optimizer = build([(500, 600), (500, 400)], 0.7, scope, False, options, torch.float32)
    optimizer.step()
    # Each quantile comes from some 16,000 entries: standard deviation sqrt(0.7 * 0.3 / 16,000) = 0.0036, four of them.
    if scope == "matrix":
        assert [n / size for n, size in zip(zeros(optimizer), (300_000, 200_000), strict=True)] == pytest.approx(
            [0.7] * 2, rel=0, abs=0.015
        )
    else:
        assert sum(zeros(optimizer)) / 500_000 == pytest.approx(0.7, rel=0, abs=0.015)


@metrics
@scopes
def test_samples_of_matrices_whose_rows_are_a_power_of_two_meet_all_columns(
    options: dict[str, Any], scope: Literal["matrix", "global"]
) -> None:
    optimizer = build([(1024, 512), (512, 1024)], 0.7, scope, False, options, torch.float32)
    with torch.no_grad():
        for weight in optimizer.weights:
            weight.parameter.mul_(torch.linspace(0.5, 1.5, weight.parameter.shape[1]))
    optimizer.step()
    # Four standard deviations, as above: each quantile is of some 4,096 entries, or of 8,192 of both.
    fractions = [n / 2**19 for n in zeros(optimizer)]
    if scope == "global":
        fractions = [sum(fractions) / 2]
    assert fractions == pytest.approx([0.7] * len(fractions), rel=0, abs=0.03)


@scopes
def test_target_zero_leaves_the_weights_alone(scope: Literal["matrix", "global"]) -> None:
    optimizer = build([(6, 5), (4, 3)], 0.0, scope, True, {"metric": "metric"})
    copies = [torch.nn.Parameter(weight.parameter.detach().clone()) for weight in optimizer.weights]
    for copy, weight in zip(copies, optimizer.weights, strict=True):
        assert weight.parameter.grad is not None
        copy.grad = weight.parameter.grad.clone()
    AdamW(copies, lr=0.01).step()
    optimizer.step()
    for copy, weight in zip(copies, optimizer.weights, strict=True):
        assert torch.equal(copy, weight.parameter)


def test_scopes_differ_where_matrices_do() -> None:
    """One strength for all prunes the matrix of small weights harder; one each does not."""
    small = 0.1 * torch.rand(40, 40, dtype=torch.float64)
    large = torch.rand(40, 40, dtype=torch.float64)
    found = {}
    scopes: tuple[Literal["matrix", "global"], ...] = ("matrix", "global")
    for scope in scopes:
        weights = [torch.nn.Parameter(w.clone()) for w in (small, large)]
        controller = SparsityController(lambda: 0.5, scope, lambda: True)
        optimizer = ProximalOptimizer(AdamW(weights, lr=0.01), weights, WeightedL1(1.0), strength=controller)
        optimizer.step()
        found[scope] = zeros(optimizer)
        assert optimizer.strengths() == controller.last
    assert found["matrix"] == [800, 800]
    assert sum(found["global"]) == 1600
    # The joint median m solves 10 m + m = 1, so 10 / 11 of the small matrix (1455) go; standard deviation about 12.
    assert found["global"][0] > 1400


def test_everything_can_vanish() -> None:
    """A target that rounds to all entries of a small matrix leaves none at the rounding of the threshold."""
    optimizer = build([(2, 3), (30, 30)], 0.95, "matrix", True, {"metric": "metric"}, torch.float32)
    for _ in range(5):
        for weight in optimizer.weights:
            weight.parameter.grad = torch.randn_like(weight.parameter)
        optimizer.step()
        assert zeros(optimizer)[0] == 6
