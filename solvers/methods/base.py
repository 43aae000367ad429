"""What a pruning method is, to the harness that drives it: hooks around an optimizer's step on a list of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from argprune.solvers.distillation import Distillation
from argprune.solvers.groups import Tied, Weight
from argprune.solvers.ilp.closed_form import keep_largest
from argprune.solvers.ilp.rows import largest_of_shards
from argprune.solvers.methods.outputs import Outputs
from argprune.solvers.shards import group_of, totals

State = dict[str, Tensor | float | int | str]


class Method:
    """A pruning algorithm. Subclasses are dataclasses whose fields are the user's options, `sparsity` first.

    The harness calls `attach` once, `wrap_optimizer` once, then for every optimizer step `before_step` (gradients are
    there and clipped) and `after_step` (weights have moved), and `finish` at the end. A killed run calls `attach`,
    `wrap_optimizer` and `load_state_dict` and goes on to the same bits. Methods whose `wants_ties` names some get them
    by `tie` before all else.
    """

    sparsity: float

    @property
    def wants_ties(self) -> tuple[Literal["heads", "neurons"], ...]:
        """The kinds of units, tied across matrices, that `tie` must bring before `attach`."""
        return ()

    @property
    def distillation(self) -> Distillation | None:
        """What a teacher shall teach, unless the user says otherwise; None: nothing."""
        return None

    @property
    def needs_whole_weights(self) -> str | None:
        """Why the method cannot work where every process holds some rows of a weight (FSDP); None where it can.

        One that can gets such `Weight`s, whose `shard` says which rows the parameter is: what it sums, counts or
        selects over a matrix goes over all processes. What `state_dict` names <what>.<weight> and is shaped like the
        parameter is then of these rows, and everything else the same on all processes; `attach`, the hooks, `logs`,
        `state_dict` and `report` are called by all of them.
        """
        return "it looks at whole weights"

    @property
    def constant_rate(self) -> bool:
        """Whether the learning rate neither warms up nor decays."""
        return False

    def tie(self, ties: Sequence[Tied]) -> None:
        """Take the units that hold all of the weights to prune; called where `wants_ties` names some."""

    def attach(self, weights: Sequence[Weight], total_steps: int) -> None:
        """Take the weights to prune and the number of optimizer steps of the run."""
        raise NotImplementedError

    def wrap_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """The optimizer that the run shall use, in place of the plain one."""
        return optimizer

    def loss_terms(self, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """Terms to add to the task's loss, by name; the teacher is the snapshot on the same batch, if any."""
        return {}

    def snapshot(self, step: int) -> Literal["no", "take", "held-out", "dev"]:
        """Asked before the first step (-1) and after each: shall the model as it is become the teacher?

        "take": yes. "held-out", "dev": if it does best so far on a slice held out of training, or on the validation
        split. A method that may answer "held-out" says so by `holds_out`.
        """
        return "no"

    @property
    def holds_out(self) -> bool:
        """Whether a slice of the training split must be held out for `snapshot`."""
        return False

    def before_step(self, step: int) -> None:
        """Called when the gradients of optimizer step `step` (0-based) are there."""

    def after_step(self, step: int, learning_rate: float) -> None:
        """Called when optimizer step `step` has moved the weights."""

    def finish(self) -> dict[str, Tensor]:
        """Make the weights' zeros final; masks by weight name, True = kept."""
        raise NotImplementedError

    @property
    def tolerance(self) -> float | None:
        """After `attach`: by how many entries the number kept may differ from the asked one; None: half an entry each.

        Half an entry of each matrix is what rounding takes; whole groups may take more.
        """
        return None

    def state_dict(self) -> State:
        """All that a resumed run needs beyond weights and optimizer: tensors, numbers and strings by name."""
        return {}

    def reshape(self, state: Mapping[str, Any]) -> None:
        """Give parameters the shapes that they had when `state_dict` gave this state; called before they are loaded."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved, after `attach` and `wrap_optimizer`."""

    def logs(self) -> dict[str, float]:
        """What a logging line shall say of the method now."""
        return {}

    def report(self) -> dict[str, Any]:
        """What `metrics.json` shall say of the method, after `finish`."""
        return {}


class Support:
    """Masks of some weights, applied to gradients and weights so that no optimizer can revive a pruned entry."""

    def __init__(self, weights: Sequence[Weight]) -> None:
        self._weights = weights
        self._kept: list[Tensor] = []

    def __bool__(self) -> bool:
        return bool(self._kept)

    def fix(self, masks: Sequence[Tensor]) -> None:
        """Keep the entries where a mask (shaped like the parameter) is True, and zero the others from now on."""
        self._kept = list(masks)
        self.zero_weights()

    def release(self) -> None:
        """Let every entry move again."""
        self._kept = []

    # A product with the mask is twice as fast as filling by it, with its bytes twice as fast again; it is done twice a
    # step.

    @torch.no_grad()
    def zero_gradients(self) -> None:
        """Clear the gradients of pruned entries."""
        for weight, kept in zip(self._weights, self._kept, strict=False):
            if weight.parameter.grad is not None:
                weight.parameter.grad.mul_(kept.view(torch.uint8))

    @torch.no_grad()
    def zero_weights(self) -> None:
        """Set pruned entries to zero: momentum and weight decay may have moved them."""
        for weight, kept in zip(self._weights, self._kept, strict=False):
            weight.parameter.mul_(kept.view(torch.uint8))

    def masks(self) -> dict[str, Tensor]:
        """The masks by weight name, True = kept."""
        return {weight.name: kept for weight, kept in zip(self._weights, self._kept, strict=False)}

    def state_dict(self) -> State:
        """The masks, named mask.<weight>; empty while nothing is fixed."""
        return {f"mask.{name}": mask for name, mask in self.masks().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the masks; the weights are expected to be zero there already."""
        if any(name.startswith("mask.") for name in state):
            self._kept = [state[f"mask.{w.name}"].to(w.parameter.device) for w in self._weights]


def keep_count(numel: int, sparsity: float) -> int:
    """The number of entries to keep of `numel` at a sparsity: numel - round(sparsity * numel)."""
    return numel - round(sparsity * numel)


def magnitude_masks(weights: Sequence[Weight], sparsity: float, scope: str) -> list[Tensor]:
    """Masks of the largest magnitudes: exactly `keep_count` a matrix ("matrix") or over all together ("global")."""
    scores = [weight.parameter.detach().abs() for weight in weights]
    return largest_masks(weights, scores, sparsity, scope)


def largest_masks(weights: Sequence[Weight], scores: Sequence[Tensor], sparsity: float, scope: str) -> list[Tensor]:
    """The same of any scores, one tensor shaped like each weight's parameter."""
    group = group_of(weights)

    def keep(some: Sequence[Tensor], total: int) -> list[Tensor]:
        count = keep_count(total, sparsity)
        return keep_largest(some, count) if group is None else largest_of_shards(some, count, group)

    if scope == "global":
        return keep(scores, sum(weight.numel for weight in weights))
    return [keep([score], weight.numel)[0] for weight, score in zip(weights, scores, strict=True)]


def zero_fraction(weights: Sequence[Weight]) -> float:
    """The fraction of real zeros over all entries of the weights."""
    [nonzero] = totals(weights, [sum(int(weight.parameter.detach().count_nonzero()) for weight in weights)])
    return 1 - int(nonzero) / sum(weight.numel for weight in weights)
