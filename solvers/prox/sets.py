"""Constraint sets as regularizers: the indicator is 0 on the set and inf outside, the prox is the projection.

Here: what all sets share, a fixed support, and the l0 ball. Sets of structured supports are in `structured_sets`,
convex balls in `balls`, bounded rank in `spectral`, and intersections in `dykstra`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from argprune.solvers.ilp.closed_form import keep_largest
from argprune.solvers.prox.base import check_step, load_cvxpy, widened
from argprune.solvers.registry import register


class SupportSet:
    """Base of the sets of sparse tensors: x is in the set where its support, the positions of nonzeros, is allowed.

    A subclass states which supports are allowed (`allows`; with a support, so are its subsets) and picks the best one
    (`select`). The projection keeps the entries of an allowed support with the largest sum of w_i^2 and zeroes the
    rest: the nearest point, for every step. In the diagonal metric of a tensor step it maximises the sum of
    w_i^2 / step_i instead (an entry of step 0 goes before all others); every set of this kind takes tensor steps.
    """

    convex: ClassVar[bool] = False
    separable: ClassVar[bool] = False
    indicator: ClassVar[bool] = True

    def allows(self, support: Tensor) -> Tensor:
        """0-dim boolean: whether the boolean tensor `support`, True = nonzero, is allowed."""
        raise NotImplementedError

    def select(self, scores: Tensor) -> Tensor:
        """Mask of an allowed support with the largest sum of squared scores; scores >= 0, at least one."""
        raise NotImplementedError

    def value(self, w: Tensor) -> Tensor:
        """0 if the support of w is allowed, else inf."""
        return indicator(self.allows(w.detach() != 0), w)

    def mask(self, w: Tensor, step: float | Tensor = 1.0) -> Tensor:
        """The support that the projection keeps: boolean, True = kept; ValueError where w holds NaN."""
        scores = _scores(type(self).__name__, w.detach(), step)
        if bool(torch.isnan(scores).any()):
            raise ValueError(f"{type(self).__name__}: the weights contain NaN, which cannot be ordered.")
        return self.select(scores) if w.numel() else torch.zeros_like(w, dtype=torch.bool)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Projection: the entries of the best allowed support, the rest zero."""
        # Adding 0 turns -0 into +0.
        return torch.where(self.mask(w, step), w.detach(), 0).add_(0.0)


@dataclass(frozen=True, eq=False)
class FixedSupport:
    """Tensors that are zero wherever `mask` is False.

    mask: boolean tensor of the weights' shape, True = kept. The projection zeroes the rest, for every step, a float or
    a tensor.
    """

    mask: Tensor
    _dropped: Tensor = field(init=False, repr=False)
    convex: ClassVar[bool] = True
    separable: ClassVar[bool] = True
    indicator: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool:
            raise TypeError(f"FixedSupport: mask is {self.mask.dtype}; give a boolean tensor, True = kept.")
        object.__setattr__(self, "_dropped", (~self.mask).contiguous())

    def value(self, w: Tensor) -> Tensor:
        """0 if w is zero outside the support, else inf."""
        return indicator(~((w.detach() != 0) & self._dropped).any(), w)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Projection: w with zeros outside the support."""
        return self.prox_(w.detach().clone(), step)

    def prox_(self, w: Tensor, step: float | Tensor, part: slice | None = None) -> Tensor:
        """Projection, in place; w holds the entries `part` of the flat tensor."""
        return w.masked_fill_(self._dropped if part is None else self._dropped.view(-1)[part], 0)

    def constraints(self, x: Any) -> list[Any]:
        """The same set of a CVXPY variable."""
        return [load_cvxpy().multiply(self._dropped.double().cpu().numpy(), x) == 0]


@register("constraints", "l0_ball", examples=[{"keep": 5}, {"keep": 0}, {"keep": 100}])
@dataclass(frozen=True)
class L0Ball(SupportSet):
    """Tensors with at most `keep` nonzeros; keep >= 0.

    The projection keeps the entries of largest magnitude (of largest w_i^2 / step_i for a tensor step), ties to the
    smaller flat index; exact for every step.
    """

    keep: int

    def __post_init__(self) -> None:
        check_count("L0Ball", "keep", self.keep, "the number of nonzeros")

    def allows(self, support: Tensor) -> Tensor:
        """At most `keep` nonzeros."""
        return support.sum() <= self.keep

    def select(self, scores: Tensor) -> Tensor:
        """The `keep` largest."""
        return keep_largest([scores], min(self.keep, scores.numel()))[0]


def indicator(inside: Tensor, w: Tensor) -> Tensor:
    """0 where the 0-dim boolean `inside` is True, else inf; in the dtype that values of w have."""
    return torch.where(inside, 0.0, torch.inf).to(widened(w).dtype)


def check_count(owner: str, name: str, value: int, what: str, least: int = 0) -> None:
    """Raise ValueError unless value is an integer >= least; `what` says what it counts."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{owner}: {name} {value}; {what} is an integer >= {least}.")


def scalar_step(owner: str, step: float | Tensor) -> float:
    """The step as a number; ValueError for a tensor of different steps, whose metric the closed form does not cover."""
    if isinstance(step, Tensor):
        if step.numel() == 0:
            return 1.0
        if not _constant(step):
            raise ValueError(
                f"{owner}: a step that differs from entry to entry; the prox is known for one step. Give a number."
            )
        step = float(step.flatten()[0])
    check_step(step)
    return step


def power_of_two(largest: Tensor) -> Tensor:
    """2^k with largest / 2 < 2^k <= largest, entry by entry; 1 for 0 and inf.

    Dividing by it is exact and leaves entries up to 2, so that squares neither overflow nor vanish.
    """
    usable = (largest > 0) & (largest < math.inf)
    mantissa = torch.frexp(largest).mantissa
    return torch.where(usable, largest / torch.where(usable, 2 * mantissa, 1), 1)


def _constant(step: Tensor) -> bool:
    return step.numel() <= 1 or bool((step == step.flatten()[0]).all())


def _scores(owner: str, w: Tensor, step: float | Tensor) -> Tensor:
    """What to keep the largest of: |w_i|, or |w_i| / sqrt(step_i) up to a common factor."""
    if not isinstance(step, Tensor):
        check_step(step)
        return w.abs()
    if not bool(((step >= 0) & (step < math.inf)).all()):
        raise ValueError(f"{owner}: step holds a negative entry, inf or NaN; a prox step is finite and >= 0.")
    if _constant(step):
        return w.abs()
    if step.shape != w.shape:
        raise ValueError(f"{owner}: step of shape {tuple(step.shape)}, weights of {tuple(w.shape)}. Give equal shapes.")
    magnitudes, steps = w.abs().double(), step.double()
    # Both are scaled below 2, so the least double stands for step 0: the quotient is finite, and above all others'.
    roots = (steps / power_of_two(steps.amax())).clamp(min=5e-324).sqrt()
    return magnitudes / power_of_two(magnitudes.amax()) / roots
