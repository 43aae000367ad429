"""Hard-concrete gates against autograd, against their distribution function, and against Monte Carlo."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from argprune.solvers.lagrangian import HardConcrete

SHAPES = [HardConcrete(), HardConcrete(1.0), HardConcrete(0.5, -0.2, 1.05), HardConcrete(2.0, -0.01, 1.5)]
shapes = pytest.mark.parametrize("gates", SHAPES, ids=lambda g: f"{g.temperature:.2f}-{g.low}-{g.high}")
distributions = st.builds(
    HardConcrete,
    temperature=st.floats(0.2, 3.0),
    low=st.floats(-1.0, -0.01),
    high=st.floats(1.01, 2.0),
)


def draws(number: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.rand(number, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def written_out(gates: HardConcrete, log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """The definition, for autograd."""
    s = torch.sigmoid((torch.log(uniform) - torch.log(1 - uniform) + log_alpha) / gates.temperature)
    return torch.clamp(s * (gates.high - gates.low) + gates.low, 0, 1)


def mean_by_quadrature(gates: HardConcrete, log_alpha: float) -> float:
    """E[z] = int_0^1 P(z > t) dt, with P(z > t) = sigmoid(log_alpha - temperature logit((t - low) / (high - low)))."""
    points, weights = np.polynomial.legendre.leggauss(200)
    t = ((points + 1) / 2 - gates.low) / (gates.high - gates.low)
    return float(np.sum(weights / 2 / (1 + np.exp(gates.temperature * np.log(t / (1 - t)) - log_alpha))))


@given(gates=distributions, log_alpha=st.floats(-12, 12), seed=st.integers(0, 2**32))
def test_sample_and_slope_are_the_definition_and_its_derivative(
    gates: HardConcrete, log_alpha: float, seed: int
) -> None:
    uniform = draws(64, seed=seed)
    parameter = torch.full((64,), log_alpha, dtype=torch.float64, requires_grad=True)
    reference = written_out(gates, parameter, uniform)
    [slope] = torch.autograd.grad(reference.sum(), parameter)
    sample = gates.sample(parameter.detach(), uniform)
    torch.testing.assert_close(sample, reference.detach(), rtol=1e-12, atol=1e-12)
    # Within a rounding of the clip's corners, either side of the derivative is right.
    clear = ((reference > 1e-9) & (reference < 1 - 1e-9)) | (sample == 0) | (sample == 1)
    torch.testing.assert_close(gates.slope(sample)[clear], slope[clear], rtol=1e-6, atol=1e-12)
    assert bool((gates.slope(sample) >= 0).all())


@shapes
def test_probability_and_its_derivative(gates: HardConcrete) -> None:
    log_alpha = torch.linspace(-8, 8, 41, dtype=torch.float64, requires_grad=True)
    probability = gates.open_probability(log_alpha)
    [derivative] = torch.autograd.grad(probability.sum(), log_alpha)
    p = probability.detach()
    torch.testing.assert_close(derivative, p * (1 - p), rtol=1e-12, atol=0)
    # z > 0 for the draws above one quantile of u, which the definition inverted gives.
    edge = -gates.low / (gates.high - gates.low)
    quantile = torch.sigmoid(gates.temperature * math.log(edge / (1 - edge)) - log_alpha.detach())
    torch.testing.assert_close(p, 1 - quantile, rtol=1e-10, atol=1e-12)
    assert gates.expected_open(log_alpha.detach()) == pytest.approx(float(p.sum()), rel=1e-14)


@shapes
@pytest.mark.parametrize("log_alpha", [-4.0, -1.0, 0.0, 2.5])
def test_monte_carlo(gates: HardConcrete, log_alpha: float) -> None:
    number = 200_000
    sample = gates.sample(torch.full((number,), log_alpha), draws(number, torch.float32))
    p = float(gates.open_probability(torch.tensor(log_alpha, dtype=torch.float64)))
    # Five standard deviations of a mean of 200,000 numbers in [0, 1].
    assert float((sample > 0).double().mean()) == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / number) + 1e-6)
    tolerance = 5 * float(sample.double().std()) / math.sqrt(number) + 1e-6
    assert float(sample.double().mean()) == pytest.approx(mean_by_quadrature(gates, log_alpha), abs=tolerance)


def test_published_figures() -> None:
    """dossier paper-flop, section 2.3: temperature 1, droprates 0.5 and 0.1."""
    gates = HardConcrete(1.0)
    for droprate, opened, mean in ((0.5, 0.917, 0.50), (0.1, 0.990, 0.85), (0.9, 0.550, 0.15)):
        log_alpha = gates.initial(droprate)
        probability = gates.open_probability(torch.tensor(log_alpha, dtype=torch.float64))
        assert float(probability) == pytest.approx(opened, abs=5e-4)
        assert mean_by_quadrature(gates, log_alpha) == pytest.approx(mean, abs=5e-3)


@given(gates=distributions, log_alpha=st.floats(-30, 30))
def test_deterministic_gate_is_the_median_of_temperature_one(gates: HardConcrete, log_alpha: float) -> None:
    one = HardConcrete(1.0, gates.low, gates.high)
    value = torch.tensor([log_alpha], dtype=torch.float64)
    half = torch.tensor([0.5], dtype=torch.float64)
    torch.testing.assert_close(gates.deterministic(value), written_out(one, value, half), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes_are_finite_and_in_range(dtype: torch.dtype) -> None:
    gates = HardConcrete()
    edge = 1 - torch.finfo(dtype).eps
    for log_alpha in (-200.0, -20.0, 0.0, 20.0, 200.0):
        for uniform in (0.0, torch.finfo(dtype).tiny, 0.5, edge):
            value = torch.tensor([log_alpha], dtype=dtype)
            gate = gates.sample(value, torch.tensor([uniform], dtype=dtype))
            assert 0 <= float(gate) <= 1
            assert gate.dtype == dtype
            assert bool(gates.slope(gate).isfinite())
        assert 0 <= float(gates.open_probability(value)) <= 1
    # A draw of exactly 0 closes the gate.
    assert float(gates.sample(torch.tensor([20.0], dtype=dtype), torch.zeros(1, dtype=dtype))) == 0


def test_slope_is_zero_exactly_where_the_clip_acts() -> None:
    gates = HardConcrete()
    gate = torch.tensor([0.0, 1e-30, 1e-6, 0.5, 1 - 2.0**-24, 1.0])
    assert (gates.slope(gate) > 0).tolist() == [False, True, True, True, True, False]


def test_inputs_are_left_alone_and_memory_is_used_where_it_is_given() -> None:
    gates = HardConcrete()
    log_alpha, uniform = torch.linspace(-3, 3, 16), draws(16, torch.float32)
    kept = log_alpha.clone(), uniform.clone()
    sample = gates.sample(log_alpha, uniform)
    slope, probability = gates.slope(sample), gates.open_probability(log_alpha)
    gates.deterministic(log_alpha)
    assert torch.equal(log_alpha, kept[0])
    assert torch.equal(uniform, kept[1])
    work, more = torch.empty(16), torch.empty(16)
    assert gates.slope(sample, out=work, work=more) is work
    assert torch.equal(work, slope)
    assert torch.equal(gates.open_probability(log_alpha, out=more), probability)
    assert gates.expected_open(log_alpha, work=more) == gates.expected_open(log_alpha)
    assert gates.sample(log_alpha, uniform, out=uniform) is uniform
    assert torch.equal(uniform, sample)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, r"temperature 0\.0"),
        ({"temperature": math.inf}, "temperature inf"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"low": 0.0}, r"low 0\.0, high 1\.1"),
        ({"high": 1.0}, r"low -0\.1, high 1\.0"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HardConcrete(**options)


@pytest.mark.parametrize("droprate", [0.0, 1.0, -0.1, math.nan])
def test_a_droprate_is_a_probability(droprate: float) -> None:
    with pytest.raises(ValueError, match=f"droprate {droprate}"):
        HardConcrete().initial(droprate)
