"""Self-regularization: while a model gets sparser, its predictions are held near those of an earlier snapshot of it.

For each row of logits z_S of the model being pruned and z_T of the snapshot (no gradient, evaluation mode), C classes:

    alpha <- 1 - entropy(softmax(z_S)) / log C            (a constant; or a fixed weight)
    loss  <- alpha * tau^2 * crossentropy(softmax(z_T / tau), z_S / tau) + (1 - alpha) * crossentropy(y, z_S)

Numbers are held by squared error with weight 1/2. Source: dossier paper-pins-sparsebert, sections 1.5 and 1.10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from argprune.solvers.methods.outputs import Prediction

SnapshotRule = Literal["none", "milestones", "held-out", "dev"]
Adaptive = Literal["adaptive"]


@dataclass(frozen=True)
class SelfRegularization:
    """The term that self-regularization adds to the mean task loss, and when the snapshot is renewed.

    rule: "milestones", whenever the sparsity is about to pass another multiple of `final / milestones`; "held-out" and
    "dev", at those moments too, if the model does best so far on a slice held out of training, or on the validation
    split (the official code; it lets validation labels choose training targets); "none".
    weight: "adaptive", by each row's entropy, or a number in [0, 1]. temperature: tau, > 0. milestones: >= 1.
    """

    rule: SnapshotRule = "milestones"
    weight: float | Adaptive = "adaptive"
    temperature: float = 2.0
    milestones: int = 8

    def __post_init__(self) -> None:
        if self.rule not in get_args(SnapshotRule):
            raise ValueError(f"self_regularization {self.rule!r}; choose one of {', '.join(get_args(SnapshotRule))}.")
        if self.weight != "adaptive" and not (not isinstance(self.weight, str) and 0 <= self.weight <= 1):
            raise ValueError(f"snapshot_weight {self.weight!r}: 'adaptive', or a number in [0, 1].")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature {self.temperature}: it must be finite and > 0.")
        if self.milestones < 1:
            raise ValueError(f"milestones {self.milestones}: at least 1.")

    def milestone(self, sparsity: float, final: float) -> int:
        """How many milestones a sparsity on its way to `final` has passed, 0 to `milestones`."""
        # Rounded, lest 0.3 / 0.9 * 3 falls short of 1.
        return math.floor(round(self.milestones * sparsity / final, 9)) if final > 0 else 0

    def term(self, student: Sequence[Prediction], teacher: Sequence[Prediction]) -> Tensor:
        """What to add to the mean task loss to make it the loss above; the mean over rows, then over outputs."""
        terms = [self._term(own, snapshot) for own, snapshot in zip(student, teacher, strict=True)]
        return torch.stack(terms).mean()

    def _term(self, student: Prediction, teacher: Prediction) -> Tensor:
        logits, snapshot = student.logits.float(), teacher.logits.detach().float()
        if len(logits) == 0:
            return logits.sum()
        if student.is_regression:
            weight = 0.5 if self.weight == "adaptive" else self.weight
            held, task = (logits - snapshot).square(), (logits - student.targets).square()
            return (weight * (held - task)).mean()
        tau = self.temperature
        held = tau**2 * functional.cross_entropy(logits / tau, (snapshot / tau).softmax(-1), reduction="none")
        task = functional.cross_entropy(logits, student.targets, reduction="none")
        return (self._row_weights(logits) * (held - task)).mean()

    def _row_weights(self, logits: Tensor) -> Tensor | float:
        if self.weight != "adaptive":
            return float(self.weight)
        return confidence(logits)


def confidence(logits: Tensor) -> Tensor:
    """1 - entropy / log C of each row of logits, without gradient: 0 for uniform rows, 1 for certain ones.

    logits: (rows, C), C >= 2. Returns (rows,).

    >>> confidence(torch.tensor([[0.0, 0.0], [99.0, 0.0]])).tolist()
    [0.0, 1.0]
    """
    log_probabilities = logits.detach().log_softmax(-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)
    return (1 - entropy / math.log(logits.shape[-1])).clamp(0, 1)
