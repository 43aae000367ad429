"""What a network computes on the way to its outputs, as far as another one may learn it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class States:
    """The inner states of a network on a batch of B padded texts, T tokens each.

    tokens: bool (B, T), True where a real token stands. embedding: output of the embedding, (B, T, width), or None;
    layers: outputs of the layers, (B, T, width) each; scores: of each layer's attention, before its softmax and without
    a mask, (B, heads, T, T), queries before keys. Those that nobody asked for are empty.
    causal: whether tokens attend to none after them.
    """

    tokens: Tensor
    embedding: Tensor | None = None
    layers: Sequence[Tensor] = ()
    scores: Sequence[Tensor] = ()
    causal: bool = False
