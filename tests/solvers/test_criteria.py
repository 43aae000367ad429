"""Criteria: manners of every registered one, each score against the surrogate that it declares, and smoothing."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from argprune.solvers.criteria import OBC, OBS, Criterion, Elementwise, Evidence, Smoothing, build, layerwise, removals
from argprune.solvers.criteria.base import Need, Scope, Surrogate
from argprune.solvers.criteria.curvature import factorise
from argprune.solvers.ilp import keep_largest
from argprune.solvers.ilp.quadratic import Quadratic, greedy
from argprune.solvers.registry import registered

SPECS = [
    pytest.param({"name": name, **options}, id=f"{name}-{index}")
    for name, entry in registered("criteria").items()
    for index, options in enumerate(entry.examples)
]
every = pytest.mark.parametrize("spec", SPECS)
LAYERWISE = ("wanda", "sparsegpt", "obc")
seeds = st.integers(0, 2**31 - 1)


def batches_of(
    seed: int, shape: tuple[int, int] = (3, 7), number: int = 4, dtype: torch.dtype = torch.float32
) -> list[Evidence]:
    """Evidence with everything a criterion may read: batches of several sizes, steps that are no gradient steps."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    mix = torch.eye(shape[1]) + torch.randn(shape[1], shape[1], generator=generator) / 2
    return [
        Evidence(
            weight=weight.to(dtype),
            gradient=torch.randn(shape, generator=generator).to(dtype),
            stepped=(weight + 0.1 * torch.randn(shape, generator=generator)).to(dtype),
            learning_rate=0.05,
            examples=1 + index % 3,
            inputs=(torch.randn(5 + 2 * index, shape[1], generator=generator) @ mix).to(dtype),
        )
        for index in range(number)
    ]


def scores_of(criterion: Criterion, batches: Sequence[Evidence], weight: Tensor | None = None) -> Tensor:
    weight = batches[0].weight if weight is None else weight
    accumulators = criterion.start(weight)
    for batch in batches:
        criterion.update(accumulators, batch)
    return criterion.scores(accumulators, weight)


def close(one: Tensor, other: Tensor, digits: float = 1e-5) -> None:
    """Equal up to float32's rounding of sums of the scores' size."""
    torch.testing.assert_close(one.double(), other.double(), rtol=digits, atol=digits * float(other.abs().max()))


# Every criterion.


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


# Each score against its surrogate, which is written here from the formulas of the model, not of the score.


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


def hessian_of(batches: Sequence[Evidence], damping: float) -> Tensor:
    """2 X^T X / tokens of all batches' inputs, damped by a share of the mean diagonal."""
    x = torch.cat([batch.inputs for batch in batches if batch.inputs is not None]).double()
    h = 2 * x.T @ x / len(x)
    return h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)


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


# OBC.


@settings(max_examples=15)
@given(seed=seeds, columns=st.integers(1, 9), rows=st.integers(1, 5))
def test_losses_of_removals_add_up_to_the_refit_and_are_greedys(seed: int, columns: int, rows: int) -> None:
    batches = batches_of(seed, (rows, columns))
    h, w = hessian_of(batches, 0.01), batches[0].weight.double()
    order, losses = removals(h, w)
    inverse = torch.linalg.inv(h)
    for row in range(rows):
        assert sorted(order[row].tolist()) == list(range(columns))
        problem = Quadratic(h, torch.zeros(columns), w[row], keep=0, refit=True)
        assert order[row].tolist() == greedy(problem).tolist()
        for s in range(1, columns + 1):
            p = order[row, :s]
            expected = w[row, p] @ torch.linalg.solve(inverse[p][:, p], w[row, p]) / 2
            assert float(losses[row, :s].sum()) == pytest.approx(float(expected), rel=1e-9)
            assert float(losses[row, :s].sum()) == pytest.approx(float(problem.excess(p.numpy()[None])[0]), rel=1e-6)
        # With nothing left the outputs are 0.
        assert float(losses[row].sum()) == pytest.approx(float(w[row] @ h @ w[row] / 2), rel=1e-9)


@settings(max_examples=15)
@given(seed=seeds)
def test_the_largest_obc_scores_of_a_row_are_what_greedy_leaves(seed: int) -> None:
    batches = batches_of(seed)
    h, w = hessian_of(batches, 0.01), batches[0].weight.double()
    scores = scores_of(build("obc"), batches)
    order, losses = removals(h, w)
    ranked = scores.gather(1, order)
    assert bool((ranked.diff(dim=1) > 0).all())
    close(ranked, losses.cummax(1).values)
    for row in range(3):
        for keep in range(8):
            pruned = greedy(Quadratic(h, torch.zeros(7), w[row], keep=keep, refit=True))
            mask = keep_largest([scores[row]], keep)[0]
            assert set((~mask).nonzero().flatten().tolist()) == set(pruned.tolist())


def test_removals_of_a_wide_matrix_are_greedys() -> None:
    batches = batches_of(7, (12, 40), number=8)
    h, w = hessian_of(batches, 0.01), batches[0].weight.double()
    order, _ = removals(h, w)
    for row in range(12):
        assert order[row].tolist() == greedy(Quadratic(h, torch.zeros(40), w[row], keep=0, refit=True)).tolist()


def test_a_trace_that_falls_still_gives_greedys_set() -> None:
    # Two inputs almost alike whose weights all but cancel: the first removal costs more than the second, after it.
    x = torch.tensor([[1.0, 1.1, 0.0], [1.0, 0.9, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64)
    w = torch.tensor([[1.0, -1.0, 1.0]])
    order, losses = removals(2 * x.T @ x / 3, w.double())
    assert losses[0, 0] > losses[0, 1]
    scores = scores_of(OBC(damping=0.0), [Evidence(w, inputs=x)])
    assert scores[0].argsort().tolist() == order[0].tolist()
    assert float(scores.min()) == pytest.approx(float(losses[0, 0]))


def test_removals_break_ties_by_position_and_do_not_depend_on_how_many_rows_go_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    h, w = torch.eye(6, dtype=torch.float64), torch.ones(2, 6, dtype=torch.float64)
    assert removals(h, w)[0].tolist() == [list(range(6))] * 2
    h, w = hessian_of(batches_of(5, (9, 6)), 0.01), torch.randn(9, 6, dtype=torch.float64)
    together = removals(h, w)
    monkeypatch.setattr(layerwise, "_CHUNK", 1)
    for one, other in zip(together, removals(h, w), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", LAYERWISE)
def test_inputs_that_are_always_zero_go_first_and_change_nothing_else(name: str) -> None:
    batches = batches_of(2)
    dead = [
        replace(
            b,
            weight=torch.cat([torch.full((3, 2), 9.0), b.weight], 1),
            inputs=torch.cat([torch.zeros(len(b.inputs), 2), b.inputs], 1),
        )
        for b in batches
        if b.inputs is not None
    ]
    scores = scores_of(build(name), dead)
    assert float(scores[:, :2].max()) < 1e-40
    close(scores[:, 2:], scores_of(build(name), batches), 1e-6)
    nothing = [replace(b, inputs=torch.zeros(4, 7)) for b in batches]
    assert float(scores_of(build(name), nothing).max()) < 1e-40


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


# Smoothing.


@every
@settings(max_examples=15)
@given(
    seed=seeds,
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    keep=st.sampled_from([0.0, 0.85, 1.0]),
    factor=st.sampled_from([1.0, -1.0, -0.15]),
)
def test_blending_is_raw_scores_added(
    spec: dict[str, Any], seed: int, dtype: torch.dtype, keep: float, factor: float
) -> None:
    criterion = build(spec)
    if not isinstance(criterion, Elementwise):
        return
    [batch] = batches_of(seed, number=1, dtype=dtype)
    before = torch.randn(batch.weight.shape, generator=torch.Generator().manual_seed(seed))
    expected = factor * criterion.raw(batch).double() + (keep * before.double() if keep else 0.0)
    # Where nothing is kept, nothing of what was there may show.
    into = before.clone() if keep else torch.full_like(before, torch.nan)
    criterion.blend(into, batch, keep=keep, factor=factor)
    close(into, expected)


def platon_reference(
    raws: Sequence[Sequence[float]], window: int, beta: float, uncertainty: float | None
) -> list[list[float]]:
    """Scores at the end of each window, entry by entry in Python's floats; dossier, section 1.3."""
    averages, deviations, result = [0.0] * len(raws[0]), [0.0] * len(raws[0]), []
    for begin in range(0, len(raws), window):
        rows = raws[begin : begin + window]
        scores = []
        for i in range(len(raws[0])):
            mean = 0.0
            for count, row in enumerate(rows):
                mean = (count * mean + row[i]) / (count + 1)
            averages[i] = beta * averages[i] + (1 - beta) * mean
            score = averages[i]
            if uncertainty is not None:
                deviations[i] = uncertainty * deviations[i] + (1 - uncertainty) * abs(mean - averages[i])
                score *= deviations[i]
            scores.append(score)
        result.append(scores)
    return result


def smoothed(smoothing: Smoothing, raws: Tensor, window: int) -> list[Tensor]:
    accumulators = smoothing.start(raws[0])
    results = []
    for begin in range(0, len(raws), window):
        rows = raws[begin : begin + window]
        for index, row in enumerate(rows):
            accumulators["window"].mul_(index > 0).add_(row)
        results.append(smoothing.close(accumulators, len(rows)).clone())
    return results


@settings(max_examples=15)
@given(
    seed=seeds,
    window=st.integers(1, 11),
    beta=st.sampled_from([0.0, 0.5, 0.85, 0.95]),
    uncertainty=st.sampled_from([None, 0.0, 0.5, 0.95]),
)
def test_smoothing_is_platons_over_thirty_steps(seed: int, window: int, beta: float, uncertainty: float | None) -> None:
    assume(beta > 0 or uncertainty is None)
    raws = torch.randn(30, 5, generator=torch.Generator().manual_seed(seed)).abs()
    expected = platon_reference(raws.tolist(), window, beta, uncertainty)
    found = smoothed(Smoothing(window, beta, uncertainty), raws, window)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, torch.tensor(other), rtol=1e-4, atol=1e-6)


def test_beta_zero_is_the_last_window_and_keeps_no_average() -> None:
    raws = torch.randn(6, 5)
    smoothing = Smoothing(window=2)
    assert set(smoothing.start(raws[0])) == {"window"}
    for one, other in zip(smoothed(smoothing, raws, 2), raws.view(3, 2, 5).mean(1), strict=True):
        torch.testing.assert_close(one, other)
    assert set(Smoothing(beta=0.5, uncertainty=0.5).start(raws[0])) == {"window", "average", "deviation"}


@settings(max_examples=15)
@given(seed=seeds, beta=st.sampled_from([0.0, 0.85]), factor=st.floats(-4, 4))
def test_window_and_average_are_linear_in_the_scores(seed: int, beta: float, factor: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(6, 5, generator=generator), torch.randn(6, 5, generator=generator)
    smoothing = Smoothing(window=3, beta=beta)
    parts = [smoothed(smoothing, raws, 3)[-1] for raws in (one, other, one + factor * other)]
    torch.testing.assert_close(parts[0] + factor * parts[1], parts[2], rtol=1e-4, atol=1e-5)
