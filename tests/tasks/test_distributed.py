"""Two processes against one: every method, in double precision and without dropout, where sums in another order agree.

In single precision they differ in the last bits, and a tie or a gradient that is nothing but rounding makes more of it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import die_and_resume, free_port, in_double_precision, join, meet, shared_folder, without_dropout
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from argprune import prune
from argprune.models import load_tokenizer
from argprune.solvers import registry
from argprune.solvers.methods import OneShot
from argprune.tasks.certificate import check_certificate
from argprune.tasks.harness import PruningTrainer
from argprune.tasks.language import Language, make_causal_lm
from argprune.tasks.ranks import close_ranks
from argprune.tasks.runs import RunDirectory
from argprune.tasks.texts import SPLITS

# All runs are made before the first test.
pytestmark = pytest.mark.timeout(600)
# Of entries of order 0.1: a dozen steps of sums in another order, in double precision. Where something is computed in
# single precision whatever the weights are (solvers, gates, the loss of language models), more.
CLOSE = 1e-12
LESS_CLOSE = {"obs": 1e-6, "flop": 1e-8, "language": 1e-6}
# 145 rows in batches of 24: the seventh and last of an epoch has one row, which is one rank's.
SMALL: dict[str, Any] = {
    "task": "words",
    "quiet": True,
    "train_rows": 145,
    "eval_rows": 40,
    "batch_size": 24,
    "max_steps": 10,
    "max_length": 16,
    "log_every": 5,
    "checkpoint_every": 50,
    "learning_rate": 1e-3,
    "sparsity": 0.75,
}
ONE_SHOT = {"calibration": 32, "unseen": 16}
# Where a method by itself would not do on weights this small, or has more to show.
OPTIONS: dict[str, dict[str, Any]] = {
    "dense": {"sparsity": None},
    "fixed-support": {"sparsity": 0.0},
    "flop": {"method": {"name": "flop", "multiple": 1, "cooldown": 0.5}},
    "svd": {"method": {"name": "svd", "multiple": 1, "initial": "whitened"}},
    "cofi": {"sparsity": 0.5},
    "block-lasso": {"method": {"name": "block-lasso", "width": 4, "structure": "block-rows"}},
    "pins": {"method": {"name": "pins", "every": 2}, "evaluate_each_epoch": True},
}
# What goes another way through the harness.
MORE: dict[str, dict[str, Any]] = {
    "literal": {"method": {"name": "block-lasso", "structure": "columns", "literal": True, "strength": 1e-3}},
    "gradient-pull": {"method": {"name": "admm", "pull": "gradient", "z_every": 2}},
    "held-out": {"method": {"name": "pins", "every": 2, "self_regularization": "held-out"}},
    "accumulated": {"method": "rpp", "gradient_accumulation_steps": 3},
    # Losses that are means over tokens, of which every part has another number.
    "tags": {"method": "magnitude", "task": "tags", "gradient_accumulation_steps": 2},
    "language": {"method": "magnitude", "task": "prose", "model": "language", "train_rows": None, "eval_rows": None},
    "wider-teacher": {"method": "magnitude", "distill": {"teacher": "teacher", "layers": "uniform"}},
}
RUNS = [*registry.registered("methods"), *MORE]


def jobs(folder: Path) -> dict[str, dict[str, Any]]:
    """Options of runs by name: every registered method, and more; folder: where the models are."""
    found: dict[str, dict[str, Any]] = {}
    for name in registry.registered("methods"):
        one_shot = issubclass(registry.resolve("methods", name), OneShot)
        found[name] = {"method": {"name": name, **(ONE_SHOT if one_shot else {})}, **OPTIONS.get(name, {})}
    for name, options in MORE.items():
        found[name] = {**options}
        if "model" in options:
            found[name]["model"] = str(folder / options["model"])
        if "distill" in options:
            found[name]["distill"] = {**options["distill"], "teacher": str(folder / options["distill"]["teacher"])}
    return found


def run_jobs(place: Path, folder: Path, base: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Carry out all jobs in folders of `place`; what this process's model is at the end of each."""
    found: dict[str, dict[str, Tensor]] = {}
    check = PruningTrainer.check_agreement
    prune(**{**base, "sparsity": None}, method="dense", output=place / "reference")
    for name, options in jobs(folder).items():

        def look(trainer: PruningTrainer, name: str = name) -> None:
            check(trainer)
            assert trainer.model is not None
            found[name] = {key: value.detach().clone() for key, value in trainer.model.state_dict().items()}

        PruningTrainer.check_agreement = look  # type: ignore[method-assign, assignment]
        shared = {"task", "objective", "model"}.isdisjoint(options) and name != "dense"
        prune(**{**base, **options}, output=place / name, dense=place / "reference" if shared else None)
    PruningTrainer.check_agreement = check  # type: ignore[method-assign]
    return found


def run_alone(rank: int, folder: Path, base: Mapping[str, Any]) -> None:
    """What one process does; its weights go to a file."""
    torch.set_num_threads(1)
    in_double_precision()
    torch.save(run_jobs(folder / "one", folder, base), folder / "alone.pt")


def run_rank(rank: int, folder: Path, base: Mapping[str, Any], port: int) -> None:
    """What one of two processes does; its weights go to a file."""
    torch.set_num_threads(1)
    meet(rank, 2, port)
    resume_what_died(folder, base)
    in_double_precision()
    torch.save(run_jobs(folder / "two", folder, base), folder / f"rank{rank}.pt")
    close_ranks()


def resume_what_died(folder: Path, base: Mapping[str, Any]) -> None:
    """A run with dropout, whole, and one that dies between checkpoints and is resumed."""
    options = {**base, "method": "l0", "model": str(folder / "dropout"), "checkpoint_every": 5}
    options |= {"dense": folder / "dropout-dense", "keep_checkpoints": True}
    prune(**options, output=folder / "whole")
    die_and_resume(options, folder / "resumed", 7)


@pytest.fixture(scope="module")
def folder(
    tiny_model: str, tiny_data: str, tmp_path_factory: pytest.TempPathFactory, write_rows: Callable[..., None]
) -> Path:
    """A folder of models, and of the runs on them by one process (`one`) and by two (`two`)."""
    return shared_folder(tmp_path_factory, "processes", lambda path: make_runs(path, tiny_model, tiny_data, write_rows))


def make_runs(path: Path, tiny_model: str, tiny_data: str, write_rows: Callable[..., None]) -> None:
    """What `folder` holds."""
    shutil.copytree(tiny_model, path / "dropout")
    shutil.copytree(tiny_model, path / "plain")
    shutil.copytree(tiny_data, path / "data")
    config = BertConfig.from_pretrained(tiny_model)
    config.hidden_size, config.num_hidden_layers, config.num_labels = 48, 4, 2
    torch.manual_seed(1)
    BertForSequenceClassification(config).save_pretrained(path / "teacher")
    load_tokenizer(tiny_model).save_pretrained(path / "teacher")
    rows = [
        {"tokens": [f"w{(i * 7 + j * 3) % 60}" for j in range(2 + i % 7)], "tags": ["O", "B-X", "O", "B-Y"] * 2}
        for i in range(200)
    ]
    for row in rows:
        row["tags"] = row["tags"][: len(row["tokens"])]
    for split, part in {"train": rows[:145], "dev": rows[145:170], "test": rows[170:]}.items():
        write_rows(path / "data" / "tags" / f"{split}.jsonl.gz", part)
    (path / "data" / "prose").mkdir()
    for split in ("train", "valid", "test"):
        lines = [" ".join(f"w{(i * j) % 60}" for j in range(3 + i % 9)) for i in range(90)]
        (path / "data" / "prose" / f"{split}.txt").write_text("\n".join(lines))
    texts = [" ".join(f"w{(i * j) % 60}" for j in range(20)) for i in range(20)]
    make_causal_lm(
        Language("words", dict.fromkeys(SPLITS, texts)),
        path / "language",
        vocab_size=300,
        layers=2,
        width=16,
        heads=2,
        positions=32,
    )
    for name in ("plain", "language"):
        without_dropout(path / name)
    base = {**SMALL, "model": str(path / "plain"), "data_dir": str(path / "data")}
    join(run_rank, (path, base, free_port()), 2)
    join(run_alone, (path, base), 1)


@pytest.fixture(scope="module")
def weights(folder: Path) -> dict[str, dict[str, dict[str, Tensor]]]:
    """The weights that each process ended its runs with."""
    return {name: torch.load(folder / f"{name}.pt") for name in ("alone", "rank0", "rank1")}


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_end_as_one_does(name: str, folder: Path, weights: Any) -> None:
    alone, first, second = (weights[who][name] for who in ("alone", "rank0", "rank1"))
    assert alone.keys() == first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), f"{key} differs between ranks"
        assert (value - alone[key]).abs().max() <= LESS_CLOSE.get(name, CLOSE), f"{key} differs from one process"
    masks, expected = (load_file(folder / where / name / "masks.safetensors") for where in ("two", "one"))
    assert masks.keys() == expected.keys()
    assert all(torch.equal(mask, expected[key]) for key, mask in masks.items())
    for key, mask in masks.items():
        if key in first and first[key].shape == mask.shape:
            assert not first[key][~mask].any()
            assert not second[key][~mask].any()


@pytest.mark.parametrize("name", RUNS)
def test_the_first_process_writes_one_run(name: str, folder: Path) -> None:
    one, two = folder / "one" / name, folder / "two" / name
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    assert check_certificate(two)
    expected, metrics = RunDirectory(one).metrics(), RunDirectory(two).metrics()
    assert (metrics["versions"]["processes"], expected["versions"]["processes"]) == ("2", "1")
    assert metrics["sparsity"] == expected["sparsity"]
    assert metrics["rows"] == expected["rows"]
    for split, scores in expected["pruned"].items():
        # The whole split's, each batch as one process has it; losses of float32 models are as close as these.
        assert metrics["pruned"][split] == pytest.approx(scores, rel=1e-6)
    logs, lines = ((path / "log.jsonl").read_text().splitlines() for path in (one, two))
    for line, other in zip(map(json.loads, logs), map(json.loads, lines), strict=True):
        assert line.keys() == other.keys()
        for key, value in line.items():
            if not isinstance(value, str | None) and not key.endswith(("_second", "runtime", "seconds")):
                # Sums that Trainer logs are of single precision.
                assert other[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def test_a_resumed_run_ends_with_the_same_bits(folder: Path) -> None:
    whole, resumed = (load_file(folder / name / "model" / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    logs = [(folder / name / "log.jsonl").read_text() for name in ("whole", "resumed")]
    assert logs[0] == logs[1] != ""


def test_processes_have_dropout_of_their_own(folder: Path) -> None:
    states = [torch.load(folder / "whole" / "checkpoint-5" / f"rng_state_{r}.pth", weights_only=False) for r in (0, 1)]
    assert not torch.equal(states[0]["cpu"], states[1]["cpu"])


def launch(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`torchrun -m argprune` on two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    options = ["--model", str(folder / "plain"), "--task", "words", "--data-dir", str(folder / "data")]
    small = ["--max-steps", "6", "--batch-size", "24", "--max-length", "16", "--checkpoint-every", "2"]
    return subprocess.run(
        [*command, "-m", "argprune", "prune", *options, *small, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_command_speaks_once(folder: Path, tmp_path: Path) -> None:
    done = launch(folder, "--method", "magnitude", "--sparsity", "0.5", "--output", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Run directory:") == 1
    assert "Warning" not in done.stderr
    again = launch(folder, "--method", "magnitude", "--sparsity", "0.5", "--output", str(tmp_path / "run"))
    assert again.returncode == 1
    assert re.findall(r"^argprune: .*", again.stderr, re.MULTILINE) == [
        f"argprune: error: Output {tmp_path / 'run'} holds a finished run; give --overwrite to replace it."
    ]


def test_a_failure_of_one_process_ends_all(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "breaking.py").write_text(
        "import os\n"
        "from argprune.solvers.methods import Magnitude\n"
        "class Breaks(Magnitude):\n"
        "    def after_step(self, step, learning_rate):\n"
        "        super().after_step(step, learning_rate)\n"
        "        if step == 3 and os.environ['RANK'] == '1':\n"
        "            self._weights[0].parameter.data.fill_(float('nan'))\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    options = ["--method", "breaking:Breaks", "--sparsity", "0.5", "--output", str(tmp_path / "run")]
    done = launch(folder, *options, PYTHONPATH=path)
    assert done.returncode == 1
    [line] = re.findall(r"^argprune: .*", done.stderr, re.MULTILINE)
    assert "NaN" in line or "differ after step 4" in line
    assert not RunDirectory(tmp_path / "run").finished
