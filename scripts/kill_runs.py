"""Kill a short run at random moments, resume it until it ends, and compare its bytes; many times over.

    python scripts/kill_runs.py [--trials 100] [--seed 0] [--work DIR] [-- OPTIONS of argprune prune]

A trial is a run in a folder of its own, ended by SIGTERM or SIGKILL at moments drawn at random, at least once, and
resumed until it has come to its end. Compared are the masks, the model, the steps of the log and the metrics but for
seconds. Exit status 0 where all trials are equal. Attempts are forks of this process, which has imported everything
and computes on one thread (POSIX only).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FILES = ("masks.safetensors", "model/model.safetensors")
OPTIONS = (
    *("--model", "minilm", "--task", "stdlib-docs", "--method", "rpp", "--sparsity", "0.5", "--max_steps", "12"),
    *("--batch_size", "4", "--max_length", "12", "--train_rows", "200", "--eval_rows", "20"),
    *("--checkpoint_every", "3", "--log_every", "1"),
)


def attempt(options: list[str], output: Path, log: Path) -> int:
    """Start `argprune prune --resume` in a fork; its process id."""
    if pid := os.fork():
        return pid
    status = 70
    try:
        # As a fresh process has it: what this one does on SIGTERM is none of the run's business.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        from argprune.cli import main

        status = main(["prune", *options, "--output", str(output), "--resume", "--quiet"])
    finally:
        os._exit(status)


def ended(pid: int, seconds: float) -> int | None:
    """The wait status of a process that ended within some seconds."""
    deadline = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.002)


def result(output: Path) -> dict[str, Any]:
    """What a run came to, but for what a clock says."""
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: timeless(entry) for key, entry in value.items() if "seconds" not in key}
        return value

    steps = [json.loads(line)["step"] for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    left = sorted(path.name for path in output.iterdir() if path.name.startswith("checkpoint-"))
    return {
        "metrics": timeless(metrics),
        "steps": steps,
        "checkpoints": left,
        **{name: (output / name).read_bytes() for name in FILES},
    }


def trial(options: list[str], folder: Path, seconds: float, chance: random.Random) -> tuple[int, float]:
    """A run killed again and again; how many times, and how long the last attempt took."""
    kills = 0
    while True:
        began = time.monotonic()
        pid = attempt(options, folder / "run", folder / "log")
        # At most four in one trial, or a long run of early kills would never end.
        moment = chance.uniform(0, seconds) if kills < 4 else float("inf")
        status = ended(pid, moment)
        if status is None:
            os.kill(pid, chance.choice([signal.SIGTERM, signal.SIGKILL]))
            _, status = os.waitpid(pid, 0)
            kills += 1
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status):
                said = (folder / "log").read_text(errors="replace").strip().splitlines()[-1:]
                raise SystemExit(f"{folder}: exit status {os.WEXITSTATUS(status)}: {''.join(said)}")
            return kills, time.monotonic() - began


def main() -> int:
    """Kill runs at random, and compare each with one left alone; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the signals")
    parser.add_argument("--work", type=Path, help="where the runs go (default: a temporary folder, removed)")
    parser.add_argument("options", nargs="*", help="of argprune prune, after --; default: a short run of minilm")
    arguments = parser.parse_args()
    options = arguments.options or list(OPTIONS)
    import torch

    import argprune.tasks.prune  # noqa: F401  (once, and not in every fork)

    torch.set_num_threads(1)
    temporary = None if arguments.work else tempfile.TemporaryDirectory()
    work = arguments.work or Path(temporary.name)  # type: ignore[union-attr]
    dense = work / "dense" / "run"
    dense.parent.mkdir(parents=True, exist_ok=True)
    whole = work / "whole"
    whole.mkdir(exist_ok=True)
    # The reference is made once, by the first run, and shared.
    options += ["--dense", str(dense)]
    if ended(attempt(options, whole / "run", whole / "log"), 3600):
        raise SystemExit((whole / "log").read_text())
    shutil.rmtree(whole / "run")
    began = time.monotonic()
    ended(attempt(options, whole / "run", whole / "log"), 3600)
    seconds = time.monotonic() - began
    expected = result(whole / "run")
    chance, kills, bad = random.Random(arguments.seed), 0, 0
    for number in range(arguments.trials):
        folder, times = work / f"trial-{number}", 0
        while not times:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            times, took = trial(options, folder, seconds, chance)
            # What was faster than its moment was no trial; the next moment comes within that time.
            seconds = seconds if times else min(seconds, took)
        kills += times
        found = result(folder / "run")
        if different := [name for name in expected if expected[name] != found[name]]:
            print(f"trial {number}: DIFFERENT: {', '.join(different)} ({folder})", flush=True)
            bad += 1
        else:
            shutil.rmtree(folder)
        if (number + 1) % 10 == 0:
            print(f"{number + 1} trials, {kills} kills so far", flush=True)
    print(f"{arguments.trials} trials, {kills} kills: {bad} different")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
