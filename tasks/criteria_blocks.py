"""A model, a task and a layer as blocks of evidence: gradients, curvature, inputs, and the true loss of any mask.

A block is n columns of some rows of a weight W, x its inputs and y its outputs. Masking it changes y alone:

    y_r(mask) = y_r - sum over pruned columns c of W_rc x_c        for the block's rows r,

so that everything before the layer is computed once, and only the rest of the network once a mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from argprune.solvers.criteria import Evidence
from argprune.solvers.groups import Weight
from argprune.solvers.verify.criteria import Block
from argprune.solvers.verify.surrogates import Surrogates
from argprune.tasks.criteria_suffix import Batch, Suffix

Curvature = Literal["hessian", "fisher", "inputs"]

# Rows of the calibration set that the Hessian is the mean over: it takes two gradients a unit.
CURVED = 32
# Tokens that go through the network at a time; more fall out of the cache.
_TOKENS = 1 << 12
# How far units are scaled for the differences of gradients that give the Hessian: f''' is not seen, f'''' hardly.
_STEP = 1 / 8
# Of a Fisher block's own diagonal, what is added to it for refits.
DAMPING = 0.01


@dataclass(frozen=True, eq=False)
class Place:
    """Where a block lies in a weight matrix (outputs, inputs): its rows and its columns."""

    matrix: Tensor
    rows: Tensor
    columns: Tensor

    @property
    def weight(self) -> Tensor:
        """(rows, n)."""
        return self.matrix[self.rows[:, None], self.columns]

    def masked(self, suffix: Suffix, pruned: Tensor) -> Tensor:
        """(copies, examples, tokens, outputs): a layer's outputs without shares (copies, n), 0 to 1, of the units."""
        inputs = suffix.inputs[..., self.columns]
        change = torch.einsum("etn,mn,rn->metr", inputs, pruned, self.weight)
        outputs = suffix.outputs.expand(len(pruned), *suffix.outputs.shape)
        return outputs.index_add(-1, self.rows, -change)


def draw_places(weight: Weight, size: int, rows: int, blocks: int, seed: int) -> list[Place]:
    """Blocks of `size` columns and `rows` rows of a weight, drawn uniformly. Raises ValueError for a smaller weight."""
    matrix = matrix_of(weight)
    outputs, inputs = matrix.shape
    if size > inputs:
        raise ValueError(f"size {size}, but {weight.name} has {inputs} columns; give at most that.")
    if rows > outputs:
        raise ValueError(f"rows {rows}, but {weight.name} has {outputs} rows; give at most that.")
    generator = torch.Generator().manual_seed(seed)
    return [
        Place(
            matrix,
            torch.randperm(outputs, generator=generator)[:rows].sort().values,
            torch.randperm(inputs, generator=generator)[:size].sort().values,
        )
        for _ in range(blocks)
    ]


def matrix_of(weight: Weight) -> Tensor:
    """(outputs, inputs), detached."""
    parameter = weight.parameter.detach()
    return parameter.t() if weight.transposed else parameter


@dataclass(frozen=True, eq=False)
class Seen:
    """A layer's inputs, (examples, tokens, columns), and the gradients of every example's own loss at its outputs."""

    inputs: Tensor
    gradients: Tensor
    batch: Batch

    @property
    def flat_inputs(self) -> Tensor:
        """(tokens, columns), without padding."""
        return self.inputs[self.batch.tokens] if self.inputs.dim() == 3 else self.inputs

    def gradient(self, rows: Tensor | slice = slice(None), columns: Tensor | slice = slice(None)) -> Tensor:
        """(rows, columns): of the batch's mean loss at a part of the weight."""
        total = torch.einsum("etr,etc->rc", self.gradients[..., rows], self.inputs[..., columns])
        return total / len(self.batch.labels)

    def units(self, place: Place) -> Tensor:
        """(examples, n) float64: the derivative of every example's loss by the scale of every unit."""
        back = self.gradients[..., place.rows] @ place.weight
        return (back * self.inputs[..., place.columns]).double().sum(1)


def look(model: PreTrainedModel, modules: Sequence[nn.Module], batches: Sequence[Batch]) -> list[list[Seen]]:
    """One forward and one backward pass a batch: what each module saw, batch by batch."""
    found: list[list[Seen]] = [[] for _ in modules]
    for batch in batches:
        with _listening(modules) as heard, torch.enable_grad():
            logits = model(**batch.inputs).logits
            loss = nn.functional.cross_entropy(logits.double(), batch.labels, reduction="sum")
        gradients = torch.autograd.grad(loss, [leaf for _, leaf in heard.values()])
        # In the order of the calls, which need not be that of the modules.
        by_module = dict(zip(heard, gradients, strict=True))
        for place, module in enumerate(modules):
            found[place].append(Seen(heard[module][0].detach(), by_module[module], batch))
    return found


@contextmanager
def _listening(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, tuple[Tensor, Tensor]]]:
    """Adds a zero with a gradient to each module's output; yields, by module, its inputs and that zero."""
    heard: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def hear(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        zero = torch.zeros_like(output, requires_grad=True)
        heard[module] = (arguments[0], zero)
        return output + zero

    hooks = [module.register_forward_hook(hear) for module in modules]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def adam_steps(matrix: Tensor, gradients: Sequence[Tensor], learning_rate: float, weight_decay: float) -> list[Tensor]:
    """Where AdamW would move a weight from where it is, once for each batch's gradient; the weight is never moved.

    The moments first take in all gradients once, so that the first steps are not those of empty moments.
    """
    parameter = nn.Parameter(matrix.clone())
    optimizer = torch.optim.AdamW([parameter], lr=learning_rate, weight_decay=weight_decay)
    stepped = []
    for gradient in (*gradients, *gradients):
        parameter.data.copy_(matrix)
        parameter.grad = gradient
        optimizer.step()
        stepped.append(parameter.detach().clone())
    return stepped[len(gradients) :]


def evidence_of(
    seen: Sequence[Seen],
    matrix: Tensor,
    learning_rate: float,
    weight_decay: float,
    rows: Tensor | slice = slice(None),
    columns: Tensor | slice = slice(None),
) -> list[Evidence]:
    """What criteria are shown of a part of a weight, a batch at a time."""
    part = matrix[rows][:, columns]
    gradients = [batch.gradient(rows, columns) for batch in seen]
    steps = adam_steps(part, gradients, learning_rate, weight_decay)
    return [
        Evidence(part, gradient, stepped, learning_rate, len(batch.batch.labels), batch.flat_inputs[:, columns])
        for batch, gradient, stepped in zip(seen, gradients, steps, strict=True)
    ]


def make_block(
    name: str,
    place: Place,
    seen: Sequence[Seen],
    heldout: Sequence[Seen],
    curved: Sequence[Suffix],
    tested: Sequence[Suffix],
    *,
    keep: int,
    curvature: Curvature,
    learning_rate: float,
    weight_decay: float,
) -> Block:
    """A block with its evidence, its surrogates and its true loss.

    seen: the calibration batches; heldout: those of the loss. curved, tested: the network after the layer for the
    batches of the Hessian and of the loss. curvature: of the diagonal and the quadratic surrogate. "hessian": of the
    mean loss, by central differences of its exact gradient; "fisher": mean over examples of g g^T; "inputs": the
    inputs' second moments times the mean square of the output's gradient (Kronecker-factored). Refits need a positive
    semidefinite matrix: the Fisher, or the inputs', with a hundredth of its own diagonal added.
    """
    if curvature not in get_args(Curvature):
        raise ValueError(f"curvature {curvature!r}; choose one of {', '.join(get_args(Curvature))}.")
    units = torch.cat([batch.units(place) for batch in seen])
    matrix = _inputs_curvature(place, seen) if curvature == "inputs" else units.t() @ units / len(units)
    refit = matrix + DAMPING * matrix.diagonal().diag()
    if curvature == "hessian":
        matrix = hessian_of(place, curved)
    surrogates = Surrogates(units.mean(0), matrix, refit, keep)
    evidence = evidence_of(seen, place.matrix, learning_rate, weight_decay, place.rows, place.columns)
    examples = sum(len(suffix.losses_before) for suffix in tested)
    base = sum(float(suffix.losses_before.sum()) for suffix in tested) / examples
    return Block(
        name=name,
        weight=place.weight,
        evidence=evidence,
        surrogates=surrogates,
        heldout=torch.cat([batch.units(place) for batch in heldout]).mean(0),
        loss=lambda masks: true_losses(place, tested, masks),
        base=base,
    )


def true_losses(place: Place, suffixes: Sequence[Suffix], masks: Tensor) -> Tensor:
    """(m,) float64: the mean loss over all examples with masks (m, n) on a block, less the loss without a mask."""
    total = torch.zeros(len(masks), dtype=torch.float64)
    for suffix in suffixes:
        size = max(1, _TOKENS // suffix.inputs[..., 0].numel())
        with torch.no_grad():
            shares = masks.logical_not().to(place.matrix).split(size)
            parts = [suffix.losses(place.masked(suffix, share)) for share in shares]
        total += (torch.cat(parts) - suffix.losses_before).sum(1)
    return total / sum(len(suffix.losses_before) for suffix in suffixes)


def hessian_of(place: Place, suffixes: Sequence[Suffix]) -> Tensor:
    """(n, n) float64: second derivatives of the mean loss by the units' scales, from differences of exact gradients."""
    n = len(place.columns)
    total = torch.zeros(n, n, dtype=torch.float64)
    for suffix in suffixes:
        size = max(1, _TOKENS // suffix.inputs[..., 0].numel())
        scales = torch.cat([torch.eye(n), -torch.eye(n)]).to(place.matrix) * _STEP
        gradients = []
        for part in scales.split(size):
            shares = part.clone().requires_grad_()
            with torch.enable_grad():
                loss = suffix.losses(place.masked(suffix, shares)).sum()
            gradients.append(torch.autograd.grad(loss, shares)[0].double())
        up, down = torch.cat(gradients).split(n)
        total += (up - down) / (2 * _STEP)
    total /= sum(len(suffix.losses_before) for suffix in suffixes)
    return (total + total.t()) / 2


def _inputs_curvature(place: Place, seen: Sequence[Seen]) -> Tensor:
    inputs = torch.cat([batch.flat_inputs[:, place.columns] for batch in seen]).double()
    examples = sum(len(batch.batch.labels) for batch in seen)
    squares = torch.stack([batch.gradients[..., place.rows].double().square().sum((0, 1)) for batch in seen])
    weight = place.weight.double()
    return (inputs.t() @ inputs / len(inputs)) * (weight.t() @ (squares.sum(0)[:, None] / examples * weight))


def matrix_losses(
    model: PreTrainedModel, module: nn.Module, matrix: Tensor, batches: Sequence[Batch], masks: Tensor
) -> Tensor:
    """(m,) float64: the mean loss over all batches with masks (m, outputs, inputs) on a whole weight, less without."""
    total, examples = torch.zeros(len(masks), dtype=torch.float64), 0
    for batch in batches:
        suffix = Suffix(model, module, batch)
        examples += len(batch.labels)
        for index, mask in enumerate(masks):
            with torch.no_grad():
                change = suffix.inputs @ torch.where(mask, 0, matrix).t()
                total[index] += (suffix.losses((suffix.outputs - change)[None]) - suffix.losses_before).sum()
    return total / examples
