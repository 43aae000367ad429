"""`argprune analyse` on small runs: what it writes, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from argprune.cli import main


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
    assert "holds an analysis; give --overwrite" in refused(runs / "heads")
    assert (
        main(["analyse", str(runs / "heads"), "--output", str(output), "--picture", "none", "-q", "--overwrite"]) == 0
    )
