"""Runs of several processes for tests: how they are started, and models on which sums in another order agree."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from filelock import FileLock
from torch import Tensor, multiprocessing

from argprune import prune
from argprune.tasks.bridge import PruningBridge
from argprune.tasks.runs import RunDirectory


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def join(function: Callable[..., None], arguments: tuple[Any, ...], processes: int) -> None:
    """Run a function in processes of their own."""
    with pytest.MonkeyPatch.context() as patch:
        # Read when torch is imported. As the command does: DDP warns of models all of whose weights have gradients.
        patch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
        patch.setenv("OMP_NUM_THREADS", "1")
        context = multiprocessing.spawn(function, arguments, nprocs=processes, join=False)
    try:
        while not context.join(timeout=1):
            pass
    finally:
        # Whoever waits for what the other never sends; the test's time is limited.
        for process in context.processes:
            process.kill()


def without_dropout(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: 0.0 if "dropout" in key or "pdrop" in key else v for key, v in config.items()}))


def in_double_precision() -> None:
    """From now on, load models in double precision."""
    import argprune.models
    import argprune.tasks.distillation
    import argprune.tasks.job
    import argprune.tasks.prune

    load = argprune.models.load_model
    for module in (argprune.tasks.job, argprune.tasks.prune, argprune.tasks.distillation):
        module.load_model = lambda *args, **kwargs: load(*args, **kwargs).double()  # type: ignore[attr-defined]


def meet(rank: int, size: int, port: int) -> None:
    """Tell this process what torchrun would: its number, and where to meet the others."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def shared_folder(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that one of pytest's workers fills (make), and all of them read."""
    base = factory.getbasetemp()
    # xdist's workers share the folder above theirs: who comes first makes the runs for all.
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    path = shared / name
    with FileLock(shared / f"{name}.lock"):
        if not (path / "done").exists():
            path.mkdir()
            make(path)
            (path / "done").touch()
    return path


def die_and_resume(options: Mapping[str, Any], output: Path, step: int) -> None:
    """A run that dies once, at the end of a step, and is resumed."""
    end = PruningBridge.on_step_end

    def dies(self: PruningBridge, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == step:
            raise KeyboardInterrupt
        end(self, args, state, control, **more)

    PruningBridge.on_step_end = dies  # type: ignore[method-assign]
    with suppress(KeyboardInterrupt):
        prune(**options, output=output)
    PruningBridge.on_step_end = end  # type: ignore[method-assign]
    assert not RunDirectory(output).finished
    prune(**options, output=output, resume=True)


class Threads:
    """torch.distributed's calls among threads, each of which is a rank: processes would take too long to start."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.own = threading.local()
        # A rank that waits for what never comes fails, with a BrokenBarrierError in all of them.
        self.barrier = threading.Barrier(ranks, timeout=20)
        self.given: list[Any] = [None] * ranks

    def swap(self, value: Any) -> list[Any]:
        self.given[self.own.rank] = value
        self.barrier.wait()
        result = list(self.given)
        self.barrier.wait()
        return result

    def all_gather_object(self, result: list[Any], value: Any, group: None = None) -> None:
        result[:] = self.swap(value)

    def all_reduce(self, counts: Tensor, group: None = None) -> None:
        counts.copy_(torch.stack(self.swap(counts.clone())).sum(0))

    def run(self, function: Callable[[int], Any]) -> list[Any]:
        def of_rank(rank: int) -> Any:
            self.own.rank = rank
            try:
                return function(rank)
            except BaseException:
                # The others must not wait for this one.
                self.barrier.abort()
                raise

        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(self.ranks) as pool:
            patch.setattr(dist, "get_rank", lambda group=None: self.own.rank)
            patch.setattr(dist, "get_world_size", lambda group=None: self.ranks)
            patch.setattr(dist, "get_backend", lambda group=None: "gloo")
            patch.setattr(dist, "all_gather_object", self.all_gather_object)
            patch.setattr(dist, "all_reduce", self.all_reduce)
            return list(pool.map(of_rank, range(self.ranks)))
