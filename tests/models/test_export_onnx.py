"""ONNX: what onnxruntime computes from the file is what the model computes, at sizes that were not exported."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BartModel,
    BertConfig,
    BertForQuestionAnswering,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from argprune.models import find_neurons, shrink
from argprune.models.export import OnnxModel, example_inputs, export_onnx, largest_difference, read_logits

_SIZES: dict[str, Any] = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_SIZES |= {"max_position_embeddings": 32, "intermediate_size": 24}


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_onnxruntime_gives_the_logits_of_a_shrunk_model(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model: Any
    if name == "bert":
        model = BertForQuestionAnswering(BertConfig(**_SIZES)).eval()
    else:
        config = T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=24, num_layers=2, num_heads=4)
        model = T5ForConditionalGeneration(config).eval()
    for tie in find_neurons(model):
        stack = tie.stack().clone()
        stack[0] = 0
        tie.assign(stack)
    small = shrink(model)
    assert small.removed > 0
    attention = small.model.config._attn_implementation
    export_onnx(small.model, tmp_path / "model.onnx")
    assert small.model.config._attn_implementation == attention
    found = OnnxModel(tmp_path / "model.onnx", threads=1)
    for batch, length in [(3, 13), (1, 5), (1, 1)]:
        inputs = example_inputs(model, batch, length, seed=batch)
        # Both sum the same products in float32, in other orders.
        assert largest_difference(found(inputs), read_logits(model, inputs)) <= 1e-5
    assert set(found.inputs) >= {"input_ids", "attention_mask"}
    assert found.outputs == (["start_logits", "end_logits"] if name == "bert" else ["logits"])
    with pytest.raises(ValueError, match="Input 'input_ids' is missing; the model takes input_ids"):
        found({})
    (tmp_path / "broken.onnx").write_bytes(b"no")
    with pytest.raises(ValueError, match="cannot be read by onnxruntime") as info:
        OnnxModel(tmp_path / "broken.onnx")
    assert "\n" not in str(info.value)


def test_missing_files_and_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match="Give a file written by export_onnx"):
        OnnxModel(tmp_path / "nowhere.onnx")
    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> Any:
        if name.startswith("onnx"):
            raise builtins.ModuleNotFoundError(name)
        return real(name, package)

    monkeypatch.setattr("argprune.models.export.onnx.importlib.import_module", missing)
    model = BertForQuestionAnswering(BertConfig(**_SIZES))
    for use in (lambda: OnnxModel(tmp_path / "x.onnx"), lambda: export_onnx(model, tmp_path / "x.onnx")):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'argprune\[export\]'"):
            use()


def test_example_inputs_are_the_models(tmp_path: Path) -> None:
    model = BertForQuestionAnswering(BertConfig(**_SIZES)).eval()
    inputs = example_inputs(model, 4, 6)
    assert set(inputs) == {"input_ids", "attention_mask", "token_type_ids"}
    assert inputs["attention_mask"].sum(1).tolist() == [6, 3, 6, 3]
    assert int(inputs["input_ids"].max()) < 50
    assert torch.equal(inputs["input_ids"], example_inputs(model, 4, 6)["input_ids"])
    for batch, length in [(0, 4), (1, 0), (1, 33)]:
        with pytest.raises(ValueError, match="give at least 1 each and at most 32 tokens"):
            example_inputs(model, batch, length)


@pytest.mark.parametrize("kind", [RobertaModel, BartModel])
def test_example_inputs_are_as_long_as_the_positions_allow(kind: Any) -> None:
    """RoBERTa's 18 rows are for 16 tokens, BART has 2 rows more than its config says."""
    sizes = {"d_model": 16, "hidden_size": 16, "num_attention_heads": 2}
    sizes |= {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    model = kind(kind.config_class(vocab_size=50, max_position_embeddings=18, **sizes)).eval()
    most = 16 if kind is RobertaModel else 18
    assert read_logits(model, example_inputs(model, 2, most))
    with pytest.raises(ValueError, match=f"length {most + 1}; give at least 1 each and at most {most} tokens"):
        example_inputs(model, 2, most + 1)


def test_nan_is_an_infinite_difference() -> None:
    wanted = {"logits": torch.zeros(3)}
    assert largest_difference({"logits": torch.tensor([0, torch.nan, 0])}, wanted) == float("inf")
    assert largest_difference({"logits": torch.tensor([0.0, -2.0, 1.0])}, wanted) == 2
