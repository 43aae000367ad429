"""An embedding as a product, E = T Q^T, and the output head that shares it: logits = T (gate * (Q^T h)) + b."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from argprune.models.factorised.gated import Gated, set_aside, weightless, without_values


class FactorisedEmbedding(Gated):
    """An embedding whose table is a product of two factors.

    first: T, (num_embeddings, r), a row a word. second: Q, (embedding_dim, r). padding_idx: the row of T that gathers
    no gradient, or None. scale: what every embedding is multiplied by. template: as for `Gated`, by
    default an nn.Embedding. A component costs num_embeddings + embedding_dim
    parameters. Raises ValueError where the shapes do not fit together.
    """

    transposed = True

    def __init__(
        self,
        first: Tensor,
        second: Tensor,
        padding_idx: int | None = None,
        scale: float = 1.0,
        template: nn.Module | None = None,
    ) -> None:
        sizes = first.shape[0], second.shape[0]
        super().__init__(first, second, template or nn.Embedding(*sizes, padding_idx, device="meta"))
        self.num_embeddings, self.embedding_dim = sizes
        self.padding_idx, self.scale = padding_idx, scale

    @property
    def weight(self) -> Tensor:
        """(num_embeddings, embedding_dim), of the parameters' dtype, without values; those are `product().t()`."""
        return without_values(self.second, (self.num_embeddings, self.embedding_dim))

    def forward(self, words: Tensor) -> Tensor:
        """(...) integers to (..., embedding_dim)."""
        return self.look_up(words, self.padding_idx, self.scale)

    def look_up(self, words: Tensor, padding_idx: int | None, scale: float) -> Tensor:
        """The embeddings of words, (..., embedding_dim)."""
        second, gate, index = self.second.t(), self._gate, self._open
        hidden = embedding(words, self.first, padding_idx)
        if gate is not None and index is not None:
            # Of the rows looked up: of the whole table it would take a copy.
            hidden, second, gate = hidden.index_select(-1, index), second.index_select(0, index), gate[index]
        if gate is not None:
            hidden = hidden * gate.to(hidden.dtype)
        found = hidden @ second
        return found if scale == 1.0 else found * scale

    def score(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        """The product with every word's embedding, (..., embedding_dim) to (..., num_embeddings)."""
        first, second, gate = self._taking_part()
        inner = hidden @ second
        if gate is not None:
            inner = inner * gate.to(inner.dtype)
        return linear(inner, first, bias)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, rank={self.rank}, padding_idx={self.padding_idx}"


class TiedFactorisedEmbedding(nn.Module):
    """Another place where a `FactorisedEmbedding` is looked up, with a padding row and a scale of its own.

    It has no parameters: factors and gates are those of `embedding`. template: the embedding to stand for, as for
    `Gated`. padding_idx: a row without gradient.
    """

    embedding: FactorisedEmbedding
    template: nn.Module

    def __init__(
        self, embedding: FactorisedEmbedding, template: nn.Module, padding_idx: int | None = None, scale: float = 1.0
    ) -> None:
        super().__init__()
        set_aside(self, "embedding", embedding)
        set_aside(self, "template", weightless(template))
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self.padding_idx, self.scale = padding_idx, scale

    @property
    def weight(self) -> Tensor:
        """That of the embedding, without values."""
        return self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        """(...) integers to (..., embedding_dim)."""
        return self.embedding.look_up(words, self.padding_idx, self.scale)


class TiedFactorisedHead(nn.Module):
    """The output head that shares `embedding`, a `FactorisedEmbedding`: its transpose, by the same factors and gates.

    Its only parameter is its bias, (num_embeddings,) or None, taken as it is. template: the nn.Linear to stand for, as
    for `Gated`.
    """

    embedding: FactorisedEmbedding
    template: nn.Module
    bias: nn.Parameter | None

    def __init__(self, embedding: FactorisedEmbedding, template: nn.Module, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        set_aside(self, "embedding", embedding)
        set_aside(self, "template", weightless(template))
        self.in_features, self.out_features = embedding.embedding_dim, embedding.num_embeddings
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Tensor:
        """That of the embedding, without values."""
        return self.embedding.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., embedding_dim) to (..., num_embeddings)."""
        return self.embedding.score(hidden, self.bias)
