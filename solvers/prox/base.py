"""What a regularizer is: an immutable, pure function with a proximal operator, independent of any layer."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

# Entries that elementwise passes take at a time: few enough to stay in a core's cache, enough to hide the calls.
CHUNK = 1 << 17


@runtime_checkable
class Regularizer(Protocol):
    """A function R of a tensor with prox(w, step) = argmin_x R(x) + ||x - w||^2 / (2 step).

    Optional members: `distance(w, grad)`, `expression(x)` where convex, `factors(w)` where concave, and
    `prox_(w, step)`, the in-place form that optimizer steps use when it is there. Where `separable` is True,
    `prox_(w, step, part)` is asked for entries `part` (a slice of the flattened tensor) alone, which w and step hold.
    """

    def value(self, w: Tensor) -> Tensor:
        """R(w) as a 0-dim tensor; a set's indicator gives 0 or inf."""

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """A new tensor shaped like w; `step` >= 0, a float or a tensor (diagonal metric) shaped like w."""


def apply_prox_(regularizer: Regularizer, w: Tensor, step: float | Tensor) -> Tensor:
    """Replace w by its prox, in place where the regularizer can; returns w."""
    in_place = getattr(regularizer, "prox_", None)
    if in_place is not None:
        in_place(w, step)
    else:
        w.copy_(regularizer.prox(w, step))
    return w
