"""What one event of `pins` costs (score update, selection with certificate, mask), in AdamW steps on the same weights.

Every contender holds copies of the same weights and gradients, of the shapes of a BERT encoder's prunable matrices. An
event is everything that the method does after an optimizer step in which it selects: read gradient and weight, update
window and averages, solve, zero what is pruned. "one pass per operation" is what the official PINS code does, written
the same way: scores, window mean, both averages and their product as whole tensors, `cat`, `kthvalue`, a mask a tensor.
Weights are put back before each turn, untimed: the stepped weight of a pruned entry is not zero in a run either.
They take turns; ratios are medians of the turns' ratios to torch's AdamW, as it comes and fused (which runs use).

    python benchmarks/event.py [--quick] [--model NAME ...] [--repetitions N] [--threads N] [--json FILE]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import turns
from torch import Tensor

from argprune.solvers.groups import Weight
from argprune.solvers.methods import PINS, PLATON
from argprune.solvers.methods.scored import Scored

SPARSITY, RATE = 0.9, 2e-5
ADAMW = {"adamw, fused": {"fused": True}, "adamw, default": {}}
METHODS: dict[str, Callable[[], Scored]] = {
    "pins": lambda: PINS(SPARSITY, every=1, warmup=0.0),
    "pins, last batch alone": lambda: PINS(SPARSITY, every=1, warmup=0.0, beta=0.0),
    "pins, signed": lambda: PINS(SPARSITY, {"name": "pins", "sign": "signed"}, every=1, warmup=0.0),
    "pins, abs and uncertainty": lambda: PINS(
        SPARSITY, {"name": "pins", "sign": "abs"}, every=1, warmup=0.0, uncertainty=0.99
    ),
    "platon": lambda: PLATON(SPARSITY, every=1, warmup=0.0, masks="persistent"),
}
OFFICIAL = "one pass per operation"


@dataclass(frozen=True)
class Row:
    """One contender; milliseconds are medians, ratios medians of the turns' ratios to the two AdamWs."""

    model: str
    entries: int
    contender: str
    milliseconds: float
    to_fused: float
    to_fused_quartiles: tuple[float, float]
    to_default: float
    turns: int


def copies(model: str) -> list[torch.nn.Parameter]:
    """Weights and gradients with the shapes of the encoder's prunable matrices, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    shapes = turns.encoder_shapes(model)
    weights = [torch.nn.Parameter(0.04 * torch.randn(shape, generator=generator)) for shape in shapes]
    for weight in weights:
        weight.grad = 1e-3 * torch.randn(weight.shape, generator=generator)
    return weights


@dataclass(frozen=True)
class Contender:
    """What is timed, and the weights that it changes."""

    once: Callable[[], object]
    weights: list[torch.nn.Parameter]


def adamw(model: str, options: dict[str, Any]) -> Contender:
    """One optimizer step."""
    weights = copies(model)
    return Contender(torch.optim.AdamW(weights, lr=RATE, **options).step, weights)


def event(model: str, make: Callable[[], Scored]) -> Contender:
    """One event of a method, long after its first."""
    weights = copies(model)
    method = make()
    # A run so long that its schedule stands still while it is timed.
    total = 1_000_000
    method.attach([Weight(f"w{i}", weight) for i, weight in enumerate(weights)], total)
    method.wrap_optimizer(torch.optim.SGD(weights, lr=RATE))
    step = total // 2

    def once() -> None:
        method.before_step(step)
        method.after_step(step, RATE)

    return Contender(once, weights)


class Official:
    """The operations of the official code's update and mask, an operation at a time over all weights."""

    def __init__(self, model: str) -> None:
        self.weights = copies(model)
        self.window = [torch.zeros_like(weight) for weight in self.weights]
        self.average = [torch.zeros_like(weight) for weight in self.weights]
        self.deviation = [torch.zeros_like(weight) for weight in self.weights]

    @torch.no_grad()
    def __call__(self) -> None:
        scores: list[Tensor] = []
        for weight, window, average, deviation in zip(
            self.weights, self.window, self.average, self.deviation, strict=True
        ):
            gradient = weight.grad
            assert gradient is not None
            local = (-weight * gradient + RATE * gradient**2).abs()
            window.mul_(0).add_(local)
            average.copy_(0.85 * average + 0.15 * window)
            deviation.copy_(0.99 * deviation + 0.01 * (window - average).abs())
            scores.append(average * deviation)
        flat = torch.cat([score.view(-1) for score in scores])
        threshold = torch.kthvalue(flat, int(SPARSITY * len(flat))).values
        for weight, score in zip(self.weights, scores, strict=True):
            weight.masked_fill_(score < threshold, 0.0)


def compare(model: str, repetitions: int, warm: int) -> list[Row]:
    """Time all contenders in turn."""
    start_weights = [weight.detach() for weight in copies(model)]
    contenders = {name: adamw(model, options) for name, options in ADAMW.items()}
    contenders |= {name: event(model, make) for name, make in METHODS.items()}
    official = Official(model)
    contenders[OFFICIAL] = Contender(official, official.weights)

    @torch.no_grad()
    def put_back(name: str) -> None:
        for weight, value in zip(contenders[name].weights, start_weights, strict=True):
            weight.copy_(value)

    actions = {name: contender.once for name, contender in contenders.items()}
    seconds = turns.in_turns(actions, repetitions, warm, before=put_back)
    fused, default = ADAMW
    rows = []
    for name in contenders:
        to_fused, quartiles = turns.ratio(seconds, name, fused)
        rows.append(
            Row(
                model=model,
                entries=sum(weight.numel() for weight in start_weights),
                contender=name,
                milliseconds=turns.milliseconds(seconds, name),
                to_fused=to_fused,
                to_fused_quartiles=quartiles,
                to_default=turns.ratio(seconds, name, default)[0],
                turns=repetitions,
            )
        )
    return rows


def main() -> None:
    """Print one row a contender; write all of them where asked."""
    parser = turns.parser("What an event of pins costs, in AdamW steps.", "MiniLM, three turns", 11, 3)
    parser.add_argument("--model", choices=turns.ENCODERS, nargs="+", default=list(turns.ENCODERS))
    options = turns.parse(parser)
    rows = []
    for model in ["minilm-l6"] if options.quick else options.model:
        rows += compare(model, options.repetitions, warm=3)
        print(f"\ntorch {torch.__version__}, {options.threads} threads, {model}: {rows[-1].entries:,} weights")
        print(f"{'one step or event':28}{'ms':>9}{'x fused':>10}  {'quartiles':13}{'x default':>10}")
        for row in [row for row in rows if row.model == model]:
            low, high = row.to_fused_quartiles
            print(
                f"{row.contender:28}{row.milliseconds:9.1f}{row.to_fused:10.2f}  {f'{low:.2f}-{high:.2f}':13}"
                f"{row.to_default:10.2f}"
            )
    turns.write(options.json, rows, options.threads)


if __name__ == "__main__":
    main()
