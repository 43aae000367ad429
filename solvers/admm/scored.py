"""One-shot pruning by scores, survivors left as they are: V = W * mask."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from argprune.solvers.admm.layer import Layer, Pruned
from argprune.solvers.admm.supports import Scope, Unstructured
from argprune.solvers.criteria.layerwise import Wanda as WandaScores


@dataclass(frozen=True)
class Magnitude:
    """Keep the largest |w|; groups by their norm. Looks at no input."""

    def prune(self, layer: Layer) -> Pruned:
        """The projection of W on the support."""
        mask = layer.support.select(layer.dense.abs())
        return Pruned(layer.dense * mask, mask, {})


@dataclass(frozen=True)
class Wanda:
    """Keep the largest |w_ij| sqrt(mean x_j^2); groups by the norm of these.

    scope: "row" ranks within every output's row, as published: where the layer's support counts over the whole matrix,
    every row prunes its share, to the nearest whole number that makes the total exact. "matrix" ranks as the support
    says. Source: Sun et al. 2024; dossier paper-pins-sparsebert, section 3.
    """

    scope: Scope = "row"

    def __post_init__(self) -> None:
        if self.scope not in ("matrix", "row"):
            raise ValueError(f"Wanda: scope {self.scope!r}; need 'row' or 'matrix'.")

    def prune(self, layer: Layer) -> Pruned:
        """W on the mask of the largest scores."""
        once = {"moments": layer.gram.diagonal(), "tokens": torch.ones((), dtype=torch.int64)}
        scores = WandaScores().scores(once, layer.dense)
        support = layer.support
        if self.scope == "row" and isinstance(support, Unstructured) and support.scope == "matrix":
            mask = largest_of_rows(scores, even_shares(scores.numel(), len(scores), support.sparsity))
        else:
            mask = support.select(scores)
        return Pruned(layer.dense * mask, mask, {})


def even_shares(entries: int, parts: int, sparsity: float) -> list[int]:
    """How many entries to prune in each of equal parts: as even as whole numbers are, round(sparsity x entries) in all.

    >>> even_shares(10, parts=2, sparsity=0.3)
    [2, 1]
    """
    pruned = round(sparsity * entries)
    ends = [-(-pruned * part // parts) for part in range(parts + 1)]
    return [end - start for start, end in itertools.pairwise(ends)]


def largest_of_rows(scores: Tensor, pruned: list[int]) -> Tensor:
    """Mask of all but the so many smallest scores of each row, ties to the smaller column."""
    ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return ranks < scores.shape[1] - torch.tensor(pruned, device=scores.device)[:, None]
