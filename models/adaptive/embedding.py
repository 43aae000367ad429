"""Adaptive input embeddings: words by falling frequency, in clusters, the rarer the fewer dimensions.

    x(word) = scale * (column of the word's cluster's E)                            `Cluster`

Reference: Baevski and Auli, "Adaptive Input Representations for Neural Language Modeling" (2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from argprune.models.adaptive.cluster import Cluster


class AdaptiveEmbedding(nn.Module):
    """Embeddings of `vocab_size` words, numbered by falling frequency.

    cutoffs: where a new cluster begins, ascending, within the vocabulary; none: one cluster. ranks: the dimensions of
    each cluster, one more than cutoffs. width: of what comes out. scale: it is multiplied by (default: the square root
    of the width: a table that is small enough for a softmax is too small for an input).
    Raises ValueError for cutoffs or ranks that do not fit.
    """

    def __init__(
        self, vocab_size: int, width: int, cutoffs: Sequence[int], ranks: Sequence[int], scale: float | None = None
    ) -> None:
        super().__init__()
        check_clusters(vocab_size, cutoffs, ranks)
        self.bounds = (0, *cutoffs, vocab_size)
        self.scale = width**0.5 if scale is None else scale
        self.clusters = make_clusters(self.bounds, width, ranks)

    def forward(self, words: Tensor) -> Tensor:
        """words: int64 (...); result: (..., width)."""
        embedded = None
        for cluster, (low, high) in zip(self.clusters, pairwise(self.bounds), strict=True):
            assert isinstance(cluster, Cluster)
            if cluster.rank == 0:
                continue
            # Every cluster looks at every word: shapes that depend on data would break compiled graphs, for a third of
            # a projection saved.
            inside = (words >= low) & (words < high)
            part = cluster((words - low).clamp(0, high - low - 1)) * inside.unsqueeze(-1)
            embedded = part if embedded is None else embedded + part
        if embedded is None:
            second = self.clusters[0].second
            assert isinstance(second, Tensor)
            return second.new_zeros(*words.shape, len(second))
        return embedded * self.scale

    def extra_repr(self) -> str:
        return f"cutoffs={self.bounds[1:-1]}, scale={self.scale:g}"


def make_clusters(bounds: Sequence[int], width: int, ranks: Sequence[int]) -> nn.ModuleList:
    """A cluster between any two bounds."""
    return nn.ModuleList(
        Cluster(high - low, width, rank) for (low, high), rank in zip(pairwise(bounds), ranks, strict=True)
    )


def check_clusters(vocab_size: int, cutoffs: Sequence[int], ranks: Sequence[int]) -> None:
    """Raise ValueError unless cutoffs split the vocabulary, and ranks has one for each part."""
    bounds = (0, *cutoffs, vocab_size)
    if any(low >= high for low, high in pairwise(bounds)):
        raise ValueError(f"cutoffs {list(cutoffs)} of {vocab_size} words; give them ascending, from 1 to the last.")
    if len(ranks) != len(cutoffs) + 1 or min(ranks) < 0:
        raise ValueError(f"{len(cutoffs)} cutoffs and ranks {list(ranks)}; give one more rank than cutoffs, each >= 0.")


def falling_ranks(rank: int, factor: float, clusters: int) -> list[int]:
    """The dimensions of clusters, each `factor` times fewer than the one before: max(1, floor(rank / factor^c)).

    >>> falling_ranks(256, 4, 4)
    [256, 64, 16, 4]
    """
    if rank < 1 or not 1 <= factor < float("inf"):
        raise ValueError(f"rank {rank}, factor {factor}; give rank >= 1 and a finite factor >= 1.")
    return [max(1, int(rank / factor**cluster)) for cluster in range(clusters)]
