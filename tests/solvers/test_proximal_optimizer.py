"""ProximalOptimizer: what it converges to, what it never revives, and that it stands in for what it wraps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cvxpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import SGD, Adafactor, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers.optimization import Adafactor as HuggingFaceAdafactor

from argprune.solvers.groups import Elements, Groups, Weight
from argprune.solvers.methods.base import Support
from argprune.solvers.prox import L1, FixedSupport, ProximalOptimizer, WeightedL1
from argprune.solvers.prox.optimizer import Metric

CURVATURE = torch.tensor([0.5, 1.0, 2.0, 4.0, 8.0, 0.7, 3.0, 1.5], dtype=torch.float64)
CENTER = torch.tensor([3.0, -2.0, 1.0, -0.5, 0.3, 0.2, -0.1, 2.5], dtype=torch.float64)
FACTORS = torch.tensor([1.0, 2.0, 0.5, 1.5, 3.0, 1.0, 2.0, 0.8], dtype=torch.float64)
STRENGTH = 0.4


def lasso() -> Tensor:
    """argmin 1/2 sum curvature (w - center)^2 + strength * sum factors |w|, by a convex solver."""
    x = cvxpy.Variable(8)
    loss = cvxpy.sum(cvxpy.multiply(CURVATURE.numpy() / 2, cvxpy.square(x - CENTER.numpy())))
    problem = cvxpy.Problem(cvxpy.Minimize(loss + STRENGTH * WeightedL1(1.0, FACTORS).expression(x)))
    # Gap g means distance sqrt(2 g / curvature): 1e-14 for the 1e-6 that the test asks of the optimizer.
    tight = {"tol_gap_abs": 1e-14, "tol_gap_rel": 1e-14, "tol_feas": 1e-12}
    problem.solve(solver=cvxpy.CLARABEL, **tight)
    return torch.tensor(x.value)


def minimise(metric: Metric, make: Callable[..., Optimizer], **options: Any) -> Tensor:
    w = torch.nn.Parameter(torch.full_like(CENTER, 0.5))
    inner = make([w], betas=(0.9, 0.99), **options)
    optimizer = ProximalOptimizer(inner, [w], WeightedL1(1.0, FACTORS), metric=metric, strength=STRENGTH)
    for step in range(1500):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.993**step
        w.grad = CURVATURE * (w.detach() - CENTER)
        optimizer.step()
    return w.detach()


@pytest.mark.parametrize(
    ("make", "options"),
    [(Adam, {}), (AdamW, {"weight_decay": 0.0}), (Adam, {"amsgrad": True})],
    ids=["adam", "adamw", "amsgrad"],
)
def test_only_the_metric_converges_to_the_weighted_lasso(make: Any, options: dict[str, Any]) -> None:
    optimum = lasso()
    # The problem is none where every weight, or no weight, becomes zero.
    assert 0 < int((optimum.abs() < 1e-6).sum()) < 8
    assert float((minimise("metric", make, **options) - optimum).abs().max()) < 1e-6
    assert float((minimise("decoupled", make, **options) - optimum).norm()) > 1e-2


def parameters(*shapes: tuple[int, ...]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "adamw": lambda p: AdamW(p, lr=0.1, weight_decay=0.1),
    "adam": lambda p: Adam(p, lr=0.1, weight_decay=0.1),
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adafactor": lambda p: Adafactor(p, lr=0.1, weight_decay=0.1),
    "adafactor-hf": lambda p: HuggingFaceAdafactor(
        p, lr=0.1, beta1=0.9, weight_decay=0.1, relative_step=False, scale_parameter=False
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@given(seed=st.integers(0, 2**31), kept=st.lists(st.booleans(), min_size=12, max_size=12))
@settings(max_examples=15)
def test_no_optimizer_revives_a_pruned_weight(name: str, seed: int, kept: list[bool]) -> None:
    """Momentum is loaded before the mask is fixed, and gradients keep pointing at pruned entries."""
    torch.manual_seed(seed)
    mask = torch.tensor(kept).view(3, 4)
    w, bias = parameters((3, 4), (4,))
    inner = OPTIMIZERS[name]([w, bias])
    support = Support([Weight("w", w)])

    def step(optimizer: Optimizer) -> None:
        for parameter in (w, bias):
            parameter.grad = torch.randn_like(parameter)
        support.zero_gradients()
        assert not support or not bool(w.grad[~mask].any())  # type: ignore[index]
        optimizer.step()
        support.zero_weights()

    def stays_pruned(optimizer: Optimizer) -> None:
        for _ in range(4):
            before = w.detach().clone()
            step(optimizer)
            assert not bool(w.detach()[~mask].any())
            # The others are not frozen along with them.
            assert bool((w.detach() != before)[mask].all())

    for _ in range(3):
        step(inner)
    proximal = ProximalOptimizer(inner, [w], FixedSupport(mask))
    proximal.prox_()
    stays_pruned(proximal)
    with torch.no_grad():
        w.copy_(torch.randn(3, 4))
    for _ in range(3):
        step(inner)
    support.fix([mask])
    assert torch.equal(support.masks()["w"], mask)
    stays_pruned(inner)


def test_support_can_be_released_and_restored() -> None:
    w, v = parameters((2, 3), (4,))
    weights = [Weight("w", w), Weight("v", v)]
    support = Support(weights)
    assert not support
    assert support.state_dict() == {}
    masks = [torch.tensor([[True, False, True], [False, True, True]]), torch.tensor([False, True, True, True])]
    support.fix(masks)
    other = Support(weights)
    other.load_state_dict(support.state_dict())
    assert other
    with torch.no_grad():
        w.fill_(1)
        v.fill_(1)
    other.zero_weights()
    assert torch.equal(w.detach() != 0, masks[0])
    assert torch.equal(v.detach() != 0, masks[1])
    other.release()
    assert not other
    with torch.no_grad():
        w.fill_(1)
    other.zero_weights()
    assert bool((w == 1).all())


def test_the_threshold_follows_the_learning_rate_or_does_not() -> None:
    """With gradients of zero, a step of SGD does nothing and what is left is the prox."""
    for metric, expected in (("decoupled", [0.9, 0.85, 0.85 - 0.1 / 3]), ("constant", [0.8, 0.6, 0.4])):
        w = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        optimizer = ProximalOptimizer(
            SGD([w], lr=0.2),
            [w],
            L1(0.5),
            metric=metric,  # type: ignore[arg-type]
            step=0.4 if metric == "constant" else None,
        )
        scheduler = LambdaLR(optimizer, lambda epoch: 1 / (epoch + 1))
        for value in expected:
            w.grad = torch.zeros_like(w)
            optimizer.step()
            scheduler.step()
            # A handful of float64 roundings.
            assert w.tolist() == pytest.approx([value] * 2, rel=1e-14)


def test_every_weight_has_its_own_group_regularizer_and_strength() -> None:
    w, v, free = parameters((2,), (3,), (2,))
    with torch.no_grad():
        for parameter in (w, v, free):
            parameter.fill_(1)
    inner = SGD([{"params": [w, free], "lr": 0.1}, {"params": [v], "lr": 0.5}])
    optimizer = ProximalOptimizer(inner, [w, v], [L1(1.0), L1(2.0)], strength=[3.0, 0.25])

    def step() -> None:
        for parameter in (w, v, free):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()

    step()
    # 1 - lr * strength * own strength, to float32.
    assert w.tolist() == pytest.approx([0.7] * 2, rel=1e-6)
    assert v.tolist() == pytest.approx([0.75] * 3, rel=1e-6)
    assert free.tolist() == [1.0] * 2
    optimizer.strength = [1.0]
    assert optimizer.strengths() == [1.0, 1.0]
    step()
    assert w.tolist() == pytest.approx([0.6] * 2, rel=1e-6)
    assert v.tolist() == [0.0] * 3
    optimizer.strength = lambda asked: [0.0, float(len(asked.weights))]
    assert optimizer.strengths() == [0.0, 2.0]
    step()
    assert w.tolist() == pytest.approx([0.6] * 2, rel=1e-6)


def test_zero_strength_is_the_wrapped_optimizer() -> None:
    [w] = parameters((3, 4))
    v = torch.nn.Parameter(w.detach().clone())
    inner = AdamW([v], lr=0.1)
    optimizer = ProximalOptimizer(AdamW([w], lr=0.1), [w], L1(1.0), metric="metric", strength=0.0)
    for _ in range(3):
        w.grad = torch.randn(3, 4)
        v.grad = w.grad.clone()
        optimizer.step()
        inner.step()
    assert torch.equal(w, v)


@pytest.mark.parametrize("make", [Adam, AdamW], ids=["adam", "adamw"])
def test_metric_step_is_read_from_the_optimizer(make: Any) -> None:
    """One Adam step moves an entry by lr * g / (|g| + eps), so its prox step must be lr / (|g| + eps)."""
    w = torch.nn.Parameter(torch.zeros(4, 5, dtype=torch.float64))
    w.grad = torch.randn(4, 5, dtype=torch.float64)
    optimizer = ProximalOptimizer(make([w], lr=0.1, eps=1e-3), [w], L1(1.0), metric="metric", strength=0.0)
    optimizer.step()
    step = optimizer.prox_step(0)
    assert isinstance(step, Tensor)
    # (1 - beta2) / (1 - beta2^1) = 1 costs the digits of 1 - 0.999.
    torch.testing.assert_close(step, 0.1 / (w.grad.abs() + 1e-3), rtol=1e-12, atol=0)
    sampled = optimizer.prox_step(0, stride=3)
    assert isinstance(sampled, Tensor)
    assert torch.equal(sampled, step.flatten()[::3])


def test_closures_and_results_pass_through() -> None:
    [w] = parameters((2,))
    optimizer = ProximalOptimizer(SGD([w], lr=0.1), [w], L1(1.0))

    def closure() -> Any:
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss.detach()

    expected = float(w.detach().square().sum())
    # The same sum of two squares.
    assert float(optimizer.step(closure)) == pytest.approx(expected, rel=1e-6)
    optimizer.zero_grad()
    assert w.grad is None


def run(optimizer: Optimizer, w: Tensor, scheduler: Any, steps: range) -> None:
    for step in steps:
        w.grad = torch.randn(w.shape, generator=torch.Generator().manual_seed(step))
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("metric", ["decoupled", "metric"])
def test_a_saved_state_goes_on_to_the_same_bits(metric: Metric) -> None:
    def make(w: torch.nn.Parameter) -> tuple[ProximalOptimizer, LambdaLR]:
        optimizer = ProximalOptimizer(AdamW([w], lr=0.1), [w], L1(0.1), metric=metric)
        return optimizer, LambdaLR(optimizer, lambda epoch: 0.9**epoch)

    [w] = parameters((6, 5))
    optimizer, scheduler = make(w)
    run(optimizer, w, scheduler, range(5))
    resumed = torch.nn.Parameter(w.detach().clone())
    saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    run(optimizer, w, scheduler, range(5, 10))
    second, second_scheduler = make(resumed)
    second.load_state_dict(saved[0])
    second_scheduler.load_state_dict(saved[1])
    run(second, resumed, second_scheduler, range(5, 10))
    assert torch.equal(resumed, w)
    assert second.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_stands_in_for_the_wrapped_optimizer() -> None:
    w, v, late = parameters((2,), (2,), (2,))
    inner = AdamW([w, v], lr=0.1)
    optimizer = ProximalOptimizer(inner, [w], L1(1.0))
    assert isinstance(optimizer, Optimizer)
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.defaults is inner.defaults
    optimizer.add_param_group({"params": [late], "lr": 0.2})
    for parameter in (w, v, late):
        parameter.grad = torch.ones_like(parameter)
    before = late.detach().clone()
    optimizer.step()
    assert set(optimizer.state) == {w, v, late}
    assert not torch.equal(late, before)
    assert "AdamW" in repr(optimizer)


@dataclass(frozen=True)
class Rows:
    """A group is a row."""

    def split(self, w: Tensor) -> Tensor:
        return w

    def join(self, groups: Tensor, shape: torch.Size) -> Tensor:
        assert groups.shape == shape
        return groups


class RowNorms:
    """Sum of row norms; for a tensor step, a soft threshold of the entries (the test reads the shape it is given)."""

    def value(self, w: Tensor) -> Tensor:
        return w.norm(dim=1).sum()

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        if isinstance(step, Tensor):
            assert step.shape == w.shape
            return w.sign() * (w.abs() - step).clamp(min=0)
        norms = w.norm(dim=1, keepdim=True)
        return w * (1 - step / norms).clamp(min=0)


@pytest.mark.parametrize("transposed", [False, True])
def test_groups_shape_what_the_prox_sees(transposed: bool) -> None:
    """Rows are output units: of a transposed weight, the columns of the parameter shrink together."""
    matrix = torch.tensor([[3.0, 4.0], [0.3, 0.4], [-6.0, 8.0]])
    w = torch.nn.Parameter(matrix.t().clone() if transposed else matrix.clone())
    weight = Weight("w", w, Rows(), transposed)
    optimizer = ProximalOptimizer(SGD([w], lr=1.0), [weight], RowNorms(), strength=1.0)
    w.grad = torch.zeros_like(w)
    optimizer.step()
    expected = torch.tensor([[2.4, 3.2], [0.0, 0.0], [-5.4, 7.2]])
    # float32 products.
    torch.testing.assert_close(weight.matrix, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(w.detach(), expected.t() if transposed else expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("transposed", [False, True])
def test_groups_shape_the_metric_too(transposed: bool) -> None:
    gradient = torch.randn(3, 2)
    w = torch.nn.Parameter(torch.randn(3, 2))
    v = torch.nn.Parameter(w.detach().clone())
    grouped = ProximalOptimizer(
        Adam([w], lr=0.1), [Weight("w", w, Rows(), transposed)], RowNorms(), metric="metric", strength=0.5
    )
    plain = ProximalOptimizer(Adam([v], lr=0.1), [v], L1(1.0), metric="metric", strength=0.5)
    for _ in range(3):
        w.grad, v.grad = gradient.clone(), gradient.clone()
        grouped.step()
        plain.step()
    # The same soft threshold, written in another order of roundings.
    torch.testing.assert_close(w, v, rtol=1e-5, atol=1e-7)


def test_element_groups_are_single_entries() -> None:
    groups = Elements()
    assert isinstance(groups, Groups)
    w = torch.randn(3, 4)
    assert groups.split(w).shape == (12, 1)
    assert groups.split(w).data_ptr() == w.data_ptr()
    assert torch.equal(groups.join(groups.split(w), w.shape), w)


def test_refusals_in_the_constructor() -> None:
    w, stranger = parameters((2, 3), (4, 5))
    inner = AdamW([w])

    def build(weights: Any, regularizer: Any = None, **options: Any) -> ProximalOptimizer:
        return ProximalOptimizer(inner, weights, regularizer or L1(1.0), **options)

    with pytest.raises(ValueError, match=r"weight \(4, 5\) is not a parameter of the AdamW"):
        build([w, stranger])
    with pytest.raises(ValueError, match="weight encoder is not a parameter"):
        build([Weight("encoder", stranger)])
    with pytest.raises(ValueError, match="choose one of decoupled, constant, metric"):
        build([w], metric="euclidean")
    for options in ({"metric": "constant"}, {"step": 0.1}, {"metric": "constant", "step": 0.0}):
        with pytest.raises(ValueError, match="'constant' needs a step > 0"):
            build([w], **options)
    for strength in (-1.0, float("nan"), [-1.0]):
        with pytest.raises(ValueError, match="must be >= 0"):
            build([w], strength=strength)
    with pytest.raises(ValueError, match="2 strengths for 1 weights"):
        build([w], strength=[1.0, 2.0])
    with pytest.raises(ValueError, match="2 regularizers for 1 weights"):
        build([w], [L1(1.0), L1(1.0)])


def test_refusals_later() -> None:
    [w] = parameters((2, 3))
    optimizer = ProximalOptimizer(AdamW([w]), [w], L1(1.0))
    with pytest.raises(ValueError, match="0 regularizers for 1 weights"):
        optimizer.regularizers = []
    with pytest.raises(ValueError, match=r"strength -2\.0"):
        optimizer.strength = -2.0
    assert optimizer.strength == 1.0
    optimizer.strength = lambda _: [-3.0]
    with pytest.raises(ValueError, match=r"strength -3\.0"):
        optimizer.step()


@pytest.mark.parametrize("name", ["sgd", "adafactor", "adafactor-hf"])
def test_metric_needs_second_moments_of_every_entry(name: str) -> None:
    [w] = parameters((2, 3))
    inner = OPTIMIZERS[name]([w])
    optimizer = ProximalOptimizer(inner, [w], L1(1.0), metric="metric")
    w.grad = torch.ones_like(w)
    with pytest.raises(ValueError, match=f"{type(inner).__name__} has none; choose 'decoupled'"):
        optimizer.step()


def test_hooks_and_copies_are_those_of_an_optimizer() -> None:
    w = torch.nn.Parameter(torch.tensor([1.0, -0.2]))
    optimizer = ProximalOptimizer(SGD([w], lr=0.1), [w], L1(1.0))
    seen: list[Any] = []
    optimizer.register_step_post_hook(lambda one, *_: seen.append(one))
    optimizer.register_state_dict_post_hook(lambda _, state: state.update(hooked=True))
    w.grad = torch.zeros(2)
    # A schedule puts a step of its own on the optimizer, which the copy must not keep.
    LambdaLR(optimizer, lambda _: 1.0)
    optimizer.step()
    assert seen == [optimizer]
    assert optimizer.state_dict()["hooked"]
    torch.testing.assert_close(w.detach(), torch.tensor([0.9, -0.1]))
    other = copy.deepcopy(optimizer)
    [copied] = [weight.parameter for weight in other.weights]
    assert copied is other.param_groups[0]["params"][0] is not w
    copied.grad = torch.zeros(2)
    other.step()
    torch.testing.assert_close(copied.detach(), torch.tensor([0.8, 0.0]))
    torch.testing.assert_close(w.detach(), torch.tensor([0.9, -0.1]))


def test_what_cannot_be_wrapped() -> None:
    w = torch.nn.Parameter(torch.ones(2))
    inner, wrap = SGD([w], lr=0.1), ProximalOptimizer
    with pytest.raises(ValueError, match="some of the 2 weights are the same parameter"):
        wrap(inner, [w, w], L1(1.0))
    for regularizer in ("1", None, [None]):
        with pytest.raises(ValueError, match="has no prox; give one that has, such as L1"):
            wrap(inner, [w], regularizer)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="optimizer None; give one of torch's"):
        wrap(None, [w], L1(1.0))  # type: ignore[arg-type]
