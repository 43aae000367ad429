"""SparseBERT's supports: nested, a hundred of them, exact; and as released, by the released code's own lines."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argprune.solvers.distillation import Distillation
from argprune.solvers.groups import Weight
from argprune.solvers.methods import SparseBERT
from argprune.solvers.methods.base import keep_count

SHAPES = ((20, 12), (9, 20))


class Trained:
    """Two matrices that a method prunes while random steps move them; masks after every step."""

    def __init__(self, method: SparseBERT, total: int, seed: int = 0) -> None:
        self.method, self.total = method, total
        self._random = torch.Generator().manual_seed(seed)
        self.weights = [Weight(str(i), torch.nn.Parameter(self.draw(shape))) for i, shape in enumerate(SHAPES)]
        method.attach(self.weights, total)
        self.supports = [self._step(step) for step in range(total)]

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self._random)

    def _step(self, step: int) -> list[Tensor]:
        for weight in self.weights:
            weight.parameter.grad = self.draw(tuple(weight.parameter.shape))
        self.method.before_step(step)
        with torch.no_grad():
            for weight in self.weights:
                weight.parameter.add_(self.draw(tuple(weight.parameter.shape)), alpha=0.3)
        self.method.after_step(step, 0.1)
        return [weight.parameter.detach() != 0 for weight in self.weights]

    def kept(self) -> list[list[int]]:
        return [[int(mask.sum()) for mask in masks] for masks in self.supports]


@settings(max_examples=25)
@given(
    sparsity=st.floats(0, 0.99),
    events=st.integers(1, 120),
    total=st.integers(1, 60),
    cooldown=st.sampled_from([0.0, 0.2, 0.5]),
    literal=st.booleans(),
)
def test_supports_are_nested_and_end_at_the_asked_count(
    sparsity: float, events: int, total: int, cooldown: float, literal: bool
) -> None:
    method = SparseBERT(sparsity, cooldown=cooldown, events=events, literal=literal)
    run = Trained(method, total)
    masks = list(method.finish().values())
    for earlier, later in zip(run.supports, [*run.supports[1:], masks], strict=True):
        assert all(not bool((new & ~old).any()) for old, new in zip(earlier, later, strict=True))
    sizes = [mask.numel() for mask in masks]
    wanted = [int(n * (1 - sparsity)) if literal else keep_count(n, sparsity) for n in sizes]
    assert [int(mask.sum()) for mask in masks] == wanted
    total_wanted = sum(sizes) - sparsity * sum(sizes)
    allowed = 0.5 * len(masks) if method.tolerance is None else method.tolerance
    assert abs(sum(wanted) - total_wanted) <= allowed + 1e-9
    for weight, mask in zip(run.weights, masks, strict=True):
        assert torch.equal(weight.parameter.detach() != 0, mask)


def test_a_hundred_events_and_a_cool_down() -> None:
    method = SparseBERT(0.95)
    run = Trained(method, 500)
    kept = run.kept()
    changes = sum(one != other for one, other in pairwise(kept))
    # So small matrices lose no entry at the last, smallest steps of the cubic.
    assert 50 <= changes <= 100
    assert method.report()["events"] == 101
    assert kept[399] == kept[-1] == [keep_count(240, 0.95), keep_count(180, 0.95)]
    # Half way through the pruning phase.
    assert 1 - kept[200][0] / 240 == pytest.approx(0.95 * (1 - 0.5**3), abs=0.01)


def test_a_kept_zero_stays_before_a_pruned_one() -> None:
    weight = Weight("w", torch.nn.Parameter(torch.tensor([[0.0, 5.0, 4.0, 3.0, 0.0, 0.0, 2.0, 1.0]])))
    method = SparseBERT(0.5, cooldown=0.0, events=4)
    method.attach([weight], 4)
    previous = torch.ones(1, 8, dtype=torch.bool)
    for step in range(4):
        with torch.no_grad():
            # Everything kept falls to exactly zero: only the support tells it from what was pruned.
            weight.parameter.zero_()
        method.after_step(step, 0.1)
        [mask] = method._support.masks().values()
        assert not bool((mask & ~previous).any())
        previous = mask


@pytest.mark.parametrize("total", [84, 300, 1234])
def test_the_released_schedule(total: int) -> None:
    method = SparseBERT(0.95, literal=True)
    run = Trained(method, total)
    # The released code's own lines, with t counting steps done.
    frequency = max(1, round(total / 100))
    mask, sizes = [torch.ones(shape, dtype=torch.bool) for shape in SHAPES], [240, 180]
    for t in range(1, total + 1):
        if t % frequency == 0 and 0 < t < total:
            s = 0.95 * (1 - (1 - (t // frequency) / (total // frequency)) ** 3)
            wanted = [int(n * (1 - s)) for n in sizes]
            assert [int(m.sum()) for m in run.supports[t - 1]] == wanted
            mask = run.supports[t - 1]
        assert all(torch.equal(one, other) for one, other in zip(run.supports[t - 1], mask, strict=True))


def test_figures_of_the_published_run() -> None:
    # MRPC: 84,612 steps, an event every 846, the last at 84,600.
    method = SparseBERT(0.95, literal=True)
    method.attach([], 84612)
    assert method._literal_sparsity(845) is None
    assert method._literal_sparsity(84600) == pytest.approx(0.95)
    assert method._literal_sparsity(42300) == pytest.approx(0.831, abs=5e-4)
    assert method._literal_sparsity(84612) is None


def test_ties_are_kept_as_released_and_cut_otherwise() -> None:
    def pruned(literal: bool) -> SparseBERT:
        weight = Weight("w", torch.nn.Parameter(torch.ones(4, 5)))
        method = SparseBERT(0.5, literal=literal)
        method.attach([weight], 1)
        method.after_step(0, 0.1)
        method.finish()
        return method

    assert int(pruned(True).finish()["w"].sum()) == 20
    assert pruned(True).report()["ties"] == 10
    assert pruned(True).tolerance == 11
    assert int(pruned(False).finish()["w"].sum()) == 10


def test_what_it_learns() -> None:
    assert SparseBERT(0.5).distillation == Distillation()
    assert SparseBERT(0.5, literal=True).distillation == Distillation(literal=True)
    assert SparseBERT(0.5, literal=True).constant_rate
    assert not SparseBERT(0.5).constant_rate


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"events": 0}, "^sparsebert: events 0; the support shrinks at least once"),
        ({"cooldown": 1.0}, "fractions of the run"),
        ({"literal": "yes"}, "^sparsebert: literal 'yes'; give true or false"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseBERT(0.5, **options)
