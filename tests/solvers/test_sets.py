"""Constraint sets: the prox is the projection, the value its indicator."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from argprune.solvers.prox import FixedSupport, L0Ball

# Few distinct values, so that ties are common; exact in every dtype.
values = st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -2.0, 3.0]), min_size=1, max_size=8)


@given(values=values, data=st.data(), step=st.floats(0, 10))
def test_l0_ball_projects_optimally(values: list[float], data: st.DataObject, step: float) -> None:
    """No support of at most `keep` entries is closer: all of them are tried."""
    w = torch.tensor(values, dtype=torch.float64)
    keep = data.draw(st.integers(0, len(values) + 1))
    ball = L0Ball(keep)
    before = w.clone()
    p = ball.prox(w, step)
    assert torch.equal(w, before)
    assert float(ball.value(p)) == 0
    best = min(
        sum(v * v for i, v in enumerate(values) if i not in support)
        for support in combinations(range(len(values)), min(keep, len(values)))
    )
    # Squares of these values and their sums are exact.
    assert float((p - w).square().sum()) == best
    assert torch.equal(ball.prox(p, step), p)


def test_l0_ball_breaks_ties_by_flat_index_in_any_layout() -> None:
    w = torch.tensor([[1.0, -1.0, 1.0], [1.0, 2.0, -1.0]])
    expected = [[1.0, -1.0, 0.0], [0.0, 2.0, 0.0]]
    assert L0Ball(3).prox(w, 1.0).tolist() == expected
    assert L0Ball(3).prox(w.t().contiguous().t(), 1.0).tolist() == expected


def test_l0_ball_indicator_and_refusals() -> None:
    assert float(L0Ball(1).value(torch.tensor([0.0, 2.0]))) == 0
    assert float(L0Ball(1).value(torch.tensor([1.0, 2.0]))) == torch.inf
    with pytest.raises(ValueError, match="keep -1"):
        L0Ball(-1)


@given(values=values, data=st.data(), step=st.floats(0, 10))
def test_fixed_support_projects(values: list[float], data: st.DataObject, step: float) -> None:
    w = torch.tensor(values)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    support = FixedSupport(mask)
    before = w.clone()
    p = support.prox(w, step)
    assert torch.equal(w, before)
    assert torch.equal(p[mask], w[mask])
    assert not bool(p[~mask].any())
    assert float(support.value(p)) == 0
    assert float(support.value(w)) == (torch.inf if bool(w[~mask].any()) else 0)
    assert torch.equal(support.prox(p, step), p)
    assert support.prox_(w, step) is w
    assert torch.equal(w, p)


def test_fixed_support_removes_even_what_is_no_number() -> None:
    support = FixedSupport(torch.tensor([True, False, False]))
    assert support.prox(torch.tensor([1.0, torch.nan, torch.inf]), 1.0).tolist() == [1.0, 0.0, 0.0]


def test_fixed_support_refuses_what_is_not_a_mask() -> None:
    with pytest.raises(TypeError, match=r"torch\.float32"):
        FixedSupport(torch.ones(3))
