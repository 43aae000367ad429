"""Heads and neurons of each architecture: exactly what falls silent with a unit, found by gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from argprune.models import find_heads, find_neurons, find_ties, find_weights
from argprune.solvers.groups import Tied

LAYERS, HEADS, NEURONS, SIZE = 2, 4, 12, 6
BASE = {"hidden_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": NEURONS}
LLAMA = {**BASE, "hidden_size": 24, "num_key_value_heads": 2}
T5 = {"d_model": 16, "d_kv": SIZE, "d_ff": NEURONS, "num_layers": LAYERS, "num_heads": HEADS}
BART = {
    "d_model": 16,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": NEURONS,
    "decoder_ffn_dim": NEURONS,
}
GPT2 = {"n_embd": 16, "n_layer": LAYERS, "n_head": HEADS, "n_inner": NEURONS, "bos_token_id": 1, "eos_token_id": 2}
# Architecture, configuration, attention layers, heads each (key and value heads where shared), feed-forward layers.
CASES: dict[str, tuple[str, dict[str, Any], int, int, int]] = {
    "bert": ("Bert", BASE, 2, 4, 2),
    "bert decoder": ("Bert", {**BASE, "is_decoder": True, "add_cross_attention": True}, 4, 4, 2),
    "roberta": ("Roberta", BASE, 2, 4, 2),
    "electra": ("Electra", {**BASE, "embedding_size": 16}, 2, 4, 2),
    "distilbert": (
        "DistilBert",
        {"dim": 16, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": NEURONS},
        2,
        4,
        2,
    ),
    "albert": ("Albert", {**BASE, "embedding_size": 16}, 1, 4, 1),
    "gpt2": ("GPT2", GPT2, 2, 4, 2),
    "gpt2 cross": ("GPT2", {**GPT2, "add_cross_attention": True}, 4, 4, 2),
    "opt": ("OPT", {**BASE, "ffn_dim": NEURONS, "word_embed_proj_dim": 16}, 2, 4, 2),
    "llama": ("Llama", LLAMA, 2, 2, 2),
    "mistral": ("Mistral", {**LLAMA, "num_key_value_heads": 1}, 2, 1, 2),
    "qwen3": ("Qwen3", {**LLAMA, "head_dim": SIZE}, 2, 2, 2),
    "t5": ("T5", T5, 6, 4, 4),
    "t5 gated": ("T5", {**T5, "feed_forward_proj": "gated-gelu"}, 6, 4, 4),
    "bart": ("Bart", BART, 6, 4, 4),
}
FINDERS: dict[str, Callable[..., list[Tied]]] = {"heads": find_heads, "neurons": find_neurons}
every_case = pytest.mark.parametrize("case", CASES)
each_kind = pytest.mark.parametrize("kind", FINDERS)


def build(case: str) -> nn.Module:
    """A small model in float64, evaluation mode, of random weights and biases, none of them zero."""
    name, options, *_ = CASES[case]
    config = getattr(transformers, f"{name}Config")(
        vocab_size=20, pad_token_id=0, max_position_embeddings=16, **options
    )
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, f"{name}Model")(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms stay near 1, so that no unit is decided by its bias.
            parameter.copy_(torch.randn_like(parameter) / 3 + (parameter if parameter.ndim == 1 else 0))
    return model


@torch.no_grad()
def output(model: Any) -> Tensor:
    return hidden_states(model)


def hidden_states(model: Any) -> Tensor:
    """The last ones for eight texts, of the decoder where there is one."""
    tokens = torch.randint(3, 20, (8, 10), generator=torch.Generator().manual_seed(1))
    arguments: dict[str, Any] = {"input_ids": tokens}
    if model.config.is_encoder_decoder:
        arguments["decoder_input_ids"] = tokens.flip(1)
    if getattr(model.config, "add_cross_attention", False):
        arguments["encoder_hidden_states"] = torch.arange(8 * 5 * 16.0).sin().view(8, 5, 16).double()
    hidden: Tensor = model(**arguments).last_hidden_state
    return hidden


def slopes(model: nn.Module) -> dict[int, Tensor]:
    """Gradients of the output along one direction, by parameter."""
    hidden = hidden_states(model)
    (hidden * torch.arange(hidden.numel()).cos().view_as(hidden)).sum().backward()
    return {id(p): torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()}


def silence(tie: Tied, unit: int, positions: range) -> None:
    """Zero what some parts hold of one unit."""
    masks = tie.masks(torch.arange(tie.count) != unit)
    with torch.no_grad():
        for position in positions:
            tie.weights[position].parameter.mul_(masks[position])


def reader(tie: Tied) -> int:
    """The position of the matrix whose columns read the units: the last one; biases may follow."""
    return sum(weight.parameter.ndim == 2 for weight in tie.weights) - 1


@every_case
def test_as_many_units_as_the_configuration_says(case: str) -> None:
    *_, layers, heads, feed_forward = CASES[case]
    model = build(case)
    found, neurons = find_heads(model), find_neurons(model)
    assert [tie.count for tie in found] == [heads] * layers
    assert [tie.count for tie in neurons] == [NEURONS] * feed_forward
    # Every prunable weight lies in units of one kind, with every entry.
    weights = {id(weight.parameter): weight.name for weight in find_weights(model)}
    tied = {id(weight.parameter): weight.name for tie in (*found, *neurons) for weight in tie.weights}
    assert tied == weights
    assert sum(len(tie.parts) for tie in (*found, *neurons)) == len(weights)
    for tie in (*found, *neurons):
        assert int(tie.sizes().sum()) == sum(weight.parameter.numel() for weight in tie.weights)
        assert all(weight.name.startswith(f"{tie.name}.") for weight in tie.weights)


@each_kind
@every_case
def test_what_computes_an_unread_unit_has_no_slope_and_all_else_has(case: str, kind: str) -> None:
    model = build(case)
    tie = FINDERS[kind](model, biases=True)[-1]
    unit = tie.count - 1
    silence(tie, unit, range(reader(tie), reader(tie) + 1))
    found = slopes(model)
    for position, (weight, groups) in enumerate(tie.parts):
        stack = groups.split(weight.oriented(found[id(weight.parameter)]))
        if position != reader(tie):
            assert not bool(stack[unit].any()), weight.name
        # Without rotations, the bias of a key moves all scores of a query alike, which the softmax does not see.
        if not weight.name.endswith(("key.bias", "k_lin.bias", "k_proj.bias")):
            assert bool((stack[:unit].abs().amax(1) > 1e-9).all()), weight.name


@each_kind
@every_case
def test_the_columns_of_a_unit_that_nothing_computes_are_not_heard(case: str, kind: str) -> None:
    model = build(case)
    tie = FINDERS[kind](model, biases=True)[0]
    last = reader(tie)
    dense = output(model)
    silence(tie, 0, range(last))
    silence(tie, 0, range(last + 1, len(tie.parts)))
    before = output(model)
    assert float((before - dense).abs().max()) > 1e-3
    silence(tie, 0, range(last, last + 1))
    assert torch.allclose(output(model), before, rtol=0, atol=1e-13)


@each_kind
@every_case
def test_biases_do_not_bring_a_unit_back(case: str, kind: str) -> None:
    """Masks of the matrices silence a unit: what its biases are does not matter."""
    model = build(case)
    tie = FINDERS[kind](model)[0]
    assert all(weight.parameter.ndim == 2 for weight in tie.weights)
    silence(tie, 0, range(len(tie.parts)))
    before = output(model)
    for part in FINDERS[kind](model, biases=True)[0].parts[len(tie.parts) :]:
        bias = Tied(part.weight.name, [part])
        assert bias.count == tie.count
        moved = bias.stack().clone()
        moved[0] += 1.0
        bias.assign(moved)
    assert torch.allclose(output(model), before, rtol=0, atol=1e-13)


def test_heads_of_a_fused_matrix_are_their_queries_keys_and_values() -> None:
    fused, _ = find_heads(build("gpt2"))[0].parts
    rows = fused.groups.split(torch.arange(48)[:, None].expand(48, 16))[1, ::16]
    assert rows.tolist() == [*range(4, 8), *range(20, 24), *range(36, 40)]


def test_queries_that_share_a_key_are_one_unit() -> None:
    tie = find_heads(build("llama"))[0]
    assert [weight.name.split(".")[-2] for weight in tie.weights] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    masks = tie.masks(torch.tensor([True, False]))
    assert [int(mask.any(1).sum()) for mask in masks[:3]] == [12, 6, 6]
    assert int(masks[3].any(0).sum()) == 12


def test_ties_of_the_weights_to_prune() -> None:
    model = build("bert")
    weights = find_weights(model)
    assert [tie.name for tie in find_ties(model, ["heads", "neurons"], weights)] == [
        "encoder.layer.0.attention",
        "encoder.layer.1.attention",
        "encoder.layer.0",
        "encoder.layer.1",
    ]
    second = find_weights(model, include=["encoder.layer.1.*"], exclude=["*.attention.*"])
    assert [tie.name for tie in find_ties(model, ["neurons"], second)] == ["encoder.layer.1"]
    biased = find_weights(model, include=["*.self.*", "*.attention.output.*"], biases=True)
    with pytest.raises(ValueError, match=r"output\.dense\.bias', as 2 biases in all, .*Set biases to false"):
        find_ties(model, ["heads"], biased)
    biased = [weight for weight in biased if not weight.name.endswith("output.dense.bias")]
    assert [len(tie.parts) for tie in find_ties(model, ["heads"], biased)] == [7, 7]
    without = find_weights(model, exclude=["*.key.*"])
    with pytest.raises(
        ValueError, match=r"encoder\.layer\.0\.attention: the heads lie in 4 weights, and .*key\.weight"
    ):
        find_ties(model, ["heads"], without)
    with pytest.raises(ValueError, match=r"8 of the 12 weights to prune, such as .*query\.weight', hold no neurons"):
        find_ties(model, ["neurons"], weights)
    with pytest.raises(ValueError, match="kind 'rows'; choose of heads, neurons"):
        find_ties(model, ["rows"], weights)  # type: ignore[list-item]


@each_kind
def test_an_unknown_layout_is_named(kind: str) -> None:
    config = transformers.FunnelConfig(vocab_size=20, d_model=16, n_head=2, d_head=8, d_inner=12, block_sizes=[1, 1])
    model = transformers.FunnelBaseModel(config)
    message = {
        "heads": r"No attention heads of a known layout in FunnelBaseModel\. .*q_head.* q \+ k \+ v -> o;",
        "neurons": r"No feed-forward neurons .*linear_1.*Known layouts: .*lin1 -> lin2",
    }
    with pytest.raises(ValueError, match=message[kind]):
        FINDERS[kind](model)


def test_norms_over_all_units_are_refused() -> None:
    llama: dict[str, Any] = {"vocab_size": 20, "pad_token_id": 0, **LLAMA}
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_norm normalises over all attention heads together"):
        find_heads(transformers.Olmo2Model(transformers.Olmo2Config(**llama)))
    model: Any = build("opt")
    model.decoder.layers[0].ffn_layernorm = nn.LayerNorm(NEURONS)
    with pytest.raises(ValueError, match="ffn_layernorm normalises over all feed-forward neurons together"):
        find_neurons(model)


def test_matrices_of_a_known_name_in_another_order_are_no_heads() -> None:
    """GPT-BigCode's are head by head, or one key and value for all; ConvBERT's output reads a convolution too."""
    bigcode: dict[str, Any] = {
        "vocab_size": 20,
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 4,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    for multi_query in (True, False):
        config = transformers.GPTBigCodeConfig(**bigcode, multi_query=multi_query)
        with pytest.raises(ValueError, match="No attention heads of a known layout in GPTBigCodeModel"):
            find_heads(transformers.GPTBigCodeModel(config))
    convbert: dict[str, Any] = {"vocab_size": 20, "embedding_size": 16, **BASE}
    with pytest.raises(ValueError, match="No attention heads of a known layout in ConvBertModel"):
        find_heads(transformers.ConvBertModel(transformers.ConvBertConfig(**convbert)))


def test_layers_that_share_their_matrices_have_one_tie() -> None:
    model: Any = build("bert")
    first, second = (layer.intermediate.dense for layer in model.encoder.layer)
    second.weight = first.weight
    with pytest.raises(ValueError, match=r"layer\.1 shares some of its matrices with encoder\.layer\.0, and not all"):
        find_neurons(model)
    model.encoder.layer[1].output.dense.weight = model.encoder.layer[0].output.dense.weight
    (tie,) = find_neurons(model)
    assert tie.name == "encoder.layer.0"
