"""The rows that are read off a model's outputs: their mean cross-entropy is the loss that the model itself gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional

from argprune.models.outputs import read_outputs

SMALL: Any = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}


def bert(labels: int) -> Any:
    return transformers.BertConfig(**{**SMALL, "num_labels": labels})


BERT = bert(3)
GPT2 = transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16)
T5_SMALL: Any = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
T5_SMALL |= {"decoder_start_token_id": 0, "pad_token_id": 0}
T5 = transformers.T5Config(**T5_SMALL)
TOKENS = torch.randint(1, 20, (4, 7), generator=torch.Generator().manual_seed(0))
LABELLED = torch.where(torch.rand(4, 7, generator=torch.Generator().manual_seed(1)) < 0.3, -100, TOKENS % 3)


def cases() -> list[Any]:
    return [
        ("classification", transformers.BertForSequenceClassification, BERT, {"labels": torch.tensor([0, 2, 1, 1])}),
        ("tokens", transformers.BertForTokenClassification, BERT, {"labels": LABELLED}),
        ("masked-lm", transformers.BertForMaskedLM, BERT, {"labels": torch.where(LABELLED > 0, TOKENS, -100)}),
        (
            "span",
            transformers.BertForQuestionAnswering,
            bert(2),
            # The last starts outside of the text: transformers ignores it.
            {"start_positions": torch.tensor([0, 2, 6, 7]), "end_positions": torch.tensor([0, 3, 6, 5])},
        ),
        ("causal", transformers.GPT2LMHeadModel, GPT2, {"labels": torch.where(LABELLED < 0, -100, TOKENS)}),
        ("seq2seq", transformers.T5ForConditionalGeneration, T5, {"labels": torch.where(LABELLED < 0, -100, TOKENS)}),
    ]


@pytest.mark.parametrize(("cls", "config", "targets"), [pytest.param(*case[1:], id=case[0]) for case in cases()])
@torch.no_grad()
def test_the_mean_over_rows_is_the_models_own_loss(cls: Any, config: Any, targets: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    model = cls(config).eval()
    inputs = {"input_ids": TOKENS, **targets}
    outputs = model(**inputs)
    read = read_outputs(outputs, inputs)
    assert read.raw is outputs
    losses = [functional.cross_entropy(p.logits, p.targets) for p in read.predictions]
    assert not any(p.is_regression for p in read.predictions)
    assert float(torch.stack(losses).mean()) == pytest.approx(float(outputs.loss), rel=1e-5)


@torch.no_grad()
def test_a_single_output_is_a_number() -> None:
    model = transformers.BertForSequenceClassification(bert(1))
    inputs = {"input_ids": TOKENS, "labels": torch.tensor([0.0, 1.5, 2.0, 5.0])}
    outputs = model.eval()(**inputs)
    [prediction] = read_outputs(outputs, inputs).predictions
    assert prediction.is_regression
    error = (prediction.logits - prediction.targets).square().mean()
    assert float(error) == pytest.approx(float(outputs.loss), rel=1e-5)


def test_outputs_without_labels_are_refused() -> None:
    outputs = transformers.BertModel(BERT).eval()(input_ids=TOKENS)
    with pytest.raises(
        ValueError, match=r"has no logits, or its batch no labels; learning from a teacher needs both\.$"
    ):
        read_outputs(outputs, {"input_ids": TOKENS})
