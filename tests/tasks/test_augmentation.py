"""Altered copies of texts: which words, by what others, and that everything else stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from argprune.models import load_model, load_tokenizer
from argprune.tasks.augmentation import Neighbours, Predictions, Words, augment
from argprune.tasks.encoded import Encoded
from argprune.tasks.language import Language
from argprune.tasks.settings import Augment
from argprune.tasks.texts import SPLITS, Classification, Row


@pytest.fixture(scope="module")
def masked(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a masked language model, which knows a mask token."""
    folder = str(tmp_path_factory.mktemp("masked"))
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.mask_token = "w59"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    BertForMaskedLM(BertConfig.from_pretrained(tiny_model)).save_pretrained(folder)
    return folder


def encoded(model: str, count: int = 6) -> tuple[Classification, Encoded]:
    rows = [Row(f"w{i} the w{i + 7}", i % 2, pair=f"w{2 * i}") for i in range(count)]
    task = Classification("words", ["a", "b"], {"train": rows, "validation": rows, "test": rows})
    return task, Encoded(rows, load_tokenizer(model), 16)


@pytest.mark.parametrize("by", ["neighbours", "mlm"])
def test_copies_keep_all_but_some_words(tiny_model: str, masked: str, by: Any) -> None:
    folder = masked if by == "mlm" else tiny_model
    task, data = encoded(folder)
    tokenizer, model = load_tokenizer(folder), load_model(tiny_model, num_labels=2)
    options = Augment(by=by, model=folder if by == "mlm" else None, copies=5, rate=0.5, candidates=4)
    more = augment(options, data, task, model, tokenizer, seed=1)
    assert len(data) < len(more) <= 6 * len(data)
    words = Words(tokenizer)
    originals = [i for i in range(len(more)) if any(more[i] is data[j] for j in range(len(data)))]
    assert len(originals) == len(data)
    allowed = Neighbours(model, words, 4)
    changed = 0
    for first, last in zip(originals, [*originals[1:], len(more)], strict=True):
        original, copies = more[first], [more[i] for i in range(first + 1, last)]
        texts = [tuple(copy["input_ids"]) for copy in [original, *copies]]
        assert len(set(texts)) == len(texts)
        ids, places = list(original["input_ids"]), words.places(original)
        for copy in copies:
            assert {key: value for key, value in copy.items() if key != "input_ids"} == {
                key: value for key, value in original.items() if key != "input_ids"
            }
            altered = [
                place for place, (one, other) in enumerate(zip(ids, copy["input_ids"], strict=True)) if one != other
            ]
            assert set(altered) <= set(places)
            changed += len(altered)
            if by == "neighbours":
                for place, near in zip(places, allowed.propose(ids, places), strict=True):
                    assert copy["input_ids"][place] in [ids[place], *near]
    assert changed
    again = augment(options, data, task, model, tokenizer, seed=1)
    assert [again[i]["input_ids"] for i in range(len(again))] == [more[i]["input_ids"] for i in range(len(more))]
    other = augment(options, data, task, model, tokenizer, seed=2)
    assert [other[i]["input_ids"] for i in range(len(other))] != [more[i]["input_ids"] for i in range(len(more))]
    assert more.lengths == [len(more[i]["input_ids"]) for i in range(len(more))]


def test_neighbours_are_the_nearest_by_cosine(tiny_model: str) -> None:
    words, model = Words(load_tokenizer(tiny_model)), load_model(tiny_model, num_labels=2)
    table = model.get_input_embeddings().weight.detach()  # type: ignore[operator]
    [found] = Neighbours(model, words, 3).propose([5, 17], [1])
    cosines = torch.nn.functional.cosine_similarity(table, table[17:18])
    cosines[[0, 1, 2, 3, 17]] = -2.0
    assert found == cosines.topk(3).indices.tolist()


def test_predictions_are_the_masked_models_own(masked: str) -> None:
    tokenizer = load_tokenizer(masked)
    words = Words(tokenizer)
    ids = [2, 10, 20, 30, 3]
    found = Predictions(masked, tokenizer, words, 3).propose(ids, [1, 3])
    model = load_model(masked, kind="masked-lm")
    for place, candidates in zip((1, 3), found, strict=True):
        hidden = torch.tensor([ids])
        hidden[0, place] = tokenizer.mask_token_id
        with torch.no_grad():
            logits = model(input_ids=hidden).logits[0, place]
        logits[[0, 1, 2, 3, ids[place], tokenizer.mask_token_id]] = -1e9
        assert candidates == logits.topk(3).indices.tolist()


def test_which_tokens_are_words() -> None:
    tokenizer = load_tokenizer("minilm")
    words = Words(tokenizer)
    text = tokenizer("The unbelievably cat's house, 1984, is Big")
    tokens = tokenizer.convert_ids_to_tokens(text["input_ids"])
    # Stop words, numbers, marks, single letters of "'s" aside, and words of several pieces stay.
    assert "##" in " ".join(tokens)
    assert [tokens[place] for place in words.places(text)] == ["cat", "s", "house", "big"]
    house = tokens.index("house")
    answered = {**text, "start_positions": house, "end_positions": house}
    assert [tokens[place] for place in words.places(answered)] == ["cat", "s", "big"]


def byte_level(folder: str) -> None:
    """Save a byte-level tokenizer whose vocabulary holds "##" and "####" beside words that begin with its own mark."""
    words = ["house", "big", "cat", "tree"]
    merges = [("#", "#"), ("##", "##")]
    for word in words:
        merges += [("\u0120" + word[:end], word[end]) for end in range(len(word))]
    merges = list(dict.fromkeys(merges))
    tokens = ["<s>", "</s>", *sorted({*"".join(words), "\u0120", "#"}), *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def test_the_mark_is_the_one_that_most_tokens_start_with(tmp_path: Path) -> None:
    byte_level(str(tmp_path))
    tokenizer = load_tokenizer(str(tmp_path))
    assert {"##", "####"} <= set(tokenizer.get_vocab())
    text = tokenizer("house big #### cat")
    tokens = tokenizer.convert_ids_to_tokens(text["input_ids"])
    words = Words(tokenizer)
    places = words.places(text)
    assert [tokens[place] for place in places] == ["\u0120house", "\u0120big", "\u0120cat"]
    assert [words.of[text["input_ids"][place]] for place in places] == ["house", "big", "cat"]


def test_a_vocabulary_without_words_is_refused(tiny_model: str) -> None:
    task = Classification("w", ["a"], {split: [Row("1 2", 0)] for split in SPLITS})
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "1", "2"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, "[UNK]")), pad_token="[PAD]", unk_token="[UNK]"
    )
    data = Encoded(task.splits["train"], tokenizer, 8)
    with pytest.raises(ValueError, match=r"^augment: no text of task w has a word of letters only,"):
        augment(Augment(), data, task, load_model(tiny_model, num_labels=2), tokenizer, 0)


def test_a_masked_language_model_without_a_head_is_refused(tiny_model: str) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.mask_token = "w59"
    with pytest.raises(ValueError, match=r"has no head for masked-lm: .* Give a model that was fine-tuned for it\.$"):
        Predictions(tiny_model, tokenizer, Words(tokenizer), 3)


def test_texts_without_words_and_tasks_of_tokens_are_refused(tiny_model: str) -> None:
    _, data = encoded(tiny_model)
    model, tokenizer = load_model(tiny_model, num_labels=2), load_tokenizer(tiny_model)
    task = Classification("w", ["a"], {split: [Row("?", 0)] for split in SPLITS})
    empty = Encoded(task.splits["train"], tokenizer, 8)
    with pytest.raises(ValueError, match=r"^augment: no text of task w has a word of letters only,"):
        augment(Augment(), empty, task, model, tokenizer, 0)
    language = Language("text", {split: ["w1 w2"] for split in SPLITS})
    with pytest.raises(ValueError, match=r"^augment: task text is of kind causal-lm; words are replaced in"):
        augment(Augment(), data, language, model, tokenizer, 0)
