"""What pruning buys at inference: a dense encoder against the same one pruned, in torch and in onnxruntime.

Structures: `units`, heads and neurons cut out; `blocks`, 16 x 16; `columns`, 16 outputs of one input; `entries`, of any
place. Weights and masks are random: only the time is of interest. All layers are alike, so that the formats measured
fastest for the first layer are taken for all of them. Ratios are dense / pruned of the same turn. The ceiling is the
ratio that would be left if the pruned matrices cost nothing at all, and the bound the one at the roofline, where each
takes 2 * nonzeros * tokens operations at the rate of a dense matrix product here, or the bytes of its values, columns,
inputs and outputs at the rate of a copy, whichever is longer.

    python benchmarks/inference.py [--quick] [--model NAME ...] [--batch N ...] [--sparsity S ...]
                                   [--structure NAME ...] [--layers N] [--no-onnx]
                                   [--repetitions N] [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedModel
from turns import ENCODERS, in_turns, milliseconds, parse, parser, ratio, write

from argprune.models import find_heads, find_neurons, find_weights
from argprune.models.export import (
    Choice,
    OnnxModel,
    apply_formats,
    choose_formats,
    example_inputs,
    export_onnx,
    read_logits,
    shrink,
)

STRUCTURES = {"units": (0, 0), "blocks": (16, 16), "columns": (16, 1), "entries": (1, 1)}
SPARSITIES = (0.5, 0.67, 0.8, 0.9, 0.95)
LENGTH = 128
_FIRST = "encoder.layer.0."


@dataclass(frozen=True)
class Row:
    """One comparison. Milliseconds are medians; ratios are medians over the turns of dense / pruned, with quartiles.

    ceiling: the ratio if the pruned matrices cost nothing. bound: the ratio at the roofline. formats: of the layers.
    """

    model: str
    runtime: str
    batch: int
    structure: str
    sparsity: float
    dense_ms: float
    pruned_ms: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    ceiling: float | None
    bound: float | None
    formats: str


@dataclass(frozen=True)
class Machine:
    """Measured rates: float32 operations per second of a matrix product, bytes per second of a copy."""

    operations: float
    bandwidth: float


class Nothing(nn.Module):
    """In the place of a matrix: outputs of the right shape, for the price of naming them."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(1))
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.get_buffer("zero").expand(*x.shape[:-1], self.outputs)


def measure_machine(threads: int) -> Machine:
    """The rates of this machine, best of some turns."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    big = torch.randn(2**25)
    seconds = in_turns({"product": lambda: a @ b, "copy": big.clone}, 15, 3)
    return Machine(2 * 1024**3 / min(seconds["product"]), 2 * big.nbytes / min(seconds["copy"]))


def encoder(name: str, layers: int | None) -> BertModel:
    """An encoder with random weights."""
    of_all, hidden, intermediate = ENCODERS[name]
    config = BertConfig(
        vocab_size=1000,
        hidden_size=hidden,
        num_hidden_layers=layers or of_all,
        num_attention_heads=12,
        intermediate_size=intermediate,
    )
    return BertModel(config, add_pooling_layer=False).eval()


@torch.no_grad()
def pruned(model: BertModel, structure: str, sparsity: float) -> BertModel:
    """A copy of the model with the same share of every matrix at zero, at random places."""
    result = copy.deepcopy(model)
    if structure == "units":
        for tie in [*find_heads(result), *find_neurons(result)]:
            stack = tie.stack().clone()
            stack[torch.randperm(tie.count)[: round(sparsity * tie.count)]] = 0
            tie.assign(stack)
        return result
    height, width = STRUCTURES[structure]
    for weight in find_weights(result):
        rows, columns = weight.matrix.shape
        scores = torch.rand(rows // height, columns // width)
        kept = scores.flatten().argsort().argsort().view_as(scores) >= round(sparsity * scores.numel())
        weight.parameter.mul_(kept.repeat_interleave(height, 0).repeat_interleave(width, 1))
    return result


def fastest(model: BertModel, batch: int, threads: int, repetitions: int) -> list[Choice]:
    """The formats of all layers, measured on the first one."""
    first = copy.deepcopy(model)
    first.encoder.layer = first.encoder.layer[:1]
    chosen = choose_formats(first, batch=batch, length=LENGTH, threads=threads, repetitions=repetitions)
    return [
        replace(choice, name=choice.name.replace(_FIRST, f"encoder.layer.{layer}."))
        for layer in range(len(model.encoder.layer))
        for choice in chosen
    ]


def without_matrices(model: BertModel) -> BertModel:
    """The model with nothing where its prunable matrices were."""
    result = copy.deepcopy(model)
    for weight in find_weights(result):
        parent, _, leaf = weight.name.removesuffix(".weight").rpartition(".")
        setattr(result.get_submodule(parent), leaf, Nothing(weight.matrix.shape[0]))
    return result


def least_seconds(model: PreTrainedModel, tokens: int, machine: Machine) -> float:
    """What the pruned matrices take at the roofline."""
    total = 0.0
    for weight in find_weights(model):
        rows, columns = weight.matrix.shape
        nonzeros = int(weight.parameter.count_nonzero())
        # Four bytes a value, four a column number where some are zero, four for each input and output.
        moved = 4 * (nonzeros * (1 if nonzeros == rows * columns else 2) + tokens * (rows + columns))
        total += max(2 * nonzeros * tokens / machine.operations, moved / machine.bandwidth)
    return total


def compare(
    name: str,
    dense: BertModel,
    batch: int,
    structure: str,
    sparsity: float,
    machine: Machine,
    options: argparse.Namespace,
) -> Row:
    """The dense model in torch against the pruned one."""
    masked = pruned(dense, structure, sparsity)
    if structure == "units":
        fast, formats = shrink(masked).model, "shrunk"
    else:
        choices = fastest(masked, batch, options.threads, options.repetitions)
        fast = copy.deepcopy(masked)
        apply_formats(fast, choices)
        kinds = [choice.kind for choice in choices[: len(choices) // len(masked.encoder.layer)]]
        formats = " ".join(f"{kinds.count(kind)}x{kind}" for kind in dict.fromkeys(kinds))
    rest = without_matrices(dense)
    inputs = example_inputs(dense, batch, LENGTH)
    sides = {"dense": dense, "pruned": fast, "rest": rest}
    seconds = in_turns({side: _runner(model, inputs) for side, model in sides.items()}, options.repetitions, 2)
    middle, quartiles = ratio(seconds, "dense", "pruned")
    rest_ms = milliseconds(seconds, "rest")
    least = 1e3 * least_seconds(fast if structure == "units" else masked, batch * LENGTH, machine)
    dense_ms = milliseconds(seconds, "dense")
    # With their heads the attention itself goes, so that the rest is no ceiling for units.
    ceiling, bound = (None, None) if structure == "units" else (dense_ms / rest_ms, dense_ms / (rest_ms + least))
    pruned_ms = milliseconds(seconds, "pruned")
    return Row(
        name, "torch", batch, structure, sparsity, dense_ms, pruned_ms, middle, quartiles, ceiling, bound, formats
    )  # fmt: skip


def compare_onnx(name: str, dense: BertModel, batch: int, sparsity: float, options: argparse.Namespace) -> Row:
    """The dense model in onnxruntime against the shrunk one there; it has no kernels for the other structures."""
    inputs = example_inputs(dense, batch, LENGTH)
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[str, OnnxModel] = {}
        for side, model in (("dense", dense), ("pruned", shrink(pruned(dense, "units", sparsity)).model)):
            export_onnx(model, Path(folder) / f"{side}.onnx")
            sides[side] = OnnxModel(Path(folder) / f"{side}.onnx", threads=options.threads)
        runners = {side: lambda model=model: model(inputs) for side, model in sides.items()}
        seconds = in_turns(runners, options.repetitions, 2)
    middle, quartiles = ratio(seconds, "dense", "pruned")
    times = milliseconds(seconds, "dense"), milliseconds(seconds, "pruned")
    return Row(name, "onnxruntime", batch, "units", sparsity, *times, middle, quartiles, None, None, "shrunk")


def _runner(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Callable[[], object]:
    return lambda: read_logits(model, inputs)


def _show(row: Row) -> None:
    low, high = row.ratio_quartiles
    limits = "" if row.bound is None else f"{row.ceiling:8.2f}{row.bound:8.2f}"
    print(
        f"{row.model:11}{row.runtime:12}{row.batch:6}  {row.structure:9}{row.sparsity:6.0%}{row.dense_ms:11.1f}"
        f"{row.pruned_ms:11.1f}{row.ratio:7.2f}  {low:.2f}-{high:.2f}{limits or ' ' * 16}  {row.formats}",
        flush=True,
    )


def main() -> None:
    """Print one row a comparison; write all of them where asked."""
    options = parser("What pruning buys at inference.", "one sparsity, MiniLM, batch 1", 9, 3)
    options.add_argument("--model", nargs="+", choices=ENCODERS, help="default: all; quick: minilm-l6")
    options.add_argument("--batch", nargs="+", type=int, help="texts of 128 tokens (default: 1 32; quick: 1)")
    options.add_argument("--sparsity", nargs="+", type=float, help="default: 0.5 0.67 0.8 0.9 0.95; quick: 0.8")
    options.add_argument("--structure", nargs="+", choices=STRUCTURES, default=list(STRUCTURES), help="default: all")
    options.add_argument("--layers", type=int, help="only so many layers (default: all of the model)")
    options.add_argument("--no-onnx", action="store_true", help="leave onnxruntime out")
    given = parse(options)
    names = given.model or (["minilm-l6"] if given.quick else list(ENCODERS))
    batches = given.batch or ([1] if given.quick else [1, 32])
    sparsities = given.sparsity or ([0.8] if given.quick else SPARSITIES)
    machine = measure_machine(given.threads)
    print(f"torch {torch.__version__}, {given.threads} threads, length {LENGTH}, {given.repetitions} turns a row")
    print(f"roofline: {machine.operations / 1e9:.0f} GF/s (matrix product), {machine.bandwidth / 1e9:.1f} GB/s (copy)")
    header = f"{'model':11}{'runtime':12}{'batch':>6}  {'structure':9}{'zeros':>6}{'dense ms':>11}{'pruned ms':>11}"
    print(f"{header}{'ratio':>7}  quartiles{' ceiling':>8}{'   bound':>8}  formats of a layer")
    rows = []
    for name in names:
        dense = encoder(name, given.layers)
        for batch in batches:
            for structure in given.structure:
                for sparsity in sparsities:
                    rows.append(compare(name, dense, batch, structure, sparsity, machine, given))
                    _show(rows[-1])
            for sparsity in sparsities if "units" in given.structure and not given.no_onnx else ():
                rows.append(compare_onnx(name, dense, batch, sparsity, given))
                _show(rows[-1])
    rates = {"operations_per_second": f"{machine.operations:.3g}", "bytes_per_second": f"{machine.bandwidth:.3g}"}
    write(given.json, rows, given.threads, **rates)


if __name__ == "__main__":
    main()
