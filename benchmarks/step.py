"""What the prox adds to an optimizer step: ProximalOptimizer(AdamW) against the same AdamW alone.

Both sides hold copies of the same weights, with the shapes of a BERT encoder's prunable matrices, the same random
gradients, and the factors of a weighted l1. They are timed in turn, and the ratio is the median of the pairs' ratios,
so that whatever else the machine does meets both sides. Both sides take one optimizer step a turn. "two" passes: the
AdamW itself, then the prox; "one": both compiled together (`fused=True`), whichever AdamW is wrapped.

    python benchmarks/step.py [--quick] [--model NAME ...] [--repetitions N] [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from argprune.solvers.prox import LogReweighting, ProximalOptimizer, WeightedL1

# name: layers, hidden width, intermediate width
ENCODERS = {"minilm-l6": (6, 384, 1536), "bert-base": (12, 768, 3072)}
OPTIMIZERS = {"default": {}, "fused": {"fused": True}}
METRICS = ("decoupled", "metric")
PASSES = {"two": False, "one": True}
# Strong enough that a part of the entries becomes zero and stays there, as in a run; the arithmetic is the same.
STRENGTH = 1e-2


@dataclass(frozen=True)
class Row:
    """One comparison; milliseconds are medians over the repetitions, the ratio is the median of the pairs' ratios."""

    device: str
    model: str
    entries: int
    adamw: str
    metric: str
    passes: str
    alone_ms: float
    proximal_ms: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    pairs: int


def encoder_weights(model: str, device: torch.device) -> list[Tensor]:
    """Random matrices with the shapes of the encoder's prunable weights, gradients set."""
    layers, hidden, intermediate = ENCODERS[model]
    layer = [(hidden, hidden)] * 4 + [(intermediate, hidden), (hidden, intermediate)]
    weights = [(0.04 * torch.randn(shape, device=device)).requires_grad_() for shape in layer * layers]
    for weight in weights:
        weight.grad = 1e-3 * torch.randn_like(weight)
    return weights


def copies(weights: list[Tensor]) -> list[Tensor]:
    """The same values and gradients in memory of their own, as a run has them."""
    result = [weight.detach().clone().requires_grad_() for weight in weights]
    for copy, weight in zip(result, weights, strict=True):
        assert weight.grad is not None
        copy.grad = weight.grad.clone()
    return result


def timed(action: Callable[[], object], device: torch.device) -> float:
    """Seconds that one call takes, its device work included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(model: str, adamw: str, metric: str, passes: str, device: torch.device, repetitions: int, warm: int) -> Row:
    """Time one encoder, AdamW variant, metric and way, in interleaved pairs after `warm` untimed ones."""
    plain = encoder_weights(model, device)
    proximal_weights = copies(plain)
    reweighting = LogReweighting(eps=0.004)
    alone = torch.optim.AdamW(plain, lr=2e-5, **OPTIMIZERS[adamw])
    proximal = ProximalOptimizer(
        torch.optim.AdamW(proximal_weights, lr=2e-5, **OPTIMIZERS[adamw]),
        proximal_weights,
        [WeightedL1(1.0, reweighting.factors(weight)) for weight in proximal_weights],
        metric=metric,
        strength=STRENGTH,
        fused=PASSES[passes],
    )
    alone_seconds, proximal_seconds = [], []
    for repetition in range(warm + repetitions):
        # The order alternates: what the first leaves in the caches must not favour one side.
        if repetition % 2:
            second, first = timed(proximal.step, device), timed(alone.step, device)
        else:
            first, second = timed(alone.step, device), timed(proximal.step, device)
        if repetition >= warm:
            alone_seconds.append(first)
            proximal_seconds.append(second)
    ratios = [b / a for a, b in zip(alone_seconds, proximal_seconds, strict=True)]
    lower, ratio, upper = statistics.quantiles(ratios, n=4)
    return Row(
        device=device.type,
        model=model,
        entries=sum(weight.numel() for weight in plain),
        adamw=adamw,
        metric=metric,
        passes=passes,
        alone_ms=1e3 * statistics.median(alone_seconds),
        proximal_ms=1e3 * statistics.median(proximal_seconds),
        ratio=ratio,
        ratio_quartiles=(lower, upper),
        pairs=repetitions,
    )


def main() -> None:
    """Print one row a comparison; write all of them where asked."""
    parser = argparse.ArgumentParser(description="What the prox adds to an AdamW step.")
    parser.add_argument("--quick", action="store_true", help="few repetitions: for a look, not for a report")
    parser.add_argument("--model", nargs="+", choices=ENCODERS, default=list(ENCODERS), help="default: all")
    parser.add_argument("--repetitions", type=int, help="timed pairs a comparison, at least 2 (default 41; quick 7)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows and the versions here")
    options = parser.parse_args()
    repetitions = options.repetitions or (7 if options.quick else 41)
    if repetitions < 2:
        parser.error(f"--repetitions {repetitions}: quartiles need at least 2.")
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    rows = []
    print(f"torch {torch.__version__}, {options.threads} threads, {repetitions} interleaved pairs a row")
    header = f"{'device':8}{'model':12}{'entries':>12}  {'AdamW':9}{'metric':11}{'passes':8}"
    print(header + f"{'alone ms':>10}{'prox ms':>10}{'ratio':>8}  quartiles")
    for device in devices:
        for model in options.model:
            for adamw in OPTIMIZERS:
                for metric, passes in itertools.product(METRICS, PASSES):
                    row = compare(model, adamw, metric, passes, torch.device(device), repetitions, warm=3)
                    rows.append(row)
                    low, high = row.ratio_quartiles
                    print(
                        f"{row.device:8}{row.model:12}{row.entries:12,}  {row.adamw:9}{row.metric:11}{row.passes:8}"
                        f"{row.alone_ms:10.2f}{row.proximal_ms:10.2f}{row.ratio:8.3f}  {low:.3f}-{high:.3f}",
                        flush=True,
                    )
    if options.json:
        versions = {"torch": torch.__version__, "threads": options.threads}
        options.json.write_text(
            json.dumps({"versions": versions, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
