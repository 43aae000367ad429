"""Pruning by scores: each algorithm against a few lines of its own, and what the selections promise."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from argprune.solvers.groups import Weight
from argprune.solvers.ilp import Certificate, problem
from argprune.solvers.methods import PINS, PLATON, Method
from argprune.solvers.methods.base import keep_count
from argprune.solvers.schedules import CubicSparsity, Phases

TOTAL = 40
SHAPES = ((6, 5), (4, 6))
PLAIN: dict[str, Any] = {"self_regularization": "none", "beta": 0.0, "every": 4}


class Loop:
    """A least-squares problem in two matrices; `targets` is what the product must become."""

    def __init__(
        self, method: Method, make: Any = AdamW, rate: float = 0.02, dtype: torch.dtype = torch.float64
    ) -> None:
        generator = torch.Generator().manual_seed(3)
        self.parameters = [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in SHAPES]
        self.weights = [Weight(f"w{i}", parameter) for i, parameter in enumerate(self.parameters)]
        self.targets = torch.randn(SHAPES[1][0], SHAPES[0][1], generator=generator).to(dtype)
        self.method, self.rate = method, rate
        method.attach(self.weights, TOTAL)
        self.optimizer: Optimizer = method.wrap_optimizer(make(self.parameters, lr=rate))

    def backward(self) -> None:
        first, second = self.parameters
        self.optimizer.zero_grad()
        (second @ first - self.targets).square().mean().backward()

    def steps(self, end: int = TOTAL) -> Iterator[int]:
        for step in range(end):
            self.backward()
            self.method.before_step(step)
            self.optimizer.step()
            self.method.after_step(step, self.rate)
            yield step


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def smallest(costs: Tensor, keep: int) -> Tensor:
    """The mask that a stable sort gives."""
    mask = torch.zeros(len(costs), dtype=torch.bool)
    mask[costs.argsort(stable=True)[:keep]] = True
    return mask


def reference_masks(method: Any, make: Any, rate: float, rule: Any) -> dict[int, Tensor]:
    """The masks of a run by its events, from whole vectors: `rule` turns (w before, g, w after) into raw scores."""
    loop = Loop(Unpruned(), make, rate)
    begin, end = Phases(method.warmup, method.cooldown).steps(TOTAL)
    schedule = CubicSparsity(method.sparsity, begin, end)
    window: list[Tensor] = []
    average = deviation = torch.zeros((), dtype=torch.float64)
    kept, masks = torch.ones(sum(p.numel() for p in loop.parameters), dtype=torch.bool), {}
    for step in range(end + 1):
        loop.backward()
        before, gradient = flat(loop.parameters), flat([p.grad for p in loop.parameters])
        loop.optimizer.step()
        window.append(rule(before, gradient, flat(loop.parameters)))
        event = step == end or (step >= begin and (step - begin) % method.every == 0)
        if event:
            mean = torch.stack(window[-(method.window or method.every) :]).mean(0)
            average = method.beta * average + (1 - method.beta) * mean
            scores = average
            if method.uncertainty is not None:
                deviation = method.uncertainty * deviation + (1 - method.uncertainty) * (mean - average).abs()
                scores = average * deviation
            window = []
            if method.masks == "nested":
                scores = torch.where(kept, scores, -torch.inf)
            kept = smallest(-scores.float(), keep_count(len(scores), schedule(step)))
            masks[step] = kept
        if event or method.masks != "soft":
            with torch.no_grad():
                for parameter, part in zip(
                    loop.parameters, kept.split([p.numel() for p in loop.parameters]), strict=True
                ):
                    parameter.mul_(part.view_as(parameter))
    return masks


class Unpruned(Method):
    sparsity = 0.0

    def attach(self, weights: Any, total_steps: int) -> None:
        pass


RULES = {
    "displacement": lambda before, gradient, after: -gradient * after,
    "signed": lambda before, gradient, after: -gradient * before + 0.05 * gradient**2,
    "abs": lambda before, gradient, after: (-gradient * before + 0.05 * gradient**2).abs(),
}


@pytest.mark.parametrize("masks", ["persistent", "soft", "nested"])
@pytest.mark.parametrize("sign", list(RULES))
@pytest.mark.parametrize(
    "options",
    [{}, {"window": 1}, {"beta": 0.85}, {"beta": 0.6, "uncertainty": 0.9, "every": 3, "window": 2}],
    ids=["mean", "last", "average", "uncertainty"],
)
@pytest.mark.parametrize("make", [SGD, AdamW])
def test_pins_is_its_algorithm_box(make: Any, options: dict[str, Any], sign: str, masks: Any) -> None:
    kwargs = {**PLAIN, **options, "masks": masks, "criterion": {"name": "pins", "sign": sign}}
    method = PINS(sparsity=0.7, **kwargs)
    expected = reference_masks(method, make, 0.05, RULES[sign])
    loop = Loop(method, make, 0.05)
    begin, end = method._begin, method._end
    seen = {}
    for step in loop.steps(end + 1):
        if step in expected:
            seen[step] = flat(loop.parameters) != 0
    assert begin in seen
    assert end in seen
    assert all(torch.equal(seen[step], mask) for step, mask in expected.items())


def test_platon_is_its_algorithm_box() -> None:
    method = PLATON(sparsity=0.7, every=4)
    expected = reference_masks(method, AdamW, 0.05, lambda before, gradient, after: (gradient * after).abs())
    loop = Loop(method, AdamW, 0.05)
    seen = {s: flat(loop.parameters) != 0 for s in loop.steps(method._end + 1) if s in expected}
    assert all(torch.equal(seen[step], mask) for step, mask in expected.items())


def test_the_displacement_is_the_plain_gradient_step_of_sgd_and_not_of_adamw() -> None:
    def supports(sign: str, make: Any) -> list[Tensor]:
        loop = Loop(PINS(sparsity=0.5, **PLAIN, criterion={"name": "pins", "sign": sign}), make, 0.3)
        return [flat(loop.parameters) != 0 for _ in loop.steps()]

    def same(first: list[Tensor], second: list[Tensor]) -> bool:
        return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))

    assert same(supports("displacement", SGD), supports("signed", SGD))
    assert not same(supports("displacement", AdamW), supports("signed", AdamW))


def test_soft_masks_hold_at_events_only_and_persistent_ones_always() -> None:
    for masks in ("soft", "persistent"):
        method = PINS(sparsity=0.6, **PLAIN, masks=masks)
        loop = Loop(method)
        density = {step: float((flat(loop.parameters) != 0).double().mean()) for step in loop.steps()}
        for step in range(method._begin + 1, method._end + 1):
            if method._is_event(step):
                expected = keep_count(54, method._schedule(step)) / 54
            elif masks == "soft":
                expected = 1.0
            else:
                expected = density[step - 1]
            assert density[step] == pytest.approx(expected, abs=1e-12), (masks, step)
        # The forward pass of a step sees what the step before left.
        seen = [1 - density[step - 1] if step else 0.0 for step in range(method._end + 1)]
        assert method.report()["forward_sparsity"] == pytest.approx(sum(seen) / len(seen), abs=1e-9)


def test_a_pruned_weight_returns_where_the_program_says_so() -> None:
    """Its step d is nonzero although the weight is zero, and -g d is what keeping it would gain."""
    method = PINS(sparsity=0.5, **{**PLAIN, "every": 1})
    loop = Loop(method, rate=0.1)
    supports = [flat(loop.parameters) != 0 for _ in loop.steps(method._end + 1)]
    returned = [bool((after & ~before).any()) for before, after in itertools.pairwise(supports)]
    assert any(returned[method._begin + 1 :])


@pytest.mark.parametrize("scope", ["global", "matrix"])
def test_every_event_keeps_exactly_k_and_proves_it(scope: Any) -> None:
    method = PINS(sparsity=0.55, **PLAIN, scope=scope)
    loop = Loop(method)
    # A gradient of zero: all costs are equal.
    loop.targets = (loop.parameters[1] @ loop.parameters[0]).detach()
    for step in loop.steps():
        if not method._is_event(step):
            continue
        line = method.logs()
        assert line["gap"] == 0
        sizes = [p.numel() for p in loop.parameters]
        kept = [int(p.count_nonzero()) for p in loop.parameters]
        if scope == "matrix":
            assert kept == [keep_count(size, method._schedule(step)) for size in sizes]
        else:
            assert sum(kept) == keep_count(sum(sizes), method._schedule(step))
    report = method.report()
    certificate = Certificate.from_dict(report["certificate"])
    masks = loop.method.finish()
    assert certificate.check(method._costs, [masks[w.name] for w in loop.weights]) == certificate.gap == 0
    assert report["events"] == len([step for step in range(TOTAL) if method._is_event(step)])


def test_equal_costs_are_kept_by_flat_index() -> None:
    method = PINS(sparsity=0.5, **PLAIN)
    loop = Loop(method)
    method.attach(loop.weights, 1)
    for parameter in loop.parameters:
        parameter.grad = torch.zeros_like(parameter)
    method.before_step(0)
    method.after_step(0, 0.1)
    assert flat(method.finish().values()).tolist() == [True] * 27 + [False] * 27


OPTIONS: list[dict[str, Any]] = [
    {},
    {"every": 1},
    {"beta": 0.85},
    {"beta": 0.85, "every": 1, "masks": "nested"},
    {"beta": 0.6, "uncertainty": 0.9},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_weights_larger_than_a_chunk_are_treated_alike(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> Tensor:
        loop = Loop(PINS(sparsity=0.7, **{**PLAIN, **options}))
        return torch.stack([flat(loop.parameters) for _ in loop.steps()])

    whole = run()
    monkeypatch.setattr(problem, "_CHUNK", 7)
    assert torch.equal(run(), whole)


@pytest.mark.parametrize("options", [one for one in OPTIONS if "beta" in one], ids=str)
def test_checkpoints_hold_scores_and_costs_are_their_negative(options: dict[str, Any]) -> None:
    method = PINS(sparsity=0.7, **{**PLAIN, **options})
    loop = Loop(method)
    last = list(loop.steps(method._begin + method.every + 1))[-1]
    assert method._is_event(last)
    state: dict[str, Any] = method.state_dict()
    scores = flat(state[f"average.w{i}"] for i in range(2))
    if method.uncertainty is not None:
        scores = scores * flat(state[f"deviation.w{i}"] for i in range(2))
    torch.testing.assert_close(flat(method._costs), -scores)
    again = PINS(sparsity=0.7, **{**PLAIN, **options})
    again.attach(loop.weights, TOTAL)
    again.load_state_dict(state)
    restored: dict[str, Any] = again.state_dict()
    assert restored.keys() == state.keys()
    assert all(torch.equal(restored[name], value) for name, value in state.items() if isinstance(value, Tensor))


def test_a_weight_without_a_gradient_counts_as_one_of_cost_zero() -> None:
    method = PINS(sparsity=0.5, **PLAIN)
    loop = Loop(method)
    method.attach(loop.weights, 1)
    loop.backward()
    loop.parameters[1].grad = None
    method.before_step(0)
    method.after_step(0, 0.1)
    assert not bool(method._costs[1].any())


def test_the_schedule_of_the_official_script() -> None:
    """T = 3120, 200 warm-up steps, 1/6 of these before and after, density 0.2 (dossier, section 8)."""
    density = {t: 1 - CubicSparsity(0.8, begin=200, end=1920)(t) for t in (210, 1520, 1550, 1920)}
    assert {t: round(r, 5) for t, r in density.items()} == {210: 0.98613, 1520: 0.21006, 1550: 0.20796, 1920: 0.2}


def test_snapshots_are_taken_before_the_events_that_pass_milestones() -> None:
    method = PINS(sparsity=0.8, every=2, milestones=4)
    loop = Loop(method)
    asked = {-1: method.snapshot(-1)}
    for step in loop.steps():
        asked[step] = method.snapshot(step)
    taken = [step for step, answer in asked.items() if answer == "take"]
    begin, end = method._begin, method._end
    passed = [min(s for s in [*range(begin, end, 2), end] if method._schedule(s) >= 0.2 * m - 1e-12) for m in range(5)]
    assert taken == sorted({step - 1 for step in passed})
    assert taken[0] == begin - 1
    assert taken[-1] == end - 1


@pytest.mark.parametrize(("rule", "answer"), [("held-out", "held-out"), ("dev", "dev"), ("none", None)])
def test_the_snapshot_rule_is_what_is_answered(rule: Any, answer: str | None) -> None:
    method = PINS(sparsity=0.8, self_regularization=rule)
    loop = Loop(method)
    answers = {method.snapshot(step) for step in loop.steps()} - {"no"}
    assert answers == ({answer} if answer else set())
    assert method.holds_out == (rule == "held-out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, r"^pins: every 0; events are at least 1 step apart\.$"),
        ({"window": 9}, r"^pins: window 9; give 1 to every \(8\) steps, or None for all\.$"),
        ({"scope": "layer"}, r"^pins: scope 'layer'; choose 'global' or 'matrix'\.$"),
        ({"masks": "hard"}, r"^pins: masks 'hard'; choose 'persistent', 'soft' or 'nested'\.$"),
        ({"examples": 0}, r"^pins: examples 0; a gradient is the mean over at least one row\.$"),
        ({"beta": 1.0}, r"^Smoothing: beta 1\.0; it must be in \[0, 1\)\.$"),
        ({"uncertainty": -0.1}, r"^Smoothing: uncertainty -0\.1; it must be in \[0, 1\)\.$"),
        ({"criterion": "pinns"}, r"^Unknown criterion 'pinns'\. Did you mean 'pins'\?"),
        ({"criterion": {"name": "pins", "sign": "minus"}}, r"^pins: sign 'minus'; choose one of displacement, "),
        (
            {"criterion": "random"},
            r"^pins: criterion 'random' looks at more than one entry; give an elementwise one\.$",
        ),
        (
            {"self_regularization": "last"},
            r"^self_regularization 'last'; choose one of none, milestones, held-out, dev",
        ),
        ({"snapshot_weight": 1.5}, r"^snapshot_weight 1\.5: 'adaptive', or a number in \[0, 1\]\.$"),
        ({"temperature": 0.0}, r"^temperature 0\.0: it must be finite and > 0\.$"),
        ({"milestones": 0}, r"^milestones 0: at least 1\.$"),
        ({"sparsity": 1.0}, r"^sparsity 1\.0"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PINS(**{"sparsity": 0.5, **options})
