"""Certificates against enumeration: zero for optimal masks alone, the true distance otherwise, margins that hold."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argprune.solvers.groups import BlockColumns, BlockRows, Blocks, Columns, Groups, Rows, Runs, Whole
from argprune.solvers.ilp import Certificate, GroupCertificate, Selection, group_certificate, problem, solve

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
integers = st.integers(-3, 3).map(float)
with_infinities = st.sampled_from([0.0, -0.0, 1.0, -2.0, 3.0, math.inf, -math.inf])


@st.composite
def instances(draw: st.DrawFn, values: st.SearchStrategy[float] = integers) -> tuple[list[Tensor], int, dict[str, Any]]:
    """Up to 8 entries in up to 3 tensors, a count, and how the certificate bounds the tensors' counts."""
    parts = draw(st.lists(st.lists(values, max_size=4), min_size=1, max_size=3).filter(lambda p: sum(map(len, p)) <= 8))
    costs = [torch.tensor(part, dtype=draw(st.shared(st.sampled_from(DTYPES), key="dtype"))) for part in parts]
    counts = [draw(st.integers(0, len(part))) for part in parts]
    kind = draw(st.sampled_from(["total", "tensor", "laminar"]))
    if kind == "laminar":
        least = [draw(st.integers(0, count)) for count in counts]
        most = [draw(st.integers(count, len(part))) for count, part in zip(counts, parts, strict=True)]
        return costs, sum(counts), {"least": least, "most": most}
    if kind == "tensor":
        return costs, sum(counts), {"least": counts, "most": counts}
    return costs, sum(counts), {}


def feasible(costs: Sequence[Tensor], keep: int, bounds: dict[str, Any]) -> Iterator[list[Tensor]]:
    """Every mask that the counts allow."""
    sizes = [len(cost) for cost in costs]
    for kept in itertools.combinations(range(sum(sizes)), keep):
        mask = torch.zeros(sum(sizes), dtype=torch.bool)
        mask[list(kept)] = True
        masks = list(torch.split(mask, sizes))
        counts = [int(part.sum()) for part in masks]
        least, most = bounds.get("least", [0] * len(sizes)), bounds.get("most", sizes)
        if all(low <= count <= high for low, count, high in zip(least, counts, most, strict=True)):
            yield masks


def kept_costs(costs: Sequence[Tensor], masks: Sequence[Tensor]) -> list[float]:
    return sorted(float(c) for cost, mask in zip(costs, masks, strict=True) for c in cost[mask])


@given(instance=instances(), chunk=st.sampled_from([1, 3, 1 << 16]))
@settings(max_examples=150, deadline=None)
def test_gap_is_the_distance_to_the_best_mask(instance: tuple[list[Tensor], int, dict[str, Any]], chunk: int) -> None:
    costs, keep, bounds = instance
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(problem, "_CHUNK", chunk)
        masks = list(feasible(costs, keep, bounds))
        best = min(sum(kept_costs(costs, mask)) for mask in masks)
        solution = solve(Selection(costs, keep, **bounds))
        assert solution.objective == best
        certificate = solution.certificate
        assert certificate is not None
        assert (certificate.gap, certificate.check(costs, solution.masks)) == (0, 0)
        for mask in masks:
            above = sum(kept_costs(costs, mask)) - best
            # Integers: equal, not close.
            assert certificate.check(costs, mask) == above
            own = Certificate.of(costs, mask, **bounds)
            assert own.gap == own.check(costs, mask) == above
            if above > 0:
                assert own.margin == 0


@given(instance=instances(with_infinities))
@settings(max_examples=150, deadline=None)
def test_infinities_are_beyond_all_numbers_and_never_nan(instance: tuple[list[Tensor], int, dict[str, Any]]) -> None:
    costs, keep, bounds = instance
    solution = solve(Selection(costs, keep, **bounds))
    certificate = solution.certificate
    assert certificate is not None
    assert certificate.check(costs, solution.masks) == 0
    best = kept_costs(costs, solution.masks)
    for mask in feasible(costs, keep, bounds):
        kept = kept_costs(costs, mask)
        # Optimal masks keep the same costs, and all others are worse position by position.
        assert all(b <= c for b, c in zip(best, kept, strict=True))
        gap = certificate.check(costs, mask)
        assert (gap == 0) == (kept == best)
        assert gap >= 0
    expected = math.inf if math.inf in best else sum(best)
    assert solution.objective == expected
    assert Certificate.from_dict(json.loads(json.dumps(certificate.to_dict(), allow_nan=False))) == certificate


@given(instance=instances())
@settings(max_examples=150, deadline=None)
def test_margin_holds_and_is_the_largest(instance: tuple[list[Tensor], int, dict[str, Any]]) -> None:
    costs, keep, bounds = instance
    costs = [cost.double() for cost in costs]
    solution = solve(Selection(costs, keep, **bounds))
    assert solution.certificate is not None
    margin = solution.certificate.margin
    if math.isinf(margin):
        assert len(list(feasible(costs, keep, bounds))) == 1
        return

    def moved(by: float) -> float:
        """The gap after the worst move of all costs by at most `by`."""
        worse = [torch.where(mask, cost + by, cost - by) for cost, mask in zip(costs, solution.masks, strict=True)]
        return Certificate.of(worse, solution.masks, **bounds).gap

    assert moved(margin) == 0
    assert moved(margin + 0.25) > 0
    assert (margin == 0) == (sum(kept_costs(costs, solution.masks)) == second_best(costs, keep, bounds, solution.masks))


def second_best(costs: list[Tensor], keep: int, bounds: dict[str, Any], masks: list[Tensor]) -> float:
    """The least cost of any other mask."""
    others = [
        m for m in feasible(costs, keep, bounds) if any(not torch.equal(a, b) for a, b in zip(m, masks, strict=True))
    ]
    return min((sum(kept_costs(costs, other)) for other in others), default=math.inf)


def test_duals_of_one_count_a_tensor_and_ties() -> None:
    costs = [torch.tensor([5.0, 1.0, 3.0, 3.0]), torch.tensor([-1.0, -2.0])]
    masks = [torch.tensor([False, True, True, False]), torch.tensor([False, True])]
    total = Certificate.of(costs, masks)
    assert (total.keep, total.ties, total.margin) == (3, 1, 0)
    assert total.nu == 1 == total.thresholds[0] == total.thresholds[1]
    assert total.gap == 4
    each = Certificate.of(costs, masks, per_tensor=True)
    assert (each.gap, each.thresholds, each.ties, each.margin) == (0, (3, -2), 3, 0)
    assert each.least == each.most == (2, 1)


def test_scales_as_one_pass_over_many_entries() -> None:
    generator = torch.Generator().manual_seed(0)
    costs = [torch.randn(700, 900, generator=generator), torch.randn(300_000, generator=generator)[::2]]
    solution = solve(Selection(costs, keep=100_000))
    assert solution.certificate is not None
    assert solution.certificate.check(costs, solution.masks) == 0
    worse = [mask.clone() for mask in solution.masks]
    kept, pruned = worse[0].nonzero()[0], (~worse[0]).nonzero()[0]
    worse[0][tuple(kept)], worse[0][tuple(pruned)] = False, True
    difference = float(costs[0][tuple(pruned)].double() - costs[0][tuple(kept)].double())
    assert solution.certificate.check(costs, worse) == pytest.approx(difference, rel=1e-12)


def test_huge_costs_do_not_overflow_the_objective() -> None:
    costs = torch.tensor([1e308, 1e308, -1e308, -1e308], dtype=torch.float64)
    assert solve(Selection(costs, keep=4)).objective == 0
    assert solve(Selection(costs[:2], keep=2)).objective == math.inf
    many = 1e308 * torch.linspace(-1, 1, 1 << 18, dtype=torch.float64)
    assert solve(Selection(many, keep=len(many) // 2)).objective == -math.inf


def test_refusals() -> None:
    costs, masks = [torch.tensor([1.0, 2.0, 3.0])], [torch.tensor([True, False, False])]
    certificate = Certificate.of(costs, masks)
    with pytest.raises(ValueError, match="keeps 2 entries; it must keep 1"):
        certificate.check(costs, [torch.tensor([True, True, False])])
    with pytest.raises(ValueError, match=r"torch\.uint8 mask of shape \(3,\)"):
        certificate.check(costs, [masks[0].byte()])
    with pytest.raises(ValueError, match=r"mask of shape \(1, 3\) for costs of shape \(3,\)"):
        certificate.check(costs, [masks[0][None]])
    with pytest.raises(ValueError, match="2 masks for 1 tensors"):
        certificate.check(costs, masks * 2)
    with pytest.raises(ValueError, match="of 1 tensors; 2 were given"):
        certificate.check(costs * 2, [masks[0], ~masks[0]])
    with pytest.raises(ValueError, match="tensor 0 contain NaN"):
        certificate.check([torch.tensor([1.0, math.nan, 3.0])], masks)
    with pytest.raises(ValueError, match="keeps 1 of tensor 0; it must keep 2 to 3"):
        Certificate.of(costs * 2, [masks[0], ~masks[0]], least=[2, 0])
    with pytest.raises(ValueError, match="entries keep; give gap, keep"):
        Certificate.from_dict({"keep": 1})


@st.composite
def grouped(draw: st.DrawFn, values: st.SearchStrategy[float] = integers) -> tuple[list[Tensor], Groups]:
    """Two matrices of up to 4 x 4, and groups of two or more of their entries."""
    partitions: list[Groups] = [Rows(), Columns(), Blocks(1, 2), Blocks(2, 2), Runs(2), BlockRows(2), Whole()]
    groups = draw(st.sampled_from([*partitions, BlockColumns(strips=1)]))
    dtype = draw(st.sampled_from(DTYPES))
    shapes = draw(st.lists(st.sampled_from([(2, 2), (2, 4), (4, 2)]), min_size=1, max_size=2))
    entries = [draw(st.lists(values, min_size=h * w, max_size=h * w)) for h, w in shapes]
    return [torch.tensor(part, dtype=dtype).view(s) for part, s in zip(entries, shapes, strict=True)], groups


@given(instance=st.one_of(grouped(), grouped(with_infinities)), data=st.data(), batch=st.sampled_from([1, 6, 1 << 20]))
@settings(max_examples=200, deadline=None)
def test_gap_of_groups_is_the_distance_to_the_best_of_each(
    instance: tuple[list[Tensor], Groups], data: st.DataObject, batch: int
) -> None:
    costs, groups = instance
    flags = st.lists(st.booleans(), min_size=8, max_size=8)
    masks = [torch.tensor(data.draw(flags)[: cost.numel()]).view(cost.shape) for cost in costs]
    kept, best, ties, widths = [], [], 0, [math.inf]
    for cost, mask in zip(costs, masks, strict=True):
        for row, chosen in zip(groups.split(cost).tolist(), groups.split(mask).tolist(), strict=True):
            ordered, mine = sorted(row), sorted(c for c, flag in zip(row, chosen, strict=True) if flag)
            kept.append(mine)
            best.append(ordered[: len(mine)])
            ties += row.count(ordered[max(len(mine) - 1, 0)])
            out = [c for c, flag in zip(row, chosen, strict=True) if not flag]
            widths += [0.0 if low == high else high - low for low in mine for high in out]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_certificate, "_BATCH", batch)
        certificate = GroupCertificate.of(costs, masks, groups)
        checked = certificate.check(costs, masks)
    assert certificate.gap == checked
    assert (checked == 0) == (kept == best)
    above = [
        a - b for mine, optimal in zip(kept, best, strict=True) for a, b in zip(mine, optimal, strict=True) if a != b
    ]
    if all(math.isfinite(difference) for difference in above):
        assert checked == sum(above)
    else:
        assert checked == math.inf
    assert certificate.ties == ties
    assert certificate.margin == (min(widths) / 2 if kept == best else 0)
    counts = [len(mine) for mine in kept]
    assert certificate.keep == (counts[0] if len(set(counts)) == 1 else tuple(counts))
    again = GroupCertificate.from_dict(json.loads(json.dumps(certificate.to_dict(), allow_nan=False)))
    assert again == certificate
    assert again.check(costs, masks) == checked


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_solutions_of_groups_carry_their_certificate(dtype: torch.dtype) -> None:
    costs = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    two_of_four = solve(Selection(costs, 2, Blocks(1, 4)))
    certificate = two_of_four.certificate
    assert isinstance(certificate, GroupCertificate)
    assert (certificate.keep, certificate.gap, certificate.groups) == (2, 0, Blocks(1, 4))
    assert certificate.check(costs, two_of_four.masks) == 0
    # The first two of each four, against the best two.
    first = (torch.arange(64) % 4 < 2).expand(64, 64)
    above = float(costs[first].double().sum()) - two_of_four.objective
    assert certificate.check(costs, first) == pytest.approx(above, rel=1e-12)
    each = solve(Selection(costs, list(range(64)), Rows())).certificate
    assert isinstance(each, GroupCertificate)
    assert each.keep == tuple(range(64))
    assert solve(Selection(costs, 2, Blocks(1, 4)), certify=False).certificate is None


class Halves:
    """Groups of somebody else."""

    def split(self, w: Tensor) -> Tensor:
        return w.reshape(2, -1)

    def join(self, groups: Tensor, shape: torch.Size) -> Tensor:
        return groups.reshape(shape)


def test_refusals_of_groups() -> None:
    costs = torch.tensor([[1.0, 2.0], [4.0, 3.0]])
    mask = torch.tensor([[True, False], [False, True]])
    certificate = GroupCertificate.of(costs, mask, Rows())
    with pytest.raises(ValueError, match="keeps 2 of group 1; it must keep 1"):
        certificate.check(costs, torch.tensor([[True, False], [True, True]]))
    with pytest.raises(ValueError, match=r"mask of shape \(2,\) for costs of shape \(2, 2\)"):
        certificate.check(costs, mask[0])
    with pytest.raises(ValueError, match="tensor 0 contain NaN"):
        certificate.check(costs * math.nan, mask)
    uneven = GroupCertificate.of(costs, mask | torch.tensor([[True], [False]]), Rows())
    with pytest.raises(ValueError, match="of 2 groups; the costs have 1"):
        uneven.check(costs[:1], torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="of 2 groups; the costs have more"):
        uneven.check(costs.repeat(2, 1), mask.repeat(2, 1))
    with pytest.raises(ValueError, match="entries keep; give gap, groups"):
        GroupCertificate.from_dict({"keep": 1})
    own = GroupCertificate.of(costs, mask, Halves())
    with pytest.raises(ValueError, match="groups 'Halves', none of BlockColumns"):
        GroupCertificate.from_dict(own.to_dict())
    with pytest.raises(ValueError, match="groups Rows; the certificate is of Halves"):
        GroupCertificate.from_dict(own.to_dict(), Rows())
    assert GroupCertificate.from_dict(own.to_dict(), Halves()).check(costs, mask) == 0
