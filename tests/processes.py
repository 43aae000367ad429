"""Runs of several processes for tests: how they are started, and models on which sums in another order agree."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import multiprocessing


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
    import argprune.tasks.prune

    load = argprune.models.load_model
    for module in (argprune.tasks.prune, argprune.tasks.distillation):
        module.load_model = lambda *args, **kwargs: load(*args, **kwargs).double()  # type: ignore[attr-defined]


def meet(rank: int, size: int, port: int) -> None:
    """Tell this process what torchrun would: its number, and where to meet the others."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
