"""How fast the prox operators are: against a copy of the same bytes, and against other libraries' operators.

Every row is one operator on the same 10M float32 (for groups: rows of 768). Two kinds: "new" returns a fresh array, as
all peers do; "held" writes where it reads, as an optimizer does. Sides are timed in turn after warm-up, medians are
reported, and the ratio is to argprune's own time of the kind: above 1 the peer is slower. Peers that are not installed
are left out: pyproximal 0.13, jaxopt, proxtorch, torchao, skglm (`pip install --no-deps` leaves torch alone).

    python benchmarks/prox.py [--quick] [--entries N] [--repetitions N] [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

STRENGTH, STEP = 0.7, 0.5
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
    """Time all sides in turn; the first is argprune's."""
    everything = [("copy", copy), *sides]
    seconds: dict[str, list[float]] = {name: [] for name, _ in everything}
    for turn in range(repetitions + 2):
        for name, action in everything:
            taken = timed(action)
            if turn >= 2:
                seconds[name].append(taken)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    own = medians[sides[0][0]]
    for name in medians:
        yield Row(operator, kind, name, 1000 * medians[name], medians[name] / own, medians[name] / medians["copy"])


def optional(module: str) -> Any:
    """The module, or None where it is not installed or does not import beside this torch."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        print(f"without {module}: {error}")
        return None


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1M entries, three repetitions")
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    # Before numpy, numba and XLA start their own.
    for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(arguments.threads)
    entries = 1_000_000 if arguments.quick else arguments.entries
    repetitions = 3 if arguments.quick else arguments.repetitions

    import torch

    torch.set_num_threads(arguments.threads)
    rows = [row for comparison in comparisons(entries) for row in compare(*comparison, repetitions)]
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

    from argprune.solvers import prox

    w = torch.randn(entries // WIDTH * WIDTH, generator=torch.Generator().manual_seed(0))
    held, factors = torch.empty_like(w), torch.rand_like(w)
    matrix, held_matrix = w.view(-1, WIDTH), held.view(-1, WIDTH)

    for name, operator in {
        "l1": prox.L1(STRENGTH),
        "elastic_net": prox.ElasticNet(STRENGTH),
        "l0": prox.L0(STRENGTH),
        "mcp": prox.MCP(STRENGTH),
        "scad": prox.SCAD(STRENGTH),
        "huber": prox.Huber(STRENGTH),
        "log_sum": prox.LogSum(STRENGTH, 0.5),
        "geman": prox.Geman(STRENGTH, 0.5),
        "l_half": prox.LHalf(STRENGTH),
    }.items():
        sides = [("argprune", lambda operator=operator: operator.prox(w, STEP)), *peers(name, w)]
        yield name, "new", w.clone, sides
        held.copy_(w)
        inplace: list[Side] = [("argprune", lambda operator=operator: operator.prox_(held, STEP))]
        yield name, "held", lambda: held.copy_(w), inplace
    weighted = prox.WeightedL1(STRENGTH, factors)
    held.copy_(w)
    yield (
        "weighted_l1",
        "held",
        # Reads w and its factors and writes w: the least that the operator can do.
        lambda: torch.add(held, factors, alpha=1e-9, out=held),
        [("argprune", lambda: weighted.prox_(held, STEP))],
    )
    lasso = prox.GroupLasso(STRENGTH)
    yield "group_lasso", "new", w.clone, [("argprune", lambda: lasso.prox(matrix, STEP)), *peers("group_lasso", matrix)]
    held.copy_(w)
    if hasattr(lasso, "prox_"):
        yield "group_lasso", "held", lambda: held.copy_(w), [("argprune", lambda: lasso.prox_(held_matrix, STEP))]


def peers(name: str, w: Any) -> list[Side]:
    """Other libraries' versions of an operator, in their own arrays, compiled where they can be."""
    import torch

    sides: list[Side] = []
    array = w.numpy()
    limit = STRENGTH * STEP
    if name == "l1":
        sides.append(("torch", lambda: torch.nn.functional.softshrink(w, limit)))
    pyproximal = optional("pyproximal")
    if pyproximal is not None:
        made = {
            "l1": lambda: pyproximal.L1(sigma=STRENGTH),
            "l0": lambda: pyproximal.L0(sigma=STRENGTH),
            "scad": lambda: pyproximal.SCAD(STRENGTH, 3.7),
            "huber": lambda: pyproximal.Huber(alpha=STRENGTH),
            "geman": lambda: pyproximal.Geman(STRENGTH, 0.5),
            "log_sum": lambda: pyproximal.Log1(STRENGTH, 0.5),
        }
        if name in made:
            peer = made[name]()
            sides.append(("pyproximal", lambda: peer.prox(array, STEP)))
        if name == "group_lasso":
            grouped = pyproximal.L21(ndim=WIDTH, sigma=STRENGTH)
            columns = array.T.copy().ravel()
            sides.append(("pyproximal", lambda: grouped.prox(columns, STEP)))
    jaxopt = optional("jaxopt")
    if jaxopt is not None:
        import jax

        x = jax.numpy.asarray(array)
        functions = {
            "l1": lambda v: jaxopt.prox.prox_lasso(v, STRENGTH, STEP),
            "elastic_net": lambda v: jaxopt.prox.prox_elastic_net(v, (STRENGTH, 1.0), STEP),
            "group_lasso": lambda v: jax.vmap(lambda r: jaxopt.prox.prox_group_lasso(r, STRENGTH, STEP))(v),
        }
        if name in functions:
            compiled = jax.jit(functions[name])
            sides.append(("jaxopt (jit)", lambda: compiled(x)))
    proxtorch = optional("proxtorch.operators.l1")
    if proxtorch is not None and name == "l1":
        peer_l1 = proxtorch.L1(STRENGTH)
        sides.append(("proxtorch", lambda: peer_l1.prox(w, STEP)))
    pat = optional("torchao.prototype.pat.optim")
    if pat is not None and name in ("l1", "group_lasso"):
        if name == "l1":
            mapping = pat.ProxLasso(STRENGTH)
        else:
            mapping = importlib.import_module("torchao.prototype.pat.optim.group_lasso").ProxGroupLassoVectorized(
                STRENGTH, 1
            )
        sides.append(("torchao PAT", lambda: mapping.apply_(w.clone(), STEP)))
    skglm = optional("skglm.utils.prox_funcs")
    if skglm is not None:
        side = _skglm(skglm, name, array)
        if side is not None:
            sides.append(("skglm", side))
    return sides


def _skglm(skglm: Any, name: str, array: Any) -> Callable[[], object] | None:
    """skglm's scalar operators in a compiled loop over the entries, which is how its solvers call them."""
    import numba
    import numpy as np

    scalar = {
        "l1": lambda: skglm.ST,
        "mcp": lambda: skglm.prox_MCP,
        "scad": lambda: skglm.prox_SCAD,
        "l_half": lambda: skglm.prox_05,
        "log_sum": lambda: skglm.prox_log_sum,
    }
    if name not in scalar:
        return None
    function = scalar[name]()
    arguments = {
        "l1": (STRENGTH * STEP,),
        "mcp": (STEP, STRENGTH, 3.0),
        "scad": (STEP, STRENGTH, 3.7),
        "l_half": (STRENGTH * STEP,),
        "log_sum": (STRENGTH * STEP, 0.5),
    }[name]

    @numba.njit(parallel=True)
    def loop(x: Any) -> Any:
        result = np.empty_like(x)
        for i in numba.prange(x.size):
            result[i] = function(x[i], *arguments)
        return result

    try:
        loop(array[:64])
    except numba.NumbaError as error:
        print(f"without skglm {name}: {str(error).splitlines()[0]}")
        return None
    return lambda: loop(array)


if __name__ == "__main__":
    main()
