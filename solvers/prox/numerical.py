"""A prox for regularizers that give only their value: a 1-D global search, or a convex solver. Slow, and says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from argprune.solvers.prox.base import check_step, load_cvxpy, widened

# A round shrinks the bracket by (points - 1) / 2: twelve by 2^36, beyond what the objective's digits resolve.
_POINTS, _ROUNDS, _DIPS = 17, 12, 3
_ENTRIES = 1 << 12


def with_prox(regularizer: Any) -> Any:
    """The regularizer itself where it has a prox, else with a numerical one.

    Raises ValueError where there is none either: a value that is neither separable nor convex with an expression.
    """
    if callable(getattr(regularizer, "prox", None)):
        return regularizer
    if not callable(getattr(regularizer, "value", None)):
        raise ValueError(
            f"{type(regularizer).__name__} has no `value`; a regularizer needs value(w), and prox(w, step)."
        )
    if getattr(regularizer, "separable", False):
        return SearchedProx(regularizer)
    if getattr(regularizer, "convex", False) and hasattr(regularizer, "expression"):
        return SolvedProx(regularizer)
    raise ValueError(
        f"{type(regularizer).__name__} has no `prox`, and none can be computed: declare it `separable`, or `convex` "
        "with an `expression`."
    )


@dataclass(frozen=True)
class _Numerical:
    """What stands in for a regularizer without a prox; facts and optional members are the regularizer's own."""

    regularizer: Any
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
        """The regularizer's value, in float32 at least."""
        value: Tensor = self.regularizer.value(widened(w))
        return value


@dataclass(frozen=True)
class SearchedProx(_Numerical):
    """A separable regularizer whose prox is found entry by entry, by a search of the whole line between 0 and w.

    regularizer: `value` must work under torch.func.vmap, or it is called entry by entry. Between 0 and w lies the
    minimiser of every r that grows with |w|. The three best dips of a first grid are refined, and 0 is always compared:
    the objective is minimal to its last digits wherever no dip falls between two neighbouring points of the grid.
    """

    separable: ClassVar[bool] = True

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """The minimiser over [0, w], entry by entry; float64 inside."""
        check_step(step)
        flat = w.detach().double().flatten()
        steps = torch.as_tensor(step, dtype=torch.float64, device=w.device).expand(w.shape).flatten()
        parts = [
            self._search(x, s) for x, s in zip(torch.split(flat, _ENTRIES), torch.split(steps, _ENTRIES), strict=True)
        ]
        found = torch.cat(parts) if parts else flat
        found = torch.where(steps == 0, flat, found)
        return found.reshape(w.shape).to(w.dtype)

    def _search(self, w: Tensor, step: Tensor) -> Tensor:
        def objective(x: Tensor) -> Tensor:
            # Less w^2 / 2, which leaves differences between candidates their digits.
            return _elementwise(self.regularizer, x) * step[:, None] + x * (x / 2 - w[:, None])

        grid = _first_grid(w.device)
        points = w[:, None] * grid
        total = objective(points)
        # A dip is a point below both neighbours; several may hide the minimum, so that the best few are followed.
        edge = torch.full_like(total[:, :1], torch.inf)
        before, after = torch.cat([edge, total[:, :-1]], 1), torch.cat([total[:, 1:], edge], 1)
        dips = torch.where((total <= before) & (total <= after), total, torch.inf)
        chosen = dips.topk(_DIPS, largest=False).indices
        found = torch.zeros_like(w)[:, None]
        for dip in chosen.unbind(1):
            low = points.gather(1, (dip - 1).clamp(min=0)[:, None]).squeeze(1)
            high = points.gather(1, (dip + 1).clamp(max=len(grid) - 1)[:, None]).squeeze(1)
            found = torch.cat([found, self._refined(objective, low, high)[:, None]], 1)
        best = objective(found).argmin(1, keepdim=True)
        return found.gather(1, best).squeeze(1) + 0.0

    @staticmethod
    def _refined(objective: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
        inner = torch.linspace(0, 1, _POINTS, dtype=torch.float64, device=low.device)
        best = low
        for _ in range(_ROUNDS):
            points = low[:, None] + (high - low)[:, None] * inner
            chosen = objective(points).argmin(1, keepdim=True)
            best = points.gather(1, chosen).squeeze(1)
            low = points.gather(1, (chosen - 1).clamp(min=0)).squeeze(1)
            high = points.gather(1, (chosen + 1).clamp(max=_POINTS - 1)).squeeze(1)
        return best


def _first_grid(device: torch.device) -> Tensor:
    """Fractions of w: evenly spaced, and geometric towards 0 for minima much smaller than w."""
    even = torch.linspace(0, 1, 65, dtype=torch.float64, device=device)
    small = torch.logspace(-15, -2, 64, dtype=torch.float64, device=device)
    return torch.cat([even, small]).sort().values


def _elementwise(regularizer: Any, points: Tensor) -> Tensor:
    """r at every entry of a tensor, from the value of one-entry tensors."""
    flat = points.flatten()
    if flat.numel() == 0:
        return points
    try:
        values = torch.func.vmap(regularizer.value)(flat[:, None])
    except (RuntimeError, TypeError):
        # Data-dependent control flow: entry by entry.
        values = torch.stack([torch.as_tensor(regularizer.value(x[None])) for x in flat])
    elementwise: Tensor = values.reshape(points.shape).double()
    return elementwise


@dataclass(frozen=True)
class SolvedProx(_Numerical):
    """A convex regularizer whose prox is computed by cvxpy from its expression; to about 1e-7, for small tensors."""

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
