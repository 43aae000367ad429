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

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import prune

from argprune.solvers.ilp import Selection, solve

LAYER = [(768, 768)] * 4 + [(3072, 768), (768, 3072)]
LAYERS = 12
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
    return [torch.randn(shape, generator=generator).abs_().neg_() for shape in LAYER * (1 if quick else LAYERS)]


def certified(costs: list[Tensor], keep: int) -> list[Tensor]:
    """Ours, with objective and certificate."""
    return solve(Selection(costs, keep)).masks


def uncertified(costs: list[Tensor], keep: int) -> list[Tensor]:
    """Ours, with the objective alone."""
    return solve(Selection(costs, keep), certify=False).masks


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
    return [module.weight_mask != 0 for module in modules]


CONTENDERS: dict[str, Callable[[list[Tensor], int], list[Tensor]]] = {
    "argprune": certified,
    "argprune, no certificate": uncertified,
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
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    kept: dict[str, int] = {}
    names = list(CONTENDERS)
    for turn in range(repetitions + 1):
        # The order rotates: what one leaves in the caches must not always favour the same next.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            masks = CONTENDERS[name](costs, keep)
            elapsed = time.perf_counter() - start
            kept[name] = sum(int(mask.count_nonzero()) for mask in masks)
            del masks
            if turn:
                seconds[name].append(elapsed)
    rows = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name in CONTENDERS:
            lower, ratio, upper = statistics.quantiles(_ratios(seconds, name, REFERENCE), n=4)
            rows.append(
                Row(
                    contender=name,
                    entries=entries,
                    kept=kept[name],
                    exact=kept[name] == keep,
                    milliseconds=1e3 * statistics.median(seconds[name]),
                    ratio=ratio,
                    ratio_quartiles=(lower, upper),
                    ratios_beside={other: statistics.median(_ratios(seconds, name, other)) for other in BESIDE},
                    extra=pool.apply(extra_memory, (name, quick, threads)),
                    turns=repetitions,
                )
            )
    return rows


def _ratios(seconds: dict[str, list[float]], name: str, other: str) -> list[float]:
    return [own / base for own, base in zip(seconds[name], seconds[other], strict=True)]


def main() -> None:
    """Print one row a contender; write all of them where asked."""
    parser = argparse.ArgumentParser(description="Time and memory of selecting the tenth of least cost.")
    parser.add_argument("--quick", action="store_true", help="one tensor in twelve, three turns: not for a report")
    parser.add_argument("--repetitions", type=int, help="timed turns, at least 2 (default 11; quick 3)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows and the versions here")
    options = parser.parse_args()
    repetitions = options.repetitions or (3 if options.quick else 11)
    if repetitions < 2:
        parser.error(f"--repetitions {repetitions}: quartiles need at least 2.")
    torch.set_num_threads(options.threads)
    rows = compare(options.quick, repetitions, options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, {rows[0].entries:,} costs, {repetitions} turns")
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
    if options.json:
        versions = {"torch": torch.__version__, "numpy": np.__version__, "threads": options.threads}
        options.json.write_text(
            json.dumps({"versions": versions, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
