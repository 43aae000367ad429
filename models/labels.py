"""The names of a classifier's outputs, and their order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel


def label_names(model: PreTrainedModel) -> list[str]:
    """The names of a model's outputs by its configuration, in their order."""
    return [str(name) for _, name in sorted((model.config.id2label or {}).items())]


def find_order(told: Sequence[str], labels: Sequence[str]) -> tuple[int, ...] | None:
    """Of each of some labels its place among the names `told`, in any case; None where those are other names."""
    theirs, ours = _folded(told), _folded(labels)
    return tuple(map(theirs.index, ours)) if sorted(theirs) == sorted(ours) else None


@torch.no_grad()
def reorder_outputs(model: PreTrainedModel, order: Sequence[int]) -> None:
    """Move the outputs of a model's head: its i-th is then the one that was number `order[i]`.

    Raises ValueError for a model in which no linear layer has so many outputs.
    """
    count = len(order)
    heads = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == count]
    if not heads:
        raise ValueError(f"{type(model).__name__} has no linear layer of {count} outputs, its labels, to put in order.")
    for parameter in heads[-1].parameters():
        parameter.copy_(parameter[list(order)])


def _folded(names: Sequence[str]) -> list[str]:
    """Names in one case, unless that would make some the same."""
    folded = [name.casefold() for name in names]
    return folded if len(set(folded)) == len(names) else list(names)
