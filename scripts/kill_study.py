"""Kill a study at random moments and compare what comes of it with the study left alone, bit for bit.

    python scripts/kill_study.py studies/kills.yaml WORK [--kills 5] [--seed 0] [--jobs 2] [--ray]

WORK/whole      the study, never interrupted (made first; it may be there already)
WORK/killed     the study, killed with all its processes (SIGKILL) and started again, until it is complete
WORK/ray        with --ray: the study on a Ray cluster of this machine

Compared are the collected tables but for seconds, the metrics, and the bytes of masks and models. Exit status 0 where
all are equal. The study's output must be relative: the folders above are the working directories.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

BYTES = ("masks.safetensors", "model/model.safetensors")


def command(study: Path, jobs: int, *options: str) -> list[str]:
    """`argprune study` with a table in the working directory; each run on one thread, wherever it is."""
    fixed = ["--jobs", str(jobs), "--cpus", "1", "--collect", "table.csv", "--quiet"]
    return [sys.executable, "-m", "argprune", "study", str(study), *fixed, *options]


def run(arguments: list[str], folder: Path) -> None:
    """A study from start to end. Raises SystemExit where it does not end well."""
    folder.mkdir(parents=True, exist_ok=True)
    if status := subprocess.run(arguments, cwd=folder, check=False).returncode:
        raise SystemExit(f"{folder}: the study ended with exit status {status}.")


def kill_tree(process: subprocess.Popen[bytes]) -> int:
    """Kill a process and all that it started; how many there were."""
    # Stopped first: it must not start another run between the listing and the killing.
    process.send_signal(signal.SIGSTOP)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in children:
        if child.is_running():
            child.kill()
    process.wait()
    psutil.wait_procs(children, timeout=30)
    return 1 + len(children)


def run_with_kills(arguments: list[str], folder: Path, output: str, runs: int, kills: int, seed: int) -> None:
    """A study killed at random moments, spread over its runs, and then left to end."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)

    def count(pattern: str) -> int:
        return len(list((folder / output).glob(pattern)))

    for number in range(kills):
        process = subprocess.Popen(arguments, cwd=folder, start_new_session=True)
        # Not before something has begun, nor when all has ended; how fast the machine is does not matter.
        finished = min(round(chance.uniform(number, number + 0.9) * runs / kills), runs - 2)
        begun = count("*.log")
        while process.poll() is None and (count("*/metrics.json") < finished or count("*.log") <= min(begun, runs - 2)):
            time.sleep(0.02)
        wait = chance.uniform(0, 12 if chance.random() < 0.7 else 0.5)
        deadline = time.monotonic() + wait
        while process.poll() is None and time.monotonic() < deadline and count("*/metrics.json") < runs - 1:
            time.sleep(0.02)
        if process.poll() is not None:
            raise SystemExit(
                f"{folder}: the study ended with exit status {process.returncode} before kill {number + 1}."
            )
        done = count("*/metrics.json")
        print(f"kill {number + 1}: {kill_tree(process)} processes, {done} of {runs} runs finished", flush=True)
    run(arguments, folder)


def table(folder: Path) -> list[dict[str, str]]:
    """The collected table but for what a clock says."""
    with (folder / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


def differences(one: Path, other: Path, output: str) -> list[str]:
    """What is not the same in two working directories; empty: nothing."""
    found = [] if table(one) == table(other) else ["table.csv"]
    runs = [{path.parent.name for path in (folder / output).glob("*/metrics.json")} for folder in (one, other)]
    if runs[0] != runs[1]:
        found.append(f"runs {sorted(runs[0] ^ runs[1])}")
    for name in sorted(runs[0] & runs[1]):
        first, second = one / output / name, other / output / name
        if timeless(first) != timeless(second):
            found.append(f"{name}/metrics.json")
        found += [f"{name}/{file}" for file in BYTES if (first / file).read_bytes() != (second / file).read_bytes()]
        steps = [[json.loads(line)["step"] for line in (run / "log.jsonl").open()] for run in (first, second)]
        found += [f"{name}/log.jsonl"] if steps[0] != steps[1] else []
    return found


def timeless(run: Path) -> Any:
    """A run's metrics but for what a clock says."""
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(entry) for key, entry in value.items() if "seconds" not in key}
        return value

    return without(metrics)


def main() -> int:
    """Kill a study at random, and compare it with one left alone; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--ray", action="store_true", help="also on a local Ray cluster")
    parser.add_argument("--only-ray", action="store_true", help="only that, and no kills")
    options = parser.parse_args()
    study, work = options.study.resolve(), options.work.resolve()
    output = yaml.safe_load(study.read_text(encoding="utf-8"))["output"]
    if os.path.isabs(output):
        raise SystemExit(f"{study}: output {output} must be relative.")
    local = command(study, options.jobs)
    began = time.monotonic()
    run(local, work / "whole")
    runs = len(list((work / "whole" / output).glob("*/metrics.json")))
    print(f"whole: {runs} runs in {time.monotonic() - began:.0f} s", flush=True)
    folders = []
    if not options.only_ray:
        run_with_kills(local, work / "killed", output, runs, options.kills, options.seed)
        folders.append("killed")
    if options.ray or options.only_ray:
        run(command(study, options.jobs, "--backend", "ray"), work / "ray")
        folders.append("ray")
    bad = 0
    for name in folders:
        found = differences(work / "whole", work / name, output)
        bad += len(found)
        print(f"{name}: " + (f"DIFFERENT: {', '.join(found)}" if found else f"all {runs} runs equal"), flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
