"""Criteria: manners of every registered one."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from drawn_batches import LAYERWISE, batches_of, close, every, scores_of, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from argprune.solvers.criteria import OBS, Elementwise, Evidence, Smoothing, build
from argprune.solvers.criteria.base import Need, Scope, Surrogate
from argprune.solvers.criteria.curvature import factorise


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_scores_are_finite_shaped_like_the_weight_and_the_same_twice(spec: dict[str, Any], dtype: torch.dtype) -> None:
    criterion = build(spec)
    batches = batches_of(0, dtype=dtype)
    before = pickle.loads(pickle.dumps(batches))
    scores = scores_of(criterion, batches)
    assert scores.shape == batches[0].weight.shape
    assert scores.dtype == torch.float32
    assert bool(scores.isfinite().all())
    assert len(scores.unique()) > 1
    assert torch.equal(scores, scores_of(pickle.loads(pickle.dumps(criterion)), batches))
    for batch, old in zip(batches, before, strict=True):
        assert all(torch.equal(getattr(batch, n), getattr(old, n)) for n in ("weight", "gradient", "stepped", "inputs"))
    # A narrow dtype is that of the evidence alone: nothing is accumulated in it.
    wide = [
        replace(b, **{name: getattr(b, name).float() for name in ("weight", "gradient", "stepped", "inputs")})
        for b in batches
    ]
    if dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(scores, scores_of(criterion, wide))


@every
@settings(max_examples=8)
@given(seed=seeds, data=st.data())
def test_the_order_of_batches_does_not_matter_and_looking_changes_nothing(
    spec: dict[str, Any], seed: int, data: st.DataObject
) -> None:
    criterion = build(spec)
    batches = batches_of(seed, number=5)
    expected = scores_of(criterion, batches)
    weight = batches[0].weight
    accumulators = criterion.start(weight)
    for batch in data.draw(st.permutations(batches)):
        criterion.update(accumulators, batch)
        criterion.scores(accumulators, weight)
    close(criterion.scores(accumulators, weight), expected)


@every
@settings(max_examples=8)
@given(seed=seeds)
def test_mean_scores_do_not_change_where_every_batch_comes_again(spec: dict[str, Any], seed: int) -> None:
    batches = batches_of(seed)
    if spec["name"] == "soft_movement":
        # A sigmoid of the sum: its order is the claim, up to where it rounds to 1.
        once, twice = (scores_of(build(spec), part).flatten() for part in (batches, batches * 2))
        assert float(twice[once.argsort()].diff().min()) > -1e-6
    else:
        close(scores_of(build(spec), batches * 2), scores_of(build(spec), batches))


@pytest.mark.parametrize("name", LAYERWISE)
@settings(max_examples=8)
@given(seed=seeds, cut=st.integers(0, 40))
def test_where_batches_of_tokens_are_cut_does_not_matter(name: str, seed: int, cut: int) -> None:
    batches = batches_of(seed)
    tokens = torch.cat([batch.inputs for batch in batches if batch.inputs is not None])
    parts = [replace(batches[0], inputs=part) for part in (tokens[:cut], tokens[cut:])]
    close(scores_of(build(name), parts), scores_of(build(name), batches), 1e-6)


@every
def test_what_is_declared_is_what_is_read(spec: dict[str, Any]) -> None:
    criterion = build(spec)
    assert criterion.surrogate in get_args(Surrogate)
    assert criterion.scope in get_args(Scope)
    assert criterion.needs <= set(get_args(Need))
    assert criterion.formula
    assert build(spec) == criterion
    full = batches_of(1)[0]
    fields = {"gradient": "gradient", "step": "stepped", "inputs": "inputs"}
    needed: dict[str, Any] = {fields[need]: getattr(full, fields[need]) for need in criterion.needs}
    only = Evidence(full.weight, learning_rate=full.learning_rate, examples=full.examples, **needed)
    assert torch.equal(scores_of(criterion, [only]), scores_of(criterion, [full]))
    for need in criterion.needs:
        missing: dict[str, Any] = {fields[need]: None}
        with pytest.raises(ValueError, match=f"a batch without {need}; it reads .*{need}"):
            scores_of(criterion, [replace(full, **missing)])
    if criterion.needs:
        with pytest.raises(ValueError, match="scores before the first batch"):
            criterion.scores(criterion.start(full.weight), full.weight)
    else:
        assert bool(criterion.scores(criterion.start(full.weight), full.weight).isfinite().all())


@every
@settings(max_examples=8)
@given(seed=seeds)
def test_elementwise_scores_of_a_part_are_the_part_of_the_scores(spec: dict[str, Any], seed: int) -> None:
    criterion = build(spec)
    batches = batches_of(seed)
    if not isinstance(criterion, Elementwise):
        return
    parts = [
        replace(b, **{name: getattr(b, name).flatten()[4:9] for name in ("weight", "gradient", "stepped")})
        for b in batches
    ]
    # Vectorised functions round the rest of a length that is no multiple of a register's otherwise.
    close(scores_of(criterion, parts), scores_of(criterion, batches).flatten()[4:9], 1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build({"name": "taylor", "sign": "displacement"}), "taylor: sign 'displacement'; .* signed, abs"),
        (lambda: build({"name": "pins", "sign": "plain"}), "pins: sign 'plain'"),
        (lambda: build({"name": "obs", "block": 0}), "OBS: block 0"),
        (lambda: build({"name": "obs", "damping": 0.0}), r"OBS: damping 0\.0"),
        (lambda: build({"name": "obs", "damping": float("nan")}), "OBS: damping nan"),
        (lambda: build({"name": "sparsegpt", "block": 0}), "SparseGPT: block 0"),
        (lambda: build({"name": "sparsegpt", "damping": -0.1}), r"SparseGPT: damping -0\.1"),
        (lambda: build({"name": "obc", "damping": float("nan")}), "OBC: damping nan"),
        (lambda: build("sparse_gpt"), "Did you mean 'sparsegpt'"),
        (lambda: build({"name": "wanda", "damping": 1}), "Its options: none"),
        (lambda: build("fractions:Fraction"), "Fraction is not a subclass of Criterion"),
        (lambda: build("wanda").start(torch.zeros(3)), r"Wanda: a weight of shape \(3,\)"),
        (lambda: Smoothing(window=0), "window 0"),
        (lambda: Smoothing(beta=1.0), r"beta 1\.0"),
        (lambda: Smoothing(uncertainty=0.9), r"uncertainty without beta; the last window never deviates from itself"),
        (lambda: Smoothing(uncertainty=-0.1), r"uncertainty -0\.1"),
    ],
)
def test_bad_options_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", LAYERWISE)
def test_inputs_that_do_not_fit_are_refused(name: str) -> None:
    batch = batches_of(0)[0]
    assert batch.inputs is not None
    for inputs in (batch.inputs[:, 1:], batch.inputs[0]):
        with pytest.raises(ValueError, match=r"inputs of shape .* for a weight of 7 columns; give \(tokens, 7\)"):
            scores_of(build(name), [replace(batch, inputs=inputs)])
    with pytest.raises(ValueError, match="before the first batch"):
        scores_of(build(name), [replace(batch, inputs=batch.inputs[:0])])
    with pytest.raises(ValueError, match="inputs with NaN"):
        scores_of(build(name), [replace(batch, inputs=batch.inputs.log())])


@pytest.mark.parametrize("name", ["sparsegpt", "obc"])
def test_a_singular_hessian_is_refused_and_damping_mends_it(name: str) -> None:
    batch = batches_of(0)[0]
    with pytest.raises(ValueError, match="5 tokens of 7 inputs leave H singular at damping 0;"):
        scores_of(build({"name": name, "damping": 0.0}), [batch])
    assert bool(scores_of(build({"name": name, "damping": 1e-6}), [batch]).isfinite().all())


def test_a_fisher_beyond_float64_is_refused() -> None:
    with pytest.raises(ValueError, match=r"OBS: F with entries up to .* at damping 1e-30; raise the damping"):
        scores_of(OBS(damping=1e-30), batches_of(0, number=2))
    batch = batches_of(0)[0]
    with pytest.raises(ValueError, match="not finite"):
        scores_of(OBS(), [replace(batch, gradient=torch.full((3, 7), torch.inf))])


def test_factors_of_indefinite_and_of_singular_matrices_are_not_sound() -> None:
    good, indefinite, singular = [[2.0, 1.0], [1.0, 2.0]], [[1.0, 2.0], [2.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]
    # Positive definite only by its last bit.
    nearly = [[1.0, 1.0], [1.0, 1.0 + 2**-52]]
    matrices = torch.tensor([good, indefinite, singular, nearly], dtype=torch.float64)
    factor, sound = factorise(matrices)
    assert sound.tolist() == [True, False, False, False]
    torch.testing.assert_close(factor[0] @ factor[0].T, matrices[0])


# PINS and PLATON under real optimizers (dossier, section 8, test 2).


def one_step(optimizer: type[torch.optim.Optimizer], **options: Any) -> Evidence:
    parameter = torch.nn.Parameter(torch.randn(6, 5))
    before = parameter.detach().clone()
    x = torch.randn(8, 5)
    (x @ parameter.t()).square().mean().backward()
    assert parameter.grad is not None
    gradient = parameter.grad.clone()
    optimizer([parameter], **options).step()
    return Evidence(before, gradient, parameter.detach().clone(), options["lr"], examples=8, inputs=x)


def test_pins_scores_are_platons_under_sgd_and_not_under_adamw() -> None:
    sgd, adamw = one_step(torch.optim.SGD, lr=0.1), one_step(torch.optim.AdamW, lr=0.1)
    for batch, same in ((sgd, True), (adamw, False)):
        assert batch.gradient is not None
        by_hand = (batch.gradient * (batch.weight - batch.learning_rate * batch.gradient)).abs()
        absolute = scores_of(build({"name": "pins", "sign": "abs"}), [batch])
        torch.testing.assert_close(absolute, by_hand, rtol=1e-5, atol=1e-8)
        platon = scores_of(build("platon"), [batch])
        assert torch.allclose(absolute, platon, rtol=1e-5, atol=1e-8) == same
        signed = scores_of(build({"name": "pins", "sign": "signed"}), [batch])
        displacement = scores_of(build("pins"), [batch])
        assert torch.allclose(signed, displacement, rtol=1e-5, atol=1e-8) == same
        assert torch.equal(signed.abs(), absolute)
        assert torch.equal(displacement.abs(), platon)
        assert torch.equal(scores_of(build("movement"), [batch]), scores_of(build("taylor"), [batch]))
