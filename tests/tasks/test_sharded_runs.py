"""Sharded weights (FSDP2) on two processes against one: in double precision, where sums in another order agree."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import die_and_resume, free_port, in_double_precision, join, meet, shared_folder, without_dropout
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from argprune import prune
from argprune.solvers import registry
from argprune.tasks.certificate import check_certificate
from argprune.tasks.kinds import DataToText, Described
from argprune.tasks.language import Language, make_causal_lm
from argprune.tasks.options import make_method, plan
from argprune.tasks.ranks import Ranks, close_ranks
from argprune.tasks.runs import RunDirectory
from argprune.tasks.settings import Settings
from argprune.tasks.sharded_trainer import ShardedTrainer
from argprune.tasks.sharding import check_task
from argprune.tasks.texts import SPLITS

# All runs are made before the first test.
pytestmark = pytest.mark.timeout(600)
# Of entries of order 0.1: eight steps of sums in another order, in double precision.
CLOSE = 1e-12
# 145 rows in batches of 24: the seventh and last of an epoch has one row, which is one process's. 40 rows of an
# evaluation in batches of 96 leave the second process without one.
SMALL: dict[str, Any] = {
    "task": "words",
    "quiet": True,
    "train_rows": 145,
    "eval_rows": 40,
    "batch_size": 24,
    "max_steps": 8,
    "max_length": 16,
    "log_every": 4,
    "checkpoint_every": 50,
    "learning_rate": 1e-3,
    "sparsity": 0.75,
    "precision": "fp32",
}
JOBS: dict[str, dict[str, Any]] = {
    "dense": {"method": "dense", "sparsity": None},
    "fixed-support": {"method": "fixed-support", "sparsity": 0.0},
    "magnitude": {"method": {"name": "magnitude", "scope": "global", "nested": False, "every": 2}, "biases": True},
    "rows": {"method": {"name": "magnitude", "structure": "rows", "every": 3}, "sparsity": 0.5},
    "block-lasso": {"method": {"name": "block-lasso", "structure": "block-rows", "width": 8}},
    "rpp": {"method": "rpp", "evaluate_each_epoch": True, "gradient_accumulation_steps": 3},
    "proximal": {"method": {"name": "proximal", "regularizer": {"name": "mcp", "gamma": 2.0}, "metric": "metric"}},
    "pins": {"method": {"name": "pins", "every": 2, "self_regularization": "held-out", "scope": "matrix"}},
    "platon": {"method": {"name": "platon", "every": 2}},
    "movement": {"method": {"name": "movement", "every": 2}},
    "soft-movement": {"method": {"name": "soft-movement", "every": 2}},
    # Tied embeddings, and matrices that are stored transposed.
    "language": {
        "method": {"name": "pins", "every": 2},
        "task": "prose",
        "model": "language",
        "train_rows": None,
        "eval_rows": None,
    },
}
REFUSED = sorted(
    {
        name
        for name in registry.registered("methods")
        if make_method(name, 0.0 if name in ("dense", "fixed-support") else 0.5, {}).needs_whole_weights
    }
)


def run_jobs(place: Path, folder: Path, base: Mapping[str, Any]) -> None:
    """Carry out all jobs in folders of `place`."""
    prune(**{**base, "sparsity": None}, method="dense", output=place / "reference")
    for name, options in JOBS.items():
        own = {**options}
        if "model" in own:
            own["model"] = str(folder / own["model"])
        shared = {"task", "model"}.isdisjoint(own) and name != "dense"
        prune(**{**base, **own}, output=place / name, dense=place / "reference" if shared else None)


def run_alone(rank: int, folder: Path, base: Mapping[str, Any]) -> None:
    """What one process does."""
    torch.set_num_threads(1)
    in_double_precision()
    run_jobs(folder / "one", folder, base)


def run_rank(rank: int, folder: Path, base: Mapping[str, Any], port: int) -> None:
    """What one of two processes does; what it holds in memory goes to a file."""
    torch.set_num_threads(1)
    # Trainer collects garbage at every start, and would look through all that was imported.
    gc.freeze()
    meet(rank, 2, port)
    base = {**base, "fsdp": True}
    resume_what_died(folder, base)
    in_double_precision()
    held: list[dict[str, int]] = []
    clip = ShardedTrainer._clip_grad_norm

    def look(self: ShardedTrainer, model: Any) -> Tensor:
        trainer, norm = self, clip(self, model)
        if trainer.state.global_step == 5:
            held.append(held_by(trainer, model))
        return norm

    ShardedTrainer._clip_grad_norm = look  # type: ignore[method-assign]
    run_jobs(folder / "two", folder, base)
    (folder / f"held{rank}.json").write_text(json.dumps(held))
    close_ranks()


def alive() -> int:
    """How many floating-point entries a process has in memory, whoever holds them."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor):
            local = thing.to_local() if isinstance(thing, DTensor) else thing
            if local.is_floating_point():
                storage = local.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes() // local.element_size()
    return sum(found.values())


def held_by(trainer: ShardedTrainer, model: torch.nn.Module) -> dict[str, int]:
    """How many entries a process has: of the model, in its parameters, their gradients and the optimizer's moments."""
    assert trainer.optimizer is not None
    sharded: list[Any] = list(model.parameters())
    moments = [v for values in trainer.optimizer.state.values() for v in values.values() if v.dim()]
    own = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    return {
        "model": sum(p.numel() for p in sharded),
        "parameters": sum(p.to_local().numel() for p in sharded),
        "gradients": sum(p.grad.to_local().numel() for p in sharded if p.grad is not None),
        "moments": sum(moment.numel() for moment in moments),
        "alive": alive(),
        "stepped": sum(p.numel() for p in own),
        # What is stepped on is what the model has: the same memory.
        "elsewhere": sum(p.numel() for p in own if p.data_ptr() not in {s.to_local().data_ptr() for s in sharded}),
    }


def resume_what_died(folder: Path, base: Mapping[str, Any]) -> None:
    """A run with dropout, whole, and one that dies between checkpoints and is resumed."""
    options = {**base, "method": {"name": "pins", "every": 2}, "model": str(folder / "dropout"), "checkpoint_every": 3}
    options |= {"dense": folder / "dropout-dense", "keep_checkpoints": True, "precision": "bf16"}
    options |= {"max_steps": 6, "log_every": 3}
    prune(**options, output=folder / "whole")
    die_and_resume(options, folder / "resumed", 5)


@pytest.fixture(scope="module")
def folder(tiny_model: str, tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, and of the runs on them by one process (`one`) and by two (`two`)."""
    return shared_folder(tmp_path_factory, "sharded", lambda path: make_runs(path, tiny_model, tiny_data))


def make_runs(path: Path, tiny_model: str, tiny_data: str) -> None:
    """What `folder` holds."""
    config = BertConfig.from_pretrained(tiny_model)
    # Rows that two processes cannot share evenly, and one row.
    config.intermediate_size, config.type_vocab_size, config.num_labels = 63, 1, 2
    torch.manual_seed(1)
    for name in ("dropout", "plain"):
        BertForSequenceClassification(config).save_pretrained(path / name)
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(path / name)
    shutil.copytree(tiny_data, path / "data")
    texts = [" ".join(f"w{(i * j) % 60}" for j in range(20)) for i in range(60)]
    (path / "data" / "prose").mkdir()
    for split in ("train", "valid", "test"):
        (path / "data" / "prose" / f"{split}.txt").write_text("\n".join(texts))
    language = Language("words", dict.fromkeys(SPLITS, texts))
    make_causal_lm(language, path / "language", vocab_size=301, layers=2, width=16, heads=2, positions=32)
    for name in ("plain", "language"):
        without_dropout(path / name)
    base = {**SMALL, "model": str(path / "plain"), "data_dir": str(path / "data")}
    join(run_rank, (path, base, free_port()), 2)
    join(run_alone, (path, base), 1)


@pytest.mark.parametrize("name", JOBS)
def test_shards_end_as_one_process_does(name: str, folder: Path) -> None:
    two, one = (load_file(folder / where / name / "model" / "model.safetensors") for where in ("two", "one"))
    assert two.keys() == one.keys()
    for key, value in two.items():
        assert value.dtype == torch.float64
        assert (value - one[key]).abs().max() <= CLOSE, f"{key} differs from one process"
    masks, expected = (load_file(folder / where / name / "masks.safetensors") for where in ("two", "one"))
    assert masks.keys() == expected.keys()
    for key, mask in masks.items():
        assert torch.equal(mask, expected[key]), f"the mask of {key} differs from one process"
        assert not two[key][~mask].any()


@pytest.mark.parametrize("name", JOBS)
def test_shards_make_an_ordinary_run(name: str, folder: Path) -> None:
    one, two = folder / "one" / name, folder / "two" / name
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    assert {path.name for path in (one / "model").iterdir()} == {path.name for path in (two / "model").iterdir()}
    assert (one / "model" / "config.json").read_text() == (two / "model" / "config.json").read_text()
    assert check_certificate(two)
    expected, metrics = RunDirectory(one).metrics(), RunDirectory(two).metrics()
    assert (metrics["versions"]["processes"], expected["versions"]["processes"]) == ("2", "1")
    assert (metrics["config"]["fsdp"], expected["config"]["fsdp"]) == (True, None)
    for key in ("sparsity", "rows", "matrices", "compression"):
        assert metrics[key] == expected[key]
    for split, scores in expected["pruned"].items():
        assert metrics["pruned"][split] == pytest.approx(scores, rel=1e-6)
    assert close(metrics["method_report"], expected["method_report"])
    logs, lines = ((path / "log.jsonl").read_text().splitlines() for path in (one, two))
    for line, other in zip(map(json.loads, logs), map(json.loads, lines), strict=True):
        assert line.keys() == other.keys()
        for key, value in line.items():
            if not isinstance(value, str | None) and not key.endswith(("_second", "runtime", "seconds")):
                # Sums that Trainer logs are of single precision.
                assert other[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def close(found: Any, expected: Any) -> bool:
    """Whether reports agree, numbers up to the order of sums; costs are kept in single precision."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    return bool(found == expected if isinstance(expected, str | None) else found == pytest.approx(expected, rel=1e-4))


def test_each_process_holds_half(folder: Path) -> None:
    held = [json.loads((folder / f"held{rank}.json").read_text()) for rank in (0, 1)]
    assert len(held[0]) == len(held[1]) == len(JOBS) + 2
    for first, second in zip(*held, strict=True):
        total = first["model"]
        for what in ("parameters", "stepped"):
            assert first[what] + second[what] == total
        for own in (first, second):
            assert own["parameters"] < 0.52 * total
            assert own["gradients"] <= own["parameters"]
            assert own["moments"] <= 2 * own["parameters"]
            assert own["elsewhere"] == 0
    for rank in (0, 1):
        # Of a dense run, before anything else was trained: half of the weights, the gradients and two moments each.
        assert held[rank][0]["alive"] < 2.05 * held[rank][0]["model"]


def test_a_resumed_run_ends_with_the_same_bits(folder: Path) -> None:
    whole, resumed = (load_file(folder / name / "model" / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    logs = [(folder / name / "log.jsonl").read_text() for name in ("whole", "resumed")]
    assert logs[0] == logs[1] != ""


def test_checkpoints_are_whole(folder: Path) -> None:
    checkpoint = folder / "whole" / "checkpoint-3"
    model = BertForSequenceClassification.from_pretrained(checkpoint)
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    shapes = sorted(tuple(values["exp_avg"].shape) for values in saved["state"].values())
    assert shapes == sorted(tuple(parameter.shape) for parameter in model.parameters())
    teacher = load_file(checkpoint / "teacher.safetensors")
    assert {name: value.shape for name, value in teacher.items()} == {
        name: parameter.shape for name, parameter in model.named_parameters()
    }
    window = load_file(checkpoint / "method.safetensors")
    assert window["window.bert.encoder.layer.0.intermediate.dense.weight"].shape == (63, 32)


def test_methods_that_need_whole_weights() -> None:
    assert {"l0", "cofi", "flop", "svd", "admm", "sparsebert", "wanda", "sparsegpt"} <= set(REFUSED)


@pytest.mark.parametrize("name", REFUSED)
def test_other_methods_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^fsdp: method '{name}' needs whole weights \(.*\); leave fsdp out"):
        plan({"method": name, "sparsity": 0.5, "fsdp": True})


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"method": {"name": "magnitude", "structure": "columns"}}, r"'magnitude' needs whole .*'columns' ties"),
        ({"method": {"name": "block-lasso", "structure": "elements"}}, "method 'rpp' does the same"),
        ({"method": {"name": "block-lasso", "structure": "rows", "literal": True, "strength": 1.0}}, "literal puts"),
        ({"method": {"name": "proximal", "regularizer": "group_lasso"}}, r"regularizer 'group_lasso' ties entries"),
        ({"method": {"name": "proximal", "reweighting": {"name": "quantile", "quantile": 0.5}}}, "ranks all entries"),
        ({"method": "magnitude", "distill": True}, "^fsdp: a teacher is not sharded"),
        ({"method": "magnitude", "fsdp": "yes"}, "^fsdp 'yes'; give true or false"),
    ],
)
def test_what_ties_rows_is_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        plan({"sparsity": 0.5, "fsdp": True, **options})


def test_one_process_is_refused(folder: Path, tmp_path: Path) -> None:
    options = {**SMALL, "model": str(folder / "plain"), "data_dir": str(folder / "data")}
    with pytest.raises(ValueError, match=r"^fsdp: there is one process"):
        prune(**options, method="magnitude", fsdp=True, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tasks_of_written_texts_are_refused() -> None:
    rows = [Described("name[a]", ("a is here",))]
    task = DataToText("menus", dict.fromkeys(SPLITS, rows), "causal-lm")
    with pytest.raises(ValueError, match=r"^fsdp: task 'menus' is measured by texts that the model writes"):
        check_task(Settings(task="menus", fsdp=True), task, Ranks(0, 2))
    check_task(Settings(task="menus"), task, Ranks(0, 2))


def test_the_option_leaves_old_configurations_as_they_were() -> None:
    assert Settings().fsdp is Settings(fsdp=False).fsdp is None


def test_a_failure_of_one_process_ends_the_command_of_all(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "breaking.py").write_text(
        "import os\n"
        "from argprune.solvers.methods import Dense\n"
        "class Breaks(Dense):\n"
        "    def after_step(self, step, learning_rate):\n"
        "        if step == 3 and os.environ['RANK'] == '1':\n"
        "            self._weights[0].parameter.data.fill_(float('nan'))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    options = ["--model", str(folder / "plain"), "--task", "words", "--data-dir", str(folder / "data"), "--fsdp"]
    small = ["--max-steps", "6", "--batch-size", "24", "--max-length", "16", "--checkpoint-every", "2"]
    what = ["--method", "breaking:Breaks", "--sparsity", "0", "--output", str(tmp_path / "run")]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, "-m", "argprune", "prune", *options, *small, *what],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 1
    [line] = re.findall(r"^argprune: .*", done.stderr, re.MULTILINE)
    assert "NaN" in line
    assert RunDirectory(tmp_path / "run").last_checkpoint() == tmp_path / "run" / "checkpoint-2"
    assert not RunDirectory(tmp_path / "run").finished
