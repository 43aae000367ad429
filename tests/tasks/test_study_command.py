"""`argprune study`, and what is said while it runs."""

from __future__ import annotations

import io
import re
import signal
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_runs import Instant, study
from rich.console import Console

from argprune.tasks.studies import (
    LocalExecutor,
    progress_for,
    run_study,
)
from argprune.tasks.studies import command as study_command
from argprune.tasks.studies import progress as study_progress
from argprune.tasks.studies.progress import Lines, Live, Steps, StudyProgress, duration, read_steps
from argprune.tasks.studies.table import read_table


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
    assert [row["status"] for row in read_table(tmp_path / "table.csv")] == ["finished", "failed"]
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
