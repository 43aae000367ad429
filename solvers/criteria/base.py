"""What a criterion is: importance scores of a weight's entries, and the surrogate of the loss that they minimise.

A criterion sees one matrix at a time, a batch at a time. `start` makes its accumulators, `update` adds what a batch
tells, `scores` turns them into importances: larger = keep. Keeping the k largest scores solves

    minimise the sum of kept costs (cost = -score)   subject to   k entries kept,

which is the criterion's surrogate of the loss where that is separable, and a greedy rule for it where it is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

Surrogate = Literal["none", "linear", "diagonal", "quadratic", "refit"]
Need = Literal["gradient", "step", "inputs"]
Scope = Literal["row", "block", "matrix", "global"]
Accumulators = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What one batch tells of one matrix.

    weight: (rows, columns), before the optimizer's step, one row an output unit; elementwise criteria take any shape.
    gradient: of the batch's mean loss at `weight`. stepped: the weight after the optimizer's step, before any mask;
    learning_rate: of that step. examples: the rows of data that the gradient is the mean over.
    inputs: (tokens, columns), what the layer is fed.
    """

    weight: Tensor
    gradient: Tensor | None = None
    stepped: Tensor | None = None
    learning_rate: float = 0.0
    examples: int = 1
    inputs: Tensor | None = None


class Criterion:
    """Importance scores of a matrix. Subclasses are frozen dataclasses whose fields are the user's options.

    surrogate: the model of the loss that the scores minimise: "none", "linear" (g.m), "diagonal" (with curvature of
    single entries), "quadratic" (curvature, survivors stay), "refit" (curvature, survivors move to the best place).
    needs: what of `Evidence` is read. scope: over what the authors rank; whoever compares may rank over anything else.
    formula: the score in one line, for tables.
    """

    surrogate: ClassVar[Surrogate]
    needs: ClassVar[frozenset[Need]] = frozenset()
    scope: ClassVar[Scope] = "global"
    formula: ClassVar[str]

    def start(self, weight: Tensor) -> Accumulators:
        """Empty accumulators for a weight."""
        raise NotImplementedError

    def update(self, accumulators: Accumulators, evidence: Evidence) -> None:
        """Add what a batch tells, in place. Raises ValueError where something of `needs` is missing."""
        raise NotImplementedError

    def scores(self, accumulators: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        """Importances shaped like `weight`, larger = keep. Raises ValueError where a batch is needed and none came."""
        raise NotImplementedError

    def require(self, evidence: Evidence) -> None:
        """Raise ValueError unless the evidence holds what this criterion reads."""
        given = {"gradient": evidence.gradient, "step": evidence.stepped, "inputs": evidence.inputs}
        for need in sorted(self.needs):
            if given[need] is None:
                raise ValueError(
                    f"{type(self).__name__}: a batch without {need}; it reads {', '.join(sorted(self.needs))}."
                )


class Elementwise(Criterion):
    """A criterion whose score of an entry is the mean over batches of a function of that entry alone.

    Being elementwise, it works on any part of a weight, which is how methods keep it in the cache.
    """

    def raw(self, evidence: Evidence) -> Tensor:
        """The score from one batch alone, shaped like the evidence's weight; a new tensor."""
        raise NotImplementedError

    def blend(self, into: Tensor, evidence: Evidence, *, keep: float, factor: float) -> None:
        """into <- keep * into + factor * scores of a batch, in place; where keep is 0, whatever `into` holds.

        into: float32, shaped like the evidence's weight. Sums and moving averages of scores are this; criteria that are
        products override it with fewer passes over memory than `raw` and a sum take, equal to rounding.
        """
        raw = self.raw(evidence)
        if keep == 0:
            torch.mul(raw, factor, out=into)
        else:
            scaled(into, keep).add_(raw, alpha=factor)

    def start(self, weight: Tensor) -> Accumulators:
        """The sum of the batches' scores, and their number."""
        return {"sum": torch.zeros_like(weight, dtype=torch.float32), "batches": torch.zeros((), dtype=torch.int64)}

    def update(self, accumulators: Accumulators, evidence: Evidence) -> None:
        """Add the scores of a batch."""
        self.require(evidence)
        accumulators["sum"] += self.raw(evidence)
        accumulators["batches"] += 1

    def scores(self, accumulators: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        """The mean over batches; without any, what the weight alone says where nothing else is read."""
        batches = int(accumulators["batches"])
        if batches == 0:
            if self.needs:
                raise ValueError(f"{type(self).__name__}: scores before the first batch; update it with one.")
            return self.raw(Evidence(weight))
        return accumulators["sum"] / batches


@dataclass(frozen=True)
class Smoothing:
    """How the scores of single batches become the scores that rank: window mean, moving average, uncertainty.

    window: batches averaged, >= 1. beta: of the moving average over windows, in [0, 1); 0 takes the last window alone.
    uncertainty: beta of the moving average of |window - average|, in [0, 1), by which the average is multiplied; None
    for none. The mean of costs is the cost of the mean, so that window and average leave a linear program linear
    (dossier paper-pins-sparsebert, section 4.7); the uncertainty does not. All this may as well be done with costs,
    which are scores negated: the result is negated too. Source: PLATON; dossier, section 1.3.
    """

    window: int = 1
    beta: float = 0.0
    uncertainty: float | None = None

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"Smoothing: window {self.window}; it is a number of batches, at least 1.")
        for name, value in (("beta", self.beta), ("uncertainty", self.uncertainty)):
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"Smoothing: {name} {value}; it must be in [0, 1).")
        if self.uncertainty is not None and self.beta == 0:
            raise ValueError("Smoothing: uncertainty without beta; the last window never deviates from itself.")

    @property
    def averages(self) -> bool:
        """Whether the moving average is itself the score, which `close` returns in place."""
        return self.beta > 0 and self.uncertainty is None

    def start(self, weight: Tensor) -> Accumulators:
        """Accumulators for a weight: the window's sum, to which `Elementwise.blend` adds, and average and deviation."""
        names = ["window"] + ["average"] * (self.beta > 0) + ["deviation"] * (self.uncertainty is not None)
        return {name: torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) for name in names}

    def close(self, accumulators: Accumulators, batches: int, out: Tensor | None = None) -> Tensor:
        """End a window of so many batches; returns the scores, not to be changed in place: they may be the average.

        out: where to write the scores, unless they are the average.
        """
        window = accumulators["window"]
        if self.beta == 0:
            return torch.div(window, batches, out=out)
        average = accumulators["average"].mul_(self.beta).add_(window, alpha=(1 - self.beta) / batches)
        if self.uncertainty is None:
            return average
        deviation = accumulators["deviation"].mul_(self.uncertainty)
        mean = window if batches == 1 else window / batches
        deviation.add_((mean - average).abs_(), alpha=1 - self.uncertainty)
        return torch.mul(average, deviation, out=out)


def scaled(tensor: Tensor, factor: float) -> Tensor:
    """The tensor multiplied in place; by 1, without a pass over memory."""
    return tensor if factor == 1 else tensor.mul_(factor)


def build(spec: str | Mapping[str, Any]) -> Criterion:
    """The criterion that a name, or a mapping of `name` and options (`spec`), stands for. ValueError in one line."""
    from argprune.solvers import registry

    made = registry.build("criteria", spec)
    if not isinstance(made, Criterion):
        raise ValueError(f"{spec!r} is no criterion: {type(made).__name__} is not a subclass of Criterion.")
    return made
