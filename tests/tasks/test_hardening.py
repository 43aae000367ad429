"""Runs on a disk that is full or read-only, on broken checkpoints, and after kills at moments that matter."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from argprune import prune
from argprune.cli import main
from argprune.tasks import runs
from argprune.tasks.runs import CHECKPOINT_DONE, DiskFull, RunDirectory, RunError

ROOT = Path(__file__).resolve().parents[2]
FILES = ("masks.safetensors", "model/model.safetensors")


@pytest.fixture
def options(job: dict[str, Any], dense: Path) -> dict[str, Any]:
    return {**job, "method": "rpp", "sparsity": 0.5, "dense": str(dense), "checkpoint_every": 5}


@pytest.fixture(scope="module")
def expected(
    tiny_model: str, tiny_data: str, dense: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The bytes of the run of `options` that nothing disturbs."""
    path = tmp_path_factory.mktemp("expected") / "run"
    steps: dict[str, Any] = {"max_steps": 20, "batch_size": 8, "max_length": 16, "learning_rate": 1e-3}
    settings: dict[str, Any] = {**steps, "log_every": 5, "checkpoint_every": 5, "quiet": True, "data_dir": tiny_data}
    prune(tiny_model, "words", method="rpp", sparsity=0.5, dense=dense, output=path, **settings)
    return {name: (path / name).read_bytes() for name in (*FILES, "log.jsonl")}


def check(path: Path, expected: dict[str, bytes]) -> None:
    for name in FILES:
        assert (path / name).read_bytes() == expected[name], name
    lines = [
        [json.loads(line)["step"] for line in text.splitlines()]
        for text in ((path / "log.jsonl").read_text(), expected["log.jsonl"].decode())
    ]
    assert lines[0] == lines[1]
    assert not list(path.glob(".*.tmp"))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond a size: the system's own error in the middle of a write, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


# The configuration and the log do not fit; the model does not; the optimizer's state does not, or only its end.
@pytest.mark.parametrize("size", [100, 20_000, 150_000, 250_000])
def test_what_a_failing_disk_costs_is_nothing(
    tmp_path: Path, options: dict[str, Any], expected: dict[str, bytes], size: int
) -> None:
    path = tmp_path / "run"
    with largest_file(size), pytest.raises(RunError) as caught:
        prune(**options, output=path)
    message = str(caught.value)
    assert type(caught.value) is DiskFull
    assert "\n" not in message
    assert message.startswith(str(path))
    assert message.endswith("nothing is lost, --resume goes on.")
    assert not RunDirectory(path).finished
    prune(**options, output=path, resume=True)
    check(path, expected)


def test_a_full_disk_has_an_exit_status_of_its_own(
    tmp_path: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(options))
    with largest_file(100):
        assert main(["prune", "--config", str(config), "--output", str(tmp_path / "run")]) == DiskFull.exit_status
    assert capsys.readouterr().err.endswith("nothing is lost, --resume goes on.\n")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "argprune-test", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_and_read_only_disks(
    small_disk: Path, options: dict[str, Any], expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    path, ballast = small_disk / "run", small_disk / "ballast"
    ballast.write_bytes(bytes(2_500_000))
    with pytest.raises(DiskFull, match=r"No space left|the disk is full"):
        prune(**options, output=path)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for where in (path, small_disk / "new"):
        with pytest.raises(ValueError, match=rf"Output {where}: Read-only file system; give a folder"):
            prune(**options, output=where, resume=True)
    text = "\n".join(
        f"{name}: {json.dumps(value)}" for name, value in options.items() if name not in ("quiet", "dense")
    )
    study = small_disk.parent / "study.yaml"
    lines = [line for line in text.splitlines() if not line.startswith(("method", "sparsity"))]
    base = "\n  ".join(["base:", *lines])
    study.write_text(f"output: {small_disk}\n{base}\ngrid: {{method: rpp, sparsity: 0.5}}\n")
    capsys.readouterr()
    assert main(["study", str(study), "-q"]) == 2
    assert (
        capsys.readouterr().err
        == f"argprune: error: output {small_disk}: Read-only file system. Choose another folder.\n"
    )
    subprocess.run(["mount", "-o", "remount,rw,size=30m", str(small_disk)], check=True)
    ballast.unlink()
    prune(**options, output=path, resume=True)
    check(path, expected)


class Payload:
    """What runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def stopped(tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was stopped at step 15 or so, with checkpoints."""
    path = tmp_path / "run"
    append = RunDirectory.append_log

    def stop(self: RunDirectory, line: Any) -> None:
        append(self, line)
        if self.path == path and line["step"] >= 15:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "append_log", stop)
        with pytest.raises(KeyboardInterrupt):
            prune(**options, output=path)
    assert sorted(folder.name for folder in path.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-5"]
    return path


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_with_code_in_it_is_refused(stopped: Path, options: dict[str, Any], file: str) -> None:
    checkpoint, owned = stopped / "checkpoint-10", stopped.parent / "owned"
    original = (checkpoint / file).read_bytes()
    pickle.loads(pickle.dumps(Payload(owned)))
    owned.rmdir()  # it does run where it is let
    for write in (
        lambda path: path.write_bytes(pickle.dumps(Payload(owned), protocol=2)),
        lambda path: torch.save({"state": Payload(owned)}, path),
    ):
        write(checkpoint / file)
        with pytest.raises(RunError, match="was not loaded: it may be code") as caught:
            prune(**options, output=stopped, resume=True)
        assert "\n" not in str(caught.value)
        assert not owned.exists()
    (checkpoint / file).write_bytes(original)


@pytest.mark.parametrize("file", ["optimizer.pt", "model.safetensors", "method.safetensors"])
def test_a_checkpoint_that_is_cut_off_is_refused(
    stopped: Path, options: dict[str, Any], expected: dict[str, bytes], file: str
) -> None:
    path = stopped / "checkpoint-10" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RunError) as caught:
        prune(**options, output=stopped, resume=True)
    assert "\n" not in str(caught.value)
    # As the message says: without it, the one before is gone on from.
    shutil.rmtree(stopped / "checkpoint-10")
    prune(**options, output=stopped, resume=True)
    check(stopped, expected)


def test_kills_between_the_lines(
    stopped: Path, options: dict[str, Any], expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A line of the log that was cut off, though it ends as lines do.
    with (stopped / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "more": {"a": 1}')
    (stopped / ".metrics.json.12345.tmp").write_text("{")
    prune(**options, output=stopped, resume=True)
    check(stopped, expected)
    # Killed while the configuration was written for the first time, a folder is not yet a run, and no obstacle.
    fresh = stopped.parent / "fresh"
    fresh.mkdir()
    (fresh / ".lock").touch()
    (fresh / ".config.yaml.12345.tmp").touch()
    prune(**options, output=fresh, resume=True)
    check(fresh, expected)


def test_clearing_can_be_killed_anywhere(
    stopped: Path, options: dict[str, Any], expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is left of a run that is being replaced can be replaced, and resumed as well."""
    spare = stopped.parent / "spare"
    shutil.copytree(stopped, spare)
    for number in range(8):
        left = iter(range(number))

        def after(call: Any, left: Iterator[int] = left) -> Any:
            def counted(*arguments: Any, **keywords: Any) -> Any:
                if next(left, None) is None:
                    raise KeyboardInterrupt
                return call(*arguments, **keywords)

            return counted

        shutil.rmtree(stopped)
        shutil.copytree(spare, stopped)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", after(Path.unlink))
            patched.setattr(runs.shutil, "rmtree", after(shutil.rmtree))
            try:
                RunDirectory(stopped).clear()
            except KeyboardInterrupt:
                pass
            else:
                break
        run = RunDirectory(stopped)
        for checkpoint in stopped.glob("checkpoint-*"):
            if (checkpoint / CHECKPOINT_DONE).exists():
                assert {p.name for p in checkpoint.iterdir()} == {p.name for p in (spare / checkpoint.name).iterdir()}
        assert run.config() == RunDirectory(spare).config()


def test_a_run_that_was_being_replaced_goes_on_as_it_was_or_is_replaced(
    stopped: Path, options: dict[str, Any], expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the new configuration was written, a folder is still the run that it was."""

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    changed = {**options, "sparsity": 0.75}
    with monkeypatch.context() as patched:
        patched.setattr(runs, "write_yaml", die)
        with pytest.raises(KeyboardInterrupt):
            prune(**changed, output=stopped, overwrite=True)
    assert not list(stopped.glob("checkpoint-*"))
    with pytest.raises(ValueError, match=r"sparsity was 0\.5 and is now 0\.75; give the same options, or --overwrite"):
        prune(**changed, output=stopped, resume=True)
    assert prune(**changed, output=stopped, overwrite=True).metrics["sparsity"]["target"] == 0.75
    prune(**options, output=stopped, overwrite=True)
    check(stopped, expected)


def test_a_run_that_another_process_finished_is_not_run_again(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    finished = prune(**options, output=path)
    metrics = (path / "metrics.json").stat()
    # It had not finished yet when this process looked first, before it loaded everything.
    answers = iter([False])
    monkeypatch.setattr(RunDirectory, "finished", property(lambda run: next(answers, True)))
    again = prune(**options, output=path, resume=True)
    assert again.metrics == finished.metrics
    assert (path / "metrics.json").stat().st_mtime_ns == metrics.st_mtime_ns


def test_errors_of_libraries_in_one_line(tmp_path: Path) -> None:
    for error, said in (
        (OSError(28, "No space left on device", "x.json"), r"No space left on device \(x.json\)"),
        (RuntimeError("[enforce fail] \n PytorchStreamWriter failed writing file"), "cannot be written"),
        (RuntimeError("PytorchStreamReader failed reading zip archive"), "cut off or broken"),
        (SafetensorError("I/O error:\n No space"), "I/O error: No space"),
    ):
        with pytest.raises(RunError, match=said) as caught, runs.one_line(tmp_path):
            raise error
        assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="anything else"), runs.one_line(tmp_path):
        raise RuntimeError("anything else")


@pytest.mark.timeout(600)
def test_killed_at_random_a_run_reaches_the_same_bits(options: dict[str, Any], tmp_path: Path) -> None:
    """A few of the trials of scripts/kill_runs.py, which makes a hundred."""
    own = {key: value for key, value in options.items() if key not in ("quiet", "dense")}
    given = [text for key, value in own.items() for text in (f"--{key}", str(value))]
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "scripts" / "kill_runs.py"),
            "--trials",
            "3",
            "--work",
            str(tmp_path),
            "--",
            *given,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT / "src")]),
        },
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert re.fullmatch(r"3 trials, \d+ kills: 0 different", done.stdout.splitlines()[-1])
