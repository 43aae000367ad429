"""A linear layer as a product of two: y = Q (gate * (P x)) + b."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import linear

from argprune.models.factorised.gated import Gated, without_values


class FactorisedLinear(Gated):
    """What a linear layer computes, with its weight as a product of two factors.

    first: P, (r, in_features). second: Q, (out_features, r). bias: (out_features,) or None; a parameter is taken as it
    is. template: as for `Gated`, an nn.Linear or a Conv1D; by default an nn.Linear. Raises ValueError where the shapes
    do not fit together.

    >>> import torch
    >>> layer = FactorisedLinear(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 3.0]]))
    >>> layer(torch.tensor([1.0, 1.0])).item()
    5.0
    >>> layer.set_gate(torch.tensor([1.0, 0.0]))
    >>> layer(torch.tensor([1.0, 1.0])).item()
    2.0
    """

    bias: nn.Parameter | None

    def __init__(
        self, first: Tensor, second: Tensor, bias: Tensor | None = None, template: nn.Module | None = None
    ) -> None:
        sizes = first.shape[-1], second.shape[0]
        super().__init__(first, second, template or nn.Linear(*sizes, bias=bias is not None, device="meta"))
        if bias is not None and bias.shape != (len(second),):
            raise ValueError(f"FactorisedLinear: bias of shape {tuple(bias.shape)}; give ({len(second)},).")
        self.out_features, self.in_features = len(second), first.shape[1]
        given = bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias.detach())
        self.register_parameter("bias", given)

    @property
    def weight(self) -> Tensor:
        """(out_features, in_features), of the parameters' dtype, without values; those are `product()`."""
        return without_values(self.second, (self.out_features, self.in_features))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        first, second, gate = self._taking_part()
        hidden = linear(x, first)
        if gate is not None:
            # Autocast may have changed the dtype; a float32 gate would change it back.
            hidden = hidden * gate.to(hidden.dtype)
        return linear(hidden, second, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"bias={self.bias is not None}"
        )
