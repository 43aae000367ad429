"""Causal language modelling: how documents become texts, what is measured, and the untrained model to start from."""

from __future__ import annotations

import math
import runpy
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from argprune.models import find_clusters, find_weights, load_model, load_tokenizer
from argprune.tasks.language import (
    END,
    UNKNOWN,
    Architecture,
    Language,
    TokenizerKind,
    make_causal_lm,
    read_language,
    train_tokenizer,
)
from argprune.tasks.language.tokens import byte_ids, read_tokens
from argprune.tasks.prune import prune
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


@cache
def trained(kind: TokenizerKind) -> Any:
    """A tokenizer of the cats."""
    return train_tokenizer(Language("cats", {split: [*DOCUMENTS, "cat"] for split in SPLITS}), 300, kind)


def test_documents_become_texts_of_one_length(task: Language, folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    items = task.encode(DOCUMENTS[:3], tokenizer, 16)
    tokens = [token for document in DOCUMENTS[:3] for token in [*tokenizer(document)["input_ids"], 0]]
    assert tokenizer.eos_token_id == 0
    assert [token for item in items for token in item["input_ids"]] == tokens[: 16 * len(items)]
    assert 0 <= len(tokens) - 16 * len(items) < 16
    for item in items:
        assert item["labels"].tolist() == item["input_ids"].tolist()
        assert item["attention_mask"].tolist() == [1] * 16
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
    assert measured["perplexity"] == pytest.approx(math.exp(float(outputs.loss)), rel=1e-5)
    # Of each text, what is left without the first token: byte pairs lose nothing, so decoding gives it back.
    text = "".join(str(tokenizer.decode(item["input_ids"][1:])).replace(END, "") for item in items)
    bits = 15 * len(items) * math.log2(measured["perplexity"])
    assert measured["bits_per_character"] == pytest.approx(bits / len(text), rel=1e-12)
    assert measured["bits_per_byte"] == measured["bits_per_character"]


def test_bits_are_those_of_known_texts(task: Language, folder: Path) -> None:
    """Not of texts that the task did not make, nor of those of a tokenizer before the last."""
    items = task.encode(DOCUMENTS, load_tokenizer(str(folder)), 16)
    labels = np.stack([item["labels"] for item in items])
    known = SimpleNamespace(predictions=np.ones((len(items), 2)), label_ids=labels)
    assert set(task.measure(known)) == {"perplexity", "bits_per_character", "bits_per_byte"}
    other = SimpleNamespace(predictions=known.predictions, label_ids=labels + 1)
    assert set(task.measure(other)) == {"perplexity"}
    task.encode(DOCUMENTS, train_tokenizer(task, kind="byte"), 16)
    assert set(task.measure(known)) == {"perplexity"}


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30), min_size=1, max_size=5),
    st.sampled_from(["bpe", "byte", "word"]),
    st.integers(2, 9),
)
def test_every_character_belongs_to_one_token(documents: list[str], kind: TokenizerKind, length: int) -> None:
    """And a uniform model spends log2(vocabulary) bits on each predicted token, whatever it stands for."""
    task = Language("t", dict.fromkeys(SPLITS, documents))
    tokenizer = trained(kind)
    tokens = read_tokens(documents, tokenizer)
    assert tokens.characters is not None
    assert tokens.bytes is not None
    assert min(tokens.characters.min(), tokens.bytes.min()) >= 0
    ends = np.flatnonzero(tokens.ids == 0)
    if END not in "".join(documents):
        for number, document in enumerate(documents):
            own = slice(ends[number - 1] + 1 if number else 0, ends[number] + 1)
            assert tokens.characters[own].sum() == len(document)
            assert tokens.bytes[own].sum() == len(document.encode())
    if len(tokens.ids) < length:
        return
    items = task.encode(documents, tokenizer, length)
    labels = torch.from_numpy(np.stack([item["labels"] for item in items]))
    logits = torch.zeros(*labels.shape, len(tokenizer))
    measured = task.measure(SimpleNamespace(predictions=task.reduce(logits, labels), label_ids=labels))
    assert measured["perplexity"] == pytest.approx(len(tokenizer), rel=1e-5)
    predicted = np.arange(len(labels) * length) % length != 0
    counts = {
        "bits_per_character": tokens.characters[: len(predicted)][predicted].sum(),
        "bits_per_byte": tokens.bytes[: len(predicted)][predicted].sum(),
    }
    if min(counts.values()) == 0:
        assert set(measured) == {"perplexity"}
        return
    bits = len(labels) * (length - 1) * math.log2(measured["perplexity"])
    for name, count in counts.items():
        assert measured[name] == pytest.approx(bits / count, rel=1e-9), name


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_bytes_are_what_the_tokenizer_says(text: str) -> None:
    """The table by which bytes are read, against the tokenizer, and against the text itself."""
    tokenizer = trained("byte")
    table = byte_ids(tokenizer)
    assert table is not None
    assert table.tolist() == list(range(1, 257))
    tokens = read_tokens([text], tokenizer)
    assert tokens.ids[:-1].tolist() == tokenizer(text, split_special_tokens=True)["input_ids"]
    assert bytes((tokens.ids[:-1] - 1).tolist()).decode() == text
    assert tokenizer.decode(tokens.ids[:-1]) == text
    assert tokens.characters is not None
    assert tokens.characters.sum() == len(text)
    assert byte_ids(trained("bpe")) is None
    assert byte_ids(trained("word")) is None


def test_words_stand_for_the_blanks_before_them() -> None:
    tokens = read_tokens(["  cat\n\tqué  "], trained("word"))
    names = trained("word").convert_ids_to_tokens(tokens.ids)
    assert names == ["cat", "\n", UNKNOWN, END]
    assert tokens.characters is not None
    assert tokens.bytes is not None
    assert tokens.characters.tolist() == [5, 1, 4, 2]
    assert tokens.bytes.tolist() == [5, 1, 5, 2]


def test_words_are_numbered_by_falling_frequency() -> None:
    """And one that spells the unknown word is it."""
    text = f"b a b {UNKNOWN} b\n{UNKNOWN} {UNKNOWN} {UNKNOWN} a c\n {END}\n"
    task = Language("words", {split: [text] for split in SPLITS})
    tokenizer = train_tokenizer(task, 6, kind="word")
    assert tokenizer.convert_ids_to_tokens(range(6)) == [END, UNKNOWN, "\n", "b", "a", "c"]
    assert len(tokenizer) == 6
    assert tokenizer(f"c {UNKNOWN} d")["input_ids"] == [5, 1, 1]
    assert train_tokenizer(task, 3, kind="word").convert_ids_to_tokens(range(3)) == [END, UNKNOWN, "\n"]
    with pytest.raises(ValueError, match=r"vocab_size 2; it holds .* so give at least 3"):
        train_tokenizer(task, 2, kind="word")
    with pytest.raises(ValueError, match="tokenizer kind 'char'; choose of bpe, byte, word"):
        train_tokenizer(task, kind="char")  # type: ignore[arg-type]


def test_a_tokenizer_that_does_not_say_where_its_tokens_lie() -> None:
    """The perplexity alone is measured."""

    def spell(documents: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) % 7 for letter in document] for document in documents]}

    class Speller:
        eos_token_id, is_fast = 0, False
        __call__ = staticmethod(spell)

    task = Language("t", dict.fromkeys(SPLITS, DOCUMENTS))
    labels = np.stack([item["labels"] for item in task.encode(DOCUMENTS, Speller(), 16)])
    measured = task.measure(SimpleNamespace(predictions=np.ones((len(labels), 2)), label_ids=labels))
    assert set(measured) == {"perplexity"}


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
        return language.measure(SimpleNamespace(predictions=reduced.numpy(), label_ids=labels))["perplexity"]

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
    with pytest.raises(ValueError, match="architecture 'rnn'; choose of gpt2, lstm, gru"):
        make_causal_lm(task, folder.with_name("other"), architecture="rnn")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"cutoffs \[900\] of 300 words"):
        make_causal_lm(task, folder.with_name("other"), vocab_size=300, cutoffs=[900])
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


@pytest.mark.parametrize("architecture", get_args(Architecture))
@pytest.mark.parametrize("cutoffs", [None, [6, 12]])
def test_every_kind_of_model(
    task: Language, architecture: Architecture, cutoffs: list[int] | None, tmp_path: Path
) -> None:
    """Loads by its folder, predicts its tokens at random, and has blocks to prune."""
    folder = tmp_path / "lm"
    make_causal_lm(
        task,
        folder,
        architecture=architecture,
        tokenizer="word",
        vocab_size=20,
        layers=2,
        width=16,
        heads=2,
        positions=8,
        dropout=0.25,
        cutoffs=cutoffs,
        div_value=2.0,
    )
    tokenizer, model = load_tokenizer(str(folder)), load_model(str(folder), kind="causal-lm")
    assert model.config.vocab_size == len(tokenizer) == 20
    assert [factors.rank for factors in find_clusters(model)] == ([] if cutoffs is None else [16, 8, 4])
    assert len(find_weights(model)) == 2 * (4 if architecture == "gpt2" else 2)
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}
    items = task.encode(DOCUMENTS, tokenizer, 8)
    batch = task.collator(tokenizer)(items)
    with torch.no_grad():
        reduced = task.reduce(model(**batch).logits, batch["labels"])
    measured = task.measure(SimpleNamespace(predictions=reduced, label_ids=batch["labels"]))
    # Words are not equally frequent, and neither are an untrained adaptive softmax's.
    assert 10 < measured["perplexity"] < 40


def test_a_script_makes_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path(__file__).parents[2] / "scripts" / "make_causal_lm.py"
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("".join(DOCUMENTS))
    options = ["--task", tmp_path, "--output", tmp_path / "lm", "--layers", 1, "--width", 8]
    options += ["--architecture", "gru", "--tokenizer", "byte"]
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, options)])
    main = runpy.run_path(str(script))["main"]
    assert main() == 0
    assert capsys.readouterr().out == f"{tmp_path / 'lm'}: gru, 1 layers, 8 wide\n"
    assert load_model(str(tmp_path / "lm"), kind="causal-lm").config.vocab_size == 257
    assert main() == 2
    assert "is there already" in capsys.readouterr().err


def test_a_recurrent_model_of_bytes_is_trained_and_pruned(task: Language, tmp_path: Path) -> None:
    for split, part in (("train", "train"), ("validation", "valid"), ("test", "test")):
        (tmp_path / f"{part}.txt").write_text("".join(task.splits[split]))
    make_causal_lm(
        task, tmp_path / "lm", architecture="lstm", tokenizer="byte", layers=2, width=24, dropout=0.0, cutoffs=[60]
    )
    settings: dict[str, Any] = {
        "model": str(tmp_path / "lm"),
        "task": str(tmp_path),
        "batch_size": 8,
        "max_length": 32,
        "learning_rate": 2e-2,
        "max_steps": 40,
        "precision": "fp32",
        "quiet": True,
    }
    run = prune(**settings, method="magnitude", sparsity=0.5, output=tmp_path / "run", dense=tmp_path / "dense")
    assert run.metrics["sparsity"]["encoder"] == pytest.approx(0.5, abs=1e-3)
    # 257 tokens, of which the text has some 30.
    assert run.metrics["pruned"]["test"]["perplexity"] < 20
    words = torch.tensor([[1, 2, 3]])
    assert run.model()(input_ids=words).logits.shape == (1, 3, 257)


@pytest.mark.parametrize("kind", ["bpe", "byte"])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_the_tokenizer_loses_nothing(kind: TokenizerKind, text: str) -> None:
    tokenizer = trained(kind)
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


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
