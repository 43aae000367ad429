"""Which teacher layer each student layer learns from, where there may be more of the teacher's.

    identity    i -> i                                    (as many)
    uniform     i -> (i + 1) T / S - 1                    (every k-th, rounded)
    learned     argmin over injective maps of  sum_i loss[i, map(i)]        (assignment problem, exactly)

Sources: dossier paper-pins-sparsebert, section 2.2 (uniform, which is the identity there); scipy's
`linear_sum_assignment` for the learned one.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from argprune.solvers.distillation.losses import state_loss
from argprune.solvers.distillation.projections import fit_projection
from argprune.solvers.distillation.states import States

LayerRule = Literal["identity", "uniform", "learned"]
LAYER_RULES = get_args(LayerRule)


def map_layers(rule: LayerRule, student: int, teacher: int, losses: Tensor | None = None) -> tuple[int, ...]:
    """The teacher's layer, counted from 0, for each of the student's.

    rule: "identity", "uniform" or "learned". student, teacher: numbers of layers. losses: of every pair, finite
    (student, teacher), for "learned" only.
    Raises ValueError for unequal numbers under "identity", and for a teacher with fewer layers.

    >>> map_layers("uniform", 3, 12)
    (3, 7, 11)
    >>> map_layers("learned", 2, 3, torch.tensor([[1.0, 0.0, 9.0], [9.0, 0.0, 2.0]]))
    (0, 1)
    """
    if rule not in LAYER_RULES:
        raise ValueError(f"layers {rule!r}; choose one of {', '.join(LAYER_RULES)}.")
    if rule == "identity" and student != teacher:
        raise ValueError(
            f"layers 'identity', but the student has {student} layers and the teacher {teacher}; take 'uniform' or "
            "'learned', or set hidden and attention to 0."
        )
    if student > teacher:
        raise ValueError(
            f"layers {rule!r}: the student has {student} layers, the teacher only {teacher}; set hidden and attention "
            "to 0, or take a deeper teacher."
        )
    if rule == "identity":
        return tuple(range(student))
    if rule == "uniform":
        return tuple(round((layer + 1) * teacher / student) - 1 for layer in range(student))
    assert losses is not None
    if losses.shape != (student, teacher) or not bool(losses.isfinite().all()):
        raise ValueError(f"losses {tuple(losses.shape)}: finite ones of ({student}, {teacher}) pairs are needed.")
    _, assigned = linear_sum_assignment(losses.double().numpy())
    return tuple(int(layer) for layer in assigned)


@torch.no_grad()
def layer_losses(student: States, teacher: States) -> Tensor:
    """Mean squared error of every student layer from every teacher layer on a batch, (student, teacher) layers.

    Between layers of different widths: what the best linear map leaves.
    """
    rows = []
    for own in student.layers:
        row = []
        for other in teacher.layers:
            seen = own
            if own.shape[-1] != other.shape[-1]:
                seen = own @ fit_projection(own, other, student.tokens).t().to(own)
            row.append(state_loss(seen, other, student.tokens))
        rows.append(torch.stack(row))
    return torch.stack(rows).cpu()
