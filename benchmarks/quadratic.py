"""The 0-1 quadratic program: time to proof over n, and how far below the optimum the bounds lie.

Instances as the dossier (paper-pins-sparsebert, section 7) describes them: n inputs of 4 n samples, 3 shared factors
plus noise, log-normal scales, one outlier feature; normal weights, no gradient; half of the weights pruned. Our branch
and bound solves the program with refit; CP-SAT, on linearised products, the one without refit on the same instances,
since its objective has to be a polynomial of the mask. A row that was not proved within the limit has proved = false,
its gap says how far it came.

    python benchmarks/quadratic.py [--quick] [--sizes N ...] [--cp-sat N ...] [--seeds N] [--limit S] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from argprune.solvers.ilp.quadratic import Quadratic
from argprune.solvers.ilp.quadratic_bounds import perspective_bound
from argprune.solvers.ilp.quadratic_exact import How, solve_quadratic
from argprune.solvers.ilp.quadratic_sdp import sdp_bound

BOUND_SIZE = 32


@dataclass(frozen=True)
class Proof:
    """One solve: seconds of wall clock; gap relative to the objective; what swaps' mask costs above it, relative."""

    method: str
    n: int
    seed: int
    proved: bool
    seconds: float
    nodes: int
    objective: float
    relative_gap: float
    swaps_above: float


@dataclass(frozen=True)
class Bound:
    """One lower bound with refit, as a share of the proved optimum."""

    name: str
    n: int
    seed: int
    share: float
    seconds: float


def instance(n: int, seed: int, refit: bool) -> Quadratic:
    """A correlated instance, the same with and without refit."""
    random = np.random.default_rng(seed)
    factors, loadings = random.standard_normal((4 * n, 3)), random.standard_normal((3, n))
    x = factors @ loadings + random.standard_normal((4 * n, n))
    scales = np.exp(random.standard_normal(n) / 2)
    scales[random.integers(n)] *= 8
    x *= scales
    hessian, weights = torch.from_numpy(2 * x.T @ x / len(x)), torch.from_numpy(random.standard_normal(n))
    return Quadratic(hessian, torch.zeros_like(weights), weights, keep=n // 2, refit=refit)


def prove(how: How, n: int, seed: int, limit: float) -> Proof:
    """Time one exact method on one instance."""
    problem = instance(n, seed, refit=how == "branch-and-bound")
    start = solve_quadratic(problem, "swaps")
    solution = solve_quadratic(problem, how, limit)
    return Proof(
        method=how,
        n=n,
        seed=seed,
        proved=solution.status == "optimal",
        seconds=solution.seconds,
        nodes=solution.nodes,
        objective=solution.objective,
        relative_gap=solution.gap / solution.objective,
        swaps_above=start.objective / solution.objective - 1,
    )


def bounds(seed: int) -> list[Bound]:
    """Every bound on one instance of the bounds' size."""
    problem = instance(BOUND_SIZE, seed, refit=True)
    optimum = solve_quadratic(problem, "branch-and-bound")
    if optimum.status != "optimal":
        raise RuntimeError(f"n = {BOUND_SIZE}, seed {seed} was not proved within a minute; no share to report.")
    methods: dict[str, Callable[[], float]] = {
        "perspective, smallest eigenvalue (Clarabel)": lambda: perspective_bound(problem, "cvxpy"),
        "perspective, ascent of the split (ours)": lambda: perspective_bound(problem),
        "SDP (Clarabel, certified)": lambda: sdp_bound(problem),
    }
    rows = []
    for name, method in methods.items():
        start = time.perf_counter()
        value = method()
        rows.append(Bound(name, BOUND_SIZE, seed, value / optimum.objective, time.perf_counter() - start))
    return rows


def main() -> None:
    """Print a row a size and a bound; write every instance's where asked."""
    parser = argparse.ArgumentParser(description="Exact 0-1 quadratic programs: time to proof, and bounds.")
    parser.add_argument("--quick", action="store_true", help="two seeds, small sizes, 10 s: for a look, not a report")
    parser.add_argument("--sizes", type=int, nargs="*", help="n of branch and bound (default 16 24 32 40 48 64)")
    parser.add_argument("--cp-sat", type=int, nargs="*", help="n of CP-SAT (default 16 20 24 28 32)")
    parser.add_argument("--seeds", type=int, help="instances a size, at least 1 (default 5)")
    parser.add_argument("--limit", type=float, help="seconds a solve (default 60)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows and the versions here")
    options = parser.parse_args()
    seeds = options.seeds if options.seeds is not None else (2 if options.quick else 5)
    limit = options.limit if options.limit is not None else (10.0 if options.quick else 60.0)
    if seeds < 1 or not limit > 0:
        parser.error(f"--seeds {seeds}, --limit {limit:g}: need at least 1 and more than 0.")
    sizes: dict[How, list[int]] = {
        "branch-and-bound": [16, 32, 40] if options.quick else [16, 24, 32, 40, 48, 64],
        "cp-sat": [16, 20] if options.quick else [16, 20, 24, 28, 32],
    }
    if options.sizes is not None:
        sizes["branch-and-bound"] = options.sizes
    if options.cp_sat is not None:
        sizes["cp-sat"] = options.cp_sat
    torch.set_num_threads(1)
    names = ("numpy", "ortools", "cvxpy", "clarabel")
    versions = {name: importlib.metadata.version(name) for name in names}
    print(", ".join(f"{name} {version}" for name, version in versions.items()), f"limit {limit:g} s, {seeds} seeds")
    print(f"{'method':18}{'n':>4}{'proved':>9}{'median s':>10}{'max s':>8}{'max nodes':>11}{'max gap':>9}{'swaps':>8}")
    proofs = []
    for how, ns in sizes.items():
        for n in ns:
            rows = [prove(how, n, seed, limit) for seed in range(seeds)]
            proofs += rows
            seconds = [row.seconds for row in rows]
            print(
                f"{how:18}{n:4}{sum(row.proved for row in rows):>6}/{seeds:<2}{statistics.median(seconds):10.2f}"
                f"{max(seconds):8.2f}{max(row.nodes for row in rows):11}"
                f"{100 * max(row.relative_gap for row in rows):8.1f}%"
                f"{100 * max(row.swaps_above for row in rows):7.1f}%",
                flush=True,
            )
    print(f"\n{'bound, n = ' + str(BOUND_SIZE):46}{'mean':>7}{'worst':>8}{'median s':>10}   share of the optimum")
    shares = [bound for seed in range(seeds) for bound in bounds(seed)]
    for name in dict.fromkeys(bound.name for bound in shares):
        own = [bound for bound in shares if bound.name == name]
        values = [bound.share for bound in own]
        seconds = [bound.seconds for bound in own]
        print(f"{name:46}{statistics.mean(values):7.3f}{min(values):8.3f}{statistics.median(seconds):10.3f}")
    if options.json:
        results = {"proofs": [asdict(proof) for proof in proofs], "bounds": [asdict(bound) for bound in shares]}
        options.json.write_text(json.dumps({"versions": versions, "limit": limit, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
