"""Formulas and what is compiled from them: the same prox, to rounding, as the operators' own code."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from argprune.solvers.groups import Blocks, Columns, Whole
from argprune.solvers.prox import (
    L0,
    L1,
    MCP,
    SLOPE,
    Box,
    BoxL1,
    Fused,
    GroupLasso,
    GroupMCP,
    L2Ball,
    ProximalOptimizer,
    Reweighted,
    Scaled,
    WeightedL1,
    fused,
)
from argprune.solvers.prox.base import Formula, formula_of
from argprune.solvers.registry import registered

SHAPE = (48, 40)


def weights(dtype: torch.dtype = torch.float32) -> Tensor:
    w = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=dtype)
    w[:4], w[5, 7] = 0, -0.0
    w[6:9] *= 1e3
    return w


FACTORS = torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) + 0.1
FACTORS[3:12, 4] = 0
WITH_FORMULA = [
    pytest.param(entry.cls(**kwargs), id=f"{name}-{index}")
    for name, entry in registered("regularizers").items()
    for index, kwargs in enumerate(entry.examples)
    if formula_of(entry.cls(**kwargs)) is not None
]
WITH_FORMULA += [
    pytest.param(WeightedL1(0.4, FACTORS), id="weighted_l1-tensor"),
    pytest.param(Reweighted(MCP(0.4), FACTORS), id="reweighted"),
    pytest.param(Scaled(Reweighted(L0(0.4), FACTORS), 0.25), id="scaled-reweighted"),
    pytest.param(Scaled(GroupLasso(2.0), 0.5), id="scaled-groups"),
    pytest.param(GroupLasso(2.0, Columns()), id="columns"),
    pytest.param(GroupLasso(2.0, Whole()), id="whole"),
    pytest.param(Box(-0.5, 0.7), id="box"),
    pytest.param(L2Ball(3.0), id="l2-ball"),
    pytest.param(L2Ball(1e6), id="l2-ball-inside"),
    pytest.param(L2Ball(0.0), id="l2-ball-point"),
]


def agree(found: Tensor, own: Tensor, w: Tensor) -> None:
    assert found.shape == own.shape
    assert found.dtype == own.dtype
    # Rounding alone; a zero is a zero in both, and never -0.
    assert torch.equal(found == 0, own == 0)
    assert not found.signbit()[found == 0].any()
    bound = 16 * torch.finfo(w.dtype).eps * (w.abs() + 1)
    assert bool(((found - own).abs() <= bound).all())


def evaluated(formula: Formula, w: Tensor, step: float | Tensor) -> Tensor:
    tau = formula.view(step) if isinstance(step, Tensor) else torch.tensor(step, dtype=torch.float64)
    shape = formula.view(w).shape
    assert formula.view(w).data_ptr() == w.data_ptr()
    result = formula.function(formula.view(w), tau, *formula.constants)
    assert result.shape == shape
    return result.t() if shape == w.t().shape != w.shape else result.reshape(w.shape)


def test_every_separable_operator_and_every_group_norm_has_a_formula() -> None:
    named = {str(param.id).rsplit("-", 1)[0] for param in WITH_FORMULA}
    separable = {name for name, entry in registered("regularizers").items() if getattr(entry.cls, "separable", False)}
    groups = {"group_lasso", "weighted_group_lasso", "group_mcp", "group_scad", "group_log_sum"}
    assert separable | groups <= named
    assert formula_of(GroupLasso(1.0, Blocks(2, 2))) is None


@pytest.mark.parametrize("regularizer", WITH_FORMULA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_formula_is_the_prox(regularizer: Any, dtype: torch.dtype) -> None:
    w = weights(dtype)
    formula = formula_of(regularizer)
    assert formula is not None
    for step in (0.01, 0.5, 20.0):
        agree(evaluated(formula, w, step), regularizer.prox(w, step), w)
    if formula.entrywise:
        steps = torch.rand(SHAPE, generator=torch.Generator().manual_seed(2), dtype=dtype) + 0.01
        agree(evaluated(formula, w, steps), regularizer.prox(w, steps), w)


@pytest.mark.parametrize(
    "regularizer",
    [
        L1(0.7),
        WeightedL1(0.4, FACTORS),
        MCP(0.7),
        BoxL1(0.3, -0.3, 0.6),
        Scaled(Reweighted(L0(0.4), FACTORS), 0.25),
        GroupLasso(2.0),
        GroupMCP(2.0),
        L2Ball(3.0),
    ],
    ids=lambda regularizer: type(regularizer).__name__,
)
def test_the_compiled_pass_is_the_prox(regularizer: Any) -> None:
    compiled, w = Fused(regularizer), weights()
    for step in (0.5, 0.01):
        own = regularizer.prox(w, step)
        agree(compiled.prox(w, step), own, w)
        held = w.clone()
        assert compiled.prox_(held, step) is held
        agree(held, own, w)
    # What is not fused is computed all the same.
    for other in (w.t(), w.bfloat16(), w[:0]):
        if isinstance(regularizer, WeightedL1 | Scaled) and other.shape != w.shape:
            continue
        assert torch.equal(compiled.prox(other, 0.5), regularizer.prox(other, 0.5))
    assert torch.equal(compiled.prox(w, 0.0), regularizer.prox(w, 0.0))
    with pytest.raises(ValueError, match="step -1"):
        compiled.prox(w, -1)


def test_one_kernel_serves_all_strengths_scales_and_factors() -> None:
    first, second = formula_of(WeightedL1(0.1, FACTORS)), formula_of(WeightedL1(0.2, 2 * FACTORS))
    assert first is not None
    assert second is not None
    assert first.function == second.function
    first, second = formula_of(Scaled(MCP(1.0), 0.5)), formula_of(Scaled(MCP(1.0), 0.25))
    assert first is not None
    assert second is not None
    assert fused.kernel(fused._into, first.function) is fused.kernel(fused._into, second.function)


def test_many_tensors_in_one_call() -> None:
    regularizers: list[Any] = [L1(0.7), WeightedL1(0.4, FACTORS), GroupLasso(2.0), SLOPE(0.01), MCP(0.7), L1(0.2)]
    steps = [0.5, 0.1, 0.5, 0.2, 0.0, 0.3]
    for turn in range(2):
        before = [weights() + turn for _ in regularizers]
        tensors = [w.clone().requires_grad_() for w in before]
        fused.prox_each_(regularizers, tensors, steps)
        for regularizer, w, found, step in zip(regularizers, before, tensors, steps, strict=True):
            agree(found.detach(), regularizer.prox(w, step), w)
    with pytest.raises(ValueError, match="step -1"):
        fused.prox_each_([L1(0.7)], [weights()], [-1.0])
    with pytest.raises(ValueError, match="shorter"):
        fused.prox_each_([L1(0.7)], [weights()], [])


def test_fused_is_the_regularizer_in_all_else() -> None:
    regularizer = Fused(MCP(0.7))
    w = weights()
    assert torch.equal(regularizer.value(w), MCP(0.7).value(w))
    assert regularizer.separable
    assert not regularizer.convex
    assert not hasattr(regularizer, "expression")
    assert pickle.loads(pickle.dumps(regularizer)).regularizer == MCP(0.7)
    with pytest.raises(ValueError, match="SLOPE has no formula"):
        Fused(SLOPE(1.0))


@pytest.fixture
def nothing_compiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        def fail(*tensors: Tensor) -> None:
            raise TorchDynamoException("no C++ compiler")

        return fail

    monkeypatch.setattr(torch, "compile", refuse)
    fused.kernel.cache_clear()
    yield
    fused.kernel.cache_clear()


@pytest.mark.usefixtures("nothing_compiles")
def test_without_a_compiler_the_result_is_the_same() -> None:
    w = weights()
    with pytest.warns(UserWarning, match="nothing compiles here: no C\\+\\+ compiler"):
        agree(Fused(MCP(0.7)).prox(w, 0.5), MCP(0.7).prox(w, 0.5), w)
    # Said once.
    agree(Fused(MCP(0.7)).prox(w, 0.5), MCP(0.7).prox(w, 0.5), w)


def optimizers(is_fused: bool, metric: Any, kind: Any, **options: Any) -> tuple[list[Tensor], ProximalOptimizer]:
    generator = torch.Generator().manual_seed(3)
    parameters = [torch.nn.Parameter(torch.randn(SHAPE, generator=generator)) for _ in range(4)]
    regularizers: list[Any] = [WeightedL1(1.0, FACTORS), WeightedL1(2.0, 2 * FACTORS), MCP(1.0)]
    step = 0.01 if metric == "constant" else None
    optimizer = kind(parameters, lr=0.02, **options)
    proximal = ProximalOptimizer(
        optimizer, parameters[:3], regularizers, metric=metric, step=step, strength=[0.5, 1.0, 0.3], fused=is_fused
    )
    return list(parameters), proximal


@pytest.mark.parametrize("metric", ["decoupled", "metric", "constant"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.AdamW, {"weight_decay": 0.1}),
        (torch.optim.Adam, {"weight_decay": 0.1}),
        (torch.optim.AdamW, {"amsgrad": True}),
    ],
    ids=["adamw", "adam", "amsgrad"],
)
def test_the_fused_step_is_the_step(metric: Any, kind: Any, options: Any) -> None:
    (plain, plain_optimizer), (own, own_optimizer) = (optimizers(f, metric, kind, **options) for f in (False, True))
    generator = torch.Generator().manual_seed(4)
    for turn in range(6):
        for a, b in zip(plain, own, strict=True):
            a.grad = torch.randn(SHAPE, generator=generator)
            b.grad = a.grad.clone()
        if turn == 3:
            # A weight without a gradient: its optimizer leaves it, the prox does not.
            plain[1].grad = own[1].grad = None
        for optimizer in (plain_optimizer, own_optimizer):
            optimizer.param_groups[0]["lr"] = 0.02 / (1 + turn)
            optimizer.step()
        assert all((a.grad is None) == (b.grad is None) for a, b in zip(plain, own, strict=True))
    for a, b in zip(plain, own, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)
        assert int(((a == 0) != (b == 0)).sum()) <= 1
        for key, value in plain_optimizer.state[a].items():
            torch.testing.assert_close(own_optimizer.state[b][key], value, rtol=1e-5, atol=1e-6)
    assert int((own[0] == 0).sum()) > 5


def test_a_controller_sees_the_weights_between_step_and_prox() -> None:
    seen = {}
    results = {}
    for is_fused in (False, True):
        parameters, optimizer = optimizers(is_fused, "metric", torch.optim.AdamW)
        taken: list[Tensor] = []

        def controller(
            proximal: ProximalOptimizer, parameters: list[Tensor] = parameters, taken: list[Tensor] = taken
        ) -> list[float]:
            taken.append(parameters[0].detach().clone())
            return [0.5, 1.0, 0.3]

        optimizer.strength = controller
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        seen[is_fused], results[is_fused] = taken, parameters
    assert len(seen[True]) == 1
    assert torch.equal(seen[True][0], seen[False][0])
    for a, b in zip(results[False], results[True], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)
