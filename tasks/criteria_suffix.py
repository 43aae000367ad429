"""The part of a network after one linear layer, run again and again for one batch with other outputs of that layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import DataCollatorWithPadding, PreTrainedModel

from argprune.tasks.encoded import Encoded

# Rows of data in a batch, as fine-tuning has them.
BATCH_SIZE = 16


@dataclass(frozen=True, eq=False)
class Batch:
    """Padded examples, with their labels (examples,)."""

    inputs: Mapping[str, Tensor]
    labels: Tensor

    @property
    def tokens(self) -> Tensor:
        """(examples, tokens) boolean: where there is text."""
        return self.inputs["attention_mask"].bool()


def make_batches(data: Encoded, tokenizer: Any, indices: Sequence[int]) -> list[Batch]:
    """Batches of 16 of the given rows, in their order."""
    collate = DataCollatorWithPadding(tokenizer)
    batches = []
    for start in range(0, len(indices), BATCH_SIZE):
        inputs = dict(collate([data[index] for index in indices[start : start + BATCH_SIZE]]))
        batches.append(Batch({key: value for key, value in inputs.items() if key != "labels"}, inputs["labels"]))
    return batches


class Suffix:
    """What a network does after one linear layer, for one batch: run again and again with other outputs of that layer.

    model: in evaluation mode, its first axis of inputs and outputs the examples. module: runs once in a forward pass.
    Every module that ended before `module` began, and runs once, is replaced by what it returned. Raises ValueError
    where `module` runs not exactly once, on all tokens. inputs: (examples, tokens, columns); outputs likewise.
    """

    def __init__(self, model: PreTrainedModel, module: nn.Module, batch: Batch) -> None:
        self._model, self._module, self._batch = model, module, batch
        calls: dict[nn.Module, int] = {}
        before: dict[nn.Module, Any] = {}
        seen: list[tuple[Tensor, Tensor]] = []

        def record(called: nn.Module, arguments: Any, output: Any) -> None:
            calls[called] = calls.get(called, 0) + 1
            if called is module:
                seen.append((arguments[0], output))
            elif not seen:
                before[called] = output

        hooks = [each.register_forward_hook(record) for each in model.modules()]
        try:
            with torch.no_grad():
                logits = model(**batch.inputs).logits
        finally:
            for hook in hooks:
                hook.remove()
        shape = tuple(seen[0][1].shape) if seen else ()
        if len(seen) != 1 or shape[:2] != tuple(batch.tokens.shape):
            raise ValueError(
                f"{type(model).__name__} runs a layer {len(seen)} times a forward pass, with outputs of shape {shape} "
                f"for texts of {tuple(batch.tokens.shape)}; choose one that runs once, on all tokens of each text."
            )
        self.inputs, self.outputs = seen[0]
        done = {called: output for called, output in before.items() if calls[called] == 1}
        inner = {part for called in done for part in called.modules() if part is not called}
        self._done = {called: output for called, output in done.items() if called not in inner}
        self.losses_before = self._losses(logits)

    def losses(self, outputs: Tensor) -> Tensor:
        """(copies, examples) float64: the losses with the layer's outputs (copies, examples, tokens, rows)."""
        copies = len(outputs)
        given = {**self._done, self._module: None}
        try:
            for module, output in given.items():
                value = outputs.flatten(0, 1) if module is self._module else self._repeated(output, copies)
                module.forward = lambda *_, _value=value, **__: _value
            inputs = {key: self._repeated(value, copies) for key, value in self._batch.inputs.items()}
            return self._losses(self._model(**inputs).logits).view(copies, -1)
        finally:
            for module in given:
                module.__dict__.pop("forward", None)

    def _repeated(self, output: Any, copies: int) -> Any:
        rows = len(self._batch.labels)

        def repeat(leaf: Any) -> Any:
            # What does not depend on the example, such as position biases, has a first axis of its own.
            is_batch = isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == rows
            return leaf.repeat(copies, *[1] * (leaf.dim() - 1)) if is_batch else leaf

        return tree_map(repeat, output)

    def _losses(self, logits: Tensor) -> Tensor:
        labels = self._batch.labels.repeat(len(logits) // len(self._batch.labels))
        return nn.functional.cross_entropy(logits.double(), labels, reduction="none")
