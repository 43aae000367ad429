"""The loss of a student with a teacher, in one stage, from the first step to the last:

    f = task_loss * task's loss  +  logits * L_logits  +  embedding * L_embedding
        +  hidden * sum over layers of L_layer  +  attention * sum over layers of L_scores

The weights 1, 1, 1, 1 and task_loss 0 are SparseBERT's: dossier paper-pins-sparsebert, section 2.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from argprune.solvers.distillation.layers import LAYER_RULES, LayerRule
from argprune.solvers.distillation.losses import prediction_loss, score_loss, state_loss
from argprune.solvers.distillation.projections import Projections
from argprune.solvers.distillation.states import States

if TYPE_CHECKING:
    # At run time this would be a circle: methods import distillation.
    from argprune.solvers.methods.outputs import Outputs

_OF_TEACHER = ("logits", "hidden", "attention", "embedding")


@dataclass(frozen=True)
class Distillation:
    """What to learn from a teacher, and how much each part counts.

    logits, hidden, attention, embedding: weights, >= 0, some > 0: of the outputs, of the layers' outputs, of raw
    attention scores, of the embedding's output. task_loss: weight of the labels' loss. temperature: of classes, > 0.
    layers: the teacher layer that each layer learns from: "identity", "uniform" or "learned" (by assignment).
    literal: as SparseBERT was released: teacher with dropout, losses averaged over classes and padding, numbers held to
    their labels.
    """

    logits: float = 1.0
    hidden: float = 1.0
    attention: float = 1.0
    embedding: float = 1.0
    task_loss: float = 0.0
    temperature: float = 1.0
    layers: LayerRule = "identity"
    literal: bool = False

    def __post_init__(self) -> None:
        for name in (*_OF_TEACHER, "task_loss"):
            value = getattr(self, name)
            if isinstance(value, bool | str) or not 0 <= value < math.inf:
                raise ValueError(f"distill {name} {value!r}: a weight is a finite number >= 0.")
        if not any(getattr(self, name) for name in _OF_TEACHER):
            raise ValueError(f"distill learns nothing: give {', '.join(_OF_TEACHER[:-1])} or embedding a weight > 0.")
        if isinstance(self.temperature, bool | str) or not 0 < self.temperature < math.inf:
            raise ValueError(f"distill temperature {self.temperature!r}: it must be finite and > 0.")
        if self.layers not in LAYER_RULES:
            raise ValueError(f"distill layers {self.layers!r}; choose one of {', '.join(LAYER_RULES)}.")
        if not isinstance(self.literal, bool):
            raise ValueError(f"distill literal {self.literal!r}; give true or false.")

    @property
    def wants_hidden(self) -> bool:
        """Whether outputs of layers or of the embedding are compared."""
        return self.hidden > 0 or self.embedding > 0

    @property
    def wants_scores(self) -> bool:
        """Whether attention scores are compared."""
        return self.attention > 0

    def terms(self, student: Outputs, teacher: Outputs, projections: Projections | None = None) -> dict[str, Tensor]:
        """The terms with a weight > 0, weighted, by name.

        teacher: its outputs on the same batch, its states those that the student's layers learn from, one for one.
        projections: of the student's states, where the teacher has another width.
        """
        terms = {}
        if self.logits:
            parts = [
                prediction_loss(own, held, self.temperature, literal=self.literal)
                for own, held in zip(student.predictions, teacher.predictions, strict=True)
            ]
            terms["logits"] = self.logits * torch.stack(parts).mean()
        if not (self.wants_hidden or self.wants_scores):
            return terms
        own, held = student.states, teacher.states
        assert own is not None
        assert held is not None
        if self.wants_hidden and projections is not None:
            own = projections(own)
        return terms | self._inner(own, held)

    def _inner(self, own: States, held: States) -> dict[str, Tensor]:
        terms = {}
        tokens = torch.ones_like(own.tokens) if self.literal else own.tokens
        if self.embedding:
            assert own.embedding is not None
            assert held.embedding is not None
            terms["embedding"] = self.embedding * state_loss(own.embedding, held.embedding, tokens)
        if self.hidden:
            layers = zip(own.layers, held.layers, strict=True)
            terms["hidden"] = self.hidden * torch.stack([state_loss(*pair, tokens) for pair in layers]).sum()
        if self.attention:
            losses = [
                score_loss(*pair, own.tokens, causal=own.causal, literal=self.literal)
                for pair in zip(own.scores, held.scores, strict=True)
            ]
            terms["attention"] = self.attention * torch.stack(losses).sum()
        return terms
