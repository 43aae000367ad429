"""Folders of transformers, read with the bits that were saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from argprune.models import (
    AdaptiveTransformerConfig,
    AdaptiveTransformerForCausalLM,
    RecurrentConfig,
    RecurrentForCausalLM,
    factorise,
    find_neurons,
    find_weights,
    load_compressed,
    load_shrunk,
    save_compressed,
    shrink,
)
from argprune.models.export import example_inputs, largest_difference, read_logits

_BERT: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
_BART: dict[str, Any] = {
    "vocab_size": 60,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
_MIXTRAL: dict[str, Any] = {**_BERT, "num_key_value_heads": 2, "num_local_experts": 2}


def mixtral() -> Any:
    return tf.MixtralForCausalLM(tf.MixtralConfig(**_MIXTRAL))


def esm() -> Any:
    return tf.EsmForMaskedLM(tf.EsmConfig(**_BERT))


def marian() -> Any:
    return tf.MarianMTModel(tf.MarianConfig(**_BART))


def gpt2() -> Any:
    return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=4, n_positions=64))


def made(make: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    model.train(False)
    return model


def difference(model: Any, other: Any) -> float:
    inputs = example_inputs(model, 2, 10)
    return largest_difference(read_logits(other, inputs), read_logits(model, inputs))


@pytest.mark.parametrize("load", [load_shrunk, load_compressed])
def test_a_head_that_is_untied_in_spite_of_its_config(load: Callable[[Path], Any], tmp_path: Path) -> None:
    model = made(gpt2)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(60, 32))
    assert model.config.tie_word_embeddings
    if load is load_shrunk:
        model.save_pretrained(tmp_path)
    else:
        save_compressed(model, tmp_path)
    loaded = load(tmp_path)
    assert difference(model, loaded) == 0
    loaded.save_pretrained(tmp_path / "again")
    assert difference(model, load_shrunk(tmp_path / "again")) == 0


@pytest.mark.parametrize("make", [mixtral, esm, marian])
def test_architectures_that_are_saved_under_other_names(make: Callable[[], Any], tmp_path: Path) -> None:
    model = made(make)
    model.save_pretrained(tmp_path / "plain")
    assert difference(model, load_shrunk(tmp_path / "plain")) == 0
    save_compressed(model, tmp_path / "compressed")
    assert difference(model, load_compressed(tmp_path / "compressed")) == 0


def test_an_irregular_model_whose_positions_are_not_saved(tmp_path: Path) -> None:
    model = made(marian)
    with torch.no_grad():
        model.model.decoder.layers[0].fc2.weight[:, :12] = 0
    small = shrink(model)
    assert not small.regular
    small.model.save_pretrained(tmp_path, save_original_format=False)
    assert difference(small.model, load_shrunk(tmp_path)) == 0


def test_a_tensor_that_is_missing_is_not_drawn_anew(tmp_path: Path) -> None:
    model = made(mixtral)
    state = model.state_dict()
    del state["model.norm.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match="is none of MixtralForCausalLM"):
        load_shrunk(tmp_path)


@pytest.mark.parametrize(
    "model",
    [
        RecurrentForCausalLM(RecurrentConfig(vocab_size=60, hidden_size=16)),
        AdaptiveTransformerForCausalLM(AdaptiveTransformerConfig(vocab_size=60, hidden_size=16)),
    ],
    ids=["recurrent", "adaptive"],
)
def test_models_of_our_own(model: Any, tmp_path: Path) -> None:
    model.train(False)
    save_compressed(model, tmp_path / "compressed")
    model.save_pretrained(tmp_path / "plain")
    for loaded in (load_compressed(tmp_path / "compressed"), load_shrunk(tmp_path / "plain")):
        assert type(loaded) is type(model)
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_factors_are_not_compressed(tmp_path: Path) -> None:
    model = made(gpt2)
    factorise(model, find_weights(model))
    with pytest.raises(ValueError, match="GPT2LMHeadModel has factors, which are small already"):
        save_compressed(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_nan_anywhere_is_an_infinite_difference() -> None:
    fine, broken = torch.zeros(2), torch.full((2,), torch.nan)
    wanted = {"start_logits": fine, "end_logits": fine}
    assert largest_difference({"start_logits": fine, "end_logits": broken}, wanted) == torch.inf
    assert largest_difference({"start_logits": broken, "end_logits": fine}, wanted) == torch.inf
    assert largest_difference({"start_logits": fine, "end_logits": fine + 2}, wanted) == 2


@pytest.mark.parametrize("name", ["Bart", "T5"])
def test_encoder_decoders_that_classify_read_texts_with_an_end(name: str) -> None:
    t5: dict[str, Any] = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 4}
    t5 |= {"decoder_start_token_id": 0}
    config = tf.BartConfig(**_BART) if name == "Bart" else tf.T5Config(**t5)
    model = getattr(tf, f"{name}ForSequenceClassification")(config)
    model.train(False)
    for batch, length in ((1, 12), (4, 9)):
        assert read_logits(model, example_inputs(model, batch, length))["logits"].shape == (batch, config.num_labels)


def test_units_of_a_renamed_architecture_are_found_again(tmp_path: Path) -> None:
    """Irregular shapes are saved under the parameters' own names, by `argprune export` too."""
    model = made(esm)
    with torch.no_grad():
        reader = find_neurons(model)[0].reader.weight.parameter
        reader[:, :12] = 0
    small = shrink(model)
    assert not small.regular
    small.model.save_pretrained(tmp_path, save_original_format=False)
    assert difference(small.model, load_shrunk(tmp_path)) == 0
