"""Gates on the components of a product: what factorised linear layers and embeddings share.

    W = Q diag(gate) P = sum_k gate_k q_k p_k^T

Components whose gate is zero are left out of the computation where they are many. Gates are no parameters and in no
state dict: a method sets them, and reads d loss / d gate after backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

# Up to this share of open gates it pays to copy the rows and columns that take part. Reference: the authors' code.
_GATHER = 0.8


class Gated(nn.Module):
    """Two factors with gates between them. Subclasses have `forward`, and say how `first` is stored.

    first: P, (r, inputs), or where `transposed` (inputs, r). second: Q, (outputs, r). template: the module that this
    one stands for, without its weight, which takes the product back in `restore`. Raises ValueError where the shapes do
    not fit together.
    """

    transposed: ClassVar[bool] = False
    first: nn.Parameter
    second: nn.Parameter
    template: nn.Module

    def __init__(self, first: Tensor, second: Tensor, template: nn.Module) -> None:
        super().__init__()
        axis = 1 if self.transposed else 0
        if first.dim() != 2 or second.dim() != 2 or first.shape[axis] != second.shape[1] or not second.shape[1]:
            wanted = "(inputs, r)" if self.transposed else "(r, inputs)"
            raise ValueError(
                f"{type(self).__name__}: first of shape {tuple(first.shape)}, second of {tuple(second.shape)}; give "
                f"{wanted} and (outputs, r), r >= 1."
            )
        self.first, self.second = nn.Parameter(first.detach()), nn.Parameter(second.detach())
        set_aside(self, "template", weightless(template))
        self._gate: Tensor | None = None
        # The components that take part, where they are few.
        self._open: Tensor | None = None

    @property
    def rank(self) -> int:
        """The number of components r."""
        return self.second.shape[1]

    @property
    def gate(self) -> Tensor | None:
        """(r,) float32, a leaf: `gate.grad` is d loss / d gate after backward. None without gates."""
        return self._gate

    def set_gate(self, values: Tensor | None) -> None:
        """Multiply the components by `values` from now on, (r,) floating, of which a copy is kept; None: by nothing.

        Where less than 80 % of them are not zero, the others are left out of the computation, and the gradient of their
        gates is zero. Raises ValueError for another shape or dtype.
        """
        if values is None:
            self._gate = self._open = None
            return
        if values.shape != (self.rank,) or not values.is_floating_point():
            raise ValueError(
                f"set_gate: values of shape {tuple(values.shape)} and {values.dtype}; give floating ({self.rank},)."
            )
        # Evaluation may set them under inference mode, whose tensors could not take part in training later.
        with torch.inference_mode(False):
            gate = values.detach().to(self.second.device, torch.float32, copy=True)
            index = gate.nonzero().flatten()
            self._open = index if len(index) < _GATHER * len(gate) else None
            self._gate = gate.requires_grad_()

    @torch.no_grad()
    def keep(self, index: Tensor) -> None:
        """Drop all components but those of `index`, in its order, from the parameters, which stay the same objects.

        index: int64, (kept,), from 0 to r - 1, none twice, at least one. Where there are gates, they are multiplied
        into `second`, and are gone. Gradients are dropped. Raises ValueError outside.
        """
        check_index(index, self.rank, "keep")
        with torch.inference_mode(False):
            index = index.to(self.second.device, copy=True)
            second = self._gated_second().index_select(1, index).to(self.second.dtype)
            first = self.first.detach().index_select(1 if self.transposed else 0, index)
            for parameter, data in ((self.first, first), (self.second, second)):
                parameter.grad = None
                # A graph of before, kept by whoever holds a loss, remembers the shape that gradients are to have.
                # Only another dtype makes torch forget it.
                parameter.data = data.new_empty(
                    0, dtype=torch.float64 if data.dtype == torch.float32 else torch.float32
                )
                parameter.data = data
        self.set_gate(None)

    @torch.no_grad()
    def product(self) -> Tensor:
        """Q diag(gate) P, (outputs, inputs), multiplied in float32 or better, in the parameters' dtype."""
        second = self._gated_second()
        first = self.first.detach().to(second.dtype)
        return (second @ (first.t() if self.transposed else first)).to(self.second.dtype)

    def _taking_part(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """P, Q and gate, of the components that take part."""
        index = self._open
        if index is None or self._gate is None:
            return self.first, self.second, self._gate
        first = self.first.index_select(1 if self.transposed else 0, index)
        return first, self.second.index_select(1, index), self._gate.index_select(0, index)

    def _gated_second(self) -> Tensor:
        second = self.second.detach().to(torch.promote_types(self.second.dtype, torch.float32))
        return second if self._gate is None else second * self._gate.detach()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Gates follow the parameters to another device, never to another dtype: bfloat16 would lose small steps.
        super()._apply(fn, recurse)
        gate = self._gate
        if gate is not None and gate.device != self.second.device:
            self._gate = gate.detach().to(self.second.device).requires_grad_()
            self._open = None if self._open is None else self._open.to(self.second.device)
        return self


def check_index(index: Tensor, rank: int, caller: str) -> None:
    """Raise ValueError unless `index` names components of that many, at least one, and none twice."""
    if index.dim() != 1 or index.dtype != torch.int64 or not len(index):
        raise ValueError(
            f"{caller}: index of shape {tuple(index.shape)} and {index.dtype}; give int64 indices of at least one of "
            f"{rank} components."
        )
    if int(index.min()) < 0 or int(index.max()) >= rank or len(index.unique()) < len(index):
        raise ValueError(f"{caller}: index {index.tolist()}; give indices from 0 to {rank - 1}, none twice.")


def set_aside(module: nn.Module, name: str, other: nn.Module) -> None:
    """Make `other` an attribute of `module` without making it a part: it has no place in state dicts.

    A copy of the whole network copies both, and the copies belong together.
    """
    module.__dict__[name] = other


def weightless(module: nn.Module) -> nn.Module:
    """The module, its weight taken out."""
    module.register_parameter("weight", None)
    return module


def without_values(parameter: Tensor, shape: tuple[int, int]) -> Tensor:
    """A tensor of this shape and the parameter's dtype that holds nothing, for code that asks a weight for these.

    T5 asks for the dtype in every pass; to multiply the factors for that would cost more than the layer does.
    """
    return torch.empty(shape, dtype=parameter.dtype, device="meta")
