"""How sparse a model really is.

    sparsity(S) = zeros(S) / total(S),    compression(S) = total(S) / nonzero(S)

for two sets S: `encoder`, the prunable weights, and `model`, all parameters. The zeros are counted in the
tensors, never taken from masks or targets: only what is stored can be reported.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import nn

from argprune.solvers.groups import Weight


class SparsityDict(TypedDict):
    """Both ratios of the sets `encoder` and `model`; None stands for infinity, which JSON does not know."""

    sparsity: dict[str, float]
    compression: dict[str, float | None]


@dataclass(frozen=True)
class Count:
    """Entries of a set of tensors (total), and how many of them are zeros (-0.0 is; NaN is not)."""

    total: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """Fraction of zeros, in [0, 1]."""
        return self.zeros / self.total

    @property
    def compression(self) -> float | None:
        """total / nonzero, >= 1; None for an all-zero set, where the ratio is unbounded."""
        nonzero = self.total - self.zeros
        return self.total / nonzero if nonzero else None


@dataclass(frozen=True)
class Sparsity:
    """Zeros of a model, counted.

    encoder: over the prunable weights; model: over all parameters, shared ones once, buffers not at all.
    matrices: name of each prunable weight -> its fraction of zeros, in [0, 1], in the order given.
    """

    encoder: Count
    model: Count
    matrices: Mapping[str, float]

    def to_dict(self) -> SparsityDict:
        """Return the two ratios of both sets, ready for JSON; compression is None for an all-zero set."""
        sets = {"encoder": self.encoder, "model": self.model}
        return {
            "sparsity": {name: count.sparsity for name, count in sets.items()},
            "compression": {name: count.compression for name, count in sets.items()},
        }


def measure_sparsity(model: nn.Module, weights: Sequence[Weight]) -> Sparsity:
    """Count the zeros of `model` and of its prunable `weights`.

    model: on any device that holds values, which meta does not. weights: those of this very model, as
    `find_weights` gives them; any dtype. A parameter that occurs twice, in either, counts once.
    Raises ValueError for no weights, a weight that is no parameter of `model`, or a model on the meta device.
    """
    if not weights:
        raise ValueError("measure_sparsity: no weights given. Pass find_weights(model).")
    counts: dict[int, Count] = {}
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ValueError(
                f"measure_sparsity: {name!r} is on the meta device and has no values. Load the model first."
            )
        counts[id(parameter)] = Count(parameter.numel(), parameter.numel() - int(torch.count_nonzero(parameter)))
    for weight in weights:
        if id(weight.parameter) not in counts:
            raise ValueError(
                f"measure_sparsity: {weight.name!r} is no parameter of this {type(model).__name__}. "
                f"Call find_weights on the model that is measured."
            )
    prunable = {id(weight.parameter): counts[id(weight.parameter)] for weight in weights}
    return Sparsity(
        encoder=_sum(prunable.values()),
        model=_sum(counts.values()),
        matrices={weight.name: counts[id(weight.parameter)].sparsity for weight in weights},
    )


def _sum(counts: Collection[Count]) -> Count:
    return Count(sum(count.total for count in counts), sum(count.zeros for count in counts))
