"""A short job on the tiny model, a dense run of it, and a script in place of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from fake_runs import FAKE

from argprune import prune


@pytest.fixture
def job(tiny_model: str, tiny_data: str) -> dict[str, Any]:
    return {
        "model": tiny_model,
        "task": "words",
        "data_dir": tiny_data,
        "quiet": True,
        "max_steps": 20,
        "batch_size": 8,
        "max_length": 16,
        "log_every": 5,
        "learning_rate": 1e-3,
    }


@pytest.fixture(scope="module")
def dense(tiny_model: str, tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dense") / "run"
    options: dict[str, Any] = {"max_steps": 20, "batch_size": 8, "max_length": 16, "learning_rate": 1e-3}
    prune(tiny_model, "words", data_dir=tiny_data, method="dense", output=path, quiet=True, **options)
    return path


@pytest.fixture(scope="session")
def fake(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command in place of `python -m argprune`."""
    script = tmp_path_factory.mktemp("fake") / "argprune.py"
    script.write_text(FAKE)
    return [sys.executable, "-P", str(script)]
