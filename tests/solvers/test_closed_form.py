"""The closed form against a stable sort: exactly k, ties by position, whatever the sample of the bracket says."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argprune.solvers.ilp import Selection, closed_form, keep_largest, kth_largest, one_pass, solve
from argprune.solvers.ilp.bracket import bracket, evenly
from argprune.solvers.sampling import stride_of

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
    stride = stride_of(n, closed_form._SAMPLE)
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
def test_exact_where_the_sample_misleads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_form, "_DIRECT", 0)
    scores = patterns()[name]
    total = sum(score.numel() for score in scores)
    for keep in (1, 2, total // 3, total - 1):
        assert_same(scores, keep)


def test_a_sample_that_misses_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_form, "_DIRECT", 0)
    for dtype in DTYPES:
        scores = [torch.arange(60, dtype=dtype), torch.arange(60, 100, dtype=dtype)]
        # A bracket that holds nothing of what is asked for, on either side.
        for ends in ((90.0, 95.0), (5.0, 10.0), (50.5, 50.6)):
            monkeypatch.setattr(closed_form, "bracket", lambda *_, ends=ends: ends)
            for keep in (1, 30, 50, 99):
                assert float(kth_largest(scores, keep)) == 100 - keep
                assert_same(scores, keep)


@given(data=st.data(), sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6), stride=st.integers(1, 20))
def test_the_sample_is_even_across_tensors(data: st.DataObject, sizes: list[int], stride: int) -> None:
    start = data.draw(st.integers(0, stride - 1))
    ramp = torch.arange(float(sum(sizes)))
    assert evenly(torch.split(ramp, sizes), stride, start).tolist() == ramp[start::stride].tolist()


@given(data=st.data(), size=st.integers(1, 3000), drawn=st.integers(1, 400))
def test_the_bracket_of_a_shuffled_ramp_holds_the_kth(data: st.DataObject, size: int, drawn: int) -> None:
    k = data.draw(st.integers(1, size))
    ramp = torch.randperm(size, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99)))).float()
    low, high = bracket(ramp[:drawn].numpy(), k, size)
    assert low <= k - 1 <= high
    if drawn >= size:
        # Five deviations of as many as were drawn, on each side.
        assert high - low <= 10 * math.sqrt(k * (1 - k / size)) + 6 or math.isinf(high - low)


N = 1 << 18
EXACT = {
    "all negative": lambda u: -u - 0.5,
    "all positive": lambda u: u + 0.5,
    "both signs": lambda u: u - 0.3,
    "many magnitudes": lambda u: -torch.exp(40 * u),
    "many magnitudes, positive": lambda u: torch.exp(40 * u),
    "negative infinities": lambda u: torch.where(u < 1e-3, -math.inf, u),
    "positive infinities": lambda u: torch.where(u > 0.4, math.inf, -u),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_sums_over_many_entries_are_exact(name: str, dtype: torch.dtype) -> None:
    """Of what is kept, when it is asked for, and of what lies below a bracket, during the pass."""
    u = torch.rand(N, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    cost = EXACT[name](u).to(dtype)
    for keep in (3, N // 2000, N // 100, N // 10, N // 3, N - 5):
        solution = solve(Selection([cost[:1000], cost[1000:]], keep))
        kept = cost[torch.cat(solution.masks)].tolist()
        assert len(kept) == keep
        if math.inf in kept or -math.inf in kept:
            assert solution.objective == (math.inf if math.inf in kept else -math.inf)
        else:
            # 1e-13 of the sum of magnitudes: float32 sums would be wrong by 1e-8 of it.
            assert abs(solution.objective - math.fsum(kept)) <= 1e-13 * math.fsum(map(abs, kept))
        low = float(cost.kthvalue(keep).values)
        seen = one_pass.look([cost[:1000], cost[1000:]], low, low, N)
        assert seen is not None
        below = cost[cost < low].tolist()
        assert seen.below == len(below)
        if -math.inf in below:
            assert seen.total == -math.inf
        else:
            assert abs(seen.total - math.fsum(below)) <= 1e-13 * math.fsum(map(abs, below))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [-3.0, 0.0, 3.0])
def test_one_pass_finds_a_single_nan(dtype: torch.dtype, shift: float) -> None:
    cost = torch.randn(N, generator=torch.Generator().manual_seed(5)).add(shift).to(dtype)
    for position in (0, 12_345, N - 1):
        spoiled = cost.clone()
        spoiled[position] = -math.nan if position else math.nan
        for keep in (1, N // 10, N - 1):
            with pytest.raises(ValueError, match="costs of tensor 1 contain NaN"):
                solve(Selection([cost, spoiled], keep))


def test_one_pass_finds_nan_among_equal_and_infinite_costs() -> None:
    ramp = torch.arange(float(N))
    for cost in (torch.ones(N), torch.where(ramp % 2 == 0, math.inf, -math.inf), torch.full((N,), math.nan)):
        spoiled = cost.clone()
        spoiled[N // 2] = math.nan
        with pytest.raises(ValueError, match="costs of tensor 0 contain NaN"):
            solve(Selection(spoiled, N // 10))


def test_one_pass_gives_up_where_its_sample_misleads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_pass, "_SAMPLE", 1 << 12)
    stride = stride_of(N, one_pass.sample_size(N))
    ramp = torch.arange(float(N))
    for cost in (torch.where(ramp % stride == 0, -ramp, ramp), torch.where(ramp % stride == 0, ramp + N, -ramp)):
        assert one_pass.choose([cost], N // 10) is None
        solution = solve(Selection(cost, N // 10))
        expected = torch.zeros(N, dtype=torch.bool)
        expected[cost.sort(stable=True).indices[: N // 10]] = True
        assert torch.equal(solution.masks[0], expected)


def test_one_pass_is_the_same_with_every_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = torch.randn(N, generator=torch.Generator().manual_seed(6))
    monkeypatch.setattr(one_pass, "_PIECE", 1 << 12)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    three = one_pass.choose([cost], N // 10)
    assert three is not None
    of_three = one_pass.kept_sum([cost], three.masks)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    one = one_pass.choose([cost], N // 10)
    assert one is not None
    assert torch.equal(one.masks[0], three.masks[0])
    assert (one.largest_kept, one.smallest_pruned, one.ties) == (three.largest_kept, three.smallest_pruned, three.ties)
    # Pieces are summed in order of position, whichever thread was done first.
    assert one_pass.kept_sum([cost], one.masks) == of_three


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
