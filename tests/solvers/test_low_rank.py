"""Factorisations against direct computation and other minimisers, and ranks within a size against enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argprune.solvers.low_rank import (
    allocate_ranks,
    break_even_rank,
    component_values,
    factorise_random,
    factorise_svd,
    factorise_whitened,
    kept_whole,
    stored_size,
)

sides = st.integers(1, 9)
seeds = st.integers(0, 10**6)
# A layer's width and its feed-forward width, and what a MiniLM's six layers hold.
MINILM = [(384, 384)] * 4 + [(1536, 384), (384, 1536)]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lost_outputs(x: Tensor, w: Tensor, product: Tensor) -> float:
    return float((x @ (w - product).t()).square().sum())


def refined(x: Tensor, w: Tensor, rank: int, seed: int, sweeps: int = 400) -> float:
    """The least squares of outputs that alternating minimisation over two factors finds from a random start."""
    second = normal(seed, w.shape[0], rank)
    wanted = x @ w.t()
    for _ in range(sweeps):
        hidden = torch.linalg.lstsq(second, wanted.t()).solution
        first = torch.linalg.lstsq(x, hidden.t()).solution.t()
        second = torch.linalg.lstsq(x @ first.t(), wanted).solution.t()
    return lost_outputs(x, w, second @ first)


@given(seed=seeds, outputs=sides, inputs=sides, data=st.data())
def test_svd_loses_what_it_says_and_no_other_factors_lose_less(
    seed: int, outputs: int, inputs: int, data: st.DataObject
) -> None:
    w = normal(seed, outputs, inputs)
    rank = data.draw(st.integers(1, min(outputs, inputs)))
    whole, found = factorise_svd(w), factorise_svd(w, rank)
    torch.testing.assert_close(whole.product(), w)
    lost = float((w - found.product()).square().sum())
    assert lost == pytest.approx(float(whole.values[rank:].square().sum()), abs=1e-12)
    assert found.values.equal(found.values.sort(descending=True).values)
    # Balanced, so that one step of an optimizer means as much in both.
    torch.testing.assert_close(found.first.norm(dim=1), found.second.norm(dim=0))
    torch.testing.assert_close(found.first.norm(dim=1) * found.second.norm(dim=0), found.values)
    shaken = (found.second + 0.1 * normal(seed + 1, outputs, rank)) @ (found.first + 0.1 * normal(seed, rank, inputs))
    assert lost <= float((w - shaken).square().sum()) + 1e-12


@given(seed=seeds, outputs=sides, inputs=sides, extra=st.integers(2, 20), data=st.data())
def test_whitened_loses_exactly_the_values_dropped(
    seed: int, outputs: int, inputs: int, extra: int, data: st.DataObject
) -> None:
    w, x = normal(seed, outputs, inputs), normal(seed + 1, inputs + extra, inputs) + 0.5
    rank = data.draw(st.integers(1, min(outputs, inputs)))
    # No direction is so rare that the ridge would come in.
    whole, found = factorise_whitened(w, x.t() @ x, ridge=1e-12), factorise_whitened(w, x.t() @ x, rank, ridge=1e-12)
    torch.testing.assert_close(whole.product(), w, rtol=1e-6, atol=1e-6)
    scale = float((x @ w.t()).square().sum())
    dropped = float(whole.values[rank:].square().sum())
    assert lost_outputs(x, w, found.product()) == pytest.approx(dropped, abs=1e-9 * scale)
    assert lost_outputs(x, w, factorise_svd(w, rank).product()) >= dropped - 1e-9 * scale
    lengths = found.second.square().sum(0)
    torch.testing.assert_close(lengths / lengths.sum(), found.values / found.values.sum())
    # Where all the inputs are stronger, so is what is lost, and the factors are the same.
    louder = factorise_whitened(w, 100 * x.t() @ x, rank, ridge=1e-12)
    torch.testing.assert_close(louder.values, 10 * found.values)
    torch.testing.assert_close(louder.product(), found.product(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(louder.second.square().sum(0), lengths)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_whitened_is_the_best_that_alternating_minimisation_finds(seed: int, rank: int) -> None:
    w, x = normal(seed, 5, 4), normal(seed + 10, 12, 4) @ torch.diag(torch.tensor([3.0, 1.0, 0.5, 0.1])).double()
    found = lost_outputs(x, w, factorise_whitened(w, x.t() @ x, rank).product())
    others = [refined(x, w, rank, start) for start in range(3)]
    # Slow convergence leaves the others a little above; one below would refute the closed form.
    assert min(others) >= found - 1e-9
    assert min(others) == pytest.approx(found, rel=1e-3, abs=1e-9)


def test_singular_inputs_take_the_ridge() -> None:
    w, x = normal(0, 6, 5), normal(1, 3, 5)
    gram = x.t() @ x
    with_ridge = gram + 1e-4 * gram.diagonal().mean() * torch.eye(5).double()
    whole = factorise_whitened(w, gram, ridge=1e-4)
    torch.testing.assert_close(whole.product(), w)
    for rank in range(1, 5):
        found, dropped = factorise_whitened(w, gram, rank, ridge=1e-4), float(whole.values[rank:].square().sum())
        change = w - found.product()
        assert float((change @ with_ridge * change).sum()) == pytest.approx(dropped, rel=1e-9)
        assert lost_outputs(x, w, found.product()) <= dropped
    # Three tokens: three components answer for all that was seen.
    assert lost_outputs(x, w, factorise_whitened(w, gram, 3, ridge=1e-9).product()) < 1e-6
    # The unseen directions stay of the weight's order: nothing was divided by zero.
    assert float(factorise_whitened(w, gram, 4).product().abs().max()) < 10 * float(w.abs().max())


@given(seed=seeds, outputs=sides, inputs=sides, data=st.data())
def test_a_diagonal_gram_is_the_matrix_with_that_diagonal(
    seed: int, outputs: int, inputs: int, data: st.DataObject
) -> None:
    w = normal(seed, outputs, inputs)
    counts = torch.tensor(
        data.draw(st.lists(st.integers(0, 50), min_size=inputs, max_size=inputs)), dtype=torch.float64
    )
    if not counts.any():
        counts[0] = 1.0
    rank = data.draw(st.integers(1, min(outputs, inputs)))
    one, other = factorise_whitened(w, counts, rank), factorise_whitened(w, torch.diag(counts), rank)
    torch.testing.assert_close(one.values, other.values)
    torch.testing.assert_close(one.product(), other.product(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    w, x = normal(0, 24, 16).to(dtype), normal(1, 64, 16)
    generator = torch.Generator().manual_seed(0)
    for found in (
        factorise_svd(w),
        factorise_whitened(w, x.t() @ x),
        factorise_whitened(w, (x.t() @ x).float()),
    ):
        assert found.first.dtype == found.second.dtype == found.product().dtype == dtype
        assert found.values.dtype in (torch.float32, torch.float64)
        # Rounding of the factors: some units in the last place of 16 summands, the largest of order ten.
        torch.testing.assert_close(found.product(), w, atol=64 * torch.finfo(dtype).eps, rtol=0)
    assert factorise_random((8, 4), 3, generator, dtype).first.dtype == dtype


def test_random_factors_are_balanced_and_of_the_scale_of_a_linear_layer() -> None:
    generator = torch.Generator().manual_seed(0)
    shape, rank = (96, 64), 40
    products = []
    for _ in range(20):
        found = factorise_random(shape, rank, generator)
        assert found.first.shape == (rank, 64)
        assert found.second.shape == (96, rank)
        norms = found.first.norm(dim=1), found.second.norm(dim=0)
        torch.testing.assert_close(norms[0], norms[1])
        torch.testing.assert_close(norms[0] * norms[1], found.values)
        assert found.values.equal(found.values.sort(descending=True).values)
        products.append(found.product())
    # 20 x 6144 entries, correlated within a product: the variance is right to a few parts in a hundred.
    assert float(torch.stack(products).var()) == pytest.approx(1 / (3 * 64), rel=0.05)
    again = factorise_random(shape, rank, torch.Generator().manual_seed(0))
    assert not torch.equal(again.first, factorise_random(shape, rank, torch.Generator().manual_seed(1)).first)


@given(outputs=st.integers(1, 5000), inputs=st.integers(1, 5000), rank=st.integers(0, 6000))
def test_sizes(outputs: int, inputs: int, rank: int) -> None:
    even = break_even_rank(outputs, inputs)
    assert even >= 1
    assert even == 1 or even * (outputs + inputs) <= outputs * inputs
    assert (even + 1) * (outputs + inputs) > outputs * inputs
    assert stored_size(rank, outputs, inputs) <= outputs * inputs
    assert stored_size(rank, outputs, inputs) in (rank * (outputs + inputs), outputs * inputs)


def lowest(values: Sequence[Tensor], shapes: Sequence[tuple[int, int]], size: int, least: int) -> float:
    """The least worth dropped, over every combination of ranks."""
    options = []
    for value, shape in zip(values, shapes, strict=True):
        worth = value.double().sort(descending=True).values
        ranks = range(min(least, len(worth)), len(worth) + 1)
        options.append([(stored_size(rank, *shape), float(worth[rank:].sum())) for rank in ranks])
    return min(
        math.fsum(lost for _, lost in choice)
        for choice in itertools.product(*options)
        if sum(taken for taken, _ in choice) <= size
    )


@given(data=st.data(), count=st.integers(1, 3), least=st.integers(1, 3), share=st.floats(0, 1.1))
@settings(max_examples=100)
def test_single_ranks_are_the_best_of_all(data: st.DataObject, count: int, least: int, share: float) -> None:
    shapes = [(data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))) for _ in range(count)]
    worth = st.one_of(st.integers(0, 3).map(float), st.floats(0, 5, width=16))
    values = [
        torch.tensor(data.draw(st.lists(worth, min_size=1, max_size=min(shape))), dtype=torch.float64)
        for shape in shapes
    ]
    low = sum(stored_size(min(least, len(v)), *shape) for v, shape in zip(values, shapes, strict=True))
    size = low + math.floor(share * (sum(math.prod(shape) for shape in shapes) - low))
    found = allocate_ranks(values, shapes, size, multiple=1, least=least)
    assert found.size <= size
    assert found.status == "optimal"
    assert found.objective == pytest.approx(lowest(values, shapes, size, least), abs=1e-9)
    coarse = allocate_ranks(values, shapes, size, multiple=2, least=least, slack=0.0)
    assert coarse.bound - 1e-9 <= found.objective <= coarse.objective + 1e-9
    for ranks in (found, coarse):
        check_consistent(ranks, values, shapes, size, least)


def check_consistent(
    found: Any, values: Sequence[Tensor], shapes: Sequence[tuple[int, int]], size: int, least: int
) -> None:
    """What is said of a choice is what follows from the components kept."""
    taken, lost = 0, 0.0
    for rank, kept, value, shape in zip(found.ranks, found.kept, values, shapes, strict=True):
        assert kept.dtype == torch.int64
        assert len(kept) >= min(least, len(value))
        assert kept.equal(kept.unique())
        if rank is None:
            assert len(kept) == len(value)
            assert len(value) * sum(shape) >= math.prod(shape)
        else:
            assert len(kept) == rank
            assert rank * sum(shape) < math.prod(shape)
        taken += stored_size(len(kept), *shape)
        dropped = torch.ones(len(value), dtype=torch.bool)
        dropped[kept] = False
        assert not dropped.any() or float(value[dropped].max()) <= float(value[kept].min())
        lost += float(value.double()[dropped].sum())
    assert found.size == taken <= size
    assert found.objective == pytest.approx(lost, abs=1e-9)
    assert found.gap == found.objective - found.bound >= 0
    assert (found.status == "optimal") == (found.gap == 0)


@pytest.mark.parametrize("start", ["break-even", "full"])
@pytest.mark.parametrize("pruned", [0.2, 0.5, 0.8])
def test_six_layers_meet_their_size(pruned: float, start: str) -> None:
    """The size is met within 0.5 %, and by no more ranks off the multiple than that takes."""
    shapes = MINILM * 6
    dense = sum(math.prod(shape) for shape in shapes)
    generator = torch.Generator().manual_seed(0)
    values = []
    for shape in shapes:
        full = break_even_rank(*shape) if start == "break-even" else min(shape)
        decay = torch.exp(-torch.linspace(0, 4 * float(torch.rand(1, generator=generator)), full))
        values.append((decay * torch.rand(full, generator=generator)).square())
    size = round((1 - pruned) * dense)
    found = allocate_ranks(values, shapes, size)
    assert 0.995 * size <= found.size <= size
    check_consistent(found, values, shapes, size, 1)
    assert found.gap <= 0.01 * found.objective
    aligned = [rank for rank in found.ranks if rank is None or rank % 8 == 0]
    assert len(aligned) >= len(shapes) - 3


@given(seed=seeds, sparsity=st.floats(0.05, 0.6))
def test_whole_matrices_are_those_that_the_best_ranks_do_not_truncate(seed: int, sparsity: float) -> None:
    shapes = [(4, 5), (3, 3), (5, 2)]
    values = [component_values(normal(seed + i, *shape)) for i, shape in enumerate(shapes)]
    size = sum(map(math.prod, shapes)) - round(sparsity * sum(map(math.prod, shapes)))
    shares = [value.square() / value.square().sum() for value in values]
    fitting = [
        (sum(float(share[rank:].sum()) for share, rank in zip(shares, ranks, strict=True)), ranks)
        for ranks in itertools.product(*(range(1, min(shape) + 1) for shape in shapes))
        if sum(stored_size(rank, *shape) for rank, shape in zip(ranks, shapes, strict=True)) <= size
    ]
    found = kept_whole(values, shapes, sparsity, multiple=1)
    if not fitting:
        assert found == [False] * 3
        return
    best = min(fitting)[1]
    assert found == [rank * sum(shape) >= math.prod(shape) for rank, shape in zip(best, shapes, strict=True)]


def test_what_stays_whole_needs_all_values() -> None:
    with pytest.raises(ValueError, match="2 values of matrix 1 of \\(3, 4\\); give all of them"):
        kept_whole([torch.ones(2), torch.ones(2)], [(2, 2), (3, 4)], 0.5)


@given(seed=seeds, outputs=sides, inputs=sides)
def test_values_without_the_factors_are_theirs(seed: int, outputs: int, inputs: int) -> None:
    w, x = normal(seed, outputs, inputs), normal(seed + 1, 12, inputs)
    torch.testing.assert_close(component_values(w), factorise_svd(w).values)
    gram = x.t() @ x
    for given_gram in (gram, gram.diagonal()):
        torch.testing.assert_close(component_values(w, given_gram), factorise_whitened(w, given_gram).values)


def test_left_over_size_goes_to_single_components() -> None:
    shapes, size = [(32, 32)] * 2, 64 * 13
    values = [torch.linspace(2, 1, 20), torch.linspace(1.9, 0.9, 20)]
    coarse = allocate_ranks(values, shapes, size, slack=0.5)
    assert coarse.ranks == [8, 1]
    filled = allocate_ranks(values, shapes, size)
    assert filled.size == size
    assert filled.objective < coarse.objective
    assert filled.bound <= allocate_ranks(values, shapes, size, multiple=1).objective <= filled.objective


def test_large_models_take_little_time_and_memory() -> None:
    """All single ranks of a BERT-base at once would be a table of billions; the bound of a filled choice needs none."""
    shapes = ([(768, 768)] * 4 + [(3072, 768), (768, 3072)]) * 12
    values = [torch.linspace(1, 0.5, 16).double() for _ in shapes]
    # 16 components of worth each, in steps of 16: one step does not fit, so single components fill up.
    size = sum(sum(shape) * 8 for shape in shapes) + 5000
    found = allocate_ranks(values, shapes, size, multiple=16, slack=0.0)
    check_consistent(found, values, shapes, size, 1)
    assert found.seconds < 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], 1), "0 values, 0 shapes"),
        (([torch.ones(2)], [], 1), "1 values, 0 shapes"),
        (([torch.ones(2)], [(2, 2)], 0), "size 0"),
        (([torch.ones(2)], [(2, 2)], 3.5), "size 3.5"),
        (([torch.ones(2)], [(2, 2)], 4, 0), "multiple 0"),
        (([torch.ones(2)], [(2, 2)], 4, 8, 0), "least 0"),
        (([torch.ones(2)], [(2, 2)], 4, 8, 1, 1.0), "slack 1.0"),
        (([torch.ones(3)], [(2, 2)], 4), r"values of shape \(3,\) for matrix 0"),
        (([torch.ones(2, 2)], [(2, 2)], 4), r"values of shape \(2, 2\)"),
        (([torch.tensor([1.0, -1.0])], [(2, 2)], 4), "matrix 0 with a negative"),
        (([torch.tensor([1.0, torch.nan])], [(2, 2)], 4), "NaN"),
        (([torch.ones(4), torch.ones(4)], [(4, 4)] * 2, 15), "size 15, but rank 1 of every matrix takes 16 already"),
    ],
)
def test_allocation_refuses(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        allocate_ranks(*arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: factorise_svd(torch.ones(3)), r"w of shape \(3,\)"),
        (lambda: factorise_svd(torch.ones(3, 3, dtype=torch.int64)), "torch.int64"),
        (lambda: factorise_svd(torch.full((2, 2), torch.inf)), "infinity"),
        (lambda: factorise_svd(torch.ones(3, 2), 0), r"rank 0 of a matrix of \(3, 2\); give 1 to 2"),
        (lambda: factorise_svd(torch.ones(3, 2), 3), "rank 3"),
        (lambda: factorise_whitened(torch.ones(3, 2), torch.eye(3)), r"gram of shape \(3, 3\)"),
        (lambda: factorise_whitened(torch.ones(3, 2), -torch.eye(2)), "negative diagonal"),
        (lambda: factorise_whitened(torch.ones(3, 2), torch.zeros(2, 2)), "no input"),
        (lambda: factorise_whitened(torch.ones(3, 2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "not positive"),
        (lambda: factorise_whitened(torch.ones(3, 2), torch.eye(2) * torch.nan), "gram with NaN"),
        (lambda: factorise_whitened(torch.ones(3, 2), torch.eye(2), ridge=0.0), "ridge 0.0"),
        (lambda: factorise_random((0, 2), 1, torch.Generator()), "all are at least 1"),
        (lambda: break_even_rank(0, 2), "0 outputs and 2 inputs"),
        (lambda: stored_size(-1, 2, 2), "rank -1"),
    ],
)
def test_factorisations_refuse(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
