"""Criteria against exact optima and the true loss: on losses whose every mask is known in closed form."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor

from argprune.solvers.criteria import Criterion, Elementwise, Evidence, Magnitude, Pins, Random, Taylor
from argprune.solvers.verify.criteria import Block, check_criteria, scores_of
from argprune.solvers.verify.landscape import Known, explore
from argprune.solvers.verify.summary import summarise
from argprune.solvers.verify.surrogates import KINDS, Kind, Surrogates, all_masks, rank_correlation


@dataclass(frozen=True, eq=False)
class Regression:
    """Least squares on correlated inputs, at weights that are not the minimiser: a loss that is quadratic."""

    x: Tensor
    y: Tensor
    w: Tensor

    @classmethod
    def of(cls, n: int, seed: int, examples: int = 60) -> Regression:
        generator = torch.Generator().manual_seed(seed)
        shared = torch.randn(examples, 2, generator=generator, dtype=torch.float64)
        x = shared @ torch.randn(2, n, generator=generator, dtype=torch.float64)
        x = x + torch.randn(examples, n, generator=generator, dtype=torch.float64)
        w = torch.randn(n, generator=generator, dtype=torch.float64)
        y = x @ (w + 0.1 * torch.randn(n, generator=generator, dtype=torch.float64))
        return cls(x, y, w)

    def at(self, w: Tensor) -> Tensor:
        """The mean squared error of weights (..., n)."""
        return (w @ self.x.t() - self.y).square().mean(-1)

    def loss(self, masks: Tensor) -> Tensor:
        """By pruning, less that of the whole."""
        return self.at(torch.where(masks, self.w, 0.0)) - self.at(self.w)

    @property
    def gradient(self) -> Tensor:
        return 2 * (self.w @ self.x.t() - self.y) @ self.x / len(self.x)

    @property
    def hessian(self) -> Tensor:
        return 2 * self.x.t() @ self.x / len(self.x)

    def surrogates(self, keep: int) -> Surrogates:
        curvature = self.w[:, None] * self.hessian * self.w
        return Surrogates(self.gradient * self.w, curvature, curvature, keep)

    def block(self, keep: int, heldout: Tensor | None = None) -> Block:
        evidence = Evidence(self.w[None], self.gradient[None], self.w[None], inputs=self.x, examples=len(self.x))
        own = self.gradient * self.w
        base = float(self.at(self.w))
        surrogates = self.surrogates(keep)
        return Block(
            "regression", self.w[None], [evidence], surrogates, own if heldout is None else heldout, self.loss, base
        )


CRITERIA: dict[str, Criterion] = {"pins": Pins(), "taylor": Taylor(), "magnitude": Magnitude(), "random": Random()}


def test_all_masks_are_there_once() -> None:
    masks = all_masks(7, 3)
    assert len({tuple(row) for row in masks.tolist()}) == math.comb(7, 3) == len(masks)
    assert masks.sum(1).tolist() == [3] * len(masks)


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=12), st.integers(0, 100))
def test_rank_correlation_is_scipys(values: list[int], seed: int) -> None:
    x = np.array(values, dtype=np.float64)
    y = np.random.default_rng(seed).integers(0, 4, len(x)).astype(np.float64)
    found = rank_correlation(x, y)
    if len(set(values)) == 1 or len(set(y)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)


@settings(max_examples=40)
@given(st.integers(0, 1000), st.integers(2, 7), st.data())
def test_surrogates_are_their_formulas_and_their_optima_the_least_values(
    seed: int, n: int, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, n - 1))
    problem = Regression.of(n, seed)
    surrogates, masks = problem.surrogates(keep), all_masks(n, keep)
    pruned = (~masks).double()
    a, q = surrogates.gradient, surrogates.curvature
    expected = {
        "linear": -pruned @ a,
        "diagonal": -pruned @ a + pruned @ q.diagonal() / 2,
        "quadratic": -pruned @ a + ((pruned @ q) * pruned).sum(1) / 2,
    }
    kinds: tuple[Kind, ...] = KINDS
    for kind in kinds:
        values = surrogates.values(kind, masks)
        if kind in expected:
            assert torch.allclose(values, expected[kind], rtol=1e-9, atol=1e-12)
        optimum = surrogates.optimum(kind)
        assert optimum.status == "optimal"
        assert optimum.objective == pytest.approx(float(values.min()), rel=1e-9, abs=1e-12)
        assert optimum.bound <= optimum.objective
        assert int(optimum.mask.sum()) == keep
    # Survivors that may move, to where they are, can only help.
    assert bool((surrogates.values("refit", masks) <= expected["quadratic"] + 1e-6).all())


def test_refit_moves_the_survivors_to_the_least_squares() -> None:
    problem = Regression.of(6, 1)
    masks = all_masks(6, 3)
    for mask, value in zip(masks[::3], problem.surrogates(3).values("refit", masks)[::3], strict=True):
        left = torch.linalg.lstsq(problem.x[:, mask], problem.y[:, None]).solution[:, 0]
        refitted = (problem.x[:, mask] @ left - problem.y).square().mean() - problem.at(problem.w)
        assert float(value) == pytest.approx(float(refitted), rel=1e-6)


def test_more_than_twenty_units_are_bounded_not_enumerated() -> None:
    surrogates = Regression.of(22, 0).surrogates(18)
    for kind in KINDS:
        optimum = surrogates.optimum(kind, time_limit=20)
        assert optimum.bound <= optimum.objective + 1e-9
        assert optimum.status == "optimal"


def cubic(n: int, seed: int, size: float) -> Known:
    """A loss with interactions of two and, of a given size, of three units."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(n, generator=generator, dtype=torch.float64)
    second = 0.1 * torch.randn(n, n, generator=generator, dtype=torch.float64)
    third = size * torch.randn(n, n, n, generator=generator, dtype=torch.float64)

    def loss(masks: Tensor) -> Tensor:
        z = (~masks).double()
        return z @ first + ((z @ second) * z).sum(1) + torch.einsum("mi,mj,mk,ijk->m", z, z, z, third)

    return Known(loss)


@pytest.mark.parametrize(("size", "degree"), [(0.0, 2), (1e-3, 2), (0.2, 0)])
@pytest.mark.parametrize("seed", range(4))
def test_screening_finds_what_evaluating_every_mask_finds(size: float, degree: int, seed: int) -> None:
    n, keep = 14, 7
    start = all_masks(n, keep)[:1]
    total = explore(cubic(n, seed, size), n, keep, start, direct=True)
    loss = cubic(n, seed, size)
    found = explore(loss, n, keep, start, seed=seed)
    assert total.proof == "exhaustive"
    assert total.evaluations == math.comb(n, keep)
    assert found.best == total.best
    assert torch.allclose(found.values[found.exact], total.values[found.exact])
    if degree == 0:
        # No polynomial is good enough: every mask was evaluated after all.
        assert found.proof == "exhaustive"
        assert torch.allclose(found.values, total.values)
    else:
        assert found.proof == "screened"
        assert 0 < found.degree <= degree
        assert found.evaluations == int(found.exact.sum()) < total.evaluations / 3
        assert float((found.values - total.values).abs().max()) <= 3 * found.error + 1e-9


def test_a_loss_is_not_evaluated_twice_and_must_be_finite() -> None:
    seen: list[int] = []

    def loss(masks: Tensor) -> Tensor:
        seen.append(len(masks))
        return masks.double().sum(1)

    known = Known(loss)
    masks = all_masks(4, 2)
    assert known(masks).tolist() == [2.0] * 6
    assert known(torch.cat([masks[:3], masks[:3], torch.ones(1, 4, dtype=torch.bool)])).tolist() == [2.0] * 6 + [4.0]
    assert seen == [6, 1]
    assert known.evaluations == 7
    with pytest.raises(ValueError, match="NaN or infinite"):
        Known(lambda masks: torch.full((len(masks),), math.nan))(masks)


def test_the_optimum_of_a_loss_that_is_quadratic_is_the_quadratic_surrogates() -> None:
    for seed in range(5):
        report = check_criteria(Regression.of(8, seed).block(4), CRITERIA)
        reference = {judged.name: judged for judged in report.references}
        quadratic = reference["quadratic optimum"]
        assert quadratic.truth.regret == pytest.approx(0.0, abs=1e-12)
        assert quadratic.truth.objective == pytest.approx(quadratic.prices["quadratic"].objective)
        assert report.surrogates["quadratic"].correlation == pytest.approx(1.0, abs=1e-9)
        assert report.best == pytest.approx(report.surrogates["quadratic"].objective)
        assert report.random == pytest.approx(report.surrogates["quadratic"].random)
        assert report.proof == "exhaustive"
        assert report.masks == 70


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(3, 7), st.data())
def test_regret_splits_into_parts_that_add_up(seed: int, n: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, n - 1))
    noise = torch.randn(n, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    problem = Regression.of(n, seed)
    report = check_criteria(problem.block(keep, heldout=noise), CRITERIA)
    reference = {judged.name: judged for judged in report.references}
    values = problem.loss(all_masks(n, keep))
    assert report.best == pytest.approx(float(values.min()), abs=1e-12)
    for judged in report.criteria:
        mask = torch.zeros(n, dtype=torch.bool)
        mask[list(judged.kept)] = True
        assert judged.truth.objective == pytest.approx(float(problem.loss(mask[None])[0]), abs=1e-12)
        assert judged.truth.regret == pytest.approx(judged.truth.objective - report.best, abs=1e-12)
        assert all(price.regret >= 0 for price in judged.prices.values())
        if judged.split is None:
            assert judged.surrogate == "none"
            continue
        parts = judged.split.solver_gap + judged.split.sampling_error + judged.split.model_error
        assert parts == pytest.approx(judged.truth.regret, abs=1e-12)
        own = reference[f"{judged.surrogate} optimum"].truth
        assert judged.split.surrogate_error == pytest.approx(own.regret, abs=1e-12)
        if judged.certified:
            assert judged.prices[judged.surrogate].regret == pytest.approx(0.0, abs=1e-5)


def test_the_signed_program_is_certified_and_blind_to_curvature() -> None:
    report = check_criteria(Regression.of(10, 3).block(5), CRITERIA)
    judged = {one.name: one for one in report.criteria}
    assert judged["taylor"].certified
    assert judged["taylor"].split is not None
    assert judged["taylor"].split.solver_gap == 0.0
    assert judged["taylor"].prices["linear"].regret == 0.0
    assert judged["taylor"].truth.regret > judged["magnitude"].truth.regret > 0
    assert judged["magnitude"].prices["linear"].regret > 0
    assert not judged["random"].certified


def test_scores_correlate_with_the_losses_of_single_removals() -> None:
    @dataclass(frozen=True)
    class Told(Elementwise):
        surrogate: ClassVar = "diagonal"
        formula: ClassVar[str] = "told"

        def raw(self, evidence: Evidence) -> Tensor:
            return torch.tensor([singles], dtype=torch.float32)

    problem = Regression.of(6, 0)
    singles = problem.loss(~torch.eye(6, dtype=torch.bool)).tolist()
    [judged] = check_criteria(problem.block(3), {"told": Told()}).criteria
    assert judged.correlation == pytest.approx(1.0)
    assert judged.certified


def test_a_unit_of_several_rows_scores_the_sum_of_its_entries() -> None:
    weight = torch.tensor([[1.0, 0.0, 2.0], [1.5, 2.4, 0.0]], dtype=torch.float64)
    empty = torch.zeros(3, 3, dtype=torch.float64)
    surrogates = Surrogates(torch.arange(3.0).double(), empty, torch.eye(3).double(), 2)
    block = Block("rows", weight, [], surrogates, torch.zeros(3), lambda masks: (~masks).double().sum(1))
    [judged] = check_criteria(block, {"magnitude": Magnitude()}).criteria
    assert judged.kept == (0, 1)


def test_many_units_are_judged_against_the_best_known() -> None:
    problem = Regression.of(24, 0)
    report = check_criteria(problem.block(21), CRITERIA, time_limit=20)
    assert report.proof == "best known"
    assert report.bound == -report.base < report.best
    reference = {judged.name: judged for judged in report.references}
    # The loss is quadratic: what exchanges reach is its optimum, which is known here.
    assert report.best == pytest.approx(reference["quadratic optimum"].truth.objective)
    best = torch.zeros(24, dtype=torch.bool)
    best[list(reference["best mask"].kept)] = True
    for out, into in itertools.product(best.nonzero().flatten().tolist(), (~best).nonzero().flatten().tolist()):
        other = best.clone()
        other[out], other[into] = False, True
        assert float(problem.loss(other[None])[0]) >= report.best - 1e-9
    with pytest.raises(ValueError, match="size 24 has too many masks to evaluate each; give at most 20"):
        check_criteria(problem.block(21), CRITERIA, direct=True)


def test_scores_of_a_wrong_shape_are_refused() -> None:
    @dataclass(frozen=True)
    class Flat(Elementwise):
        surrogate: ClassVar = "none"
        formula: ClassVar[str] = "flat"

        def raw(self, evidence: Evidence) -> Tensor:
            return evidence.weight.flatten()

    with pytest.raises(ValueError, match=r"Flat: scores of shape \(6,\) for a weight of \(2, 3\)"):
        scores_of(Flat(), torch.ones(2, 3), [])


def test_summary_is_the_mean_over_blocks_and_shares_add_up() -> None:
    reports = [check_criteria(Regression.of(7, seed).block(3), CRITERIA) for seed in range(4)]
    criteria, references = summarise(reports)
    shares = [summary.truth.mean for summary in criteria if summary.truth]
    assert shares == sorted(shares)
    assert {summary.name for summary in criteria} == set(CRITERIA)
    ranks = [summary.rank.mean for summary in criteria if summary.rank]
    assert sum(ranks) == pytest.approx(1 + 2 + 3 + 4)
    assert next(summary for summary in references if summary.name == "best mask").regret.mean == 0
    for summary in criteria:
        own = [next(one for one in report.criteria if one.name == summary.name) for report in reports]
        expected = [one.truth.regret / (report.random - report.best) for one, report in zip(own, reports, strict=True)]
        assert summary.truth is not None
        assert summary.truth.mean == pytest.approx(np.mean(expected))
        assert summary.truth.spread == pytest.approx(np.std(expected, ddof=1))
        if summary.surrogate == "none":
            continue
        parts = (summary.solver_gap, summary.sampling_error, summary.model_error)
        assert sum(part.mean for part in parts if part) == pytest.approx(summary.truth.mean)
    with pytest.raises(ValueError, match="2 lists of criteria"):
        summarise([reports[0], check_criteria(Regression.of(7, 9).block(3), {"random": Random()})])


def test_a_report_is_json() -> None:
    report = check_criteria(Regression.of(6, 0).block(3), CRITERIA)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert {"best", "bound", "random", "spread", "error", "proof", "evaluations"} <= set(data)
    for judged in (*data["criteria"], *data["references"]):
        assert {"kept", "prices", "truth", "ratio", "split", "certified", "correlation"} <= set(judged)
        assert set(judged["prices"]) == set(KINDS)
    split = data["criteria"][0]["split"]
    assert split["surrogate_error"] == split["sampling_error"] + split["model_error"]
    assert {"correlation", "heldout_correlation", "objective", "bound", "status"} <= set(data["surrogates"]["refit"])
