"""CoFi: gates on whole layers and on the heads and neurons in them, trained under a constraint on the size.

    a unit's output is scaled by  z_unit z_layer,  both hard-concrete
    minimise over W, log_alpha   E_z[f]   subject to   sum_u size_u P(z_unit > 0) P(z_layer > 0) = (1 - sparsity) * size

    for each step t of the pruning phase:
        z <- a sample, or the median;  g_u <- df/d(z_unit z_layer)
        log_alpha <- Adam step with gradient g_u * (other gate) * dz/dlog_alpha + pressure * dE[size]/dlog_alpha
        W <- optimizer's step
        multipliers <- dual ascent;  in the last steps: log_alpha <- log_alpha - nu, so that the constraint holds
    support <- the units most probably there, as many as the size takes;   scale them by E[z]
    for each step of the cool-down:  optimizer's step on f, restricted to the support

A unit's scale is that of its columns in the matrix that reads it, where the gates are multiplied in: the network itself
needs no change.

Reference: Xia, Zhong and Chen, "Structured Pruning Learns Compact and Accurate Models" (2022); see docs/theory/cofi.md
for what differs here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from argprune.solvers.groups import Tied, Weight
from argprune.solvers.ilp.closed_form import keep_largest
from argprune.solvers.lagrangian import ExpectedSize, Gated, prefixed
from argprune.solvers.methods.base import Method, State, Support, keep_count, zero_fraction
from argprune.solvers.methods.size_gates import SizeGates
from argprune.solvers.methods.structures import Structure, closest_count, count_tolerance, tie_masks
from argprune.solvers.registry import register


@register(
    "methods",
    "cofi",
    examples=[{"sparsity": 0.5, "structure": "columns"}, {"sparsity": 0.5, "structure": "columns", "noise": False}],
)
@dataclass
class CoFi(SizeGates, Method):
    """CoFi: gated heads, neurons and layers, to a size.

    sparsity: fraction of the entries that are zero at the end, in [0, 1); met as nearly as whole units allow.
    structure: "heads-and-neurons", "heads", "neurons", or "columns" of every matrix. layers: a gate for each layer (all
    units of one attention or feed-forward layer) too.
    The other options: see `SizeGates`.
    """

    # One budget for all, as the constraint is one.
    scope: ClassVar[str] = "global"
    structure: Literal["heads-and-neurons", "heads", "neurons", "columns"] = "heads-and-neurons"
    layers: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.structure not in ("heads-and-neurons", "heads", "neurons", "columns"):
            raise ValueError(
                f"cofi: structure {self.structure!r}; choose 'heads-and-neurons', 'heads', 'neurons' or 'columns'."
            )
        self._structure = Structure(self.structure)
        self._given: Sequence[Tied] | None = None

    @property
    def wants_ties(self) -> tuple[Literal["heads", "neurons"], ...]:
        """The units that are tied across matrices."""
        return self._structure.kinds

    def tie(self, ties: Sequence[Tied]) -> None:
        """Take the units."""
        self._given = ties

    def attach(self, weights: Sequence[Weight], total_steps: int) -> None:
        """Lay out the phases and the sets of gates: a gate for each layer, if asked for, and one for each unit."""
        self._weights, self._support = weights, Support(weights)
        self._ties = self._structure.ties(weights, self._given)
        sets = [Gated("layers", len(self._ties))] if self.layers else []
        for index, tie in enumerate(self._ties):
            costs = {"parameters": tie.sizes().double().cpu()}
            sets.append(Gated(tie.name, tie.count, costs, 0 if self.layers else None, index))
        self._lay_out(ExpectedSize(sets, self._gates), total_steps)
        # The matrices that read the units, as they are without gates, and the gates multiplied into them.
        self._dense: list[Tensor] = []
        self._sample: list[Tensor] = []

    @property
    def tolerance(self) -> float:
        """Half of the largest unit."""
        return count_tolerance(self._ties, self.sparsity, "global")

    def wrap_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Make the gates; the weights are where they will be trained now."""
        self._make_gates(optimizer, self._weights[0].parameter.device)
        return optimizer

    def _split(self, sample: Sequence[Tensor]) -> tuple[Tensor | None, list[Tensor]]:
        """The gates of the layers, if there are any, and those of each tie's units."""
        return (sample[0], list(sample[1:])) if self.layers else (None, list(sample))

    def _scales(self, sample: Sequence[Tensor]) -> list[Tensor]:
        """What each unit is scaled by."""
        of_layers, of_units = self._split(sample)
        return of_units if of_layers is None else [z * of_layers[i] for i, z in enumerate(of_units)]

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Let log_alpha learn and give the optimizer weights without gates; later, mask the gradients."""
        if self._support:
            self._support.zero_gradients()
            return
        if not self._sample:
            return
        of_layers, of_units = self._split(self._sample)
        unit_slopes, layer_slopes = [], []
        for index, (tie, dense, scale) in enumerate(
            zip(self._ties, self._dense, self._scales(self._sample), strict=True)
        ):
            weight, groups = tie.reader
            slope = torch.zeros_like(scale)
            if (gradient := weight.parameter.grad) is not None:
                slope = groups.split(weight.oriented(gradient * dense)).sum(1, dtype=scale.dtype)
                gradient.mul_(self._spread(tie, scale))
            weight.parameter.copy_(dense)
            if of_layers is None:
                unit_slopes.append(slope)
            else:
                unit_slopes.append(slope * of_layers[index])
                layer_slopes.append((slope * of_units[index]).sum())
        slopes = unit_slopes if of_layers is None else [torch.stack(layer_slopes), *unit_slopes]
        of_loss = [slope * self._gates.slope(z) for slope, z in zip(slopes, self._sample, strict=True)]
        self._training.learn(of_loss, self._learning_share())

    @torch.no_grad()
    def after_step(self, step: int, learning_rate: float) -> None:
        """In the pruning phase, dual ascent and new gates; at its end, fix the support; afterwards, keep it."""
        if self._support:
            self._support.zero_weights()
        elif step == self._end:
            self._close()
        elif step >= self._begin:
            self._expected = self._constrain(step)
            self._sample = self._training.gates()
            self._dense = [tie.reader.weight.parameter.detach().clone() for tie in self._ties]
            for tie, scale in zip(self._ties, self._scales(self._sample), strict=True):
                tie.reader.weight.parameter.mul_(self._spread(tie, scale))

    @staticmethod
    def _spread(tie: Tied, scale: Tensor) -> Tensor:
        """A number for each unit as a tensor stored like the matrix that reads the units."""
        weight, groups = tie.reader
        width = groups.split(weight.matrix).shape[1]
        spread = groups.join(scale[:, None].expand(-1, width), weight.matrix.shape)
        return weight.oriented(spread).to(weight.parameter.dtype)

    def _close(self) -> None:
        present = self._training.probabilities()[1 if self.layers else 0 :]
        sizes = torch.cat([tie.sizes() for tie in self._ties])
        order = torch.cat(present).sort(descending=True, stable=True).indices
        kept = keep_largest(present, closest_count(sizes[order], keep_count(int(sizes.sum()), self.sparsity)))
        for tie, scale in zip(self._ties, self._scales(self._training.means()), strict=True):
            tie.reader.weight.parameter.mul_(self._spread(tie, scale))
        self._support.fix(tie_masks(self._weights, self._ties, kept))
        self._dense, self._sample = [], []

    @torch.no_grad()
    def finish(self) -> dict[str, Tensor]:
        """The masks of the support."""
        if not self._support:
            for tie, dense in zip(self._ties, self._dense, strict=False):
                tie.reader.weight.parameter.copy_(dense)
            self._close()
        return self._support.masks()

    def state_dict(self) -> State:
        """The support; before, what the gates have learned, their last sample and the matrices without it."""
        state: State = {**self._support.state_dict(), "expected_sparsity": self._expected}
        if self._support:
            return state
        state |= {f"dense.{tie.name}": dense for tie, dense in zip(self._ties, self._dense, strict=False)}
        state |= {f"sample.{index}": sample for index, sample in enumerate(self._sample)}
        return state | {f"gates.{name}": value for name, value in self._training.state_dict().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        self._support.load_state_dict(state)
        self._expected = float(state["expected_sparsity"])
        if self._support:
            return
        self._training.load_state_dict(prefixed(state, "gates."))
        device = self._weights[0].parameter.device
        self._sample = [state[f"sample.{i}"].to(device) for i in range(len(prefixed(state, "sample.")))]
        self._dense = [state[f"dense.{tie.name}"].to(device) for tie in self._ties if f"dense.{tie.name}" in state]

    def logs(self) -> dict[str, float]:
        """The sparsity from real zeros; while there are gates, the one expected, and the multipliers."""
        logs = {"sparsity": zero_fraction(self._weights)}
        return {**logs, **self._gate_logs()} if self._sample else logs

    def report(self) -> dict[str, Any]:
        """The sparsity expected of the gates at the end, and pairs of layer and units left."""
        left: list[list[str | int]] = []
        masks = self._support.masks()
        for tie in self._ties:
            weight, groups = tie.reader
            if weight.name in masks:
                left.append([tie.name, int(groups.split(weight.oriented(masks[weight.name])).any(1).sum())])
        return {"expected_sparsity": self._expected, "units": left}
