"""A convex quadratic of six variables under a constraint, solved by ADMM and by an independent solver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from argprune.solvers.admm import Residuals, Split, Splitting
from argprune.solvers.prox import Box, Intersection, L1Ball, L2Ball, Simplex

SETS: dict[str, Any] = {
    "box": Box(-0.3, 0.4),
    "l1_ball": L1Ball(1.5),
    "l2_ball": L2Ball(0.8),
    "simplex": Simplex(2.0),
    "intersection": Intersection(L1Ball(1.5), Box(-0.3, 0.4)),
}
numbers = st.floats(-4, 4, width=32)
vectors = st.lists(numbers, min_size=6, max_size=6).map(lambda values: torch.tensor(values, dtype=torch.float64))
rhos = st.floats(0.1, 10)
relaxations = st.floats(1, 1.99)


def project(members: Any) -> Callable[[Tensor], Tensor]:
    return lambda w: members.prox(w, 1.0)


class Quadratic:
    """f(w) = w'Hw / 2 - b'w of six variables, with the exact W-step of ADMM and an independent constrained solver."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        root = torch.randn(9, 6, generator=generator, dtype=torch.float64)
        self.hessian = root.t() @ root / 9 + 0.1 * torch.eye(6, dtype=torch.float64)
        self.linear = torch.randn(6, generator=generator, dtype=torch.float64)

    def gradient(self, w: Tensor) -> Tensor:
        return self.hessian @ w - self.linear

    def value(self, w: Tensor) -> float:
        return float(w @ self.hessian @ w / 2 - self.linear @ w)

    def w_step(self, split: Split) -> Tensor:
        ridge = split.rho * torch.eye(6, dtype=torch.float64)
        return torch.linalg.solve(self.hessian + ridge, self.linear + split.rho * split.center)

    def minimiser(self, members: Any) -> Tensor:
        import cvxpy

        x = cvxpy.Variable(6)
        objective = cvxpy.quad_form(x, cvxpy.psd_wrap(self.hessian.numpy())) / 2 - self.linear.numpy() @ x
        cvxpy.Problem(cvxpy.Minimize(objective), members.constraints(x)).solve(
            solver=cvxpy.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9
        )
        return torch.tensor(x.value)

    def solve(
        self, members: Any, splitting: Splitting, rho: float = 1.0, most: int = 3000
    ) -> tuple[Tensor, Split, list[tuple[float, Residuals]]]:
        """W, the state, and rho with the residuals of every step, until both residuals are below 1e-8."""
        split = splitting.init(torch.zeros(6, dtype=torch.float64), rho, project(members))
        history: list[tuple[float, Residuals]] = []
        for _ in range(most):
            w, used = self.w_step(split), split.rho
            split, residuals = splitting.step(w, split, project(members))
            history.append((used, residuals))
            if max(residuals.primal, residuals.dual) < 1e-8:
                break
        return w, split, history
