"""Self-regularized runs: which snapshot is the teacher, and that a resumed run has the same one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from argprune import prune
from argprune.cli import main
from argprune.solvers.methods import PINS
from argprune.tasks import harness, snapshots
from argprune.tasks.certificate import check_certificate
from argprune.tasks.runs import RunDirectory
from argprune.tasks.texts import Row, hold_out

STEPS = 24


@pytest.fixture
def job(tiny_model: str, tiny_data: str, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": tiny_model,
        "task": "words",
        "data_dir": tiny_data,
        "max_steps": STEPS,
        "batch_size": 8,
        "max_length": 16,
        "log_every": 4,
        "checkpoint_every": 6,
        "sparsity": 0.75,
        "quiet": True,
        "dense": tmp_path / "dense",
    }


def method(rule: str) -> dict[str, Any]:
    return {"name": "pins", "every": 2, "milestones": 4, "self_regularization": rule}


def bits(run: Any) -> dict[str, torch.Tensor]:
    return load_file(run.path / "model" / "model.safetensors")


@pytest.mark.parametrize("rule", ["milestones", "held-out", "dev"])
def test_a_resumed_run_has_the_same_teacher(
    job: dict[str, Any], tmp_path: Path, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prune(**job, method=method(rule), output=tmp_path / "whole")
    lines = [json.loads(line) for line in (whole.path / "log.jsonl").read_text().splitlines()]
    assert all(line["gap"] == 0 for line in lines)
    assert any("loss_self_regularization" in line for line in lines)
    # Steps are those of the task; a slice held out of training takes rows.
    assert whole.metrics["steps"] == STEPS
    assert whole.metrics["rows"]["train"] == (144 if rule == "held-out" else 160)
    assert whole.metrics["rows"].get("held-out") == (16 if rule == "held-out" else None)
    saved = json.loads((whole.path / "certificate.json").read_text())
    assert saved["selection"] == whole.metrics["method_report"]["certificate"]
    assert saved["selection"]["gap"] == 0
    assert check_certificate(whole.path)

    after = PINS.after_step

    def dies(self: PINS, step: int, learning_rate: float) -> None:
        if step == 13:
            raise KeyboardInterrupt
        after(self, step, learning_rate)

    monkeypatch.setattr(PINS, "after_step", dies)
    with pytest.raises(KeyboardInterrupt):
        prune(**job, method=method(rule), output=tmp_path / "run")
    monkeypatch.undo()
    checkpoint = RunDirectory(tmp_path / "run").last_checkpoint()
    assert checkpoint is not None
    assert (checkpoint / "teacher.safetensors").is_file()
    resumed = prune(**job, method=method(rule), output=tmp_path / "run", resume=True)
    one, other = bits(whole), bits(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [json.loads(line) for line in (resumed.path / "log.jsonl").read_text().splitlines()] == lines
    assert resumed.metrics["method_report"] == whole.metrics["method_report"]


class Model(torch.nn.Linear):
    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Any:  # type: ignore[override]
        return type("Output", (), {"logits": super().forward(input_ids), "start_logits": None})


class Asks(PINS):
    answers = ("take", "no", "dev", "dev", "dev")

    def snapshot(self, step: int) -> Any:
        return self.answers[step]


def test_a_candidate_becomes_the_teacher_if_it_is_the_best_so_far() -> None:
    model, scores = Model(2, 2), iter([0.5, 0.5, 0.75])
    keeps = snapshots.Snapshots(Asks(sparsity=0.5), model, lambda name: next(scores))
    batch = {"input_ids": torch.ones(1, 2), "labels": torch.tensor([0])}
    assert keeps.outputs(batch) is None
    taken = []
    for step in range(5):
        with torch.no_grad():
            model.weight.fill_(float(step))
        keeps.ask(step)
        outputs = keeps.outputs(batch)
        assert outputs is not None
        assert not outputs.predictions[0].logits.requires_grad
        taken.append(round(float(outputs.predictions[0].logits[0, 0] - model.bias.detach()[0]) / 2))
    # Taken; not asked; 0.5 is best so far; 0.5 is not better; 0.75 is.
    assert taken == [0, 0, 2, 2, 4]
    assert model.training
    assert keeps.taken == 3


def test_methods_without_terms_pay_nothing(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise AssertionError("outputs were read")

    monkeypatch.setattr(harness, "read_outputs", fails)
    run = prune(**{**job, "max_steps": 3}, method="magnitude", output=tmp_path / "run")
    assert run.metrics["steps"] == 3


def test_hold_out_splits_without_a_loss() -> None:
    rows = [Row(str(i), i % 2) for i in range(25)]
    kept, held = hold_out(rows, seed=3)
    assert len(held) == 2
    assert sorted(kept + held, key=rows.index) == rows
    assert hold_out(rows, seed=3) == (kept, held)
    assert hold_out(rows, seed=4) != (kept, held)
    assert hold_out(rows[:2], seed=0)[1] in ([rows[0]], [rows[1]])
    with pytest.raises(ValueError, match=r"^1 training rows; holding a slice out needs at least 2\.$"):
        hold_out(rows[:1], seed=0)


def test_biases_are_pruned_where_asked_and_count(job: dict[str, Any], tmp_path: Path) -> None:
    run = prune(**{**job, "max_steps": 6}, method=method("none"), biases=True, output=tmp_path / "run")
    names = set(run.masks())
    assert len(names) == 24
    assert sum(name.endswith(".bias") for name in names) == 12
    total = 2 * (4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32)
    assert sum(int(mask.sum()) for mask in run.masks().values()) == total - round(0.75 * total)
    assert run.metrics["sparsity"]["encoder"] == pytest.approx(0.75, abs=1 / total)


def test_criterion_and_sign_on_the_command_line(job: dict[str, Any], tmp_path: Path) -> None:
    options = {**job, "max_steps": 3, "output": tmp_path / "run", "method": "pins", "criterion": "pins", "sign": "abs"}
    del options["quiet"]
    assert main(["prune", "-q", *(f"--{name}={value}" for name, value in options.items())]) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["method"]["criterion"] == {"name": "pins", "sign": "abs"}
