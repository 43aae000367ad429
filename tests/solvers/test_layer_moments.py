"""Streamed second moments, and the supports that a layer may have."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from argprune.solvers.admm import NM, Grouped, Layer, Moments, Support, Unstructured, relative_error
from argprune.solvers.groups import Blocks, Columns, Groups, Rows
from argprune.solvers.methods.base import keep_count


def tokens(count: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=9),
    folds=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_streamed_moments_are_those_of_all_tokens_and_of_each_fold(
    sizes: list[int], folds: int, dtype: torch.dtype
) -> None:
    batches = [tokens(size, 3, seed) for seed, size in enumerate(sizes)]
    moments = Moments(3, folds, dtype)
    for batch in batches:
        moments.update(batch.unsqueeze(1))
    full = [batch for batch in batches if len(batch)]
    assert moments.tokens == sum(sizes)
    if not full:
        with pytest.raises(ValueError, match="no tokens"):
            moments.gram()
        return
    x = torch.cat(full)
    # float32 sums of at most 63 terms of size 10.
    tol = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(moments.gram(), (x.t() @ x / len(x)).to(dtype), rtol=tol, atol=tol)
    assert moments.folds == min(folds, len(full))
    for fold in range(moments.folds):
        own = torch.cat(full[fold::folds])
        torch.testing.assert_close(moments.gram(fold), (own.t() @ own / len(own)).to(dtype), rtol=tol, atol=tol)
        if moments.folds > 1:
            rest = torch.cat([batch for i, batch in enumerate(full) if i % folds != fold])
            torch.testing.assert_close(
                moments.gram_without(fold), (rest.t() @ rest / len(rest)).to(dtype), rtol=tol, atol=tol
            )


def test_moments_widen_what_half_precision_would_round() -> None:
    moments = Moments(1)
    moments.update(torch.full((4096, 1), 0.1, dtype=torch.bfloat16))
    assert float(moments.gram()) == float(torch.tensor(0.1, dtype=torch.bfloat16)) ** 2


def test_dead_inputs_are_those_that_no_token_used() -> None:
    moments = Moments(3, folds=2)
    moments.update(torch.tensor([[1.0, 0.0, 0.0]]))
    moments.update(torch.tensor([[0.0, 0.0, 2.0]]))
    assert moments.dead.tolist() == [False, True, False]


def test_moments_refuse_what_is_no_batch_of_inputs() -> None:
    moments = Moments(3, folds=2)
    with pytest.raises(ValueError, match=r"shape \(2, 4\); give \(\.\.\., 3\)"):
        moments.update(torch.ones(2, 4))
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN or an infinity"):
            moments.update(torch.full((2, 3), wrong))
    assert moments.tokens == 0
    moments.update(torch.full((2, 3), 3e38))
    moments.update(torch.ones(2, 3))
    assert moments.tokens == 4
    with pytest.raises(ValueError, match="float16"):
        Moments(3, dtype=torch.float16)
    for columns, folds in ((0, 1), (3, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            Moments(columns, folds)
    other = Moments(3, folds=2)
    other.update(torch.ones(1, 3))
    with pytest.raises(ValueError, match="no tokens in fold 1"):
        other.gram(1)
    with pytest.raises(ValueError, match="no tokens outside fold 0"):
        other.gram_without(0)


def best(scores: Tensor, groups: Tensor, keep: int) -> float:
    """The largest sum of squared scores over so many groups; groups: (entries,), the group of each."""
    sums = torch.zeros(int(groups.max()) + 1, dtype=scores.dtype).scatter_add_(0, groups, scores.flatten().square())
    return float(sums.sort(descending=True).values[:keep].sum())


@given(
    seed=st.integers(0, 100),
    sparsity=st.floats(0, 1),
    groups=st.sampled_from([Rows(), Columns(), Blocks(2, 3), Blocks(1, 2)]),
)
def test_group_supports_keep_exactly_their_share_of_whole_groups(seed: int, sparsity: float, groups: Groups) -> None:
    scores = tokens(4, 6, seed).abs()
    mask = Grouped(groups, sparsity).select(scores)
    kept = groups.split(mask)
    count = keep_count(len(kept), sparsity)
    assert int(kept.all(1).sum()) == int(kept.any(1).sum()) == count
    number = torch.arange(len(kept))[:, None].expand(kept.shape)
    own = groups.join(number, scores.shape).flatten()
    assert float((scores * mask).square().sum()) == pytest.approx(best(scores, own, count))


@given(seed=st.integers(0, 100), sparsity=st.floats(0, 1), n=st.integers(0, 3))
def test_entry_supports_keep_exactly_their_share_and_the_largest(seed: int, sparsity: float, n: int) -> None:
    scores = tokens(4, 6, seed).abs()
    whole = Unstructured(sparsity).select(scores)
    assert int(whole.sum()) == keep_count(24, sparsity)
    rows = Unstructured(sparsity, "row").select(scores)
    assert rows.sum(1).tolist() == [keep_count(6, sparsity)] * 4
    pattern = NM(n, 3).select(scores)
    assert pattern.reshape(-1, 3).sum(1).tolist() == [n] * 8
    for mask, view in ((whole, (1, 24)), (rows, (4, 6)), (pattern, (8, 3))):
        for kept, score in zip(mask.reshape(view), scores.reshape(view), strict=True):
            if kept.any() and not kept.all():
                assert float(score[kept].min()) >= float(score[~kept].max())


@pytest.mark.parametrize(
    "support", [Unstructured(0.7), Unstructured(0.7, "row"), NM(1, 3), Grouped(Blocks(2, 2), 0.7)], ids=str
)
def test_an_eased_support_goes_from_everything_to_itself(support: Support) -> None:
    scores = tokens(6, 6).abs()
    counts = [int(support.eased(share).select(scores).sum()) for share in (0.0, 0.3, 0.6, 1.0)]
    assert counts[0] == 36
    assert counts == sorted(counts, reverse=True)
    assert support.eased(1.0) == support


def test_supports_and_layers_refuse_what_does_not_fit() -> None:
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            Unstructured(wrong)
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            Grouped(Rows(), wrong)
    with pytest.raises(ValueError, match="'matrix' or 'row'"):
        Unstructured(0.5, "column")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n 5"):
        NM(5, 4)
    with pytest.raises(ValueError, match="NaN"):
        Unstructured(0.5).select(torch.full((2, 2), torch.nan))
    moments = Moments(4)
    moments.update(tokens(8, 4))
    weight = torch.ones(2, 4)
    with pytest.raises(ValueError, match="3 does not divide the 4 columns"):
        Layer(weight, moments, NM(1, 3))
    with pytest.raises(ValueError, match="does not divide"):
        Layer(weight, moments, Grouped(Blocks(1, 3), 0.5))
    with pytest.raises(ValueError, match="weight of 5 columns, moments of 4"):
        Layer(torch.ones(2, 5), moments, Unstructured(0.5))
    with pytest.raises(ValueError, match="floating matrix"):
        Layer(torch.ones(4), moments, Unstructured(0.5))
    with pytest.raises(ValueError, match="NaN or an infinity"):
        Layer(torch.full((2, 4), torch.inf), moments, Unstructured(0.5))
    with pytest.raises(ValueError, match="give Unstructured"):
        Layer(weight, moments, 0.5)  # type: ignore[arg-type]


def test_relative_error_is_that_of_the_outputs() -> None:
    x, w, v = tokens(20, 3), tokens(2, 3, 1), tokens(2, 3, 2)
    wanted = float(((x @ (w - v).t()).square().sum()) / (x @ w.t()).square().sum())
    assert relative_error(w, v, x.t() @ x / 20) == pytest.approx(wanted)
    zero = torch.zeros(2, 3)
    assert relative_error(zero, zero, torch.eye(3)) == 0
    assert relative_error(zero, w, torch.eye(3)) == float("inf")
