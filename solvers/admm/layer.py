"""Layer-wise reconstruction: keep a linear layer's outputs while pruning its weight.

    minimise over V    ||X (W - V)^T||^2 = tokens x tr (W - V) G (W - V)^T,    support(V) in S,    G = X^T X / tokens

W (rows = outputs, columns = inputs) is the dense weight, X (tokens, columns) the layer's inputs. Rows share G, and meet
only in the count of the support. Solvers are in this package's other files; `solve_layer` runs one by name.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from argprune.solvers.admm.moments import Moments
from argprune.solvers.admm.supports import Support


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight to prune, what is known of its inputs, and which supports are allowed.

    weight: (rows = outputs, columns = inputs), floating and finite. moments: of as many columns; solvers compute in
    their dtype. support: those allowed. Raises ValueError where these do not fit together.
    """

    weight: Tensor
    moments: Moments
    support: Support

    def __post_init__(self) -> None:
        shape = tuple(self.weight.shape)
        if self.weight.dim() != 2 or not self.weight.is_floating_point():
            raise ValueError(f"Layer: a weight of shape {shape} and {self.weight.dtype}; give a floating matrix.")
        if shape[1] != self.moments.columns:
            raise ValueError(f"Layer: a weight of {shape[1]} columns, moments of {self.moments.columns}; give as many.")
        if not bool(self.weight.isfinite().all()):
            raise ValueError("Layer: a weight with NaN or an infinity; every entry must be finite.")
        if not isinstance(self.support, Support):
            raise ValueError(f"Layer: support {self.support!r}; give Unstructured(...), NM(...) or Grouped(...).")
        self.support.within(self.weight.shape)

    @cached_property
    def dense(self) -> Tensor:
        """The weight, detached, in the moments' dtype and on their device."""
        return self.weight.detach().to(self.moments.device, self.moments.dtype)

    @cached_property
    def gram(self) -> Tensor:
        """(columns, columns) G of all calibration tokens."""
        return self.moments.gram()

    def error(self, pruned: Tensor, gram: Tensor | None = None) -> float:
        """What `relative_error` says of a pruned weight on the calibration tokens, or on those of another G."""
        return relative_error(self.dense, pruned, self.gram if gram is None else gram)


class Pruned(NamedTuple):
    """What a solver returns: weight and mask, (rows, columns), and a report of how it got there."""

    weight: Tensor
    mask: Tensor
    report: Mapping[str, Any]


@runtime_checkable
class LayerSolver(Protocol):
    """A way to prune a layer: a frozen dataclass of options."""

    def prune(self, layer: Layer) -> Pruned:
        """A weight in the moments' dtype that is zero outside a mask of the layer's support."""


@runtime_checkable
class ChecksSupport(Protocol):
    """A layer solver that some supports are none of."""

    def check(self, support: Support) -> None:
        """Raise ValueError for a support that it cannot choose."""


@dataclass(frozen=True, eq=False)
class LayerSolution:
    """A pruned layer.

    weight: in the dense weight's dtype and on its device, zero where mask (bool, True = kept) is False. error: relative
    to the dense outputs, on the calibration tokens. bound: no weight of such a support has a smaller error; None where
    it was not asked for. seconds: of the solver. report: its own account.
    """

    weight: Tensor
    mask: Tensor
    error: float
    bound: float | None
    seconds: float
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gap(self) -> float | None:
        """How far, at most, the error is above the least possible one, as a share of it; None without a bound."""
        if self.bound is None:
            return None
        return (self.error - self.bound) / self.error if self.error > 0 else 0.0


def solve_layer(layer: Layer, how: str | LayerSolver = "alps", *, bound: bool = False) -> LayerSolution:
    """Prune a layer by a solver.

    how: its name (see `SOLVERS`), or the solver itself, with options of its own.

    bound: also compute a lower bound on every solution's error, which takes about as long as `alps`; not part of
    `seconds`. Raises ValueError for an unknown name, and what the solver raises for a support that it does not cover.
    """
    from argprune.solvers.admm.catalogue import named

    solver = named(how) if isinstance(how, str) else how
    start = time.perf_counter()
    weight, mask, report = solver.prune(layer)
    pruned = weight.to(layer.weight)
    seconds = time.perf_counter() - start
    least = None
    if bound:
        from argprune.solvers.admm.bound import lower_bound

        least = lower_bound(layer)
    mask = mask.to(layer.weight.device)
    return LayerSolution(pruned, mask, layer.error(pruned), least, seconds, report)


def relative_error(weight: Tensor, pruned: Tensor, gram: Tensor) -> float:
    """||X (W - V)^T||^2 / ||X W^T||^2 for the tokens whose mean of x x^T is `gram`; 0 if both are 0.

    weight, pruned: (rows, columns); computed in gram's dtype.
    """
    dense = weight.detach().to(gram)
    lost, total = quadratic(dense - pruned.detach().to(gram), gram), quadratic(dense, gram)
    if total > 0:
        return lost / total
    return 0.0 if lost == 0 else math.inf


def quadratic(weight: Tensor, gram: Tensor) -> float:
    """tr V G V^T, at least 0: rounding may take it below."""
    return max(0.0, float((weight @ gram).mul_(weight).sum()))
