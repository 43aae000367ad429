"""The counts of zeros, against sums made by hand."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from argprune.models import Count, Sparsity, find_weights, measure_sparsity
from argprune.solvers.groups import Weight


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(4, 5)
        self.norm = nn.LayerNorm(4)


class Model(nn.Module):
    """Two blocks of 20 + 5 + 8 parameters, an embedding of 12 tied to the head: 78 in all, 40 prunable."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(3, 4)
        self.layers = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(4, 3, bias=False)
        self.head.weight = self.embeddings.weight
        self.register_buffer("mask", torch.zeros(100))


@pytest.fixture
def model() -> Model:
    model = Model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    return model


def test_hand_counts(model: Model) -> None:
    weights = find_weights(model)
    with torch.no_grad():
        weights[0].parameter[:3] = 0.0  # 12 of 20
        weights[1].parameter[0, :2] = 0.0  # 2 of 20
        model.embeddings.weight[0] = 0.0  # 4 of 12, once although tied
        model.get_parameter("layers.1.norm.bias").zero_()  # 4, outside the prunable set
    measured = measure_sparsity(model, weights)
    assert measured == Sparsity(
        encoder=Count(total=40, zeros=14),
        model=Count(total=78, zeros=22),
        matrices={"layers.0.dense.weight": 0.6, "layers.1.dense.weight": 0.1},
    )
    assert measured.to_dict() == {
        "sparsity": {"encoder": 14 / 40, "model": 22 / 78},
        "compression": {"encoder": 40 / 26, "model": 78 / 56},
    }


def test_a_dense_model(model: Model) -> None:
    assert measure_sparsity(model, find_weights(model)).to_dict() == {
        "sparsity": {"encoder": 0.0, "model": 0.0},
        "compression": {"encoder": 1.0, "model": 1.0},
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_only_real_zeros_count(model: Model, dtype: torch.dtype) -> None:
    model.to(dtype)
    weights = find_weights(model)
    tiny = torch.finfo(dtype).tiny
    with torch.no_grad():
        weights[0].parameter[0] = torch.tensor([0.0, -0.0, tiny, float("nan")], dtype=dtype)
    assert measure_sparsity(model, weights).encoder == Count(total=40, zeros=2)


def test_all_zero_has_no_finite_compression(model: Model) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    result = measure_sparsity(model, find_weights(model)).to_dict()
    assert result["sparsity"] == {"encoder": 1.0, "model": 1.0}
    assert result["compression"] == {"encoder": None, "model": None}
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_weight_given_twice_counts_once(model: Model) -> None:
    weights = find_weights(model)
    assert measure_sparsity(model, weights + weights) == measure_sparsity(model, weights)


def test_a_selection_of_weights(model: Model) -> None:
    measured = measure_sparsity(model, find_weights(model, ["layers.1.*"]))
    assert (measured.encoder.total, measured.model.total) == (20, 78)
    assert list(measured.matrices) == ["layers.1.dense.weight"]


def test_counting_changes_nothing(model: Model) -> None:
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    measure_sparsity(model, find_weights(model))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0)
        assert parameter.grad is None


def test_refusals(model: Model) -> None:
    with pytest.raises(ValueError, match="no weights given"):
        measure_sparsity(model, [])
    stranger = Weight("layers.0.dense.weight", nn.Parameter(torch.ones(2, 2)))
    with pytest.raises(ValueError, match=r"'layers\.0\.dense\.weight' is no parameter of this Model"):
        measure_sparsity(model, [stranger])
    with torch.device("meta"):
        ghost = Model()
    with pytest.raises(ValueError, match="meta device"):
        measure_sparsity(ghost, find_weights(ghost))
