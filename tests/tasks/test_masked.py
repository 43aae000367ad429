"""Masked language modelling: which tokens are hidden, and how well they are told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from argprune import prune
from argprune.models import load_tokenizer
from argprune.tasks.bridge import PruningBridge
from argprune.tasks.data import load_task
from argprune.tasks.kinds import MaskedLanguage
from argprune.tasks.task_options import TaskOptions
from argprune.tasks.texts import SPLITS

DOCUMENTS = [" ".join(f"w{(i * 7 + j) % 60}" for j in range(30)) for i in range(20)]


@pytest.fixture(scope="module")
def model(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("masked")
    source = load_tokenizer(tiny_model)
    assert isinstance(source, PreTrainedTokenizerFast)
    special: dict[str, Any] = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=source.backend_tokenizer, **special)
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertForMaskedLM(config).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def tokenizer(model: str) -> Any:
    return load_tokenizer(model)


def task(documents: list[str] = DOCUMENTS) -> MaskedLanguage:
    return MaskedLanguage("t", dict.fromkeys(SPLITS, documents))


def test_texts_are_of_one_length_and_hold_all_tokens(tokenizer: Any) -> None:
    items = task().encode(DOCUMENTS, tokenizer, 16)
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert all((item["input_ids"][0], item["input_ids"][-1]) == (first, last) for item in items)
    assert {len(item["input_ids"]) for item in items} == {16}
    inner = [token for item in items for token in item["input_ids"][1:-1]]
    whole = [token for text in DOCUMENTS for token in [*tokenizer(text)["input_ids"][1:-1], last]]
    assert inner == whole[: len(inner)]
    assert 0 <= len(whole) - len(inner) < 14
    with pytest.raises(ValueError, match="its documents fill no text of max_length 999; lower it"):
        task().encode(DOCUMENTS[:2], tokenizer, 999)


@given(st.lists(st.lists(st.integers(4, 63), min_size=1, max_size=20), min_size=1, max_size=6))
def test_what_is_hidden(tokenizer: Any, rows: list[list[int]]) -> None:
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    items = [{"input_ids": [first, *row, last], "attention_mask": [1] * (len(row) + 2)} for row in rows]
    collate = task().collator(tokenizer)
    batch, again = collate(items), task().collator(tokenizer)(items)
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    # Some of every text, and never a special token.
    assert (batch["labels"] != -100).any(1).all()
    padded = tokenizer.pad([dict(item) for item in items], return_tensors="pt")["input_ids"]
    hidden = batch["labels"] != -100
    assert torch.equal(batch["labels"][hidden], padded[hidden])
    assert torch.equal(batch["input_ids"][~hidden], padded[~hidden])
    assert not torch.isin(padded[hidden], torch.tensor(tokenizer.all_special_ids)).any()


def test_shares_and_other_batches_hide_others(tokenizer: Any) -> None:
    items = task().encode(DOCUMENTS, tokenizer, 32)
    collate = task().collator(tokenizer)
    hidden = torch.cat([(collate(items[at:])["labels"] != -100)[-1] for at in range(len(items) - 1)])
    # The last text, in one batch after another.
    assert len({tuple(row) for row in hidden.view(-1, 32).tolist()}) > 10
    batch = collate(items * 8)
    chosen = batch["labels"] != -100
    # Four standard deviations of some 4,000 tokens.
    assert float(chosen.float().mean()) == pytest.approx(0.15 * 30 / 32, abs=0.02)
    masked = (batch["input_ids"][chosen] == tokenizer.mask_token_id).float().mean()
    assert float(masked) == pytest.approx(0.8, abs=0.07)


def test_perplexity(tokenizer: Any) -> None:
    """A uniform network is as unsure as there are tokens; one that knows all is sure."""
    masked = task()
    batch = masked.collator(tokenizer)(masked.encode(DOCUMENTS, tokenizer, 16))
    labels, vocabulary = batch["labels"], len(tokenizer)
    measured = masked.measure(
        SimpleNamespace(predictions=masked.reduce(torch.zeros(*labels.shape, vocabulary), labels).numpy())
    )
    assert measured["perplexity"] == pytest.approx(vocabulary, rel=1e-5)
    known = torch.nn.functional.one_hot(labels.clamp(min=0), vocabulary).float() * 50
    measured = masked.measure(SimpleNamespace(predictions=masked.reduce(known, labels).numpy()))
    assert measured == {"perplexity": pytest.approx(1), "accuracy": 1.0}
    assert np.isposinf(masked.measure(SimpleNamespace(predictions=[[1e9, 1.0, 0.0]]))["perplexity"])


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="the tokenizer lacks a mask, a first or a separator token"):
        task().encode(DOCUMENTS, SimpleNamespace(cls_token_id=1, sep_token_id=2, mask_token_id=None), 16)
    with pytest.raises(ValueError, match=r"share 1\.0 of the tokens to hide"):
        MaskedLanguage("t", dict.fromkeys(SPLITS, DOCUMENTS), share=1.0)


def test_any_text_and_only_text(tmp_path: Path) -> None:
    for part in ("train", "valid", "test"):
        (tmp_path / f"{part}.txt").write_text("some text")
    found = load_task(str(tmp_path), options=TaskOptions(objective="masked-lm"))
    assert isinstance(found, MaskedLanguage)
    assert found.splits["test"] == ["some text"]
    with pytest.raises(ValueError, match="objective 'regression' of text; choose causal-lm or masked-lm"):
        load_task(str(tmp_path), options=TaskOptions(objective="regression"))


def test_a_resumed_run_hides_the_same_tokens(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for part in ("train", "valid", "test"):
        (data / f"{part}.txt").write_text("\n".join(DOCUMENTS))
    options: dict[str, Any] = {"objective": "masked-lm", "max_steps": 30, "batch_size": 8, "max_length": 16}
    options |= {"method": "magnitude", "sparsity": 0.5, "checkpoint_every": 5, "quiet": True}
    whole = prune(model, str(data), output=tmp_path / "whole", **options)

    class Killed(Exception):
        pass

    stepped = PruningBridge.on_step_end

    def die(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        stepped(self, args, state, control, **rest)
        if state.global_step == 18:
            raise Killed

    options["dense"] = tmp_path / "whole" / "dense"
    monkeypatch.setattr(PruningBridge, "on_step_end", die)
    with pytest.raises(Killed):
        prune(model, str(data), output=tmp_path / "run", **options)
    monkeypatch.setattr(PruningBridge, "on_step_end", stepped)
    resumed = prune(model, str(data), output=tmp_path / "run", resume=True, **options)
    first, second = (load_file(run.path / "model" / "model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert resumed.metrics["pruned"] == whole.metrics["pruned"]
