"""One-shot pruning of a whole network, block by block.

    for each block, in order of execution:
        X <- inputs of its matrices, by running it on what the pruned blocks before it make of the batches
        for each matrix W of it:    V <- argmin ||X (W - V)^T||^2   subject to   support(V) in S        (`solve`)
        W <- V;  run the block once more, for the inputs of the next

Of the batches, one block's activations are held at a time. Padding is left out of X.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from argprune.models.blocks import Batch, Pipeline, Stream, evaluating
from argprune.models.layer_inputs import Evidence, heard, heard_tokens
from argprune.solvers.admm.layer import LayerSolution
from argprune.solvers.admm.moments import Moments
from argprune.solvers.groups import Weight

# Prunes one matrix: its name, the matrix (rows = outputs), and the moments of its inputs.
Solve = Callable[[str, Tensor, Moments], LayerSolution]
Order = Literal["block", "layer"]
Target = Literal["weight", "dense"]


@dataclass(frozen=True)
class LayerReport:
    """What pruning did to one matrix.

    shape: (outputs, inputs). tokens: that its solver saw. sparsity: its share of zeros. error: what is lost of the
    outputs to be kept, relative to them, on the calibration tokens; held_out: the same on the held-out ones, None
    without. bound: below the least possible error of what the solver was given, where it says. seconds: of the solver;
    report: its own.
    """

    name: str
    shape: tuple[int, int]
    tokens: int
    sparsity: float
    error: float
    held_out: float | None
    bound: float | None
    seconds: float
    report: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Layerwise:
    """A pruned network: masks by weight name (shaped like the parameters, True = kept), and each matrix's report.

    layers: in the order in which they were pruned. seconds: of all, solvers and forward passes.
    """

    masks: Mapping[str, Tensor]
    layers: Sequence[LayerReport]
    seconds: float


@torch.no_grad()
def prune_layerwise(
    model: nn.Module,
    batches: Sequence[Batch],
    weights: Sequence[Weight],
    solve: Solve,
    *,
    held_out: Sequence[Batch] = (),
    order: Order = "block",
    target: Target = "weight",
    damping: float = 0.01,
    folds: int = 1,
    dtype: torch.dtype = torch.float64,
    progress: Callable[[LayerReport], None] | None = None,
) -> Layerwise:
    """Prune the matrices `weights` of `model` in place, in order of execution, on what calibration batches show.

    model: encoder, decoder or encoder-decoder, on any device; it is run in evaluation mode, and left in its own.
    batches: keyword arguments of its forward, padding marked as `token_masks` says. weights: those of `find_weights`,
    or some of them. solve: see `Solve`. held_out: batches on which errors are measured, and to which nothing is fitted.
    order: "block" takes the inputs of all matrices of a block before any of them is pruned, "layer" those of each after
    the ones that run before it were.
    target: the outputs to keep. "weight": those of the dense weight on the inputs that it has in the pruned network,
    X W^T. "dense": those of the dense network, X_dense W^T, so that what is lost before is made up for. The second is
    the first for another weight, W + W (C^T - G) (G + r I)^-1 with C the mean of x x_dense^T and r = damping x the mean
    of G's diagonal: this is then what `solve` is given.
    folds, dtype: of the `Moments`. progress: told of each matrix.

    A matrix that runs several times, as ALBERT's do, is pruned once, on the inputs of all its calls. On any error the
    model is as it was, weights included, for which a copy of the dense ones is held on the CPU.
    Raises ValueError for no batches, biases among the weights, a weight that is in no block or saw no token, padding
    that cannot be told from text, and whatever `solve` raises, with the weight's name.
    """
    _check(batches, weights, order, target, damping)
    began = time.perf_counter()
    with evaluating(model):
        pipeline = Pipeline.trace(model, batches[0])
        job = _Job(pipeline, weights, solve, (batches, held_out), target, damping, folds, dtype)
        masks, layers = {}, []
        try:
            for number in range(len(pipeline.blocks)):
                for name, mask, report in job.prune_block(number, order):
                    masks[name] = mask
                    layers.append(report)
                    if progress is not None:
                        progress(report)
        except BaseException:
            job.restore()
            raise
    return Layerwise(masks, layers, time.perf_counter() - began)


def _check(batches: Sequence[Batch], weights: Sequence[Weight], order: str, target: str, damping: float) -> None:
    if not batches:
        raise ValueError("prune_layerwise: no batches; give at least one to calibrate on.")
    for weight in weights:
        if weight.parameter.dim() != 2:
            raise ValueError(
                f"prune_layerwise: {weight.name} is of shape {tuple(weight.parameter.shape)}; it prunes matrices, so "
                "leave biases out."
            )
    for name, value, kind in (("order", order, Order), ("target", target, Target)):
        if value not in get_args(kind):
            raise ValueError(f"prune_layerwise: {name} {value!r}; choose one of {', '.join(get_args(kind))}.")
    if not 0 <= damping < math.inf:
        raise ValueError(f"prune_layerwise: damping {damping}; it must be finite and >= 0.")


@dataclass(frozen=True, eq=False)
class _Matrix:
    """A weight, the modules that hold it (several where it is tied), and the blocks that those are in."""

    weight: Weight
    modules: Sequence[nn.Module]
    blocks: frozenset[int]


class _Job:
    """The batches on their way through the model, and what is done to each block as they reach it."""

    def __init__(
        self,
        pipeline: Pipeline,
        weights: Sequence[Weight],
        solve: Solve,
        parts: tuple[Sequence[Batch], Sequence[Batch]],
        target: Target,
        damping: float,
        folds: int,
        dtype: torch.dtype,
    ) -> None:
        self._pipeline, self._solve, self._damping, self._folds, self._dtype = pipeline, solve, damping, folds, dtype
        self._matrices = _matrices(pipeline, weights)
        # Calibration and held-out batches, as they are in the pruned network, and where asked for in the dense one.
        self._streams = [
            (Stream(pipeline, part), Stream(pipeline, part) if target == "dense" else None) for part in parts
        ]
        self._dense: dict[_Matrix, Tensor] = {}

    def prune_block(self, number: int, order: Order) -> Iterator[tuple[str, Tensor, LayerReport]]:
        """Prune what the batches have come to, matrix by matrix, and take them to the next block."""
        due = [matrix for matrix in self._matrices if min(matrix.blocks) == number]
        for matrix in due:
            self._dense[matrix] = matrix.weight.parameter.detach().to("cpu", copy=True)
        groups = self._groups(due)
        for together in [[group] for group in groups] if order == "layer" else [groups]:
            calibration, held_out = (self._evidence(together, *pair) for pair in self._streams)
            for group, seen, unseen in zip(together, calibration, held_out, strict=True):
                for matrix in group:
                    yield self._prune(matrix, seen, unseen)
        following = self._pipeline.first(number + 1)
        for pruned, dense in self._streams:
            if dense is not None:
                with self._as_dense(dense.done, following):
                    dense.advance(following)
            pruned.advance(following)

    @torch.no_grad()
    def restore(self) -> None:
        """Give every weight the values that it had."""
        for matrix, values in self._dense.items():
            matrix.weight.parameter.copy_(values)

    def _groups(self, matrices: Sequence[_Matrix]) -> list[list[_Matrix]]:
        """The matrices in order of execution, together those that are given the very same tensors."""
        if not matrices:
            return []
        of_module = {module: matrix for matrix in matrices for module in matrix.modules}
        given: dict[_Matrix, list[int]] = {}
        with heard(list(of_module)) as calls:
            self._streams[0][0].look(0, self._end(matrices))
            for module, inputs in calls:
                given.setdefault(of_module[module], []).append(id(inputs))
        groups: dict[tuple[int, ...], list[_Matrix]] = {}
        for matrix, tensors in given.items():
            groups.setdefault(tuple(tensors), []).append(matrix)
        # An expert may be idle in the first batch.
        return [*groups.values(), *([matrix] for matrix in matrices if matrix not in given)]

    def _evidence(self, groups: Sequence[Sequence[_Matrix]], pruned: Stream, dense: Stream | None) -> list[Evidence]:
        """What each group of matrices is given on all batches of a stream."""
        firsts = [group[0] for group in groups]
        found = []
        for matrix in firsts:
            columns, device = matrix.weight.matrix.shape[1], matrix.weight.parameter.device
            found.append(Evidence(columns, self._folds, self._dtype, device, paired=dense is not None))
        for index in range(len(pruned.batches) if firsts else 0):
            tokens = self._tokens(firsts, pruned, index)
            if dense is None:
                for evidence, inputs in zip(found, tokens, strict=True):
                    evidence.update(inputs)
                continue
            with self._as_dense(dense.done, self._end(firsts)):
                dense_tokens = self._tokens(firsts, dense, index)
            for matrix, evidence, inputs, dense_inputs in zip(firsts, found, tokens, dense_tokens, strict=True):
                if inputs.shape != dense_inputs.shape:
                    raise ValueError(
                        f"{matrix.weight.name}: {len(inputs)} tokens come to it in the pruned network and "
                        f"{len(dense_inputs)} in the dense one; give target 'weight'."
                    )
                evidence.update(inputs, dense_inputs)
        return found

    def _tokens(self, matrices: Sequence[_Matrix], stream: Stream, index: int) -> list[Tensor]:
        """What each matrix is given on one batch, (tokens, columns), all its calls together."""
        modules = [module for matrix in matrices for module in matrix.modules]
        blocks = [self._pipeline.blocks[number] for number in set().union(*(matrix.blocks for matrix in matrices))]
        with heard_tokens(blocks, modules, stream.batches[index]) as tokens:
            stream.look(index, self._end(matrices))
        together = []
        for matrix in matrices:
            parts = [part for module in matrix.modules for part in tokens[module]]
            together.append(
                torch.cat(parts) if parts else matrix.weight.matrix.new_empty(0, matrix.weight.matrix.shape[1])
            )
        return together

    def _prune(self, matrix: _Matrix, seen: Evidence, unseen: Evidence) -> tuple[str, Tensor, LayerReport]:
        name, weight = matrix.weight.name, matrix.weight.matrix
        if not seen.moments.tokens:
            raise ValueError(f"{name}: no token of the batches came to it; give more batches, or exclude it.")
        try:
            solution = self._solve(name, seen.target(weight, self._damping), seen.moments)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        report = LayerReport(
            name,
            (weight.shape[0], weight.shape[1]),
            seen.moments.tokens,
            1 - int(solution.weight.count_nonzero()) / weight.numel(),
            seen.error(weight, solution.weight),
            unseen.error(weight, solution.weight) if unseen.moments.tokens else None,
            solution.bound,
            solution.seconds,
            solution.report,
        )
        weight.copy_(solution.weight)
        return name, solution.mask.t() if matrix.weight.transposed else solution.mask, report

    def _end(self, matrices: Sequence[_Matrix]) -> int:
        """The first call after all those of the matrices."""
        return 1 + max(self._pipeline.last(number) for matrix in matrices for number in matrix.blocks)

    @contextmanager
    def _as_dense(self, begin: int, end: int) -> Iterator[None]:
        """Within, the blocks of the calls from `begin` to `end` have their dense weights."""
        running = set(self._pipeline.calls[begin:end])
        swapped = {
            matrix: matrix.weight.parameter.detach().clone() for matrix in self._dense if matrix.blocks & running
        }
        try:
            for matrix in swapped:
                matrix.weight.parameter.copy_(self._dense[matrix])
            yield
        finally:
            for matrix, values in swapped.items():
                matrix.weight.parameter.copy_(values)


def _matrices(pipeline: Pipeline, weights: Sequence[Weight]) -> list[_Matrix]:
    """Where each weight is used. Raises ValueError for one that no block holds."""
    holders: dict[int, dict[nn.Module, set[int]]] = {}
    for number, block in enumerate(pipeline.blocks):
        for module in block.module.modules():
            parameter = getattr(module, "weight", None)
            if isinstance(parameter, nn.Parameter):
                holders.setdefault(id(parameter), {}).setdefault(module, set()).add(number)
    found = []
    for weight in weights:
        modules = holders.get(id(weight.parameter))
        if modules is None:
            raise ValueError(
                f"prune_layerwise: {weight.name} is in no block that {type(pipeline.model).__name__} runs; give what "
                "find_weights finds in this very model."
            )
        found.append(_Matrix(weight, list(modules), frozenset(chain.from_iterable(modules.values()))))
    return found
