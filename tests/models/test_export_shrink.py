"""Shrinking: the outputs of the masked model from smaller matrices, through saving and loading."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from argprune.models import find_heads, find_neurons
from argprune.models.export import example_inputs, largest_difference, load_shrunk, read_logits, shrink
from argprune.solvers.groups import Tied

Options = dict[str, Any]
_SMALL: Options = {"vocab_size": 50, "max_position_embeddings": 32}
_BERT: Options = _SMALL | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
_GPT2: Options = {"vocab_size": 50, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 24}
_T5: Options = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 4}
_T5 |= {"decoder_start_token_id": 0}
_ELECTRA = _BERT | {"embedding_size": 16}
_OPT = _SMALL | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 24}
_DISTILBERT = _SMALL | {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 24}
_LLAMA = _BERT | {"num_key_value_heads": 2}
MODELS: Mapping[str, Any] = {
    "bert": lambda: tf.BertForSequenceClassification(tf.BertConfig(**_BERT)),
    "roberta": lambda: tf.RobertaForSequenceClassification(tf.RobertaConfig(**_BERT)),
    "distilbert": lambda: tf.DistilBertForSequenceClassification(tf.DistilBertConfig(**_DISTILBERT)),
    "electra": lambda: tf.ElectraForSequenceClassification(tf.ElectraConfig(**_ELECTRA)),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**_GPT2)),
    "opt": lambda: tf.OPTForCausalLM(tf.OPTConfig(**_OPT, word_embed_proj_dim=32)),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_LLAMA)),
    "t5": lambda: tf.T5ForConditionalGeneration(tf.T5Config(**_T5)),
    "t5-gated": lambda: tf.T5ForConditionalGeneration(tf.T5Config(**_T5, feed_forward_proj="gated-gelu")),
}


def make(name: str) -> Any:
    """A small model whose biases are not the zeros of a fresh one."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def logits(model: Any) -> Tensor:
    ids = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["attention_mask"][1, 6:] = 0
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :4]
    with torch.inference_mode():
        return model(**inputs).logits


def zero_units(tie: Tied, zero: Tensor, parts: slice = slice(None)) -> None:
    """Set the weights of some units to zero, in the parts given, as pruning does: biases stay."""
    matrices = [part for part in tie.parts if part.weight.parameter.ndim == 2]
    chosen = Tied(tie.name, matrices[parts])
    stack = chosen.stack().clone()
    stack[zero] = 0
    chosen.assign(stack)


def prune_units(model: Any, sparsity: float, generator: torch.Generator, parts: slice = slice(None)) -> None:
    for tie in [*find_heads(model), *find_neurons(model)]:
        zero_units(tie, torch.rand(tie.count, generator=generator) < sparsity, parts)


@pytest.mark.parametrize("name", MODELS)
def test_a_shrunk_model_gives_the_masked_models_logits_and_reloads(name: str, tmp_path: Path) -> None:
    model = make(name)
    untouched = logits(model)
    prune_units(model, 0.5, torch.Generator().manual_seed(2))
    masked = logits(model)
    assert (masked - untouched).abs().max() > 1e-3
    small = shrink(model)
    assert small.removed > 0
    assert sum(p.numel() for p in small.model.parameters()) < sum(p.numel() for p in model.parameters())
    # Sums of other lengths round otherwise; the logits are of order one.
    torch.testing.assert_close(logits(small.model), masked, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(model), masked, atol=0, rtol=0)
    small.model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(load_shrunk(tmp_path)), logits(small.model), atol=0, rtol=0)
    if not small.regular:
        assert "argprune_shapes" in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize("name", MODELS)
def test_regular_shapes_load_with_plain_from_pretrained(name: str, tmp_path: Path) -> None:
    model = make(name)
    prune_units(model, 0.5, torch.Generator().manual_seed(3))
    small = shrink(model, regular=True)
    assert small.regular
    assert "neurons" in small.units
    assert ("heads" in small.units) == (name == "llama")
    small.model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(load_shrunk(tmp_path)), logits(loaded), atol=0, rtol=0)


@pytest.mark.parametrize("name", ["bert", "gpt2", "opt", "llama", "t5", "t5-gated"])
@pytest.mark.parametrize("parts", [slice(0, -1), slice(-1, None)])
def test_units_with_constant_outputs_fold_into_the_next_bias(name: str, parts: slice) -> None:
    """Only what computes the unit is zero, and its biases are not; or only what reads it."""
    model = make(name)
    prune_units(model, 0.5, torch.Generator().manual_seed(4), parts)
    small = shrink(model)
    torch.testing.assert_close(logits(small.model), logits(model), atol=1e-5, rtol=0)
    assert small.removed > 0


@given(seed=st.integers(0, 10**6), sparsity=st.floats(0, 1), name=st.sampled_from(["bert", "gpt2", "llama"]))
@settings(max_examples=15)
def test_random_masks(seed: int, sparsity: float, name: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = make(name)
    prune_units(model, sparsity, generator)
    # Single entries that are zero remove nothing.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[torch.rand(parameter.shape, generator=generator) < 0.2] = 0
    small = shrink(model)
    torch.testing.assert_close(logits(small.model), logits(model), atol=1e-5, rtol=0)
    for kept, before in (pair for layers in small.units.values() for pair in layers.values()):
        assert 1 <= kept <= before


def test_a_bias_that_fits_nowhere_keeps_its_neuron() -> None:
    model = make("llama")
    (tie, *_) = find_neurons(model)
    mlp: Any = model.get_submodule(tie.name)
    mlp.up_proj.bias = nn.Parameter(torch.ones(24))
    mlp.gate_proj.bias = nn.Parameter(torch.ones(24))
    zero_units(tie, torch.arange(24) < 10, slice(0, 2))
    small = shrink(model)
    assert small.units["neurons"][tie.name] == (24, 24)


def test_nothing_to_cut_leaves_an_equal_model(tmp_path: Path) -> None:
    model = make("bert")
    small = shrink(model)
    assert small.removed == 0
    assert small.regular
    torch.testing.assert_close(logits(small.model), logits(model), atol=0, rtol=0)


def test_shrinking_twice_is_shrinking_once(tmp_path: Path) -> None:
    model = make("bert")
    prune_units(model, 0.5, torch.Generator().manual_seed(5))
    once = shrink(model).model
    prune_units(once, 0.3, torch.Generator().manual_seed(6))
    twice = shrink(once).model
    twice.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(load_shrunk(tmp_path)), logits(once), atol=1e-5, rtol=0)


def test_cached_generation_of_a_shrunk_decoder() -> None:
    model = make("gpt2")
    prune_units(model, 0.4, torch.Generator().manual_seed(7))
    small: Any = shrink(model).model
    ids = torch.tensor([[5, 6, 7]])
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert small.generate(ids, **options).tolist() == model.generate(ids, **options).tolist()


def test_folders_that_do_not_fit_are_refused_in_one_line(tmp_path: Path) -> None:
    model = make("bert")
    prune_units(model, 0.5, torch.Generator().manual_seed(8))
    shrink(model).model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())

    def refused(message: str, **changes: Any) -> None:
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(ValueError, match=message) as info:
            load_shrunk(tmp_path)
        assert "\n" not in str(info.value)

    refused("do not belong together", argprune_shapes=None)
    refused("is none of transformers", architectures=["Brat"])
    refused("maps heads and neurons to counts", argprune_shapes=[1])
    refused("has no hats; it has heads, neurons", argprune_shapes={"hats": {}})
    refused("has no heads in 'x'", argprune_shapes={"heads": {"x": 2}})
    name = next(iter(config["argprune_shapes"]["heads"]))
    refused("give 1 to 4", argprune_shapes={"heads": {name: 5}})
    (tmp_path / "model.safetensors").write_bytes(b"no")
    refused("cannot be read")
    (tmp_path / "model.safetensors").unlink()
    refused("has no model.safetensors")
    with pytest.raises(ValueError, match="Give a folder"):
        load_shrunk(tmp_path / "nowhere")


def test_a_model_without_units_is_refused() -> None:
    with pytest.raises(ValueError, match="has no units to cut out"):
        shrink(nn.Sequential(nn.Linear(3, 3)))  # type: ignore[arg-type]


_QWEN = _LLAMA | {"head_dim": 8, "attention_bias": True, "num_experts": 0, "mlp_only_layers": [0, 1]}
_GEMMA = _LLAMA | {"head_dim": 8, "intermediate_size": [24, 24], "hidden_size_per_layer_input": 8, "laurel_rank": 4}
_GEMMA |= {"vocab_size_per_layer_input": 50, "altup_num_inputs": 2, "num_kv_shared_layers": 0}
# Architectures in which a unit is not only what its matrices say.
ENTANGLED: Mapping[str, tuple[str, Any]] = {
    "a table of position biases outside": ("heads", lambda: tf.MPNetModel(tf.MPNetConfig(**_BERT))),
    "a gate on constant heads": (
        "heads",
        lambda: tf.Qwen3NextForCausalLM(tf.Qwen3NextConfig(**_QWEN, layer_types=["full_attention"] * 2)),
    ),
    "a norm for every head": (
        "heads",
        lambda: tf.StableLmForCausalLM(tf.StableLmConfig(**_LLAMA, qk_layernorm=True)),
    ),
    "a cut at the mean of all neurons": (
        "neurons",
        lambda: tf.Gemma3nForCausalLM(tf.Gemma3nTextConfig(**_GEMMA, activation_sparsity_pattern=[0.5, 0.5])),
    ),
}


@pytest.mark.parametrize("which", ENTANGLED)
def test_units_that_cannot_be_cut_out_stay_with_a_warning(which: str) -> None:
    kind, build = ENTANGLED[which]
    torch.manual_seed(0)
    model = build().eval()
    other = {"heads": find_neurons, "neurons": find_heads}[kind](model)[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for tie in {"heads": find_heads, "neurons": find_neurons}[kind](model):
            for weight, mask in list(zip(tie.weights, tie.masks(torch.arange(tie.count) > 0), strict=True))[:-1]:
                weight.parameter.mul_(mask)
        for weight, mask in zip(other.weights, other.masks(torch.arange(other.count) > 0), strict=True):
            weight.parameter.mul_(mask)
    wanted = read_logits(model, example_inputs(model, 2, 12))
    with pytest.warns(UserWarning, match=rf"The {kind} of {type(model).__name__} stay: without those that are zero"):
        small = shrink(model)
    assert small.removed == 1
    assert kind not in small.units
    found = read_logits(small.model, example_inputs(model, 2, 12))
    assert largest_difference(found, wanted) < 1e-4 * max(float(value.abs().max()) for value in wanted.values())


def test_matrices_that_two_layers_share_are_not_cut() -> None:
    model = make("bert")
    first, second = model.bert.encoder.layer
    second.intermediate.dense.weight = first.intermediate.dense.weight
    second.output.dense.weight = first.output.dense.weight
    with torch.no_grad():
        first.output.dense.weight[:, :12] = 0
    small = shrink(model)
    assert small.removed == 0
    assert torch.equal(logits(small.model), logits(model))
