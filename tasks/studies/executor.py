"""Where the runs of a study take place: the protocol of executors.

An executor knows nothing of studies: it is given commands that are ready, says when one ended, and can stop
them all. Which run waits for which is decided once, by `run_study`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from argprune.tasks.runs import DiskFull

_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Job:
    """A command with a name, ready to run: `argprune` with arguments; what it prints goes to the end of `log`."""

    name: str
    arguments: tuple[str, ...]
    log: Path


@dataclass(frozen=True)
class Ended:
    """A job that ended, by name. exit_status: negative where a signal ended it; message: the last line it printed."""

    name: str
    exit_status: int
    message: str

    @property
    def killed(self) -> bool:
        """Whether a signal ended it, directly or as a shell reports it (128 + signal)."""
        return self.exit_status < 0 or self.exit_status > 128

    @property
    def resumable(self) -> bool:
        """Whether it may go on as it is: it was killed, or its disk was full."""
        return self.killed or self.exit_status == DiskFull.exit_status


class Busy(ValueError):
    """The job's run is going on already, started by another process, which holds a lock on its log."""


class Executor(Protocol):
    """Runs jobs side by side, on this machine or elsewhere."""

    @property
    def slots(self) -> int:
        """How many jobs it runs side by side, at least 1."""
        ...

    def start(self, job: Job) -> None:
        """Start a job; never called with more than `slots` running.

        Raises Busy where another process is at it: one that a study which was killed has left behind.
        """
        ...

    def wait(self, timeout: float) -> Ended | None:
        """The next job that ended, or None if none did within `timeout` seconds."""
        ...

    def stop(self) -> None:
        """End everything that runs, if anything does, and return when it has ended; runs are resumable."""
        ...


def last_line(log: Path) -> str:
    """The last line of a log that is not blank; empty where an attempt printed nothing."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return "" if last.startswith("$ ") else last
