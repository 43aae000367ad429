"""Objectives of the prox problem, evaluated for many candidates at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EPSILON = torch.finfo(torch.float64).eps


def batchable(operator: Any, w: Tensor) -> bool:
    """Whether `value` can be evaluated for a whole stack of tensors like w at a time."""
    return _batched(operator, w.unsqueeze(0)) is not None


def _batched(operator: Any, stack: Tensor) -> Tensor | None:
    try:
        result = torch.func.vmap(operator.value)(stack)
    except Exception:
        # vmap refuses in many ways (NumPy, data-dependent branches). What is wrong with `value` itself shows when it is
        # called for one tensor.
        return None
    return result if isinstance(result, Tensor) and result.shape == stack.shape[:1] else None


def values(operator: Any, stack: Tensor) -> Tensor:
    """R of every tensor in a stack (candidates first), float64, 1-D; in one call where the operator can be batched."""
    if len(stack) == 0:
        return stack.new_zeros(0, dtype=torch.float64)
    batched = _batched(operator, stack)
    if batched is not None:
        return batched.detach().double()
    return torch.stack([torch.as_tensor(operator.value(w)).detach().double().reshape(()) for w in stack])


def objectives(operator: Any, stack: Tensor, w: Tensor, step: float) -> Tensor:
    """R(x) + ||x - w||^2 / (2 step) of every x in a stack, float64."""
    squares = (stack.double() - w.double()).square().flatten(1).sum(1)
    return values(operator, stack) + squares / (2 * step)


def objective(operator: Any, x: Tensor, w: Tensor, step: float) -> float:
    """R(x) + ||x - w||^2 / (2 step)."""
    return float(objectives(operator, x.unsqueeze(0), w, step))


def rounding(w: Tensor, step: float, level: float) -> float:
    """What float64 rounding may do to an objective of about `level` at inputs like w."""
    spread = float(w.double().square().sum()) / (2 * step)
    return 16 * EPSILON * max(1, w.numel()) * (abs(level) + spread)
