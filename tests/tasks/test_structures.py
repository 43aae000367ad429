"""Structured runs from the outside: whole units are zero in the saved model, the log tells of reweighting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from argprune import prune
from argprune.models import find_heads, find_neurons, find_weights
from argprune.solvers.groups import BlockRows, Part, Tied
from argprune.tasks.certificate import check_certificate


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["block-lasso", "magnitude"])
def test_half_of_the_units_are_gone(job: dict[str, Any], dense: Path, tmp_path: Path, name: str) -> None:
    method = {"name": name, "structure": "heads-and-neurons"}
    run = prune(**job, method=method, sparsity=0.5, dense=dense, output=tmp_path / "run")
    assert check_certificate(run.path)
    model = run.model()
    for tie, count in [*((t, 2) for t in find_heads(model)), *((t, 64) for t in find_neurons(model))]:
        assert tie.count == count
        assert int((tie.norms() == 0).sum()) == count // 2
    assert run.metrics["sparsity"]["encoder"] == 0.5


def test_biases_are_in_no_block(job: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="biases"):
        prune(**job, method="block-lasso", sparsity=0.5, biases=True, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_neurons_alone_need_the_attention_left_out(job: dict[str, Any], dense: Path, tmp_path: Path) -> None:
    options = {**job, "method": {"name": "block-lasso", "structure": "neurons"}, "sparsity": 0.75, "dense": dense}
    with pytest.raises(ValueError, match=r"8 of the 12 weights to prune, such as '.*query\.weight', hold no neurons"):
        prune(**options, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_literal_run_reweights_and_prunes_padded_groups(job: dict[str, Any], dense: Path, tmp_path: Path) -> None:
    method = {
        "name": "block-lasso",
        "structure": "block-rows",
        "width": 12,
        "literal": True,
        "strength": 1e-3,
        "reweight_every": 3,
    }
    run = prune(**job, method=method, sparsity=0.6, dense=dense, output=tmp_path / "run")
    assert check_certificate(run.path)
    model = run.model()
    for weight in find_weights(model):
        tie = Tied(weight.name, [Part(weight, BlockRows(width=12))])
        assert int((tie.norms() == 0).sum()) == round(0.6 * tie.count)
    log = [line for line in lines(run.path) if line.get("rounds", 0) > 0]
    assert log
    assert all(line["factors_change"] > 0 and line["loss_penalty"] > 0 for line in log)
    assert run.metrics["method_report"]["prox_sparsity"] == 0
    assert run.metrics["sparsity"]["encoder"] == pytest.approx(run.metrics["method_report"]["attained"])
