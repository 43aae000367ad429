"""`argprune export` on a small finished run: every format, what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from huggingface_hub import ModelCard
from transformers import (
    BartForConditionalGeneration,
    BertForSequenceClassification,
    GenerationConfig,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from argprune.cli import main
from argprune.models import (
    compact,
    factorise,
    find_heads,
    find_neurons,
    find_weights,
    load_shrunk,
    load_sparse,
    load_tokenizer,
)
from argprune.models.export import OnnxModel, SparseLinear, example_inputs, largest_difference, read_logits
from argprune.models.factorised import find_factors
from argprune.tasks import export_command
from argprune.tasks.runs import RunError


@pytest.fixture(scope="module")
def finished(tiny_model: str, tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model has also lost a head of each layer and half of the neurons."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = ["--model", tiny_model, "--task", "words", "--data_dir", tiny_data, "--max_steps", "3"]
    options += ["--method", "magnitude", "--sparsity", "0.5", "--max_length", "16", "--output", str(folder), "-q"]
    assert main(["prune", *options]) == 0
    model = BertForSequenceClassification.from_pretrained(folder / "model")
    for tie in find_heads(model) + find_neurons(model):
        stack = tie.stack().clone()
        stack[: tie.count // 2] = 0
        tie.assign(stack)
    model.save_pretrained(folder / "model")
    return folder


def export(run: Path, kind: str, output: Path, *more: str) -> int:
    sizes = ["--batch", "2", "3", "--length", "8", "--threads", "1"]
    return main(["export", str(run), "--format", kind, "--output", str(output), *sizes, *more])


@pytest.fixture(scope="module")
def low_rank(tiny_model: str, tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = ["--model", tiny_model, "--task", "words", "--data_dir", tiny_data, "--max_steps", "3"]
    options += ["--method", "svd", "--sparsity", "0.5", "--max_length", "16", "--output", str(folder), "-q"]
    assert main(["prune", *options]) == 0
    return folder


@pytest.mark.parametrize("kind", ["dense", "structured", "onnx"])
def test_low_rank_runs_are_compared_with_what_they_multiply_out_to(
    kind: str, low_rank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    output = tmp_path / "exported"
    assert export(low_rank, kind, output) == 0
    assert "MB dense" in capsys.readouterr().out
    facts = json.loads((output / "export.json").read_text())
    assert facts["reference"] == "dense"
    assert facts["largest_difference"] <= 1e-5
    if kind == "onnx":
        return
    model = BertForSequenceClassification.from_pretrained(output).eval()
    assert bool(find_factors(model)) == (kind == "structured")
    inputs = example_inputs(model, 2, 8)
    first = BertForSequenceClassification.from_pretrained(low_rank / "model").eval()
    assert largest_difference(read_logits(model, inputs), read_logits(first, inputs)) <= 1e-5
    if kind == "structured":
        assert facts["bytes"]["exported"] < facts["bytes"]["masked"]


def test_the_model_card_says_what_the_run_says(low_rank: Path, tmp_path: Path) -> None:
    assert export(low_rank, "structured", tmp_path / "exported", "-q") == 0
    card = ModelCard.load(tmp_path / "exported" / "README.md")
    assert card.data.pipeline_tag == "text-classification"
    assert {"argprune", "pruning", "svd"} <= set(card.data.tags)
    metrics = json.loads((low_rank / "metrics.json").read_text())
    assert {r.dataset_split: r.metric_value for r in card.data.eval_results} == {
        split: values["accuracy"] for split, values in metrics["pruned"].items()
    }
    assert "certificate **holds**" in card.text
    assert "| 3 | 8 | " in card.text
    assert str(low_rank) not in card.content
    assert str(tmp_path) not in card.content
    assert metrics["model"] not in card.content, "a folder of this machine"
    [code] = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    names: dict[str, Any] = {"folder": tmp_path / "exported"}
    exec(code, names)
    dense = BertForSequenceClassification.from_pretrained(low_rank / "dense" / "model")
    assert names["model"].num_parameters() < dense.num_parameters()
    assert names["tokenizer"].vocab_size == 64


def test_the_model_card_tells_of_a_certificate_that_does_not_hold(finished: Path, tmp_path: Path) -> None:
    assert export(finished, "dense", tmp_path / "exported", "-q") == 0
    assert "certificate **DOES NOT HOLD**" in (tmp_path / "exported" / "README.md").read_text()


def test_the_model_card_says_where_the_certificate_is_missing(low_rank: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(low_rank, run)
    (run / "certificate.json").unlink()
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config + "augment: {file: /home/somebody/mine.py:Mine}\n")
    assert export(run, "dense", tmp_path / "exported", "-q") == 0
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "certificate is missing" in card
    assert "somebody" not in card


def test_low_rank_runs_have_no_zeros_to_skip(
    low_rank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(low_rank, "sparse", tmp_path / "exported") == 2
    assert "give --format dense, structured or onnx" in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("kind", ["dense", "structured", "sparse", "onnx"])
def test_every_format_gives_the_masked_models_logits(
    kind: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    output = tmp_path / "exported"
    assert export(finished, kind, output) == 0
    printed = capsys.readouterr().out
    facts = json.loads((output / "export.json").read_text())
    assert facts["format"] == kind
    assert facts["largest_difference"] <= 1e-5
    assert [(row["batch"], row["length"]) for row in facts["latency"]] == [(2, 8), (3, 8)]
    assert all(row["masked"] > 0 and row["exported"] > 0 for row in facts["latency"])
    assert facts["load"] in printed
    assert "logits: largest difference" in printed
    assert "latency at batch 2, length 8, 1 threads" in printed
    assert load_tokenizer(str(output)).vocab_size == 64
    model = load_shrunk(finished / "model")
    inputs = example_inputs(model, 3, 11, seed=1)
    found: Any
    if kind == "onnx":
        found = OnnxModel(output / "model.onnx", threads=1)(inputs)
    else:
        found = read_logits(load_sparse(output) if kind == "sparse" else load_shrunk(output), inputs)
    assert largest_difference(found, read_logits(model, inputs)) <= 1e-5
    assert os.listdir(tmp_path) == ["exported"]


def with_model(run: Path, folder: Path, model: Any) -> Path:
    """A copy of a run that has ended with another model."""
    shutil.copytree(run, folder)
    for name in ("config.json", "model.safetensors"):
        (folder / "model" / name).unlink()
    model.save_pretrained(folder / "model")
    return folder


def generated(model: Any) -> list[list[int]]:
    ids = torch.randint(8, 60, (2, 6), generator=torch.Generator().manual_seed(0))
    return model.generate(ids, attention_mask=torch.ones_like(ids)).tolist()


@pytest.mark.parametrize("kind", ["dense", "structured", "sparse", "onnx"])
def test_every_format_generates_what_the_run_does(kind: str, finished: Path, tmp_path: Path) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    model = tiny_models.bart().eval()
    for index, tie in enumerate(find_neurons(model)):
        stack = tie.stack().clone()
        stack[: 8 * (index + 1)] = 0
        tie.assign(stack)
    model.generation_config = tiny_models.generation()
    run = with_model(finished, tmp_path / "run", model)
    output = tmp_path / "out"
    assert export(run, kind, output, "-q") == 0
    assert GenerationConfig.from_pretrained(output).to_diff_dict() == model.generation_config.to_diff_dict()
    if kind == "onnx":
        return
    wanted = generated(BartForConditionalGeneration.from_pretrained(run / "model").eval())
    assert wanted[0][-1] == 7, "as its generation config says"
    assert generated(load_sparse(output) if kind == "sparse" else load_shrunk(output)) == wanted


@pytest.mark.parametrize("kind", ["dense", "structured", "onnx"])
def test_low_rank_runs_take_their_generation_with_them(kind: str, low_rank: Path, tmp_path: Path) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    model = tiny_models.gpt2().eval()
    factorise(model, find_weights(model), rank=8)
    compact(model)
    model.generation_config = tiny_models.generation()
    assert export(with_model(low_rank, tmp_path / "run", model), kind, tmp_path / "out", "-q") == 0
    found = GenerationConfig.from_pretrained(tmp_path / "out")
    assert found.to_diff_dict() == model.generation_config.to_diff_dict()


def test_the_length_is_what_the_positions_allow(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """RoBERTa's positions begin behind the padding's: of 18 rows 16 are for tokens."""
    config = RobertaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    config.max_position_embeddings = 18
    run = with_model(finished, tmp_path / "run", RobertaForSequenceClassification(config))
    assert export(run, "dense", tmp_path / "out", "--length", "17") == 2
    captured = capsys.readouterr()
    assert "length 17; give at least 1 each and at most 16 tokens." in captured.err
    assert captured.err.count("\n") == 1
    assert os.listdir(tmp_path) == ["run"]
    assert export(run, "dense", tmp_path / "out", "--length", "16", "-q") == 0


def test_structured_is_smaller_and_says_what_it_kept(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(finished, "structured", tmp_path / "s") == 0
    facts = json.loads((tmp_path / "s" / "export.json").read_text())
    assert facts["parameters"]["exported"] < facts["parameters"]["masked"]
    assert facts["bytes"]["exported"] < facts["bytes"]["masked"]
    assert "heads: 2 of 4 kept" in capsys.readouterr().out
    assert facts["load"] == "argprune.models.load_shrunk(folder)"
    assert export(finished, "structured", tmp_path / "r", "--regular", "-q") == 0
    assert capsys.readouterr().out == ""
    model = BertForSequenceClassification.from_pretrained(tmp_path / "r")
    assert model.config.intermediate_size == 32
    masked = load_shrunk(finished / "model")
    inputs = example_inputs(masked, 2, 9)
    assert largest_difference(read_logits(model, inputs), read_logits(masked, inputs)) <= 1e-5


def test_sparse_holds_the_table_of_times(finished: Path, tmp_path: Path) -> None:
    assert export(finished, "sparse", tmp_path / "s", "-q") == 0
    facts = json.loads((tmp_path / "s" / "export.json").read_text())
    assert len(facts["layers"]) == 12
    assert all(layer["milliseconds"]["dense"] > 0 for layer in facts["layers"])
    replaced = [module for module in load_sparse(tmp_path / "s").modules() if isinstance(module, SparseLinear)]
    assert len(replaced) == sum(layer["kind"] != "dense" for layer in facts["layers"])


def test_an_export_is_replaced_only_when_asked(finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert export(finished, "dense", output, "-q") == 0
    (output / "mine.txt").write_text("old")
    assert export(finished, "structured", output, "-q") == 2
    assert json.loads((output / "export.json").read_text())["format"] == "dense"
    assert export(finished, "structured", output, "-q", "--overwrite") == 0
    assert json.loads((output / "export.json").read_text())["format"] == "structured"
    assert not (output / "mine.txt").exists()


def test_a_link_is_followed(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name, place in {"full": "there", "new": "later"}.items():
        link = tmp_path / name
        link.symlink_to(place)
        assert export(finished, "dense", link, "-q") == 0
        assert export(finished, "dense", link, "-q") == 2
        assert export(finished, "structured", link, "-q", "--overwrite") == 0
        assert link.is_symlink()
        assert json.loads((tmp_path / place / "export.json").read_text())["format"] == "structured"
    assert sorted(os.listdir(tmp_path)) == ["full", "later", "new", "there"]


@pytest.mark.parametrize("place", ["file/out", "file/deeper/out", "long" * 100, "loop/out"])
def test_folders_that_cannot_be_made_are_refused_before_the_work(
    place: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setattr(export_command, "load_shrunk", None)
    assert export(finished, "dense", tmp_path / place) == 2
    captured = capsys.readouterr()
    assert f"Output {tmp_path / place}: " in captured.err
    assert "give a folder that can be made" in captured.err
    assert captured.err.count("\n") == 1


def test_other_logits_are_a_failure_and_leave_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(folder: Path) -> Any:
        model: Any = load_shrunk(folder)
        model.classifier.bias.data += 0.1
        return model

    monkeypatch.setattr(export_command, "load_shrunk", lambda f: load_shrunk(f) if "run" in str(f) else wrong(f))
    assert export(finished, "dense", tmp_path / "out") == 1
    assert "logits differ from the run's model's by 1.0e-01" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
    assert issubclass(RunError, RuntimeError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "coo"], "invalid choice: 'coo'"),
        (["--format", "dense", "--batch", "0"], "--batch 0; give at least 1."),
        (["--format", "dense", "--length", "10000"], "give at least 1 each and at most 512 tokens."),
        (["--format", "dense", "--regular"], "--regular is of --format structured, not of dense."),
    ],
)
def test_bad_usage_is_one_line(
    arguments: list[str], message: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(finished), "--output", str(tmp_path / "out"), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert os.listdir(tmp_path) == []


def test_unfinished_runs_and_other_folders_are_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(tmp_path / "nowhere", "dense", tmp_path / "out") == 2
    assert "is no finished run" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("x")
    assert export(finished, "dense", tmp_path / "mine", "--overwrite") == 2
    assert "exists and is no export" in capsys.readouterr().err
    assert export(finished, "dense", tmp_path / "mine" / "precious.txt") == 2
    assert "is a file" in capsys.readouterr().err
    assert (tmp_path / "mine" / "precious.txt").read_text() == "x"
    assert export(finished, "dense", finished, "--overwrite") == 2
    assert "exists and is no export" in capsys.readouterr().err
    assert torch.get_num_threads() == 1
