"""What pruning by a criterion's scores has in common: accumulate, smooth, solve the 0-1 program, mask.

for each step t of the pruning phase:
    before or after the optimizer's step:  add the batch's scores to the window
    W <- optimizer's step on f
    at an event:  scores <- smoothed mean of the window
                  m <- argmin sum_i -scores_i m_i  subject to  sum_i m_i = k(t)      (closed form, with its certificate)
                  W <- W * m
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from argprune.solvers.criteria.base import Accumulators, Elementwise, Evidence, Smoothing
from argprune.solvers.groups import Weight
from argprune.solvers.ilp import Certificate, Selection, solve
from argprune.solvers.ilp.problem import chunks
from argprune.solvers.ilp.rows import smallest_of_shards
from argprune.solvers.methods.base import Method, State, Support, keep_count, zero_fraction
from argprune.solvers.schedules import CubicSparsity, Phases, check_sparsity
from argprune.solvers.shards import ShardGroup, group_of

Masks = Literal["persistent", "soft", "nested"]


class Scored(Method):
    """Base of `pins` and `platon`: subclasses are dataclasses that say which criterion and how it is smoothed."""

    # Fields of the subclasses, which are dataclasses; named here for the code below.
    every: int
    window: int | None
    beta: float
    uncertainty: float | None
    scope: Literal["global", "matrix"]
    masks: Masks
    warmup: float
    cooldown: float
    examples: int

    @property
    def needs_whole_weights(self) -> None:
        """Scores are of entries, and one count ties them."""

    def _criterion(self) -> Elementwise:
        """The criterion whose scores decide."""
        raise NotImplementedError

    def _check(self, name: str) -> None:
        """Check the options that all methods of this kind share."""
        check_sparsity(self.sparsity)
        self._phases = Phases(self.warmup, self.cooldown)
        if self.every < 1:
            raise ValueError(f"{name}: every {self.every}; events are at least 1 step apart.")
        if self.window is not None and not 1 <= self.window <= self.every:
            raise ValueError(f"{name}: window {self.window}; give 1 to every ({self.every}) steps, or None for all.")
        if self.scope not in ("global", "matrix"):
            raise ValueError(f"{name}: scope {self.scope!r}; choose 'global' or 'matrix'.")
        if self.masks not in get_args(Masks):
            raise ValueError(f"{name}: masks {self.masks!r}; choose 'persistent', 'soft' or 'nested'.")
        if self.examples < 1:
            raise ValueError(f"{name}: examples {self.examples}; a gradient is the mean over at least one row.")
        self._smoothing = Smoothing(self.window or self.every, self.beta, self.uncertainty)

    def attach(self, weights: Sequence[Weight], total_steps: int) -> None:
        """Take the weights, lay out the schedule, and make room for the scores."""
        self._weights, self._support = weights, Support(weights)
        self._begin, self._end = self._phases.steps(total_steps)
        self._schedule = CubicSparsity(self.sparsity, self._begin, self._end)
        self._scores = self._criterion()
        # Of costs, scores negated: what the program minimises is then there without a pass of its own. Contiguous, so
        # that flat parts of them are views, which take what is written.
        self._accumulators = [self._smoothing.start(weight.parameter.detach()) for weight in weights]
        self._costs = [
            made["average"] if self._smoothing.averages else torch.zeros_like(made["window"])
            for made in self._accumulators
        ]
        # Steps in the current window, events so far, sparsity of the last event's mask, and the sum over the pruning
        # phase's steps of the sparsity that their forward passes really had.
        self._counters = {"batches": 0.0, "events": 0.0, "masked": 0.0, "forward": 0.0}
        self._certificate: Certificate | None = None
        self._selected: list[Tensor] = []

    def wrap_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """The optimizer as it is, whose learning rate the scores read."""
        self._optimizer = optimizer
        return optimizer

    def before_step(self, step: int) -> None:
        """Add this batch's scores where they are those of the weights before the step; in the cool-down, mask."""
        if step > self._end:
            self._support.zero_gradients()
            return
        if self.masks != "soft" or self._is_event(step - 1):
            self._counters["forward"] += self._counters["masked"]
        if "step" not in self._scores.needs and self._counts(step):
            self._accumulate(step, float(self._optimizer.param_groups[0]["lr"]))

    def after_step(self, step: int, learning_rate: float) -> None:
        """Add this batch's scores where they are those of the stepped weights; at an event, select; keep the mask."""
        if step > self._end:
            self._support.zero_weights()
            return
        if "step" in self._scores.needs and self._counts(step):
            self._accumulate(step, learning_rate)
        if self._is_event(step):
            self._select(step)
        elif self._support:
            self._support.zero_weights()

    def _is_event(self, step: int) -> bool:
        return step == self._end or (self._begin <= step < self._end and (step - self._begin) % self.every == 0)

    def _counts(self, step: int) -> bool:
        """Whether the batch of a step belongs to the window of the next event."""
        if step <= self._begin:
            return self._begin - step < self._smoothing.window
        following = min(step + (self._begin - step) % self.every, self._end)
        return following - step < self._smoothing.window

    @torch.no_grad()
    def _accumulate(self, step: int, learning_rate: float) -> None:
        event, first = self._is_event(step), self._counters["batches"] == 0
        self._counters["batches"] += 1
        batches, beta = int(self._counters["batches"]), self._smoothing.beta
        for chunk, evidence, cost in self._chunks(learning_rate):
            if event and first and self._smoothing.uncertainty is None:
                # A window of one batch goes into the average without a window in between.
                self._scores.blend(cost, evidence, keep=beta, factor=beta - 1)
                continue
            self._scores.blend(chunk["window"], evidence, keep=0.0 if first else 1.0, factor=-1.0)
            if event:
                self._smoothing.close(chunk, batches, out=cost)
        if event:
            self._counters["batches"] = 0

    def _chunks(self, learning_rate: float) -> Iterator[tuple[Accumulators, Evidence, Tensor]]:
        """Parts of accumulators, evidence and costs, flattened; a weight without a gradient counts as gradient 0."""
        for weight, accumulators, cost in zip(self._weights, self._accumulators, self._costs, strict=True):
            parameter = weight.parameter.detach()
            gradient = torch.zeros_like(parameter) if weight.parameter.grad is None else weight.parameter.grad
            for values, slope, costs, *parts in chunks(parameter, gradient, cost, *accumulators.values()):
                yield (
                    dict(zip(accumulators, parts, strict=True)),
                    # Before the step `weight` is what it says; after it, `stepped` is, and `weight` is not read.
                    Evidence(values, slope, values, learning_rate, self.examples),
                    costs,
                )

    def _select(self, step: int) -> None:
        if self.masks == "nested":
            for cost, kept in zip(self._costs, self._support.masks().values(), strict=False):
                cost.masked_fill_(~kept, torch.inf)
        sizes = [weight.numel for weight in self._weights]
        counts = self._counts_at(self._schedule(step))
        group = group_of(self._weights)
        if group is None:
            solution = solve(Selection(self._costs, counts[0] if self.scope == "global" else counts))
            self._certificate, self._selected = solution.certificate, solution.masks
        else:
            self._certificate, self._selected = self._select_of_shards(counts, sizes, group)
        self._counters["events"] += 1
        self._counters["masked"] = 1 - sum(counts) / sum(sizes)
        self._support.fix(self._selected)
        if self.masks == "soft" and step < self._end:
            self._support.release()

    def _counts_at(self, sparsity: float) -> list[int]:
        """Entries to keep, of all weights together or of each."""
        sizes = [weight.numel for weight in self._weights]
        return [keep_count(size, sparsity) for size in ([sum(sizes)] if self.scope == "global" else sizes)]

    def _select_of_shards(
        self, counts: Sequence[int], sizes: Sequence[int], group: ShardGroup
    ) -> tuple[Certificate, list[Tensor]]:
        """The same program where every process has some rows of the costs."""
        if self.scope == "global":
            masks = smallest_of_shards(self._costs, counts[0], group)
        else:
            masks = [smallest_of_shards([c], k, group)[0] for c, k in zip(self._costs, counts, strict=True)]
        return Certificate.of_shards(self._costs, masks, sizes, self.scope == "matrix", group), masks

    def finish(self) -> dict[str, Tensor]:
        """The masks of the last event. Raises ValueError where it did not come: its scores are missing."""
        total = sum(weight.numel for weight in self._weights)
        if self._counters["masked"] != 1 - sum(self._counts_at(self.sparsity)) / total:
            raise ValueError(
                f"{type(self).__name__}: the last event, after step {self._end}, did not come; run all steps that "
                "attach was told of."
            )
        self._support.zero_weights()
        return self._support.masks()

    def _verified(self) -> Certificate | None:
        """The last event's certificate, its gap computed anew from costs and masks."""
        if self._certificate is not None and self._selected:
            gap = self._certificate.check(self._costs, self._selected, group_of(self._weights))
            self._certificate, self._selected = replace(self._certificate, gap=gap), []
        return self._certificate

    def state_dict(self) -> State:
        """Masks, accumulated scores, counters and the last certificate."""
        state = {**self._support.state_dict(), **self._counters}
        for weight, accumulators in zip(self._weights, self._accumulators, strict=True):
            state |= {f"{name}.{weight.name}": _negated(name, value) for name, value in accumulators.items()}
        if (certificate := self._verified()) is not None:
            state["certificate"] = json.dumps(certificate.to_dict())
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        self._support.load_state_dict(state)
        self._counters = {name: float(state[name]) for name in self._counters}
        for weight, accumulators in zip(self._weights, self._accumulators, strict=True):
            for name, value in accumulators.items():
                value.copy_(_negated(name, state[f"{name}.{weight.name}"]))
        if "certificate" in state:
            self._certificate = Certificate.from_dict(json.loads(state["certificate"]))

    def logs(self) -> dict[str, float]:
        """The sparsity from real zeros, and of the last event's selection the verified gap, nu, ties and margin."""
        line = {"sparsity": zero_fraction(self._weights)}
        if (certificate := self._verified()) is not None:
            line |= {name: getattr(certificate, name) for name in ("gap", "nu", "ties", "margin")}
        return line

    def report(self) -> dict[str, Any]:
        """Events, mean sparsity of the pruning phase's forward passes, and the last event's certificate, verified."""
        certificate = self._verified()
        return {
            "events": int(self._counters["events"]),
            "forward_sparsity": self._counters["forward"] / (self._end + 1),
            "certificate": None if certificate is None else certificate.to_dict(),
        }


def _negated(name: str, accumulator: Tensor) -> Tensor:
    """An accumulator of costs as one of scores, which checkpoints hold, or back; deviations are of both."""
    return accumulator if name == "deviation" else -accumulator
