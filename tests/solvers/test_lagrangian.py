"""Expected sizes against sampling and autograd; constraints against what they promise, on problems of known optimum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from argprune.solvers.lagrangian import (
    Ascent,
    ExpectedSize,
    Gated,
    HardConcrete,
    Multipliers,
    SizeConstraint,
    SizeLagrangian,
)


def scores(counts: Sequence[int], seed: int = 0, spread: float = 2.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [spread * torch.randn(count, generator=generator, dtype=torch.float64) for count in counts]


def layered() -> ExpectedSize:
    """Two layers behind gates of their own; heads in each, and neurons in the second."""
    return ExpectedSize(
        [
            Gated("layers", 2),
            Gated("heads", 6, {"parameters": 10.0, "flops": 7.0}, 0, torch.tensor([0, 0, 0, 1, 1, 1])),
            Gated("neurons", 4, {"parameters": torch.tensor([1.0, 2.0, 3.0, 4.0])}, 0, 1),
        ]
    )


COUNTS = (2, 6, 4)


def test_the_expected_size_is_the_mean_of_sampled_sizes() -> None:
    size, log_alphas = layered(), scores(COUNTS)
    generator = torch.Generator().manual_seed(1)
    total = 0.0
    draws = 20_000
    opened = [
        size.gates.sample(a.expand(draws, -1), torch.rand(draws, len(a), generator=generator, dtype=torch.float64)) > 0
        for a in log_alphas
    ]
    layers, heads, neurons = opened
    sampled = 10.0 * (heads & layers[:, [0, 0, 0, 1, 1, 1]]).sum(1)
    sampled = sampled + ((neurons & layers[:, 1:]) * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum(1)
    total = float(sum(size.sizes(log_alphas, "parameters")))
    error = float(sampled.double().std()) / math.sqrt(draws)
    assert total == pytest.approx(float(sampled.mean()), abs=4 * error)
    assert size.total("parameters") == 70.0
    assert size.total("flops") == 42.0
    assert size.total("parameters", [2]) == 10.0


@given(seed=st.integers(0, 2**16), parameters=st.floats(0, 3), flops=st.floats(0, 3))
def test_slopes_are_those_of_autograd(seed: int, parameters: float, flops: float) -> None:
    size, log_alphas = layered(), scores(COUNTS, seed)
    prices = [{}, {"parameters": parameters, "flops": flops}, {"parameters": 2 * parameters}]
    leaves = [a.clone().requires_grad_() for a in log_alphas]
    priced = sum(
        price * size.sizes(leaves, budget)[index] for index, each in enumerate(prices) for budget, price in each.items()
    )
    assert isinstance(priced, Tensor)
    priced.backward()
    for slope, leaf in zip(size.slopes(log_alphas, prices), leaves, strict=True):
        expected = torch.zeros_like(slope) if leaf.grad is None else leaf.grad
        torch.testing.assert_close(slope, expected, rtol=1e-9, atol=1e-12)


@given(
    lack=st.floats(-1, 1),
    linear=st.floats(0, 3),
    quadratic=st.floats(0, 3),
    rate=st.floats(0.01, 1),
    rho=st.floats(0, 9),
)
def test_ascent_follows_the_gradient_of_the_lagrangian(
    lack: float, linear: float, quadratic: float, rate: float, rho: float
) -> None:
    dual = Multipliers(linear, quadratic)
    leaves = torch.tensor([linear, quadratic, lack], dtype=torch.float64, requires_grad=True)
    by_linear, by_quadratic, _ = torch.autograd.grad(leaves[0] * leaves[2] + leaves[1] * leaves[2] ** 2, leaves)[0]
    dual.ascend(lack, rate, 1e9, rho=rho, equality=True)
    assert dual.linear == pytest.approx(linear + rate * float(by_linear))
    assert dual.quadratic == pytest.approx(quadratic + rate * float(by_quadratic))
    # What gates feel is the derivative in the lack, at the new multipliers.
    x = torch.tensor(lack, dtype=torch.float64, requires_grad=True)
    (dual.linear * x + (dual.quadratic + rho / 2) * x**2).backward()
    assert x.grad is not None
    assert dual.pressure == pytest.approx(float(x.grad), abs=1e-12)


def test_an_inequality_never_pushes_gates_open_and_can_restart() -> None:
    dual = Multipliers(linear=2.0)
    dual.ascend(-0.1, 1.0, 5.0)
    assert dual.linear == pytest.approx(1.9)
    dual.ascend(-5.0, 1.0, 5.0)
    assert (dual.linear, dual.pressure) == (0.0, 0.0)
    restarted = Multipliers(linear=2.0)
    restarted.ascend(-0.1, 1.0, 5.0, restart=True)
    assert restarted.linear == 0.0
    bounded = Multipliers(linear=4.9)
    bounded.ascend(0.5, 1.0, 5.0, rho=100.0)
    assert (bounded.linear, bounded.pressure) == (5.0, 5.0)


@given(seed=st.integers(0, 2**16), target=st.floats(0.05, 0.95), kind=st.sampled_from(["equality", "inequality"]))
def test_projection_meets_the_target_by_one_shift(
    seed: int, target: float, kind: Literal["equality", "inequality"]
) -> None:
    size = ExpectedSize([Gated("a", 30, {"parameters": 3.0}), Gated("b", 20, {"parameters": 5.0})])
    log_alphas = scores((30, 20), seed)
    before = [a.clone() for a in log_alphas]
    lagrangian = SizeLagrangian(size, [SizeConstraint(target, kind=kind)])
    [was] = lagrangian.sparsities(log_alphas)
    [now] = lagrangian.project(log_alphas)
    shifts = torch.cat([a - b for a, b in zip(before, log_alphas, strict=True)])
    torch.testing.assert_close(shifts, shifts[:1].expand_as(shifts), rtol=0, atol=1e-9)
    if kind == "inequality" and was >= target:
        assert now == was
    else:
        assert now == pytest.approx(target, abs=2e-4)
        assert kind == "equality" or float(shifts[0]) >= 0


def test_projection_is_the_bregman_projection_of_the_gates() -> None:
    """Against SLSQP: argmin of the relative entropy of Bernoulli variables to those given, subject to their mean."""
    from scipy.optimize import minimize

    size = ExpectedSize([Gated("a", 5, {"parameters": 1.0})])
    [log_alpha] = scores((5,), seed=3, spread=1.0)
    given_p = size.gates.open_probability(log_alpha).numpy()

    def entropy(p: Any) -> float:
        p = torch.as_tensor(p)
        g = torch.as_tensor(given_p)
        return float((p * (p / g).log() + (1 - p) * ((1 - p) / (1 - g)).log()).sum())

    bounds, constraint = [(1e-9, 1 - 1e-9)] * 5, {"type": "eq", "fun": lambda p: p.sum() - 0.3 * 5}
    best = minimize(entropy, given_p * 0.5, bounds=bounds, constraints=[constraint], tol=1e-12)
    SizeLagrangian(size, [SizeConstraint(0.7, kind="equality")]).project([log_alpha])
    torch.testing.assert_close(size.gates.open_probability(log_alpha), torch.as_tensor(best.x), rtol=0, atol=2e-4)


def test_several_constraints_at_once() -> None:
    size, log_alphas = layered(), scores(COUNTS, spread=0.5)
    constraints = [
        SizeConstraint(0.7, "parameters", name="all"),
        SizeConstraint(0.75, "flops", (1,), name="heads"),
        SizeConstraint(0.5, "parameters", (2,), name="neurons"),
    ]
    lagrangian = SizeLagrangian(size, constraints)
    now = lagrangian.project(log_alphas)
    assert all(sparsity >= each.target - 2e-4 for sparsity, each in zip(now, constraints, strict=True))
    assert now == pytest.approx(lagrangian.sparsities(log_alphas))


class Regression:
    """Noisy gradients of a loss in which `useful` of 60 units matter, more or less; gates learn as methods let them."""

    def __init__(self, target: float, seed: int, ascent: Ascent, steps: int = 400) -> None:
        generator = torch.Generator().manual_seed(seed)
        gates = HardConcrete()
        counts = (40, 20)
        worth = [torch.rand(c, generator=generator).square() for c in counts]
        log_alphas = [
            torch.full((c,), gates.initial(0.05)) + 0.01 * torch.randn(c, generator=generator) for c in counts
        ]
        size = ExpectedSize([Gated(str(c), c, {"parameters": float(100 + c)}) for c in counts], gates)
        lagrangian = SizeLagrangian(size, [SizeConstraint(target, kind="equality")], ascent)
        adam = torch.optim.Adam(log_alphas, lr=0.1, betas=(0.5, 0.95))
        self.sparsities: list[float] = []
        for step in range(steps):
            samples = [gates.sample(a, torch.rand(a.shape, generator=generator)) for a in log_alphas]
            # f = sum of worth (1 - z)^2, with noise of its own size.
            of_loss = [
                gates.slope(z) * -2 * w * (1 - z + 0.5 * torch.randn(z.shape, generator=generator))
                for w, z in zip(worth, samples, strict=True)
            ]
            for a, gradient, push in zip(log_alphas, of_loss, lagrangian.slopes(log_alphas, of_loss), strict=True):
                a.grad = gradient + push
            adam.param_groups[0]["lr"] = 0.1 * (1 - step / (2 * steps))
            adam.step()
            for a in log_alphas:
                a.clamp_(-4, 4)
            self.sparsities += lagrangian.ascend(log_alphas, (step + 1) / (0.5 * steps))


@pytest.mark.parametrize("target", [0.2, 0.5, 0.8])
def test_ascent_reaches_the_target_on_every_seed(target: float) -> None:
    for seed in range(3):
        last = Regression(target, seed, Ascent()).sparsities[-20:]
        assert max(abs(sparsity - target) for sparsity in last) < 0.005


def test_damping_stops_the_swing() -> None:
    """The integral alone overshoots by far more than with the proportional part."""
    damped, bare = (Regression(0.5, 0, ascent).sparsities for ascent in (Ascent(), Ascent(rho=0.0)))
    assert max(damped) - 0.5 < 0.005
    assert max(bare) - 0.5 > 0.05


def test_state_is_restored() -> None:
    size = ExpectedSize([Gated("a", 10, {"parameters": 1.0})])
    first, second = (SizeLagrangian(size, [SizeConstraint(0.5)]) for _ in range(2))
    log_alphas = scores((10,))
    first.slopes(log_alphas, scores((10,), 1))
    first.ascend(log_alphas, 0.3)
    second.load_state_dict(first.state_dict())
    assert second.multipliers == first.multipliers
    first.ascend(log_alphas, 0.6)
    second.ascend(log_alphas, 0.6)
    assert second.multipliers == first.multipliers


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gated("a", 0), "count 0"),
        (lambda: Gated("a", 2, {"p": -1.0}), "-1.0"),
        (lambda: Gated("a", 2, {"p": torch.ones(3)}), "cost of 'p'"),
        (lambda: ExpectedSize([Gated("a", 2, {}, 0)]), "give an earlier one"),
        (lambda: ExpectedSize([Gated("a", 2), Gated("b", 2, {}, 0, 2)]), "gate 2 of 2"),
        (lambda: SizeConstraint(1.0), "target 1.0"),
        (lambda: SizeConstraint(0.5, kind="about"), "kind 'about'"),  # type: ignore[arg-type]
        (lambda: Ascent(rate=0.0), "rate 0.0"),
        (lambda: Ascent(rho=-1.0), "rho -1.0"),
        (lambda: SizeLagrangian(layered(), []), "no constraint"),
        (lambda: SizeLagrangian(layered(), [SizeConstraint(0.5, members=(3,))]), "there are 3"),
        (lambda: SizeLagrangian(layered(), [SizeConstraint(0.5, "bytes")]), "costs 'bytes'"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@given(temperature=st.floats(0.3, 2.0), log_alpha=st.floats(-8, 8))
def test_the_mean_gate_is_the_mean_of_draws(temperature: float, log_alpha: float) -> None:
    """Over the quantiles of the uniform draw, which leaves an error of their spacing."""
    gates = HardConcrete(temperature)
    uniform = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    samples = gates.sample(torch.full_like(uniform, log_alpha), uniform)
    mean = gates.mean(torch.tensor([log_alpha]))
    assert float(mean) == pytest.approx(float(samples.mean()), abs=1e-4)
    assert mean.dtype == torch.float64
