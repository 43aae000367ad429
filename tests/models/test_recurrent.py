"""Recurrent language models: torch's own recurrences, in blocks that can be pruned."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from argprune.models import RecurrentConfig, RecurrentForCausalLM, find_weights, load_model, measure_sparsity
from argprune.models.layerwise import prune_layerwise
from argprune.models.recurrent import RecurrentLayer
from argprune.solvers.admm import Layer, Unstructured, solve_layer

Cell = Literal["lstm", "gru"]
CELLS: tuple[Cell, ...] = ("lstm", "gru")
PARAMETERS = {
    "weight_ih_l0": "input_gates.weight",
    "weight_hh_l0": "hidden_gates.weight",
    "bias_ih_l0": "input_gates.bias",
    "bias_hh_l0": "hidden_gates.bias",
}


def make(cell: Cell = "lstm", **options: Any) -> RecurrentForCausalLM:
    settings = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 2, **options}
    return RecurrentForCausalLM(RecurrentConfig(cell=cell, **settings)).eval()


def texts(rows: int = 3, length: int = 7) -> Tensor:
    return torch.randint(0, 30, (rows, length))


@pytest.mark.parametrize("cell", CELLS)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 12), st.integers(0, 1000), st.booleans())
def test_the_recurrence_is_that_of_torch(
    cell: Cell, rows: int, length: int, width: int, seed: int, single: bool
) -> None:
    """With the same weights: the states, and the gradients of weights and inputs."""
    torch.manual_seed(seed)
    dtype = torch.float32 if single else torch.float64
    theirs: nn.LSTM | nn.GRU = {"lstm": nn.LSTM, "gru": nn.GRU}[cell](width, width, batch_first=True, dtype=dtype)
    ours = RecurrentLayer(cell, width, dropout=0.0).to(dtype)
    with torch.no_grad():
        for name, own in PARAMETERS.items():
            ours.get_parameter(own).copy_(getattr(theirs, name))
    first = torch.randn(rows, length, width, dtype=dtype, requires_grad=True)
    second = first.detach().clone().requires_grad_()
    found, expected = ours.recur(first), theirs(second)[0]
    # Products of float32 that are summed in another order, through up to nine steps.
    tolerance = 1e-6 if single else 1e-13
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    weight = torch.randn(found.shape, dtype=dtype)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for name, own in PARAMETERS.items():
        gradient = getattr(theirs, name).grad
        torch.testing.assert_close(ours.get_parameter(own).grad, gradient, rtol=1e-4, atol=100 * tolerance)
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-4, atol=100 * tolerance)


def test_a_block_normalises_and_goes_around() -> None:
    layer = RecurrentLayer("gru", 8, dropout=0.0)
    inputs = torch.randn(2, 5, 8)
    torch.testing.assert_close(layer(inputs), inputs + layer.recur(nn.functional.layer_norm(inputs, (8,))))
    with torch.no_grad():
        for matrix in (layer.input_gates, layer.hidden_gates):
            matrix.weight.zero_()
    # Pruned altogether it passes on what it was given: gates of 1/2 and a new state of 0.
    assert torch.equal(layer(inputs), inputs)


@pytest.mark.parametrize("cell", CELLS)
def test_it_reads_from_left_to_right(cell: Cell) -> None:
    model, words = make(cell), texts()
    other = words.clone()
    other[:, 4] = (other[:, 4] + 1) % 30
    before, after = model(input_ids=words).logits, model(input_ids=other).logits
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.isclose(before[:, 4:], after[:, 4:]).all(-1).any()


def test_the_loss_is_that_of_the_next_tokens() -> None:
    model, words = make(), texts()
    labels = words.clone()
    labels[1, 3:] = -100
    outputs = model(input_ids=words, attention_mask=torch.ones_like(words), labels=labels)
    log_p = outputs.logits.log_softmax(-1)
    places = [(row, place) for row in range(3) for place in range(1, 7) if labels[row, place] >= 0]
    terms = [-log_p[row, place - 1, labels[row, place]] for row, place in places]
    torch.testing.assert_close(outputs.loss, torch.stack(terms).mean())
    # As transformers' Trainer asks for it: a sum, divided by the number of predicted tokens in several batches.
    summed = model(input_ids=words, labels=labels, num_items_in_batch=50).loss
    torch.testing.assert_close(summed, torch.stack(terms).sum() / 50)
    assert abs(float(outputs.loss.detach()) - math.log(30)) < 0.3
    assert isinstance(model(input_ids=words, return_dict=False), tuple)


def test_padding_in_front_is_refused() -> None:
    """Behind the text it changes nothing that is before it."""
    model, words = make(), texts()
    mask = torch.ones_like(words)
    mask[0, 5:] = 0
    padded = words.masked_fill(mask == 0, 0)
    found = model(input_ids=padded, attention_mask=mask).logits
    assert torch.equal(found[0, :5], model(input_ids=words).logits[0, :5])
    mask[1, 0] = 0
    with pytest.raises(ValueError, match="padding in front of the text; pad on the right"):
        model(input_ids=words, attention_mask=mask)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("tied", [True, False])
def test_it_is_stored_and_found_by_its_folder(cell: Cell, tied: bool, tmp_path: Path) -> None:
    model, words = make(cell, tie_word_embeddings=tied), texts()
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), kind="causal-lm")
    assert type(loaded) is type(AutoModelForCausalLM.from_pretrained(tmp_path)) is RecurrentForCausalLM
    assert AutoConfig.from_pretrained(tmp_path).cell == cell
    assert torch.equal(loaded(input_ids=words).logits, model(input_ids=words).logits)
    assert (loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight) == tied
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in model.parameters())


def test_the_start() -> None:
    """Weights as torch draws them; an LSTM remembers; the same seed gives the same network."""
    torch.manual_seed(3)
    model = make(hidden_size=64)
    layer = model.layers[0]
    assert isinstance(layer, RecurrentLayer)
    assert 0.99 * 64**-0.5 < float(layer.hidden_gates.weight.detach().abs().max()) <= 64**-0.5
    bias = layer.input_gates.bias + layer.hidden_gates.bias
    assert bias.tolist() == [0.0] * 64 + [1.0] * 64 + [0.0] * 128
    assert float(model.embedding.get_parameter("weight").detach().std()) == pytest.approx(0.02, rel=0.1)
    torch.manual_seed(3)
    again = make(hidden_size=64)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "rnn"}, "cell 'rnn'; choose of lstm, gru"),
        ({"hidden_size": 0}, "hidden_size 0.*; all are at least 1"),
        ({"dropout": 1.0}, r"dropout 1\.0; it lies in \[0, 1\)"),
    ],
)
def test_sizes_that_make_no_network(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecurrentConfig(**options)


@pytest.mark.parametrize("cell", CELLS)
def test_its_matrices_are_pruned(cell: Cell) -> None:
    model = make(cell)
    weights = find_weights(model)
    assert [weight.name for weight in weights] == [
        f"layers.{layer}.{name}.weight" for layer in range(2) for name in ("input_gates", "hidden_gates")
    ]
    assert not any(weight.transposed for weight in weights)
    # On what the layers are fed: those of states, at every step.
    pruned = prune_layerwise(
        model,
        [{"input_ids": texts(4, 6), "attention_mask": torch.ones(4, 6, dtype=torch.int64)} for _ in range(6)],
        weights,
        lambda name, matrix, moments: solve_layer(Layer(matrix, moments, Unstructured(0.5)), "wanda"),
    )
    assert measure_sparsity(model, weights).encoder.sparsity == pytest.approx(0.5)
    assert [report.tokens for report in pruned.layers] == [144] * 4
    for weight in weights:
        assert torch.equal(pruned.masks[weight.name], weight.parameter != 0)


def test_dropout_is_for_training() -> None:
    model, words = make(dropout=0.5), texts()
    assert torch.equal(model(input_ids=words).logits, model(input_ids=words).logits)
    model.train()
    assert not torch.equal(model(input_ids=words).logits, model(input_ids=words).logits)
