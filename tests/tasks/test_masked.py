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
from argprune.tasks.harness import PruningTrainer
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


@given(st.integers(1, 20).flatmap(lambda n: st.lists(st.lists(st.integers(5, 63), min_size=n, max_size=n), min_size=1)))
def test_what_is_hidden(tokenizer: Any, rows: list[list[int]]) -> None:
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    items = [{"input_ids": [first, *row, last], "attention_mask": [1] * (len(row) + 2)} for row in rows]
    batch = task().collator(tokenizer)(items)
    # Some of every text, and never a special token.
    assert (batch["labels"] != -100).any(1).all()
    whole, hidden = torch.tensor([item["input_ids"] for item in items]), batch["labels"] != -100
    assert torch.equal(batch["labels"][hidden], whole[hidden])
    assert torch.equal(batch["input_ids"][~hidden], whole[~hidden])
    assert not torch.isin(whole[hidden], torch.tensor(tokenizer.all_special_ids)).any()


def test_shares(tokenizer: Any) -> None:
    items = task().encode(DOCUMENTS, tokenizer, 32)
    epochs = [task().collator(tokenizer).of_epochs(lambda number=number: number)(items) for number in range(8)]
    batch = {name: torch.cat([each[name] for each in epochs]) for name in epochs[0]}
    chosen = batch["labels"] != -100
    # Four standard deviations of some 4,000 tokens.
    assert float(chosen.float().mean()) == pytest.approx(0.15 * 30 / 32, abs=0.02)
    masked = (batch["input_ids"][chosen] == tokenizer.mask_token_id).float().mean()
    assert float(masked) == pytest.approx(0.8, abs=0.07)


def test_what_is_hidden_of_a_text_depends_on_no_other(tokenizer: Any) -> None:
    """In evaluation on it alone, in training on the epoch too."""
    items = task().encode(DOCUMENTS, tokenizer, 32)
    epochs = [0]
    evaluating = task().collator(tokenizer)
    training = evaluating.of_epochs(lambda: epochs[-1])
    for collate in (evaluating, training):
        together, alone = collate(items), [collate([item]) for item in items]
        for name, values in together.items():
            assert torch.equal(values, torch.cat([row[name] for row in alone]))
    seen = set()
    for number in range(12):
        epochs.append(number)
        seen.add(tuple(training(items[:1])["labels"][0].tolist()))
        assert torch.equal(evaluating(items)["labels"], evaluating(items)["labels"])
    assert len(seen) > 10


def test_parts_of_a_step_hide_what_the_step_does(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one text in a part, every epoch hides other tokens, and they are those of the step in one piece."""
    for part in ("train", "valid", "test"):
        (tmp_path / f"{part}.txt").write_text(" ".join(f"w{i % 53}" for i in range(14 * 6)))
    seen: list[dict[tuple[int, ...], list[tuple[int, ...]]]] = []
    compute_loss = PruningTrainer.compute_loss

    def recorded(self: Any, network: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if network.training:
            ids, labels = inputs["input_ids"], inputs["labels"]
            for row, hidden in zip(torch.where(labels == -100, ids, labels).tolist(), labels.tolist(), strict=True):
                seen[-1].setdefault(tuple(row), []).append(tuple(hidden))
        return compute_loss(self, network, inputs, *args, **kwargs)

    monkeypatch.setattr(PruningTrainer, "compute_loss", recorded)
    options: dict[str, Any] = {"objective": "masked-lm", "max_length": 16, "batch_size": 3, "epochs": 4, "quiet": True}
    for parts in (None, 3):
        seen.append({})
        output = tmp_path / f"run{parts}"
        prune(model, str(tmp_path), method="dense", output=output, gradient_accumulation_steps=parts, **options)
    assert seen[0] == seen[1]
    assert [len(set(hidden)) for hidden in seen[1].values()] == [4] * 6


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
