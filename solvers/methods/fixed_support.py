"""A support that is there already: train what a pruned network has left, and nothing else.

    support <- the nonzero entries of W at the start
    for each step:  optimizer's step on f, restricted to the support

How a support found on one task, such as a pre-training objective, is transferred to others: `--model RUN/model`.

Reference: Guo, Liu, Wang, Shen and Tan, "Reweighted Proximal Pruning for Large-Scale Language Representation" (2019),
section 4: the support found in pre-training is fixed in fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from argprune.solvers.groups import Weight
from argprune.solvers.methods.base import Method, State, Support, zero_fraction
from argprune.solvers.registry import register
from argprune.solvers.schedules import check_sparsity

# By how much the zeros that are there may differ from the sparsity that is asked for.
_TOLERANCE = 0.005


@register("methods", "fixed-support", examples=[{"sparsity": 0.0}])
@dataclass
class FixedSupport(Method):
    """Training on the support that the model comes with.

    sparsity: of the model's weights as they are, in [0, 1), to within half a percent; what the run's name and tables
    say must be what the model is.
    """

    sparsity: float

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)

    @property
    def needs_whole_weights(self) -> None:
        """A mask is kept entry by entry."""

    @torch.no_grad()
    def attach(self, weights: Sequence[Weight], total_steps: int) -> None:
        """Take the support. Raises ValueError where the weights' sparsity is another."""
        found = zero_fraction(weights)
        if abs(found - self.sparsity) > _TOLERANCE:
            raise ValueError(
                f"fixed-support: sparsity {self.sparsity}, but {found:.4f} of the model's weights are zero; give that, "
                f"and the model of a pruned run."
            )
        self._entries = abs(found - self.sparsity) * sum(weight.numel for weight in weights)
        self._weights, self._support = weights, Support(weights)
        self._support.fix([weight.parameter.detach() != 0 for weight in weights])

    @property
    def tolerance(self) -> float:
        """What the zeros that are there differ from those asked for by."""
        return self._entries + 0.5 * len(self._weights)

    def before_step(self, step: int) -> None:
        """Mask the gradients."""
        self._support.zero_gradients()

    def after_step(self, step: int, learning_rate: float) -> None:
        """Keep the zeros."""
        self._support.zero_weights()

    def finish(self) -> dict[str, Tensor]:
        """The masks of the support."""
        return self._support.masks()

    def state_dict(self) -> State:
        """The support: a weight of it may be zero by now."""
        return self._support.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        self._support.load_state_dict(state)

    def logs(self) -> dict[str, float]:
        """The sparsity from real zeros."""
        return {"sparsity": zero_fraction(self._weights)}
