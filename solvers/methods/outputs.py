"""What methods see of a model's outputs: rows of logits with their targets, whatever the task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from argprune.solvers.distillation.states import States


@dataclass(frozen=True, eq=False)
class Prediction:
    """One output of a model, a row a prediction: classes of a text, a token or a position, or a number.

    logits: (rows, classes), or (rows,) for a number; targets: (rows,), int64 classes or floating numbers; rows without
    a target are left out of both. possible: bool (rows, classes), False where a class cannot be: at the padding of a
    text whose positions are the classes; None: all can.
    """

    logits: Tensor
    targets: Tensor
    possible: Tensor | None = None

    @property
    def is_regression(self) -> bool:
        """Whether the targets are numbers."""
        return self.targets.is_floating_point()


@dataclass(frozen=True, eq=False)
class Outputs:
    """A model's outputs on a batch: as predictions (a span has two: start and end), and raw, as the model gave them.

    states: what it computed on the way, where somebody learns from it.
    """

    predictions: Sequence[Prediction]
    raw: Any
    states: States | None = None
