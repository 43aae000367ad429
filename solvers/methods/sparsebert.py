"""SparseBERT: a pretrained network is pruned by magnitude while it learns from a fine-tuned teacher.

    W <- the pretrained network;  teacher <- the fine-tuned one, frozen, without dropout
    for each step t of the pruning phase:
        W <- optimizer step on f = L_logits + L_embedding + sum over layers (L_layer + L_scores)        (distillation)
        at an event, one of about 100, for each matrix:
            support <- the k(t) entries of largest |W| within the support                  (nested; ties by index)
        W <- W on the support, 0 elsewhere
    for each step of the cool-down:  optimizer step on f, restricted to the support

The harness brings the teacher and its losses, `distillation` says which. Reference: Xu, Yen, Zhao and Xiao, "Rethinking
Network Pruning - under the Pre-train and Fine-tune Paradigm" (NAACL 2021); docs/theory/sparsebert.md says what of the
released code is here, and what was a defect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from argprune.solvers.distillation import Distillation
from argprune.solvers.groups import Weight
from argprune.solvers.ilp.closed_form import keep_largest
from argprune.solvers.methods.base import Method, State, Support, keep_count, zero_fraction
from argprune.solvers.registry import register
from argprune.solvers.schedules import CubicSparsity, Phases, check_sparsity

_LITERAL_EVENTS = 100


@register(
    "methods",
    "sparsebert",
    examples=[{"sparsity": 0.6, "events": 5, "cooldown": 0.4}, {"sparsity": 0.6}, {"sparsity": 0.6, "literal": True}],
)
@dataclass
class SparseBERT(Method):
    """Nested magnitude pruning of each matrix while a fine-tuned teacher is distilled into it.

    sparsity: fraction of zeros over the prunable weights at the end, in [0, 1); exact, of each matrix.
    warmup, cooldown: fractions of the run before the first and after the last event; the support is fixed at the end.
    events: how many times the support shrinks, where the pruning phase has as many steps.
    literal: as released: 100 events up to the end of the run, ties kept, a constant learning rate, a teacher with
    dropout, losses averaged over classes and padding; the options above are then without effect.
    """

    sparsity: float
    warmup: float = 0.0
    cooldown: float = 0.2
    events: int = _LITERAL_EVENTS
    literal: bool = False

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        self._phases = Phases(self.warmup, self.cooldown)
        if self.events < 1:
            raise ValueError(f"sparsebert: events {self.events}; the support shrinks at least once.")
        if not isinstance(self.literal, bool):
            raise ValueError(f"sparsebert: literal {self.literal!r}; give true or false.")

    @property
    def distillation(self) -> Distillation:
        """What the teacher teaches, unless the user says otherwise: everything, with equal weights, and no labels."""
        return Distillation(literal=self.literal)

    @property
    def constant_rate(self) -> bool:
        """Whether the learning rate neither warms up nor decays."""
        return self.literal

    def attach(self, weights: Sequence[Weight], total_steps: int) -> None:
        """Take the weights and lay out the schedule."""
        self._weights, self._support = weights, Support(weights)
        self._total, self._events, self._ties, self._reached = total_steps, 0, 0, 0.0
        self._begin, self._end = self._phases.steps(total_steps)
        self._schedule = CubicSparsity(self.sparsity, self._begin, self._end)
        self._every = max(1, round((self._end - self._begin + 1) / self.events))

    def before_step(self, step: int) -> None:
        """Keep pruned weights out of the optimizer's moments, which never matter again: supports are nested."""
        self._support.zero_gradients()

    def after_step(self, step: int, learning_rate: float) -> None:
        """At an event, shrink the support; else keep it."""
        sparsity = self._literal_sparsity(step + 1) if self.literal else self._sparsity(step)
        if sparsity is None:
            self._support.zero_weights()
        else:
            self._shrink(sparsity)

    def _sparsity(self, step: int) -> float | None:
        """The sparsity of the event after step `step`; None between events."""
        due = (step - self._begin) % self._every == 0 or step == self._end
        return self._schedule(step) if self._begin <= step <= self._end and due else None

    def _literal_sparsity(self, steps: int) -> float | None:
        """The same of the released code, after so many steps: s (1 - (1 - floor(t/F) / floor(T/F))^3), F = T / 100."""
        every = max(1, round(self._total / _LITERAL_EVENTS))
        if steps % every or steps >= self._total:
            return None
        return self.sparsity * (1 - (1 - (steps // every) / (self._total // every)) ** 3)

    def _shrink(self, sparsity: float) -> None:
        self._events, self._reached = self._events + 1, sparsity
        scores = [weight.parameter.detach().abs() for weight in self._weights]
        for score, kept in zip(scores, self._support.masks().values(), strict=False):
            # Below zero: what was pruned comes after what was kept, a kept zero included.
            score.masked_fill_(~kept, -1.0)
        if self.literal:
            counts = [int(score.numel() * (1 - sparsity)) for score in scores]
            masks = [_at_least(score, count) for score, count in zip(scores, counts, strict=True)]
            self._ties = sum(int(mask.sum()) for mask in masks) - sum(counts)
        else:
            masks = [keep_largest([score], keep_count(score.numel(), sparsity))[0] for score in scores]
        self._support.fix(masks)

    def finish(self) -> dict[str, Tensor]:
        """The masks of the last event, which the released schedule, and loops that end early, may have left out."""
        if not self._support or self._reached < self.sparsity or self.literal:
            self._shrink(self.sparsity)
        else:
            self._support.zero_weights()
        return self._support.masks()

    @property
    def tolerance(self) -> float | None:
        """As released counts are cut down to integers, and ties are kept."""
        return float(len(self._weights) + self._ties) if self.literal else None

    def state_dict(self) -> State:
        """The current masks, the number of events, and the sparsity of the last."""
        return {**self._support.state_dict(), "events": self._events, "reached": self._reached}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self._support.load_state_dict(state)
        self._events, self._reached = int(state["events"]), float(state["reached"])

    def logs(self) -> dict[str, float]:
        """The sparsity from real zeros."""
        return {"sparsity": zero_fraction(self._weights)}

    def report(self) -> dict[str, Any]:
        """How often the support shrank, and, as released, how many entries more than asked were kept for ties."""
        return {"events": self._events, **({"ties": self._ties} if self.literal else {})}


def _at_least(score: Tensor, count: int) -> Tensor:
    """The mask of the released code: the `count` largest of a matrix, and all that equal the smallest of them."""
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    least = score.flatten().kthvalue(score.numel() - count + 1).values
    # Never what was pruned before.
    return score >= least.clamp_min(0)
