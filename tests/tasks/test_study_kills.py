"""Real studies of a tiny model: killed at random, and on a Ray cluster, they end as one that was left alone."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from argprune.cli import main
from argprune.tasks.studies import Ended, Job, collect, load_study, run_study
from argprune.tasks.studies.ray_executor import RayExecutor

ROOT = Path(__file__).resolve().parents[2]


class Here:
    """An executor that runs every job in this process, where everything is imported already."""

    slots = 1

    def start(self, job: Job) -> None:
        with job.log.open("a") as log, contextlib.redirect_stderr(log), contextlib.redirect_stdout(log):
            self.ended = Ended(job.name, main(job.arguments), job.log.read_text())

    def wait(self, timeout: float) -> Ended:
        return self.ended

    def stop(self) -> None: ...


@pytest.fixture(scope="module")
def work(tiny_model: str, tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with study.yaml, and the study as it is uninterrupted in `whole`."""
    folder = tmp_path_factory.mktemp("kills")
    base = {"model": tiny_model, "task": "words", "data_dir": tiny_data, "max_steps": 40, "batch_size": 8}
    study = {
        "output": "runs",
        "base": {**base, "max_length": 16, "checkpoint_every": 10, "log_every": 5, "learning_rate": 1e-3},
        "grid": {"method": "rpp", "sparsity": 0.5, "seed": [0, 1]},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    (folder / "whole").mkdir()
    with contextlib.chdir(folder / "whole"):
        loaded = load_study(folder / "study.yaml")
        assert run_study(loaded, executor=Here()).ok
        assert len(collect(loaded, "table.csv")) == 4
    return folder


def compare(work: Path, *options: str) -> list[str]:
    """The lines of scripts/kill_study.py, which must find everything equal."""
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT / "src")])
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "kill_study.py"), str(work / "study.yaml"), str(work), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()


# Most of a minute on two idle cores: every run and every start of the study imports torch and transformers.
@pytest.mark.timeout(900)
def test_killed_three_times_a_study_ends_as_if_it_were_not(work: Path) -> None:
    lines = compare(work, "--kills", "3", "--seed", "1")
    assert sum(line.startswith("kill ") for line in lines) == 3
    assert lines[-1] == "killed: all 4 runs equal"


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `ray`")
@pytest.mark.timeout(600)
def test_ray_measures_the_same(work: Path) -> None:
    assert compare(work, "--only-ray")[-1] == "ray: all 4 runs equal"


@pytest.mark.parametrize("bad", [{"jobs": 0}, {"cpus": 0}, {"cpus": 1.5}, {"gpus": -1}, {"gpus": 1.5}])
def test_the_ray_executor_refuses(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"RayExecutor: {next(iter(bad))}"):
        RayExecutor(**bad)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"backend ray needs Ray: pip install 'argprune\[ray\]'"):
        RayExecutor()
