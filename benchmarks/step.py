"""What the prox adds to an optimizer step: ProximalOptimizer(AdamW) against the same AdamW alone.

Both sides hold copies of the same weights, with the shapes of a BERT encoder's prunable matrices, the same random
gradients, and the factors of a weighted l1. They are timed in turn, and the ratio is the median of the pairs' ratios,
so that whatever else the machine does meets both sides. Both sides take one optimizer step a turn. "two" passes: the
AdamW itself, then the prox; "one": both compiled together (`fused=True`), whichever AdamW is wrapped.

    python benchmarks/step.py [--quick] [--model NAME ...] [--repetitions N] [--threads N] [--json FILE]
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import turns
from torch import nn

from argprune.solvers.prox import LogReweighting, ProximalOptimizer, WeightedL1
from argprune.solvers.prox.optimizer import Metric

OPTIMIZERS: dict[str, dict[str, Any]] = {"default": {}, "fused": {"fused": True}}
METRICS: tuple[Metric, ...] = ("decoupled", "metric")
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


def encoder_weights(model: str, device: torch.device) -> list[nn.Parameter]:
    """Random matrices with the shapes of the encoder's prunable weights, gradients set."""
    shapes = turns.encoder_shapes(model)
    weights = [nn.Parameter(0.04 * torch.randn(shape, device=device)) for shape in shapes]
    for weight in weights:
        weight.grad = 1e-3 * torch.randn_like(weight)
    return weights


def copies(weights: list[nn.Parameter]) -> list[nn.Parameter]:
    """The same values and gradients in memory of their own, as a run has them."""
    result = [nn.Parameter(weight.detach().clone()) for weight in weights]
    for copy, weight in zip(result, weights, strict=True):
        assert weight.grad is not None
        copy.grad = weight.grad.clone()
    return result


def compare(
    model: str, adamw: str, metric: Metric, passes: str, device: torch.device, repetitions: int, warm: int
) -> Row:
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
    # Two sides in rotation alternate.
    seconds = turns.in_turns({"alone": alone.step, "proximal": proximal.step}, repetitions, warm)
    ratio, quartiles = turns.ratio(seconds, "proximal", "alone")
    return Row(
        device=device.type,
        model=model,
        entries=sum(weight.numel() for weight in plain),
        adamw=adamw,
        metric=metric,
        passes=passes,
        alone_ms=turns.milliseconds(seconds, "alone"),
        proximal_ms=turns.milliseconds(seconds, "proximal"),
        ratio=ratio,
        ratio_quartiles=quartiles,
        pairs=repetitions,
    )


def main() -> None:
    """Print one row a comparison; write all of them where asked."""
    parser = turns.parser("What the prox adds to an AdamW step.", "few pairs", 41, 7)
    parser.add_argument("--model", nargs="+", choices=turns.ENCODERS, default=list(turns.ENCODERS), help="default: all")
    options = turns.parse(parser)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    rows = []
    print(f"torch {torch.__version__}, {options.threads} threads, {options.repetitions} interleaved pairs a row")
    header = f"{'device':8}{'model':12}{'entries':>12}  {'AdamW':9}{'metric':11}{'passes':8}"
    print(header + f"{'alone ms':>10}{'prox ms':>10}{'ratio':>8}  quartiles")
    for device in devices:
        for model in options.model:
            for adamw in OPTIMIZERS:
                for metric, passes in itertools.product(METRICS, PASSES):
                    row = compare(model, adamw, metric, passes, torch.device(device), options.repetitions, warm=3)
                    rows.append(row)
                    low, high = row.ratio_quartiles
                    print(
                        f"{row.device:8}{row.model:12}{row.entries:12,}  {row.adamw:9}{row.metric:11}{row.passes:8}"
                        f"{row.alone_ms:10.2f}{row.proximal_ms:10.2f}{row.ratio:8.3f}  {low:.3f}-{high:.3f}",
                        flush=True,
                    )
    turns.write(options.json, rows, options.threads)


if __name__ == "__main__":
    main()
