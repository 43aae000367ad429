"""Selection over processes and over shards against the closed form of all costs in one place."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import Threads
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, multiprocessing

from argprune.solvers.ilp import Selection, Solution, digits, one_pass, sharded, solve, solve_sharded, solve_streamed
from argprune.solvers.ilp.bracket import bracket
from argprune.solvers.sampling import stride_of

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
special = st.sampled_from([0.0, -0.0, 1.0, -2.0, 5e-8, -5e-8, 1e-45, -1e-45, -5e-324, math.inf, -math.inf])
reals = st.floats(-100, 100, width=16)

Costs = list[Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cases() -> dict[str, list[Costs]]:
    """Costs of two ranks."""
    ramp = torch.arange(40_000.0)
    infinite = torch.where(ramp % 3 == 0, math.inf, torch.where(ramp % 3 == 1, -math.inf, ramp))
    return {
        "normal": [[normal(100, 70), normal(9000)], [normal(5000, seed=1), normal(0), normal(3, 4, 5, seed=2)]],
        "bfloat16": [[normal(7000).bfloat16()], [normal(70, 100, seed=1).bfloat16().t()]],
        "float64": [[normal(10).double()], [normal(200, 200, seed=1).double()]],
        "float16": [[normal(3000).half()[::2]], [normal(50, seed=1).half(), normal(2, seed=3).half()]],
        "one rank holds nothing": [[], [normal(500), normal(20, 30, seed=1)]],
        "the other holds entries of none": [[normal(300)], [normal(0)]],
        "all equal": [[torch.ones(20_000)], [torch.ones(200, 100), torch.ones(7)]],
        "all of one rank smaller": [[ramp], [-1 - ramp, ramp - 1e5]],
        "infinities": [[infinite], [infinite.flip(0)[:1000], torch.tensor(math.inf)]],
        "zeros of both signs": [[torch.zeros(5000), -torch.zeros(5000)], [1e-45 * (ramp % 3 - 1)]],
        "one tensor": [[normal(6)], [normal(6)]],
        "empty": [[], [torch.zeros(0)]],
    }


def counts(total: int) -> list[int]:
    return sorted({0, total // 10, total // 2, total} | ({1, total - 1} if total else set()))


ONE = torch.ones(3)
# What each of two ranks gives, and what both must answer.
REFUSALS: dict[str, tuple[tuple[Any, int], tuple[Any, Any], str]] = {
    "NaN": (([ONE], 1), ([ONE, torch.tensor([1.0, math.nan])], 1), "rank 1: costs of tensor 1 contain NaN"),
    "integers": (([ONE], 1), ([ONE.long()], 1), "rank 1: costs: torch.int64; give"),
    "different dtypes": (([ONE], 1), (ONE.half(), 1), "torch.float16, torch.float32 on different ranks; give"),
    "different counts": (([ONE], 1), ([ONE], 2), "keep 1, 2 on different ranks; give"),
    "too many": (([ONE], 7), ([ONE], 7), "keep 7 of 6 entries on all ranks; need 0 <= keep <= 6"),
    "negative": (([ONE], 1), ([ONE], -1), "rank 1: keep -1; a count is an integer >= 0"),
    "no integer": (([ONE], 1), ([ONE], 1.5), "rank 1: keep 1.5; a count"),
    "nothing": (([], 0), ([], 0), "no rank holds any tensor; give"),
}


def run_rank(rank: int, folder: Path) -> None:
    """Everything that one process of two does; what it found goes to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    found: dict[Any, Any] = {}
    # Pieces smaller than the tensors, and less than all of them in the sample.
    one_pass._SAMPLE, one_pass._PIECE, one_pass.LEAST = 400, 512, 0
    for name, ranks in cases().items():
        for keep in counts(sum(cost.numel() for part in ranks for cost in part)):
            found[name, keep] = solve_sharded(ranks[rank], keep)
    for name, case in REFUSALS.items():
        costs, keep = case[:2][rank]
        try:
            solve_sharded(costs, keep)
        except ValueError as error:
            found[name] = str(error)
    alone = dist.new_group([1])
    if rank == 1:
        found["alone"] = solve_sharded(normal(60), 7, alone).masks
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What two processes found; they take a few seconds to start, so that all cases share them."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.spawn(run_rank, (folder,), nprocs=2, join=False)
    deadline = time.monotonic() + 120
    # False as long as one of them runs.
    while not context.join(timeout=1):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            pytest.fail("two ranks did not finish in 120 seconds: one waits for what the other never sends.")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def assert_same_value(objective: float, expected: float) -> None:
    assert objective == expected or objective == pytest.approx(expected, rel=1e-12, abs=1e-12)


def assert_is(answers: Sequence[Solution], expected: Solution) -> None:
    """Every rank's answer: the masks one after the other, and what is said of all costs the same on all."""
    masks = [mask for answer in answers for mask in answer.masks]
    for mask, same in zip(masks, expected.masks, strict=True):
        assert torch.equal(mask, same)
    for answer in answers:
        assert answer.certificate == expected.certificate
        assert answer.objective == answer.bound == answers[0].objective
        assert (answer.status, answer.gap) == ("optimal", 0)
        assert_same_value(answer.objective, expected.objective)


@pytest.mark.parametrize("name", cases())
def test_two_ranks_select_what_one_process_does(name: str, by_rank: list[dict[Any, Any]]) -> None:
    ranks = cases()[name]
    costs = [cost for part in ranks for cost in part]
    for keep in counts(sum(cost.numel() for cost in costs)):
        assert_is([found[name, keep] for found in by_rank], solve(Selection(costs, keep)))


@pytest.mark.parametrize("name", REFUSALS)
def test_every_rank_refuses_what_is_wrong_on_one(name: str, by_rank: list[dict[Any, Any]]) -> None:
    for found in by_rank:
        assert REFUSALS[name][2] in found[name]


def test_a_group_of_one_is_the_closed_form(by_rank: list[dict[Any, Any]]) -> None:
    assert torch.equal(by_rank[1]["alone"][0], solve(Selection(normal(60), 7)).masks[0])


@given(
    data=st.data(),
    dtype=st.sampled_from(DTYPES),
    values=st.sampled_from([special, reals]),
    sample=st.sampled_from([1, 4, 1 << 16]),
    crowd=st.sampled_from([0.0, 0.3, 1.0]),
    least=st.sampled_from([0, 1 << 17]),
)
@settings(max_examples=150)
def test_any_ranks_select_what_one_process_does(
    data: st.DataObject,
    dtype: torch.dtype,
    values: st.SearchStrategy[float],
    sample: int,
    crowd: float,
    least: int,
) -> None:
    lists = data.draw(st.lists(st.lists(st.lists(values, max_size=9), max_size=3), min_size=1, max_size=4))
    ranks = [[torch.tensor(part, dtype=dtype) for part in of_rank] for of_rank in lists]
    if not any(ranks):
        ranks[0].append(torch.zeros(1, dtype=dtype))
    costs = [cost for of_rank in ranks for cost in of_rank]
    keep = data.draw(st.integers(0, sum(map(len, costs))))
    expected = solve(Selection(costs, keep))
    with pytest.MonkeyPatch.context() as patch:
        # From a sample that says nothing, and from no room for what is inside the bracket, to plenty of both.
        for name, value in (("_SAMPLE", sample), ("_CROWD", crowd), ("LEAST", least), ("_PIECE", 4)):
            patch.setattr(one_pass, name, value)
        answers = Threads(len(ranks)).run(lambda rank: solve_sharded(ranks[rank], keep))
    assert_is(answers, expected)


SAMPLED = torch.arange(4000) % stride_of(4000, 100) == 0


@pytest.mark.parametrize(
    ("cost", "keep"),
    [
        (torch.where(SAMPLED, -1.0, 1.0) * torch.arange(1.0, 4001), 1000),
        (torch.where(SAMPLED, 1.0, -1.0) * torch.arange(1.0, 4001), 1000),
        # All inside the bracket are kept, and the smallest that is not lies outside.
        (torch.where(SAMPLED, 0.0, torch.arange(1.0, 4001)), int(SAMPLED.sum())),
    ],
    ids=["sampled are small", "sampled are large", "sampled are kept"],
)
def test_ranks_notice_a_sample_that_misleads(cost: Tensor, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their sample is that of all costs together; where it says the wrong thing, the answer is right all the same."""
    monkeypatch.setattr(one_pass, "_SAMPLE", 400)
    samples = []

    def recorded(sample: Any, k: int, total: int) -> tuple[float, float]:
        samples.append(sorted(sample.tolist()))
        return bracket(sample, k, total)

    monkeypatch.setattr(sharded, "bracket", recorded)
    parts = torch.split(cost, [1234, 66, 2700])
    answers = Threads(3).run(lambda rank: solve_sharded(parts[rank], keep))
    assert samples == [cost[SAMPLED].sort().values.tolist()] * 3
    assert_is(answers, solve(Selection(parts, keep)))


class Counted:
    """Shards that are made when asked for, and counted."""

    def __init__(self, shards: Sequence[Tensor | Sequence[Tensor]]) -> None:
        self.shards = shards
        self.loads = 0

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> Tensor | Sequence[Tensor]:
        self.loads += 1
        return self.shards[index]


def assert_streams_as_one(shards: list[Costs], keep: int, most_passes: int = 4) -> None:
    costs = [cost for shard in shards for cost in shard]
    expected: Solution = solve(Selection(costs, keep))
    counted = Counted(shards)
    solution = solve_streamed(counted, keep)
    assert counted.loads == solution.passes * len(shards)
    assert 1 <= solution.passes <= most_passes
    masks = [mask for of_shard in solution for mask in of_shard]
    for mask, same in zip(masks, expected.masks, strict=True):
        assert torch.equal(mask, same)
    assert [int(sum(mask.sum() for mask in solution.masks(i))) for i in range(len(shards))] == list(solution.kept)
    assert solution.certificate == expected.certificate
    assert solution.check() == 0
    assert solution.bound == solution.objective
    assert_same_value(solution.objective, expected.objective)


@given(data=st.data(), dtype=st.sampled_from(DTYPES), values=st.sampled_from([special, reals]), least=st.integers(0, 3))
@settings(max_examples=100)
def test_streamed_is_the_closed_form(
    data: st.DataObject, dtype: torch.dtype, values: st.SearchStrategy[float], least: int
) -> None:
    lists = data.draw(st.lists(st.lists(st.lists(values, max_size=6), max_size=3), min_size=1, max_size=3))
    shards = [[torch.tensor(part, dtype=dtype) for part in shard] for shard in lists]
    if not any(shards):
        shards[0].append(torch.zeros(1, dtype=dtype))
    keep = data.draw(st.integers(0, sum(cost.numel() for shard in shards for cost in shard)))
    with pytest.MonkeyPatch.context() as patch:
        # As little room for a class as makes every digit count.
        patch.setattr(one_pass, "LEAST", least)
        # Five digits of a float64, then the smallest above, then the objective of infinities.
        assert_streams_as_one(shards, keep, most_passes=7)


@pytest.mark.parametrize("name", cases())
def test_streams_what_ranks_hold(name: str) -> None:
    shards = cases()[name]
    for keep in counts(sum(cost.numel() for shard in shards for cost in shard)):
        assert_streams_as_one(shards, keep)


def test_two_passes_do_for_many_normal_costs() -> None:
    shards = [[normal(150_000, seed=seed)] for seed in range(4)]
    for keep in (1, 60_000, 300_000):
        solution = solve_streamed(shards, keep)
        assert solution.passes == 2
        assert solution.check() == 0
        assert sum(solution.kept) == keep


def test_shards_from_files(tmp_path: Path) -> None:
    costs = {f"layer.{index}": normal(30, 40, seed=index) for index in range(4)}
    for index in range(2):
        names = list(costs)[2 * index : 2 * index + 2]
        save_file({name: costs[name] for name in names}, tmp_path / f"{index}.safetensors")

    class Files:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> list[Tensor]:
            with safe_open(tmp_path / f"{index}.safetensors", "pt") as file:
                return [file.get_tensor(name) for name in sorted(file.keys())]

    solution = solve_streamed(Files(), keep=1000)
    masks = [mask for of_shard in solution for mask in of_shard]
    for mask, same in zip(masks, solve(Selection(list(costs.values()), 1000)).masks, strict=True):
        assert torch.equal(mask, same)


def test_shards_that_change_are_noticed() -> None:
    shards = [normal(100), normal(100, seed=1)]
    solution = solve_streamed(shards, keep=20)
    shards[1] = -normal(100, seed=1) - 3
    with pytest.raises(ValueError, match=r"shard 1: \d+ entries to keep, but \d+ when it was solved"):
        solution.masks(1)


@pytest.mark.parametrize(
    ("shards", "keep", "message"),
    [
        ([torch.ones(2), torch.tensor([1.0, math.nan])], 1, "shard 1: costs of tensor 0 contain NaN"),
        ([torch.ones(2), torch.ones(2, dtype=torch.int32)], 1, "shard 1: costs: torch.int32; give"),
        ([torch.ones(2), torch.ones(2).half()], 1, "shard 1: torch.float16, but others are torch.float32"),
        ([torch.ones(2)], 3, "keep 3 of 2 entries; need 0 <= keep <= 2"),
        ([torch.ones(2)], -1, "keep -1; a count"),
        ([torch.ones(2)], True, "keep True; a count"),
        ([], 0, "no shard holds any tensor"),
        ([[], []], 0, "no shard holds any tensor"),
    ],
)
def test_streamed_refusals(shards: list[Any], keep: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve_streamed(shards, keep)


@given(data=st.data(), dtype=st.sampled_from(DTYPES), values=st.sampled_from([special, reals]), most=st.integers(0, 4))
def test_digits_narrow_to_the_kth_smallest(
    data: st.DataObject, dtype: torch.dtype, values: st.SearchStrategy[float], most: int
) -> None:
    parts = [torch.tensor(part, dtype=dtype) for part in data.draw(st.lists(st.lists(values, max_size=9), max_size=3))]
    parts.append(torch.tensor([data.draw(values)], dtype=dtype))
    flat = torch.cat(parts)
    k = data.draw(st.integers(1, len(flat)))
    found = digits.narrow(lambda prefix: digits.count(parts, prefix), dtype, k, most)
    inside = (flat >= found.low) & (flat <= found.high)
    assert found.low <= flat.sort().values[k - 1] <= found.high
    assert int(inside.sum()) == found.size
    assert found.size <= most or found.low == found.high


def test_digits_of_every_pattern_of_sixteen_bits() -> None:
    """All numbers of float16 and bfloat16."""
    for dtype in (torch.float16, torch.bfloat16):
        flat = torch.arange(1 << 16).to(torch.int32).to(torch.int16).view(dtype)
        flat = flat[~flat.isnan()]
        ordered = flat.sort().values

        def counted(prefix: tuple[int, ...], flat: Tensor = flat) -> Tensor:
            return digits.count([flat], prefix)

        for k in (1, 2, 100, len(flat) // 2, len(flat) // 2 + 1, len(flat) - 1, len(flat)):
            assert digits.narrow(counted, dtype, k).low == float(ordered[k - 1])


@pytest.mark.parametrize(("dtype", "tiny"), [(torch.float32, 1e-45), (torch.float64, 5e-324)], ids=str)
def test_the_class_below_zero_holds_no_zero(dtype: torch.dtype, tiny: float) -> None:
    flat = torch.tensor([0.0, -tiny, -0.0, 1.0], dtype=dtype)
    found = digits.narrow(lambda prefix: digits.count([flat], prefix), dtype, 1, most=1)
    assert int((flat <= found.high).sum()) == found.size == 1
    assert digits.narrow(lambda prefix: digits.count([flat], prefix), dtype, 2, most=2).size == 2
