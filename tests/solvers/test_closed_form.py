"""keep_largest against a stable sort: exactly k, ties by position, whatever the sample of the bracket says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argprune.solvers.ilp import closed_form, keep_largest, kth_largest

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
few_values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 0.5, float("inf"), -float("inf")])
any_values = st.floats(-100, 100, width=16)


def reference(scores: list[Tensor], keep: int) -> list[Tensor]:
    """The same selection by one stable sort of everything."""
    flat = torch.cat([score.double().flatten() for score in scores])
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[flat.sort(descending=True, stable=True).indices[:keep]] = True
    parts = mask.split([score.numel() for score in scores])
    return [part.view(score.shape) for part, score in zip(parts, scores, strict=True)]


def assert_same(scores: list[Tensor], keep: int) -> None:
    masks = keep_largest(scores, keep)
    assert sum(int(mask.sum()) for mask in masks) == keep
    for mask, expected in zip(masks, reference(scores, keep), strict=True):
        assert mask.dtype == torch.bool
        assert torch.equal(mask, expected)


@given(data=st.data(), dtype=st.sampled_from(DTYPES), values=st.sampled_from([few_values, any_values]))
@settings(max_examples=200)
def test_equals_a_stable_sort(data: st.DataObject, dtype: torch.dtype, values: st.SearchStrategy[float]) -> None:
    lists = data.draw(st.lists(st.lists(values, max_size=12), min_size=1, max_size=4))
    scores = [torch.tensor(part, dtype=dtype) for part in lists]
    total = sum(len(part) for part in lists)
    keep = data.draw(st.integers(0, total))
    # A bracket from every sample size, the tiniest included, must lead to the same answer.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(closed_form, "_DIRECT", data.draw(st.sampled_from([0, 1 << 16])))
        patch.setattr(closed_form, "_SAMPLE", data.draw(st.sampled_from([1, 3, 1 << 16])))
        assert_same(scores, keep)
        if keep:
            expected = torch.cat([score.double() for score in scores]).sort(descending=True).values[keep - 1]
            assert float(kth_largest(scores, keep)) == float(expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_scores_count_in_their_own_order(dtype: torch.dtype) -> None:
    """A transposed matrix with ties: positions are those of the tensor as it is seen, not as it is stored."""
    scores = [torch.tensor([[1.0, 2.0, 1.0], [1.0, 1.0, 2.0]], dtype=dtype).t(), torch.ones(4, dtype=dtype)[::2]]
    for keep in range(9):
        assert_same(scores, keep)


def test_large_random_input_against_topk() -> None:
    scores = [torch.randn(1000, 1200), torch.randn(800_000)]
    flat = torch.cat([score.flatten() for score in scores])
    for keep in (1, 1234, 1_000_000, 1_999_999):
        masks = keep_largest(scores, keep)
        selected = torch.cat([mask.flatten() for mask in masks])
        assert int(selected.sum()) == keep
        # Which of two equal scores topk takes is open; the scores that it takes are not.
        kept = flat[selected].sort(descending=True).values
        assert torch.equal(kept, flat.topk(keep).values)


def patterns() -> dict[str, list[Tensor]]:
    """Inputs on which an evenly spaced sample says little or the wrong thing."""
    n = 140_000
    ramp = torch.arange(n, dtype=torch.float32)
    stride = n // closed_form._SAMPLE
    needles = torch.zeros(n)
    needles[::stride] = 1 + torch.arange(len(needles[::stride]))
    unseen = torch.ones(n)
    unseen[::stride] = 0
    half = torch.randn(n).half()
    return {
        "constant": [torch.full((n,), 0.25)],
        "ascending": [ramp],
        "descending": [ramp.flip(0)],
        "only the sampled entries are large": [needles],
        "only the sampled entries are small": [unseen],
        "periodic": [ramp % stride, ramp % 7],
        "one huge entry": [torch.zeros(n).index_fill_(0, torch.tensor(n - 1), 1e30)],
        "tensors of very different scale": [1e-6 * torch.rand(n), 1e6 * torch.rand(50), torch.rand(n)],
        "many tiny tensors": list(torch.randn(2000, 70)),
        "few distinct values": [half],
        "infinities": [torch.where(ramp % 3 == 0, torch.inf, -torch.inf)],
    }


@pytest.mark.parametrize("name", patterns())
def test_exact_where_the_sample_misleads(name: str) -> None:
    scores = patterns()[name]
    total = sum(score.numel() for score in scores)
    for keep in (1, 2, total // 3, total - 1):
        assert_same(scores, keep)


def test_a_sample_that_misses_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [torch.arange(100.0)]
    # A bracket that holds nothing of what is asked for, on either side.
    for low, high in ((90.0, 95.0), (5.0, 10.0), (50.5, 50.6)):
        bracket = (torch.tensor(low), torch.tensor(high))
        monkeypatch.setattr(closed_form, "_bracket", lambda *_, bracket=bracket: bracket)
        for keep in (1, 30, 50, 99):
            assert float(kth_largest(scores, keep)) == 100 - keep
            assert_same(scores, keep)


def test_refusals() -> None:
    scores = [torch.tensor([1.0, 2.0]), torch.tensor([torch.nan])]
    with pytest.raises(ValueError, match="NaN"):
        keep_largest(scores, 1)
    for keep in (-1, 4):
        with pytest.raises(ValueError, match=f"keep {keep} of 3"):
            keep_largest(scores, keep)


def test_nothing_and_everything() -> None:
    scores = [torch.zeros(2, 3), torch.zeros(0), torch.zeros(())]
    for keep, value in ((0, False), (7, True)):
        for mask, score in zip(keep_largest(scores, keep), scores, strict=True):
            assert mask.shape == score.shape
            assert bool((mask == value).all())
