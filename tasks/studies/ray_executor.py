"""The executor of a Ray cluster: a task a run, on whichever node has room; of one machine's, too.

The nodes must see the same files under the same names: the study's output, the models and the data. A run is
carried out by the worker process itself, not by a child of it, so that it dies with its worker: cancelled, with its
node, or because the study was killed. It resumes next time.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from argprune.tasks.studies.executor import Ended, Job, last_line

_POLL_SECONDS = 0.5
# What a run's environment has of ours, wherever it is.
_PREFIXES = ("ARGPRUNE_", "HF_", "TOKENIZERS_", "MALLOC_")


def load_ray() -> Any:
    """The ray module. Raises ImportError that names the extra to install."""
    try:
        import ray
    except ImportError as error:
        raise ImportError("backend ray needs Ray: pip install 'argprune[ray]'.") from error
    return ray


class RayExecutor:
    """Tasks of a Ray cluster, as many side by side as fit.

    jobs: how many at most, >= 1; None is what the cluster has room for now. address: of a running cluster, as
    `ray.init` takes it (`auto`: the one on this machine); None is that of RAY_ADDRESS or else a cluster of its own on
    this machine, which ends with this process. cpus: cores and threads of each run, a whole number >= 1. gpus: of
    each run, >= 0; a fraction shares one. grace: seconds that runs are given to end once cancelled, >= 0.
    """

    def __init__(
        self,
        jobs: int | None = None,
        *,
        address: str | None = None,
        cpus: int = 1,
        gpus: float = 0.0,
        grace: float = 10.0,
    ) -> None:
        """Connects. Raises ValueError for a cluster that cannot be reached or has no room, ImportError without Ray."""
        if jobs is not None and jobs < 1:
            raise ValueError(f"RayExecutor: jobs {jobs}; at least 1 run at a time.")
        if cpus < 1 or cpus != int(cpus):
            raise ValueError(f"RayExecutor: cpus {cpus}; a whole number >= 1.")
        if not gpus >= 0 or (gpus > 1 and gpus != int(gpus)):
            raise ValueError(f"RayExecutor: gpus {gpus}; a fraction of one, or a whole number >= 0.")
        self._ray, self._grace = load_ray(), grace
        _connect(self._ray, address or os.environ.get("RAY_ADDRESS"))
        self._jobs = jobs or _room(self._ray, cpus, gpus)
        threads = {f"{name}_NUM_THREADS": str(cpus) for name in ("OMP", "MKL")}
        ours = {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)}
        # A fresh process each, as on one machine, and no second try: what was killed is for the study to resume.
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_calls": 1, "max_retries": 0}
        environment = {"env_vars": {**ours, **threads, "PYTHONUNBUFFERED": "1"}}
        self._task = self._ray.remote(**options, runtime_env=environment)(carry_out)
        self._running: dict[Any, Job] = {}

    @property
    def slots(self) -> int:
        """How many jobs run side by side."""
        return self._jobs

    def start(self, job: Job) -> None:
        """Submit a job. Where another process is at its run, the task waits for that one."""
        job.log.parent.mkdir(parents=True, exist_ok=True)
        task = self._task.options(name=job.name).remote(job.arguments, str(job.log), os.getcwd())
        self._running[task] = job

    def wait(self, timeout: float) -> Ended | None:
        """The next job that ended, or None if none did within `timeout` seconds."""
        ready, _ = self._ray.wait(list(self._running), timeout=timeout)
        if not ready:
            return None
        name = self._running.pop(ready[0]).name
        errors = self._ray.exceptions
        try:
            status, message = self._ray.get(ready[0])
        except errors.RayTaskError as error:
            return Ended(name, 1, str(error).strip().splitlines()[-1])
        except errors.RayError as error:
            # The worker died, with its node or for want of memory.
            return Ended(name, -9, f"{type(error).__name__}: {' '.join(str(error).split())}")
        return Ended(name, status, message)

    def stop(self) -> None:
        """Cancel every task, and return when they have ended or the grace is over."""
        for task in self._running:
            self._ray.cancel(task, force=True)
        if self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=self._grace)
        self._running.clear()


def carry_out(arguments: tuple[str, ...], log: str, folder: str) -> tuple[int, str]:
    """What a worker does: run `argprune` with arguments in a folder, its output into the log.

    Returns the exit status, and the last line printed.
    """
    os.chdir(folder)
    with open(log, "ab", buffering=0) as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_POLL_SECONDS)
        file.write(f"$ {shlex.join(['argprune', *arguments])}\n".encode())
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        # The process ends with this task, and so nothing is put back.
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        status = _main(arguments)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    return status, last_line(Path(log))


def _main(arguments: tuple[str, ...]) -> int:
    """The exit status that a process would have."""
    from argprune.cli import main

    try:
        return main(arguments)
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except Exception:
        traceback.print_exc()
        return 1


def _connect(ray: Any, address: str | None) -> None:
    if ray.is_initialized():
        return
    # Nothing is told to anybody about the use of Ray.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: Mapping[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    try:
        if address is None:
            ray.init(address="local", _node_ip_address="127.0.0.1", **quiet)
        else:
            ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"Ray at {address or 'this machine'}: {reason} Start a cluster (ray start --head), or correct the address."
        ) from error


def _room(ray: Any, cpus: int, gpus: float) -> int:
    """How many runs fit on the nodes that there are now."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def fit(node: Mapping[str, float]) -> int:
        least = node.get("CPU", 0) / cpus
        return int(min(least, node.get("GPU", 0) / gpus) if gpus else least)

    room = sum(map(fit, nodes))
    if not room:
        have = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise ValueError(
            f"Ray: no node has {cpus} CPUs and {gpus:g} GPUs for a run (there are: {have}). "
            "Ask for less, or give the number of jobs where nodes are yet to come."
        )
    return room
