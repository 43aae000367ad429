"""Distillation losses against sums done by hand and torch's own, layer maps against all of them, projections."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from argprune.solvers.distillation import (
    Distillation,
    Projections,
    States,
    fit_projection,
    layer_losses,
    map_layers,
    prediction_loss,
    score_loss,
    soft_cross_entropy,
    state_loss,
)
from argprune.solvers.methods import Outputs, Prediction

B, T, WIDTH, HEADS, LAYERS = 3, 5, 4, 2, 3
seeds = st.integers(0, 2**16)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def padded(lengths: Sequence[int], width: int = T) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def states(seed: int, tokens: Tensor, width: int = WIDTH, layers: int = LAYERS, *, causal: bool = False) -> States:
    rows, length = tokens.shape
    hidden = [normal(rows, length, width, seed=100 * seed + i).requires_grad_() for i in range(layers + 1)]
    scores = [normal(rows, HEADS, length, length, seed=900 + 100 * seed + i).requires_grad_() for i in range(layers)]
    return States(tokens, hidden[0], hidden[1:], scores, causal)


# Logits


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_soft_cross_entropy_has_the_gradient_of_kl_and_its_value_up_to_the_entropy(temperature: float) -> None:
    student, teacher = normal(6, 4).requires_grad_(), normal(6, 4, seed=1)
    own, soft = (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    divergence = temperature**2 * functional.kl_div(own, soft, log_target=True, reduction="batchmean")
    entropy = -(temperature**2) * (soft.exp() * soft).sum(-1).mean()
    loss = soft_cross_entropy(student, teacher, temperature)
    torch.testing.assert_close(loss, divergence + entropy)
    [wanted] = torch.autograd.grad(divergence, student)
    [found] = torch.autograd.grad(loss, student)
    torch.testing.assert_close(found, wanted)


def test_soft_cross_entropy_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[3.0, 3.0], [99.0, 0.0]])
    by_hand = (0.6931472 + 0.3132617) / 2
    assert float(soft_cross_entropy(student, teacher)) == pytest.approx(by_hand, rel=1e-6)


def test_a_certain_teacher_is_a_label() -> None:
    student, labels = normal(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    loss = soft_cross_entropy(student, 1e4 * functional.one_hot(labels, 4))
    torch.testing.assert_close(loss, functional.cross_entropy(student, labels))


@given(seed=seeds, temperature=st.floats(0.25, 4))
def test_no_student_is_better_than_one_that_agrees(seed: int, temperature: float) -> None:
    teacher = 3 * normal(4, 5, seed=seed)
    best = soft_cross_entropy(teacher + 7, teacher, temperature)
    other = soft_cross_entropy(teacher + 0.1 * normal(4, 5, seed=seed + 1), teacher, temperature)
    # Rounding of float32 cross-entropies of a few units.
    assert float(best) <= float(other) + 1e-5 * float(best)


def test_padding_is_no_class() -> None:
    possible = padded([3, 5])
    student, teacher = normal(2, 5).requires_grad_(), normal(2, 5, seed=1)
    loss = soft_cross_entropy(student, teacher, 2.0, possible)
    alone = [soft_cross_entropy(student[i : i + 1, :n], teacher[i : i + 1, :n], 2.0) for i, n in ((0, 3), (1, 5))]
    torch.testing.assert_close(loss, torch.stack(alone).mean())
    [gradient] = torch.autograd.grad(loss, student)
    assert bool(gradient.isfinite().all())
    assert gradient[0, 3:].tolist() == [0, 0]


def test_prediction_losses_by_kind() -> None:
    logits, held, targets = normal(4), normal(4, seed=1), normal(4, seed=2)
    number, teacher = Prediction(logits, targets), Prediction(held, targets)
    torch.testing.assert_close(prediction_loss(number, teacher), functional.mse_loss(logits, held))
    torch.testing.assert_close(prediction_loss(number, teacher, literal=True), functional.mse_loss(logits, targets))
    classes = Prediction(normal(4, 3), torch.tensor([0, 1, 2, 0]))
    soft = Prediction(normal(4, 3, seed=1), classes.targets)
    # The released code's own line: the mean over rows and classes.
    released = (-soft.logits.softmax(-1) * classes.logits.log_softmax(-1)).mean()
    torch.testing.assert_close(prediction_loss(classes, soft, literal=True), released)
    torch.testing.assert_close(prediction_loss(classes, soft), 3 * released)


@pytest.mark.parametrize("regression", [False, True])
def test_no_rows_cost_nothing(regression: bool) -> None:
    logits = torch.zeros((0,) if regression else (0, 3), requires_grad=True)
    empty = Prediction(logits, torch.zeros(0) if regression else torch.zeros(0, dtype=torch.long))
    loss = prediction_loss(empty, empty)
    assert float(loss.detach()) == 0
    loss.backward()


# States and scores


def test_state_loss_by_hand() -> None:
    student = torch.tensor([[[1.0, 2.0], [0.0, 0.0], [50.0, 50.0]]])
    teacher = torch.tensor([[[0.0, 0.0], [0.0, 3.0], [0.0, 0.0]]])
    assert float(state_loss(student, teacher, padded([2], 3))) == pytest.approx((1 + 4 + 9) / 4)


@given(seed=seeds, lengths=st.lists(st.integers(1, T), min_size=B, max_size=B), causal=st.booleans())
def test_losses_are_torchs_over_the_real_ones(seed: int, lengths: list[int], causal: bool) -> None:
    tokens = padded(lengths)
    own, held = normal(B, T, WIDTH, seed=seed), normal(B, T, WIDTH, seed=seed + 1)
    torch.testing.assert_close(state_loss(own, held, tokens), functional.mse_loss(own[tokens], held[tokens]))
    own, held = normal(B, HEADS, T, T, seed=seed + 2), normal(B, HEADS, T, T, seed=seed + 3)
    pairs = torch.zeros(B, HEADS, T, T, dtype=torch.bool)
    for row, length in enumerate(lengths):
        for query, key in itertools.product(range(length), repeat=2):
            pairs[row, :, query, key] = not causal or key <= query
    loss = score_loss(own, held, tokens, causal=causal)
    torch.testing.assert_close(loss, functional.mse_loss(own[pairs], held[pairs]))


@given(seed=seeds, lengths=st.lists(st.integers(1, T), min_size=B, max_size=B))
def test_padding_never_counts(seed: int, lengths: list[int]) -> None:
    tokens = padded(lengths)
    own, held, noise = (normal(B, T, WIDTH, seed=seed + i) for i in range(3))
    other = own.where(tokens[..., None], noise)
    assert torch.equal(state_loss(own, held, tokens), state_loss(other, held, tokens))
    own, held, noise = (normal(B, HEADS, T, T, seed=seed + i) for i in range(3))
    real = tokens[:, None, None, :] & tokens[:, None, :, None]
    assert torch.equal(score_loss(own, held, tokens), score_loss(own.where(real, noise), held, tokens))


def test_gradients_are_those_of_finite_differences_and_stay_away_from_the_teacher() -> None:
    tokens = padded([2, 5, 3])
    own, held = (normal(B, T, WIDTH, seed=i, dtype=torch.float64).requires_grad_() for i in range(2))
    assert torch.autograd.gradcheck(lambda x: state_loss(x, held, tokens), own)
    state_loss(own, held, tokens).backward()
    assert held.grad is None
    assert own.grad is not None
    assert float(own.grad[0, 2:].abs().sum()) == 0
    own, held = (normal(B, HEADS, T, T, seed=i, dtype=torch.float64).requires_grad_() for i in range(2))
    assert torch.autograd.gradcheck(lambda x: score_loss(x, held, tokens, causal=True), own)


def test_inputs_are_left_alone_and_halves_are_summed_in_float32() -> None:
    tokens = padded([2, 5, 3])
    own, held = normal(B, T, WIDTH).bfloat16().requires_grad_(), normal(B, T, WIDTH, seed=1)
    before = own.detach().clone(), held.clone()
    loss = state_loss(own, held, tokens)
    assert loss.dtype == torch.float32
    [gradient] = torch.autograd.grad(loss, own)
    assert gradient.dtype == torch.bfloat16
    assert torch.equal(own.detach(), before[0])
    assert torch.equal(held, before[1])


def test_the_released_score_loss() -> None:
    tokens = padded([2, 5, 3])
    own, held = normal(B, HEADS, T, T), normal(B, HEADS, T, T, seed=1)
    own[1, 0, 0, 0] = -150.0
    # As released: an additive mask, then everything at or below -100 becomes 0, then the mean over all of it.
    additive = (1 - tokens[:, None, None, :].float()) * -10000
    one, other = (torch.where(s + additive <= -1e2, torch.zeros_like(s), s + additive) for s in (own, held))
    torch.testing.assert_close(score_loss(own, held, tokens, literal=True), functional.mse_loss(one, other))


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"^state_loss: student \(1, 2, 3\), teacher \(1, 2, 4\); they must agree\."):
        state_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), padded([2], 2))
    with pytest.raises(ValueError, match=r"other numbers of heads cannot be compared\.$"):
        score_loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 3, 3), padded([2], 3))


# Layer maps


def test_identity_and_uniform_maps() -> None:
    assert map_layers("identity", 4, 4) == map_layers("uniform", 4, 4) == (0, 1, 2, 3)
    assert map_layers("uniform", 4, 12) == (2, 5, 8, 11)
    assert map_layers("uniform", 6, 12) == (1, 3, 5, 7, 9, 11)


@given(student=st.integers(1, 12), more=st.integers(0, 24))
def test_uniform_maps_are_increasing_and_end_at_the_top(student: int, more: int) -> None:
    found = map_layers("uniform", student, student + more)
    assert found[0] >= 0
    assert all(one < other for one, other in itertools.pairwise(found))
    assert found[-1] == student + more - 1


@given(seed=seeds, student=st.integers(1, 4), more=st.integers(0, 2))
def test_the_learned_map_is_the_best_of_all(seed: int, student: int, more: int) -> None:
    losses = normal(student, student + more, seed=seed).abs()
    found = map_layers("learned", student, student + more, losses)
    assert len(set(found)) == student
    totals = [
        sum(float(losses[i, j]) for i, j in enumerate(chosen))
        for chosen in itertools.permutations(range(student + more), student)
    ]
    assert sum(float(losses[i, j]) for i, j in enumerate(found)) == pytest.approx(min(totals))


@pytest.mark.parametrize("width", [WIDTH, 2])
def test_a_student_of_some_of_the_layers_finds_them(width: int) -> None:
    tokens = padded([2, 5, 4])
    teacher = states(1, tokens, layers=5)
    basis, _ = torch.linalg.qr(normal(WIDTH, WIDTH, seed=7))
    # A narrower student shows a part of each layer, from which least squares guess what they can.
    seen = [(layer @ basis)[..., :width] if width < WIDTH else layer for layer in teacher.layers]
    student = States(tokens, None, [seen[3], seen[0], seen[2]])
    assert map_layers("learned", 3, 5, layer_losses(student, teacher)) == (3, 0, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("identity", 3, 6), "^layers 'identity', but the student has 3 layers and the teacher 6; take 'uniform'"),
        (("uniform", 6, 3), "^layers 'uniform': the student has 6 layers, the teacher only 3;"),
        (("nearest", 3, 3), "^layers 'nearest'; choose one of identity, uniform, learned\\.$"),
        (("learned", 1, 1, torch.tensor([[torch.nan]])), "finite ones of \\(1, 1\\) pairs are needed\\.$"),
        (("learned", 2, 3, torch.zeros(3, 2)), "^losses \\(3, 2\\): finite ones of \\(2, 3\\) pairs"),
    ],
)
def test_maps_that_cannot_be(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        map_layers(*arguments)


# Projections


def test_a_fit_finds_the_map_that_made_the_teacher() -> None:
    tokens, true = padded([5, 5, 4]), normal(6, WIDTH, seed=3)
    own = normal(B, T, WIDTH)
    fit = fit_projection(own, own @ true.t(), tokens)
    # The ridge of 1e-4 pulls it towards 0 by as much.
    torch.testing.assert_close(fit, true, rtol=1e-3, atol=1e-3)
    spoiled = (own @ true.t()).where(tokens[..., None], 1e3)
    assert torch.equal(fit_projection(own, spoiled, tokens), fit)


def test_fits_are_finite_where_there_is_little_to_fit() -> None:
    tokens = padded([1], 1)
    assert bool(fit_projection(normal(1, 1, 8), normal(1, 1, 6, seed=1), tokens).isfinite().all())
    assert float(fit_projection(torch.zeros(1, 1, 8), normal(1, 1, 6), tokens).abs().sum()) == 0


def test_projections_are_trained_with_the_student() -> None:
    tokens = padded([2, 5, 3])
    own, held = states(0, tokens), states(1, tokens, width=6)
    projections = Projections(own, held)
    assert [tuple(weight.shape) for weight in projections.parameters()] == [(6, WIDTH)] * (LAYERS + 1)
    terms = Distillation(attention=0, logits=0).terms(Outputs((), None, own), Outputs((), None, held), projections)
    assert set(terms) == {"embedding", "hidden"}
    sum(terms.values(), torch.zeros(())).backward()
    assert all(weight.grad is not None for weight in projections.parameters())
    # It starts at the least-squares fit, where the slope is the ridge's alone.
    assert max(float(w.grad.abs().max()) for w in projections.parameters() if w.grad is not None) < 1e-3
    assert own.layers[0].grad is not None


# The objective


def outputs(seed: int, tokens: Tensor, **options: Any) -> Outputs:
    prediction = Prediction(normal(B, 3, seed=seed).requires_grad_(), torch.tensor([0, 1, 2]))
    return Outputs((prediction,), None, states(seed, tokens, **options))


def test_terms_are_weighted_sums_over_layers() -> None:
    tokens = padded([2, 5, 3])
    student, teacher = outputs(0, tokens), outputs(1, tokens)
    own, held = student.states, teacher.states
    assert own is not None
    assert held is not None
    assert own.embedding is not None
    assert held.embedding is not None
    terms = Distillation(logits=2.0, hidden=3.0, attention=0.5, embedding=0.25, temperature=2.0).terms(student, teacher)
    torch.testing.assert_close(
        terms["logits"], 2 * soft_cross_entropy(student.predictions[0].logits, teacher.predictions[0].logits, 2.0)
    )
    torch.testing.assert_close(terms["embedding"], state_loss(own.embedding, held.embedding, tokens) / 4)
    by_layer = [state_loss(a, b, tokens) for a, b in zip(own.layers, held.layers, strict=True)]
    torch.testing.assert_close(terms["hidden"], 3 * sum(by_layer))
    by_layer = [score_loss(a, b, tokens) for a, b in zip(own.scores, held.scores, strict=True)]
    torch.testing.assert_close(terms["attention"], sum(by_layer) / 2)


@given(seed=seeds)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(seed: int) -> None:
    tokens = padded([2, 5, 3])
    student = outputs(seed, tokens, causal=True)
    terms = Distillation().terms(student, student)
    assert all(float(terms[name].detach()) == 0 for name in ("hidden", "attention", "embedding"))
    [gradient] = torch.autograd.grad(terms["logits"], student.predictions[0].logits)
    assert float(gradient.abs().max()) < 1e-6


def test_spans_are_the_mean_of_start_and_end() -> None:
    spans = [Prediction(normal(B, T, seed=i), torch.tensor([0, 1, 2]), padded([3, 5, 4])) for i in range(4)]
    terms = Distillation(hidden=0, attention=0, embedding=0).terms(
        Outputs(spans[:2], None), Outputs([Prediction(s.logits, s.targets) for s in spans[2:]], None)
    )
    start, end = (soft_cross_entropy(spans[i].logits, spans[i + 2].logits, 1.0, spans[i].possible) for i in range(2))
    torch.testing.assert_close(terms["logits"], (start + end) / 2)


def test_literal_losses_take_padding_in() -> None:
    tokens = padded([2, 5, 3])
    student, teacher = outputs(0, tokens), outputs(1, tokens)
    assert student.states is not None
    assert teacher.states is not None
    terms = Distillation(literal=True).terms(student, teacher)
    layers = zip(student.states.layers, teacher.states.layers, strict=True)
    torch.testing.assert_close(terms["hidden"], sum(functional.mse_loss(a, b.detach()) for a, b in layers))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": -1.0}, r"^distill hidden -1\.0: a weight is a finite number >= 0\.$"),
        ({"task_loss": "half"}, r"^distill task_loss 'half': a weight is"),
        ({"logits": float("nan")}, "^distill logits nan: a weight is"),
        ({"logits": 0, "hidden": 0, "attention": 0, "embedding": 0}, "^distill learns nothing: give logits, hidden,"),
        ({"temperature": 0.0}, r"^distill temperature 0\.0: it must be finite and > 0\.$"),
        ({"layers": "every"}, "^distill layers 'every'; choose one of identity, uniform, learned"),
        ({"literal": "yes"}, "^distill literal 'yes'; give true or false"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distillation(**options)
