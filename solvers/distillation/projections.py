"""Linear maps from the student's width to the teacher's, learned beside the student and left behind with the teacher.

P_0 = argmin_P  sum over real tokens of  ||P h_S - h_T||^2  +  ridge ||P||^2          (where they start)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from argprune.solvers.distillation.states import States

# Of the mean squared student state: enough for a unique answer where there are fewer tokens than dimensions.
_RIDGE = 1e-4


class Projections(nn.Module):
    """One map for the embedding's output and one for each layer's, without bias; weights (teacher, student) widths."""

    def __init__(self, student: States, teacher: States) -> None:
        """Start from the least-squares fit on a batch on which both states are known, layer by layer."""
        super().__init__()
        pairs = zip(_all(student), _all(teacher), strict=True)
        self.maps = nn.ParameterList([nn.Parameter(fit_projection(own, held, student.tokens)) for own, held in pairs])

    def forward(self, states: States) -> States:
        """The student's states in the teacher's width; attention scores have none and stay."""
        projected = [state @ weight.t() for state, weight in zip(_all(states), self.maps, strict=True)]
        embedding = None if states.embedding is None else projected.pop(0)
        return States(states.tokens, embedding, projected, states.scores, states.causal)


@torch.no_grad()
def fit_projection(student: Tensor, teacher: Tensor, tokens: Tensor) -> Tensor:
    """The linear map from student to teacher states with the least squared error over real tokens.

    student: (B, T, width_S); teacher: (B, T, width_T); tokens: bool (B, T). Returns (width_T, width_S), of the
    student's dtype.
    """
    own, held = student[tokens].double(), teacher[tokens].double()
    gram = own.t() @ own
    # Of zero states any map is the best; this one is zero.
    ridge = (_RIDGE * gram.diagonal().mean()).clamp_min(torch.finfo(torch.float64).tiny)
    gram.diagonal().add_(ridge)
    fit: Tensor = torch.linalg.solve(gram, own.t() @ held)
    return fit.t().to(student.dtype).contiguous()


def _all(states: States) -> list[Tensor]:
    return [*(() if states.embedding is None else (states.embedding,)), *states.layers]
