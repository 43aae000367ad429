"""The verifier: planted bugs are caught, the operators they were planted in pass, and failing inputs can be pasted."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from argprune.solvers.groups import Columns
from argprune.solvers.prox import L0, L1, MCP, Box, GroupLasso, L0Ball, LogSum, Scaled, WeightedL1
from argprune.solvers.registry import registered
from argprune.solvers.verify import Check, Report, check_operator, examples, names
from argprune.solvers.verify.oracles import scalar_search

# Slopes and thresholds that bite on standard normal inputs at steps of order one.
FACTORS = torch.linspace(0.1, 2.0, 24, dtype=torch.float64).reshape(4, 6)


class WrongSign(L1):
    """Adds the threshold."""

    def prox(self, w: Tensor, step: Any) -> Tensor:
        return w.detach() + w.detach().sign() * step * self.strength


class MissingTwo(L0):
    """Threshold sqrt(step strength) instead of sqrt(2 step strength)."""

    def shrink(self, u: Tensor, step: Any) -> Tensor:
        threshold = torch.as_tensor(step * self.strength, dtype=u.dtype).sqrt()
        return torch.where(u > threshold, u, 0)


class WrongBranch(MCP):
    """Takes the flat part to begin at strength instead of gamma * strength."""

    def shrink(self, u: Tensor, step: Any) -> Tensor:
        return torch.where(u > self.strength, u, super().shrink(u, step))


class StepNotSquared(Scaled):
    """Divides the step by the scale instead of its square."""

    def prox(self, w: Tensor, step: Any) -> Tensor:
        return self.regularizer.prox(w.detach() / self.scale, step / self.scale) * self.scale

    def prox_(self, w: Tensor, step: Any, part: slice | None = None) -> Tensor:
        return w.copy_(self.prox(w, step))


class WeightsIgnored(WeightedL1):
    """Soft threshold with factors 1."""

    def prox_(self, w: Tensor, step: Any, part: slice | None = None) -> Tensor:
        return L1(self.strength).prox_(w, step)


class KeepsTies(L0Ball):
    """Keeps every entry as large as the k-th, however many there are."""

    def prox(self, w: Tensor, step: Any) -> Tensor:
        w = w.detach()
        if w.numel() <= self.keep:
            return w.clone()
        kth = w.abs().flatten().sort(descending=True).values[self.keep - 1]
        return torch.where(w.abs() >= kth, w, 0) + 0.0


class OneTooFew(L0Ball):
    """Keeps k - 1."""

    def prox(self, w: Tensor, step: Any) -> Tensor:
        return L0Ball(self.keep - 1).prox(w, step)


class WrongAxis(GroupLasso):
    """The prox of columns beside the value of rows."""

    def prox(self, w: Tensor, step: Any) -> Tensor:
        return GroupLasso(self.strength, groups=Columns()).prox(w, step)


@dataclass(frozen=True)
class NaiveGroupLasso:
    """Right, but for norms computed in the input's own dtype."""

    strength: float = 0.7
    convex: bool = field(default=True, init=False)

    def value(self, w: Tensor) -> Tensor:
        return self.strength * w.square().sum(-1).sqrt().sum()

    def prox(self, w: Tensor, step: Any) -> Tensor:
        w = w.detach()
        norms = w.square().sum(-1, keepdim=True).sqrt()
        return w * (1 - step * self.strength / norms.clamp(min=1e-4)).clamp(min=0) + 0.0


class NotIdempotent(Box):
    """Ends inside the box, a little further with every call."""

    def prox(self, w: Tensor, step: Any) -> Tensor:
        return 0.99 * w.detach().clamp(self.low, self.high) + 0.0


BUGS = {
    "sign": (WrongSign(0.7), L1(0.7)),
    "missing factor 2": (MissingTwo(0.7), L0(0.7)),
    "wrong branch at the kink": (WrongBranch(0.7, 2.5), MCP(0.7, 2.5)),
    "step not squared": (StepNotSquared(LogSum(0.7, 0.5), 2.0), Scaled(LogSum(0.7, 0.5), 2.0)),
    "weights ignored": (WeightsIgnored(0.7, FACTORS), WeightedL1(0.7, FACTORS)),
    "ties": (KeepsTies(5), L0Ball(5)),
    "off-by-one k": (OneTooFew(5), L0Ball(5)),
    "wrong axis": (WrongAxis(0.7), GroupLasso(0.7)),
    "float16 overflow": (NaiveGroupLasso(), GroupLasso(0.7)),
    "not idempotent": (NotIdempotent(-0.5, 0.5), Box(-0.5, 0.5)),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug: str) -> None:
    planted, right = BUGS[bug]
    report = check_operator(planted)
    assert not report.passed
    assert report.failures
    # What the bug was planted in passes, so that it is the bug that was caught.
    assert check_operator(right).failures == ()


def test_float16_overflow_is_caught_as_such() -> None:
    failed = {check.name for check in check_operator(NaiveGroupLasso()).failures}
    assert failed & {"half", "extremes"}


def test_the_failing_input_is_small_and_can_be_pasted() -> None:
    report = check_operator(WrongSign(0.7))
    check = next(check for check in report.failures if check.name == "local-search")
    scope: dict[str, Any] = {"torch": torch}
    exec(check.failing, scope)
    w, step = scope["w"], scope["step"]
    assert w.numel() == 1
    wrong, right = WrongSign(0.7).prox(w, step), L1(0.7).prox(w, step)
    assert not torch.equal(wrong, right)


@pytest.mark.parametrize("name", names())
def test_every_registered_operator_passes_its_quick_checks(name: str) -> None:
    """One instance of each; `argprune verify prox` checks all of them."""
    report = check_operator(examples(name)[0], name, seed=1)
    assert report.failures == ()
    # Reweighting rules have three checks.
    assert sum(check.status == "passed" for check in report.checks) >= (3 if report.facts.get("reweighting") else 10)


def test_at_least_45_operators_are_registered() -> None:
    assert len(registered("regularizers")) + len(registered("constraints")) >= 45


def test_reports_are_plain_data() -> None:
    report = check_operator(L1(0.7), speed=True)
    data = json.loads(json.dumps(report.to_dict()))
    assert data["passed"] is True
    assert data["speed"]["entries"] > 0
    by_name = {check["name"]: check for check in data["checks"]}
    assert {"CLARABEL", "SCS"} <= set(by_name["convex-solvers"]["note"].replace(",", " ").split())
    assert all(check["error"] <= check["tolerance"] for check in data["checks"] if check["status"] == "passed")


def test_a_report_without_passed_checks_has_not_passed() -> None:
    assert not Report("x", "x()", {}, (Check("a", "skipped"),), 0.0).passed


def test_operators_without_prox_are_checked_with_the_numerical_one() -> None:
    class OnlyValue:
        separable = True

        def value(self, w: Tensor) -> Tensor:
            return 0.7 * torch.log1p(w.abs() / 0.5).sum()

    report = check_operator(OnlyValue())
    assert report.slow
    assert report.failures == ()


def test_checks_leave_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    check_operator(L1(0.7))
    assert torch.equal(before, torch.get_rng_state())


def test_scalar_search_finds_a_global_minimum_that_a_local_search_misses() -> None:
    """Log-sum at a step where 0 and a positive point compete: the certificate tells which candidate is optimal."""
    penalty, w, step = LogSum(1.0, 0.1), torch.tensor([1.2], dtype=torch.float64), 1.0

    def profile(index: Tensor, x: Tensor) -> Tensor:
        return penalty.profile(x.abs())

    zero, tolerance = torch.zeros(1, dtype=torch.float64), torch.tensor([1e-7], dtype=torch.float64)
    right = penalty.prox(w, step)
    assert scalar_search(profile, zero, w, step, right, tolerance).improvement <= tolerance
    wrong = zero if float(right) > 0 else torch.tensor([0.7], dtype=torch.float64)
    found = scalar_search(profile, zero, w, step, wrong, tolerance)
    assert found.improvement > tolerance
