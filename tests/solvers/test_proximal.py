"""The general proximal method: strength by search, scaling, reweighting, plug-ins by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from argprune.solvers.groups import Weight
from argprune.solvers.methods import Proximal
from argprune.solvers.prox import L0, L1, LogSum, ProximalOptimizer, Reweighted, Scaled, SquaredL2
from argprune.solvers.prox.search import StrengthSearch
from argprune.solvers.registry import build


def problem(shape: tuple[int, int] = (40, 60), seed: int = 0) -> tuple[torch.nn.Parameter, Weight, ProximalOptimizer]:
    torch.manual_seed(seed)
    parameter = torch.nn.Parameter(torch.randn(shape))
    weight = Weight("w", parameter)
    return parameter, weight, ProximalOptimizer(torch.optim.SGD([parameter], lr=0.1), [weight], L1(1.0))


@pytest.mark.parametrize("regularizer", [L1(1.0), L0(1.0), LogSum(1.0, 0.1), Scaled(LogSum(1.0, 0.1), 0.5)], ids=repr)
@pytest.mark.parametrize("target", [0.3, 0.8, 0.95])
def test_the_search_finds_the_strength_of_a_sparsity(regularizer: Any, target: float) -> None:
    parameter, _, optimizer = problem()
    optimizer.regularizers = [regularizer]
    optimizer.strength = StrengthSearch(lambda: target, lambda: True)
    optimizer.prox_()
    zeros = int((parameter == 0).sum())
    assert zeros == int(target * parameter.numel())


def test_a_search_that_cannot_succeed_says_so() -> None:
    _, _, optimizer = problem()
    optimizer.regularizers = [SquaredL2(1.0)]
    optimizer.strength = StrengthSearch(lambda: 0.5, lambda: True)
    with pytest.raises(ValueError, match="no strength of this regularizer makes enough entries zero"):
        optimizer.prox_()


@pytest.mark.parametrize("regularizer", ["l1", "mcp"])
def test_a_search_passes_zeros_that_were_there_before(regularizer: str) -> None:
    """A quarter of the neurons was pruned before, and nothing moves them: until more is asked, any strength will do."""
    up, down = (torch.nn.Parameter(torch.randn(shape) / 6) for shape in ((64, 32), (32, 64)))
    with torch.no_grad():
        up[:16], down[:, :16] = 0, 0
    truth, method = torch.randn(32, 32), Proximal(0.6, regularizer)
    method.attach([Weight("up", up), Weight("down", down)], 100)
    optimizer = method.wrap_optimizer(torch.optim.AdamW([up, down], lr=1e-3))
    for step in range(100):
        optimizer.zero_grad()
        (down @ up - truth).square().mean().backward()
        method.before_step(step)
        optimizer.step()
        method.after_step(step, 1e-3)
    masks = method.finish()
    assert sum(int(mask.sum()) for mask in masks.values()) == pytest.approx(0.4 * 2 * 64 * 32, abs=1)


def test_sampled_searches_come_close() -> None:
    parameter, _, optimizer = problem((400, 300))
    optimizer.strength = StrengthSearch(lambda: 0.8, lambda: False)
    optimizer.prox_()
    # A sample of 2048: two standard deviations of a fraction of 0.8 are 0.018.
    assert float((parameter == 0).float().mean()) == pytest.approx(0.8, abs=0.03)


def test_a_sample_of_a_matrix_whose_rows_are_a_power_of_two_meets_all_columns() -> None:
    parameter, _, optimizer = problem((1024, 256))
    with torch.no_grad():
        parameter.mul_(torch.linspace(0.5, 1.5, 256))
    optimizer.strength = StrengthSearch(lambda: 0.8, lambda: False)
    optimizer.prox_()
    assert float((parameter == 0).float().mean()) == pytest.approx(0.8, abs=0.03)


def test_at_a_learning_rate_of_zero_the_prox_is_the_identity() -> None:
    parameter, _, optimizer = problem()
    optimizer.param_groups[0]["lr"] = 0.0
    before = parameter.detach().clone()
    optimizer.strength = StrengthSearch(lambda: 0.8, lambda: True)
    optimizer.prox_()
    assert torch.equal(parameter, before)


def test_scaled_regularizers_mean_the_same_for_matrices_of_any_size() -> None:
    w = torch.randn(5, 7, dtype=torch.float64)
    penalty = LogSum(1.0, 0.1)
    for scale in (0.25, 8.0):
        expected = scale * penalty.prox(w, 0.3)
        assert torch.equal(Scaled(penalty, scale).prox(scale * w, 0.3 * scale**2), expected)
        assert float(Scaled(penalty, scale).value(scale * w)) == pytest.approx(float(penalty.value(w)), rel=1e-14)


@pytest.mark.parametrize("strength", [None, 0.05])
def test_a_fused_method_prunes_as_the_other_does(strength: float | None) -> None:
    results = []
    for fused in (False, True):
        torch.manual_seed(0)
        parameter = torch.nn.Parameter(torch.randn(40, 60))
        method = Proximal(0.8, "mcp", strength=strength, fused=fused)
        method.attach([Weight("w", parameter)], 20)
        optimizer = method.wrap_optimizer(torch.optim.AdamW([parameter], lr=0.05))
        for step in range(20):
            parameter.grad = 0.1 * parameter.detach() + 0.01
            method.before_step(step)
            optimizer.step()
            method.after_step(step, 0.05)
        method.finish()
        results.append(parameter.detach())
    assert int((results[1] == 0).sum()) == 1920
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_reweighting_multiplies_the_step_entry_by_entry() -> None:
    w, factors = torch.randn(3, 4), torch.rand(3, 4)
    expected = torch.stack(
        [L0(1.0).prox(x, float(f)) for x, f in zip(w.flatten(), 0.5 * factors.flatten(), strict=True)]
    )
    assert torch.equal(Reweighted(L0(1.0), factors).prox(w, 0.5).flatten(), expected)
    with pytest.raises(ValueError, match="not separable"):
        Reweighted(object(), factors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regularizer": "mpc"}, "Did you mean 'mcp'"),
        ({"regularizer": {"name": "mcp", "gama": 2}}, "gama"),
        ({"regularizer": {"gamma": 2}}, "give a name"),
        ({"regularizer": {"name": "mcp", "gamma": -1.0}}, "gamma -1.0"),
        ({"reweighting": "cube"}, "reweighting 'cube'"),
        ({"regularizer": "slope", "metric": "metric"}, "separable"),
        ({"regularizer": "slope", "reweighting": "log"}, "separable"),
        ({"strength": -1.0}, "strength -1.0"),
        ({"prox_step": 0.1}, "prox_step"),
    ],
)
def test_bad_options_are_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        Proximal(0.5, **options)
    assert "\n" not in str(raised.value)


def test_plugins_are_built_from_files_and_modules(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch_penalty.py").write_text(PLUGIN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name in ("scratch_penalty:Ridgelet", f"{tmp_path}/scratch_penalty.py:Ridgelet"):
        regularizer = build("regularizers", {"name": name, "eps": 0.25})
        assert (regularizer.strength, regularizer.eps) == (1.0, 0.25)
    with pytest.raises(ValueError, match="Cannot load regularizer 'scratch_penalty:Absent'"):
        build("regularizers", "scratch_penalty:Absent")


PLUGIN = '''
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ridgelet:
    """strength * sum log(1 + |w| / eps), its prox left to argprune."""

    strength: float = 1.0
    eps: float = 0.5
    separable = True

    def value(self, w):
        return self.strength * torch.log1p(w.abs() / self.eps).sum()
'''


def test_a_plugin_without_prox_prunes(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch_value.py").write_text(PLUGIN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    method = Proximal(0.5, regularizer="scratch_value:Ridgelet", warmup=0.0, cooldown=0.5)
    parameter, weight, _ = problem((4, 6))
    method.attach([weight], 4)
    optimizer = method.wrap_optimizer(torch.optim.AdamW([parameter], lr=0.05))
    for step in range(4):
        parameter.grad = _gradient(parameter)
        method.before_step(step)
        optimizer.step()
        method.after_step(step, 0.05)
    masks = method.finish()
    assert int((parameter == 0).sum()) == 12
    assert int(masks["w"].sum()) == 12


def _gradient(w: Tensor) -> Tensor:
    return 0.1 * w.detach()
