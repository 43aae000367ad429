"""The executor of this machine: a process a run."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from argprune.tasks.studies.executor import Busy, Ended, Job, last_line

_POLL_SECONDS = 0.05


class LocalExecutor:
    """Subprocesses of this process, `jobs` side by side, which share out the machine's cores (POSIX only).

    jobs: how many at a time, >= 1. threads: OMP_NUM_THREADS and MKL_NUM_THREADS of each, >= 1; None shares
    out the cores that this process may use. grace: seconds between asking a run to end and killing it, >= 0.
    command: what stands before a job's arguments; None is this interpreter's `argprune`.

    Each job holds a lock on its log, so that a run which is still going on (of another study, or of one that
    was killed) is not started a second time.
    """

    def __init__(
        self,
        jobs: int = 1,
        *,
        threads: int | None = None,
        grace: float = 10.0,
        command: Sequence[str] | None = None,
    ) -> None:
        """Raises ValueError for jobs or threads below 1 and a negative grace."""
        if jobs < 1:
            raise ValueError(f"LocalExecutor: jobs {jobs}; at least 1 run at a time.")
        if threads is not None and threads < 1:
            raise ValueError(f"LocalExecutor: threads {threads}; at least 1, or None to share out the cores.")
        if not grace >= 0:
            raise ValueError(f"LocalExecutor: grace {grace}; seconds >= 0.")
        self._jobs, self._grace = jobs, grace
        self._threads = max(1, _cores() // jobs) if threads is None else threads
        self._command = tuple(command or (sys.executable, "-m", "argprune"))
        self._running: dict[str, tuple[Job, subprocess.Popen[bytes]]] = {}

    @property
    def slots(self) -> int:
        """How many jobs run side by side."""
        return self._jobs

    def start(self, job: Job) -> None:
        """Start a job in a session of its own: Ctrl-C reaches this process only, which then ends the jobs.

        Raises Busy where the job's log is locked.
        """
        command = [*self._command, *job.arguments]
        # Unbuffered, or the last line of the log need not be the last one printed.
        environment = {"PYTHONUNBUFFERED": "1"} | {
            name: str(self._threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        }
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            try:
                # The lock is that of the open file, which the job inherits: it lasts as long as the job does.
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Busy(
                    f"{job.name} is running already: another process holds {job.log}. Wait for it, or end it."
                ) from error
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self._running[job.name] = (job, process)

    def wait(self, timeout: float) -> Ended | None:
        """The next job that ended, or None if none did within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            for name, (job, process) in self._running.items():
                status = process.poll()
                if status is not None:
                    del self._running[name]
                    return Ended(name, status, last_line(job.log))
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(left, _POLL_SECONDS))

    def stop(self) -> None:
        """Ask every job and what it started to end, and kill after the grace what has not."""
        for _, process in self._running.values():
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + self._grace
        while self._running:
            if self.wait(max(0.0, deadline - time.monotonic())) is None:
                for _, process in self._running.values():
                    _signal(process, signal.SIGKILL)
                    process.wait()
                self._running.clear()


def _cores() -> int:
    """The cores that this process may use, fewer than the machine has in many a container."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """Signal a job and all that it started."""
    # Not after it was waited for: its number may be another process's by then.
    if process.poll() is None:
        os.killpg(process.pid, number)
