"""Criteria over several blocks: means and spreads of what `check_criteria` found, in units that blocks share."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from argprune.solvers.verify.criteria import BlockReport, Judged
from argprune.solvers.verify.surrogates import KINDS


@dataclass(frozen=True)
class Mean:
    """Mean and standard deviation over the blocks that have the number; the deviation is 0 for one block."""

    mean: float
    spread: float
    blocks: int


@dataclass(frozen=True)
class Summary:
    """A criterion, or a reference, over blocks.

    Shares are of what random masks lose in the same block: 0 is optimal, 1 is random. truth: of the loss. regret,
    objective: of the loss, absolute. surrogates: shares by surrogate. solver_gap, sampling_error, model_error: shares
    of the loss, which add up to `truth`; None without a surrogate. rank: among the criteria by true regret, 1 is best,
    ties by their mean. certified: blocks in which the mask is its own surrogate's optimum. correlation: of scores with
    the true losses of single removals.
    """

    name: str
    surrogate: str
    blocks: int
    truth: Mean | None
    regret: Mean
    objective: Mean
    surrogates: dict[str, Mean | None]
    solver_gap: Mean | None
    sampling_error: Mean | None
    model_error: Mean | None
    rank: Mean | None
    certified: int
    correlation: Mean | None

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return asdict(self)


def summarise(reports: Sequence[BlockReport]) -> tuple[list[Summary], list[Summary]]:
    """Criteria, then references, over blocks; the criteria by their mean true regret, best first.

    reports: of the same criteria, at least one. Raises ValueError otherwise.
    """
    names = {tuple(judged.name for judged in report.criteria) for report in reports}
    if len(names) != 1:
        raise ValueError(f"{len(reports)} reports with {len(names)} lists of criteria; give reports of one list.")
    ranks = [_ranks([judged.truth.regret for judged in report.criteria]) for report in reports]
    criteria = [
        _summary(reports, [report.criteria[index] for report in reports], [rank[index] for rank in ranks])
        for index in range(len(reports[0].criteria))
    ]
    references = [
        _summary(reports, [report.references[index] for report in reports], None)
        for index in range(len(reports[0].references))
    ]
    return sorted(criteria, key=lambda summary: summary.truth.mean if summary.truth else 0.0), references


def _summary(reports: Sequence[BlockReport], judged: Sequence[Judged], ranks: Sequence[float] | None) -> Summary:
    scales = [report.random - report.best for report in reports]

    def part(of: Callable[[Judged], float | None]) -> Mean | None:
        shares = [
            None if value is None or scale <= 0 else value / scale
            for value, scale in zip((of(one) for one in judged), scales, strict=True)
        ]
        return _mean(shares)

    regret, objective = _mean([one.truth.regret for one in judged]), _mean([one.truth.objective for one in judged])
    assert regret is not None
    assert objective is not None
    return Summary(
        name=judged[0].name,
        surrogate=judged[0].surrogate,
        blocks=len(judged),
        truth=_mean([one.truth.share for one in judged]),
        regret=regret,
        objective=objective,
        surrogates={kind: _mean([one.prices[kind].share for one in judged]) for kind in KINDS},
        solver_gap=part(lambda one: one.split.solver_gap if one.split else None),
        sampling_error=part(lambda one: one.split.sampling_error if one.split else None),
        model_error=part(lambda one: one.split.model_error if one.split else None),
        rank=None if ranks is None else _mean(list(ranks)),
        certified=sum(one.certified for one in judged),
        correlation=_mean([one.correlation for one in judged]),
    )


def _mean(values: Sequence[float | None]) -> Mean | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Mean(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else 0.0, len(known))


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1, ties by their mean."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values
    ]
