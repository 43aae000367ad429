"""What low-rank factors cost and buy: layers, training steps and whole encoders against the dense ones.

Sides: `factors`, two thin matrices that take a share of the dense numbers; `gates on`, factors at break-even rank with
a gate on every component, as a method trains them; `half closed`, the same with every second gate closed, whose
components are left out of the computation; `compact`, what is left once those are dropped for good. Weights are random:
only the time is of interest. Ratios are dense / side of the same turn: above 1 the side is faster. A step is a pass
forward and backward; of encoders with AdamW. Encoders are pruned by the same share of every matrix, ranks a multiple of
8.

    python benchmarks/factorised.py [--quick] [--part NAME ...] [--model NAME ...] [--tokens N ...]
                                    [--repetitions N] [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from inference import LENGTH, encoder
from torch import Tensor, nn
from turns import ENCODERS, in_turns, milliseconds, parse, parser, ratio, write

from argprune.models import compact, factorise, find_factors, find_weights
from argprune.models.export import example_inputs, read_logits
from argprune.models.factorised import FactorisedLinear
from argprune.solvers.low_rank import break_even_rank, factorise_random

PARTS = ("forward", "step", "inference", "training")
# (outputs, inputs)
SHAPES = ((768, 768), (3072, 768), (768, 3072), (384, 384), (1536, 384))
SHARES = (0.25, 0.5, 0.75, 1.0)
PRUNED = (0.5, 0.8)
# Texts of 128 tokens in an encoder's training step.
BATCH = 16


@dataclass(frozen=True)
class Row:
    """One comparison. Milliseconds are medians; ratios are medians over the turns of dense / side, with quartiles.

    what: a layer's shape or an encoder's name. share: of the dense numbers that the side takes.
    """

    part: str
    what: str
    tokens: int
    side: str
    share: float
    dense_ms: float
    side_ms: float
    ratio: float
    ratio_quartiles: tuple[float, float]


def aligned(rank: float) -> int:
    """The nearest rank that kernels like."""
    return max(8, 8 * round(rank / 8))


def layer(outputs: int, inputs: int, rank: int) -> FactorisedLinear:
    """A layer of random factors."""
    found = factorise_random((outputs, inputs), rank, torch.Generator().manual_seed(0))
    return FactorisedLinear(found.first, found.second, torch.zeros(outputs))


def share(model: nn.Module, dense: nn.Module) -> float:
    """The numbers of a model's layers, biases and all, over those of the dense one."""
    sizes = [sum(parameter.numel() for parameter in each.parameters()) for each in (model, dense)]
    return sizes[0] / sizes[1]


def compare(
    part: str,
    what: str,
    tokens: int,
    sides: Mapping[str, tuple[float, Callable[[], object]]],
    dense: Callable[[], object],
    repetitions: int,
) -> list[Row]:
    """All sides, with their shares, and the dense one in turns."""
    seconds = in_turns({"dense": dense, **{name: run for name, (_, run) in sides.items()}}, repetitions, 2)
    rows = []
    for name, (taken, _) in sides.items():
        middle, quartiles = ratio(seconds, "dense", name)
        times = milliseconds(seconds, "dense"), milliseconds(seconds, name)
        rows.append(Row(part, what, tokens, name, taken, *times, middle, quartiles))
    return rows


def forward(shape: tuple[int, int], tokens: int, options: argparse.Namespace) -> list[Row]:
    """The forward pass of a layer, at every share."""
    outputs, inputs = shape
    dense, x = nn.Linear(inputs, outputs), torch.randn(tokens, inputs)
    sides = {}
    for part in SHARES:
        factors = layer(outputs, inputs, aligned(part * break_even_rank(*shape)))
        sides[f"factors {part:.0%}"] = share(factors, dense), _inferring(factors, x)
    return compare("forward", _name(shape), tokens, sides, _inferring(dense, x), options.repetitions)


def _inferring(module: nn.Module, x: Tensor) -> Callable[[], object]:
    @torch.inference_mode()
    def run() -> Tensor:
        return module(x)

    return run


def step(shape: tuple[int, int], tokens: int, options: argparse.Namespace) -> list[Row]:
    """Forward and backward through a layer at break-even rank, with gates, with half of them, and compact."""
    outputs, inputs = shape
    dense, x, pulled = nn.Linear(inputs, outputs), torch.randn(tokens, inputs), torch.randn(tokens, outputs)
    x.requires_grad_()
    rank = aligned(break_even_rank(*shape))
    gated, half, small = (layer(outputs, inputs, rank) for _ in range(3))
    gates = 0.5 + 0.5 * torch.rand(rank)
    gated.set_gate(gates)
    gates[::2] = 0
    half.set_gate(gates)
    small.set_gate(gates)
    small.keep(gates.nonzero().flatten())

    def training(module: nn.Module) -> Callable[[], object]:
        def run() -> None:
            module.zero_grad()
            x.grad = None
            module(x).backward(pulled)

        return run

    named = {"gates on": gated, "half closed": half, "compact": small}
    sides = {name: (share(module, dense), training(module)) for name, module in named.items()}
    return compare("step", _name(shape), tokens, sides, training(dense), options.repetitions)


def pruned(dense: Any, share_pruned: float) -> Any:
    """A copy of an encoder with as many numbers fewer in every matrix, compact."""
    model = copy.deepcopy(dense)
    factorise(model, find_weights(model), initial="random")
    kept = {
        factors.name: torch.arange(min(factors.rank, aligned((1 - share_pruned) * break_even_rank(*factors.shape))))
        for factors in find_factors(model)
    }
    compact(model, kept)
    return model


def encoder_share(model: Any, dense: Any) -> float:
    """The numbers in the blocks of an encoder over those of the dense one."""
    return share(model.encoder, dense.encoder)


def inference(name: str, tokens: int, options: argparse.Namespace) -> list[Row]:
    """An encoder's forward pass on texts of 128 tokens, at every share pruned."""
    dense = encoder(name, options.layers)
    inputs = example_inputs(dense, tokens // LENGTH, LENGTH)
    sides = {}
    for part in PRUNED:
        model = pruned(dense, part)
        sides[f"compact -{part:.0%}"] = encoder_share(model, dense), _reading(model, inputs)
    return compare("inference", name, tokens, sides, _reading(dense, inputs), options.repetitions)


def _reading(model: Any, inputs: Mapping[str, Tensor]) -> Callable[[], object]:
    return lambda: read_logits(model, inputs)


def training(name: str, options: argparse.Namespace) -> list[Row]:
    """An encoder's training step: with gates on, with half of them closed, and compact at 50 and 80 % pruned."""
    dense = encoder(name, options.layers).train()
    inputs = example_inputs(dense, BATCH, LENGTH)
    models = {}
    for side in ("gates on", "half closed"):
        model = models[side] = copy.deepcopy(dense)
        factorise(model, find_weights(model), initial="random")
        for factors in find_factors(model):
            gates = 0.5 + 0.5 * torch.rand(factors.rank)
            gates[:: 2 if side == "half closed" else factors.rank] = 0
            factors.set_gate(gates)
    for part in PRUNED:
        models[f"compact -{part:.0%}"] = pruned(dense, part)
    sides = {side: (encoder_share(model, dense), _stepping(model, inputs)) for side, model in models.items()}
    return compare("training", name, BATCH * LENGTH, sides, _stepping(dense, inputs), options.repetitions)


def _stepping(model: Any, inputs: Mapping[str, Tensor]) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        model(**inputs).last_hidden_state.square().mean().backward()
        optimizer.step()

    return run


def _name(shape: tuple[int, int]) -> str:
    return f"{shape[1]} -> {shape[0]}"


def _show(rows: list[Row]) -> None:
    for row in rows:
        low, high = row.ratio_quartiles
        print(
            f"{row.part:10}{row.what:13}{row.tokens:7}  {row.side:14}{row.share:7.0%}{row.dense_ms:10.2f}"
            f"{row.side_ms:10.2f}{row.ratio:7.2f}  {low:.2f}-{high:.2f}",
            flush=True,
        )


def main() -> None:
    """Print one row a comparison; write all of them where asked."""
    options = parser("Low-rank factors against dense layers.", "two shapes, 128 tokens, one layer of MiniLM", 15, 3)
    options.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    options.add_argument("--model", nargs="+", choices=ENCODERS, help="default: all; quick: minilm-l6")
    options.add_argument("--tokens", nargs="+", type=int, help="multiples of 128 (default: 128 2048; quick: 128)")
    options.add_argument("--layers", type=int, help="only so many layers of an encoder (default: all; quick: 1)")
    given = parse(options)
    given.layers = given.layers or (1 if given.quick else None)
    names = given.model or (["minilm-l6"] if given.quick else list(ENCODERS))
    counts = given.tokens or ([128] if given.quick else [128, 2048])
    if any(count < LENGTH or count % LENGTH for count in counts):
        options.error(f"--tokens {counts}: give multiples of {LENGTH}.")
    print(f"torch {torch.__version__}, {given.threads} threads, {given.repetitions} turns a row; ratio: dense / side")
    print(
        f"{'part':10}{'what':13}{'tokens':>7}  {'side':14}{'share':>7}{'dense ms':>10}{'ms':>10}{'ratio':>7}  quartiles"
    )
    rows: list[Row] = []
    for part in given.part:
        runs: list[Callable[[], list[Row]]] = []
        if part in ("forward", "step"):
            of_layer = forward if part == "forward" else step
            for shape in SHAPES[3:] if given.quick else SHAPES:
                runs += [partial(of_layer, shape, n, given) for n in counts]
        elif part == "inference":
            runs = [partial(inference, name, n, given) for name in names for n in counts]
        else:
            runs = [partial(training, name, given) for name in names]
        for run in runs:
            found = run()
            _show(found)
            rows += found
    write(given.json, rows, given.threads)


if __name__ == "__main__":
    main()
