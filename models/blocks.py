"""A network as a row of blocks: in which order they run, and how to run some of them only.

    forward pass = glue, call 0, glue, call 1, ..., glue, call n - 1, glue        (a call runs one block)

A `Stream` holds batches that have come as far as some call: what the blocks before it returned. To go on, the model
runs as ever, but the calls before answer with what is held, and the pass ends with the last call that was asked for. So
the glue (embeddings, masks, position biases, the norm between encoder and decoder) is always the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import Cache

from argprune.models.prunable import block_prefixes

Batch = Mapping[str, Tensor]
# A block's call: its number, the block, the block's own forward, and what it was called with; returns the output.
Call = Callable[[int, "Block", Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


@dataclass(frozen=True, eq=False)
class Block:
    """A block: its name in the model, its module, and the stack (the module list) that it is an entry of."""

    name: str
    module: nn.Module
    stack: str


class _Reached(Exception):
    """Ends a forward pass that has come far enough."""


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A model and its blocks in the order in which a forward pass calls them.

    blocks: every block that is called, once, in order of its first call. calls: of each call, the block's place in
    `blocks`; a block whose layers share their weights (ALBERT) is called several times. chained: of every stack a block
    needs no more than what the one before it returned, so that earlier outputs need not be held.
    """

    model: nn.Module
    blocks: Sequence[Block]
    calls: Sequence[int]
    chained: bool

    @staticmethod
    def trace(model: nn.Module, batch: Batch) -> Pipeline:
        """Run a batch through the model, in evaluation mode, and note the calls.

        Raises ValueError where the model has no blocks, or they pass on more than their outputs.
        """
        found = _find_blocks(model)
        if not found:
            raise ValueError(f"{type(model).__name__} has no repeated blocks to go through one by one.")
        if _shares_keys(model):
            raise ValueError(
                f"{type(model).__name__}: its last layers read keys and values of earlier ones (num_kv_shared_layers), "
                "so that it cannot be run block by block."
            )
        order: dict[int, int] = {}
        calls: list[int] = []
        latest: dict[str, Any] = {}
        # Of the last call of every stack: its number, its arguments, and what the stacks had returned before it.
        ends: dict[str, tuple[int, Any, dict[str, Any]]] = {}

        def note(number: int, block: Block, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            calls.append(order.setdefault(id(block), len(order)))
            ends[block.stack] = (number, (args, kwargs), dict(latest))
            latest[block.stack] = forward(*args, **kwargs)
            return latest[block.stack]

        with _answered(found, note):
            run(model, batch)
        if not calls:
            raise ValueError(
                f"{type(model).__name__} called none of its {len(found)} blocks, such as {found[0].name!r}."
            )
        blocks = [block for block in found if id(block) in order]
        blocks.sort(key=lambda block: order[id(block)])
        chained = all(_is_chain(model, blocks, batch, end) for end in ends.values())
        return Pipeline(model, blocks, calls, chained)

    def first(self, block: int) -> int:
        """The number of a block's first call; of the block after the last one, the number of calls."""
        return self.calls.index(block) if block < len(self.blocks) else len(self.calls)

    def last(self, block: int) -> int:
        """The number of a block's last call."""
        return max(number for number, called in enumerate(self.calls) if called == block)


class Stream:
    """Batches on their way through a pipeline: their tensors, and what the calls before `done` returned.

    batches: on any device; each is brought to the model's when it runs. What is held, on the model's device, is the
    last output of every stack, or where the pipeline is not chained, every output.
    """

    def __init__(self, pipeline: Pipeline, batches: Sequence[Batch]) -> None:
        self._pipeline = pipeline
        self.batches = batches
        self.done = 0
        self._held: list[dict[Any, Any]] = [{} for _ in batches]

    def look(self, index: int, end: int) -> None:
        """Run a batch from call `done` up to call `end`, excluded, for the sake of hooks: nothing is kept."""
        self._run(index, end)

    def advance(self, end: int) -> None:
        """Take all batches up to call `end`, excluded."""
        for index in range(len(self.batches)):
            self._held[index] = self._run(index, end)
        self.done = end

    def _run(self, index: int, end: int) -> dict[Any, Any]:
        pipeline, held = self._pipeline, dict(self._held[index])
        if end <= self.done:
            return held

        def answer(number: int, block: Block, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            if number >= len(pipeline.calls) or pipeline.blocks[pipeline.calls[number]] is not block:
                raise ValueError(
                    f"{type(pipeline.model).__name__} calls {block.name!r} out of the order of the first batch; blocks "
                    "are pruned one after the other, which needs one order for all batches."
                )
            key = block.stack if pipeline.chained else number
            if number < self.done:
                return held[key]
            output = held[key] = forward(*args, **kwargs)
            if number == end - 1:
                raise _Reached
            return output

        with _answered(pipeline.blocks, answer):
            run(pipeline.model, self.batches[index])
        return held


@torch.no_grad()
def run(model: nn.Module, batch: Batch) -> None:
    """A forward pass of a batch, brought to the model's device, for the sake of hooks; ends where one says so."""
    device = next(model.parameters()).device
    with suppress(_Reached):
        model(**{name: value.to(device) for name, value in batch.items()})


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within, every module is in evaluation mode; after it, each is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _shares_keys(model: nn.Module) -> bool:
    config = getattr(model, "config", None)
    return config is not None and bool(getattr(config.get_text_config(), "num_kv_shared_layers", 0))


def _find_blocks(model: nn.Module) -> list[Block]:
    """Every entry of the model's outermost lists of blocks, in module order; one that stands in several, once."""
    blocks: dict[nn.Module, Block] = {}
    for prefix in block_prefixes(model):
        stack = prefix.removesuffix(".")
        for name, entry in model.get_submodule(stack).named_children():
            blocks.setdefault(entry, Block(f"{prefix}{name}", entry, stack))
    return list(blocks.values())


def _is_chain(model: nn.Module, blocks: Sequence[Block], batch: Batch, end: tuple[int, Any, dict[str, Any]]) -> bool:
    """Whether a call is given the same when all before it answer with the last output of their stack."""
    wanted, (args, kwargs), latest = end
    same = False

    def answer(number: int, block: Block, forward: Callable[..., Any], *given: Any) -> Any:
        nonlocal same
        if number < wanted:
            return latest[block.stack]
        same = all(torch.equal(one, other) for one, other in zip(_tensors(args, kwargs), _tensors(*given), strict=True))
        raise _Reached

    with _answered(blocks, answer):
        run(model, batch)
    return same


def _tensors(*arguments: Any) -> list[Tensor]:
    """The tensors of a call, but for those in a cache, which the call itself changes."""
    leaves = tree_leaves(list(arguments), is_leaf=lambda leaf: isinstance(leaf, Cache))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


@contextmanager
def _answered(blocks: Sequence[Block], call: Call) -> Iterator[None]:
    """Within, `call` decides what a block's call returns."""
    number = 0
    unset = object()
    before = [block.module.__dict__.get("forward", unset) for block in blocks]

    def replacement(block: Block, forward: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*args: Any, **kwargs: Any) -> Any:
            nonlocal number
            number += 1
            return call(number - 1, block, forward, args, kwargs)

        return answer

    for block in blocks:
        block.module.forward = replacement(block, block.module.forward)
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            if forward is unset:
                del block.module.__dict__["forward"]
            else:
                block.module.__dict__["forward"] = forward
