"""The run directory: what is in it, when it counts as finished, and how nothing in it is ever lost."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from safetensors import SafetensorError

CONFIG, METRICS, LOG, MASKS, MODEL, CERTIFICATE, SCORES = (
    "config.yaml",
    "metrics.json",
    "log.jsonl",
    "masks.safetensors",
    "model",
    "certificate.json",
    "scores.safetensors",
)
CHECKPOINT_DONE = "argprune.json"
# The folder of a teacher's answers that end with the run.
ANSWERS = "teacher-answers"
# What `write_atomic` writes into.
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
# What torch says where a file ended early that it was writing.
_FULL_FOR_TORCH = ("PytorchStreamWriter", "unexpected pos")


class RunError(RuntimeError):
    """A run that started and could not go on; its message is one line for the user.

    exit_status: what `argprune` ends with.
    """

    exit_status = 1


class DiskFull(RunError):
    """A run that needs nothing but space on its disk to go on; the exit status is that of sysexits' EX_TEMPFAIL."""

    exit_status = 75


@dataclass(frozen=True)
class RunDirectory:
    """A run's folder; see docs/how-to/runs.md for its layout."""

    path: Path

    @property
    def finished(self) -> bool:
        """Whether the run has ended: its metrics are written last."""
        return (self.path / METRICS).is_file()

    @property
    def empty(self) -> bool:
        """Whether nothing has begun here: no folder, or one with a lock and what a kill left half-written."""
        if not self.path.is_dir():
            return True
        return all(name == ".lock" or _TEMPORARY.fullmatch(name) for name in os.listdir(self.path))

    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json. Raises ValueError where it cannot be read."""
        file = self.path / METRICS
        try:
            return dict(json.loads(file.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from error

    @property
    def begun(self) -> bool:
        """Whether a run has begun here; a config.yaml of anything else is no run's."""
        return self._options() is not None

    def config(self) -> dict[str, Any]:
        """The content of config.yaml. Raises ValueError where that is no run's."""
        options = self._options()
        if options is None:
            raise ValueError(f"{self.path} is no run: {self._lacking()}; give a run directory.")
        return options

    def _options(self) -> dict[str, Any] | None:
        """The options of the run; None where there is no run."""
        try:
            content = yaml.safe_load((self.path / CONFIG).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, yaml.YAMLError):
            return None
        method = content.get("method") if isinstance(content, dict) else None
        return content if isinstance(method, dict) and isinstance(method.get("name"), str) else None

    def _lacking(self) -> str:
        """Why there is no run here."""
        return f"{CONFIG} names no method" if (self.path / CONFIG).is_file() else f"no {CONFIG}"

    def lock(self) -> FileLock:
        """The lock that a process holds while it works on the run; freed when the process dies."""
        self.path.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path / ".lock")

    def check(self, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Raise ValueError unless a run of this configuration may use the folder. Changes nothing."""
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"Output {self.path} is a file; give a folder.")
        if self.empty:
            return
        if not self.begun:
            raise ValueError(f"Output {self.path} exists and is not a run ({self._lacking()}); give a new folder.")
        if overwrite:
            return
        if not resume:
            state = "a finished run" if self.finished else "an unfinished run"
            advice = "--overwrite to replace it" if self.finished else "--resume or --overwrite"
            raise ValueError(f"Output {self.path} holds {state}; give {advice}.")
        saved = self.config()
        changed = sorted(key for key in {*saved, *config} if saved.get(key) != config.get(key))
        if changed:
            key = changed[0]
            more = f" (and {len(changed) - 1} more differ)" if changed[1:] else ""
            raise ValueError(
                f"Cannot resume {self.path}: {key} was {saved.get(key)!r} and is now {config.get(key)!r}{more}; "
                "give the same options, or --overwrite."
            )

    def begin(self, config: Mapping[str, Any]) -> None:
        """Write the configuration of a new run, in place of whatever an earlier one has put here."""
        self.clear()
        write_yaml(self.path / CONFIG, config)

    def clear(self) -> None:
        """Remove what a run has put here but its configuration; the reference run inside stays, other files too."""
        # The configuration is for the next one to replace: without it the folder is no run, which nothing may touch.
        (self.path / METRICS).unlink(missing_ok=True)
        self.remove_checkpoints()
        for name in (MODEL, ANSWERS):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in (CERTIFICATE, LOG, MASKS, SCORES):
            (self.path / name).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what a kill left half-written. Only under the lock: another process may be writing."""
        for name in os.listdir(self.path):
            if _TEMPORARY.fullmatch(name):
                (self.path / name).unlink()

    def last_checkpoint(self) -> Path | None:
        """The newest complete checkpoint; changes nothing: another process may be writing one."""
        complete = [folder for folder in self.path.glob("checkpoint-*") if (folder / CHECKPOINT_DONE).is_file()]
        return max(complete, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)

    def remove_incomplete(self) -> None:
        """Remove checkpoints that a kill left half-written."""
        for folder in self.path.glob("checkpoint-*"):
            if not (folder / CHECKPOINT_DONE).is_file():
                shutil.rmtree(folder)

    def remove_checkpoints(self) -> None:
        """Remove all checkpoints."""
        for folder in self.path.glob("checkpoint-*"):
            # First what says that it is complete: a kill must not leave one that says so and is not.
            (folder / CHECKPOINT_DONE).unlink(missing_ok=True)
            shutil.rmtree(folder)

    def append_log(self, line: Mapping[str, Any]) -> None:
        """Add one line to log.jsonl."""
        with (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def truncate_log(self, step: int) -> None:
        """Drop the log lines after a step, which a resumed run writes again; a torn last line goes too."""
        path = self.path / LOG
        if not path.is_file():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] > step:
                    break
            except ValueError:
                # A kill, or a full disk, has cut it off.
                break
            kept.append(line + "\n")
        write_atomic(path, "".join(kept))


@contextlib.contextmanager
def usable(path: Path, what: str = "Output") -> Iterator[None]:
    """Turn what the system says against a folder (path) into a ValueError; what: the folder's part in the run."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{what} {path}: {error.strerror}; give a folder that can be written to.") from error


@contextlib.contextmanager
def held(lock: FileLock, path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a run's lock; where another process has it, wait, or raise ValueError."""
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout as error:
        raise ValueError(f"Output {path} is in use by another process; wait for it, or give another folder.") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def one_line(path: Path, again: str = "--resume") -> Iterator[None]:
    """Turn what a full disk and a broken checkpoint raise, each library in its way, into a RunError.

    path: where it happens; again: what goes on afterwards.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        raise RunError(
            f"{path}: a checkpoint holds something else than tensors, and was not loaded: it may be code. "
            "Remove the checkpoint to go on from the one before, or --overwrite."
        ) from error
    except (OSError, SafetensorError, RuntimeError, EOFError) as error:
        reason = _disk_problem(error)
        if reason is None:
            raise
        kind = DiskFull if _is_full(error) else RunError
        raise kind(f"{path}: {reason}. Put that right; nothing is lost, {again} goes on.") from error


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return any(sign in str(error) for sign in (*_FULL_FOR_TORCH, "No space left", "File too large"))


def _disk_problem(error: BaseException) -> str | None:
    """What is wrong with the disk or with a file on it, if that is what an error says."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        return (error.strerror or text) + (f" ({error.filename})" if error.filename else "")
    # torch says neither which file nor why.
    if any(sign in text for sign in _FULL_FOR_TORCH):
        return "a checkpoint cannot be written: the disk is full, or fails"
    if "PytorchStreamReader" in text or isinstance(error, EOFError):
        return "a checkpoint is cut off or broken; remove it to go on from the one before"
    return text if isinstance(error, SafetensorError) else None


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part, whatever dies when."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """`write_atomic` of JSON; NaN and infinities, which JSON does not have, raise ValueError."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    """`write_atomic` of YAML, keys in the given order."""
    write_atomic(path, yaml.safe_dump(dict(value), sort_keys=False))
