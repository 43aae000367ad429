"""What a regularizer is: an immutable, pure function with a proximal operator, independent of any layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

# Entries that elementwise passes take at a time: few enough that their temporaries stay in the cache and the allocator
# keeps them, enough to hide the calls' overhead.
CHUNK = 1 << 16
# The same for passes that allocate nothing: the calls' overhead is all that there is to hide.
LONG_CHUNK = 1 << 18
# Bytes from which a new tensor is worth huge pages.
_LARGE = 1 << 22


@runtime_checkable
class Regularizer(Protocol):
    """A function R of a tensor with prox(w, step) = argmin_x R(x) + ||x - w||^2 / (2 step).

    Optional members: `distance(w, grad)`, `expression(x)` where convex, `factors(w)` where concave, `formula()`, the
    prox as an expression to compile (or None), and `prox_(w, step)`, the in-place form that optimizer steps use when it
    is there. Where `separable` is True, `prox_(w, step, part)` is asked for entries `part` (a slice of the flattened
    tensor) alone, which w and step hold; that step may be overwritten.

    Facts are class variables: `convex`, `separable` (R(w) = sum_i r_i(w_i)); False where absent.
    """

    def value(self, w: Tensor) -> Tensor:
        """R(w) as a 0-dim tensor; a set's indicator gives 0 or inf."""

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """A new tensor shaped like w; `step` >= 0, a float or a tensor (diagonal metric) shaped like w."""


class Formula(NamedTuple):
    """A prox for step > 0 as one expression: function(view(w), tau, *constants), without checks or chunks.

    function: of tensors, equal and hashable for equal operators; tau: float64 0-dim or, where `entrywise`, shaped like
    view(w). constants: tensors. view: what reshapes w for the function, without a copy.
    """

    function: Callable[..., Tensor]
    constants: tuple[Tensor, ...] = ()
    view: Callable[[Tensor], Tensor] = torch.ravel
    entrywise: bool = True


class Penalty:
    """Base of the separable regularizers of magnitudes: R(w) = sum_i r(|w_i|) with r(0) = 0, r nondecreasing.

    A subclass states r, its derivative and its prox on magnitudes u >= 0, elementwise and in u's dtype. Everything
    else follows: tensors of any shape, bfloat16 and float16 computed in float32, scalar and tensor steps. The same
    three functions, applied to the norms of groups, give the group penalties.
    """

    convex: ClassVar[bool] = False
    separable: ClassVar[bool] = True

    def profile(self, u: Tensor) -> Tensor:
        """r(u), entry by entry."""
        raise NotImplementedError

    def slope(self, u: Tensor) -> Tensor:
        """r'(u), entry by entry; at 0 the right derivative, which may be inf."""
        raise NotImplementedError

    def shrink(self, u: Tensor, step: float | Tensor) -> Tensor:
        """argmin over v >= 0 of r(v) + (v - u)^2 / (2 step), entry by entry; step > 0, a float or a tensor like u."""
        raise NotImplementedError

    def value(self, w: Tensor) -> Tensor:
        """sum_i r(|w_i|); float32 for narrower dtypes."""
        return self.profile(widened(w).abs()).sum()

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """The global minimiser, entry by entry, for every step >= 0."""
        return self._prox_into(w.detach(), step, fresh(w))

    def prox_(self, w: Tensor, step: float | Tensor, part: slice | None = None) -> Tensor:
        """The same, in place; which entries w holds (`part`) changes nothing."""
        return self._prox_into(w, step, w)

    def _prox_into(self, w: Tensor, step: float | Tensor, out: Tensor) -> Tensor:
        check_step(step)
        if not isinstance(step, Tensor) and step == 0:
            return torch.add(w, 0.0, out=out)
        for piece, tau, target in pieces(w, step, out):
            wide = widened(piece)
            # Adding 0 turns the -0 that a negative entry leaves, if only by rounding to a narrow dtype, into +0.
            target.copy_(self.shrink(wide.abs(), tau).copysign_(wide)).add_(0.0)
        return out

    def formula(self) -> Formula:
        """The prox as one expression."""
        return Formula(_PenaltyProx(self))

    def distance(self, w: Tensor, grad: Tensor) -> Tensor:
        """Distance of -grad to the (limiting) subdifferential at w, entry by entry; 0 where stationary."""
        w, grad = widened(w), widened(grad)
        slope = self.slope(w.abs())
        return torch.where(w == 0, (grad.abs() - slope).clamp(min=0), (grad + slope * w.sign()).abs())

    def factors(self, w: Tensor) -> Tensor:
        """Slopes of the tangent at |w|: for a concave r, sum_i factors_i |w_i| majorises R up to a constant."""
        return self.slope(w.detach().abs())


@dataclass(frozen=True)
class _PenaltyProx:
    penalty: Penalty

    def __call__(self, w: Tensor, tau: Tensor) -> Tensor:
        return self.penalty.shrink(w.abs(), tau).copysign(w) + 0.0


def formula_of(regularizer: Any) -> Formula | None:
    """The prox as one expression, where the regularizer has one."""
    found: Formula | None = regularizer.formula() if hasattr(regularizer, "formula") else None
    return found


def fresh(w: Tensor) -> Tensor:
    """A new contiguous tensor like w, its entries not set."""
    if w.device.type == "cpu" and w.numel() * w.element_size() >= _LARGE and w.dtype in (torch.float32, torch.float64):
        # NumPy asks the kernel for huge pages; a pass into fresh memory otherwise spends its time in page faults.
        return torch.from_numpy(np.empty(w.shape, dtype=np.float32 if w.dtype == torch.float32 else np.float64))
    return torch.empty_like(w, memory_format=torch.contiguous_format, requires_grad=False)


def widened(w: Tensor) -> Tensor:
    """w in the dtype that operators compute in: float32 for bfloat16 and float16, else its own."""
    return w.float() if w.dtype in (torch.bfloat16, torch.float16) else w


def pieces(w: Tensor, step: float | Tensor, out: Tensor) -> Iterator[tuple[Tensor, float | Tensor, Tensor]]:
    """w, step and out in parts that stay in the cache where the layout allows, else in one; all parts are views."""
    if isinstance(step, Tensor) and step.dtype != w.dtype and w.dtype in (torch.float32, torch.float64):
        step = step.to(w.dtype)
    wide = widened(step) if isinstance(step, Tensor) else step
    if not (_chunked(w) and out.is_contiguous()):
        yield w, wide, out
        return
    parts, targets = torch.split(w.view(-1), CHUNK), torch.split(out.view(-1), CHUNK)
    if not isinstance(wide, Tensor) or wide.numel() == 1:
        yield from ((part, wide, target) for part, target in zip(parts, targets, strict=True))
    elif wide.shape == w.shape and wide.is_contiguous():
        yield from zip(parts, torch.split(wide.view(-1), CHUNK), targets, strict=True)
    else:
        yield w, wide, out


def _chunked(w: Tensor) -> bool:
    return w.device.type == "cpu" and w.is_contiguous() and w.numel() > CHUNK


def apply_prox_(regularizer: Regularizer, w: Tensor, step: float | Tensor) -> Tensor:
    """Replace w by its prox, in place where the regularizer can; returns w."""
    in_place = getattr(regularizer, "prox_", None)
    if in_place is not None:
        in_place(w, step)
    else:
        w.copy_(regularizer.prox(w, step))
    return w


def check_step(step: float | Tensor) -> None:
    """Raise ValueError for a number that is no prox step; tensors are taken at their word, to stay free of a pass."""
    if not isinstance(step, Tensor) and not 0 <= step < float("inf"):
        raise ValueError(f"step {step}; a prox step is finite and >= 0.")


def check_parameter(owner: str, name: str, value: float, *, above: float = 0.0, strict: bool = False) -> None:
    """Raise ValueError unless value is finite and >= above (> above where strict)."""
    if not ((value > above if strict else value >= above) and value < float("inf")):
        raise ValueError(f"{owner}: {name} {value}; it must be finite and {'>' if strict else '>='} {above:g}.")


def load_cvxpy() -> Any:
    """The cvxpy module. Raises ImportError that names the extra to install."""
    try:
        import cvxpy
    except ImportError as error:
        raise ImportError("expression needs cvxpy: pip install 'argprune[exact]'.") from error
    return cvxpy
