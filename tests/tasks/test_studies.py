"""Studies: what runs when, what survives being stopped, what is said meanwhile, and the table at the end.

The runs are a small script in place of `argprune prune` (`FAKE`), which keeps to its contract and does as the
option `fake` says; where not even a process is needed, `Instant` takes the place of the executor.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from rich.console import Console

from argprune.tasks.runs import DiskFull
from argprune.tasks.studies import (
    Ended,
    Job,
    LocalExecutor,
    Study,
    collect,
    progress_for,
    run_study,
)
from argprune.tasks.studies import command as study_command
from argprune.tasks.studies import progress as study_progress
from argprune.tasks.studies.executor import Busy
from argprune.tasks.studies.progress import Lines, Live, Steps, StudyProgress, duration, read_steps

ROOT = Path(__file__).resolve().parents[2]
BASE = {"model": "minilm", "task": "stdlib-docs", "method": "magnitude", "sparsity": 0.5}
FAKE = r"""
import json, os, pathlib, signal, subprocess, sys, time, yaml
command, flag, config, flag_output, output, *rest = sys.argv[1:]
assert (command, flag, flag_output, rest) == ("prune", "--config", "--output", ["--resume", "-q"]), sys.argv
options, output = yaml.safe_load(open(config)), pathlib.Path(output)
does, resumed = options.get("fake", "finish"), (output / "checkpoint").exists()
if does != "fail silently":
    print("on standard output")
if does == "usage":
    print("argprune: error: no such option", file=sys.stderr)
    sys.exit(2)
if options["dense"] and not os.path.exists(options["dense"] + "/metrics.json"):
    sys.exit("argprune: error: started before its reference")
output.mkdir(parents=True, exist_ok=True)
def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        if time.monotonic() > end:
            sys.exit("argprune: error: waited in vain")
        time.sleep(0.01)
if does == "fail" or (does == "fail once" and not resumed):
    (output / "checkpoint").touch()
    print("Traceback (most recent call last):\n  ...\nargprune: error: it [broke]\n", file=sys.stderr)
    sys.exit(1)
if does == "fail silently":
    sys.exit(1)
if does == "forget":
    sys.exit(0)
if does == "be killed once" and not resumed:
    (output / "checkpoint").touch()
    os.kill(os.getpid(), signal.SIGKILL)
if does in ("hang once", "hang stubbornly once") and not resumed:
    if "stubbornly" in does:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (output / "pids").write_text(f"{os.getpid()} {helper.pid}")
    os.rename(output / "pids", output / "checkpoint")
    time.sleep(60)
if does == "meet another":
    (output.parent / f"here-{output.name}").touch()
    wait_for(lambda: len(list(output.parent.glob("here-*"))) >= 2)
if does == "be alone":
    os.close(os.open(output.parent / "alone", os.O_CREAT | os.O_EXCL))
    time.sleep(0.1)
    os.unlink(output.parent / "alone")
score, method = 0.9 - options["sparsity"] / 10, options["method"]
dense = {"validation": {"accuracy": 0.9}, "test": {"accuracy": 0.88, "f1": 0.8}}
metrics = {
    "task": options["task"], "method": method["name"] if isinstance(method, dict) else method,
    "model": options["model"], "seed": options["seed"], "metric": "accuracy", "steps": 7, "dense": dense,
    "pruned": {"validation": {"accuracy": score}, "test": {"accuracy": score, "f1": 0.5}},
    "sparsity": {"target": options["sparsity"], "encoder": 0.9, "model": options["sparsity"] / 2},
    "compression": {"encoder": 2.0, "model": None}, "seconds": {"train": 1.5}, "versions": {},
    "method_report": {
        "resumed": resumed, "threads": [os.environ[f"{x}_NUM_THREADS"] for x in ("OMP", "MKL")]
    },
    "config": options,
}
(output / "metrics.tmp").write_text(json.dumps(metrics))
os.replace(output / "metrics.tmp", output / "metrics.json")
"""


@pytest.fixture(scope="session")
def fake(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command in place of `python -m argprune`."""
    script = tmp_path_factory.mktemp("fake") / "argprune.py"
    script.write_text(FAKE)
    return [sys.executable, "-P", str(script)]


def study(output: Path, grid: Any, **keys: Any) -> Study:
    return Study(output / "runs", grid=grid, base={**BASE, **keys.pop("base", {})}, **keys)


def run(the_study: Study, fake: list[str], *, jobs: int = 1, retry: bool = False, grace: float = 10.0) -> Any:
    return run_study(the_study, executor=LocalExecutor(jobs, grace=grace, command=fake), retry=retry)


def metrics(the_study: Study, name: str) -> dict[str, Any]:
    return dict(json.loads((the_study.output / name / "metrics.json").read_text()))


class Instant:
    """An executor that finishes every job at once, the one started last first; notes who ran beside whom."""

    def __init__(self, slots: int = 1, failing: str = "$^", killed: str = "$^", exit_status: int = 137) -> None:
        self.slots, self.failing, self.killed, self.exit_status = slots, failing, killed, exit_status
        self.running: list[Job] = []
        self.started: list[str] = []

    def start(self, job: Job) -> None:
        assert len(self.running) < self.slots
        self.running.append(job)
        self.started.append(job.name)

    def wait(self, timeout: float) -> Ended | None:
        job = self.running.pop()
        if re.match(self.killed, job.name):
            return Ended(job.name, self.exit_status, "")
        if re.match(self.failing, job.name):
            return Ended(job.name, 1, "boom")
        folder = Path(job.arguments[4])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text("{}")
        return Ended(job.name, 0, "")

    def stop(self) -> None:
        self.running.clear()


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


# The table of results


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_collect(tmp_path: Path, fake: list[str]) -> None:
    grid = [
        {"method": {"name": "rpp", "eps_rw": 0.1}, "method.eps_rw": [0.2, 0.1], "sparsity": [0.9, 0.5]},
        {"fake": "fail", "include": [["a", "b"]]},
    ]
    the_study = study(tmp_path, grid, base={"epochs": 2})
    run(the_study, fake)
    rows = collect(the_study, tmp_path / "new" / "table.csv")
    read = table(tmp_path / "new" / "table.csv")
    assert [row["run"] for row in read] == [row["run"] for row in rows]
    assert [(row["method"], row["sparsity_target"], row["status"]) for row in read] == [
        ("dense", "0.0", "finished"),
        ("magnitude", "0.5", "failed"),
        *[("rpp", sparsity, "finished") for sparsity in ("0.5", "0.5", "0.9", "0.9")],
    ]
    assert list(read[0]) == [
        *("run", "method", "task", "model", "seed"),
        *(
            "sparsity_target",
            "sparsity_encoder",
            "sparsity_model",
            "compression_encoder",
            "compression_model",
        ),
        *("test_accuracy", "test_f1", "validation_accuracy"),
        *("dense_test_accuracy", "dense_test_f1", "dense_validation_accuracy"),
        *("steps", "seconds_train", "precision", "option.fake", "option.include", "option.method.eps_rw"),
        *("report.resumed", "status", "error"),
    ]
    last = read[-1]
    assert (last["sparsity_model"], last["compression_encoder"], last["compression_model"]) == (
        "0.45",
        "2.0",
        "",
    )
    assert (last["test_accuracy"], last["dense_test_accuracy"], last["seconds_train"]) == (
        "0.81",
        "0.88",
        "1.5",
    )
    assert sorted(row["option.method.eps_rw"] for row in read) == ["", "", "0.1", "0.1", "0.2", "0.2"]
    assert (read[1]["error"], read[1]["option.include"], read[1]["steps"]) == ("it [broke]", '["a", "b"]', "")
    assert collect(the_study.output, tmp_path / "again.csv") == rows
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "new" / "table.csv").read_text()


def test_collect_has_no_row_for_what_is_left(tmp_path: Path) -> None:
    the_study = study(tmp_path, {"seed": [0, 1]})
    assert collect(the_study, tmp_path / "table.csv") == []
    assert table(tmp_path / "table.csv") == []
    with pytest.raises(ValueError, match=r"runs: no such folder\."):
        collect(the_study.output, tmp_path / "table.csv")
    run_study(the_study, executor=Instant(killed="dense"))
    with pytest.raises(ValueError, match=r"runs: no finished or failed run"):
        collect(the_study.output, tmp_path / "table.csv")


# The command


@pytest.fixture
def command(tmp_path: Path, fake: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`argprune study` with a grid, with fake runs and without the check of options."""
    monkeypatch.setattr(study_command, "LocalExecutor", partial(LocalExecutor, command=fake))
    check = SimpleNamespace(check_options=lambda options: None)
    monkeypatch.setitem(sys.modules, "argprune.tasks.prune", check)

    def call(grid: dict[str, Any], **arguments: Any) -> int:
        path = tmp_path / "study.yaml"
        path.write_text(study(tmp_path, grid).to_yaml())
        defaults: dict[str, Any] = {
            "backend": "local",
            "jobs": None,
            "cpus": None,
            "gpus": None,
            "ray_address": None,
            "collect": None,
            "retry": False,
            "quiet": True,
        }
        return study_command.study_command(Namespace(study=path, **{**defaults, **arguments}))

    return call


def test_command(tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command({"fake": "fail once"}, collect=tmp_path / "table.csv") == 1
    assert [row["status"] for row in table(tmp_path / "table.csv")] == ["finished", "failed"]
    out, error = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(
        r"argprune: error: 1 finished, 1 failed, 0 left; magnitude-\S+ failed: it \[broke\] \(.*--retry.*\)\n", error
    )
    assert command({"fake": "fail once"}, retry=True, quiet=False) == 0
    out, error = capsys.readouterr()
    assert "stdlib-docs" in out, "the table of the finished runs"
    assert out.splitlines()[-1] == f"study {tmp_path / 'runs'}: 2 finished, 0 failed, 0 left"
    assert "started magnitude" in error
    assert command({"fake": "be killed once"}) == 1
    assert re.search("1 left; magnitude-.* was ended. The same command resumes it.", capsys.readouterr().err)
    with pytest.raises(ValueError, match="jobs 0"):
        command({"seed": 0}, jobs=0)
    with pytest.raises(ValueError, match="--gpus is for --backend ray"):
        command({"seed": 0}, gpus=1.0)


def test_command_refuses_another_file_for_the_table_before_any_run(tmp_path: Path, command: Callable[..., int]) -> None:
    notes = tmp_path / "notes.csv"
    notes.write_text("what,why\n")
    with pytest.raises(ValueError, match=r"notes\.csv: not a table of a study: no column 'run'"):
        command({"fake": "finish"}, collect=notes)
    assert notes.read_text() == "what,why\n"
    assert not (tmp_path / "runs").exists()


def test_command_interrupted(command: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(self: LocalExecutor, timeout: float) -> None:
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(LocalExecutor, "wait", wait)
        assert command({"fake": "finish"}) == 130
    assert command({"fake": "finish"}) == 0


# What is said meanwhile


def test_lines(tmp_path: Path) -> None:
    file = io.StringIO()
    progress = progress_for(console=Console(file=file, width=20))
    assert isinstance(progress, Lines)
    the_study = study(tmp_path, {"seed": [0, 1]})
    run_study(the_study, executor=Instant(failing="dense-s0-seed1", killed="magnitude"), progress=progress)
    said = re.sub(r"-[0-9a-f]{8}", "", file.getvalue().replace(str(tmp_path), "T")).splitlines()
    assert said == [
        "study T/runs: 0 finished, 0 failed, 0 running, 4 left",
        "started dense-s0-seed0",
        "finished dense-s0-seed0 after 0 s",
        "study T/runs: 1 finished, 0 failed, 0 running, 3 left, about 0 s to go",
        "started dense-s0-seed1",
        "failed dense-s0-seed1 after 0 s: boom",
        "study T/runs: 1 finished, 1 failed, 0 running, 2 left, about 0 s to go",
        "started magnitude-s0.5-seed0",
        "failed magnitude-s0.5-seed1: dense reference dense-s0-seed1 failed: boom",
        "study T/runs: 1 finished, 2 failed, 1 running, 0 left, about 0 s to go",
        "ended (resumes next time) magnitude-s0.5-seed0 after 0 s: exit status 137",
        "study T/runs: 1 finished, 2 failed, 0 running, 1 left, about 0 s to go",
    ]


def test_live_table(tmp_path: Path, fake: list[str]) -> None:
    file = io.StringIO()
    progress = progress_for(console=Console(file=file, force_terminal=True, width=200))
    assert isinstance(progress, Live)
    run_study(
        study(tmp_path, {"fake": ["fail", "be alone"]}),
        executor=LocalExecutor(command=fake),
        progress=progress,
    )
    assert ": it [broke]" in file.getvalue()
    assert "2 finished, 1 failed, 0 running, 0 left" in file.getvalue()


def test_quiet(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run_study(study(tmp_path, {"seed": 0}), executor=Instant(failing="dense"), progress=progress_for(quiet=True))
    assert capfd.readouterr() == ("", "")


def test_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(study_progress.time, "monotonic", lambda: now)
    progress = StudyProgress()
    progress.begin("study", {"finished": 9, "failed": 0, "left": 6}, slots=2)
    progress.start("a", Path("a"))
    progress.start("b", Path("b"))
    assert progress.time_left() is None
    now = 100.0
    progress.end("a", "finished")
    progress.end("b", "failed")
    assert progress.time_left() == 4 * 100 / 2
    progress.start("c", Path("c"))
    now = 130.0
    assert progress.time_left() == (3 * 100 + 70) / 2
    now = 300.0
    assert progress.time_left() == 3 * 100 / 2, "one that takes longer than the others is about to end"


def test_time_left_by_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(study_progress.time, "monotonic", lambda: now)
    run = tmp_path / "a"
    run.mkdir()
    log = run / "log.jsonl"
    progress = Live(Console(file=io.StringIO()))
    progress.counts = {"finished": 0, "failed": 0, "left": 3}
    progress.start("a", run)
    assert progress.time_left() is None
    log.write_text('{"step": 20, "epoch": 0.5}\n{"step": 30, "epo')
    assert read_steps(run) is None, "without its configuration"
    (run / "config.yaml").write_text("max_steps: null\nepochs: 3\n")
    assert read_steps(run) == Steps(20, 120)
    assert progress.time_left() is None
    now = 10.0
    log.write_text('{"step": 20, "epoch": 0.5}\n{"step": 40, "epoch": 1.0}\n')
    assert progress.run_left("a") == 10 / 20 * 80
    # Two more wait, each of which will take what this one takes in all.
    assert progress.time_left() == 40 + 2 * (10 + 40)
    console = Console(file=io.StringIO(), width=200)
    console.print(progress.table())
    assert re.search(r"a .* step 40/120 +10 s +40 s left", console.file.getvalue())  # type: ignore[attr-defined]
    (run / "config.yaml").write_text("max_steps: 50\nepochs: 3\n")
    assert read_steps(run) == Steps(40, 50)
    log.write_text("garbage\n")
    assert read_steps(run) is None


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_duration(seconds: float, said: str) -> None:
    assert duration(seconds) == said
