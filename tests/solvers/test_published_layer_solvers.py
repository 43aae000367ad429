"""Layer-wise solvers against plain loops of the formulas that their papers have."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from drawn_layers import make_layer, refitted
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from argprune.solvers.admm import (
    NM,
    Layer,
    Support,
    Unstructured,
    solve_layer,
)
from argprune.solvers.admm.alps import ALPS
from argprune.solvers.admm.scored import Wanda, even_shares
from argprune.solvers.admm.sparsegpt import SparseGPT, inverse_root


def test_magnitude_keeps_the_largest() -> None:
    layer = make_layer(Unstructured(0.5))
    solution = solve_layer(layer, "magnitude")
    threshold = layer.weight.abs().flatten().sort().values[48]
    assert torch.equal(solution.weight, torch.where(layer.weight.abs() >= threshold, layer.weight, 0))


def test_wanda_is_the_published_one() -> None:
    layer = make_layer(Unstructured(0.5, "row"))
    norms = layer.gram.diagonal().sqrt()
    expected = layer.weight.clone()
    for row in expected:
        row[(row.abs() * norms).argsort(stable=True)[:8]] = 0
    assert torch.equal(solve_layer(layer, "wanda").weight, expected)
    # The default ranks in rows for a support over the matrix too; in scope "matrix" over all entries.
    whole = replace(layer, support=Unstructured(0.5))
    assert torch.equal(solve_layer(whole, "wanda").weight, expected)
    scores = layer.weight.abs() * norms
    kept = scores >= scores.flatten().sort().values[48]
    assert torch.equal(solve_layer(whole, Wanda(scope="matrix")).mask, kept)


@given(entries=st.integers(0, 200), parts=st.integers(1, 9), sparsity=st.floats(0, 1))
def test_even_shares_add_up(entries: int, parts: int, sparsity: float) -> None:
    shares = even_shares(entries, parts, sparsity)
    assert sum(shares) == round(sparsity * entries)
    assert max(shares) - min(shares) <= 1


def plain_sparsegpt(layer: Layer, block: int, damping: float = 0.01) -> Tensor:
    """The authors' loop, with the exact count in place of a threshold that prunes one more."""
    w, hessian = layer.dense.clone(), 2 * layer.gram
    support = layer.support
    hessian = hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    rows, columns = w.shape
    for start in range(0, columns, block):
        end = min(start + block, columns)
        pruned = torch.zeros(rows, columns, dtype=torch.bool)
        if isinstance(support, Unstructured):
            scores = (w[:, start:end] / upper.diagonal()[start:end]).square().flatten()
            chosen = scores.argsort()[: round(support.sparsity * len(scores))]
            pruned[:, start:end] = (
                torch.zeros(len(scores), dtype=torch.bool).index_fill_(0, chosen, True).view(rows, -1)
            )
        for j in range(start, end):
            if isinstance(support, NM) and j % support.m == 0:
                group = slice(j, j + support.m)
                chosen = (w[:, group] / upper.diagonal()[group]).square().argsort(1)[:, : support.m - support.n]
                pruned[:, group] = torch.zeros(rows, support.m, dtype=torch.bool).scatter_(1, chosen, True)
            for i in range(rows):
                if pruned[i, j]:
                    w[i, j:] -= w[i, j] / upper[j, j] * upper[j, j:].clone()
                    w[i, j] = 0
    return w


@pytest.mark.parametrize("support", [Unstructured(0.5), Unstructured(0.75), NM(2, 4), NM(1, 4)], ids=str)
@pytest.mark.parametrize("block", [4, 8, 128])
def test_sparsegpt_is_the_published_one(support: Support, block: int) -> None:
    layer = make_layer(support)
    expected = plain_sparsegpt(layer, block)
    torch.testing.assert_close(solve_layer(layer, SparseGPT(block=block)).weight, expected, rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 50), n=st.integers(1, 8))
def test_inverse_root_is_the_upper_factor(seed: int, n: int) -> None:
    x = torch.randn(2 * n + 2, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    hessian = x.t() @ x / n + torch.eye(n, dtype=torch.float64) / 10
    upper = inverse_root(hessian)
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.t() @ upper @ hessian, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-9)


def test_sparsegpt_spends_the_exact_count_over_uneven_blocks() -> None:
    layer = make_layer(Unstructured(0.37), rows=5, columns=13)
    for block in (1, 3, 5, 128):
        assert int(solve_layer(layer, SparseGPT(block=block)).mask.sum()) == 65 - round(0.37 * 65)
    with pytest.raises(ValueError, match="multiple of 4"):
        solve_layer(make_layer(NM(2, 4)), SparseGPT(block=6))


def plain_greedy(weight: Tensor, hessian: Tensor, prune: int, pattern: tuple[int, int] = (0, 1)) -> Tensor:
    """Remove the entry of all rows whose removal, with its row refitted from scratch, costs least; so many times.

    pattern: (n, m); an entry goes only where more than n of its m neighbours are left.
    """
    mask = torch.ones_like(weight, dtype=torch.bool)

    def cost(row: int, kept: Tensor) -> float:
        error = weight[row] - refitted(weight[row : row + 1], hessian, kept[None])[0]
        return float(error @ hessian @ error)

    for _ in range(prune):
        options = []
        for row, column in mask.nonzero().tolist():
            kept = mask[row].clone()
            if kept.view(-1, pattern[1])[column // pattern[1]].sum() <= pattern[0]:
                continue
            kept[column] = False
            options.append((cost(row, kept) - cost(row, mask[row]), row, column))
        _, row, column = min(options)
        mask[row, column] = False
    return mask


def test_obs_is_greedy_removal_with_refitted_rows() -> None:
    # One row: over several, greedy on the trace of losses is greedy over all only where no loss falls along a row.
    for seed in range(5):
        layer = make_layer(Unstructured(0.5), rows=1, columns=8, seed=seed)
        damped = layer.gram + 0.01 * layer.gram.diagonal().mean() * torch.eye(8, dtype=torch.float64)
        mask = plain_greedy(layer.dense, damped, 4)
        solution = solve_layer(layer, "obs")
        assert torch.equal(solution.mask, mask)
        torch.testing.assert_close(solution.weight, refitted(layer.dense, damped, mask), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (1, 2)])
def test_obs_keeps_n_of_every_m(pattern: tuple[int, int]) -> None:
    kept, width = pattern
    for seed in range(3):
        # Rows do not meet in a pattern, so that several are greedy each on its own.
        layer = make_layer(NM(kept, width), rows=2, columns=8, seed=seed)
        damped = layer.gram + 0.01 * layer.gram.diagonal().mean() * torch.eye(8, dtype=torch.float64)
        prune = 8 - 8 // width * kept
        masks = [plain_greedy(layer.dense[row : row + 1], damped, prune, pattern) for row in range(2)]
        solution = solve_layer(layer, "obs")
        assert torch.equal(solution.mask, torch.cat(masks))
        torch.testing.assert_close(solution.weight, refitted(layer.dense, damped, solution.mask), rtol=1e-5, atol=1e-6)


def plain_alps(layer: Layer) -> tuple[Tensor, int]:
    """The dossier's loop, columns = outputs as there, all in float64: weight before the refit, and iterations."""
    gram, w = layer.gram, layer.dense
    n = len(gram)
    h = gram + 0.01 * gram.diagonal().mean() * torch.eye(n, dtype=gram.dtype)
    d = h.diagonal().sqrt() + 1e-8
    h = h / (d[:, None] * d[None])
    dense = d[:, None] * w.t()
    g = h @ dense
    keep = round((1 - layer.support.sparsity) * w.numel())  # type: ignore[attr-defined]

    def top(b: Tensor) -> Tensor:
        kept = torch.zeros(b.numel(), dtype=torch.bool)
        kept[b.abs().flatten().argsort(descending=True)[:keep]] = True
        return b * kept.view(b.shape)

    rho, raised, support = 0.1, False, top(dense) != 0
    v, split, b = torch.zeros_like(dense), top(dense), dense
    for iteration in range(1, 301):
        b = torch.linalg.solve(h + rho * torch.eye(n, dtype=h.dtype), g - v + rho * split)
        split = top(b + v / rho)
        v = v + rho * (b - split)
        if iteration % 3:
            continue
        changed = int(((split != 0) != support).sum())
        support = split != 0
        if changed / keep > 0.1:
            rho, raised = rho * 1.3, True
        elif changed / keep > 0.005:
            rho, raised = rho * 1.2, True
        elif changed and raised:
            rho *= 1.1
        elif changed:
            rho, split, v = rho / 5, top(dense), torch.zeros_like(dense)
        elif raised:
            break
        else:
            rho /= 5
        if iteration >= 30 and changed / keep < 3e-4:
            break
    return (top(b) / d[:, None]).t(), iteration


@pytest.mark.parametrize("seed", range(4))
def test_alps_is_the_published_loop(seed: int) -> None:
    layer = make_layer(Unstructured(0.6), rows=12, columns=24, seed=seed)
    expected, iterations = plain_alps(layer)
    solution = solve_layer(layer, ALPS(refit_steps=0))
    assert solution.report["num_steps"] == iterations
    assert torch.equal(solution.mask, expected != 0)
    # Iterations run in float32.
    torch.testing.assert_close(solution.weight, expected, rtol=1e-3, atol=1e-4)
    fitted = solve_layer(layer, "alps")
    assert torch.equal(fitted.mask, solution.mask)
    assert fitted.error <= solution.error * (1 + 1e-5)


def test_gradual_admm_is_the_published_loop_with_the_sparsity_of_the_step() -> None:
    layer = make_layer(Unstructured(0.6), rows=12, columns=24)
    norm = layer.gram.diagonal().sqrt()
    scaled = layer.gram / norm[:, None] / norm
    w = (layer.dense * norm).t()
    damped = scaled + 0.1 * torch.eye(24, dtype=w.dtype)
    target, inverse = damped @ w, torch.linalg.inv(damped + torch.eye(24, dtype=w.dtype))
    u, mask = torch.zeros_like(w), torch.ones_like(w)
    for step in range(20):
        if step < 15:
            pruned = round((0.6 - 0.6 * (1 - (step + 1) / 15) ** 3) * w.numel())
            order = (w + u).abs().flatten().argsort()
            mask = torch.ones(w.numel(), dtype=w.dtype).index_fill_(0, order[:pruned], 0).view(w.shape)
        z = (w + u) * mask
        u = u + w - z
        w = inverse @ (target + z - u)
    expected = ((w + u) * mask).t() / norm
    torch.testing.assert_close(solve_layer(layer, "admm").weight, expected, rtol=1e-3, atol=1e-4)
