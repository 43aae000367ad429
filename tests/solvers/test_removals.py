"""OBC: its removals against greedy removal with refits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from drawn_batches import LAYERWISE, batches_of, close, hessian_of, scores_of, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from argprune.solvers.criteria import OBC, Evidence, build, layerwise, removals
from argprune.solvers.ilp import keep_largest
from argprune.solvers.ilp.quadratic import Quadratic, greedy


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
