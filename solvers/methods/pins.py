"""PINS: the mask as the solution of a 0-1 program, solved at every event, with self-regularization by a snapshot.

    for each step t of the pruning phase:
        W' <- AdamW step on f + self-regularization from W
        c <- average over steps of g * W'                   (first-order loss of keeping W' rather than 0; d = W' - W)
        before an event that passes a milestone of the sparsity:  snapshot <- the model
        at an event:  m <- argmin sum_i c_i m_i  subject to  sum_i m_i = k(t)         (exactly; certificate: gap 0)
                      W <- m * W'
    for each step of the cool-down:  AdamW step, restricted to the support

Pruned weights have gradients and steps too: whatever the program keeps at an event returns, from its step d.
Reference: Ren and Zhu, "Pruning Pre-trained Language Models with Principled Importance and Self-regularization"
(Findings of ACL 2023); docs/theory/pins.md says what is established and what is a reading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from argprune.solvers.criteria.base import Elementwise, build
from argprune.solvers.groups import Weight
from argprune.solvers.methods.outputs import Outputs
from argprune.solvers.methods.scored import Masks, Scored
from argprune.solvers.methods.self_regularization import Adaptive, SelfRegularization, SnapshotRule
from argprune.solvers.registry import register


@register(
    "methods",
    "pins",
    examples=[
        {"sparsity": 0.6, "every": 2},
        {
            "sparsity": 0.6,
            "criterion": {"name": "pins", "sign": "abs"},
            "uncertainty": 0.99,
            "masks": "soft",
            "scope": "matrix",
            "self_regularization": "none",
        },
    ],
)
@dataclass
class PINS(Scored):
    """The 0-1 program of first-order loss changes at every event, exactly k kept, with self-regularization.

    sparsity: fraction of zeros over the prunable weights at the end, in [0, 1); exact.
    criterion: whose scores are the program's costs, negated: `pins` (sign: displacement, signed, abs) or any other
    elementwise one, by name, module:Class, or a mapping of `name` and options. The signed forms solve the program as
    derived and fail at high sparsity (docs/results); sign abs does not.
    every: steps between events. window: how many of the last of these are averaged; None for all.
    beta: of the moving average over windows, 0 for none. uncertainty: beta of PLATON's uncertainty, None for none.
    scope: one count for all weights together ("global") or one a matrix ("matrix").
    masks: "persistent", pruned weights stay zero between events, and any may be kept at the next; "soft", they move
    freely in between (the official code); "nested", they stay pruned.
    self_regularization: when the snapshot is renewed: "milestones", "held-out", "dev" or "none".
    snapshot_weight: of its predictions against the labels: "adaptive" (entropy) or a number in [0, 1].
    temperature: of its predictions. milestones: how many steps of sparsity renew it.
    examples: rows that a gradient is the mean over, for criteria with curvature.
    warmup, cooldown: fractions of the run before the first and after the last event; the support is fixed at the end.
    """

    sparsity: float
    criterion: str | Mapping[str, Any] = "pins"
    every: int = 8
    window: int | None = None
    beta: float = 0.85
    uncertainty: float | None = None
    scope: Literal["global", "matrix"] = "global"
    masks: Masks = "persistent"
    self_regularization: SnapshotRule = "milestones"
    snapshot_weight: float | Adaptive = "adaptive"
    temperature: float = 2.0
    milestones: int = 8
    examples: int = 16
    warmup: float = 0.06
    cooldown: float = 0.4

    def __post_init__(self) -> None:
        self._check("pins")
        made = build(self.criterion)
        if not isinstance(made, Elementwise):
            raise ValueError(
                f"pins: criterion {self.criterion!r} looks at more than one entry; give an elementwise one."
            )
        if "inputs" in made.needs:
            raise ValueError(
                f"pins: criterion {self.criterion!r} reads the layers' inputs, which training does not keep."
            )
        self._made = made
        self._term = SelfRegularization(
            self.self_regularization, self.snapshot_weight, self.temperature, self.milestones
        )

    def _criterion(self) -> Elementwise:
        return self._made

    def attach(self, weights: Sequence[Weight], total_steps: int) -> None:
        """Take the weights; the first milestone, sparsity 0, is passed by the first event."""
        super().attach(weights, total_steps)
        self._counters["milestone"] = -1.0

    def snapshot(self, step: int) -> Literal["no", "take", "held-out", "dev"]:
        """Before an event passes a milestone of the sparsity, while the model is still at home in its support."""
        rule = self._term.rule
        if rule == "none" or not self._is_event(step + 1):
            return "no"
        coming = self._term.milestone(self._schedule(step + 1), self.sparsity)
        if coming <= self._counters["milestone"]:
            return "no"
        self._counters["milestone"] = coming
        return "take" if rule == "milestones" else rule

    @property
    def holds_out(self) -> bool:
        """Whether the rule scores snapshots on a slice of the training split."""
        return self._term.rule == "held-out"

    def loss_terms(self, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """Self-regularization, once there is a snapshot."""
        if teacher is None:
            return {}
        return {"self_regularization": self._term.term(student.predictions, teacher.predictions)}
