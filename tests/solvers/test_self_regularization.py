"""The self-regularization term against its definition, row by row."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from argprune.solvers.methods import Prediction
from argprune.solvers.methods.self_regularization import SelfRegularization, confidence


def classes(rows: int, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.randint(width, (rows,), generator=generator)


def loss_of_a_row(student: Tensor, teacher: Tensor, target: int, weight: float | str, tau: float) -> float:
    """Section 1.5 of the dossier in plain Python."""

    def softmax(values: list[float]) -> list[float]:
        powers = [math.exp(value - max(values)) for value in values]
        return [power / sum(powers) for power in powers]

    z, snapshot = student.tolist(), teacher.tolist()
    p = softmax(z)
    alpha = 1 + sum(q * math.log(q) for q in p) / math.log(len(p)) if weight == "adaptive" else float(weight)
    soft, held = softmax([v / tau for v in snapshot]), softmax([v / tau for v in z])
    regularizer = -(tau**2) * sum(q * math.log(r) for q, r in zip(soft, held, strict=True))
    return alpha * regularizer - (1 - alpha) * math.log(p[target])


@given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 99), st.sampled_from(["adaptive", 0.0, 0.3, 1.0]))
def test_task_loss_plus_term_is_the_loss(rows: int, width: int, seed: int, weight: Any) -> None:
    student, teacher, targets = classes(rows, width, seed)
    term = SelfRegularization(weight=weight).term([Prediction(student, targets)], [Prediction(teacher, targets)])
    triples = zip(student, teacher, targets.tolist(), strict=True)
    expected = [loss_of_a_row(z, snapshot, y, weight, 2.0) for z, snapshot, y in triples]
    total = functional.cross_entropy(student, targets) + term
    assert float(total) == pytest.approx(sum(expected) / rows, rel=1e-4, abs=1e-5)


def test_confidence_is_0_for_uniform_rows_and_1_for_certain_ones() -> None:
    assert confidence(torch.zeros(3, 4)).tolist() == [0, 0, 0]
    assert confidence(torch.tensor([[200.0, 0, 0]])).tolist() == [1]
    assert 0 < float(confidence(torch.tensor([[1.0, 0, 0]]))) < 1


def test_the_gradient_is_that_of_the_divergence() -> None:
    student, teacher, targets = classes(4, 3, 0)
    student.requires_grad_()
    rule = SelfRegularization(weight=1.0, temperature=3.0)
    term = rule.term([Prediction(student, targets)], [Prediction(teacher, targets)])
    [total] = torch.autograd.grad(term + functional.cross_entropy(student, targets), student)
    divergence = 9 * functional.kl_div((student / 3).log_softmax(-1), (teacher / 3).softmax(-1), reduction="batchmean")
    [expected] = torch.autograd.grad(divergence, student)
    assert torch.allclose(total.double(), expected, atol=1e-6)


def test_neither_the_weight_nor_the_snapshot_has_a_gradient() -> None:
    student, teacher, targets = classes(5, 3, 1)
    teacher.requires_grad_()
    student.requires_grad_()
    term = SelfRegularization().term([Prediction(student, targets)], [Prediction(teacher, targets)])
    term.backward()
    assert teacher.grad is None
    fixed = confidence(student)
    held = 4 * functional.cross_entropy(student / 2, (teacher / 2).softmax(-1).detach(), reduction="none")
    task = functional.cross_entropy(student, targets, reduction="none")
    [expected] = torch.autograd.grad((fixed * (held - task)).mean(), student)
    assert student.grad is not None
    assert torch.allclose(student.grad, expected, atol=1e-6)


@pytest.mark.parametrize(("weight", "share"), [("adaptive", 0.5), (0.25, 0.25)])
def test_numbers_are_held_by_squared_error(weight: Any, share: float) -> None:
    student, teacher, targets = torch.randn(3, 7).unbind()
    term = SelfRegularization(weight=weight).term([Prediction(student, targets)], [Prediction(teacher, targets)])
    total = (student - targets).square().mean() + term
    expected = share * (student - teacher).square().mean() + (1 - share) * (student - targets).square().mean()
    assert float(total) == pytest.approx(float(expected), rel=1e-5)


def test_a_span_counts_as_the_mean_of_start_and_end() -> None:
    first, second = classes(4, 6, 2), classes(4, 6, 3)
    rule = SelfRegularization()
    both = rule.term(
        [Prediction(z, y) for z, _, y in (first, second)], [Prediction(t, y) for _, t, y in (first, second)]
    )
    single = [rule.term([Prediction(z, y)], [Prediction(t, y)]) for z, t, y in (first, second)]
    assert float(both) == pytest.approx(float(sum(single)) / 2, rel=1e-6)


def test_a_batch_without_labels_adds_nothing() -> None:
    empty = Prediction(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert float(SelfRegularization().term([empty], [empty])) == 0


@pytest.mark.parametrize(("sparsity", "milestone"), [(0.0, 0), (0.29, 0), (0.3, 1), (0.6, 2), (0.899, 2), (0.9, 3)])
def test_milestones_are_multiples_of_the_final_sparsity(sparsity: float, milestone: int) -> None:
    assert SelfRegularization(milestones=3).milestone(sparsity, 0.9) == milestone
    assert SelfRegularization().milestone(0.0, 0.0) == 0
