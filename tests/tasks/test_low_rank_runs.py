"""Low-rank runs from the outside: exact sizes in the saved files, models that load by themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from argprune import prune
from argprune.models import find_clusters
from argprune.models.factorised import find_factors
from argprune.tasks.certificate import check_certificate
from argprune.tasks.data import load_task
from argprune.tasks.language import Language, make_causal_lm

FLOP = {"name": "flop", "multiple": 1}
METHODS = [
    pytest.param(FLOP, id="flop"),
    pytest.param({**FLOP, "initial": "whitened", "rank": "full"}, id="flop-whitened-full"),
    pytest.param({**FLOP, "whole": False, "noise": True}, id="flop-all-factored-with-noise"),
    pytest.param({**FLOP, "embeddings": True, "initial": "svd"}, id="flop-embeddings"),
    pytest.param({**FLOP, "embeddings": True, "initial": "whitened"}, id="flop-embeddings-whitened"),
    pytest.param({"name": "svd", "multiple": 1}, id="svd"),
    pytest.param({"name": "svd", "multiple": 1, "initial": "whitened", "scope": "global"}, id="svd-whitened"),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", [0.2, 0.8])
def test_the_saved_model_is_as_small_as_asked(
    job: dict[str, Any], dense: Path, tmp_path: Path, method: dict[str, Any], sparsity: float
) -> None:
    run = prune(**job, method=method, sparsity=sparsity, dense=dense, output=tmp_path / "run")
    certificate = json.loads((run.path / "certificate.json").read_text())
    assert certificate["kind"] == "size"
    assert certificate["holds"]
    assert check_certificate(run.path)
    # One component of each of 12 matrices at most.
    assert (
        0
        <= certificate["wanted"] - certificate["kept"] + 0.5
        <= certificate["tolerance"]
        <= 0.15 * certificate["total"]
    )
    saved = load_file(run.path / "model" / "model.safetensors")
    numbers = sum(tensor.numel() for tensor in saved.values())
    assert run.metrics["compression"]["model"] == pytest.approx(_size(dense) / numbers)
    assert run.metrics["sparsity"]["encoder"] == pytest.approx(1 - certificate["kept"] / certificate["total"])
    # What stayed whole has no components to choose from, and is saved as it was shaped.
    whole = set(run.metrics["method_report"]["whole"])
    assert set(run.masks()) == set(certificate["dense"]) - whole
    assert all(saved[name].numel() == certificate["dense"][name] for name in whole)


def test_the_saved_model_loads_by_itself(job: dict[str, Any], dense: Path, tmp_path: Path) -> None:
    run = prune(**job, method=FLOP, sparsity=0.5, dense=dense, output=tmp_path / "run")
    folder = run.path / "model"
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert len(find_factors(plain)) > 0
    inputs = AutoTokenizer.from_pretrained(folder)(["w1 w2 w3", "w4"], padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(plain(**inputs).logits, run.model()(**inputs).logits, rtol=0, atol=0)
    again = tmp_path / "again"
    plain.save_pretrained(again)
    first, second = (load_file(path / "model.safetensors") for path in (folder, again))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_the_certificate_notices_a_larger_factor(job: dict[str, Any], dense: Path, tmp_path: Path) -> None:
    run = prune(**job, method=FLOP, sparsity=0.5, dense=dense, output=tmp_path / "run")
    assert check_certificate(run.path)
    file = run.path / "model" / "model.safetensors"
    saved = load_file(file)
    name = next(name for name in saved if name.endswith(".second"))
    saved[name] = torch.cat([saved[name], saved[name]], dim=1)
    save_file(saved, file, metadata={"format": "pt"})
    assert not check_certificate(run.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparsity": 0.9999}, r"sparsity 0\.9999: all weights together would keep 2 numbers, and one component takes"),
        ({"sparsity": 0.999, "method": "svd"}, r"sparsity 0\.999: bert\.encoder\.layer\.0.* give at most 0\.9"),
        ({"biases": True}, r"leave biases out \(biases: false\)"),
        ({"include": ["*.nothing"]}, "No weight matches"),
    ],
)
def test_bad_input_fails_before_anything_is_written(
    job: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prune(**{**job, "method": FLOP, "sparsity": 0.5, **change}, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_log_tells_of_the_constraint(job: dict[str, Any], dense: Path, tmp_path: Path) -> None:
    run = prune(**{**job, "log_every": 1}, method=FLOP, sparsity=0.5, dense=dense, output=tmp_path / "run")
    lines = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    gated = [line for line in lines if "expected_sparsity" in line]
    assert gated
    assert {"constraint_violation", "multiplier_linear", "multiplier_quadratic", "pressure"} <= set(gated[0])
    assert gated[-1]["expected_sparsity"] == pytest.approx(0.5, abs=0.005)
    assert "expected_sparsity" not in lines[-1]
    assert lines[-1]["sparsity"] == pytest.approx(0.5, abs=0.01)


def _size(dense: Path) -> int:
    return sum(tensor.numel() for tensor in load_file(dense / "model" / "model.safetensors").values())


@pytest.mark.parametrize("architecture", ["gru", "gpt2"])
def test_clusters_of_adaptive_embeddings_are_pruned(architecture: Any, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for split in ("train", "valid", "test"):
        (corpus / f"{split}.txt").write_text(
            "\n".join(f"the w{i % 7} of w{i % 31} is w{(i * i) % 97} ." for i in range(400))
        )
    task = load_task(str(corpus))
    assert isinstance(task, Language)
    folder = tmp_path / "model"
    sizes: dict[str, Any] = {"layers": 1, "width": 32, "heads": 2, "positions": 32, "cutoffs": [40]}
    make_causal_lm(task, folder, architecture=architecture, tokenizer="word", vocab_size=200, **sizes)
    options: dict[str, Any] = {"max_steps": 20, "batch_size": 8, "max_length": 32, "learning_rate": 1e-2, "quiet": True}
    method = {**FLOP, "embeddings": True}
    run = prune(str(folder), str(corpus), method=method, sparsity=0.5, output=tmp_path / "run", **options)
    assert check_certificate(run.path)
    clusters = [name for name in run.masks() if "clusters" in name]
    assert len(clusters) == 2
    assert any(not bool(run.masks()[name].all()) for name in clusters)
    kept = {factors.name: factors.rank for factors in find_clusters(run.model())}
    assert kept == {name: int(run.masks()[name].sum()) for name in clusters}
    assert run.metrics["compression"]["model"] > 1.5
