"""How fast the prox operators are: against a copy of the same bytes, and against other libraries' operators.

Every row is one operator on the same 10M float32 (for groups: rows of 768). Two kinds: "new" returns a fresh array, as
all peers do; "held" writes where it reads, as an optimizer does. Sides are timed in turn after warm-up, medians are
reported, and the ratio is to argprune's: above 1 the other side is slower. argprune's side is the compiled pass
(`prox.Fused`) where the operator has one, and "eager" then the same operator without. Peers that are not installed are
left out (`peers`).

    python benchmarks/prox.py [--quick] [--only OPERATOR ...] [--repetitions N] [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

WIDTH = 768


@dataclass(frozen=True)
class Row:
    """One side of a comparison; milliseconds are medians."""

    operator: str
    kind: str
    library: str
    milliseconds: float
    ratio_to_argprune: float
    ratio_to_copy: float


Side = tuple[str, Callable[[], object]]


def timed(action: Callable[[], object]) -> float:
    """Seconds that one call takes; waits for libraries that compute asynchronously."""
    start = time.perf_counter()
    result = action()
    wait = getattr(result, "block_until_ready", None)
    if wait is not None:
        wait()
    return time.perf_counter() - start


def compare(operator: str, kind: str, copy: Callable[[], object], sides: list[Side], repetitions: int) -> Iterator[Row]:
    """Time all sides in turn, slow ones fewer times; the first is argprune's."""
    everything = [("copy", copy), *sides]
    seconds: dict[str, list[float]] = {name: [] for name, _ in everything}
    for turn in range(repetitions + 2):
        for name, action in everything:
            if len(seconds[name]) >= 3 and sum(seconds[name]) > 5:
                continue
            taken = timed(action)
            if turn >= 2:
                seconds[name].append(taken)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    own = medians[sides[0][0]]
    for name in medians:
        yield Row(operator, kind, name, 1000 * medians[name], medians[name] / own, medians[name] / medians["copy"])


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1M entries, three repetitions")
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", metavar="OPERATOR", help="default: all")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    # Before numpy, numba and XLA start their own.
    for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(arguments.threads)
    entries = 1_000_000 if arguments.quick else arguments.entries
    repetitions = 3 if arguments.quick else arguments.repetitions

    import torch

    torch.set_num_threads(arguments.threads)
    rows: list[Row] = []
    for comparison in comparisons(entries):
        if not arguments.only or comparison[0] in arguments.only:
            rows += compare(*comparison, repetitions)
    print(f"{'operator':<14} {'kind':<5} {'library':<12} {'ms':>8} {'x argprune':>11} {'x copy':>8}")
    for row in rows:
        print(
            f"{row.operator:<14} {row.kind:<5} {row.library:<12} {row.milliseconds:8.2f} {row.ratio_to_argprune:11.2f} "
            f"{row.ratio_to_copy:8.2f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


def comparisons(entries: int) -> Iterator[tuple[str, str, Callable[[], object], list[Side]]]:
    """Operator, kind, the copy, and the sides."""
    import torch
    from peers import GROUP_STRENGTH, KEPT, RADIUS, STEP, STRENGTH, peers

    from argprune.solvers import prox
    from argprune.solvers.prox.base import formula_of

    w = torch.randn(entries // WIDTH * WIDTH, generator=torch.Generator().manual_seed(0))
    held, factors, matrix = torch.empty_like(w), torch.rand_like(w), w.view(-1, WIDTH)

    def both(operator: Any, x: torch.Tensor, member: str = "prox") -> list[Side]:
        """argprune's sides: the compiled pass where there is one, and the operator as it is."""
        sides = [("eager", lambda: getattr(operator, member)(x, STEP))]
        if formula_of(operator) is None:
            return [("argprune", sides[0][1])]
        fused = prox.Fused(operator)
        return [("argprune", lambda: getattr(fused, member)(x, STEP)), *sides]

    separable = {
        "l1": prox.L1(STRENGTH),
        "elastic_net": prox.ElasticNet(STRENGTH),
        "squared_l2": prox.SquaredL2(STRENGTH),
        "huber": prox.Huber(STRENGTH),
        "nonnegative_l1": prox.NonNegativeL1(STRENGTH),
        "l0": prox.L0(STRENGTH),
        "mcp": prox.MCP(STRENGTH),
        "scad": prox.SCAD(STRENGTH),
        "log_sum": prox.LogSum(STRENGTH, 0.5),
        "geman": prox.Geman(STRENGTH, 0.5),
        "l_half": prox.LHalf(STRENGTH),
        "l_two_thirds": prox.LTwoThirds(STRENGTH),
    }
    for name, operator in separable.items():
        yield name, "new", w.clone, [*both(operator, w), *peers(name, w)]
        held.copy_(w)
        inplace = both(operator, held, "prox_")
        if name == "l1":
            # The stub lacks `out`.
            into = partial(torch._C._nn.softshrink, w, STRENGTH * STEP, out=held)  # type: ignore[call-arg]
            inplace.append(("torch", into))
        yield name, "held", lambda: held.copy_(w), inplace
    held.copy_(w)
    # The copy beside it reads w and its factors and writes w: the least that the operator can do.
    least = partial(torch.add, held, factors, alpha=1e-9, out=held)
    yield "weighted_l1", "held", least, both(prox.WeightedL1(STRENGTH, factors), held, "prox_")
    together = {
        "group_lasso": (prox.GroupLasso(GROUP_STRENGTH), matrix),
        "slope": (prox.SLOPE(STRENGTH), w),
        "box": (prox.Box(-1.0, 1.0), w),
        "simplex": (prox.Simplex(RADIUS), w),
        "l1_ball": (prox.L1Ball(RADIUS), w),
        "l2_ball": (prox.L2Ball(RADIUS), w),
        "l0_ball": (prox.L0Ball(int(KEPT * w.numel())), w),
        "nuclear": (prox.Nuclear(STRENGTH), matrix[:WIDTH]),
    }
    for name, (operator, x) in together.items():
        yield name, "new", x.clone, [*both(operator, x), *peers(name, x)]


if __name__ == "__main__":
    main()
