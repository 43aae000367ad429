"""Adaptive softmax: the frequent words, and a place for each cluster of rarer ones, whose words share its probability.

    log p(w | h) = log softmax(head(h))[w]                                       w in the first cluster
                 = log softmax(head(h))[place of c] + log softmax(E_c^T h + b_c)[w]         w in cluster c > 0
    head(h)      = (E_0^T h + b_0, A h + a)                                              E: those of `Cluster`

`torch.nn.AdaptiveLogSoftmaxWithLoss` is the same function where cluster 0 has full rank and b_c = 0; it can neither
share its tables with an embedding nor gate or shrink them.
Reference: Grave, Joulin, Cissé, Grangier and Jégou, "Efficient softmax approximation for GPUs" (2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from argprune.models.adaptive.cluster import Cluster
from argprune.models.adaptive.embedding import AdaptiveEmbedding, check_clusters, make_clusters
from argprune.models.factorised.gated import set_aside


class AdaptiveSoftmax(nn.Module):
    """Log-probabilities of `vocab_size` words, numbered by falling frequency.

    width: of the hidden states. cutoffs, ranks: as for `AdaptiveEmbedding`. tied: an embedding whose clusters, gates
    included, are this softmax's; its cutoffs and ranks then count. Biases and places are never gated.
    """

    tied: AdaptiveEmbedding | None = None

    def __init__(
        self,
        vocab_size: int,
        width: int,
        cutoffs: Sequence[int] = (),
        ranks: Sequence[int] = (),
        tied: AdaptiveEmbedding | None = None,
    ) -> None:
        super().__init__()
        if tied is None:
            check_clusters(vocab_size, cutoffs, ranks)
            self.bounds: tuple[int, ...] = (0, *cutoffs, vocab_size)
            self.own_clusters = make_clusters(self.bounds, width, ranks)
        else:
            self.bounds = tied.bounds
            # The parameters are the embedding's, and stored there.
            set_aside(self, "tied", tied)
        self.bias = nn.Parameter(torch.empty(vocab_size))
        # A matrix without rows could not be initialised.
        self.places = nn.Linear(width, len(self.bounds) - 2) if len(self.bounds) > 2 else None
        self.reset_parameters()

    def reset_parameters(self, std: float = 0.02) -> None:
        """Zero the biases, and draw the places, as the clusters draw words."""
        nn.init.zeros_(self.bias)
        if self.places is not None:
            nn.init.normal_(self.places.weight, std=std)
            nn.init.zeros_(self.places.bias)

    @property
    def clusters(self) -> list[Cluster]:
        """Those whose tables are used, be they the embedding's."""
        clusters = self.own_clusters if self.tied is None else self.tied.clusters
        return [cluster for cluster in clusters if isinstance(cluster, Cluster)]

    def forward(self, hidden: Tensor) -> Tensor:
        """The log-probabilities of all words, (..., vocab_size), of hidden states (..., width)."""
        head = _precise(self._head(hidden)).log_softmax(-1)
        size = self.bounds[1]
        rare = [
            _precise(self._scores(number, hidden)).log_softmax(-1) + head[..., size + number - 1, None]
            for number in range(1, len(self.clusters))
        ]
        return torch.cat([head[..., :size], *rare], -1)

    def losses(self, hidden: Tensor, words: Tensor) -> Tensor:
        """The negative log-probabilities of given words, (rows,), of hidden states (rows, width) and int64 (rows,).

        The same numbers as `forward` gives, but a cluster is computed for the rows of its words only.
        """
        size = self.bounds[1]
        places = words
        rare = []
        for number, (low, high) in enumerate(pairwise(self.bounds[1:]), 1):
            inside = (words >= low) & (words < high)
            places = torch.where(inside, size + number - 1, places)
            rare.append(inside.nonzero().squeeze(1))
        losses = nn.functional.cross_entropy(_precise(self._head(hidden)), places, reduction="none")
        for number, rows in enumerate(rare, 1):
            if len(rows):
                scores = _precise(self._scores(number, hidden[rows]))
                own = nn.functional.cross_entropy(scores, words[rows] - self.bounds[number], reduction="none")
                losses = losses.index_add(0, rows, own)
        return losses

    def extra_repr(self) -> str:
        return f"cutoffs={self.bounds[1:-1]}, tied={self.tied is not None}"

    def _head(self, hidden: Tensor) -> Tensor:
        scores = self._scores(0, hidden)
        return scores if self.places is None else torch.cat([scores, self.places(hidden)], -1)

    def _scores(self, number: int, hidden: Tensor) -> Tensor:
        cluster = self.clusters[number]
        bias = self.bias[self.bounds[number] : self.bounds[number + 1]]
        if cluster.rank == 0:
            return bias.expand(*hidden.shape[:-1], -1)
        return cluster.score(hidden, bias)


def _precise(scores: Tensor) -> Tensor:
    """In float32 or better: sums over a vocabulary need it."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
