"""What pruning adds to a training step: `magnitude` and `rpp` against plain fine-tuning of the embedded model.

Three copies of MiniLM take turns on the same batch: blocks of as many steps as lie between two pruning events, so that
every block holds one event. The ratio is the median over blocks of (method's block / dense block of the same turn).

    python benchmarks/training.py [--quick] [--blocks N] [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from argprune.models import find_weights, load_model
from argprune.solvers.methods import RPP, Dense, Magnitude, Method

BATCH, LENGTH, EVENT = 16, 28, 8
# Half of the steps prune and half cool down, without a dense warm-up: both phases then have their blocks.
METHODS: dict[str, Callable[[], Method]] = {
    "dense": Dense,
    "magnitude": lambda: Magnitude(0.8, warmup=0, cooldown=0.5, every=EVENT),
    "rpp (metric)": lambda: RPP(0.8, warmup=0, cooldown=0.5, reweight_every=EVENT),
    "rpp (decoupled)": lambda: RPP(0.8, warmup=0, cooldown=0.5, reweight_every=EVENT, metric="decoupled"),
}


@dataclass(frozen=True)
class Row:
    """One method in one phase; milliseconds a step, medians over blocks."""

    method: str
    phase: str
    step_ms: float
    ratio: float
    blocks: int


class Trainee:
    """A model, its optimizer and a method, stepped by hand with the harness's order of calls."""

    def __init__(self, method: Method, total_steps: int) -> None:
        torch.manual_seed(0)
        self.model = load_model("minilm", num_labels=8).train()
        self.method = method
        method.attach(find_weights(self.model), total_steps)
        self.optimizer = method.wrap_optimizer(torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True))
        self.step = 0

    def block(self, batch: dict[str, torch.Tensor]) -> float:
        """Seconds of `EVENT` optimizer steps."""
        began = time.perf_counter()
        for _ in range(EVENT):
            self.model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.method.before_step(self.step)
            self.optimizer.step()
            self.method.after_step(self.step, 1e-4)
            self.model.zero_grad()
            self.step += 1
        return time.perf_counter() - began


def measure(blocks: int) -> list[Row]:
    """Rows for the pruning phase and for the cool-down, `blocks` blocks each; the first block of each warms up."""
    batch = {
        "input_ids": torch.randint(1000, 20000, (BATCH, LENGTH)),
        "attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.long),
        "labels": torch.randint(0, 8, (BATCH,)),
    }
    total = 2 * (blocks + 1) * EVENT
    trainees = {name: Trainee(make(), total) for name, make in METHODS.items()}
    rows = []
    for phase in ("pruning", "cool-down"):
        seconds: dict[str, list[float]] = {name: [] for name in trainees}
        for turn in range(blocks + 1):
            for name, trainee in trainees.items():
                taken = trainee.block(batch)
                if turn:
                    seconds[name].append(taken)
        for name, taken_list in seconds.items():
            ratios = [own / dense for own, dense in zip(taken_list, seconds["dense"], strict=True)]
            step_ms = 1000 * statistics.median(taken_list) / EVENT
            rows.append(Row(name, phase, step_ms, statistics.median(ratios), blocks))
    return rows


def main() -> None:
    """Measure, print the rows, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three blocks")
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = measure(3 if arguments.quick else arguments.blocks)
    for row in rows:
        print(f"{row.phase:<10} {row.method:<16} {row.step_ms:8.1f} ms a step   {row.ratio:5.3f} of dense")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
