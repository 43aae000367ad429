"""Every kind of task from files of a few rows: a tiny model learns it dense and pruned, through `argprune.prune`."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel, GPT2Config, GPT2Model, PreTrainedTokenizerFast

from argprune import prune
from argprune.models import find_weights, load_tokenizer
from argprune.tasks.data import load_task
from argprune.tasks.kinds import DataToText
from argprune.tasks.kinds.untrained import make_writer

SMALL: dict[str, Any] = {
    "max_steps": 6,
    "batch_size": 4,
    "max_length": 24,
    "log_every": 3,
    "checkpoint_every": 3,
    "learning_rate": 1e-3,
    "quiet": True,
}


def words(start: int, count: int) -> list[str]:
    return [f"w{(start * 7 + at * 3) % 60}" for at in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_rows: Any) -> Path:
    """A data folder with a task of every kind."""
    path = tmp_path_factory.mktemp("kinds")
    pairs = [{"text": " ".join(words(i, 4)), "text_pair": " ".join(words(i + 1, 3))} for i in range(30)]
    contexts = [words(i, 40) for i in range(12)]
    tasks: dict[str, list[dict[str, Any]]] = {
        "mrpc": [row | {"label": i % 2} for i, row in enumerate(pairs)],
        "grades": [row | {"label": i % 5 + 0.5} for i, row in enumerate(pairs)],
        "entities": [{"tokens": words(i, 5), "tags": ["O", "B-place", "I-place", "O", "B-person"]} for i in range(30)],
        "questions": [
            {
                "context": " ".join(context),
                "qas": [
                    {"question": "w1 w2", "answers": [{"text": context[3], "start": len(" ".join(context[:3])) + 1}]},
                    {"question": "w5", "answers": []},
                ],
            }
            for context in contexts
        ],
        "texts": [{"mr": f"name[w{i % 9}], area[w{i % 4}]", "ref": f"w{i % 9} is in {i}"} for i in range(30)],
    }
    for name, rows in tasks.items():
        third = len(rows) // 3
        for at, part in enumerate(("train", "dev", "test")):
            write_rows(path / name / f"{part}.jsonl.gz", rows[at * third : (at + 1) * third])
    for part in ("train", "valid", "test"):
        (path / "corpus").mkdir(exist_ok=True)
        (path / "corpus" / f"{part}.txt").write_text("\n".join(" ".join(words(i, 12)) for i in range(40)))
    return path


@pytest.fixture(scope="module")
def masked_model(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model's likeness with a mask token."""
    path = tmp_path_factory.mktemp("masked")
    source = load_tokenizer(tiny_model)
    assert isinstance(source, PreTrainedTokenizerFast)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=source.backend_tokenizer,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
    )
    tokenizer.save_pretrained(path)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(path)
    return str(path)


def both(model: str, task: str, output: Path, **options: Any) -> dict[str, Any]:
    """Metrics of a run at half the weights, whose dense reference was trained beside it: finite, and on disk."""
    run = prune(model, task, output=output, **{"method": "magnitude", "sparsity": 0.5, **SMALL, **options})
    assert json.loads((output / "metrics.json").read_text()) == run.metrics
    assert run.metrics["sparsity"]["encoder"] == pytest.approx(0.5, abs=1e-3)
    masks = run.masks()
    for weight in find_weights(run.model()):
        assert not weight.parameter[~masks[weight.name]].any()
    for scores in (run.metrics["dense"], run.metrics["pruned"]):
        assert scores.keys() == {"validation", "test"}
        for split in scores.values():
            assert run.metrics["metric"] in split
            assert all(math.isfinite(value) for value in split.values())
    return dict(run.metrics)


@pytest.mark.parametrize(
    ("task", "measures"),
    [
        ("mrpc", {"accuracy", "f1", "combined_score"}),
        ("grades", {"pearson", "spearman", "combined_score"}),
        ("entities", {"precision", "recall", "f1", "accuracy"}),
        (
            "questions",
            {"exact_match", "f1", "has_answer_f1", "no_answer_f1", "best_f1", "best_f1_threshold"},
        ),
    ],
)
def test_encoders(tiny_model: str, folder: Path, tmp_path: Path, task: str, measures: set[str]) -> None:
    metrics = both(tiny_model, task, tmp_path / "run", data_dir=str(folder))
    assert set(metrics["pruned"]["test"]) == measures | {"loss"}


@pytest.mark.parametrize("objective", ["seq2seq-lm", "causal-lm"])
def test_data_to_text(folder: Path, tmp_path: Path, objective: Any) -> None:
    task = load_task("texts", folder)
    assert isinstance(task, DataToText)
    model = tmp_path / "model"
    make_writer(DataToText("t", task.splits, objective), model, vocab_size=280, layers=1, width=16, heads=2)
    metrics = both(
        str(model), "texts", tmp_path / "run", data_dir=str(folder), objective=objective, new_tokens=5, max_length=64
    )
    assert set(metrics["pruned"]["test"]) == {"bleu", "chrf", "rouge_l", "nist", "loss"}


def test_what_is_easy_is_learned(tiny_model: str, tmp_path: Path, write_rows: Any) -> None:
    """Words below w10 are places; the answer to every question is the word w50."""
    generator = random.Random(0)
    sentences, paragraphs = [], []
    for _ in range(300):
        tokens = [f"w{generator.randrange(50)}" for _ in range(8)]
        tags = ["B-place" if int(token[1:]) < 10 else "O" for token in tokens]
        sentences.append({"tokens": tokens, "tags": tags})
        at = generator.randrange(8)
        tokens = [*tokens[:at], "w50", *tokens[at + 1 :]]
        answer = {"text": "w50", "start": " ".join(tokens).index("w50")}
        paragraphs.append({"context": " ".join(tokens), "qas": [{"question": "w51 w52", "answers": [answer]}]})
    for name, rows in (("places", sentences), ("w50", paragraphs)):
        for part, own in (("train", rows[:200]), ("dev", rows[200:250]), ("test", rows[250:])):
            write_rows(tmp_path / name / f"{part}.jsonl.gz", own)
        options = {"max_steps": 120, "learning_rate": 5e-3, "batch_size": 16, "data_dir": str(tmp_path)}
        run = prune(tiny_model, name, method="dense", output=tmp_path / f"run-{name}", **SMALL | options)
        assert run.metrics["pruned"]["test"]["f1"] > 0.9


@pytest.mark.parametrize(("task", "rule"), [("questions", "held-out"), ("grades", "dev"), ("entities", "dev")])
def test_snapshots_of_every_kind(tiny_model: str, folder: Path, tmp_path: Path, task: str, rule: str) -> None:
    """The teacher is scored by the task's own metric while training goes on, and its outputs teach."""
    method = {"name": "pins", "every": 2, "milestones": 2, "self_regularization": rule}
    metrics = both(tiny_model, task, tmp_path / "run", data_dir=str(folder), method=method)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any(line.get("loss_self_regularization", 0) != 0 for line in log)
    assert metrics["method"] == "pins"


@pytest.mark.parametrize("name", ["cola", "stsb", "wnut17"])
def test_first_rows_of_the_real_files(tiny_model: str, data_dir: Path, tmp_path: Path, name: str) -> None:
    """A few steps: to see that all fits together, not to learn."""
    options = {"max_steps": 2, "train_rows": 16, "eval_rows": 12, "batch_size": 8}
    metrics = both(tiny_model, name, tmp_path / "run", data_dir=str(data_dir), **options)
    assert all(-1 <= split[metrics["metric"]] <= 1 for split in metrics["pruned"].values())


def test_masked_language(masked_model: str, folder: Path, tmp_path: Path) -> None:
    metrics = both(masked_model, "corpus", tmp_path / "run", data_dir=str(folder), objective="masked-lm")
    assert set(metrics["pruned"]["test"]) == {"perplexity", "accuracy", "loss"}
    # A network that knows nothing of 65 words.
    assert metrics["dense"]["test"]["perplexity"] < 200


def test_a_decoder_without_a_padding_token_learns_classes(tiny_model: str, folder: Path, tmp_path: Path) -> None:
    """Its end token pads, in training and in what is saved."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_model, pad_token=None, eos_token="[SEP]")
    assert tokenizer.pad_token is None
    tokenizer.save_pretrained(tmp_path / "gpt2")
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=32, eos_token_id=3, bos_token_id=2)
    GPT2Model(config).save_pretrained(tmp_path / "gpt2")
    options = SMALL | {"data_dir": str(folder), "output": tmp_path / "run", "method": "magnitude", "sparsity": 0.5}
    run = prune(str(tmp_path / "gpt2"), "mrpc", **options)
    assert run.metrics["pruned"]["test"]["accuracy"] >= 0
    assert load_tokenizer(str(tmp_path / "run" / "model")).pad_token == "[SEP]"


def test_texts_longer_than_the_model_reads_are_refused_before_training(
    tiny_model: str, folder: Path, tmp_path: Path
) -> None:
    """The longest text counts, not the longest that would be allowed."""
    shutil.copytree(tiny_model, tmp_path / "short")
    BertModel(
        BertConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=9,
        )
    ).save_pretrained(tmp_path / "short")
    options = SMALL | {"data_dir": str(folder), "output": tmp_path / "run", "method": "magnitude", "sparsity": 0.5}
    with pytest.raises(
        ValueError, match=r"max_length 24 lets a text have 10 tokens, but .*short reads at most 9; give"
    ):
        prune(str(tmp_path / "short"), "mrpc", **options)
    assert not (tmp_path / "run").exists()
    prune(str(tmp_path / "short"), "mrpc", **(options | {"max_length": 9}))
