"""Causal language modelling: how documents become texts, what is measured, and the untrained model to start from."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from argprune.models import find_weights, load_model, load_tokenizer
from argprune.tasks.data import list_tasks, load_task
from argprune.tasks.language import END, Language, make_causal_lm, read_language, train_tokenizer
from argprune.tasks.stdlib_docs import read_stdlib_lm
from argprune.tasks.texts import SPLITS

DOCUMENTS = [f"A cat, number {i}, sat on mat {i % 7}.\nIt was the cat of {i % 5} dogs.\n" for i in range(60)]


@pytest.fixture(scope="module")
def task() -> Language:
    return Language("cats", {"train": DOCUMENTS[:40], "validation": DOCUMENTS[40:50], "test": DOCUMENTS[50:]})


@pytest.fixture(scope="module")
def folder(task: Language, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("causal") / "lm"
    make_causal_lm(task, path, vocab_size=300, layers=2, width=16, heads=2, positions=32)
    return path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write(text)


def test_documents_become_texts_of_one_length(task: Language, folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    items = task.encode(DOCUMENTS[:3], tokenizer, 16)
    tokens = [token for document in DOCUMENTS[:3] for token in [*tokenizer(document)["input_ids"], 0]]
    assert tokenizer.eos_token_id == 0
    assert [token for item in items for token in item["input_ids"]] == tokens[: 16 * len(items)]
    assert 0 <= len(tokens) - 16 * len(items) < 16
    assert all(item["labels"] == item["input_ids"] and item["attention_mask"] == [1] * 16 for item in items)
    batch = task.collator(tokenizer)(items)
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        name: (len(items), 16) for name in ("input_ids", "attention_mask", "labels")
    }


def test_too_little_text_and_no_end_token_are_refused(task: Language, folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    with pytest.raises(ValueError, match=r"task cats: \d+ tokens fill no text of max_length 999; lower it"):
        task.encode(DOCUMENTS[:1], tokenizer, 999)
    with pytest.raises(ValueError, match="no end-of-text token"):
        task.encode(DOCUMENTS, SimpleNamespace(eos_token_id=None), 16)


def test_perplexity_is_that_of_the_models_own_loss(task: Language, folder: Path) -> None:
    tokenizer, model = load_tokenizer(str(folder)), load_model(str(folder), kind="causal-lm")
    items = task.encode(DOCUMENTS, tokenizer, 16)
    batch = task.collator(tokenizer)(items)
    with torch.no_grad():
        outputs = model(**batch)
    reduced = task.reduce(outputs.logits, batch["labels"])
    assert tuple(reduced.shape) == (len(items), 2)
    measured = task.measure(SimpleNamespace(predictions=reduced.numpy(), label_ids=batch["labels"].numpy()))
    # Sums of float32 losses over some hundred tokens.
    assert measured == {"perplexity": pytest.approx(math.exp(float(outputs.loss)), rel=1e-5)}


@given(st.integers(0, 1000), st.integers(2, 9))
def test_perplexity_weighs_every_predicted_token_alike(seed: int, vocabulary: int) -> None:
    """Against a loop over tokens; a model that knows nothing has the size of its vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 6, vocabulary, generator=generator)
    labels = torch.randint(0, vocabulary, (3, 6), generator=generator)
    labels[torch.rand(3, 6, generator=generator) < 0.3] = -100
    labels[0, 1] = 0
    language = Language("t", {split: ["a"] for split in SPLITS})
    losses = [
        -float(logits[row, place - 1].log_softmax(0)[labels[row, place]])
        for row in range(3)
        for place in range(1, 6)
        if labels[row, place] >= 0
    ]

    def measure(given_logits: torch.Tensor) -> float:
        reduced = language.reduce(given_logits, labels)
        return language.measure(SimpleNamespace(predictions=reduced.numpy()))["perplexity"]

    assert measure(logits) == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert measure(torch.zeros_like(logits)) == pytest.approx(vocabulary, rel=1e-5)


def test_an_untrained_model_is_one_to_start_from(task: Language, folder: Path) -> None:
    tokenizer, model = load_tokenizer(str(folder)), load_model(str(folder), kind="causal-lm")
    assert len(tokenizer) == model.config.vocab_size <= 300
    assert model.config.eos_token_id == model.config.pad_token_id == tokenizer.convert_tokens_to_ids(END)
    assert [weight.name.rpartition(".h.")[2] for weight in find_weights(model)][:4] == [
        "0.attn.c_attn.weight",
        "0.attn.c_proj.weight",
        "0.mlp.c_fc.weight",
        "0.mlp.c_proj.weight",
    ]
    with pytest.raises(ValueError, match="is there already; give a new folder"):
        make_causal_lm(task, folder)
    with pytest.raises(ValueError, match="heads divide the width"):
        make_causal_lm(task, folder.with_name("other"), width=10, heads=4)
    with pytest.raises(ValueError, match="vocab_size 256; it holds the 256 bytes"):
        make_causal_lm(task, folder.with_name("other"), vocab_size=256)
    assert not folder.with_name("other").exists()


def test_the_seed_decides_the_weights(task: Language, folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"vocab_size": 300, "layers": 2, "width": 16, "heads": 2, "positions": 32}
    make_causal_lm(task, tmp_path / "same", **options)
    make_causal_lm(task, tmp_path / "other", **options, seed=1)
    first, same, other = (
        find_weights(load_model(str(path), kind="causal-lm"))[0].parameter
        for path in (folder, tmp_path / "same", tmp_path / "other")
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


_TOKENIZER: list[Any] = []


@given(st.text(max_size=40))
def test_the_tokenizer_loses_nothing(text: str) -> None:
    if not _TOKENIZER:
        _TOKENIZER.append(train_tokenizer(Language("cats", dict.fromkeys(SPLITS, DOCUMENTS)), 300))
    [tokenizer] = _TOKENIZER
    decoded = tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False)
    # Surrogates are no text, and hypothesis gives none.
    assert decoded == text


def test_a_folder_of_text_files(tmp_path: Path) -> None:
    first, second = (
        " \n = First = \n \n one two \n = x = \n\n = = Part = = \n\n a = b \n\n",
        " = Second = \n\n three \n",
    )
    write(tmp_path / "wiki" / "train.txt.gz", first + second)
    write(tmp_path / "wiki" / "valid.txt.gz", "no title at all\n")
    write(tmp_path / "wiki" / "test.txt.gz", " = T = \n text \n")
    assert [info.name for info in list_tasks(tmp_path)] == ["stdlib-docs", "stdlib-lm", "wiki"]
    task = load_task("wiki", tmp_path)
    assert list(task.splits["train"]) == [first, second]
    assert list(task.splits["validation"]) == ["no title at all\n"]
    assert (task.kind, task.metric, task.larger_is_better) == ("causal-lm", "perplexity", False)
    write(tmp_path / "wiki" / "valid.txt.gz", " \n\n")
    with pytest.raises(ValueError, match="task wiki: split 'validation' is empty"):
        load_task("wiki", tmp_path)
    (tmp_path / "wiki" / "valid.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"valid\.txt\.gz: Not a gzipped file"):
        load_task("wiki", tmp_path)


def test_stdlib_lm(tmp_path: Path) -> None:
    """Every docstring once, whichever package it documents; not those of tests, nor of other people's packages."""
    for place in ("", "json", "json/deep", "idlelib/idle_test", "site-packages/other", "test"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        for number in range(30):
            text = f"Reads text number {number}.\n\n    Of {place or 'the top'} in json."
            (tmp_path / place / f"m{number}.py").write_text(
                f'"""{text}"""\ndef same():\n    """The same text in every module."""\n'
            )
    (tmp_path / "short.py").write_text('"""Only four words here."""\n')
    task = read_stdlib_lm(tmp_path)
    texts = [text for split in SPLITS for text in task.splits[split]]
    wanted = {
        f"Reads text number {number}.\n\nOf {place} in json."
        for number in range(30)
        for place in ("the top", "json", "json/deep")
    }
    assert set(texts) == wanted | {"The same text in every module."}
    assert len(texts) == len(set(texts))
    assert all(task.splits[split] for split in SPLITS)
    assert task == read_stdlib_lm(tmp_path)


def test_wikitext(data_dir: Path) -> None:
    """The token counts of the data's README: words, and an end of line each."""
    task = read_language(data_dir / "wikitext2")
    counts = {
        split: sum(len(line.split()) + 1 for document in task.splits[split] for line in document.splitlines())
        for split in SPLITS
    }
    # Lines alone: blank ones before the first title and after the last are kept with their documents.
    assert counts == {"train": 2_088_628, "validation": 217_646, "test": 245_569}
    assert {split: len(task.splits[split]) for split in SPLITS} == {"train": 600, "validation": 60, "test": 60}
