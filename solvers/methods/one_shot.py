"""One-shot pruning: a trained network's matrices, one by one, on what calibration data feed them.

    for each matrix W with inputs X:    V <- argmin ||X (W - V)^T||^2   subject to   support(V) in S

The network is trained dense, or was before; nothing is trained after, unless somebody goes on with the masks held.
Who knows the network gathers the inputs: `argprune.models.layerwise` block by block, from the pruned network itself.
Each method here names the solver of `argprune.solvers.admm` that it takes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from argprune.solvers.groups import Blocks, Columns, Rows, Weight
from argprune.solvers.methods.base import Method, State
from argprune.solvers.methods.base import Support as Masks
from argprune.solvers.registry import register
from argprune.solvers.schedules import check_sparsity

if TYPE_CHECKING:
    # Only for types: the layer solvers count as methods do, so their package imports this one.
    from argprune.solvers.admm.layer import LayerSolution
    from argprune.solvers.admm.moments import Moments
    from argprune.solvers.admm.supports import Support

_PATTERNS = "unstructured, rows, columns, n:m such as 2:4, or blocks of rows x columns such as 16x16"


@dataclass
class OneShot(Method):
    """Layer-wise reconstruction as a method; a subclass names its solver.

    sparsity: fraction of zeros of every matrix, in [0, 1); exact, to whole groups where the pattern has groups.
    pattern: "unstructured"; "rows", "columns" or blocks ("16x16", rows x columns), kept or pruned whole; or "n:m", n of
    every m adjacent inputs kept, at sparsity 1 - n/m.
    scope: of an unstructured support, one count a matrix ("matrix") or a row ("row").
    options: of the solver, such as {"damping": 0.05}; see `argprune.solvers.admm`.
    calibration: training rows whose inputs are looked at. unseen: validation rows on which layer errors are measured
    besides; nothing is fitted to them; 0 for none.
    order: "block", all matrices of a block at once, or "layer", each on what those before it in the block leave.
    target: keep the outputs of the dense weight on the inputs that it has in the pruned network ("weight"), or those of
    the dense network ("dense"); refit_damping: of the refit that this takes. folds: parts that the calibration rows are
    kept apart in, for solvers that try on one what they fit on others. bound: also bound the least possible error of a
    layer.
    """

    sparsity: float
    pattern: str = "unstructured"
    scope: Literal["matrix", "row"] = "matrix"
    options: Mapping[str, Any] = field(default_factory=dict)
    calibration: int = 128
    unseen: int = 128
    order: Literal["block", "layer"] = "block"
    target: Literal["weight", "dense"] = "weight"
    refit_damping: float = 0.01
    folds: int = 1
    bound: bool = False

    solver: ClassVar[str]

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        name = type(self).__name__
        for option, least in (("calibration", 1), ("unseen", 0), ("folds", 1)):
            if getattr(self, option) < least:
                raise ValueError(f"{name}: {option} {getattr(self, option)}; give at least {least}.")
        if self.order not in ("block", "layer"):
            raise ValueError(f"{name}: order {self.order!r}; choose 'block' or 'layer'.")
        if self.target not in ("weight", "dense"):
            raise ValueError(f"{name}: target {self.target!r}; choose 'weight' or 'dense'.")
        if not 0 <= self.refit_damping < float("inf"):
            raise ValueError(f"{name}: refit_damping {self.refit_damping}; it must be finite and >= 0.")
        if self.pattern != "unstructured" and self.scope != "matrix":
            raise ValueError(f"{name}: scope {self.scope!r} with pattern {self.pattern!r}; it is for 'unstructured'.")
        # Bad options of the solver and of the support shall fail here, not after hours of training.
        self._support, self._solver = self._make_support(), self._make_solver()
        from argprune.solvers.admm.layer import ChecksSupport

        if isinstance(self._solver, ChecksSupport):
            self._solver.check(self._support)

    @property
    def support(self) -> Support:
        """The supports that a matrix may have."""
        return self._support

    @property
    def pruned(self) -> bool:
        """Whether the masks are there, by `prune` or by `hold`."""
        return bool(self._masks)

    def solve(self, name: str, matrix: Tensor, moments: Moments) -> LayerSolution:
        """Prune one matrix (rows = outputs) on the moments of its inputs; the matrix stays as it is."""
        from argprune.solvers.admm.layer import Layer, solve_layer

        return solve_layer(Layer(matrix, moments, self._support), self._solver, bound=self.bound)

    @torch.no_grad()
    def prune(self, moments: Mapping[str, Moments]) -> dict[str, LayerSolution]:
        """Prune every weight in place, given the moments of its inputs by name; returns the solutions."""
        solutions = {
            weight.name: self.solve(weight.name, weight.matrix, moments[weight.name]) for weight in self._weights
        }
        for weight in self._weights:
            weight.matrix.copy_(solutions[weight.name].weight)
        masks = [solutions[weight.name].mask for weight in self._weights]
        pairs = zip(self._weights, masks, strict=True)
        self.hold({weight.name: mask.t() if weight.transposed else mask for weight, mask in pairs})
        return solutions

    def hold(self, masks: Mapping[str, Tensor]) -> None:
        """From now on keep what masks (shaped like the parameters, by weight name) prune at zero."""
        self._masks.fix([masks[weight.name] for weight in self._weights])

    @property
    def tolerance(self) -> float:
        """By how many entries the support's own counts differ from the asked one, at least half an entry a matrix."""
        tolerance = 0.0
        for weight in self._weights:
            shape = weight.matrix.shape
            kept = int(self._support.select(torch.ones(shape)).sum())
            tolerance += max(0.5, abs(kept - (1 - self.sparsity) * shape.numel()))
        return tolerance

    def attach(self, weights: Sequence[Weight], total_steps: int) -> None:
        """Take the weights. Raises ValueError for one that is no matrix, or whose shape the pattern does not fit."""
        for weight in weights:
            if weight.parameter.dim() != 2:
                raise ValueError(f"{type(self).__name__}: {weight.name} is no matrix; leave biases out.")
            try:
                self._support.within(weight.matrix.shape)
            except ValueError as error:
                raise ValueError(f"{weight.name}: {error}") from error
        self._weights, self._masks = weights, Masks(weights)

    def before_step(self, step: int) -> None:
        """Keep pruned weights out of the optimizer's moments."""
        self._masks.zero_gradients()

    def after_step(self, step: int, learning_rate: float) -> None:
        """Keep the support."""
        self._masks.zero_weights()

    def finish(self) -> dict[str, Tensor]:
        """The masks. Raises ValueError where nothing was pruned yet."""
        if not self._masks:
            raise ValueError(
                f"{type(self).__name__}: nothing is pruned yet; call prune with the inputs' moments first."
            )
        return self._masks.masks()

    def state_dict(self) -> State:
        """The masks, if there are any yet."""
        return self._masks.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the masks."""
        self._masks.load_state_dict(state)

    def _make_solver(self) -> Any:
        from argprune.solvers.admm.catalogue import SOLVERS

        name, solver = type(self).__name__, SOLVERS[self.solver]
        known = list(inspect.signature(solver).parameters)
        unknown = sorted(set(self.options) - set(known))
        if unknown:
            raise ValueError(f"{name}: its solver has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}.")
        try:
            return solver(**self.options)
        except TypeError as error:
            raise ValueError(f"{name}: options {dict(self.options)}: a value is of another type ({error}).") from error

    def _make_support(self) -> Support:
        from argprune.solvers.admm.supports import NM, Grouped, Unstructured

        if self.pattern == "unstructured":
            return Unstructured(self.sparsity, self.scope)
        if self.pattern in ("rows", "columns"):
            return Grouped(Rows() if self.pattern == "rows" else Columns(), self.sparsity)
        sizes = re.fullmatch(r"(\d+)([:x])(\d+)", self.pattern)
        if sizes is None:
            raise ValueError(f"{type(self).__name__}: pattern {self.pattern!r}; choose {_PATTERNS}.")
        first, second = int(sizes[1]), int(sizes[3])
        if sizes[2] == "x":
            return Grouped(Blocks(first, second), self.sparsity)
        support = NM(first, second)
        # As far as six decimals say it.
        if abs(self.sparsity - (1 - first / second)) > 1e-6:
            raise ValueError(
                f"{type(self).__name__}: sparsity {self.sparsity} with pattern {self.pattern}, which prunes "
                f"{1 - first / second:g}; give that."
            )
        return support


@register("methods", "one-shot-magnitude", examples=[{"sparsity": 0.6}])
@dataclass
class OneShotMagnitude(OneShot):
    """One-shot: keep the largest magnitudes as they are, the control of the others."""

    solver: ClassVar[str] = "magnitude"


@register("methods", "wanda", examples=[{"sparsity": 0.6}, {"sparsity": 0.5, "scope": "matrix"}])
@dataclass
class Wanda(OneShot):
    """One-shot: keep the largest |w_ij| sqrt(mean x_j^2) of every row as they are (Sun et al. 2024).

    scope: "row" as published, each row pruning its share, to the nearest whole number that makes the matrix's count
    exact; "matrix" ranks over the matrix. Patterns rank as they say.
    """

    scope: Literal["matrix", "row"] = "row"

    solver: ClassVar[str] = "wanda"

    def __post_init__(self) -> None:
        if "scope" in self.options:
            raise ValueError(f"Wanda: options {dict(self.options)}; scope is the method's own option.")
        if self.pattern != "unstructured":
            self.scope = "matrix"
        super().__post_init__()

    def _make_solver(self) -> Any:
        from argprune.solvers.admm.scored import Wanda as Solver

        return Solver(self.scope)

    def _make_support(self) -> Support:
        from argprune.solvers.admm.supports import Unstructured

        # The rows' shares are the solver's.
        return Unstructured(self.sparsity) if self.pattern == "unstructured" else super()._make_support()


@register("methods", "sparsegpt", examples=[{"sparsity": 0.6}, {"sparsity": 0.5, "scope": "row"}])
@dataclass
class SparseGPT(OneShot):
    """One-shot: column by column from the left, those to the right make up for it (Frantar, Alistarh 2023)."""

    solver: ClassVar[str] = "sparsegpt"


@register("methods", "alps", examples=[{"sparsity": 0.6}])
@dataclass
class ALPS(OneShot):
    """One-shot: ADMM with a growing penalty, then conjugate gradients on its support (Meng et al. 2024)."""

    solver: ClassVar[str] = "alps"


@register("methods", "one-shot-admm", examples=[{"sparsity": 0.6}])
@dataclass
class OneShotADMM(OneShot):
    """One-shot: ADMM with one penalty and a mask that is grown (Boza 2024)."""

    solver: ClassVar[str] = "admm"


@register("methods", "shrunk-admm", examples=[{"sparsity": 0.6}])
@dataclass
class ShrunkADMM(OneShot):
    """One-shot: ADMM on a cross-validated estimate of the inputs' moments, which fits less to chance.

    It needs at least 2 folds, and as many batches of calibration rows.
    """

    folds: int = 8

    solver: ClassVar[str] = "shrunk-admm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds < 2:
            raise ValueError(f"shrunk-admm: folds {self.folds}; give at least 2, some of which are held out.")


@register("methods", "obs", examples=[{"sparsity": 0.6}])
@dataclass
class OBS(OneShot):
    """One-shot: weight after weight, cheapest first, made up for by the others (Frantar, Alistarh 2022)."""

    solver: ClassVar[str] = "obs"
