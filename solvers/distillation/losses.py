"""The distances between a student and its teacher; padding counts in none of them.

    classes            tau^2 * mean over rows of  - sum_c softmax(z_T / tau)_c log softmax(z_S / tau)_c
    numbers            mean over rows of  (z_S - z_T)^2
    states             mean over real tokens and width of  (h_S - h_T)^2
    attention scores   mean over heads and pairs of real tokens of  (a_S - a_T)^2      (causal: keys not after queries)

Nothing flows back into the teacher. Source: dossier paper-pins-sparsebert, section 2.2; Hinton, Vinyals and Dean (2015)
for the temperature and its square, which keeps gradients at the scale of those of the labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

if TYPE_CHECKING:
    # At run time this would be a circle: methods import distillation.
    from argprune.solvers.methods.outputs import Prediction

# Scores that the released SparseBERT takes for masked ones.
_MASKED = -100.0


def soft_cross_entropy(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, possible: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the student's classes against the teacher's, softened by the temperature, times its square.

    student, teacher: logits (rows, C); temperature > 0; possible: bool (rows, C), False where a class cannot be, such
    as padding that a span cannot begin at. Returns the mean over rows, float32 or wider; 0 of no rows.

    >>> soft_cross_entropy(torch.zeros(1, 2), torch.tensor([[50.0, 0.0]])).item()  # log 2
    0.6931471824645996
    """
    own, soft = _wide(student) / temperature, _wide(teacher.detach()) / temperature
    if len(own) == 0:
        return own.sum()
    if possible is not None:
        # Finite for the student, whose logarithm is multiplied by the teacher's 0.
        own = own.masked_fill(~possible, torch.finfo(own.dtype).min)
        soft = soft.masked_fill(~possible, -torch.inf)
    return temperature**2 * functional.cross_entropy(own, soft.softmax(-1))


def prediction_loss(
    student: Prediction, teacher: Prediction, temperature: float = 1.0, *, literal: bool = False
) -> Tensor:
    """The distance of one output from the teacher's: `soft_cross_entropy`, or of numbers the mean squared error.

    student, teacher: of equal shape. temperature: > 0; of classes.
    literal: as SparseBERT was released: the mean over rows and classes, so a C-th of it, and numbers are held to their
    targets, not to the teacher.
    """
    if student.is_regression:
        held = student.targets if literal else teacher.logits.detach()
        if len(held) == 0:
            return student.logits.sum()
        return functional.mse_loss(_wide(student.logits), _wide(held))
    loss = soft_cross_entropy(student.logits, teacher.logits, temperature, student.possible)
    return loss / student.logits.shape[-1] if literal else loss


def state_loss(student: Tensor, teacher: Tensor, tokens: Tensor) -> Tensor:
    """Mean squared error of states over real tokens.

    student, teacher: (B, T, width); tokens: bool (B, T), at least one True.

    >>> one, real = torch.ones(1, 2, 3), torch.tensor([[True, False]])
    >>> state_loss(3 * one, one, real).item()  # the second token is padding
    4.0
    """
    _check_shapes("state_loss", student, teacher)
    return _masked_squared_error(student, teacher.detach(), tokens[..., None])


def score_loss(
    student: Tensor, teacher: Tensor, tokens: Tensor, *, causal: bool = False, literal: bool = False
) -> Tensor:
    """Mean squared error of raw attention scores over heads and pairs of real tokens.

    student, teacher: (B, heads, T, T); tokens: bool (B, T), at least one True; causal: leave out keys after the query.
    literal: as SparseBERT was released: keys that are padding, and scores <= -100, count as 0 on both sides, and the
    mean is over everything, queries that are padding included.
    """
    _check_shapes("score_loss", student, teacher)
    teacher = teacher.detach()
    keys = tokens[:, None, None, :]
    if literal:
        own, held = (_wide(scores).where(keys & (scores > _MASKED), 0) for scores in (student, teacher))
        return functional.mse_loss(own, held)
    pairs = keys & tokens[:, None, :, None]
    return _masked_squared_error(student, teacher, pairs.tril() if causal else pairs)


def _masked_squared_error(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean of squared differences where a mask, which may have sizes of 1, is True."""
    error: Tensor = _MaskedSquaredError.apply(student, teacher, mask)  # type: ignore[no-untyped-call]
    return error


class _MaskedSquaredError(torch.autograd.Function):
    """By hand: what autograd keeps and does takes twice the memory traffic, and there is a term for every layer."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        # A tensor: a number would have the device wait for each layer.
        count = mask.sum() * (student.numel() // mask.numel())
        difference = (_wide(student) - teacher).mul_(mask)
        ctx.save_for_backward(difference, count)
        ctx.dtype = student.dtype
        mean: Tensor = torch.linalg.vector_norm(difference).square() / count
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        difference, count = ctx.saved_tensors
        return (difference * (2 * gradient / count)).to(ctx.dtype), None, None


def _wide(tensor: Tensor) -> Tensor:
    """At least float32: autocast hands out halves."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _check_shapes(what: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"{what}: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}; they must agree. Other widths "
            "take a projection; other numbers of heads cannot be compared."
        )
