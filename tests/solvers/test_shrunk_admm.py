"""`shrunk-admm`: the scaled problem, the refit, the shrunk Gram matrix, and where the penalty starts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from drawn_layers import make_layer, refitted
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argprune.solvers.admm import (
    Layer,
    LayerSolver,
    Moments,
    Unstructured,
    relative_error,
    solve_layer,
)
from argprune.solvers.admm.alps import ALPS
from argprune.solvers.admm.scaling import Scaled, refit
from argprune.solvers.admm.shrinkage import shrunk_gram
from argprune.solvers.admm.shrunk import ShrunkADMM


@given(seed=st.integers(0, 1000), steps=st.integers(0, 6))
@settings(max_examples=30)
def test_the_refit_never_loses_and_ends_at_the_normal_equations(seed: int, steps: int) -> None:
    layer = make_layer(Unstructured(0.5), rows=3, columns=8, seed=seed)
    problem = Scaled.of(layer.gram, layer.dense, 0.01, torch.float64)
    mask = layer.support.select(problem.dense.abs())

    def loss(v: Tensor) -> float:
        return float((((problem.dense - v) @ problem.hessian) * (problem.dense - v)).sum())

    start = problem.dense * mask
    losses = [loss(refit(problem, start, mask, count)) for count in (0, steps, steps + 1)]
    assert losses[0] == loss(start)
    assert losses == sorted(losses, reverse=True) or math.isclose(losses[1], losses[2], rel_tol=1e-9)
    ended = refit(problem, start, mask, 100, tol=1e-10)
    torch.testing.assert_close(ended, refitted(problem.dense, problem.hessian, mask), rtol=1e-6, atol=1e-8)


def test_the_scaled_problem_is_the_damped_one() -> None:
    layer = make_layer(Unstructured(0.5))
    problem = Scaled.of(layer.gram, layer.dense, 0.03, torch.float64)
    damped = layer.gram + 0.03 * layer.gram.diagonal().mean() * torch.eye(16, dtype=torch.float64)
    v = torch.randn(6, 16, dtype=torch.float64)
    scaled = problem.dense - v * problem.scale
    loss = ((layer.dense - v) @ damped * (layer.dense - v)).sum()
    torch.testing.assert_close((scaled @ problem.hessian * scaled).sum(), loss)
    torch.testing.assert_close(problem.hessian.diagonal(), torch.ones(16, dtype=torch.float64))
    torch.testing.assert_close(problem.unscaled(problem.dense, layer), layer.dense)


def test_shrinkage_is_small_with_many_tokens_and_lifts_small_eigenvalues_with_few() -> None:
    scale = torch.ones(16, dtype=torch.float64)
    many = make_layer(Unstructured(0.5), tokens=40_000).moments
    sample, shrunk = many.gram().float(), shrunk_gram(many, scale, 0 * scale, splits=4).matrix()
    assert float((shrunk - sample).norm() / sample.norm()) < 0.02
    generator = torch.Generator().manual_seed(0)
    few = Moments(16, folds=4)
    for _ in range(4):
        few.update(torch.randn(6, 16, generator=generator))
    estimated, seen = shrunk_gram(few, scale, 0 * scale, splits=4).values, torch.linalg.eigvalsh(few.gram().float())
    # The truth is I: every eigenvalue is 1.
    assert float(seen[0]) < 0.1
    assert float(estimated[0]) > 0.4
    assert float((estimated - 1).abs().max()) < float((seen - 1).abs().max())


def test_shrinkage_needs_tokens_to_hold_out() -> None:
    moments = Moments(16)
    moments.update(torch.randn(50, 16))
    layer = replace(make_layer(Unstructured(0.5)), moments=moments)
    with pytest.raises(ValueError, match=r"Moments\(columns, folds=16\)"):
        solve_layer(layer, "shrunk-admm")


def test_ours_beats_the_others_on_unseen_tokens_where_inputs_are_many() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, columns, tokens = 64, 128, 341
    mixing = torch.linalg.qr(torch.randn(columns, columns, generator=generator)).Q
    mixing[: columns // 10] *= 4.5
    seen, fresh = Moments(columns, folds=16), Moments(columns)
    for _ in range(16):
        seen.update(torch.randn(tokens // 16, columns, generator=generator) @ mixing)
    fresh.update(torch.randn(40_000, columns, generator=generator) @ mixing)
    layer = Layer(torch.randn(rows, columns, generator=generator), seen, Unstructured(0.5))
    unseen, known = {}, {}
    for name in ("alps", "admm", "sparsegpt", "shrunk-admm"):
        solution = solve_layer(layer, name)
        unseen[name], known[name] = relative_error(layer.weight, solution.weight, fresh.gram()), solution.error
    ours = unseen.pop("shrunk-admm")
    assert ours < 0.93 * min(unseen.values())
    # It gives up what the others fit to chance.
    assert known["shrunk-admm"] > known["alps"]


def test_the_penalty_starts_where_the_eigenvalues_are() -> None:
    """Inputs that resemble each other: most eigenvalues are about 0.01 of the mean, where ALPS starts at 0.1."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    columns, factors, noise = 96, 24, 0.1
    mixing = normal(factors, columns) / factors**0.5
    population = mixing.T @ mixing + noise**2 * torch.eye(columns, dtype=torch.float64)
    moments = Moments(columns, folds=8)
    for _ in range(8):
        moments.update(normal(500, factors) @ mixing + noise * normal(500, columns))
    layer = Layer(normal(64, columns), moments, Unstructured(0.6))
    solvers: dict[str, LayerSolver] = {"ours": ShrunkADMM(), "alps": ALPS(), "late": ShrunkADMM(rho=20)}
    unseen = {
        name: relative_error(layer.weight, solve_layer(layer, how).weight, population) for name, how in solvers.items()
    }
    assert unseen["ours"] < 0.96 * unseen["alps"]
    assert unseen["ours"] < 0.9 * unseen["late"]
