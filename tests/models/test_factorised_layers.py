"""Factorised layers by themselves: the gated product, its gradients, what is kept and what is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from argprune.models.factorised import (
    FactorisedEmbedding,
    FactorisedLinear,
    TiedFactorisedEmbedding,
    TiedFactorisedHead,
)


def layer(outputs: int, inputs: int, rank: int, seed: int = 0, bias: bool = True) -> FactorisedLinear:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return FactorisedLinear(draw(rank, inputs), draw(outputs, rank), draw(outputs) if bias else None)


def gates() -> st.SearchStrategy[list[float]]:
    return st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.3, 0.7, 1.0]), min_size=1, max_size=12)


@given(values=gates(), outputs=st.integers(1, 6), inputs=st.integers(1, 6), bias=st.booleans())
def test_a_layer_computes_the_gated_product_and_the_gates_gradients(
    values: list[float], outputs: int, inputs: int, bias: bool
) -> None:
    one = layer(outputs, inputs, len(values), bias=bias)
    x = torch.randn(3, 4, inputs, dtype=torch.float64, requires_grad=True)
    one.set_gate(torch.tensor(values))
    reference = torch.tensor(values).double().requires_grad_()
    copies = [p.detach().clone().requires_grad_() for p in (one.first, one.second)]
    y = x.detach().clone().requires_grad_()
    wanted = y @ (copies[1] * reference @ copies[0]).t() + (0.0 if one.bias is None else one.bias.detach())
    found = one(x)
    torch.testing.assert_close(found, wanted)
    weights = torch.randn_like(wanted)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    for mine, theirs in ((one.first, copies[0]), (one.second, copies[1]), (x, y)):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad)
    gate = one.gate
    assert gate is not None
    assert gate.grad is not None
    assert gate.dtype == torch.float32
    # Gates that are closed get no gradient where few are open: then they are not computed with.
    open_ones = torch.tensor(values) != 0
    few = int(open_ones.sum()) < 0.8 * len(values)
    wanted_gradient = reference.grad.float() * (open_ones if few else 1)  # type: ignore[union-attr]
    torch.testing.assert_close(gate.grad, wanted_gradient, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.product(), (one.second * gate.double() @ one.first).detach())


def test_closed_gates_leave_the_bias_and_no_gradient() -> None:
    one = layer(3, 4, 5)
    one.set_gate(torch.zeros(5))
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    found = one(x)
    assert one.bias is not None
    assert torch.equal(found, one.bias.expand(2, 3))
    found.sum().backward()
    for tensor in (one.first, one.second, x, one.gate):
        assert tensor is not None
        assert tensor.grad is not None
        assert not tensor.grad.any()
    assert one.bias.grad is not None
    assert one.bias.grad.eq(2).all()


def test_gradients_of_several_batches_add_up_until_new_gates_come() -> None:
    one = layer(3, 4, 5)
    one.set_gate(torch.ones(5))
    x = torch.randn(2, 4, dtype=torch.float64)
    one(x).sum().backward()
    assert one.gate is not None
    assert one.gate.grad is not None
    once = one.gate.grad.clone()
    one(x).sum().backward()
    torch.testing.assert_close(one.gate.grad, 2 * once)
    values = torch.ones(5)
    one.set_gate(values)
    values.zero_()
    assert one.gate is not None
    assert one.gate.grad is None
    assert one.gate.eq(1).all(), "a copy is kept, not the tensor given"


def test_nothing_computed_goes_stale() -> None:
    """After an evaluation: other weights, another dtype, a copy, a second backward; the authors' cache broke them."""
    one = layer(6, 5, 4).float().eval()
    one.set_gate(torch.tensor([1.0, 0.0, 0.0, 0.5]))
    x = torch.randn(2, 5)
    before = one(x)
    before.sum().backward()
    one(x).sum().backward()
    twin = copy.deepcopy(one)
    torch.testing.assert_close(twin(x), before)
    other = layer(6, 5, 4, seed=1).float()
    one.load_state_dict(other.state_dict())
    other.set_gate(torch.tensor([1.0, 0.0, 0.0, 0.5]))
    torch.testing.assert_close(one(x), other(x))
    torch.testing.assert_close(twin(x), before)
    assert pickle.loads(pickle.dumps(twin))(x).equal(twin(x))
    one.to(torch.bfloat16)
    assert one(x.bfloat16()).dtype == torch.bfloat16
    assert one.gate is not None
    assert one.gate.dtype == torch.float32
    assert one.gate.is_leaf
    assert one.gate.requires_grad
    # bfloat16 has 8 bits: sums of a few products of order one.
    torch.testing.assert_close(one(x.bfloat16()).float(), other(x), atol=0.1, rtol=0.05)


def test_gates_are_in_no_state_dict_and_follow_to_another_device() -> None:
    one = layer(6, 5, 4)
    one.set_gate(torch.tensor([1.0, 0.0, 0.0, 0.5]))
    assert list(one.state_dict()) == ["first", "second", "bias"]
    assert [name for name, _ in one.named_parameters()] == ["first", "second", "bias"]
    one.to("meta")
    assert one.gate is not None
    assert one.gate.is_meta
    assert one.gate.is_leaf
    assert one(torch.empty(2, 5, dtype=torch.float64, device="meta")).shape == (2, 6)
    one.set_gate(None)
    assert one.gate is None


def test_compact_layers_can_be_exported() -> None:
    one = layer(6, 5, 4).eval()
    one.set_gate(torch.tensor([1.0, 0.0, 0.0, 0.5]))
    one.keep(torch.tensor([0, 3]))
    x = torch.randn(2, 5, dtype=torch.float64)
    torch.testing.assert_close(torch.export.export(one, (torch.randn_like(x),)).module()(x), one(x))


def test_gates_set_in_inference_take_part_in_training() -> None:
    one = layer(6, 5, 4)
    with torch.inference_mode():
        one.set_gate(torch.rand(4))
        one(torch.randn(2, 5, dtype=torch.float64))
    one(torch.randn(2, 5, dtype=torch.float64)).sum().backward()
    assert one.gate is not None
    assert one.gate.grad is not None


@given(rank=st.integers(1, 9), data=st.data())
def test_keep_shrinks_the_same_parameters(rank: int, data: st.DataObject) -> None:
    one = layer(5, 7, rank)
    index = torch.tensor(data.draw(st.lists(st.integers(0, rank - 1), min_size=1, unique=True)))
    gate = torch.rand(rank) if data.draw(st.booleans()) else None
    one.set_gate(gate)
    x = torch.randn(3, 7, dtype=torch.float64)
    one(x).sum().backward()
    kept = torch.zeros(rank).index_fill(0, index, 1.0)
    one.set_gate(kept if gate is None else kept * gate)
    wanted, parameters = one(x), (one.first, one.second)
    one.set_gate(gate)
    one.keep(index)
    assert (one.first, one.second) == parameters
    assert one.first.shape == (len(index), 7)
    assert one.second.shape == (5, len(index))
    assert one.rank == len(index)
    assert one.gate is None
    assert one.first.grad is None
    torch.testing.assert_close(one(x), wanted)
    one(x).sum().backward()
    assert one.second.grad is not None
    assert one.second.grad.shape == one.second.shape


@given(values=gates(), bias=st.booleans())
def test_embedding_and_head_share_factors_and_gates(values: list[float], bias: bool) -> None:
    rank = len(values)
    one = FactorisedEmbedding(torch.randn(9, rank), torch.randn(4, rank), padding_idx=2, scale=2.0)
    head = TiedFactorisedHead(one, nn.Linear(4, 9), nn.Parameter(torch.randn(9)) if bias else None)
    again = TiedFactorisedEmbedding(one, nn.Embedding(9, 4), padding_idx=None)
    one.set_gate(torch.tensor(values))
    first, second, gate = (t.detach().clone().requires_grad_() for t in (one.first, one.second, torch.tensor(values)))
    table = first * gate @ second.t()
    words, hidden = torch.tensor([[1, 2], [3, 3]]), torch.randn(5, 4)
    shown = 0.0 if head.bias is None else head.bias
    wanted = [2 * table[words], hidden @ table.t() + shown, table[words]]
    found = [one(words), head(hidden), again(words)]
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.product().t(), table.detach(), atol=1e-5, rtol=1e-5)
    assert list(head.state_dict()) == (["bias"] if bias else [])
    assert not again.state_dict()
    torch.cat([mine.flatten() for mine in found[1:]]).square().sum().backward()
    torch.cat([theirs.flatten() for theirs in wanted[1:]]).square().sum().backward()
    torch.testing.assert_close(one.first.grad, first.grad, atol=1e-3, rtol=1e-4)
    one.zero_grad()
    one(words).sum().backward()
    assert one.first.grad is not None
    assert not one.first.grad[2].any()
    open_ones = torch.tensor(values) != 0
    assert bool(one.first.grad[1].any()) == bool(open_ones.any())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FactorisedLinear(torch.ones(3, 4), torch.ones(5, 2)), r"first of shape \(3, 4\), second of \(5, 2\)"),
        (lambda: FactorisedLinear(torch.ones(0, 4), torch.ones(5, 0)), "r >= 1"),
        (lambda: FactorisedLinear(torch.ones(3, 4), torch.ones(5, 3), torch.ones(4)), r"bias of shape \(4,\)"),
        (lambda: FactorisedEmbedding(torch.ones(3, 4), torch.ones(5, 3)), r"\(inputs, r\)"),
        (lambda: layer(3, 4, 5).set_gate(torch.ones(4)), r"values of shape \(4,\)"),
        (lambda: layer(3, 4, 5).set_gate(torch.ones(5, dtype=torch.int64)), "torch.int64"),
        (lambda: layer(3, 4, 5).keep(torch.tensor([], dtype=torch.int64)), "at least one of 5"),
        (lambda: layer(3, 4, 5).keep(torch.tensor([5])), "from 0 to 4"),
        (lambda: layer(3, 4, 5).keep(torch.tensor([-1])), "from 0 to 4"),
        (lambda: layer(3, 4, 5).keep(torch.ones(5, dtype=torch.bool)), "torch.bool"),
    ],
)
def test_layers_refuse(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
