"""How long a text a model can read, and what pads it."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from tokenizers import Tokenizer, models
from transformers import (
    NystromformerConfig,
    NystromformerModel,
    OpenAIGPTConfig,
    OpenAIGPTModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from argprune.models import add_padding, longest_text


def roberta() -> Any:
    return RobertaModel(
        RobertaConfig(
            vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=18
        )
    )


def nystromformer() -> Any:
    """Its table has two rows more than it has positions."""
    config = NystromformerConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    return NystromformerModel(config)


def openai_gpt() -> Any:
    return OpenAIGPTModel(OpenAIGPTConfig(vocab_size=60, n_embd=32, n_layer=1, n_head=2, n_positions=64))


@pytest.mark.parametrize(
    ("make", "longest"),
    [
        (nystromformer, 64),
        (openai_gpt, 64),
        (tiny_models.bert, 512),
        (tiny_models.gpt2, 64),
        (tiny_models.bart, 64),
        (roberta, 16),
        (tiny_models.llama, None),
    ],
)
def test_the_longest_text_is_what_a_forward_takes(make: Any, longest: int | None) -> None:
    model = make().eval()
    assert longest_text(model) == longest
    length = longest or 600
    model(input_ids=torch.full((1, length), 5), attention_mask=torch.ones(1, length))
    if longest is not None:
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, length + 1), 5), attention_mask=torch.ones(1, length + 1))


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({"<end>": 0, "a": 1, "[PAD]": 2}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def test_the_end_token_pads_where_no_other_does() -> None:
    model, ended = tiny_models.gpt2(), tokenizer(eos_token="<end>")
    add_padding(model, ended)
    assert (ended.pad_token, model.config.pad_token_id) == ("<end>", 0)
    model, padded = tiny_models.gpt2(), tokenizer(eos_token="<end>", pad_token="[PAD]")
    add_padding(model, padded)
    assert (padded.pad_token, model.config.pad_token_id) == ("[PAD]", 2)
    with pytest.raises(ValueError, match="neither a padding token nor an end token"):
        add_padding(tiny_models.gpt2(), tokenizer())
