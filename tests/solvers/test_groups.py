"""Partitions of matrices, within and across: nothing lost, nothing leaked, sizes and norms as counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argprune.solvers.groups import (
    BlockColumns,
    BlockRows,
    Blocks,
    Columns,
    Elements,
    Groups,
    Part,
    Rows,
    Runs,
    Stacked,
    Tied,
    Transposed,
    Weight,
    Whole,
    group_norms,
    group_sizes,
)
from argprune.solvers.ilp import Selection, solve
from argprune.solvers.methods.base import keep_count
from argprune.solvers.methods.structures import Structure, closest_count, count_tolerance, select_groups, tie_masks
from argprune.solvers.prox import NM, GroupLasso, KGroups

SIDES = st.integers(1, 9)


@st.composite
def partitions(draw: st.DrawFn) -> tuple[Groups, tuple[int, int]]:
    """Groups and the shape of a matrix that they take."""
    rows, columns = draw(SIDES), draw(SIDES)
    size = st.integers(1, 11)
    groups: Groups = draw(
        st.one_of(
            st.sampled_from([Elements(), Rows(), Columns(), Whole()]),
            size.map(lambda width: BlockRows(width=width)),
            size.map(lambda height: BlockColumns(height=height)),
            st.integers(1, columns).map(lambda strips: BlockRows(strips=strips)),
            st.integers(1, rows).map(lambda strips: BlockColumns(strips=strips)),
            st.builds(Blocks, size, size, st.just(True)),
            st.sampled_from([Runs(length) for length in range(1, columns + 1) if columns % length == 0]),
            st.sampled_from([Stacked(Rows(), count) for count in range(1, rows + 1) if rows % count == 0]),
        )
    )
    if draw(st.booleans()):
        return Transposed(groups), (columns, rows)
    return groups, (rows, columns)


def numbered(shape: tuple[int, int]) -> Tensor:
    """A matrix of its own flat positions, counted from 1, so that a 0 is padding."""
    return torch.arange(1.0, shape[0] * shape[1] + 1).view(shape)


@given(partitions(), st.booleans())
def test_split_and_join_are_inverse_and_padding_stays_out(case: tuple[Groups, tuple[int, int]], turned: bool) -> None:
    groups, shape = case
    w = numbered((shape[1], shape[0])).t() if turned else numbered(shape)
    stack = groups.split(w)
    assert torch.equal(groups.join(stack, w.shape), w)
    # Every entry once; all else is padding, which a join drops whatever it holds.
    assert sorted(stack[stack > 0].tolist()) == sorted(w.flatten().tolist())
    noisy = torch.where(stack > 0, stack, torch.nan)
    assert torch.equal(groups.join(noisy, w.shape), w)
    sizes = group_sizes(groups, w.shape)
    assert torch.equal(sizes, (stack > 0).sum(1))
    assert int(sizes.sum()) == w.numel()
    assert bool((sizes > 0).all())
    mask = (w % 3 == 0).contiguous()
    assert torch.equal(groups.join(groups.split(mask), w.shape), mask)
    assert groups.split(torch.empty(w.shape, device="meta")).shape == stack.shape


@given(partitions(), st.integers(0, 3))
def test_norms_count_true_entries_only(case: tuple[Groups, tuple[int, int]], seed: int) -> None:
    groups, shape = case
    w = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    norms = group_norms(w, groups)
    assert norms.dtype == torch.float64
    assert float(norms.square().sum()) == pytest.approx(float(w.double().square().sum()), rel=1e-12)
    assert torch.allclose(group_norms(torch.full(shape, -0.3), groups, rms=True), torch.tensor(0.3).double(), rtol=1e-6)
    assert torch.allclose(
        group_norms(w, groups, rms=True) * group_sizes(groups, w.shape).double().sqrt(), norms, rtol=1e-15
    )


@given(SIDES, SIDES, st.integers(0, 5))
def test_strips_as_wide_as_the_matrix_are_its_rows_and_columns(rows: int, columns: int, more: int) -> None:
    w = numbered((rows, columns))
    for whole in (BlockRows(width=columns + more), BlockRows(strips=1)):
        assert torch.equal(whole.split(w), Rows().split(w))
    for whole_columns in (BlockColumns(height=rows + more), BlockColumns(strips=1)):
        assert torch.equal(whole_columns.split(w), Columns().split(w))
    assert torch.equal(Blocks(rows + more, columns + more, pad=True).split(w).sum(1), Whole().split(w).sum(1))


@given(SIDES, SIDES)
def test_strips_of_width_one_are_entries(rows: int, columns: int) -> None:
    w = numbered((rows, columns))
    for single in (BlockRows(width=1), BlockRows(strips=columns), Runs(1), Blocks(1, 1)):
        assert torch.equal(single.split(w), Elements().split(w))
    for turned in (BlockColumns(height=1), BlockColumns(strips=rows)):
        assert torch.equal(turned.split(w), Elements().split(w.t()))


@given(SIDES, SIDES, st.integers(1, 11))
def test_strips_are_runs_of_neighbours(rows: int, columns: int, width: int) -> None:
    w = numbered((rows, columns))
    for groups in (BlockRows(width=width), BlockRows(strips=min(width, columns))):
        parts = [[int(v) for v in group if v > 0] for group in groups.split(w).tolist()]
        assert all(part == list(range(part[0], part[0] + len(part))) for part in parts)
        # In order, so that they fill row after row.
        assert [v for part in parts for v in part] == list(range(1, rows * columns + 1))
        lengths = [len(part) for part in parts[: len(parts) // rows]]
        if groups.strips is not None:
            assert len(lengths) == groups.strips
            assert max(lengths) - min(lengths) <= 1
        else:
            assert all(length == width for length in lengths[:-1])
    assert torch.equal(BlockColumns(height=width).split(w.t()), BlockRows(width=width).split(w))


def test_by_hand() -> None:
    w = numbered((3, 5))
    assert BlockRows(width=2).split(w)[:3].tolist() == [[1, 2], [3, 4], [5, 0]]
    assert BlockRows(strips=2).split(w)[:2].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert BlockColumns(height=2).split(w)[:4].tolist() == [[1, 6], [11, 0], [2, 7], [12, 0]]
    assert Blocks(2, 3, pad=True).split(w).tolist() == [
        [1, 2, 3, 6, 7, 8],
        [4, 5, 0, 9, 10, 0],
        [11, 12, 13, 0, 0, 0],
        [14, 15, 0, 0, 0, 0],
    ]
    assert Runs(5).split(w).tolist() == w.tolist()
    assert Stacked(Runs(2), 2).split(torch.arange(8.0)).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert Stacked(Blocks(1, 2), 2).split(numbered((4, 2))).tolist() == [[1, 2, 5, 6], [3, 4, 7, 8]]


def test_nothing_is_copied_where_strides_allow() -> None:
    w = numbered((4, 6))
    for groups in (Rows(), Columns(), Elements(), BlockRows(width=3), BlockRows(strips=2), Runs(2), Blocks(2, 6)):
        assert groups.split(w).data_ptr() == w.data_ptr(), groups
    assert BlockColumns(height=2).split(w.t().contiguous().t()).shape == (12, 2)
    assert Transposed(Rows()).split(w).data_ptr() == w.data_ptr()


def test_runs_make_selections_n_of_m() -> None:
    w = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    solution = solve(Selection(-w.square(), keep=2, groups=Runs(4)))
    assert torch.equal(solution.masks[0], NM(2, 4).prox(w, 1.0) != 0)


def test_padding_changes_no_prox_and_no_projection() -> None:
    """Groups of different sizes against each group by itself."""
    w = torch.randn(3, 7, generator=torch.Generator().manual_seed(4))
    for groups in (BlockRows(width=3), BlockColumns(strips=2), Blocks(2, 4, pad=True)):
        expected = torch.zeros_like(w)
        for members in (groups.split(numbered((3, 7))) - 1).long().tolist():
            index = torch.tensor([i for i in members if i >= 0])
            part = w.flatten()[index]
            expected.view(-1)[index] = part * max(0.0, 1 - 0.9 / float(part.norm()))
        for step in (0.5, torch.full((3, 7), 0.5)):
            assert torch.allclose(GroupLasso(1.8, groups).prox(w, step), expected, atol=1e-6)
        norms = group_norms(w, groups)
        kept = KGroups(2, groups).prox(w, 1.0)
        assert group_norms(kept, groups).nonzero().flatten().tolist() == sorted(norms.topk(2).indices.tolist())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BlockRows(), "width None and strips None; give exactly one"),
        (lambda: BlockRows(width=4, strips=2), "width 4 and strips 2; give exactly one"),
        (lambda: BlockColumns(height=0), "height 0; it must be at least 1"),
        (lambda: BlockColumns(strips=-1), "strips -1; it must be at least 1"),
        (lambda: BlockRows(strips=5).split(torch.ones(9, 4)), "5 strips of 4 inputs; give at most one"),
        (lambda: BlockColumns(strips=5).split(torch.ones(4, 9)), "5 strips of 4 outputs"),
        (lambda: BlockRows(width=2).split(torch.ones(4)), r"shape \(4,\); these groups are those of a matrix"),
        (lambda: BlockRows(width=2).split(torch.ones(4, 3).long()), "torch.int64 where groups differ in size"),
        (lambda: Blocks(2, 2, pad=True).split(torch.ones(3, 4).int()), "torch.int32 where groups differ in size"),
        (lambda: Blocks(2, 3).split(torch.ones(4, 4)), "2 x 3 does not divide a 4 x 4 matrix. Give divisors, or pad"),
        (lambda: Blocks(0, 3), "at least one row"),
        (lambda: Runs(0), "length 0"),
        (lambda: Runs(3).split(torch.ones(6, 4)), r"length 3 does not divide the rows of a tensor of shape \(6, 4\)"),
        (lambda: Stacked(Rows(), 0), "count 0"),
        (lambda: Stacked(Rows(), 3).split(torch.ones(4, 4)), r"shape \(4, 4\) is not 3 of equal shape"),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_positions_are_not_taken_for_padding() -> None:
    """A CVXPY expression finds its entries by splitting their positions: it refuses rather than count one twice."""
    cvxpy = pytest.importorskip("cvxpy")
    with pytest.raises(ValueError, match="padding is for floating and bool tensors"):
        GroupLasso(1.0, BlockRows(width=2)).expression(cvxpy.Variable((2, 3)))


# Tied


def weight(name: str, w: Tensor, transposed: bool = False) -> Weight:
    return Weight(name, torch.nn.Parameter(w), transposed=transposed)


def neurons() -> Tied:
    """Three neurons: rows of one matrix, and columns of another that is stored transposed."""
    first = weight("first", torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 1.0]]))
    second = weight("second", torch.tensor([[12.0], [0.0], [1.0]]), transposed=True)
    return Tied("ffn", [Part(first, Rows()), Part(second, Columns())])


def test_ties_take_norms_over_all_parts() -> None:
    tie = neurons()
    assert (tie.count, tie.widths, tie.sizes().tolist()) == (3, (2, 1), [3, 3, 3])
    assert tie.stack().tolist() == [[3, 4, 12], [0, 0, 0], [1, 1, 1]]
    assert tie.norms().tolist() == pytest.approx([13.0, 0.0, 3**0.5])
    assert tie.norms(rms=True).tolist() == pytest.approx([13 / 3**0.5, 0.0, 1.0])
    masks = tie.masks(torch.tensor([True, False, False]))
    assert masks[0].tolist() == [[True, True], [False, False], [False, False]]
    assert masks[1].tolist() == [[True], [False], [False]]
    assert all(mask.is_contiguous() for mask in masks)
    tie.assign(tie.stack() * 2)
    assert tie.weights[1].parameter.tolist() == [[24.0], [0.0], [2.0]]


@given(partitions(), st.booleans())
def test_a_tie_of_one_weight_is_its_groups(case: tuple[Groups, tuple[int, int]], transposed: bool) -> None:
    groups, shape = case
    stored = numbered(shape).t().contiguous() if transposed else numbered(shape)
    tie = Tied("w", [Part(weight("w", stored.clone(), transposed), groups)])
    assert torch.equal(tie.stack(), groups.split(numbered(shape)))
    assert torch.equal(tie.norms(), group_norms(numbered(shape), groups))
    kept = torch.arange(tie.count) % 2 == 0
    [mask] = tie.masks(kept)
    assert int(mask.sum()) == int(tie.sizes()[kept].sum())
    tie.assign(tie.stack().neg())
    assert torch.equal(tie.weights[0].parameter.detach(), -stored)


def test_ties_refuse_what_does_not_fit() -> None:
    square = weight("w", torch.ones(4, 4))
    with pytest.raises(ValueError, match="'t': no parts"):
        Tied("t", [])
    with pytest.raises(ValueError, match="a weight occurs twice"):
        Tied("t", [Part(square, Rows()), Part(square, Columns())])
    with pytest.raises(ValueError, match="differ in their number of groups: 4 of w, 16 of v"):
        Tied("t", [Part(square, Rows()), Part(weight("v", torch.ones(4, 4)), Elements())])
    with pytest.raises(ValueError, match=r"kept of shape \(3,\) for 4 groups"):
        Tied("t", [Part(square, Rows())]).masks(torch.ones(3, dtype=torch.bool))


# Selection


@st.composite
def ties(draw: st.DrawFn) -> list[Tied]:
    """Ties of one matrix each, of small whole numbers, so that norms are often equal."""
    found = []
    for index in range(draw(st.integers(1, 3))):
        groups, shape = draw(partitions())
        entries = draw(st.lists(st.integers(-2, 2), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
        found.append(Tied(f"w{index}", [Part(weight(f"w{index}", torch.tensor(entries).float().view(shape)), groups)]))
    return found


@settings(max_examples=40)
@given(ties(), st.floats(0, 0.99))
def test_each_tie_keeps_exactly_its_count_of_the_largest(found: list[Tied], sparsity: float) -> None:
    kept = select_groups(found, sparsity, "matrix")
    for tie, mask in zip(found, kept, strict=True):
        assert int(mask.sum()) == keep_count(tie.count, sparsity)
        norms = tie.norms(rms=True).tolist()
        order = sorted(range(tie.count), key=lambda group: (-norms[group], group))
        assert sorted(order[: int(mask.sum())]) == mask.nonzero().flatten().tolist()


@settings(max_examples=40)
@given(ties(), st.floats(0, 0.99))
def test_one_selection_over_all_meets_the_entry_budget_as_nearly_as_whole_groups_allow(
    found: list[Tied], sparsity: float
) -> None:
    kept = select_groups(found, sparsity, "global")
    norms = [float(norm) for tie in found for norm in tie.norms(rms=True)]
    sizes = [int(size) for tie in found for size in tie.sizes()]
    flat = torch.cat(kept).tolist()
    order = sorted(range(len(norms)), key=lambda group: (-norms[group], group))
    count = sum(flat)
    assert sorted(order[:count]) == [group for group, keep in enumerate(flat) if keep]
    wanted = keep_count(sum(sizes), sparsity)
    held = [sum(sizes[group] for group in order[:number]) for number in range(len(sizes) + 1)]
    assert abs(held[count] - wanted) == min(abs(entries - wanted) for entries in held)


@settings(max_examples=40)
@given(ties(), st.floats(0, 0.99), st.sampled_from(["matrix", "global"]))
def test_the_tolerance_holds_for_what_is_selected(found: list[Tied], sparsity: float, scope: Any) -> None:
    weights = [tie.weights[0] for tie in found]
    masks = tie_masks(weights, found, select_groups(found, sparsity, scope))
    assert [mask.shape for mask in masks] == [w.parameter.shape for w in weights]
    total, kept = sum(mask.numel() for mask in masks), sum(int(mask.sum()) for mask in masks)
    assert abs(kept - (1 - sparsity) * total) <= count_tolerance(found, sparsity, scope) + 1e-9


def test_equal_norms_are_kept_in_order() -> None:
    tie = Tied("w", [Part(weight("w", torch.ones(5, 2)), Rows())])
    assert select_groups([tie], 0.4, "matrix")[0].tolist() == [True, True, True, False, False]
    assert select_groups([tie, neurons()], 0.7, "global")[0].tolist() == [True] * 1 + [False] * 4


def test_root_mean_squares_are_fair_to_small_groups() -> None:
    """A short group of large entries has the smaller norm, and stays all the same."""
    tie = Tied("w", [Part(weight("w", torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.5]])), BlockRows(width=4))])
    assert tie.norms().tolist() == [2.0, 1.5]
    assert select_groups([tie], 0.5, "matrix")[0].tolist() == [False, True]


def test_closest_counts() -> None:
    sizes = torch.tensor([3, 3, 3])
    assert [closest_count(sizes, entries) for entries in (0, 1, 2, 4, 5, 8, 9)] == [0, 0, 1, 1, 2, 3, 3]
    # As close from both sides: the fewer groups.
    assert closest_count(torch.tensor([2, 2]), 1) == 0


# Structures


def test_structures_by_name() -> None:
    built = {
        ("elements",): Elements(),
        ("rows",): Rows(),
        ("columns",): Columns(),
        ("block-rows",): BlockRows(width=16),
        ("block-rows", 4): BlockRows(width=4),
        ("block-rows", None, None, 8): BlockRows(strips=8),
        ("block-columns",): BlockColumns(height=16),
        ("block-columns", None, 96): BlockColumns(height=96),
        ("blocks", None, 8): Blocks(8, 16, pad=True),
    }
    for options, groups in built.items():
        structure = Structure(*options)  # type: ignore[arg-type]
        assert structure.groups() == groups
        assert structure.kinds == ()
    assert Structure("heads-and-neurons").kinds == ("heads", "neurons")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("strips",), "structure 'strips'; choose one of elements, rows"),
        (("rows", 4), "structure 'rows' with width 4; it takes no size"),
        (("heads", None, 4), "structure 'heads' with height 4; it takes no size"),
        (("block-rows", None, 4), "with height 4; it takes width or strips"),
        (("block-columns", 4), "with width 4; it takes height or strips"),
        (("blocks", None, None, 4), "with strips 4; it takes width or height"),
        (("block-rows", 4, None, 4), "width 4 and strips 4; give exactly one"),
        (("block-columns", None, 0), "height 0; it must be at least 1"),
        (("blocks", -1), "at least one row"),
    ],
)
def test_structures_that_make_no_sense(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Structure(*options)


def test_structures_need_their_ties_and_matrices() -> None:
    tie = neurons()
    with pytest.raises(ValueError, match="call `tie` before `attach`"):
        Structure("neurons").ties(tie.weights, None)
    other = weight("other", torch.ones(2, 2))
    with pytest.raises(ValueError, match="other lies in 0 ties"):
        Structure("neurons").ties([*tie.weights, other], [tie])
    with pytest.raises(ValueError, match="first lies in 2 ties"):
        Structure("neurons").ties(tie.weights, [tie, tie])
    with pytest.raises(ValueError, match="ties of 2 weights for 1 weights to prune"):
        Structure("neurons").ties(tie.weights[:1], [tie])
    with pytest.raises(ValueError, match="no groups of their own"):
        Structure("heads").groups()
    with pytest.raises(ValueError, match=r"b: shape \(3,\), and structure 'rows' is one of matrices"):
        Structure("rows").ties([weight("b", torch.ones(3))], None)
    assert [t.count for t in Structure("elements").ties([weight("b", torch.ones(3))], None)] == [3]
