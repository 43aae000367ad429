"""Two processes against one: every method, in double precision and without dropout, where sums in another order agree.

In single precision they differ in the last bits, and a tie or a gradient that is nothing but rounding makes more of it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, multiprocessing
from transformers import BertModel

import argprune.models
import argprune.tasks.distillation
import argprune.tasks.prune
from argprune import prune
from argprune.solvers import registry
from argprune.solvers.methods import OneShot
from argprune.tasks.certificate import check_certificate
from argprune.tasks.harness import PruningTrainer
from argprune.tasks.runs import RunDirectory

# Relative to the largest entry of a tensor: 12 steps of sums in another order, in double precision.
CLOSE = 1e-9
# 145 rows in batches of 24: the seventh and last of an epoch has one row, which is one rank's.
SMALL: dict[str, Any] = {
    "quiet": True,
    "train_rows": 145,
    "batch_size": 24,
    "max_steps": 12,
    "max_length": 16,
    "log_every": 4,
    "checkpoint_every": 6,
    "learning_rate": 1e-3,
    "sparsity": 0.75,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "dense": {"sparsity": None},
    "fixed-support": {"sparsity": 0.0},
    "flop": {"method": {"name": "flop", "multiple": 1, "cooldown": 0.5}},
    "svd": {"method": {"name": "svd", "multiple": 1, "initial": "whitened"}},
    "cofi": {"sparsity": 0.5},
    "block-lasso": {"method": {"name": "block-lasso", "width": 4, "structure": "block-rows"}},
    "pins": {"method": {"name": "pins", "every": 2}, "evaluate_each_epoch": True},
}
MORE: dict[str, dict[str, Any]] = {
    "literal": {
        "method": {"name": "block-lasso", "structure": "columns", "literal": True, "strength": 1e-3},
    },
    "admm-gradient": {"method": {"name": "admm", "pull": "gradient", "z_every": 2}},
    "pins-dev": {"method": {"name": "pins", "every": 2, "self_regularization": "dev"}},
    "accumulated": {"method": "rpp", "gradient_accumulation_steps": 3},
}
ONE_SHOT = {"calibration": 32, "unseen": 16}


def jobs() -> dict[str, dict[str, Any]]:
    """Every registered method once, and what else goes another way."""
    found = {}
    for name in registry.registered("methods"):
        options = OPTIONS.get(name, {"method": name})
        found[name] = {"method": name, **options}
        if issubclass(registry.resolve("methods", name), OneShot):
            found[name]["method"] = {"name": name, **ONE_SHOT}
    return found | MORE


def run_jobs(folder: Path, base: Mapping[str, Any], seen: Callable[[str, PruningTrainer], None]) -> None:
    """All jobs into a folder, those that need a reference with one."""
    load = argprune.models.load_model
    for module in (argprune.tasks.prune, argprune.tasks.distillation):
        module.load_model = lambda *args, **kwargs: load(*args, **kwargs).double()  # type: ignore[attr-defined]
    checked = PruningTrainer.check_agreement
    prune(**{**base, "sparsity": None}, method="dense", output=folder / "reference")
    for name, options in jobs().items():

        def look(trainer: PruningTrainer, name: str = name) -> None:
            checked(trainer)
            seen(name, trainer)

        PruningTrainer.check_agreement = look  # type: ignore[method-assign]
        try:
            dense = folder / "reference" if options.get("task", "words") == "words" and name != "dense" else None
            prune(**{**base, **options}, output=folder / name, dense=dense)
        finally:
            PruningTrainer.check_agreement = checked  # type: ignore[method-assign]


def run_rank(rank: int, folder: Path, base: Mapping[str, Any], port: int) -> None:
    """What one of two processes does; the weights that it ends with go to a file."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    found: dict[str, dict[str, Tensor]] = {}

    def look(name: str, trainer: PruningTrainer) -> None:
        assert trainer.model is not None
        found[name] = {key: value.detach().clone() for key, value in trainer.model.state_dict().items()}

    run_jobs(folder, base, look)
    torch.save(found, folder / f"rank{rank}.pt")


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


if __name__ == "__main__":
    base = {"model": "/tmp/hd_play/tiny-bert", "task": "words", "data_dir": "/tmp/hd_play/data", **SMALL}
    for n in ("both","single"): shutil.rmtree("/tmp/hd_play/"+n, ignore_errors=True)
    t=time.time()
    multiprocessing.spawn(run_rank, (Path("/tmp/hd_play/both"), base, free_port()), nprocs=2)
    print(time.time()-t); t=time.time()
    found={}
    torch.set_num_threads(1)
    run_jobs(Path("/tmp/hd_play/single"), base, lambda name, tr: found.update({name: {key: value.detach().clone() for key, value in tr.model.state_dict().items()}}))
    print(time.time()-t)
    torch.save(found, "/tmp/hd_play/single/rank0.pt")
