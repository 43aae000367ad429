"""What every test relies on: no network, two threads, fixed seeds, real data where there is some."""

from __future__ import annotations

import os

# Before anything imports transformers or tokenizers, which read them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path

import pytest
import torch
from hypothesis import settings

# No deadline: the first example of a test pays for imports. On CI the examples are the same every time.
settings.register_profile("argprune", deadline=None)
settings.register_profile("argprune-ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("argprune-ci" if os.environ.get("CI") else "argprune")


def pytest_configure() -> None:
    """Sums depend on the number of threads in the last bits: use the two that CI has, everywhere."""
    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random state, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real tasks (GLUE, SQuAD, ...) that ARGPRUNE_DATA names; skips where it is not set."""
    folder = os.environ.get("ARGPRUNE_DATA")
    if not folder:
        pytest.skip("needs real data: set ARGPRUNE_DATA to a folder laid out as the how-to on data says")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"ARGPRUNE_DATA is {folder!r}, which is not a folder. Correct or unset it.")
    return path
