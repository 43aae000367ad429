"""AdamW's step and the prox after it in one compiled pass: weights, gradients and moments are read once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from argprune.solvers.prox.base import Formula
from argprune.solvers.prox.fused import kernel

_UNUSUAL = ("amsgrad", "maximize", "capturable", "differentiable")


def takes(optimizer: Optimizer, group: dict[str, Any], parameter: Tensor) -> bool:
    """Whether `adam_and_prox_` does what this optimizer would do to this parameter now."""
    if type(optimizer) not in (Adam, AdamW) or any(group.get(name) for name in _UNUSUAL):
        return False
    if isinstance(group["lr"], Tensor) or getattr(optimizer, "found_inf", None) is not None:
        return False
    state = optimizer.state.get(parameter, {})
    if parameter.grad is None or "exp_avg_sq" not in state:
        return False
    tensors = (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
    return all(t.is_contiguous() and t.dtype == torch.float32 for t in tensors)


@torch.no_grad()
def adam_and_prox_(
    parameter: Tensor,
    gradient: Tensor,
    state: dict[str, Any],
    group: dict[str, Any],
    formula: Formula,
    step: float,
    metric: bool,
) -> None:
    """Take the step of torch's Adam or AdamW, state included, then replace the parameter by its prox.

    step: the prox step, > 0; where `metric`, its numerator, and the step is step / (sqrt(v_hat) + eps) entry by entry.
    """
    state["step"] += 1
    count, rate, eps = float(state["step"]), float(group["lr"]), float(group["eps"])
    (beta1, beta2), decay = group["betas"], float(group["weight_decay"])
    root = (1 - beta2**count) ** 0.5
    decoupled = bool(group.get("decoupled_weight_decay", False))
    scalars = [
        1 - rate * decay if decoupled else 1.0,
        0.0 if decoupled else decay,
        1 - beta1,
        beta2,
        1 - beta2,
        root,
        eps,
        rate / (1 - beta1**count),
        step * root if metric else step,
        eps * root,
    ]
    numbers = torch.tensor(scalars, dtype=torch.float32, device=parameter.device)
    view, data = formula.view, parameter.data
    kernel(_adam_metric if metric else _adam, formula.function)(
        view(data), view(gradient), view(state["exp_avg"]), view(state["exp_avg_sq"]), numbers, *formula.constants
    )


@torch.no_grad()
def metric_prox_(w: Tensor, second: Tensor, rate: float, eps: float, root: float, formula: Formula) -> None:
    """Replace w by its prox with the step rate / (sqrt(second) / root + eps), entry by entry."""
    numbers = torch.tensor([rate * root, eps * root], dtype=torch.float32, device=w.device)
    kernel(_metric, formula.function)(formula.view(w), formula.view(second), numbers, *formula.constants)


def _adam(
    function: Callable[..., Tensor], w: Tensor, g: Tensor, m: Tensor, v: Tensor, numbers: Tensor, *constants: Tensor
) -> None:
    stepped, _ = _adam_step(w, g, m, v, numbers)
    w.copy_(function(stepped, numbers[8], *constants))


def _adam_metric(
    function: Callable[..., Tensor], w: Tensor, g: Tensor, m: Tensor, v: Tensor, numbers: Tensor, *constants: Tensor
) -> None:
    stepped, root = _adam_step(w, g, m, v, numbers)
    w.copy_(function(stepped, numbers[8] / (root + numbers[9]), *constants))


def _adam_step(w: Tensor, g: Tensor, m: Tensor, v: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """The stepped weights and the root of the second moment; m and v are updated. The order is torch's."""
    keep, decay, rise1, beta2, rise2, root, eps, size = (numbers[i] for i in range(8))
    g = g + decay * w
    first = m + rise1 * (g - m)
    second = v * beta2 + rise2 * (g * g)
    m.copy_(first)
    v.copy_(second)
    deviation = second.sqrt()
    return w * keep - size * (first / (deviation / root + eps)), deviation


def _metric(function: Callable[..., Tensor], w: Tensor, second: Tensor, numbers: Tensor, *constants: Tensor) -> None:
    w.copy_(function(w, numbers[0] / (second.sqrt() + numbers[1]), *constants))
