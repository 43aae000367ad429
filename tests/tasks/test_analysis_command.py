"""`argprune analyse` on small runs: what it writes, prints and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2Model, T5Config, T5ForConditionalGeneration

from argprune.cli import main
from argprune.models import find_weights
from argprune.models.patterns import density_map, find_patterns
from argprune.tasks import analysis_command
from argprune.tasks.analysis_command import Place, draw, find_places


@pytest.fixture(scope="module")
def runs(tiny_model: str, tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    options = [
        "--model",
        tiny_model,
        "--task",
        "words",
        "--data_dir",
        tiny_data,
        "--max_steps",
        "3",
        "--max_length",
        "16",
    ]
    for name, method in (("heads", ["magnitude", "--method.structure", "heads-and-neurons"]), ("factors", ["svd"])):
        more = ["--sparsity", "0.5", "--dense", str(folder / "dense"), "--output", str(folder / name), "-q"]
        assert main(["prune", *options, "--method", *method, *more]) == 0
    return folder


def test_whole_heads_show_in_numbers_and_picture(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "analysis"
    assert main(["analyse", str(runs / "heads"), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "attention.output.dense" in printed
    found = json.loads((output / "patterns.json").read_text())
    metrics = json.loads((runs / "heads" / "metrics.json").read_text())
    assert {p["name"]: 1 - p["density"] for p in found["patterns"]} == pytest.approx(metrics["matrices"])
    query = next(p for p in found["patterns"] if "query" in p["name"])
    assert query["heads"]["empty"] == query["heads"]["groups"] // 2
    assert query["rows"]["dispersion"] > 5 > query["columns"]["dispersion"]
    overlap = found["neighbour_overlap"]
    assert overlap["overlap"] > overlap["by_chance"]
    assert "<svg" in (output / "patterns.svg").read_text()


def test_layers_of_encoders_and_decoders_are_told_apart(tmp_path: Path) -> None:
    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    model = T5ForConditionalGeneration(config)
    masks = {weight.name: torch.rand(weight.parameter.shape) < 0.5 for weight in find_weights(model)}
    places = find_places(list(masks))
    assert len(set(places)) == len(masks) == 32
    assert {place.layer for place in places} == {"encoder 0", "encoder 1", "decoder 0", "decoder 1"}
    metrics = {"method": "rpp", "sparsity": {"encoder": 0.5}}
    draw(find_patterns(model, masks), masks, tmp_path / "patterns.svg", metrics)
    drawn = (tmp_path / "patterns.svg").read_text()
    # A title for each matrix, and one for all.
    assert drawn.count("% zeros") == len(masks) + 1


def test_one_stack_of_layers_needs_no_name() -> None:
    names = ["encoder.block.0.layer.0.SelfAttention.q.weight", "encoder.block.1.layer.0.SelfAttention.q.weight"]
    assert find_places(names) == [Place(layer, "layer.0.SelfAttention.q") for layer in "01"]
    assert find_places(["table.weight"]) == [Place("", "table")]


def test_the_same_run_gives_the_same_files(runs: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / name for name in "ab"]
    for output in outputs:
        assert main(["analyse", str(runs / "heads"), "--output", str(output), "-q"]) == 0
    first, second = ({f.name: f.read_bytes() for f in output.iterdir()} for output in outputs)
    assert first == second


def test_refusals(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "analysis"

    def refused(run: Path, *more: str) -> str:
        assert main(["analyse", str(run), "--output", str(output), *more]) == 2
        return capsys.readouterr().err

    assert "no finished run" in refused(tmp_path)
    assert "low-rank run" in refused(runs / "factors")
    assert "pruned nothing" in refused(runs / "dense")
    assert not output.exists()
    assert main(["analyse", str(runs / "heads"), "--output", str(output), "--picture", "none", "-q"]) == 0
    assert [file.name for file in output.iterdir()] == ["patterns.json"]
    assert "holds patterns.json; give --overwrite" in refused(runs / "heads")
    assert (
        main(["analyse", str(runs / "heads"), "--output", str(output), "--picture", "none", "-q", "--overwrite"]) == 0
    )


def test_what_is_there_is_kept_and_what_cannot_be_read_is_named(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "patterns.svg").write_text("mine")
    assert main(["analyse", str(runs / "heads"), "--output", str(tmp_path)]) == 2
    assert "holds patterns.svg; give --overwrite" in capsys.readouterr().err
    assert (tmp_path / "patterns.svg").read_text() == "mine"
    for name in ("masks.safetensors", "metrics.json"):
        broken = tmp_path / name.split(".")[0]
        shutil.copytree(runs / "heads", broken)
        (broken / name).write_text("{")
        assert main(["analyse", str(broken), "--output", str(tmp_path / "new")]) == 2
        assert f"{broken / name} cannot be read: " in capsys.readouterr().err


def test_square_matrices_of_conv1d_are_drawn_with_outputs_as_rows(tmp_path: Path) -> None:
    model = GPT2Model(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    masks = {weight.name: torch.ones_like(weight.parameter, dtype=torch.bool) for weight in find_weights(model)}
    [name] = [name for name in masks if "attn.c_proj" in name]
    # Stored (inputs, outputs): the first four outputs.
    masks[name][:, :4] = False
    drawn: dict[str, Tensor] = {}

    def spy(mask: Tensor) -> Tensor:
        drawn[str(len(drawn))] = mask
        return density_map(mask)

    patterns = find_patterns(model, masks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis_command, "density_map", spy)
        draw(patterns, masks, tmp_path / "p.svg", {"method": "rpp", "sparsity": {"encoder": 0.5}})
    shown = list(drawn.values())[[pattern.name for pattern in patterns].index(name)]
    assert not shown[:4].any()
    assert shown[4:].all()


@pytest.mark.parametrize("place", ["file/out", "file/deeper/out", "long" * 100])
def test_folders_that_cannot_be_made_are_refused_before_the_work(
    place: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(analysis_command, "find_patterns", None)
    assert main(["analyse", str(runs / "heads"), "--output", str(tmp_path / place)]) == 2
    captured = capsys.readouterr()
    assert f"Output {tmp_path / place}: " in captured.err
    assert "give a folder that can be made" in captured.err
    assert captured.err.count("\n") == 1
