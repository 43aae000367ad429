"""Reweighted group lasso: minimise f(W) + strength * sum_g factors_g ||w_g||, with the factors reweighted.

    for each step t of the pruning phase:
        every so often:  factors_g <- sqrt(size_g) / (rms(w_g) + eps_rw)
        A <- AdamW step on f from W                             (the penalty is never in the loss)
        strength <- given, or what makes s(t) of the groups zero
        w_g <- a_g max(1 - tau_t * strength * factors_g / ||a_g||, 0)
    support <- exactly the asked number of groups, those of largest rms(w_g)
    for each step of the cool-down:  AdamW step on f, restricted to the support

rms(w_g) = ||w_g|| / sqrt(size_g). With the factors fixed, a round is one majorise-minimise step for f plus
strength * sum_g size_g log(rms(w_g) + eps_rw). Groups are parts of rows or columns, blocks, or units tied across
matrices. `literal` runs what the authors ran: the penalty in the loss, no prox, and a hard prune.

Reference: Li, Kong, Zhang, Li, Li, Liu and Ding, "Efficient Transformer-based Large Scale Language Representations
using Hardware-friendly Block Structured Pruning" (2020); see docs/theory/blocks.md for what is printed and what is a
reading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from argprune.solvers.groups import Tied, Weight
from argprune.solvers.methods.base import Method, State, Support, zero_fraction
from argprune.solvers.methods.group_strength import critical_strengths, strengths_for
from argprune.solvers.methods.outputs import Outputs
from argprune.solvers.methods.structures import (
    Scope,
    Structure,
    StructureName,
    count_tolerance,
    select_groups,
    tie_masks,
)
from argprune.solvers.prox.groupwise import WeightedGroupLasso
from argprune.solvers.prox.optimizer import ProximalOptimizer
from argprune.solvers.prox.reweighting import LogReweighting, SquaredReweighting
from argprune.solvers.prox.smooth import SquaredL2
from argprune.solvers.registry import register
from argprune.solvers.schedules import CubicSparsity, Phases, check_sparsity
from argprune.solvers.shards import totals

GroupMetric = Literal["decoupled", "constant", "group-metric", "metric"]
PenaltyForm = Literal["norm", "squared"]


@register(
    "methods",
    "block-lasso",
    examples=[
        {"sparsity": 0.6, "structure": "block-rows", "width": 2},
        {"sparsity": 0.6, "structure": "block-rows", "width": 2, "scope": "global", "metric": "group-metric"},
        {"sparsity": 0.5, "structure": "columns", "metric": "metric", "reweight_every": None},
        {"sparsity": 0.5, "structure": "columns", "literal": True, "strength": 1e-3, "reweight_every": 5},
    ],
)
@dataclass
class BlockLasso(Method):
    """Reweighted group lasso over blocks, rows, columns, heads or neurons.

    sparsity: fraction of the groups that are zero at the end, in [0, 1); exact.
    structure: what is kept or pruned together: "elements", "rows", "columns", "block-rows" (`width` inputs wide, or in
    `strips` strips), "block-columns" (`height` outputs high, or in `strips` strips), "blocks" (`height` x `width`),
    "heads", "neurons" or "heads-and-neurons"; sizes are 16 unless given.
    scope: "matrix" (a count and a strength for each matrix or tie) or "global" (one for all; the count is of entries,
    met as nearly as whole groups allow).
    penalty: "norm", or "squared" (sum_g factors_g ||w_g||^2, factors 1 / (rms^2 + eps^2)), which shrinks and never
    reaches zero, so that the hard selection at the end does all the pruning; it needs a `strength`.
    metric: the prox step: "decoupled" (learning rate), "constant" (`prox_step`), "metric" (learning rate / r_i with r
    the roots of Adam's second moments: exact in its metric; a root is found for each group, many times as slow) or
    "group-metric" (learning rate / the root mean square of r over the group).
    strength: penalty strength; None: set at every step so that the prox itself reaches the schedule's sparsity.
    eps_rw: the reweighting's epsilon, > 0, in units of the root mean square of the groups' norms, or
    (`relative_eps` False) of the norms. rms: norms of groups over the root of their size.
    normalise: scale the factors of a matrix so that reweighting does not change the strength's meaning.
    reweight_every: steps between reweightings; None: factors of the weights as they are at the first prox, fixed.
    literal: the penalty is added to the loss and goes through Adam; no prox, weights are set to zero at the end of the
    pruning phase only. It needs a `strength`.
    warmup, cooldown: fractions of the run before the first prox and with the support fixed.
    """

    sparsity: float
    structure: StructureName = "block-columns"
    width: int | None = None
    height: int | None = None
    strips: int | None = None
    scope: Scope = "matrix"
    penalty: PenaltyForm = "norm"
    metric: GroupMetric = "group-metric"
    strength: float | None = None
    prox_step: float | None = None
    eps_rw: float = 0.1
    relative_eps: bool = True
    rms: bool = True
    normalise: bool = True
    reweight_every: int | None = 8
    literal: bool = False
    warmup: float = 0.06
    cooldown: float = 0.4

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        self._phases = Phases(self.warmup, self.cooldown)
        self._structure = Structure(self.structure, self.width, self.height, self.strips)
        self._given: Sequence[Tied] | None = None
        self._weights: Sequence[Weight] = ()
        LogReweighting(self.eps_rw)
        for name, value, choices in (
            ("scope", self.scope, get_args(Scope)),
            ("penalty", self.penalty, get_args(PenaltyForm)),
            ("metric", self.metric, get_args(GroupMetric)),
        ):
            if value not in choices:
                raise ValueError(f"block-lasso: {name} {value!r}; choose one of {', '.join(choices)}.")
        if self.strength is not None and not 0 <= self.strength < float("inf"):
            raise ValueError(f"block-lasso: strength {self.strength}; it must be finite and >= 0, or None.")
        if self.strength is None and (self.literal or self.penalty == "squared"):
            what = "literal" if self.literal else "penalty 'squared'"
            raise ValueError(f"block-lasso: {what} makes no zeros of its own to steer by; give a strength.")
        if (self.metric == "constant") != (self.prox_step is not None) or (
            self.prox_step is not None and not self.prox_step > 0
        ):
            raise ValueError(
                f"block-lasso: prox_step {self.prox_step} with metric {self.metric!r}; 'constant' needs one > 0, "
                f"the others take none."
            )
        if self.reweight_every is not None and self.reweight_every < 1:
            raise ValueError(f"block-lasso: reweight_every {self.reweight_every}; give at least 1 step, or None.")

    @property
    def needs_whole_weights(self) -> str | None:
        """Groups may go beyond a row; what all processes know of every group must be little beside the weights."""
        if self.literal:
            return "literal puts a penalty of them into the loss"
        if self.structure == "elements":
            return "structure 'elements' has as many groups as entries; method 'rpp' does the same without groups"
        return self._structure.beyond_rows(self._weights)

    @property
    def wants_ties(self) -> tuple[Literal["heads", "neurons"], ...]:
        """The units that the structure names."""
        return self._structure.kinds

    def tie(self, ties: Sequence[Tied]) -> None:
        """Take the units."""
        self._given = ties

    def attach(self, weights: Sequence[Weight], total_steps: int) -> None:
        """Take the weights, lay out the schedule, and measure the groups as they are now."""
        self._weights, self._support = weights, Support(weights)
        self._begin, self._end = self._phases.steps(total_steps)
        self._schedule = CubicSparsity(self.sparsity, self._begin, self._end)
        self._ties = self._structure.ties(weights, self._given)
        self._sizes = [tie.sizes() for tie in self._ties]
        scales = [float(self._norms(index).square().mean().sqrt()) for index in range(len(self._ties))]
        # A tie of zeros has no scale of its own; any positive epsilon then gives the same factors.
        self._scales = torch.tensor([scale or 1.0 for scale in scales], dtype=torch.float64)
        self._factors: list[Tensor] = []
        self._was_zero: list[Tensor] = []
        self._strengths = [0.0] * len(self._ties)
        # The coming step, the step of the last reweighting, and what the report and the log say.
        self._next, self._reweighted = 0, -1
        self._rounds, self._change = 0, 0.0
        self._prox_sparsity, self._top_up = 0.0, 0

    def wrap_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """The optimizer as it is; the prox follows it in `after_step`, with steps by its learning rate or moments."""
        metric = "metric" if self.metric == "group-metric" else self.metric
        self._steps = ProximalOptimizer(
            optimizer, self._weights, WeightedGroupLasso(1.0), metric=metric, step=self.prox_step, strength=0.0
        )
        self._position = {id(weight.parameter): index for index, weight in enumerate(self._weights)}
        # The model may have moved to another device since it was attached.
        self._sizes = [tie.sizes() for tie in self._ties]
        return optimizer

    def loss_terms(self, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """The penalty, where it is meant literally: one term for the loss, with its gradient."""
        if not self.literal or not self._begin <= self._next <= self._end:
            return {}
        self._reweight_when_due(self._next)
        return {"penalty": self._penalty()}

    def _penalty(self) -> Tensor:
        """strength * sum_g factors_g ||w_g||, or of the squares; differentiable, with gradient 0 at zero groups."""
        total = self._weights[0].parameter.new_zeros(())
        for tie, factors, strength in zip(self._ties, self._factors, self._strengths, strict=True):
            norms = torch.linalg.vector_norm(tie.split([weight.parameter for weight in tie.weights]), dim=1)
            powers = norms.square() if self.penalty == "squared" else norms
            total = total + strength * (tie.own(factors).to(powers.dtype) * powers).sum()
        return total

    def before_step(self, step: int) -> None:
        """Reweight when due; in the cool-down, mask the gradients."""
        if self._support:
            self._support.zero_gradients()
        elif self._begin <= step <= self._end:
            self._reweight_when_due(step)

    def after_step(self, step: int, learning_rate: float) -> None:
        """The prox; at the end of the pruning phase, select the groups; afterwards, keep them."""
        self._next = step + 1
        if self._support:
            self._support.zero_weights()
            return
        if self._begin <= step <= self._end and not self.literal:
            self._prox(step)
        if step == self._end:
            self._fix_support()

    @torch.no_grad()
    def _reweight_when_due(self, step: int) -> None:
        every = self.reweight_every
        due = not self._factors or (every is not None and (step - self._begin) % every == 0)
        # The loss of one step may be asked for several times, and its hook comes after.
        if not due or self._reweighted == step:
            return
        old, self._factors = self._factors, [self._new_factors(index) for index in range(len(self._ties))]
        self._was_zero = [tie.norms() == 0 for tie in self._ties]
        self._reweighted = step
        if self.strength is not None:
            self._strengths = [self.strength] * len(self._ties)
        if old:
            moved = sum(float((new - before).square().sum()) for new, before in zip(self._factors, old, strict=True))
            self._change = (moved / sum(float(before.square().sum()) for before in old)) ** 0.5
            self._rounds += 1

    def _new_factors(self, index: int) -> Tensor:
        """The slopes of the concave penalty at the groups of a tie, float64 (count,)."""
        eps = self.eps_rw * float(self._scales[index]) if self.relative_eps else self.eps_rw
        rule = SquaredReweighting(eps) if self.penalty == "squared" else LogReweighting(eps, normalise=False)
        factors = rule.factors(self._norms(index))
        if self.normalise:
            factors = factors * (1 / factors).mean()
        # The slope in ||w_g|| of size_g log(rms + eps); of the square, the sizes cancel.
        return factors * self._sizes[index].double().sqrt() if self.rms and self.penalty == "norm" else factors

    def _norms(self, index: int) -> Tensor:
        return self._ties[index].norms(rms=self.rms)

    @torch.no_grad()
    def _prox(self, step: int) -> None:
        stacks = [tie.stack() for tie in self._ties]
        taus = [self._tau(index) for index in range(len(self._ties))]
        if self.strength is None:
            critical = [
                tie.whole(critical_strengths(stack, tau, tie.own(factors)))
                for tie, stack, tau, factors in zip(self._ties, stacks, taus, self._factors, strict=True)
            ]
            self._strengths = strengths_for(critical, self._sizes, self._schedule(step), self.scope)
        problems = zip(self._ties, stacks, taus, self._factors, self._strengths, strict=True)
        for tie, stack, tau, factors, strength in problems:
            factors = tie.own(factors)
            if strength == 0 or not stack.numel():
                continue
            if self.penalty == "squared":
                rates = torch.as_tensor(2 * strength * factors[:, None] * tau, dtype=stack.dtype)
                tie.assign(SquaredL2(1.0).prox(stack, rates.expand(stack.shape)))
            else:
                tie.assign(WeightedGroupLasso(1.0, factors).prox(stack, tau * strength))

    def _tau(self, index: int) -> float | Tensor:
        """The prox step of a tie at strength 1: a number, (count, 1), or (count, size)."""
        tie = self._ties[index]
        steps = [self._steps.prox_step(self._position[id(weight.parameter)]) for weight in tie.weights]
        if isinstance(steps[0], float):
            return steps[0]
        stack = tie.split([step for step in steps if isinstance(step, Tensor)])
        if self.metric == "metric":
            return stack
        # Where the step is lr / r, r the root of the second moment, the group's is lr / root mean square of r.
        inverse = torch.where(stack > 0, 1 / stack, 0).square().sum(1, keepdim=True, dtype=torch.float64)
        tau = (tie.own(self._sizes[index])[:, None] / inverse).sqrt()
        return torch.where(inverse > 0, tau, 0)

    @torch.no_grad()
    def _fix_support(self) -> None:
        zero = [tie.norms() == 0 for tie in self._ties]
        self._prox_sparsity = sum(int(z.sum()) for z in zero) / sum(len(z) for z in zero)
        kept = select_groups(self._ties, self.sparsity, self.scope)
        self._top_up = sum(int((~k & ~z).sum()) for k, z in zip(kept, zero, strict=True))
        self._support.fix(tie_masks(self._weights, self._ties, kept))
        self._factors, self._was_zero = [], []

    def finish(self) -> dict[str, Tensor]:
        """The masks of the support."""
        if not self._support:
            self._fix_support()
        self._support.zero_weights()
        return self._support.masks()

    @property
    def tolerance(self) -> float:
        """What whole groups take."""
        return count_tolerance(self._ties, self.sparsity, self.scope)

    def state_dict(self) -> State:
        """Masks, factors, strengths, and the counters of log and report."""
        state: State = {
            **self._support.state_dict(),
            "scales": self._scales,
            "strengths": torch.tensor(self._strengths, dtype=torch.float64),
            "next": self._next,
            "reweighted": self._reweighted,
            "rounds": self._rounds,
            "change": self._change,
            "prox_sparsity": self._prox_sparsity,
            "top_up": self._top_up,
        }
        for tie, factors, zero in zip(self._ties, self._factors, self._was_zero, strict=False):
            state |= {f"factors.{tie.name}": factors, f"zero.{tie.name}": zero}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        self._support.load_state_dict(state)
        self._scales, self._strengths = state["scales"], state["strengths"].tolist()
        self._next, self._reweighted = int(state["next"]), int(state["reweighted"])
        self._rounds, self._change = int(state["rounds"]), float(state["change"])
        self._prox_sparsity, self._top_up = float(state["prox_sparsity"]), int(state["top_up"])
        if f"factors.{self._ties[0].name}" in state:
            devices = [tie.weights[0].parameter.device for tie in self._ties]
            names = [tie.name for tie in self._ties]
            self._factors = [state[f"factors.{name}"].to(d) for name, d in zip(names, devices, strict=True)]
            self._was_zero = [state[f"zero.{name}"].to(d) for name, d in zip(names, devices, strict=True)]

    @torch.no_grad()
    def logs(self) -> dict[str, float]:
        """Sparsity from real zeros; while penalised, zero groups, penalty, strengths, factors and how they change.

        factors_change: how far the last reweighting moved the factors, relative to their norm; rounds: how many there
        were after the first factors. regrown: groups that were zero at the last one and are not now.
        """
        line = {"sparsity": zero_fraction(self._weights)}
        if not self._factors:
            return line
        zero = [tie.norms() == 0 for tie in self._ties]
        return {
            **line,
            "group_sparsity": sum(int(z.sum()) for z in zero) / sum(len(z) for z in zero),
            "penalty": totals(self._weights, [float(self._penalty())])[0],
            "strength_min": min(self._strengths),
            "strength_max": max(self._strengths),
            "factors_min": min(float(factors.min()) for factors in self._factors),
            "factors_max": max(float(factors.max()) for factors in self._factors),
            "factors_change": self._change,
            "rounds": self._rounds,
            "regrown": sum(int((was & ~now).sum()) for was, now in zip(self._was_zero, zero, strict=True)),
        }

    def report(self) -> dict[str, Any]:
        """Groups and their sizes, what the prox zeroed by itself, how many groups were added, and what was attained."""
        sizes = torch.cat(self._sizes)
        [kept] = totals(self._weights, [sum(int(mask.sum()) for mask in self._support.masks().values())])
        return {
            "groups": len(sizes),
            "group_size": [int(sizes.min()), int(sizes.max())],
            "prox_sparsity": self._prox_sparsity,
            "top_up": self._top_up,
            "attained": 1 - kept / int(sizes.sum()),
            "rounds": self._rounds,
        }
