"""Each score against its surrogate, which is written here from the formulas of the model, not of the score."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from drawn_batches import LAYERWISE, batches_of, close, hessian_of, scores_of, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argprune.solvers.criteria import OBS, Evidence, build
from argprune.solvers.ilp import keep_largest
from argprune.solvers.ilp.quadratic import Quadratic
from argprune.solvers.registry import registered


def linear(batch: Evidence, stepped: Tensor | None, kept: Tensor) -> Tensor:
    """g^T (m (w + d) - w): what masking the stepped weight does to the loss, to first order around w."""
    assert batch.gradient is not None
    weight = batch.weight.double()
    moved = weight if stepped is None else stepped.double()
    return (batch.gradient.double() * (kept * moved - weight)).sum(-1)


def gradient_step(batch: Evidence) -> Tensor:
    assert batch.gradient is not None
    return batch.weight.double() - batch.learning_rate * batch.gradient.double()


def size_of_changes(batch: Evidence, stepped: Tensor | None, kept: Tensor) -> Tensor:
    """The first-order changes of single removals, added up without their signs."""
    assert batch.gradient is not None
    moved = batch.weight if stepped is None else stepped
    return (~kept * (batch.gradient.double() * moved.double()).abs()).sum(-1)


def curved(batch: Evidence, point: Tensor | None, kept: Tensor, *, slope: bool) -> Tensor:
    """g^T d + sum of F_ii d_i^2 / 2 with d = -point at the pruned entries and F of `examples` equal gradients' size."""
    assert batch.gradient is not None
    assert point is not None
    gradient = batch.gradient.double()
    removed = -point.double() * ~kept
    fisher = batch.examples * gradient.square()
    return (slope * gradient * removed + fisher * removed.square() / 2).sum(-1)


MODELS: dict[str, tuple[dict[str, Any], Callable[[Evidence, Tensor], Tensor]]] = {
    "magnitude": ({}, lambda b, kept: (b.weight.double() * ~kept).square().sum(-1)),
    "taylor": ({}, lambda b, kept: linear(b, None, kept)),
    "taylor-abs": ({"sign": "abs"}, lambda b, kept: size_of_changes(b, None, kept)),
    "pins": ({}, lambda b, kept: linear(b, b.stepped, kept)),
    "pins-signed": ({"sign": "signed"}, lambda b, kept: linear(b, gradient_step(b), kept)),
    "pins-abs": ({"sign": "abs"}, lambda b, kept: size_of_changes(b, gradient_step(b), kept)),
    "platon": ({}, lambda b, kept: size_of_changes(b, b.stepped, kept)),
    "movement": ({}, lambda b, kept: linear(b, None, kept)),
    "soft_movement": ({}, lambda b, kept: linear(b, None, kept)),
    "obd": ({}, lambda b, kept: curved(b, b.weight, kept, slope=False)),
    "second_order": ({}, lambda b, kept: curved(b, b.stepped, kept, slope=True)),
}


def all_masks(n: int, keep: int) -> Tensor:
    """Every mask of `keep` ones, (masks, n)."""
    kept = torch.tensor(list(itertools.combinations(range(n), keep)))
    return torch.zeros(len(kept), n, dtype=torch.bool).scatter_(1, kept, True)


def test_every_separable_criterion_has_its_model_here() -> None:
    separable = {name for name, e in registered("criteria").items() if e.cls.__module__.startswith("argprune.")}
    assert {key.partition("-")[0] for key in MODELS} == separable - {"random", "obs", *LAYERWISE}


@pytest.mark.parametrize("key", MODELS)
@settings(max_examples=15)
@given(seed=seeds, keep=st.integers(1, 7))
def test_the_largest_scores_minimise_the_surrogate(key: str, seed: int, keep: int) -> None:
    options, model = MODELS[key]
    batches = batches_of(seed, (1, 8), number=3)
    criterion = build({"name": key.partition("-")[0], **options})
    masks = all_masks(8, keep)
    values = torch.stack([model(batch, masks) for batch in batches]).mean(0)
    chosen = keep_largest([scores_of(criterion, batches)], keep)[0]
    value = torch.stack([model(batch, chosen) for batch in batches]).mean()
    # Scores are float32 and so may swap entries that are equal to seven digits.
    assert float(value - values.min()) <= 1e-5 * float(values.abs().max())


@pytest.mark.parametrize("key", sorted(set(MODELS) - {"magnitude", "soft_movement"}))
@settings(max_examples=8)
@given(seed=seeds)
def test_scores_are_what_a_single_removal_adds_to_the_surrogate(key: str, seed: int) -> None:
    options, model = MODELS[key]
    batches = batches_of(seed, (1, 8), number=3)
    nothing, single = torch.ones(1, 8, dtype=torch.bool), all_masks(8, 7).flip(0)
    added = torch.stack([model(batch, single) - model(batch, nothing) for batch in batches]).mean(0)
    close(scores_of(build({"name": key.partition("-")[0], **options}), batches).flatten(), added)


@settings(max_examples=15)
@given(seed=seeds, keep=st.integers(1, 7))
def test_wanda_minimises_the_reconstruction_error_of_uncorrelated_inputs(seed: int, keep: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.linalg.qr(torch.randn(20, 8, generator=generator, dtype=torch.float64)).Q
    x = x * torch.randn(8, generator=generator).exp()
    weight = torch.randn(1, 8, generator=generator)
    chosen = keep_largest([scores_of(build("wanda"), [Evidence(weight, inputs=x)])], keep)[0]
    errors = ((weight.double() * ~all_masks(8, keep)) @ x.T).square().sum(-1)
    assert float(((weight.double() * ~chosen) @ x.T).square().sum()) <= float(errors.min()) * (1 + 1e-6)


@given(seed=seeds)
def test_wandas_square_is_what_a_single_removal_changes(seed: int) -> None:
    batch = batches_of(seed)[0]
    assert batch.inputs is not None
    x, w = batch.inputs.double(), batch.weight.double()
    # (rows, columns, tokens): the outputs' change when one entry goes.
    change = w[:, :, None] * x.T
    close(scores_of(build("wanda"), [batch]).square(), change.square().mean(-1))


def fisher_of(batches: Sequence[Evidence], damping: float) -> Tensor:
    """damping I + mean of examples g g^T over the whole flattened weight, float64."""
    outer = []
    for batch in batches:
        assert batch.gradient is not None
        g = batch.gradient.double().flatten()
        outer.append(batch.examples * torch.outer(g, g))
    return torch.stack(outer).mean(0) + damping * torch.eye(len(g), dtype=torch.float64)


@settings(max_examples=15)
@given(seed=seeds, block=st.integers(1, 25), damping=st.sampled_from([1e-7, 1e-3, 1.0]))
def test_obs_is_the_refitted_loss_of_a_single_removal_in_its_block(seed: int, block: int, damping: float) -> None:
    batches = batches_of(seed, number=6)
    scores = scores_of(OBS(block=block, damping=damping), batches).flatten()
    fisher, w = fisher_of(batches, damping), batches[0].weight.double().flatten()
    # 21 entries: most sizes of block leave a smaller one at the end.
    for start in range(0, 21, block):
        inside = slice(start, min(start + block, 21))
        h, v = fisher[inside, inside], w[inside]
        for j in range(len(v)):
            # The others move to where v^T H v / 2 is smallest with entry j at 0.
            rest = torch.arange(len(v)) != j
            move = torch.linalg.solve(h[rest][:, rest], h[rest, j] * v[j])
            d = torch.zeros_like(v)
            d[j], d[rest] = -v[j], move
            expected = float(d @ h @ d / 2)
            assert float(scores[start + j]) == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_obs_is_oberts_recursion() -> None:
    """Against the authors' rank-one updates of the inverse, which know the number of gradients in advance."""
    batches = [replace(batch, examples=1) for batch in batches_of(3, (4, 5), number=12)]
    block, damping = 10, 1e-4
    inverse = torch.eye(block, dtype=torch.float64).repeat(2, 1, 1) / damping
    for batch in batches:
        assert batch.gradient is not None
        g = batch.gradient.double().view(2, block)
        moved = torch.einsum("bij,bj->bi", inverse, g)
        scale = len(batches) + (g * moved).sum(1)
        inverse -= moved[:, :, None] * moved[:, None, :] / scale[:, None, None]
    w = batches[0].weight.double()
    expected = w.square() / (2 * inverse.diagonal(dim1=1, dim2=2).reshape(4, 5))
    close(scores_of(OBS(block=block, damping=damping), batches), expected)


@given(seed=seeds)
def test_obs_counts_examples_and_is_magnitude_under_heavy_damping(seed: int) -> None:
    batches = batches_of(seed)
    larger = [replace(b, gradient=2 * b.gradient, examples=1) for b in batches if b.gradient is not None]
    close(scores_of(OBS(), larger), scores_of(OBS(), [replace(b, examples=4) for b in batches]))
    damped = scores_of(OBS(damping=1e8), batches)
    close(damped, 1e8 * batches[0].weight.square() / 2)


@pytest.mark.parametrize(("shape", "chunk"), [((7,), 1), ((2, 3, 5), 1), ((1, 1), 100), ((0, 4), 100)])
def test_obs_takes_weights_of_any_shape_and_chunks_change_nothing(
    shape: tuple[int, ...], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, gradient = torch.randn(shape), torch.randn(shape)
    whole = scores_of(OBS(block=4), [Evidence(weight, gradient=gradient)])
    monkeypatch.setattr("argprune.solvers.criteria.curvature._CHUNK", chunk)
    assert whole.shape == shape
    assert torch.equal(whole, scores_of(OBS(block=4), [Evidence(weight, gradient=gradient)]))


@settings(max_examples=15)
@given(seed=seeds)
def test_sparsegpts_factor_is_the_trailing_inverse_and_its_score_a_refit(seed: int) -> None:
    batches = batches_of(seed)
    h = hessian_of(batches, 0.01)
    scores, w = scores_of(build("sparsegpt"), batches), batches[0].weight.double()
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True).diagonal()
    trailing = torch.stack([torch.linalg.inv(h[j:, j:])[0, 0] for j in range(7)])
    torch.testing.assert_close(upper.square(), trailing, rtol=1e-9, atol=0)
    close(scores, w.square() / upper.square())
    for j in range(7):
        # Columns before j stay; the one after it that is removed is the first of what is left.
        problem = Quadratic(h[j:, j:], torch.zeros(7 - j), w[1, j:], keep=6 - j, refit=True)
        assert float(scores[1, j]) == pytest.approx(2 * float(problem.excess(np.array([[0]]))[0]), rel=1e-5)
