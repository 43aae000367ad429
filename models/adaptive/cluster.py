"""Words of like frequency, in fewer dimensions than the network is wide.

    E = Q diag(gate) P          P^T (words, r) the table, Q (width, r) the projection; column w of E embeds word w

As an embedding a cluster computes columns of E, as a softmax the products E^T h. Dropping dimension k drops a column of
both factors, words + width parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from argprune.models.factorised.gated import Gated
from argprune.solvers.low_rank.factors import Factors


class Cluster(Gated):
    """Factors that were never a dense table, and that may lose every dimension.

    words, width: of E. rank: r >= 0; of rank 0 it embeds every word as 0, and is not to be computed with.
    Where input and output are tied, both use this one object, and so one draw of the gates.
    """

    transposed = True

    def __init__(self, words: int, width: int, rank: int) -> None:
        # There is no dense layer that it stands for, and that would take the product back.
        super().__init__(torch.empty(words, max(1, rank)), torch.empty(width, max(1, rank)), nn.Identity())
        if rank == 0:
            self._close()
        self.reset_parameters()

    def forward(self, words: Tensor) -> Tensor:
        """The embeddings of words, int64 (...), counted from the cluster's first, as (..., width)."""
        # Of the rows looked up: the components that take part, of the whole table, would take a copy.
        hidden = embedding(words, self.first)
        return linear(hidden if self.gate is None else hidden * self.gate.to(hidden.dtype), self.second)

    def score(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """The products of hidden states (..., width) with the embeddings of all words, plus a bias: (..., words)."""
        first, second, gate = self._taking_part()
        inner = hidden @ second
        return linear(inner if gate is None else inner * gate.to(inner.dtype), first, bias)

    def reset_parameters(self, std: float = 0.02) -> None:
        """Draw both factors anew, so that the entries of E have this standard deviation."""
        nn.init.normal_(self.first, std=std)
        nn.init.normal_(self.second, std=max(1, self.rank) ** -0.5)

    def keep(self, index: Tensor) -> None:
        """As for any factors, but an empty index, int64 (0,), closes the cluster: nothing of its factors is left."""
        if index.shape == (0,) and index.dtype == torch.int64:
            self._close()
        else:
            super().keep(index)

    def _close(self) -> None:
        self.set_gate(None)
        for parameter in (self.first, self.second):
            parameter.grad = None
            parameter.data = parameter.data[:, :0]


def find_clusters(model: nn.Module) -> list[Factors]:
    """The clusters of a model's embeddings and softmaxes, in module order, tied ones once; [] where it has none.

    Their sizes count against what they are now, not against tables as wide as the network, which they never were.
    """
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, Cluster)]
    return [Factors(name, module, dense=module.first.numel() + module.second.numel()) for name, module in found]
