"""Which format each layer is fastest in, on this machine and for these inputs, found by measuring."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from argprune.models.export.layers import FORMATS, Unsuitable, sparse_layer
from argprune.models.prunable import find_weights
from argprune.models.timing import HOPELESS, median_seconds

DENSE = "dense"
# What a format must gain over the dense layer to be taken: less than that is the noise of measuring.
_GAIN = 0.05


@dataclass(frozen=True)
class Choice:
    """The format of one layer.

    name: the layer's. kind: the one chosen. sparsity: of its matrix. milliseconds: kind -> median, for those that were
    timed. refused: kind -> why it was not.
    """

    name: str
    kind: str
    sparsity: float
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)


def choose_formats(
    model: nn.Module,
    *,
    batch: int = 1,
    length: int = 128,
    threads: int = 2,
    kinds: Sequence[str] = tuple(FORMATS),
    repetitions: int = 7,
) -> list[Choice]:
    """Measure every prunable layer of `model` in every format, and choose the fastest.

    model: pruned, in float32 on the CPU (2:4: half precision on CUDA). batch, length: of the inputs, random numbers.
    threads: of torch, while measuring. kinds: formats to try besides dense. repetitions: of each timing. Layers
    without zeros stay dense, untimed.
    Result: a choice a layer, in module order; `model` is unchanged. Raises ValueError for counts below 1 or an
    unknown kind.
    """
    for name, value in (("batch", batch), ("length", length), ("threads", threads), ("repetitions", repetitions)):
        if value < 1:
            raise ValueError(f"choose_formats: {name} {value}; give at least 1.")
    unknown = [kind for kind in kinds if kind not in FORMATS]
    if unknown:
        raise ValueError(f"Unknown format {unknown[0]!r}. Known: {', '.join(FORMATS)}.")
    with _threads(threads), torch.inference_mode():
        return [_choose(name, module, (batch, length), kinds, repetitions) for name, module in _layers(model)]


def apply_formats(model: nn.Module, choices: Sequence[Choice]) -> None:
    """Replace the layers of `model` by what was chosen, in place; the model can no longer be trained or saved.

    choices: as `choose_formats` gives them.

    Raises ValueError where a layer is missing or cannot be held in its format.
    """
    layers = dict(_layers(model))
    for choice in choices:
        if choice.name not in layers:
            raise ValueError(f"{type(model).__name__} has no prunable layer {choice.name!r}.")
        if choice.kind == DENSE:
            continue
        parent, _, leaf = choice.name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, sparse_layer(layers[choice.name], choice.kind).eval())


def _layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    names = [weight.name.removesuffix(".weight") for weight in find_weights(model)]
    return [(name, model.get_submodule(name)) for name in names]


def _choose(name: str, module: nn.Module, batch: tuple[int, int], kinds: Sequence[str], repetitions: int) -> Choice:
    assert isinstance(module, nn.Linear | Conv1D)
    weight = module.weight.detach()
    sparsity = 1 - int(weight.count_nonzero()) / weight.numel()
    if sparsity == 0:
        return Choice(name, DENSE, sparsity)
    inputs = weight.shape[0] if isinstance(module, Conv1D) else weight.shape[1]
    x = torch.randn(*batch, inputs, dtype=weight.dtype, device=weight.device)
    candidates: dict[str, nn.Module] = {DENSE: module}
    refused = {}
    for kind in kinds:
        try:
            candidates[kind] = sparse_layer(module, kind)
        except Unsuitable as error:
            refused[kind] = str(error)
    seconds = median_seconds(candidates, x, repetitions)
    for kind in set(candidates) - set(seconds):
        refused[kind] = f"{kind}: more than {HOPELESS:g} times as slow as the fastest."
    milliseconds = {kind: 1e3 * value for kind, value in seconds.items()}
    best = min(milliseconds, key=milliseconds.__getitem__)
    gains = milliseconds[best] < (1 - _GAIN) * milliseconds[DENSE]
    return Choice(name, best if gains else DENSE, sparsity, milliseconds, refused)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
