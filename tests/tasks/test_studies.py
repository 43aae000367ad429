"""Studies: what runs when, and what survives being stopped.

The runs are those of `fake_runs`.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from fake_runs import BASE, Instant, metrics, run, study
from rich.console import Console

from argprune.tasks.runs import DiskFull
from argprune.tasks.studies import (
    Job,
    LocalExecutor,
    Study,
    progress_for,
    run_study,
)
from argprune.tasks.studies.executor import Busy


def test_a_study_runs(tmp_path: Path, fake: list[str]) -> None:
    the_study = study(tmp_path, {"sparsity": [0.5, 0.9], "fake": "be alone"})
    outcome = run(the_study, fake)
    assert outcome.ok
    assert str(outcome) == "3 finished, 0 failed, 0 left"
    dense, one, _ = outcome.finished
    assert dense.startswith("dense-s0-seed0-")
    written = yaml.safe_load((the_study.output / f"{one}.yaml").read_text())
    assert written == {**BASE, "seed": 0, "fake": "be alone", "dense": str(the_study.output / dense)}
    assert yaml.safe_load((the_study.output / f"{dense}.yaml").read_text())["dense"] is None
    log = (the_study.output / f"{one}.log").read_text().splitlines()
    assert log[0].startswith("$ ")
    assert log[1] == "on standard output"
    assert (the_study.output / "study.yaml").read_text() == the_study.to_yaml()


def test_what_is_finished_is_skipped(tmp_path: Path) -> None:
    first = Instant()
    assert run_study(study(tmp_path, {"sparsity": [0.5, 0.9]}), executor=first).ok
    second = Instant()
    changed = study(tmp_path, {"sparsity": [0.9, 0.95]})
    assert run_study(changed, executor=second).ok
    (name,) = second.started
    assert name.startswith("magnitude-s0.95-")
    assert (changed.output / "study.yaml").read_text() == changed.to_yaml()


def test_order_and_slots(tmp_path: Path) -> None:
    executor = Instant(slots=3)
    the_study = study(tmp_path, {"method": ["rpp", "magnitude"], "seed": [0, 1]})
    assert run_study(the_study, executor=executor).ok
    assert {name.partition("-")[0] for name in executor.started[:2]} == {"dense"}
    # The reference of seed 1 ended first: its points start while that of seed 0 still runs.
    assert all("seed1" in name for name in executor.started[2:4])


def test_side_by_side(tmp_path: Path, fake: list[str]) -> None:
    the_study = study(tmp_path, {"sparsity": [0.5, 0.9], "fake": "meet another"})
    assert run(the_study, fake, jobs=2).ok


@pytest.mark.parametrize(
    ("fails", "status", "error"),
    [
        ("fail", 1, "it [broke]"),
        ("usage", 2, "no such option"),
        ("fail silently", 1, "exit status 1, and nothing printed"),
        ("forget", 0, "exit status 0, but no metrics.json"),
    ],
)
def test_failures_are_recorded_and_the_others_go_on(
    tmp_path: Path, fake: list[str], fails: str, status: int, error: str
) -> None:
    the_study = study(tmp_path, {"fake": [fails, "finish"]})
    outcome = run(the_study, fake)
    ((name, message),) = outcome.failed.items()
    assert (message, len(outcome.finished), outcome.left) == (error, 2, ())
    assert not outcome.ok
    record = json.loads((the_study.output / name / "error.json").read_text())
    assert (record["error"], record["exit_status"]) == (error, status)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["time"])
    idle = Instant()
    assert run_study(the_study, executor=idle) == outcome
    assert not idle.started, "what failed is not tried again by itself"


def test_retry_resumes_what_failed(tmp_path: Path, fake: list[str]) -> None:
    the_study = study(tmp_path, {"fake": "fail once"})
    (name,) = run(the_study, fake).failed
    assert run(the_study, fake, retry=True).ok
    assert metrics(the_study, name)["method_report"]["resumed"]
    assert not (the_study.output / name / "error.json").exists()


def test_points_fail_with_their_reference_and_recover_with_it(tmp_path: Path) -> None:
    the_study = study(tmp_path, {"sparsity": [0.5, 0.9], "seed": [0, 1]})
    outcome = run_study(the_study, executor=Instant(failing="dense-s0-seed1"))
    assert len(outcome.failed) == 3
    reference, *others = outcome.failed
    assert outcome.failed[reference] == "boom"
    assert all(outcome.failed[name] == f"dense reference {reference} failed: boom" for name in others)
    assert run_study(the_study, executor=Instant()) == outcome
    # The reference alone is put right; its points were never started, and so need no retry.
    (the_study.output / reference / "error.json").unlink()
    assert run_study(the_study, executor=Instant()).ok


def test_killed_points_are_left_and_resume(tmp_path: Path, fake: list[str]) -> None:
    the_study = study(tmp_path, {"fake": ["be killed once", "finish"]})
    outcome = run(the_study, fake)
    (name,) = outcome.left
    assert (len(outcome.finished), outcome.failed) == (2, {})
    assert run(the_study, fake).ok
    assert metrics(the_study, name)["method_report"]["resumed"]


@pytest.mark.parametrize("exit_status", [137, -9, DiskFull.exit_status])
def test_points_wait_for_a_reference_that_was_ended(tmp_path: Path, exit_status: int) -> None:
    the_study = study(tmp_path, {"seed": [0, 1]})
    outcome = run_study(the_study, executor=Instant(killed="dense-s0-seed0", exit_status=exit_status))
    assert (len(outcome.finished), len(outcome.failed), len(outcome.left)) == (2, 0, 2)
    assert run_study(the_study, executor=Instant()).ok


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def driver(tmp_path: Path, fake: list[str]) -> Iterator[tuple[subprocess.Popen[str], Study, list[int]]]:
    """A process in the middle of a study with two runs under way, the study, and the runs' processes."""
    the_study = study(tmp_path, {"fake": ["hang once", "hang stubbornly once"], "seed": 0})
    the_study.output.mkdir()
    (tmp_path / "study.yaml").write_text(the_study.to_yaml())
    # Under nohup, or in the background of a script, these signals are ignored, and the process would inherit that.
    code = f"""
import signal
from pathlib import Path
import yaml
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
from argprune.tasks.runs import DiskFull
from argprune.tasks.studies import LocalExecutor, Study, run_study
keys = yaml.safe_load(open({str(tmp_path / "study.yaml")!r}))
keys["output"] = Path(keys["output"])
run_study(Study(**keys), executor=LocalExecutor(2, grace=0.5, command={fake!r}))
"""
    process = subprocess.Popen([sys.executable, "-P", "-c", code], stderr=subprocess.PIPE, text=True)
    pids: list[int] = []
    try:
        wait_for(lambda: len(list(the_study.output.glob("*/checkpoint"))) == 2)
        for path in the_study.output.glob("*/checkpoint"):
            pids += map(int, path.read_text().split())
        yield process, the_study, pids
    finally:
        process.kill()
        process.communicate()
        for pid in filter(alive, pids):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, -2), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_stopped_studies_resume(driver: Any, fake: list[str], number: int, status: int) -> None:
    process, the_study, pids = driver
    assert len(pids) == 4
    process.send_signal(number)
    process.send_signal(number)  # people press it twice
    assert process.wait(timeout=30) == status
    wait_for(lambda: not any(map(alive, pids)))
    assert not list(the_study.output.glob("*/error.json"))
    assert not list(the_study.output.glob("magnitude-*/metrics.json"))
    outcome = run(the_study, fake)
    assert outcome.ok
    assert all(metrics(the_study, name)["method_report"]["resumed"] for name in outcome.finished[1:])


def test_a_run_is_never_started_beside_itself(driver: Any, fake: list[str]) -> None:
    process, the_study, pids = driver
    with pytest.raises(ValueError, match=r"a study is being run in it by another process"):
        run(the_study, fake)
    # Killed without a word, the study leaves its runs behind: they go on, are not started twice, but waited for.
    process.kill()
    process.wait()
    assert all(map(alive, pids))

    def kill_all() -> None:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    said = io.StringIO()
    ended = threading.Timer(1.5, kill_all)
    ended.start()
    executor = LocalExecutor(2, command=fake)
    outcome = run_study(the_study, executor=executor, progress=progress_for(console=Console(file=said)))
    assert not ended.is_alive()
    assert outcome.ok
    assert said.getvalue().count("which another process runs") == 2
    assert all(metrics(the_study, name)["method_report"]["resumed"] for name in outcome.finished[1:])


def test_what_another_process_finishes_is_finished(tmp_path: Path) -> None:
    class Elsewhere(Instant):
        def start(self, job: Job) -> None:
            folder = Path(job.arguments[4])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "metrics.json").write_text("{}")
            raise Busy(job.name)

    assert run_study(study(tmp_path, {"method": "dense"}), executor=Elsewhere()).ok


def test_output_must_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(ValueError, match=r"runs: File exists\. Choose another folder"):
        run_study(study(tmp_path, {"seed": 0}), executor=Instant())


def test_threads_share_out_the_cores(tmp_path: Path, fake: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("argprune.tasks.studies.local._cores", lambda: 5)
    for position, (executor, threads) in enumerate(
        [
            (LocalExecutor(command=fake), 5),
            (LocalExecutor(2, command=fake), 2),
            (LocalExecutor(9, command=fake), 1),
            (LocalExecutor(9, threads=3, command=fake), 3),
        ]
    ):
        the_study = study(tmp_path, {"method": "dense", "seed": position})
        (name,) = run_study(the_study, executor=executor).finished
        assert metrics(the_study, name)["method_report"]["threads"] == 2 * [str(threads)]


@pytest.mark.parametrize("bad", [{"jobs": 0}, {"threads": 0}, {"grace": -1.0}, {"grace": float("nan")}])
def test_executor_refuses(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"LocalExecutor: {next(iter(bad))}"):
        LocalExecutor(**bad)
