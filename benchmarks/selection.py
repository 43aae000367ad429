"""Time and memory of the closed-form selection against what pruning codes do instead, on the shapes of BERT-base.

Every contender takes the same 72 float32 tensors of costs (85M entries) and makes one mask a tensor that keeps the 10%
of least cost over all of them. They take turns in one process, so that whatever else the machine does meets them all;
milliseconds are medians, ratios are medians of the turns' ratios to `torch.cat` + `torch.topk`, and in the next columns
to the fastest peer and to torch's own pruning utility: 0.25 is four times as fast. Peak memory is measured
in a process of its own for each, on Linux: what it takes above the costs and the masks that it returns, as a share of
the costs. `exact` says whether exactly as many were kept as asked: a threshold keeps all ties.

    python benchmarks/selection.py [--quick] [--repetitions N] [--threads N] [--json FILE]
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import turns
from torch import Tensor
from torch.nn.utils import prune

from argprune.solvers.ilp import Selection, solve

DENSITY = 0.1
REFERENCE = "cat + topk"
# Of the others, those that a ratio to is given as well.
BESIDE = ("numpy.partition", "global_unstructured")
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Row:
    """One contender; extra is peak memory above costs and masks, as a share of the costs (None off Linux)."""

    contender: str
    entries: int
    kept: int
    exact: bool
    milliseconds: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    ratios_beside: dict[str, float]
    extra: float | None
    turns: int


def make_costs(quick: bool) -> list[Tensor]:
    """Costs of the shapes of BERT-base's prunable matrices; one tensor in twelve where quick."""
    generator = torch.Generator().manual_seed(0)
    # In place: freed temporaries would stay resident and hide what a contender takes.
    shapes = turns.encoder_shapes("bert-base", 1 if quick else None)
    return [torch.randn(shape, generator=generator).abs_().neg_() for shape in shapes]


def certified(costs: list[Tensor], keep: int) -> list[Tensor]:
    """Ours, with its certificate."""
    return solve(Selection(costs, keep)).masks


def summed(costs: list[Tensor], keep: int) -> list[Tensor]:
    """Ours, with the certificate and the objective, which is added up when it is read."""
    solution = solve(Selection(costs, keep))
    assert solution.objective < 0
    return solution.masks


def kthvalue(costs: list[Tensor], keep: int) -> list[Tensor]:
    """What the official code of PINS does."""
    threshold = torch.cat([cost.flatten() for cost in costs]).kthvalue(keep).values
    return [cost <= threshold for cost in costs]


def topk(costs: list[Tensor], keep: int) -> list[Tensor]:
    """The other common way in torch."""
    flat = torch.cat([cost.flatten() for cost in costs])
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[flat.topk(keep, largest=False, sorted=False).indices] = True
    parts = torch.split(mask, [cost.numel() for cost in costs])
    return [part.view(cost.shape) for part, cost in zip(parts, costs, strict=True)]


def partition(costs: list[Tensor], keep: int) -> list[Tensor]:
    """NumPy's introselect."""
    flat = np.concatenate([cost.numpy().ravel() for cost in costs])
    flat.partition(keep - 1)
    threshold = flat[keep - 1]
    return [torch.from_numpy(cost.numpy() <= threshold) for cost in costs]


def global_unstructured(costs: list[Tensor], keep: int) -> list[Tensor]:
    """torch's pruning utility, on modules that hold the costs: it prunes those of least magnitude."""
    modules = []
    for cost in costs:
        module = torch.nn.Module()
        module.weight = torch.nn.Parameter(cost, requires_grad=False)
        modules.append(module)
    total = sum(cost.numel() for cost in costs)
    prune.global_unstructured([(m, "weight") for m in modules], prune.L1Unstructured, amount=total - keep)
    return [module.get_buffer("weight_mask") != 0 for module in modules]


CONTENDERS: dict[str, Callable[[list[Tensor], int], list[Tensor]]] = {
    "argprune": certified,
    "argprune, with objective": summed,
    "cat + kthvalue": kthvalue,
    REFERENCE: topk,
    "numpy.partition": partition,
    "global_unstructured": global_unstructured,
}


def extra_memory(name: str, quick: bool, threads: int) -> float | None:
    """Peak memory of one call above costs and masks, as a share of the costs; run in a fresh process."""
    if not STATUS.exists():
        return None
    torch.set_num_threads(threads)
    # A small call first: what is loaded or allocated once is not the call's.
    CONTENDERS[name]([-torch.rand(10_000), -torch.rand(100)], 1000)
    costs = make_costs(quick)
    entries = sum(cost.numel() for cost in costs)
    # Sets the peak back to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    masks = CONTENDERS[name](costs, int(DENSITY * entries))
    held = sum(mask.numel() for mask in masks)
    return (_resident("VmHWM") - before - held) / (4 * entries)


def _resident(entry: str) -> int:
    [line] = [line for line in STATUS.read_text().splitlines() if line.startswith(entry)]
    return 1024 * int(line.split()[1])


def compare(quick: bool, repetitions: int, threads: int) -> list[Row]:
    """Time all contenders in turn, then measure the memory of each."""
    costs = make_costs(quick)
    entries = sum(cost.numel() for cost in costs)
    keep = int(DENSITY * entries)
    kept: dict[str, int] = {}

    def count(name: str, masks: list[Tensor]) -> None:
        kept[name] = sum(int(mask.count_nonzero()) for mask in masks)

    actions = {name: partial(select, costs, keep) for name, select in CONTENDERS.items()}
    seconds = turns.in_turns(actions, repetitions, warm=1, after=count)
    rows = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name in CONTENDERS:
            ratio, quartiles = turns.ratio(seconds, name, REFERENCE)
            rows.append(
                Row(
                    contender=name,
                    entries=entries,
                    kept=kept[name],
                    exact=kept[name] == keep,
                    milliseconds=turns.milliseconds(seconds, name),
                    ratio=ratio,
                    ratio_quartiles=quartiles,
                    ratios_beside={other: turns.ratio(seconds, name, other)[0] for other in BESIDE},
                    extra=pool.apply(extra_memory, (name, quick, threads)),
                    turns=repetitions,
                )
            )
    return rows


def main() -> None:
    """Print one row a contender; write all of them where asked."""
    what = "one tensor in twelve, three turns"
    options = turns.parse(turns.parser("Time and memory of selecting the tenth of least cost.", what, 11, 3))
    rows = compare(options.quick, options.repetitions, options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, {rows[0].entries:,} costs, {rows[0].turns} turns")
    beside = "".join(f"{other:>22}" for other in BESIDE)
    print(f"{'contender':26}{'ms':>10}{'ratio':>8}  {'quartiles':15}{beside}{'extra':>8}  exact")
    for row in rows:
        low, high = row.ratio_quartiles
        extra = "" if row.extra is None else f"{row.extra:.3f}"
        beside = "".join(f"{ratio:22.4f}" for ratio in row.ratios_beside.values())
        print(
            f"{row.contender:26}{row.milliseconds:10.2f}{row.ratio:8.3f}  {f'{low:.3f}-{high:.3f}':15}"
            f"{beside}{extra:>8}  {'yes' if row.exact else 'no'}"
        )
    turns.write(options.json, rows, options.threads, numpy=np.__version__)


if __name__ == "__main__":
    main()
