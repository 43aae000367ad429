"""Distilled runs: the cache gives the bits that the live teacher gives, and a resumed run those of a whole one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification

from argprune import prune
from argprune.cli import main
from argprune.models import load_tokenizer
from argprune.solvers.methods import SparseBERT
from argprune.tasks.options import plan
from argprune.tasks.runs import RunDirectory
from argprune.tasks.settings import Distill, Settings

STEPS = 8


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one dense reference, which the first run trains."""
    return tmp_path_factory.mktemp("reference") / "dense"


@pytest.fixture
def job(tiny_model: str, tiny_data: str, dense: Path) -> dict[str, Any]:
    return {
        "model": tiny_model,
        "task": "words",
        "data_dir": tiny_data,
        "max_steps": STEPS,
        "batch_size": 8,
        "max_length": 16,
        "log_every": 2,
        "checkpoint_every": 4,
        "sparsity": 0.75,
        "quiet": True,
        "dense": dense,
    }


def bits(run: Any) -> dict[str, torch.Tensor]:
    return load_file(run.path / "model" / "model.safetensors")


def same(one: Any, other: Any) -> bool:
    first, second = bits(one), bits(other)
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def log(run: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]


# Runs


def test_sparsebert_live_cached_and_killed_give_the_same_bits(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = prune(**job, method="sparsebert", output=tmp_path / "cached")
    terms = {f"loss_distill_{name}" for name in ("logits", "embedding", "hidden", "attention")}
    assert terms <= set(log(cached)[0])
    answers = cached.metrics["distillation"]["answers"]
    assert answers["cached"]
    assert answers["asked"] == STEPS * 8
    # Some of the texts are alike.
    assert 0 < answers["computed"] < STEPS * 8
    assert cached.metrics["distillation"]["layers"] == [0, 1]
    assert not list(cached.path.glob("teacher-answers"))
    assert cached.metrics["sparsity"]["encoder"] == pytest.approx(0.75, abs=1e-3)
    assert json.loads((cached.path / "certificate.json").read_text())["holds"]
    live = prune(**job, method="sparsebert", distill={"cache": False}, output=tmp_path / "live")
    assert live.metrics["distillation"]["answers"] == {"cached": False, "reason": "cache is false"}
    assert same(cached, live)

    after = SparseBERT.after_step

    def dies(self: SparseBERT, step: int, learning_rate: float) -> None:
        if step == 5:
            raise KeyboardInterrupt
        after(self, step, learning_rate)

    monkeypatch.setattr(SparseBERT, "after_step", dies)
    with pytest.raises(KeyboardInterrupt):
        prune(**job, method="sparsebert", output=tmp_path / "run")
    monkeypatch.undo()
    resumed = prune(**job, method="sparsebert", output=tmp_path / "run", resume=True)
    assert same(cached, resumed)
    assert log(resumed) == log(cached)


@pytest.fixture(scope="module")
def teachers(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of models that could be teachers: alike, deeper, wider, with other heads, with another vocabulary."""
    changes: dict[str, Any] = {
        "alike": {},
        "deeper": {"num_hidden_layers": 4},
        "wider": {"num_hidden_layers": 3, "hidden_size": 48},
        "heads": {"num_attention_heads": 4},
    }
    base = BertConfig.from_pretrained(tiny_model)
    folders = {}
    for seed, (name, change) in enumerate(changes.items()):
        torch.manual_seed(seed)
        folders[name] = str(tmp_path_factory.mktemp(name))
        config = BertConfig(**{**base.to_dict(), **change, "num_labels": 2})
        BertForSequenceClassification(config).save_pretrained(folders[name])
        load_tokenizer(tiny_model).save_pretrained(folders[name])
    return folders


@pytest.mark.parametrize(
    ("teacher", "distill", "layers"),
    [
        ("alike", {"task_loss": 1.0}, [0, 1]),
        ("deeper", {"layers": "learned", "attention": 0}, None),
        ("wider", {"layers": "uniform"}, [1, 2]),
    ],
)
def test_teachers_of_other_sizes(
    job: dict[str, Any], teachers: dict[str, str], tmp_path: Path, teacher: str, distill: Any, layers: Any
) -> None:
    distill = {**distill, "teacher": teachers[teacher]}
    run = prune(**job, method="magnitude", distill=distill, output=tmp_path / "run")
    found = run.metrics["distillation"]["layers"]
    assert found == layers if layers else len(set(found)) == 2
    # Projections are left behind with the teacher.
    assert not any("projection" in name for name in bits(run))
    assert all(torch.isfinite(value).all() for value in bits(run).values())


def test_a_resumed_run_has_its_projections_and_layer_map(
    job: dict[str, Any], teachers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distill = {"teacher": teachers["wider"], "layers": "learned", "cache": str(tmp_path / "answers")}
    whole = prune(**job, method="rpp", distill=distill, output=tmp_path / "whole")
    assert whole.metrics["distillation"]["answers"]["computed"] > 0

    stop = RunDirectory.append_log

    def dies(self: RunDirectory, line: Any) -> None:
        if line["step"] == 6:
            raise KeyboardInterrupt
        stop(self, line)

    monkeypatch.setattr(RunDirectory, "append_log", dies)
    with pytest.raises(KeyboardInterrupt):
        prune(**job, method="rpp", distill=distill, output=tmp_path / "run")
    monkeypatch.undo()
    checkpoint = RunDirectory(tmp_path / "run").last_checkpoint()
    assert checkpoint is not None
    assert any("distillation_projections" in name for name in load_file(checkpoint / "model.safetensors"))
    resumed = prune(**job, method="rpp", distill=distill, output=tmp_path / "run", resume=True)
    assert same(whole, resumed)
    assert log(resumed) == log(whole)
    # Another run's answers are there for it; nothing is computed twice.
    assert resumed.metrics["distillation"]["answers"]["computed"] == 0
    assert len(list((tmp_path / "answers").iterdir())) == 1


def test_the_reference_learns_from_nobody(job: dict[str, Any], dense: Path, tmp_path: Path) -> None:
    plain = prune(**job, method="magnitude", output=tmp_path / "plain")
    assert "distillation" not in plain.metrics
    taught = prune(**job, method="magnitude", distill=True, output=tmp_path / "taught")
    assert not same(plain, taught)
    config = yaml.safe_load((dense / "config.yaml").read_text())
    assert config["distill"] is None
    again = plan(yaml.safe_load((taught.path / "config.yaml").read_text()))
    assert again.settings.distill == Distill()


def test_factors_learn_too(job: dict[str, Any], tmp_path: Path) -> None:
    run = prune(**{**job, "sparsity": 0.3}, method="flop", distill=True, output=tmp_path / "run")
    assert "loss_distill_attention" in log(run)[0]
    assert run.metrics["distillation"]["answers"]["cached"]


def test_in_halves(job: dict[str, Any], tmp_path: Path) -> None:
    run = prune(**job, method="sparsebert", precision="bf16", output=tmp_path / "run")
    assert all(torch.isfinite(value).all() for value in bits(run).values())
    # The teacher computes in float32 all the same.
    full = prune(**job, method="sparsebert", output=tmp_path / "full")
    for one, other in zip(log(run), log(full), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.1)


def test_the_released_sparsebert(job: dict[str, Any], tmp_path: Path) -> None:
    run = prune(**job, method={"name": "sparsebert", "literal": True}, output=tmp_path / "run")
    assert not run.metrics["distillation"]["answers"]["cached"]
    rates = {line["learning_rate"] for line in log(run)}
    assert rates == {3e-4}
    assert json.loads((run.path / "certificate.json").read_text())["holds"]


def test_on_the_command_line(job: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {**job, "output": tmp_path / "run"}
    del options["quiet"]
    arguments = ["prune", "-q", *(f"--{name}={value}" for name, value in options.items())]
    distill = ["--method=sparsebert", "--distill.temperature=2", "--distill.hidden=0"]
    assert main([*arguments, *distill]) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["distill"]["temperature"] == 2
    assert config["distill"]["hidden"] == 0
    assert config["distill"]["logits"] == 1
    repeated = ["prune", "-q", f"--config={tmp_path / 'run' / 'config.yaml'}", f"--output={tmp_path / 'again'}"]
    assert main(repeated) == 0
    assert same(RunPath(tmp_path / "run"), RunPath(tmp_path / "again"))
    other = ["prune", "-q", "--method=rpp", "--sparsity=0.5", f"--output={tmp_path / 'other'}"]
    assert main([*other, "--distill.temperature=0"]) == 2
    assert capsys.readouterr().err.endswith("error: distill temperature 0.0: it must be finite and > 0.\n")


class RunPath:
    def __init__(self, path: Path) -> None:
        self.path = path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "wanda", "distill": True}, "^distill: a one-shot method trains nothing"),
        ({"method": "dense", "sparsity": None, "distill": True}, r"give a teacher \(distill\.teacher\), or leave"),
        ({"method": "pins", "distill": True}, "^distill task_loss 0.0, but self_regularization 'milestones' weighs"),
        ({"method": "rpp", "distill": {"hiden": 1}}, "^distill has no option 'hiden'. It has: logits, hidden,"),
        ({"method": "rpp", "distill": "yes"}, "^distill 'yes'; give true, false, or a mapping of options"),
        ({"method": "rpp", "distill": {"cache_gib": 0}}, "^distill cache_gib 0: it must be finite and > 0"),
        ({"method": "rpp", "distill": {"cache": 3}}, "^distill cache 3; give true, false or a folder"),
        ({"method": "rpp", "distill": {"teacher": ""}}, "^distill teacher ''; give a folder or a hub id"),
    ],
)
def test_options_that_do_not_go_together(job: dict[str, Any], tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(**{**job, **options}, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("teacher", "distill", "message"),
    [
        ("heads", {}, "has 4 attention heads, the student 2; scores are compared head by head. Set attention to 0"),
        ("deeper", {}, "^layers 'identity', but the student has 2 layers and the teacher 4"),
        ("minilm", {}, "^Cannot|its vocabulary is not that of the run's model"),
    ],
)
def test_teachers_that_cannot_be(
    job: dict[str, Any], teachers: dict[str, str], tmp_path: Path, teacher: str, distill: Any, message: str
) -> None:
    distill = {**distill, "teacher": teachers.get(teacher, teacher)}
    with pytest.raises(ValueError, match=message):
        prune(**job, method="rpp", distill=distill, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_augmented_run_takes_the_same_steps(job: dict[str, Any], tmp_path: Path) -> None:
    distill = {"hidden": 0, "attention": 0, "embedding": 0}
    run = prune(**job, method="magnitude", distill=distill, augment={"copies": 2}, output=tmp_path / "run")
    assert run.metrics["rows"]["train"] > 160
    assert run.metrics["steps"] == STEPS
    assert run.metrics["dense"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "wanda", "augment": True}, "^augment, but method 'wanda' trains nothing"),
        ({"method": "rpp", "augment": {"by": "glove"}}, "^augment by 'glove'; choose one of neighbours, mlm"),
        ({"method": "rpp", "augment": {"by": "mlm"}}, "^augment by 'mlm' with masked language model None; give"),
        ({"method": "rpp", "augment": {"copies": 0}}, "^augment copies 0: at least 1"),
        ({"method": "rpp", "augment": {"rate": 2.0}}, "^augment rate 2.0: a probability"),
        ({"method": "rpp", "augment": {"by": "mlm", "model": "minilm"}}, "^augment: minilm has not the vocabulary"),
    ],
)
def test_augmentations_that_cannot_be(job: dict[str, Any], tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(**{**job, **options}, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_take_options_in_every_form() -> None:
    assert Settings().distill is None
    assert Settings(distill=False).distill is None
    assert Settings(distill=True).distill == Settings(distill=Distill()).distill == Distill()
    assert Settings(distill={"hidden": 0.5}).distill == Distill(hidden=0.5)  # type: ignore[arg-type]
