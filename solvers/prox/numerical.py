"""A prox for regularizers that give only their value: a 1-D global search, or a convex solver. Slow, and says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from argprune.solvers.prox.base import check_step, load_cvxpy

# Candidates a round, rounds: the bracket shrinks by 64 / 2 a round, from |w| to |w| * 2^-50.
_POINTS, _ROUNDS = 65, 10
_ENTRIES = 1 << 12


def with_prox(regularizer: Any) -> Any:
    """The regularizer itself where it has a prox, else with a numerical one.

    Raises ValueError where there is none either: a value that is neither separable nor convex with an expression.
    """
    if callable(getattr(regularizer, "prox", None)):
        return regularizer
    if not callable(getattr(regularizer, "value", None)):
        raise ValueError(f"{type(regularizer).__name__} has no `value`; a regularizer needs value(w), and prox(w, step).")
    if getattr(regularizer, "separable", False):
        return SearchedProx(regularizer)
    if getattr(regularizer, "convex", False) and hasattr(regularizer, "expression"):
        return SolvedProx(regularizer)
    raise ValueError(
        f"{type(regularizer).__name__} has no `prox`, and none can be computed: declare it `separable`, or `convex` with "
        "an `expression`."
    )


@dataclass(frozen=True)
class SearchedProx:
    """A separable regularizer whose prox is found entry by entry, by a search of the whole line between 0 and w.

    regularizer: `value` must work under torch.func.vmap, or it is called entry by entry. Between 0 and w lies the
    minimiser of every r that grows with |w|. The search refines around the best of 65 points, again and again: exact to
    about 1e-12 of |w| where r is convex or has a single dip between neighbouring points.
    """

    regularizer: Any
    separable: ClassVar[bool] = True
    slow: ClassVar[bool] = True

    @property
    def convex(self) -> bool:
        """As the regularizer declares."""
        return bool(getattr(self.regularizer, "convex", False))

    def __getattr__(self, name: str) -> Any:
        # Optional members (expression, distance, factors, groups) are those of the regularizer.
        if name.startswith("__") or name in ("regularizer", "prox_", "profile"):
            raise AttributeError(name)
        return getattr(self.regularizer, name)

    def value(self, w: Tensor) -> Tensor:
        """The regularizer's value."""
        value: Tensor = self.regularizer.value(w)
        return value

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """The minimiser over [0, w], entry by entry; float64 inside."""
        check_step(step)
        flat = w.detach().double().flatten()
        steps = torch.as_tensor(step, dtype=torch.float64, device=w.device).expand(w.shape).flatten()
        parts = [self._search(x, s) for x, s in zip(flat.split(_ENTRIES), steps.split(_ENTRIES), strict=True)]
        found = torch.cat(parts) if parts else flat
        found = torch.where(steps == 0, flat, found)
        return found.reshape(w.shape).to(w.dtype)

    def _search(self, w: Tensor, step: Tensor) -> Tensor:
        grid = torch.linspace(0, 1, _POINTS, dtype=torch.float64, device=w.device)
        low, high = torch.zeros_like(w), w.clone()
        best = torch.zeros_like(w)
        for _ in range(_ROUNDS):
            points = low[:, None] + (high - low)[:, None] * grid
            points = torch.cat([points, best[:, None]], dim=1)
            values = _elementwise(self.regularizer, points)
            # Subtracting w^2 / 2 leaves differences between candidates their digits.
            total = values * step[:, None] + points * (points / 2 - w[:, None])
            chosen = total.argmin(1, keepdim=True)
            best = points.gather(1, chosen).squeeze(1)
            width = (high - low) / (_POINTS - 1)
            lowest, highest = torch.minimum(torch.zeros_like(w), w), torch.maximum(torch.zeros_like(w), w)
            low = torch.clamp(best - width, lowest, highest)
            high = torch.clamp(best + width, lowest, highest)
        return best + 0.0


def _elementwise(regularizer: Any, points: Tensor) -> Tensor:
    """r at every entry of a tensor, from the value of one-entry tensors."""
    flat = points.flatten()
    try:
        values = torch.func.vmap(regularizer.value)(flat[:, None])
    except (RuntimeError, TypeError):
        # Data-dependent control flow: entry by entry.
        values = torch.stack([torch.as_tensor(regularizer.value(x[None])) for x in flat])
    return values.reshape(points.shape).double()


@dataclass(frozen=True)
class SolvedProx:
    """A convex regularizer whose prox is computed by cvxpy from its expression; to about 1e-7, for small tensors."""

    regularizer: Any
    convex: ClassVar[bool] = True
    slow: ClassVar[bool] = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("regularizer", "prox_", "profile"):
            raise AttributeError(name)
        return getattr(self.regularizer, name)

    def value(self, w: Tensor) -> Tensor:
        """The regularizer's value."""
        value: Tensor = self.regularizer.value(w)
        return value

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """The minimiser that Clarabel finds. Raises RuntimeError where it finds none."""
        check_step(step)
        if isinstance(step, Tensor):
            raise ValueError("a prox by a convex solver takes a number as its step.")
        if step == 0 or w.numel() == 0:
            return w.detach().clone()
        cvxpy = load_cvxpy()
        x = cvxpy.Variable(w.shape)
        target = w.detach().double().cpu().numpy()
        objective = self.regularizer.expression(x) + cvxpy.sum_squares(x - target) / (2 * step)
        problem = cvxpy.Problem(cvxpy.Minimize(objective))
        problem.solve(solver="CLARABEL")
        if x.value is None:
            raise RuntimeError(f"{type(self.regularizer).__name__}: the convex solver stopped with {problem.status}.")
        return torch.from_numpy(x.value).reshape(w.shape).to(w) + 0.0
