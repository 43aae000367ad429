"""Teachers: scores are those of the attention that runs, logits stay what they were, answers know no batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argprune.models.attention_scores import Scores, collect_scores, handing_out_scores
from argprune.models.outputs import read_outputs, read_states
from argprune.models.teacher import (
    Conventions,
    Teacher,
    Wanted,
    compute_states,
    find_separator,
    join_answers,
    split_texts,
    text_key,
)
from argprune.solvers.distillation import Distillation
from argprune.solvers.methods import Outputs

LENGTH, LAYERS = 9, 3
SMALL: Any = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "num_labels": 3,
}
BERT = transformers.BertConfig(**SMALL)
ROBERTA = transformers.RobertaConfig(**SMALL)
DISTILBERT = transformers.DistilBertConfig(vocab_size=50, dim=16, n_layers=LAYERS, n_heads=4, hidden_dim=32)
GPT2 = transformers.GPT2Config(
    vocab_size=50, n_embd=16, n_layer=LAYERS, n_head=4, n_positions=16, bos_token_id=1, eos_token_id=1
)
LLAMA = transformers.LlamaConfig(**SMALL, num_key_value_heads=2)
FAMILIES = {
    "bert": (transformers.BertForSequenceClassification, BERT),
    "roberta": (transformers.RobertaForSequenceClassification, ROBERTA),
    "distilbert": (transformers.DistilBertForSequenceClassification, DISTILBERT),
    "gpt2": (transformers.GPT2LMHeadModel, GPT2),
    # Heads of queries share heads of keys.
    "llama": (transformers.LlamaForCausalLM, LLAMA),
}
HEADS = {
    "classification": transformers.BertForSequenceClassification,
    "regression": transformers.BertForSequenceClassification,
    "tokens": transformers.BertForTokenClassification,
    "span": transformers.BertForQuestionAnswering,
    "masked-lm": transformers.BertForMaskedLM,
}
families = pytest.mark.parametrize("family", FAMILIES)


def make(cls: Any, config: Any, implementation: str = "sdpa") -> Any:
    torch.manual_seed(0)
    model = cls(config).eval()
    model.set_attn_implementation(implementation)
    return model


def batch(lengths: list[int], seed: int = 0, *, left: bool = False) -> dict[str, Tensor]:
    ids = torch.randint(3, 50, (len(lengths), LENGTH), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(LENGTH) < torch.tensor(lengths)[:, None]
    mask = mask.flip(1) if left else mask
    return {"input_ids": ids.where(mask, 1), "attention_mask": mask.long()}


@families
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_logits_are_unchanged_to_the_bit(family: str, implementation: str) -> None:
    model = make(*FAMILIES[family], implementation)
    inputs = batch([9, 4, 6])
    before = model(**inputs).logits
    with handing_out_scores(model):
        with collect_scores() as scores:
            assert torch.equal(model(**inputs).logits, before)
        # Nobody collects.
        assert torch.equal(model(**inputs).logits, before)
    assert len(scores.layers) == LAYERS
    assert model.config._attn_implementation == implementation
    with collect_scores() as scores:
        assert torch.equal(model(**inputs).logits, before)
    assert scores.layers == []


@families
@torch.no_grad()
def test_the_softmax_of_the_scores_is_the_attention(family: str) -> None:
    model = make(*FAMILIES[family], "eager")
    inputs = batch([9, 4, 6])
    with handing_out_scores(model), collect_scores() as scores:
        model(**inputs)
    attended = inputs["attention_mask"].bool()[:, None, None, :]
    if scores.causal:
        attended = attended & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    assert scores.causal == (family in ("gpt2", "llama"))
    for raw, wanted in zip(scores.layers, model(**inputs, output_attentions=True).attentions, strict=True):
        # The masked ones of eager attention are the most negative number, not -inf.
        weights = raw.masked_fill(~attended, torch.finfo(raw.dtype).min).softmax(-1)
        torch.testing.assert_close(weights, wanted, rtol=1e-5, atol=1e-6)


def test_scores_carry_gradients_and_are_the_same_in_training() -> None:
    model = make(*FAMILIES["bert"])
    model.train()
    with handing_out_scores(model), collect_scores() as scores:
        model(**batch([9, 4]))
    torch.stack([layer.square().mean() for layer in scores.layers]).sum().backward()
    query = model.bert.encoder.layer[0].attention.self.query.weight
    assert float(query.grad.abs().sum()) > 0


def test_an_error_within_leaves_the_model_as_it_was() -> None:
    model = make(*FAMILIES["bert"])
    with pytest.raises(KeyError), handing_out_scores(model):
        raise KeyError
    assert model.config._attn_implementation == "sdpa"


def test_models_that_keep_their_scores_are_refused() -> None:
    deberta = make(transformers.DebertaV2ForSequenceClassification, transformers.DebertaV2Config(**SMALL), "eager")
    with (
        pytest.raises(ValueError, match=r"^DebertaV2\w+ keeps its attention scores to itself .*Set attention to 0\.$"),
        handing_out_scores(deberta),
    ):
        pass
    inputs = batch([9])
    outputs = make(*FAMILIES["bert"])(**inputs, output_hidden_states=True)
    short = Scores([torch.zeros(1, 4, LENGTH, LENGTH)] * 2)
    with pytest.raises(ValueError, match=r"2 attention scores from 3 layers; attention can be learned where each"):
        read_states(outputs, inputs, short)


@families
@settings(max_examples=12)
@given(
    lengths=st.lists(st.integers(1, LENGTH), min_size=1, max_size=4),
    seed=st.integers(0, 9),
    left=st.booleans(),
    wide=st.integers(0, 3),
)
def test_answers_know_nothing_of_the_batch(family: str, lengths: list[int], seed: int, left: bool, wide: int) -> None:
    teacher = Teacher(made(family), Wanted())
    inputs = batch(lengths, seed, left=left)
    texts = split_texts(inputs)
    assert [len(text["input_ids"]) for text in texts] == lengths
    for row, text in enumerate(texts):
        start = LENGTH - lengths[row] if left else 0
        assert torch.equal(text["input_ids"], inputs["input_ids"][row, start : start + lengths[row]])
        # The same text alone, and in more padding.
        wider = {name: torch.nn.functional.pad(value[row], (0, wide)) for name, value in inputs.items()}
        [again] = split_texts({name: value[None] for name, value in wider.items()})
        assert text_key(again) == text_key(text)
        one, other = teacher.answer(text), teacher.answer(again)
        assert set(one) == {"logits", "embedding", "layers", "scores"}
        assert all(torch.equal(one[name], other[name]) for name in one)


MADE: dict[str, Any] = {}


def made(family: str) -> Any:
    """A model of its own for the examples of hypothesis, which are many."""
    if family not in MADE:
        MADE[family] = make(*FAMILIES[family])
    return MADE[family]


def labelled(head: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    rows, tokens = inputs["input_ids"].shape
    targets: dict[str, dict[str, Tensor]] = {
        "classification": {"labels": torch.zeros(rows, dtype=torch.long)},
        "regression": {"labels": torch.linspace(0, 5, rows)},
        "tokens": {"labels": (inputs["input_ids"] % 3).where(inputs["attention_mask"].bool(), -100)},
        "span": {name: torch.zeros(rows, dtype=torch.long) for name in ("start_positions", "end_positions")},
        "masked-lm": {"labels": inputs["input_ids"].where(torch.arange(tokens) == 1, -100)},
    }
    return {**inputs, **targets[head]}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("left", [False, True])
@torch.no_grad()
def test_joined_answers_are_the_models_own_outputs(head: str, left: bool) -> None:
    # Positions are counted from the first token of the batch: with padding before a text, equal lengths are needed.
    lengths = [9, 9] if left else [9, 4, 6]
    config = transformers.BertConfig(**{**SMALL, "num_labels": {"span": 2, "regression": 1}.get(head, 3)})
    model = make(HEADS[head], config)
    inputs = labelled(head, batch(lengths, left=left))
    raw, states = compute_states(model, inputs, Wanted())
    wanted = read_outputs(raw, inputs)
    teacher = Teacher(model, Wanted())
    found = join_answers([teacher.answer(text) for text in split_texts(inputs)], inputs, type(raw))
    real = inputs["attention_mask"].bool()

    def close(one: Any, other: Any, mask: Tensor) -> None:
        torch.testing.assert_close(one.where(mask, 0), other.where(mask, 0), rtol=1e-4, atol=1e-5)

    for own, held in zip(found.predictions, wanted.predictions, strict=True):
        assert torch.equal(own.targets, held.targets)
        close(own.logits, held.logits, torch.tensor(True) if own.possible is None else own.possible)
    assert found.states is not None
    assert torch.equal(found.states.tokens, states.tokens)
    for one, other in zip(
        (found.states.embedding, *found.states.layers), (states.embedding, *states.layers), strict=True
    ):
        close(one, other, real[..., None])
        assert one is not None
        assert float(one[~real].abs().sum()) == 0
    for one, other in zip(found.states.scores, states.scores, strict=True):
        close(one, other, real[:, None, :, None] & real[:, None, None, :])


def test_a_causal_teacher_predicts_the_next_token() -> None:
    inputs = batch([9, 5])
    inputs["labels"] = inputs["input_ids"].where(inputs["attention_mask"].bool(), -100)
    model = made("gpt2")
    raw, states = compute_states(model, inputs, Wanted())
    student = Outputs(read_outputs(raw, inputs).predictions, raw, states)
    teacher = Teacher(model, Wanted())
    held = join_answers([teacher.answer(text) for text in split_texts(inputs)], inputs, type(raw))
    assert len(student.predictions[0].logits) == 8 + 4
    terms = Distillation().terms(student, held)
    # Its own teacher: what is left is rounding, between texts alone and in a batch.
    assert all(float(terms[name]) < 1e-8 for name in ("hidden", "attention", "embedding"))
    torch.testing.assert_close(held.predictions[0].logits, student.predictions[0].logits.detach())


def test_wanted_layers_are_those_that_are_kept() -> None:
    model = made("bert")
    [text] = split_texts(batch([7]))
    full = Teacher(model, Wanted()).answer(text)
    some = Teacher(model, Wanted(embedding=False, layers=(0, 2))).answer(text)
    assert set(some) == {"logits", "layers", "scores"}
    for name in ("layers", "scores"):
        assert torch.equal(some[name], full[name][[0, 2]])
    assert set(Teacher(model, Wanted(False, False, False)).answer(text)) == {"logits"}


def test_a_teacher_is_frozen_and_has_no_dropout() -> None:
    model = make(*FAMILIES["bert"]).train()
    [text] = split_texts(batch([7]))
    teacher = Teacher(model, Wanted())
    assert not model.training
    one, other = teacher.answer(text), teacher.answer(text)
    assert torch.equal(one["logits"], other["logits"])
    assert not any(value.requires_grad for value in one.values())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    inputs = labelled("classification", batch([7, 5]))
    careless = Teacher(model, Wanted(), dropout=True)
    first, second = (careless.answer_batch(inputs).predictions[0].logits for _ in range(2))
    assert not torch.equal(first, second)


def test_keys_tell_texts_apart() -> None:
    ids = torch.tensor([5, 6, 7])
    texts = [
        {"input_ids": ids},
        {"input_ids": ids[:2]},
        {"input_ids": ids.flip(0)},
        {"input_ids": ids, "token_type_ids": torch.tensor([0, 0, 1])},
        {"input_ids": ids, "token_type_ids": torch.tensor([0, 0, 0])},
    ]
    assert len({text_key(text) for text in texts}) == len(texts)
    assert text_key({"input_ids": ids.int()}) == text_key(texts[0])


def test_padding_within_a_text_is_refused() -> None:
    inputs = batch([5])
    inputs["attention_mask"][0, 2] = 0
    with pytest.raises(ValueError, match=r"^A teacher reads texts whose padding stands before or after them"):
        split_texts(inputs)


def test_models_without_hidden_states_are_refused() -> None:
    from argprune.models import RecurrentConfig, RecurrentForCausalLM

    model = RecurrentForCausalLM(RecurrentConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1)).eval()
    with pytest.raises(ValueError, match=r"^RecurrentForCausalLM gives no hidden states\. Set hidden and embedding"):
        compute_states(model, batch([9]), Wanted(scores=False))


# Conventions


@pytest.mark.parametrize("left", [False, True])
def test_segments_are_those_that_the_teacher_would_have_read(left: bool) -> None:
    # Padded with the separator itself, as models without a token for padding are.
    inputs = batch([9, 7, 5], left=left)
    separator = 1
    real = inputs["attention_mask"].bool()
    firsts = [int(row.int().argmax()) for row in real]
    for row, (first, places) in enumerate(zip(firsts, [(3, 8), (2, 6), (4,)], strict=True)):
        for place in places:
            inputs["input_ids"][row, first + place] = separator
    segments = torch.zeros_like(inputs["input_ids"])
    segments[0, firsts[0] + 4 : firsts[0] + 9] = 1
    segments[1, firsts[1] + 3 : firsts[1] + 7] = 1
    read = Conventions(separator).read(inputs)
    assert torch.equal(read["token_type_ids"], segments)
    assert set(read) == {*inputs, "token_type_ids"}
    teacher = Teacher(made("bert"), Wanted(), conventions=Conventions(separator))
    told = Teacher(made("bert"), Wanted())
    for text, known in zip(split_texts(inputs), split_texts({**inputs, "token_type_ids": segments}), strict=True):
        one, other = teacher.answer(text), told.answer(known)
        assert all(torch.equal(one[name], other[name]) for name in one)
    [text, *_] = split_texts(inputs)
    assert not torch.equal(told.answer(text)["logits"], teacher.answer(text)["logits"])
    inputs = labelled("classification", inputs)
    padded = teacher.answer_batch(inputs).predictions[0].logits
    assert torch.equal(padded, told.answer_batch({**inputs, "token_type_ids": segments}).predictions[0].logits)


def test_classes_are_numbered_as_the_students() -> None:
    inputs = labelled("classification", batch([7, 5]))
    [text, _] = split_texts(inputs)
    plain = Teacher(made("bert"), Wanted())
    moved = Teacher(made("bert"), Wanted(), conventions=Conventions(order=(2, 0, 1)))
    assert torch.equal(moved.answer(text)["logits"], plain.answer(text)["logits"][[2, 0, 1]])
    own, other = (teacher.answer_batch(inputs).predictions[0].logits for teacher in (plain, moved))
    assert torch.equal(other, own[:, [2, 0, 1]])


def test_outputs_that_are_no_tokens_are_left_out() -> None:
    teacher = Teacher(made("gpt2"), Wanted(), conventions=Conventions(vocabulary=40))
    [text] = split_texts(batch([7]))
    assert torch.equal(teacher.answer(text)["logits"], Teacher(made("gpt2"), Wanted()).answer(text)["logits"][:, :40])


def words(template: str | None, **special: str) -> Any:
    """A tokenizer of the words a and b, with the given layout of pairs."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[CLS]", "[SEP]", "a", "b"])}, "a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if template is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair=template, special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def test_where_second_segments_begin_is_asked_of_the_tokenizer() -> None:
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    assert find_separator(words("[CLS] $A [SEP] $B:1 [SEP]:1", **special)) == 1
    assert find_separator(words("[CLS] $A [SEP] $B [SEP]", **special)) is None
    for other in (words("[CLS] $A [SEP]:1 $B:1 [SEP]:1", **special), words("$A:0 $B:1", **special), words(None)):
        with pytest.raises(ValueError, match="its second segments do not begin after the first separator"):
            find_separator(other)
