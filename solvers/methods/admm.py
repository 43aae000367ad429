"""Pruning by ADMM: minimise f(W) subject to W_j in S_j for every matrix j, split as W_j = Z_j.

    at the first step of the pruning phase:  Z_j <- projection of W_j on S_j,  U_j <- 0
    for each step t of the pruning phase:
        W <- optimizer's step on f + sum_j rho_j / 2 ||W_j - Z_j + U_j||^2   (Z_j on its support follows W_j)
        every z_every steps, and at the last:
            U_j   <- U_j + relaxation * (W_j - Z_j)
            Z_j   <- projection of W_j + U_j on S_j              (S_j: k(t) nonzeros, k(t) groups, N:M, any set)
            rho_j <- rule(rho_j, residuals),  U_j <- U_j * old rho_j / new rho_j
    W <- projection of W on S;  support <- nonzeros of W         (exact counts)
    for each step of the cool-down:  optimizer's step on f, restricted to the support

In the order that is usual (`dual_first` False) Z is the projection of H_j + U_j, H_j = relaxation * W_j +
(1 - relaxation) * Z_j, and then U_j <- U_j + H_j - Z_j with the new Z_j.

Reference: Zhang et al. (2018), "A systematic DNN weight pruning framework using alternating direction method of
multipliers", section 3; structured: Zhang et al. (2018), "StructADMM"; see docs/theory/admm.md for what differs here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from argprune.solvers.admm.splitting import (
    BalancedRho,
    ConstantRho,
    GrowingRho,
    Residuals,
    RhoRule,
    Split,
    Splitting,
    SquaredDistance,
)
from argprune.solvers.groups import Part, Tied, Weight
from argprune.solvers.ilp.closed_form import keep_largest
from argprune.solvers.methods.base import Method, State, Support, keep_count, zero_fraction
from argprune.solvers.methods.matrix_sets import MatrixSets
from argprune.solvers.methods.structures import Structure, StructureName, count_tolerance
from argprune.solvers.prox.base import check_parameter
from argprune.solvers.prox.optimizer import ProximalOptimizer
from argprune.solvers.prox.sets import L0Ball
from argprune.solvers.prox.structured_sets import KGroups
from argprune.solvers.registry import register
from argprune.solvers.schedules import CubicSparsity, Phases, check_sparsity

Pull = Literal["gradient", "decoupled", "metric"]
Rule = Literal["constant", "growth", "balance", "relative-balance"]

# A given set of supports may miss the asked sparsity by this fraction of all weights before it is refused.
_AGREEMENT = 0.005


@register(
    "methods",
    "admm",
    examples=[
        {"sparsity": 0.6},
        {
            "sparsity": 0.6,
            "pull": "gradient",
            "gradual": False,
            "free_support": False,
            "dual_first": False,
            "relaxation": 1.6,
            "rho_rule": "balance",
            "z_every": 3,
        },
        {"sparsity": 0.5, "pull": "metric", "constraint": {"name": "n_m", "n": 1, "m": 2}, "rho_rule": "constant"},
        {"sparsity": 0.6, "constraint": {"name": "box", "low": -0.5, "high": 0.5}, "rho_rule": "relative-balance"},
        {"sparsity": 0.5, "structure": "columns"},
    ],
)
@dataclass
class ADMM(Method):
    """ADMM with the optimizer's own steps for W, any constraint set, then exact projection and masked retraining.

    sparsity: fraction of zeros over the prunable weights at the end, in [0, 1); exact.
    constraint: the set, a name (`argprune list constraints`, or module:Class) or a mapping of `name` and constructor
    options, for every matrix; None: at most so many nonzeros, or groups with nonzeros. Where a set counts by `keep` and
    none is given, the sparsity decides. A given set of supports must allow the asked sparsity; with other sets (box,
    rank, ...), the entries that their projection leaves above the sparsity are removed by magnitude.
    structure: "elements", or the groups of a matrix that are kept or pruned together: "rows", "columns", "block-rows"
    (`width` inputs, or `strips`), "block-columns" (`height` outputs, or `strips`), "blocks" (`height` x `width`); for
    constraint None, and for sets of groups.
    gradual: where the sparsity decides the count, that of Z rises on the cubic schedule instead of being the final one
    from the start.
    free_support: between Z-steps, entries that Z keeps follow W instead of anchoring it (sets of supports only).
    dual_first: the U-step before the Z-step, so that entries that Z newly drops are pulled to zero, not past it.
    pull: how the augmented term enters the W-step. "gradient": its exact gradient is added to the loss's, and goes
    through the optimizer's preconditioner; "decoupled": after the step W <- (W + lr rho (Z - U)) / (1 + lr rho), as
    AdamW decays weights; "metric": the same with Adam's own step size of every entry.
    rho: > 0, relative to each matrix (`relative_rho`): at rho = 1, an entry that is off by the matrix's root mean
    square is pulled as hard as the loss's gradient of root mean square size pushes ("decoupled": as hard as one
    normalised step of Adam). relative_rho = False: in units of loss per squared weight.
    rho_rule: "constant"; "growth", geometrically, by `rho_growth` over the phase; "balance" of the residuals (factor
    `balance_factor` where they differ by more than `balance_threshold`); "relative-balance", of relative residuals.
    z_every: steps between Z-steps; far below 4 / (learning rate * rho_j) the dual variable overshoots (decoupled pull).
    relaxation: over-relaxation, in [1, 2).
    warmup, cooldown: fractions of the run before the phase, and after it with the support fixed.
    """

    sparsity: float
    constraint: str | dict[str, Any] | None = None
    structure: StructureName = "elements"
    width: int | None = None
    height: int | None = None
    strips: int | None = None
    gradual: bool = True
    free_support: bool = True
    dual_first: bool = True
    pull: Pull = "decoupled"
    rho: float = 16.0
    relative_rho: bool = True
    rho_rule: Rule = "growth"
    rho_growth: float = 10.0
    balance_threshold: float = 10.0
    balance_factor: float = 2.0
    z_every: int = 8
    relaxation: float = 1.0
    warmup: float = 0.06
    cooldown: float = 0.4

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        self._phases = Phases(self.warmup, self.cooldown)
        if self.pull not in get_args(Pull):
            raise ValueError(f"admm: pull {self.pull!r}; choose one of {', '.join(get_args(Pull))}.")
        if self.rho_rule not in get_args(Rule):
            raise ValueError(f"admm: rho_rule {self.rho_rule!r}; choose one of {', '.join(get_args(Rule))}.")
        check_parameter("admm", "rho", self.rho, strict=True)
        check_parameter("admm", "rho_growth", self.rho_growth, strict=True)
        if self.z_every < 1:
            raise ValueError(f"admm: z_every {self.z_every}; Z-steps are at least 1 step apart.")
        structure = Structure(self.structure, self.width, self.height, self.strips)
        self._sets = MatrixSets(self.constraint, structure, "admm")
        # Both check their options; how fast rho grows is known with the number of Z-steps.
        self._balance = BalancedRho(self.balance_threshold, self.balance_factor, self.rho_rule == "relative-balance")
        self._splitting = Splitting(self.relaxation, dual_first=self.dual_first)

    def attach(self, weights: Sequence[Weight], total_steps: int) -> None:
        """Take the weights, lay out the schedule, and check that the set allows the sparsity."""
        self._weights, self._support = weights, Support(weights)
        self._begin, self._end = self._phases.steps(total_steps)
        self._total = total_steps
        self._schedule = CubicSparsity(self.sparsity, self._begin, self._end)
        self._splitting = Splitting(self.relaxation, self._rule(), self.dual_first)
        self._splits: list[Split] = []
        self._terms: list[SquaredDistance] = []
        self._last: Residuals | None = None
        self._counters = {"changed": 0.0, "removed": 0.0, "top_up": 0.0}
        self._missed: float | None = None
        if self._sets.supports and not (self._sets.counted and isinstance(self._sets.final, L0Ball)):
            self._count()

    def _count(self) -> None:
        """How many entries the set's supports differ from the asked number; ValueError where that is no rounding."""
        sizes = [weight.parameter.numel() for weight in self._weights]
        kept = [int(mask.count_nonzero()) for mask in self._final_masks()]
        attained = 1 - sum(kept) / sum(sizes)
        if not self._sets.counted and abs(attained - self.sparsity) > _AGREEMENT:
            raise ValueError(
                f"admm: sparsity {self.sparsity} with constraint {self.constraint!r}, which leaves {attained:.3f} "
                f"of these weights zero; give sparsity {attained:.3f}, or options that agree."
            )
        self._missed = sum(abs(k - (1 - self.sparsity) * size) for k, size in zip(kept, sizes, strict=True))

    @property
    def tolerance(self) -> float | None:
        """Whole groups, and given sets of supports, may miss the asked count by more than rounding does."""
        if isinstance(self._sets.final, KGroups) and self._sets.counted:
            ties = [Tied(weight.name, [Part(weight, self._sets.final.groups)]) for weight in self._weights]
            return count_tolerance(ties, self.sparsity, "matrix")
        return self._missed

    def _rule(self) -> RhoRule:
        if self.rho_rule == "constant":
            return ConstantRho()
        if self.rho_rule == "growth":
            events = sum(self._is_event(step) for step in range(self._begin, self._end + 1))
            return GrowingRho(self.rho_growth ** (1 / max(events - 1, 1)))
        return self._balance

    def wrap_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """The optimizer, with the proximal step towards Z - U after its own where the pull is not in the gradient."""
        self._proximal: ProximalOptimizer | None = None
        if self.pull != "gradient":
            self._proximal = ProximalOptimizer(
                optimizer,
                # Without their groups: the pull is entry by entry, in the parameter's layout.
                [Weight(weight.name, weight.parameter) for weight in self._weights],
                [SquaredDistance(weight.parameter.detach()) for weight in self._weights],
                metric=self.pull,
                strength=0.0,
            )
            return self._proximal
        return optimizer

    def _is_event(self, step: int) -> bool:
        """Whether a Z-step follows optimizer step `step`."""
        if not self._begin <= step <= self._end:
            return False
        return step == self._end or (step - self._begin + 1) % self.z_every == 0

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """At the start of the phase, split; add the augmented term's gradient; in the cool-down, mask the gradients."""
        if self._support:
            self._support.zero_gradients()
            return
        if not self._begin <= step <= self._end:
            return
        if not self._splits:
            self._split(step)
        if self._proximal is None:
            for weight, split, term in zip(self._weights, self._splits, self._terms, strict=True):
                if weight.parameter.grad is not None:
                    weight.parameter.grad.add_(term.gradient(weight.parameter.detach()), alpha=split.rho)

    def _split(self, step: int) -> None:
        sparsity = self._target(step)
        self._splits = [
            self._splitting.init(w.parameter, self._rho_of(w), self._sets.projection(w, sparsity))
            for w in self._weights
        ]
        self._aim()

    @property
    def _follows(self) -> bool:
        """Whether Z follows W within its support: the minimiser over Z of the augmented term there, where U is 0."""
        return self.free_support and self._sets.supports

    def _target(self, step: int) -> float:
        """The sparsity of Z after a Z-step at `step`."""
        return self._schedule(step) if self.gradual else self.sparsity

    def _rho_of(self, weight: Weight) -> float:
        """The first rho of a matrix, from its weights and, but for the decoupled pull, its gradient now."""
        if not self.relative_rho:
            return self.rho
        size = _root_mean_square(weight.parameter.detach())
        if self.pull == "decoupled":
            return self.rho / size if size > 0 else self.rho
        push = 0.0 if weight.parameter.grad is None else _root_mean_square(weight.parameter.grad)
        return self.rho * push / size if size > 0 and push > 0 else self.rho

    def _aim(self) -> None:
        """Point the pull at the present Z - U."""
        self._terms = [
            SquaredDistance(split.center, (split.z == 0).to(split.z.dtype) if self._follows else None)
            for split in self._splits
        ]
        if self._proximal is not None:
            self._proximal.regularizers = self._terms
            self._proximal.strength = [split.rho for split in self._splits]

    def after_step(self, step: int, learning_rate: float) -> None:
        """At an event, step Z, U and rho; at the end of the phase, project W and fix its support; then keep it."""
        if self._support:
            if (step - self._end) % self.z_every == 0 or step == self._total - 1:
                self._project_weights()
            self._support.zero_weights()
        elif self._is_event(step):
            self._step_z(step)
            if step == self._end:
                self._fix_support()

    def _step_z(self, step: int) -> None:
        sparsity = self._target(step)
        residuals, changed = [], 0
        for index, (weight, split) in enumerate(zip(self._weights, self._splits, strict=True)):
            project = self._sets.projection(weight, sparsity)
            if self._follows:
                # Where U is 0, this is W; it is not for entries that came in by the last Z-step, if U comes first.
                follower = weight.parameter.detach() + split.u
                split = replace(split, z=torch.where(split.z == 0, split.z, follower))
            self._splits[index], one = self._splitting.step(weight.parameter, split, project)
            residuals.append(one)
            changed += int(((self._splits[index].z != 0) != (split.z != 0)).sum())
        self._last = Residuals.total(residuals)
        self._counters["changed"] = changed / sum(weight.parameter.numel() for weight in self._weights)
        self._aim()

    @torch.no_grad()
    def _project_weights(self) -> None:
        """W <- projection of W, where the set is more than a set of supports, which masks keep."""
        if self._sets.supports:
            return
        for weight in self._weights:
            weight.parameter.copy_(self._sets.projection(weight, self.sparsity)(weight.parameter))

    def _final_masks(self) -> list[Tensor]:
        """The supports to keep: those that the set's projection picks, or the largest of what it leaves."""
        masks = []
        for weight in self._weights:
            if self._sets.supports:
                members = self._sets.of(weight, self.sparsity)
                masks.append(weight.oriented(members.mask(weight.matrix)).contiguous())
            else:
                projected = self._sets.projection(weight, self.sparsity)(weight.parameter.detach())
                masks.append(keep_largest([projected.abs()], keep_count(projected.numel(), self.sparsity))[0])
        return masks

    @torch.no_grad()
    def _fix_support(self) -> None:
        masks = self._final_masks()
        before = [weight.parameter.detach().clone() for weight in self._weights]
        self._project_weights()
        if not self._sets.supports:
            self._counters["top_up"] = float(
                sum(int(w.parameter[~mask].count_nonzero()) for w, mask in zip(self._weights, masks, strict=True))
            )
        self._support.fix(masks)
        removed = sum(float((old - w.parameter).square().sum()) for old, w in zip(before, self._weights, strict=True))
        total = sum(float(old.square().sum()) for old in before)
        self._counters["removed"] = (removed / total) ** 0.5 if total > 0 else 0.0
        self._splits, self._terms = [], []
        if self._proximal is not None:
            self._proximal.strength = 0.0

    def finish(self) -> dict[str, Tensor]:
        """The masks of the support."""
        if not self._support:
            self._fix_support()
        return self._support.masks()

    def state_dict(self) -> State:
        """Masks, or Z, U and rho of every matrix; the last residuals and what the report counts."""
        state: State = {**self._support.state_dict(), **self._counters}
        for weight, split in zip(self._weights, self._splits, strict=False):
            state |= {f"z.{weight.name}": split.z, f"u.{weight.name}": split.u}
        if self._splits:
            state["rho"] = torch.tensor([split.rho for split in self._splits], dtype=torch.float64)
        if self._last is not None:
            state |= {f"residual.{name}": value for name, value in asdict(self._last).items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        self._support.load_state_dict(state)
        self._counters = {name: float(state[name]) for name in self._counters}
        prefix = "residual."
        last = {name.removeprefix(prefix): float(v) for name, v in state.items() if name.startswith(prefix)}
        self._last = Residuals(**last) if last else None
        if "rho" in state:
            devices = [weight.parameter.device for weight in self._weights]
            self._splits = [
                Split(state[f"z.{weight.name}"].to(device), state[f"u.{weight.name}"].to(device), rho)
                for weight, device, rho in zip(self._weights, devices, state["rho"].tolist(), strict=True)
            ]
            self._aim()

    def logs(self) -> dict[str, float]:
        """Sparsity from real zeros; in the pruning phase rho, and after the first Z-step residuals and changes."""
        line = {"sparsity": zero_fraction(self._weights)}
        if self._splits:
            rhos = [split.rho for split in self._splits]
            line |= {"rho_min": min(rhos), "rho_max": max(rhos)}
            if self._last is not None:
                line |= self._residual_line(self._last) | {"support_changed": self._counters["changed"]}
        return line

    @staticmethod
    def _residual_line(last: Residuals) -> dict[str, float]:
        return {
            "primal_residual": last.primal,
            "dual_residual": last.dual,
            "relative_primal_residual": last.relative_primal,
            "relative_dual_residual": last.relative_dual,
        }

    def report(self) -> dict[str, Any]:
        """Residuals of the last Z-step; norm of what the projection removed, relative to W's; removed by magnitude."""
        residuals = {} if self._last is None else self._residual_line(self._last)
        return {**residuals, "removed": self._counters["removed"], "top_up": int(self._counters["top_up"])}


def _root_mean_square(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())
