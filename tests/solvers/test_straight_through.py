"""Movement, soft movement and L0 against the same algorithms with gates inside the network, by autograd."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from argprune.solvers.groups import Weight
from argprune.solvers.methods import L0, Movement, SoftMovement
from argprune.solvers.methods.base import keep_count
from argprune.solvers.methods.straight_through import Scores, StraightThrough
from argprune.solvers.schedules import CubicSparsity, Phases

TOTAL, RATE = 40, 0.02
SHAPES = ((10, 8), (7, 10))
SIZES = [rows * columns for rows, columns in SHAPES]


def start(dtype: torch.dtype, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Two matrices to begin with, and the linear map that they shall fit."""
    generator = torch.Generator().manual_seed(seed)
    weights = [(torch.randn(shape, generator=generator) / 3).to(dtype) for shape in SHAPES]
    return weights, torch.randn(SHAPES[1][0], SHAPES[0][1], generator=generator).to(dtype)


def loss_of(weights: Sequence[Tensor], truth: Tensor, step: int) -> Tensor:
    """Mean squared error of the two-matrix network on the batch of a step."""
    batch = torch.randn(16, SHAPES[0][1], generator=torch.Generator().manual_seed(1000 + step)).to(truth.dtype)
    return (batch @ weights[0].t() @ weights[1].t() - batch @ truth.t()).square().mean()


def rate_at(step: int) -> float:
    """The run's learning rate over its peak: up for four steps, then down."""
    return min((step + 1) / 4, 1 - step / TOTAL)


class Run:
    """A run whose parameters hold the gated weights, through the hooks of a method."""

    def __init__(self, method: StraightThrough, dtype: torch.dtype = torch.float64, decay: float = 0.1) -> None:
        weights, self.truth = start(dtype)
        self.weights = [Weight(f"w{index}", torch.nn.Parameter(w)) for index, w in enumerate(weights)]
        self.method = method
        method.attach(self.weights, TOTAL)
        parameters = [weight.parameter for weight in self.weights]
        self.optimizer: Optimizer = method.wrap_optimizer(AdamW(parameters, lr=RATE, weight_decay=decay))

    def steps(self, begin: int = 0, end: int = TOTAL) -> Iterator[int]:
        for step in range(begin, end):
            self.seen = [weight.parameter.detach().clone() for weight in self.weights]
            self.optimizer.zero_grad()
            loss_of([weight.parameter for weight in self.weights], self.truth, step).backward()
            self.optimizer.param_groups[0]["lr"] = RATE * rate_at(step)
            self.method.before_step(step)
            self.optimizer.step()
            self.method.after_step(step, RATE * rate_at(step))
            yield step

    def all(self) -> Run:
        for _ in self.steps():
            pass
        return self

    def dense(self) -> list[Tensor]:
        """The weights as the optimizer knows them."""
        return self.method._dense or [weight.parameter.detach() for weight in self.weights]

    def zeros(self) -> list[int]:
        return [weight.parameter.numel() - int(weight.parameter.count_nonzero()) for weight in self.weights]


class Reference:
    """The published form: dense weights and scores are parameters of one optimizer, gates lie in the forward pass."""

    def __init__(self, gates: Callable[[int, list[Tensor]], list[Tensor]], rate: float, decay: float = 0.1) -> None:
        weights, self.truth = start(torch.float64)
        self.dense = [torch.nn.Parameter(w) for w in weights]
        self.scores = [torch.nn.Parameter(torch.zeros_like(w)) for w in weights]
        self.gates, self.rate = gates, rate
        self.gated: list[Tensor] = []
        groups = [{"params": self.scores, "weight_decay": 0.0}, {"params": self.dense, "weight_decay": decay}]
        self.optimizer = AdamW(groups, lr=RATE)

    def step(self, step: int, penalty: Callable[[list[Tensor]], Tensor] | None = None) -> None:
        gates = self.gates(step, list(self.scores))
        self.gated = [w * gate for w, gate in zip(self.dense, gates, strict=True)]
        loss = loss_of(self.gated, self.truth, step)
        if penalty is not None:
            loss = loss + penalty(list(self.scores))
        self.optimizer.zero_grad()
        loss.backward()
        for group, peak in zip(self.optimizer.param_groups, (self.rate, RATE), strict=True):
            group["lr"] = peak * rate_at(step)
        self.optimizer.step()


def straight_through(mask: Tensor, score: Tensor) -> Tensor:
    """The mask, with the derivative that the score itself would have."""
    return mask.to(score.dtype) + score - score.detach()


def largest(score: Tensor, keep: int) -> Tensor:
    """Mask of the `keep` largest entries, by sorting."""
    order = score.detach().flatten().sort(descending=True, stable=True).indices
    return torch.zeros(score.numel(), dtype=torch.bool).index_fill_(0, order[:keep], True).view_as(score)


def before_mask(method: Any, step: int) -> float:
    """The sparsity in force in the forward pass of a step."""
    begin, end = Phases(method.warmup, method.cooldown).steps(TOTAL)
    return CubicSparsity(method.sparsity, begin, end)(step - 1)


def assert_near(first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
    """Equal up to float64 roundings of the same formulas in another order, over 40 steps."""
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one.detach(), other.detach(), rtol=1e-8, atol=1e-10)


def follow(run: Run, reference: Reference, penalty: Callable[[int], Any] = lambda step: None) -> None:
    """Both side by side over the pruning phase: gated weights, dense weights and scores agree at every step."""
    end = Phases(0.06, 0.4).steps(TOTAL)[1]
    for step in run.steps(0, end):
        reference.step(step, penalty(step))
        assert_near(run.seen, reference.gated)
        assert_near(run.dense(), reference.dense)
        assert_near(run.method._scores.values, reference.scores)
    assert step == end - 1


@pytest.mark.parametrize("scope", ["matrix", "global"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_movement_is_the_published_algorithm(scope: Any, sparsity: float) -> None:
    method = Movement(sparsity, scope=scope)

    def gates(step: int, scores: list[Tensor]) -> list[Tensor]:
        now = before_mask(method, step)
        if scope == "matrix":
            masks = [largest(score, keep_count(score.numel(), now)) for score in scores]
        else:
            mask = largest(torch.cat([score.flatten() for score in scores]), keep_count(sum(SIZES), now))
            masks = [part.view(shape) for part, shape in zip(mask.split(SIZES), SHAPES, strict=True)]
        return [straight_through(mask, score) for mask, score in zip(masks, scores, strict=True)]

    follow(Run(method), Reference(gates, method.score_rate))


@pytest.mark.parametrize(("threshold", "rate"), [(None, 1e-2), (0.1, 0.15), (0.4, 0.05)])
def test_soft_movement_is_the_published_algorithm(threshold: float | None, rate: float) -> None:
    method = SoftMovement(0.8, threshold=threshold, strength=3.0, least=0.05, score_rate=rate)

    def gates(step: int, scores: list[Tensor]) -> list[Tensor]:
        now = before_mask(method, step)
        if threshold is None:
            mask = largest(torch.cat([score.flatten() for score in scores]), keep_count(sum(SIZES), now))
            masks = [part.view(shape) for part, shape in zip(mask.split(SIZES), SHAPES, strict=True)]
        else:
            masks = [torch.sigmoid(score) > threshold * now / 0.8 for score in scores]
            # 5 % of 80 and of 70 entries.
            masks = [
                mask if int(mask.sum()) >= least else largest(score, least)
                for mask, score, least in zip(masks, scores, (4, 3), strict=True)
            ]
        return [straight_through(mask, score) for mask, score in zip(masks, scores, strict=True)]

    def penalty(step: int) -> Callable[[list[Tensor]], Tensor]:
        strength = 3.0 * before_mask(method, step) / 0.8
        return lambda scores: strength * torch.stack([torch.sigmoid(score).mean() for score in scores]).mean()

    follow(Run(method), Reference(gates, rate), penalty)


@pytest.mark.parametrize(
    ("strength", "scope"), [(0.0, "global"), (0.5, "global"), (0.5, "matrix"), (None, "global"), (None, "matrix")]
)
def test_l0_is_its_algorithm_box(strength: float | None, scope: Any) -> None:
    method = L0(0.8, strength=strength, scope=scope, score_rate=0.2, dual_rate=2.0, dual_bound=3.0)
    run = Run(method)
    begin, end = Phases(method.warmup, method.cooldown).steps(TOTAL)
    groups = [[0, 1]] if scope == "global" else [[0], [1]]
    # lambda1, lambda2, the pressure and the mean square of each constraint.
    dual = [[0.0, 0.0, 0.0, 0.0] for _ in groups]
    generator = torch.Generator().manual_seed(torch.initial_seed())

    def opened(score: Tensor) -> Tensor:
        return torch.sigmoid(score + math.log(11) * 2 / 3)

    def gates(step: int, scores: list[Tensor]) -> list[Tensor]:
        if step <= begin:
            return [torch.ones_like(score) for score in scores]
        draws = [torch.empty_like(score).uniform_(generator=generator) for score in scores]
        for state, group in zip(dual, groups, strict=True):
            mean = sum(float(opened(scores[i].detach()).sum()) for i in group) / sum(SIZES[i] for i in group)
            lack = before_mask(method, step) - (1 - mean)
            state[0] = min(max(state[0] + 2.0 * lack, 0.0), 3.0)
            state[1] += 2.0 * lack**2
            state[2] = min(max(state[0] + 2 * state[1] * lack, 0.0), 3.0)
        return [
            (torch.sigmoid((torch.logit(u) + score) * 1.5) * 1.2 - 0.1).clamp(0, 1)
            for u, score in zip(draws, scores, strict=True)
        ]

    def forces() -> list[float]:
        unit = 4 * sum(SIZES)
        return [unit * math.sqrt(state[3]) * state[2] if strength is None else strength for state in dual]

    def penalty(scores: list[Tensor]) -> Tensor:
        means = [torch.stack([opened(scores[i]).sum() for i in group]).sum() / sum(SIZES) for group in groups]
        return torch.stack([force * mean for force, mean in zip(forces(), means, strict=True)]).sum()

    reference = Reference(gates, method.score_rate)
    for score in reference.scores:
        score.data = math.log(9) + torch.empty_like(score).normal_(std=0.01, generator=generator)
    for step in run.steps(0, end):
        before = [score.detach().clone() for score in reference.scores]
        reference.step(step, penalty if step > begin else None)
        assert_near(run.seen, reference.gated)
        assert_near(run.dense(), reference.dense)
        assert_near(run.method._scores.values, reference.scores)
        if step > begin:
            # The unit follows the loss's own gradients: the penalty's part is taken off again.
            for state, group, force in zip(dual, groups, forces(), strict=True):
                squares = 0.0
                for i in group:
                    gradient, p = reference.scores[i].grad, opened(before[i])
                    assert gradient is not None
                    squares += float((gradient - force * p * (1 - p) / sum(SIZES)).square().sum())
                now = squares / sum(SIZES[i] for i in group)
                state[3] = 0.9 * state[3] + 0.1 * now if state[3] else now


def test_between_steps_parameters_hold_the_gated_weights() -> None:
    for method in (Movement(0.7), SoftMovement(0.7, strength=1.0), L0(0.7)):
        run = Run(method)
        begin, end = Phases(method.warmup, method.cooldown).steps(TOTAL)
        for step in run.steps():
            if begin <= step < end:
                for weight, dense, gate in zip(run.weights, method._dense, method._gates, strict=True):
                    assert torch.equal(weight.parameter, dense * gate)
                    # Nothing is lost of what is pruned for now.
                    assert bool(dense.all())
            else:
                assert method._dense == []


@settings(max_examples=25)
@given(
    sparsity=st.floats(0, 0.99),
    scope=st.sampled_from(["matrix", "global"]),
    optimizer=st.sampled_from(["adamw", "sgd"]),
    every=st.integers(1, 7),
    warmup=st.floats(0, 0.4),
    cooldown=st.floats(0, 0.5),
)
def test_movement_keeps_the_scheduled_count_at_every_step(
    sparsity: float, scope: Any, optimizer: Any, every: int, warmup: float, cooldown: float
) -> None:
    method = Movement(sparsity, scope=scope, score_optimizer=optimizer, every=every, warmup=warmup, cooldown=cooldown)
    run = Run(method, dtype=torch.float32)
    begin, end = Phases(warmup, cooldown).steps(TOTAL)
    schedule, last = CubicSparsity(sparsity, begin, end), 0
    for step in run.steps():
        if begin <= step <= end and ((step - begin) % every == 0 or step == end):
            last = step
        parts = SIZES if scope == "matrix" else [sum(SIZES)]
        pruned = [round((schedule(last) if step >= begin else 0.0) * part) for part in parts]
        assert sum(run.zeros()) == sum(pruned)
        if scope == "matrix":
            assert run.zeros() == pruned
    masks = method.finish()
    assert [masks[w.name].numel() - int(masks[w.name].sum()) for w in run.weights] == run.zeros()


@settings(max_examples=20)
@given(
    sparsity=st.floats(0, 0.8),
    least=st.floats(0, 0.2),
    strength=st.floats(0, 100),
    threshold=st.none() | st.floats(0.01, 0.99),
    rate=st.floats(1e-3, 0.3),
)
def test_soft_movement_ends_exact_and_leaves_every_matrix_its_least(
    sparsity: float, least: float, strength: float, threshold: float | None, rate: float
) -> None:
    method = SoftMovement(sparsity, threshold=threshold, strength=strength, least=least, score_rate=rate)
    run = Run(method, dtype=torch.float32)
    end = Phases(method.warmup, method.cooldown).steps(TOTAL)[1]
    for step in run.steps():
        kept = [size - zeros for size, zeros in zip(SIZES, run.zeros(), strict=True)]
        assert all(count >= int(least * size) for count, size in zip(kept, SIZES, strict=True))
        assert step < end or sum(kept) == keep_count(sum(SIZES), sparsity)
    report = method.report()
    assert 0 <= report["threshold"] <= 1
    if threshold is None:
        assert report["threshold_sparsity"] == pytest.approx(1 - keep_count(sum(SIZES), sparsity) / sum(SIZES))
    else:
        assert 0 <= report["threshold_sparsity"] <= 1 - sum(int(least * size) for size in SIZES) / sum(SIZES) + 1e-12


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("scope", ["matrix", "global"])
def test_the_rate_of_the_scores_changes_no_mask_of_movement(optimizer: Any, scope: Any) -> None:
    """Scores start at 0 and steps are proportional to the rate: by powers of two, to the bit."""
    runs = [Run(Movement(0.8, score_rate=rate, score_optimizer=optimizer, scope=scope)) for rate in (2.0**-7, 2.0**-3)]
    for _ in zip(*(run.steps() for run in runs), strict=True):
        for one, other in zip(runs[0].weights, runs[1].weights, strict=True):
            assert torch.equal(one.parameter, other.parameter)


def test_movement_by_hand() -> None:
    """Sums of -g * W decide: large weights that shrink go, small ones that grow stay, and the pruned may return."""
    w = torch.nn.Parameter(torch.tensor([4.0, -3.0, 0.5, -0.5]))
    method = Movement(0.5, score_optimizer="sgd", score_rate=1.0, warmup=0.0, cooldown=0.4)
    method.attach([Weight("w", w)], 5)
    optimizer = method.wrap_optimizer(SGD([w], lr=0.0))
    gradients = [[1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0], [-9.0, 1.0, -2.0, 1.0], [0.0] * 4, [1.0] * 4]
    # Scores: -(4, 0, 0.5, -0.5), then -(8, 0, 0.5, -1), then -(-28, -3, -0.5, -1.5).
    history = [[4.0, -3.0, 0.5, -0.5], [0.0, -3.0, 0.0, -0.5], [4.0, -3.0, 0.0, 0.0], [4.0, -3.0, 0.0, 0.0]]
    for step, (gradient, after) in enumerate(zip(gradients, history, strict=False)):
        w.grad = torch.tensor(gradient)
        method.before_step(step)
        optimizer.step()
        method.after_step(step, 0.0)
        assert w.tolist() == after, step
    assert method.finish()["w"].tolist() == [True, True, False, False]


@pytest.mark.parametrize("optimizer", [SGD, AdamW])
def test_pruned_entries_get_no_gradient_and_their_scores_learn(optimizer: Any) -> None:
    """Only momentum and decay reach the dense weights of pruned entries, as published; without them these rest."""
    run = Run(method := Movement(0.8))
    run.optimizer = optimizer([weight.parameter for weight in run.weights], lr=RATE)
    for _ in run.steps(0, 12):
        pass
    gates, dense = [gate.clone() for gate in method._gates], [dense.clone() for dense in method._dense]
    scores = [score.clone() for score in method._scores.values]
    next(run.steps(12, 13))
    for index, gate in enumerate(gates):
        gradient = run.weights[index].parameter.grad
        assert gradient is not None
        assert not bool(gradient[~gate].any())
        assert bool(gradient[gate].any())
        moved = method._dense[index] != dense[index]
        assert torch.equal(moved, gradient != 0) if optimizer is SGD else bool(moved.all())
        assert bool((method._scores.values[index] != scores[index])[~gate].all())


def test_scores_follow_the_learning_rate() -> None:
    run = Run(method := Movement(0.5, score_optimizer="sgd"))
    for weight in run.weights:
        weight.parameter.grad = torch.ones_like(weight.parameter)
    seen = []
    for rate in (0.0, RATE / 2, RATE):
        for value in method._scores.values:
            value.zero_()
        run.optimizer.param_groups[0]["lr"] = rate
        method.before_step(0)
        seen.append(method._scores.values[0].clone())
    assert not bool(seen[0].any())
    torch.testing.assert_close(seen[2], -1e-2 * run.weights[0].parameter.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(seen[1], seen[2] / 2, rtol=1e-12, atol=0)


def test_movement_counts_what_it_revives() -> None:
    run = Run(method := Movement(0.8))
    begin, end = Phases(method.warmup, method.cooldown).steps(TOTAL)
    total, before = 0, [torch.ones(shape, dtype=torch.bool) for shape in SHAPES]
    for step in run.steps(0, end):
        now = [weight.parameter.detach() != 0 for weight in run.weights]
        revived = sum(int((new & ~old).sum()) for new, old in zip(now, before, strict=True))
        assert method.logs()["revived"] == revived
        total, before = total + revived, now
        assert revived == 0 or step > begin
    assert total > 0


def test_a_threshold_that_prunes_nothing_is_closed_and_reported() -> None:
    run = Run(method := SoftMovement(0.6, threshold=0.1, strength=0.0)).all()
    # At rate 0.01, no score falls to logit(0.1) = -2.2 in 22 steps.
    assert method.report()["threshold_sparsity"] == 0.0
    assert method.report()["threshold"] > 0.4
    assert sum(run.zeros()) == 90


def test_a_strong_penalty_prunes_by_itself() -> None:
    run = Run(method := SoftMovement(0.6, threshold=0.1, strength=1e4, score_rate=0.3, least=0.1))
    logs = {}
    for step in run.steps(0, 23):
        logs[step] = method.logs()
    assert logs[22]["sparsity"] == pytest.approx(0.9)
    assert 0 < logs[22]["penalty"] < 1e4
    for _ in run.steps(23):
        pass
    assert method.report()["threshold_sparsity"] == pytest.approx(0.9)
    assert sum(run.zeros()) == 90


def test_l0_drives_the_expected_sparsity_to_the_target() -> None:
    run = Run(method := L0(0.7, score_rate=0.6), dtype=torch.float32)
    expected, forces = [], []
    for _ in run.steps():
        logs = method.logs()
        if "expected_sparsity" in logs:
            expected.append(logs["expected_sparsity"])
            forces.append(logs["strength_max"])
            # 150 gates are drawn: the share of closed ones is the expected one up to five standard deviations.
            assert logs["sparsity"] == pytest.approx(expected[-1], abs=5 * 0.5 / math.sqrt(150))
    assert expected[0] < 0.03
    assert min(forces) >= 0
    assert max(forces) > 0
    assert method.report()["expected_sparsity"] == pytest.approx(0.7, abs=0.15)
    assert run.zeros() != [0, 0]
    assert sum(run.zeros()) == 105


def test_l0_folds_the_deterministic_gates_into_the_kept_weights() -> None:
    run = Run(method := L0(0.6, strength=0.02, score_rate=0.5))
    end = Phases(method.warmup, method.cooldown).steps(TOTAL)[1]
    for _ in run.steps(0, end):
        pass
    kept: dict[str, Any] = {}

    def spy() -> list[Tensor]:
        kept["dense"] = [weight.parameter.detach().clone() for weight in run.weights]
        kept["scores"] = [score.clone() for score in method._scores.values]
        return final()

    final, method._final_masks = method._final_masks, spy  # type: ignore[method-assign]
    next(run.steps(end, end + 1))
    changed = 0
    for weight, dense, score in zip(run.weights, kept["dense"], kept["scores"], strict=True):
        gate = (torch.sigmoid(score) * 1.2 - 0.1).clamp(0, 1)
        mask = method.finish()[weight.name]
        torch.testing.assert_close(weight.parameter.detach(), dense * gate * mask, rtol=1e-12, atol=0)
        changed += int((mask != (gate > 0)).sum())
        assert not bool(score[~mask].max() > score[mask].max())
    both = torch.cat([score.flatten() for score in kept["scores"]])
    masks = torch.cat([method.finish()[weight.name].flatten() for weight in run.weights])
    assert torch.equal(masks, largest(both, keep_count(150, 0.6)))
    assert method.report()["gates_changed"] == changed


def test_l0_samples_anew_at_every_step_and_from_the_run_s_seed() -> None:
    def sampled(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        run = Run(method := L0(0.5))
        return [method._gates[0].clone() for step in run.steps(0, 8) if step >= 2]

    first = sampled(3)
    assert all(not torch.equal(one, other) for one, other in itertools.pairwise(first))
    assert all(torch.equal(one, other) for one, other in zip(first, sampled(3), strict=True))
    assert not torch.equal(first[0], sampled(4)[0])


def test_l0_leaves_the_global_random_numbers_alone() -> None:
    run = Run(L0(0.5))
    before = torch.get_rng_state()
    run.all()
    assert torch.equal(torch.get_rng_state(), before)


METHODS = [
    pytest.param(Movement, {}, id="movement"),
    pytest.param(SoftMovement, {"strength": 1.0}, id="soft-movement"),
    pytest.param(SoftMovement, {"threshold": 0.1}, id="soft-movement-threshold"),
    pytest.param(L0, {}, id="l0"),
    pytest.param(L0, {"scope": "matrix"}, id="l0-matrix"),
]
all_methods = pytest.mark.parametrize(("cls", "options"), METHODS)


@all_methods
@pytest.mark.parametrize("sparsity", [0.0, 0.6, 0.97])
def test_sparsity_is_exact_and_the_rest_is_dropped(cls: Any, options: dict[str, Any], sparsity: float) -> None:
    run = Run(cls(sparsity, **options), dtype=torch.float32).all()
    kept = sum(SIZES) - sum(run.zeros())
    if getattr(run.method, "scope", "global") == "global":
        assert kept == keep_count(sum(SIZES), sparsity)
    else:
        assert kept == sum(keep_count(size, sparsity) for size in SIZES)
    names = {name.split(".")[0] for name, value in run.method.state_dict().items() if isinstance(value, Tensor)}
    assert names <= {"mask", "multipliers", "generator"}
    assert run.method.logs().keys() == {"sparsity"}


@all_methods
def test_scores_of_bfloat16_weights_are_float32(cls: Any, options: dict[str, Any]) -> None:
    run = Run(cls(0.6, **options), dtype=torch.bfloat16)
    for _ in run.steps(0, 10):
        pass
    assert {score.dtype for score in run.method._scores.values} == {torch.float32}
    assert {weight.parameter.dtype for weight in run.weights} == {torch.bfloat16}
    run.all()
    assert sum(run.zeros()) == 90


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_how_a_weight_lies_in_memory_makes_no_difference_to_its_scores(optimizer: Any) -> None:
    values = torch.randn(3, 4)
    learned = []
    for weight in (values, values.t().contiguous().t()):
        scores = Scores([Weight("w", torch.nn.Parameter(weight))], 0.0, optimizer)
        for step in range(3):
            gradient = scores.buffer(0)
            gradient.copy_(torch.arange(-6.0, 6.0).view(3, 4) * (step - 0.5))
            scores.learn(0, gradient, 0.1)
        learned.append(scores.values[0])
    torch.testing.assert_close(*learned)


@all_methods
def test_a_weight_that_does_not_train_is_pruned_all_the_same(cls: Any, options: dict[str, Any]) -> None:
    run = Run(cls(0.6, **options), dtype=torch.float32)
    run.weights[1].parameter.requires_grad_(False)
    before = run.weights[1].parameter.clone()
    run.all()
    mask = run.method.finish()["w1"]
    assert sum(run.zeros()) == 90
    after = run.weights[1].parameter
    # L0 multiplies by its gates; no method trains it.
    scale = after[mask] / before[mask]
    assert bool(((scale == 1) | (cls is L0 and (scale >= 0) & (scale <= 1))).all())


@all_methods
def test_finishing_early_uses_what_was_learned(cls: Any, options: dict[str, Any]) -> None:
    run = Run(cls(0.6, **options))
    for _ in run.steps(0, 15):
        pass
    scores = [score.clone() for score in run.method._scores.values]
    masks = run.method.finish()
    assert sum(run.zeros()) == 90
    for weight, score in zip(run.weights, scores, strict=True):
        mask = masks[weight.name]
        assert float(score[mask].min()) >= float(score[~mask].max())


@all_methods
@pytest.mark.parametrize("total", [1, 2, 3, 5])
def test_the_shortest_runs_end_exact(cls: Any, options: dict[str, Any], total: int) -> None:
    weights, truth = start(torch.float32)
    held = [Weight(f"w{index}", torch.nn.Parameter(w)) for index, w in enumerate(weights)]
    method = cls(0.6, **options)
    method.attach(held, total)
    optimizer = method.wrap_optimizer(AdamW([weight.parameter for weight in held], lr=RATE))
    for step in range(total):
        optimizer.zero_grad()
        loss_of([weight.parameter for weight in held], truth, step).backward()
        method.before_step(step)
        optimizer.step()
        method.after_step(step, RATE)
    assert sum(int(mask.sum()) for mask in method.finish().values()) == 60


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (Movement, {"sparsity": 1.0}, r"sparsity 1\.0"),
        (Movement, {"sparsity": 0.5, "score_rate": 0.0}, r"movement: score_rate 0\.0"),
        (Movement, {"sparsity": 0.5, "score_rate": math.inf}, "movement: score_rate inf"),
        (Movement, {"sparsity": 0.5, "score_optimizer": "lion"}, "score_optimizer 'lion'"),
        (Movement, {"sparsity": 0.5, "every": 0}, "movement: every 0"),
        (Movement, {"sparsity": 0.5, "scope": "layer"}, "movement: scope 'layer'"),
        (Movement, {"sparsity": 0.5, "cooldown": 1.0}, "their sum < 1"),
        (SoftMovement, {"sparsity": 0.5, "threshold": 0.0}, r"soft-movement: threshold 0\.0"),
        (SoftMovement, {"sparsity": 0.5, "threshold": 1.0}, r"soft-movement: threshold 1\.0"),
        (SoftMovement, {"sparsity": 0.5, "strength": -1.0}, r"soft-movement: strength -1\.0"),
        (SoftMovement, {"sparsity": 0.999}, r"least 0\.005 with sparsity 0\.999"),
        (SoftMovement, {"sparsity": 0.5, "least": -0.1}, r"least -0\.1"),
        (L0, {"sparsity": -0.1}, r"sparsity -0\.1"),
        (L0, {"sparsity": 0.5, "strength": math.nan}, "l0: strength nan"),
        (L0, {"sparsity": 0.5, "droprate_init": 0.0}, r"droprate 0\.0"),
        (L0, {"sparsity": 0.5, "temperature": 0.0}, r"temperature 0\.0"),
        (L0, {"sparsity": 0.5, "dual_rate": 0.0}, r"l0: dual_rate 0\.0"),
        (L0, {"sparsity": 0.5, "dual_bound": -1.0}, r"l0: dual_bound -1\.0"),
        (L0, {"sparsity": 0.5, "scope": "layer"}, "l0: scope 'layer'"),
    ],
)
def test_refusals(cls: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**options)
