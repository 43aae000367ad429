"""What methods on factored weights share: their sizes, ranks within a budget, and dropping components for good.

size(ranks) = sum_l min(r_l (i_l + o_l), i_l o_l)        sparsity = 1 - size(ranks) / sum_l i_l o_l

Weights that stay one matrix from the start count in both sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from argprune.solvers.groups import Weight
from argprune.solvers.low_rank import (
    Factors,
    Ranks,
    allocate_ranks,
    break_even_rank,
    shares_of_squares,
    stored_size,
)
from argprune.solvers.methods.base import Method, State
from argprune.solvers.methods.structures import Scope

Initial = Literal["svd", "whitened", "random"]


@dataclass(frozen=True)
class FactorPlan:
    """How the weights to prune shall be factored before training.

    initial: "svd", "whitened" (best for the inputs that the training rows give) or "random" (weights are discarded).
    rank: "break-even" (the largest at which the factors are no larger than the matrix), "full", or a number.
    embeddings: factor the table of word embeddings too. whole: leave the weights as they are that `kept_whole` finds
    at this sparsity, in (0, 1); None: factor all.
    """

    initial: Initial = "svd"
    rank: Literal["break-even", "full"] | int = "break-even"
    embeddings: bool = False
    whole: float | None = None

    def __post_init__(self) -> None:
        if self.initial not in ("svd", "whitened", "random"):
            raise ValueError(f"initial {self.initial!r}; choose 'svd', 'whitened' or 'random'.")
        named = self.rank in ("break-even", "full")
        if not named and (isinstance(self.rank, bool | str) or self.rank < 1):
            raise ValueError(f"rank {self.rank!r}; choose 'break-even', 'full' or a number >= 1.")
        if self.whole is not None and (self.initial == "random" or not 0 < self.whole < 1):
            raise ValueError(f"whole {self.whole}, initial {self.initial!r}; give a sparsity in (0, 1), and an SVD.")


class LowRank(Method):
    """Base of methods that see each weight as factors and drop rank-1 components. Subclasses say which, and when."""

    # Fields of the subclasses, which are dataclasses; named here for the code below.
    multiple: int
    scope: Scope = "global"

    @property
    def wants_factors(self) -> FactorPlan:
        """How the weights shall be factored before `attach`."""
        raise NotImplementedError

    def take_factors(self, factors: Sequence[Factors]) -> None:
        """Take the factors of the weights to prune that have some; called before `attach`."""
        self._factors = list(factors)

    def attach(self, weights: Sequence[Weight], total_steps: int) -> None:
        """Take what has no factors of the weights to prune for whole: it shares the budget (scope "global").

        Nothing is dropped yet. Raises ValueError without factors, and where one component of each is too much.
        """
        if not getattr(self, "_factors", None):
            raise ValueError("low-rank methods work on factors: call `take_factors` before `attach`.")
        factored = {factors.name for factors in self._factors}
        whole = [weight for weight in weights if weight.name not in factored]
        self._whole = [weight.name for weight in whole]
        self._whole_size = sum(weight.parameter.numel() for weight in whole)
        self._dense_size = self._whole_size + sum(factors.dense_size for factors in self._factors)
        self._check_budgets()
        self._starts = [factors.rank for factors in self._factors]
        self._kept: list[Tensor] = []
        self._summary: dict[str, Any] = {}

    def wrap_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Leave the optimizer as it is; what it remembers of dropped components will be dropped too."""
        self._optimizer = optimizer
        return optimizer

    def _check_budgets(self) -> None:
        """Raise ValueError before the run, not at its end, where one component of each weight is too much."""
        for share, dense, whole in self._shares():
            least = whole + sum(min(f.unit_size, f.dense_size) for f in share)
            if dense - round(self.sparsity * dense) < least:
                alone = len(share) == 1 and not whole
                raise ValueError(
                    f"sparsity {self.sparsity}: {share[0].name if alone else 'all weights together'} would keep "
                    f"{dense - round(self.sparsity * dense)} numbers, and "
                    f"{'what stays whole and ' if whole else ''}one component takes {least}; "
                    f"give at most {1 - least / dense:.4f}."
                )

    def _shares(self) -> list[tuple[list[Factors], int, int]]:
        """The factors of each budget, its dense numbers, and how many of these belong to weights that stay whole."""
        if self.scope == "global":
            return [(self._factors, self.dense_size, self._whole_size)]
        return [([factors], factors.dense_size, 0) for factors in self._factors]

    @property
    def dense_size(self) -> int:
        """The numbers in the dense weights."""
        return self._dense_size

    @property
    def tolerance(self) -> float:
        """The size of one component, the largest; of scope "matrix" one of each matrix."""
        sizes = [factors.unit_size for factors in self._factors]
        return float(max(sizes) if self.scope == "global" else sum(sizes))

    def _drop(self, worth: Sequence[Tensor]) -> None:
        """Keep what is worth most within the budget, and make every factor as small as that; gates are folded in.

        The budget is one for all (scope "global"), or for each matrix its share.
        """
        left = iter(worth)
        choices = [
            self._allocate(share, list(islice(left, len(share))), dense - round(self.sparsity * dense) - whole)
            for share, dense, whole in self._shares()
        ]
        kept = [index for choice in choices for index in choice.kept]
        self._keep(kept)
        self._summary = {
            "ranks": self._ranks(),
            "whole": self._whole,
            "size": self._whole_size + sum(choice.size for choice in choices),
            "dense_size": self.dense_size,
            "dropped_worth": sum(choice.objective for choice in choices),
            "gap": sum(choice.gap for choice in choices),
            "status": "optimal" if all(choice.status == "optimal" for choice in choices) else "feasible",
        }

    def _allocate(self, factors: Sequence[Factors], worth: Sequence[Tensor], size: int) -> Ranks:
        candidates = [_candidates(each, values) for each, values in zip(factors, worth, strict=True)]
        ranks = allocate_ranks(
            [values[index] for values, index in zip(worth, candidates, strict=True)],
            [each.shape for each in factors],
            size,
            multiple=self.multiple,
        )
        return replace(ranks, kept=[index[kept] for index, kept in zip(candidates, ranks.kept, strict=True)])

    def _keep(self, kept: Sequence[Tensor]) -> None:
        for factors, index in zip(self._factors, kept, strict=True):
            index = index.to(factors.second.device)
            states = self._states(factors, index)
            factors.keep(index)
            for parameter, state in states:
                self._optimizer.state[parameter] = state
        self._kept = [index.cpu() for index in kept]

    def _states(self, factors: Factors, index: Tensor) -> list[tuple[torch.nn.Parameter, dict[str, Any]]]:
        """What the optimizer remembers of the components of `index`, for both factors."""
        optimizer = getattr(self, "_optimizer", None)
        found = []
        for parameter, axis in ((factors.first, 1 if factors.layer.transposed else 0), (factors.second, 1)):
            if optimizer is None or parameter not in optimizer.state:
                continue
            state = {
                key: value.index_select(axis, index)
                if isinstance(value, Tensor) and value.shape == parameter.shape
                else value
                for key, value in optimizer.state[parameter].items()
            }
            found.append((parameter, state))
        return found

    def _ranks(self) -> list[list[str | int]]:
        return [[f.name, len(index)] for f, index in zip(self._factors, self._kept, strict=True)]

    def _masks(self) -> dict[str, Tensor]:
        masks = {}
        for factors, start, kept in zip(self._factors, self._starts, self._kept, strict=True):
            mask = torch.zeros(start, dtype=torch.bool)
            mask[kept] = True
            masks[factors.name] = mask
        return masks

    def reshape(self, state: Mapping[str, Any]) -> None:
        """Make the factors as small as they were when `state_dict` gave this state, before their values are loaded."""
        kept = [state.get(f"kept.{factors.name}") for factors in self._factors]
        # What drops components before the first step has done so by now.
        if not self._kept and all(index is not None for index in kept):
            for factors in self._factors:
                factors.set_gate(None)
            self._keep([index for index in kept if index is not None])

    def state_dict(self) -> State:
        """Which components are left, once some are dropped, and what their ranks' choice proved."""
        state: State = {f"kept.{f.name}": kept for f, kept in zip(self._factors, self._kept, strict=False)}
        told = self._summary.items()
        return state | {f"summary.{key}": value for key, value in told if key not in ("ranks", "whole")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved, after `reshape`."""
        if self._kept:
            given = {key.removeprefix("summary."): state[key] for key in state if key.startswith("summary.")}
            self._summary = {"ranks": self._ranks(), "whole": self._whole, **given}

    def _sparsity(self) -> float:
        """The sparsity of the factors as they are now stored."""
        stored = sum(stored_size(f.rank, *f.shape) if f.dense is None else f.rank * f.unit_size for f in self._factors)
        return 1 - (self._whole_size + stored) / self.dense_size

    def logs(self) -> dict[str, float]:
        """The sparsity of what is stored now."""
        return {"sparsity": self._sparsity()}

    def report(self) -> dict[str, Any]:
        """Pairs of weight and rank, what stayed whole, the size of all, and how far from the best it may be."""
        return dict(self._summary)


def worth(factors: Factors) -> Tensor:
    """The share of each component in the squares of its matrix's singular values, float64 (r,) on the CPU.

    Raises ValueError for factors that were made without them.
    """
    if factors.values is None:
        raise ValueError(f"{factors.name} comes without singular values; factorise it anew.")
    return shares_of_squares(factors.values)


def _candidates(factors: Factors, worth: Tensor) -> Tensor:
    """The components that may stay, int64 ascending: where they cannot become one matrix, fewer than would be it."""
    if factors.dense is None:
        return torch.arange(len(worth))
    most = break_even_rank(*factors.shape)
    return worth.sort(descending=True, stable=True).indices[:most].sort().values
