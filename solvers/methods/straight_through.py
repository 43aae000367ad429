"""Straight-through gates without a look into the model: the parameter holds W * gate, the dense W lies behind it.

between steps   parameter = W * gate        (forward passes see the pruned network, backward passes df/d(W * gate))
before a step   g <- the gradient;  scores learn from g and W;  gradient <- g * gate;  parameter <- W
optimizer       its step on the dense W     (momentum and weight decay reach pruned entries too, as published)
after a step    gate <- from the scores;  parameter <- W * gate
at the end of the pruning phase the support is fixed; scores and dense weights are dropped
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from argprune.solvers.groups import Weight
from argprune.solvers.ilp import Selection, solve
from argprune.solvers.ilp.solve import smallest_within
from argprune.solvers.methods.base import Method, State, Support, keep_count, zero_fraction
from argprune.solvers.schedules import CubicSparsity, Phases
from argprune.solvers.shards import group_of, totals

ScoreOptimizer = Literal["adamw", "sgd"]


def gate_(tensor: Tensor, gate: Tensor) -> None:
    """Multiply by a gate in place."""
    # As bytes, masks are converted to floats twice as fast.
    tensor.mul_(gate.view(torch.uint8) if gate.dtype == torch.bool else gate)


class Scores:
    """A tensor beside each weight, in float32 or better, with an optimizer of its own and no weight decay.

    optimizer: "adamw" or "sgd"; one a weight, so that one weight's gradient is in memory at a time.
    """

    def __init__(self, weights: Sequence[Weight], initial: float, optimizer: ScoreOptimizer) -> None:
        self._weights = weights
        # In the order of the gradients, whatever that of the parameter is: a fused step goes through both as they lie.
        self.values = [
            torch.full_like(
                w.parameter,
                initial,
                dtype=torch.promote_types(w.parameter.dtype, torch.float32),
                memory_format=torch.contiguous_format,
            ).detach()
            for w in weights
        ]
        self._optimizers: list[Optimizer] = [
            AdamW([value], weight_decay=0.0, fused=True) if optimizer == "adamw" else SGD([value])
            for value in self.values
        ]
        # Fresh memory at every step would cost several times what is done with it.
        self._buffers: list[Tensor] = []

    def buffer(self, index: int, number: int = 0) -> Tensor:
        """Memory shaped like the scores of weight `index`, shared by all weights; what is in it gets lost.

        Number 0 is for the gradient, others for work on the way.
        """
        value = self.values[index]
        while len(self._buffers) <= number:
            largest = max(score.numel() for score in self.values)
            self._buffers.append(torch.empty(largest, dtype=value.dtype, device=value.device))
        return self._buffers[number][: value.numel()].view(value.shape)

    def learn(self, index: int, gradient: Tensor, rate: float) -> None:
        """One step of gradient descent on the scores of weight `index`."""
        value, optimizer = self.values[index], self._optimizers[index]
        optimizer.param_groups[0]["lr"] = rate
        value.grad = gradient
        optimizer.step()
        value.grad = None

    def drop(self) -> None:
        """Forget all: the support needs no scores any more."""
        self.values, self._optimizers, self._buffers = [], [], []

    def state_dict(self) -> State:
        """Scores and moments, named score.<weight> and <moment>.<weight>."""
        state: State = {}
        for weight, value, optimizer in zip(self._weights, self.values, self._optimizers, strict=False):
            state[f"score.{weight.name}"] = value
            state.update({f"{name}.{weight.name}": moment for name, moment in optimizer.state[value].items()})
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        for weight, value, optimizer in zip(self._weights, self.values, self._optimizers, strict=True):
            value.copy_(state[f"score.{weight.name}"])
            if f"step.{weight.name}" in state:
                names = ("step", "exp_avg", "exp_avg_sq")
                optimizer.state[value] = {name: state[f"{name}.{weight.name}"].to(value.device) for name in names}


class StraightThrough(Method):
    """Base of methods that learn gates from the gradients of pruned entries too. Subclasses say how.

    Scores follow the run's learning rate: their own `score_rate`, times what is left of the optimizer's peak rate.
    """

    # Fields of the subclasses, which are dataclasses; named here for the code below.
    score_rate: float
    score_optimizer: ScoreOptimizer = "adamw"
    every: int = 1
    _phases: Phases
    _initial_score = 0.0

    def _gradient(self, index: int, gradient: Tensor, dense: Tensor) -> Tensor | None:
        """The gradient of the scores of a weight, in their buffer; None where they do not learn now."""
        raise NotImplementedError

    def _new_gates(self, step: int) -> list[Tensor]:
        """What multiplies each weight after step `step`: masks, or gates in [0, 1]."""
        raise NotImplementedError

    def _final_masks(self) -> list[Tensor]:
        """The support at the end of the pruning phase, exact; the parameters are dense now and may be changed."""
        raise NotImplementedError

    def _check(self, name: str) -> None:
        """Check the options that all methods of this kind share."""
        if not 0 < self.score_rate < float("inf"):
            raise ValueError(f"{name}: score_rate {self.score_rate}; it must be finite and > 0.")
        if self.score_optimizer not in ("adamw", "sgd"):
            raise ValueError(f"{name}: score_optimizer {self.score_optimizer!r}; choose 'adamw' or 'sgd'.")
        if self.every < 1:
            raise ValueError(f"{name}: every {self.every}; masks are at least 1 step apart.")

    def attach(self, weights: Sequence[Weight], total_steps: int) -> None:
        """Take the weights and lay out the schedule."""
        self._weights, self._support = weights, Support(weights)
        self._begin, self._end = self._phases.steps(total_steps)
        self._schedule = CubicSparsity(self.sparsity, self._begin, self._end)
        self._gates: list[Tensor] = []
        self._dense: list[Tensor] = []
        self._step = -1

    def wrap_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Leave the optimizer as it is; the weights are where they will be trained now, so scores go there too."""
        self._optimizer, self._peak = optimizer, float(optimizer.defaults["lr"])
        self._scores = Scores(self._weights, self._initial_score, self.score_optimizer)
        return optimizer

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Let the scores learn and give the optimizer dense weights with gated gradients; later, mask the gradients."""
        if self._support:
            self._support.zero_gradients()
            return
        self._step = step
        now = float(self._optimizer.param_groups[0]["lr"])
        rate = self.score_rate * (now / self._peak if self._peak else 1.0)
        for index, weight in enumerate(self._weights):
            gradient = weight.parameter.grad
            if gradient is not None:
                dense = self._dense[index] if self._dense else weight.parameter
                of_scores = self._gradient(index, gradient, dense)
                if of_scores is not None:
                    self._scores.learn(index, of_scores, rate)
                if self._gates:
                    gate_(gradient, self._gates[index])
            if self._dense:
                weight.parameter.copy_(self._dense[index])

    @torch.no_grad()
    def after_step(self, step: int, learning_rate: float) -> None:
        """In the pruning phase, gate the weights anew; at its end, fix the support; afterwards, keep it."""
        if self._support:
            self._support.zero_weights()
        elif step == self._end:
            self._close()
        elif step >= self._begin:
            if (step - self._begin) % self.every == 0:
                self._gates = self._new_gates(step)
            if not self._dense:
                self._dense = [torch.empty_like(weight.parameter) for weight in self._weights]
            for weight, dense, gate in zip(self._weights, self._dense, self._gates, strict=True):
                dense.copy_(weight.parameter)
                gate_(weight.parameter, gate)

    def _close(self) -> None:
        self._support.fix(self._final_masks())
        self._scores.drop()
        self._gates, self._dense = [], []

    @torch.no_grad()
    def finish(self) -> dict[str, Tensor]:
        """The masks of the support."""
        if not self._support:
            for weight, dense in zip(self._weights, self._dense, strict=False):
                weight.parameter.copy_(dense)
            self._close()
        return self._support.masks()

    def state_dict(self) -> State:
        """The support; before there is one, scores with their moments, gates and dense weights."""
        state = {**self._support.state_dict(), **self._scores.state_dict()}
        for weight, dense, gate in zip(self._weights, self._dense, self._gates, strict=False):
            state |= {f"dense.{weight.name}": dense, f"gate.{weight.name}": gate}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        self._support.load_state_dict(state)
        if self._support:
            self._scores.drop()
            return
        self._scores.load_state_dict(state)
        self._dense = [self._saved(state, "dense", w) for w in self._weights if f"dense.{w.name}" in state]
        self._gates = [self._saved(state, "gate", w) for w in self._weights if f"gate.{w.name}" in state]

    @staticmethod
    def _saved(state: Mapping[str, Any], what: str, weight: Weight) -> Tensor:
        saved: Tensor = state[f"{what}.{weight.name}"]
        return saved.to(weight.parameter.device)

    def logs(self) -> dict[str, float]:
        """The sparsity from real zeros."""
        return {"sparsity": zero_fraction(self._weights)}


class MaskScores(StraightThrough):
    """Base of the methods whose gates are masks, chosen from scores that learn by gradient times weight."""

    @property
    def needs_whole_weights(self) -> None:
        """Scores are of entries, and one count ties them."""

    def _masks(self, step: int) -> list[Tensor]:
        """The masks after step `step`."""
        raise NotImplementedError

    def attach(self, weights: Sequence[Weight], total_steps: int) -> None:
        """Take the weights, lay out the schedule, and start to count."""
        super().attach(weights, total_steps)
        self._revived = 0

    def _movement(self, index: int, gradient: Tensor, dense: Tensor) -> Tensor:
        """The straight-through gradient of the scores of a weight: df/dW' times W, in their buffer and precision."""
        buffer = self._scores.buffer(index)
        return torch.mul(gradient.to(buffer.dtype), dense, out=buffer)

    def _largest(self, sparsity: float, least: Sequence[int] | None = None) -> list[Tensor]:
        """Masks of the largest scores over all weights: exactly `keep_count`, at least `least` of each weight."""
        scores, sizes = self._scores.values, [weight.numel for weight in self._weights]
        keep = keep_count(sum(sizes), sparsity)
        group = group_of(self._weights)
        # The program minimises. Negated in place and back, which is exact, the scores are not copied.
        for score in scores:
            score.neg_()
        if group is None:
            masks = solve(Selection(scores, keep=keep, least=least), certify=False).masks
        else:
            masks = smallest_within(scores, keep, least or [0] * len(sizes), sizes, group)
        for score in scores:
            score.neg_()
        return masks

    def _new_gates(self, step: int) -> list[Tensor]:
        masks = self._masks(step)
        revived = sum(int((new > old).count_nonzero()) for new, old in zip(masks, self._gates, strict=False))
        self._revived = int(totals(self._weights, [revived])[0])
        return masks

    def state_dict(self) -> State:
        """The counter of revived entries beside what every method of this kind saves."""
        return {**super().state_dict(), "revived": self._revived}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        super().load_state_dict(state)
        self._revived = int(state["revived"])

    def logs(self) -> dict[str, float]:
        """The sparsity from real zeros; before the support is fixed, entries that the last masks revived."""
        return super().logs() if self._support else {**super().logs(), "revived": self._revived}
