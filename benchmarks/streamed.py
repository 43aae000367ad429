"""Time and memory of keeping the tenth of least cost among a billion, of which one shard is in memory at a time.

The costs are normal float32 numbers, made again from a seed each time a shard is asked for, or read from safetensors
files in a temporary folder. `loading` is what one pass does without us: making or reading all shards, and nothing else.
Peak memory is that of the process, on Linux and macOS: Python, torch and the shard being made included. All masks are
made in the end; what they keep is counted and the certificate checked against them, in one pass each.

    python benchmarks/streamed.py [--entries N] [--shard N] [--files] [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from argprune.solvers.ilp import Shards, solve_streamed

DENSITY = 0.1
GIB = 1 << 30


@dataclass(frozen=True)
class Row:
    """One run; seconds of solving (all passes), of loading every shard once, of making all masks, of the check."""

    entries: int
    shards: int
    source: str
    passes: int
    kept: int
    exact: bool
    gap: float
    solving: float
    loading: float
    masks: float
    check: float
    costs_gib: float
    peak_gib: float


@dataclass(frozen=True)
class Made:
    """Shards of normal costs, made when asked for."""

    entries: int
    size: int

    def __len__(self) -> int:
        return math.ceil(self.entries / self.size)

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(index)
        return torch.randn(min(self.size, self.entries - index * self.size), generator=generator)


@dataclass(frozen=True)
class Files:
    """The same shards, read from a folder when asked for."""

    folder: Path
    number: int

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> Tensor:
        with safe_open(self.folder / f"{index}.safetensors", "pt") as file:
            costs: Tensor = file.get_tensor("costs")
        return costs


def peak() -> float:
    """The most memory that this process has held, in GiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024) / GIB


def seconds(function: Callable[[], object]) -> float:
    """What a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def load(shards: Shards) -> None:
    """One pass that does nothing with what it loads but read it."""
    for index in range(len(shards)):
        shard = shards[index]
        assert isinstance(shard, Tensor)
        shard[:: 4096 // shard.itemsize].sum()


def measure(shards: Shards, entries: int, source: str) -> Row:
    """Solve once, make all masks, check the certificate."""
    keep = int(DENSITY * entries)
    loading = seconds(lambda: load(shards))
    solution = solve_streamed(shards, keep)
    kept: list[int] = []
    masks = seconds(lambda: kept.extend(int(mask.count_nonzero()) for of_shard in solution for mask in of_shard))
    gaps = []
    check = seconds(lambda: gaps.append(solution.check()))
    return Row(
        entries=entries,
        shards=len(shards),
        source=source,
        passes=solution.passes,
        kept=sum(kept),
        exact=sum(kept) == keep,
        gap=gaps[0],
        solving=solution.seconds,
        loading=loading,
        masks=masks,
        check=check,
        costs_gib=4 * entries / GIB,
        peak_gib=peak(),
    )


def main() -> None:
    """Print the row; write it where asked."""
    parser = argparse.ArgumentParser(description="Time and memory of a selection that never holds all costs.")
    parser.add_argument("--entries", type=int, default=1_000_000_000, help="costs (default %(default)s)")
    parser.add_argument("--shard", type=int, default=64_000_000, help="costs of a shard (default %(default)s)")
    parser.add_argument("--files", action="store_true", help="write the shards to files first, and read these")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the row and the versions here")
    options = parser.parse_args()
    if options.entries < 1 or options.shard < 1:
        parser.error(f"--entries {options.entries} --shard {options.shard}: both need to be at least 1.")
    torch.set_num_threads(options.threads)
    made = Made(options.entries, options.shard)
    shards: Shards = made
    with tempfile.TemporaryDirectory() as folder:
        if options.files:
            for index in range(len(made)):
                save_file({"costs": made[index]}, Path(folder) / f"{index}.safetensors")
            shards = Files(Path(folder), len(made))
        row = measure(shards, options.entries, "files" if options.files else "made from seeds")
    print(f"torch {torch.__version__}, {options.threads} threads, {row.entries:,} costs in {row.shards} shards")
    print(f"{row.source}; {row.passes} passes, kept {row.kept:,} ({'exact' if row.exact else 'WRONG'}), gap {row.gap}")
    print(
        f"seconds: solving {row.solving:.1f}, of which loading {row.passes * row.loading:.1f} "
        f"({row.passes} x {row.loading:.1f}); masks {row.masks:.1f}; check {row.check:.1f}"
    )
    print(f"peak memory {row.peak_gib:.2f} GiB, for {row.costs_gib:.2f} GiB of costs")
    if options.json:
        versions = {"torch": torch.__version__, "numpy": np.__version__, "threads": options.threads}
        options.json.write_text(json.dumps({"versions": versions, "rows": [asdict(row)]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
