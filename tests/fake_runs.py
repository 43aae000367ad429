"""Studies without training: a script in place of `argprune prune`, and an executor without processes.

`FAKE` keeps to the contract of a run and does as the option `fake` says. `Instant` finishes jobs at once.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from argprune.tasks.studies import (
    Ended,
    Job,
    LocalExecutor,
    Study,
    run_study,
)

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
