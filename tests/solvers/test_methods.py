"""Every registered method on a small least-squares problem, and each algorithm against a few lines of its own."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from argprune.solvers.admm import Moments
from argprune.solvers.groups import Weight
from argprune.solvers.methods import (
    PINS,
    RPP,
    Dense,
    LowRank,
    Magnitude,
    Method,
    Movement,
    OneShot,
    Outputs,
    Prediction,
    SparseBERT,
)
from argprune.solvers.methods.base import keep_count, magnitude_masks, zero_fraction
from argprune.solvers.prox import ProximalOptimizer, WeightedL1
from argprune.solvers.registry import registered
from argprune.solvers.schedules import CubicSparsity, Phases

TOTAL, RATE = 40, 0.02
SHAPES = ((10, 8), (7, 10))
EXAMPLES = [
    pytest.param(entry.cls, dict(kwargs), id=f"{name}-{index}")
    for name, entry in registered("methods").items()
    # They work on factors, not on matrices: test_low_rank_methods.py.
    if not issubclass(entry.cls, LowRank)
    for index, kwargs in enumerate(entry.examples)
]
methods = pytest.mark.parametrize(("cls", "kwargs"), EXAMPLES)
# What the registered examples do not reach.
MORE = [
    pytest.param(RPP, {"sparsity": 0.5, "metric": "constant", "prox_step": 0.1, "normalise": False}, id="rpp-constant"),
    pytest.param(RPP, {"sparsity": 0.5, "strength": 0.05, "plain_first_round": True}, id="rpp-strength"),
    pytest.param(Magnitude, {"sparsity": 0.5, "every": 3, "nested": False}, id="magnitude-free"),
]
more_methods = pytest.mark.parametrize(("cls", "kwargs"), [*EXAMPLES, *MORE])


class Run:
    """A training run: a linear network of two matrices and a bias fitted to targets, AdamW, linear decay.

    The batch of a step depends on the step's number alone, as a resumed run's does.
    """

    def __init__(self, method: Method, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        first, second = (torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype) / 3) for s in SHAPES)
        self.bias = torch.nn.Parameter(torch.zeros(SHAPES[1][0], dtype=dtype))
        self.weights = [Weight("first", first), Weight("second", second)]
        self.parameters = [first, second, self.bias]
        self.truth = torch.randn(SHAPES[1][0], SHAPES[0][1], generator=generator).to(dtype)
        self.teacher: list[Tensor] | None = None
        self.method = method
        method.attach(self.weights, TOTAL)
        self.optimizer: Optimizer = method.wrap_optimizer(AdamW(self.parameters, lr=RATE, weight_decay=0.01))

    def step(self, step: int) -> None:
        """One optimizer step, with the hooks around it that the class docstring of Method describes."""
        batch = torch.randn(16, SHAPES[0][1], generator=torch.Generator().manual_seed(1000 + step))
        batch = batch.to(self.truth.dtype)
        if step == 0:
            self.ask(-1)
        targets = batch @ self.truth.t()
        student = self.predict(batch, self.parameters)
        teacher = None if self.teacher is None else outputs(self.predict(batch, self.teacher), targets)
        loss = (student - targets).square().mean()
        for term in self.method.loss_terms(outputs(student, targets), teacher).values():
            loss = loss + term
        self.optimizer.zero_grad()
        loss.backward()
        rate = RATE * (1 - step / TOTAL)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.method.before_step(step)
        self.optimizer.step()
        self.method.after_step(step, rate)
        self.ask(step)

    def predict(self, batch: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        first, second, bias = parameters
        return batch @ first.t() @ second.t() + bias

    def ask(self, step: int) -> None:
        if self.method.snapshot(step) != "no":
            self.teacher = [parameter.detach().clone() for parameter in self.parameters]

    def steps(self, begin: int = 0, end: int = TOTAL) -> Iterator[int]:
        for step in range(begin, end):
            self.step(step)
            yield step

    def finish(self) -> dict[str, Tensor]:
        if isinstance(self.method, OneShot) and not self.method.pruned:
            # They prune a trained network, on what its layers are fed.
            batch = torch.randn(64, SHAPES[0][1], generator=torch.Generator().manual_seed(999)).to(self.truth.dtype)
            inputs = {"first": batch, "second": batch @ self.parameters[0].detach().t()}
            moments = {name: Moments(tokens.shape[1], self.method.folds) for name, tokens in inputs.items()}
            for name, tokens in inputs.items():
                for part in tokens.chunk(self.method.folds):
                    moments[name].update(part)
            self.method.prune(moments)
        return self.method.finish()

    def zeros(self) -> list[int]:
        return [weight.parameter.numel() - int(weight.parameter.count_nonzero()) for weight in self.weights]

    def save(self) -> bytes:
        """Weights, optimizer and method, as a file holds them; read back without running anything in it."""
        file = io.BytesIO()
        weights = [parameter.detach() for parameter in self.parameters]
        torch.save([weights, self.optimizer.state_dict(), self.method.state_dict(), self.teacher], file)
        return file.getvalue()

    def load(self, saved: bytes) -> None:
        weights, optimizer, method, self.teacher = torch.load(io.BytesIO(saved), weights_only=True)
        with torch.no_grad():
            for parameter, weight in zip(self.parameters, weights, strict=True):
                parameter.copy_(weight)
        self.optimizer.load_state_dict(optimizer)
        self.method.load_state_dict(method)


def outputs(predicted: Tensor, targets: Tensor) -> Outputs:
    return Outputs((Prediction(predicted.flatten(), targets.flatten()),), predicted)


def finished(method: Method, **options: Any) -> Run:
    run = Run(method, **options)
    for _ in run.steps():
        pass
    return run


@more_methods
def test_final_sparsity_is_exact_and_masks_are_the_supports(cls: Any, kwargs: dict[str, Any]) -> None:
    method = cls(**kwargs)
    run = finished(method)
    masks = run.finish()
    assert set(masks) == {"first", "second"}
    sizes = [weight.parameter.numel() for weight in run.weights]
    kept = [int(masks[weight.name].sum()) for weight in run.weights]
    if getattr(method, "scope", "matrix") == "matrix":
        assert kept == [keep_count(size, method.sparsity) for size in sizes]
    # Whole units of several sizes cannot meet every count.
    assert abs(sum(kept) - sum(keep_count(size, method.sparsity) for size in sizes)) <= (method.tolerance or 0)
    for weight in run.weights:
        mask = masks[weight.name]
        assert mask.dtype == torch.bool
        assert mask.shape == weight.parameter.shape
        assert not bool(weight.parameter[~mask].any())
        # Kept weights trained on: none of them is at zero.
        assert bool(weight.parameter[mask].all())
    assert zero_fraction(run.weights) == 1 - sum(kept) / sum(sizes)
    assert run.method.logs() == run.method.logs()
    assert all(torch.equal(masks[name], again) for name, again in run.finish().items())


@methods
def test_training_goes_on_in_the_cool_down_without_leaks(cls: Any, kwargs: dict[str, Any]) -> None:
    """With the support fixed, kept weights move, pruned ones neither move nor reach the optimizer's moments."""
    run = Run(cls(**kwargs))
    for _ in run.steps(0, 30):
        pass
    masks = run.finish()
    before = [weight.parameter.detach().clone() for weight in run.weights]
    for step in run.steps(30):
        for weight in run.weights:
            mask = masks[weight.name]
            assert weight.parameter.grad is not None
            assert not bool(weight.parameter.grad[~mask].any()), step
            assert not bool(weight.parameter[~mask].any()), step
    for weight, old in zip(run.weights, before, strict=True):
        assert bool((weight.parameter != old)[masks[weight.name]].all())
    assert all(torch.equal(masks[name], again) for name, again in run.finish().items())


# In the warm-up, at several moments of the pruning phase (steps 2 to 23), after its last step, in the cool-down.
@pytest.mark.parametrize("stop", [1, 3, 10, 11, 23, 24, 33])
@pytest.mark.parametrize("attach_first", [True, False], ids=["attach-then-load", "load-then-attach"])
@more_methods
def test_a_killed_run_goes_on_to_the_same_bits(cls: Any, kwargs: dict[str, Any], stop: int, attach_first: bool) -> None:
    whole, killed = Run(cls(**kwargs)), Run(cls(**kwargs))
    for _ in killed.steps(0, stop):
        pass
    saved = killed.save()
    resumed = Run(cls(**kwargs), seed=0 if attach_first else 7)
    resumed.truth = whole.truth
    if not attach_first:
        # Weights first, as where the model was read from the checkpoint's folder.
        weights = torch.load(io.BytesIO(saved), weights_only=True)[0]
        with torch.no_grad():
            for parameter, weight in zip(resumed.parameters, weights, strict=True):
                parameter.copy_(weight)
        resumed.method.attach(resumed.weights, TOTAL)
        resumed.optimizer = resumed.method.wrap_optimizer(AdamW(resumed.parameters, lr=RATE, weight_decay=0.01))
    resumed.load(saved)
    logs = {step: whole.method.logs() for step in whole.steps()}
    for step in resumed.steps(stop):
        assert resumed.method.logs() == logs[step]
    for one, other in zip(whole.parameters, resumed.parameters, strict=True):
        assert torch.equal(one, other)
    masks = whole.finish()
    assert all(torch.equal(masks[name], mask) for name, mask in resumed.finish().items())
    assert whole.method.report() == resumed.method.report()


@more_methods
def test_the_network_learns(cls: Any, kwargs: dict[str, Any]) -> None:
    """The problem is one in which training matters, so that what the other tests compare has moved."""
    run = Run(cls(**kwargs))
    before = [parameter.detach().clone() for parameter in run.parameters]
    for _ in run.steps():
        pass
    # Of the two matrices; entries start at a standard deviation of 1/3.
    assert all(float((p.detach() - old).abs().max()) > 0.1 for p, old in zip(run.parameters[:2], before, strict=False))


@pytest.mark.parametrize("cls", [Magnitude, SparseBERT, RPP, Movement])
def test_a_loop_that_ends_early_ends_at_the_sparsity(cls: Any) -> None:
    run = Run(cls(0.6))
    assert len(list(run.steps(0, TOTAL // 4))) == TOTAL // 4
    masks = run.finish()
    assert sum(run.zeros()) == 90
    assert sum(int(mask.sum()) for mask in masks.values()) == 60


def test_without_the_scores_of_its_last_event_a_criterion_cannot_end() -> None:
    run = Run(PINS(0.6))
    assert len(list(run.steps(0, TOTAL // 4))) == TOTAL // 4
    with pytest.raises(ValueError, match="PINS: the last event, after step 23, did not come; run all steps"):
        run.finish()


def test_keep_count_rounds_the_zeros() -> None:
    assert [keep_count(10, s) for s in (0.0, 0.24, 0.25, 0.35, 0.99)] == [10, 8, 8, 6, 0]
    # It is the number of zeros that is rounded, to the even neighbour: 2 zeros of 2.5, not 2 kept of 2.5.
    assert [keep_count(5, s) for s in (0.5, 0.3)] == [3, 3]
    assert keep_count(384 * 384, 0.6) == 147_456 - 88_474


def test_magnitude_masks_per_matrix_and_over_all() -> None:
    weights = [
        Weight("a", torch.nn.Parameter(torch.tensor([[5.0, -4.0], [3.0, -2.0]]))),
        Weight("b", torch.nn.Parameter(torch.tensor([[1.0, -1.0], [0.5, 6.0]]))),
    ]
    matrix = magnitude_masks(weights, 0.5, "matrix")
    assert [mask.tolist() for mask in matrix] == [[[True, True], [False, False]], [[True, False], [False, True]]]
    together = magnitude_masks(weights, 0.5, "global")
    assert [mask.tolist() for mask in together] == [[[True, True], [True, False]], [[False, False], [False, True]]]
    assert zero_fraction(weights) == 0


def test_dense_prunes_nothing_and_says_so() -> None:
    run = finished(Dense())
    assert run.zeros() == [0, 0]
    assert all(bool(mask.all()) for mask in run.finish().values())
    with pytest.raises(ValueError, match=r"dense: sparsity 0\.5"):
        Dense(0.5)


# Magnitude


def test_magnitude_by_hand() -> None:
    """Weights that do not move: 8 steps, events at 0, 2, 4 and 5, s(t) = 0.5 (1 - (1 - t / 5)^3)."""
    w = torch.nn.Parameter(torch.tensor([[6.0, -1.0, 4.0], [-3.0, 2.0, 5.0]]))
    optimizer = SGD([w], lr=0.0)
    method = Magnitude(0.5, warmup=0.0, cooldown=0.25, every=2)
    method.attach([Weight("w", w)], 8)
    history = []
    for step in range(8):
        w.grad = torch.ones_like(w)
        method.before_step(step)
        optimizer.step()
        method.after_step(step, 0.0)
        history.append([int(v) for v in w.flatten().tolist()])
    # Six entries: round(6 * 0), round(6 * 0.392), round(6 * 0.496), round(6 * 0.5) zeros.
    whole, two, three = [6, -1, 4, -3, 2, 5], [6, 0, 4, -3, 0, 5], [6, 0, 4, 0, 0, 5]
    assert history == [whole, whole, two, two, three, three, three, three]
    assert method.finish()["w"].tolist() == [[True, False, True], [False, False, True]]


def event_steps(method: Any) -> dict[int, float]:
    """Steps of the events and the sparsities due there."""
    begin, end = Phases(method.warmup, method.cooldown).steps(TOTAL)
    schedule = CubicSparsity(method.sparsity, begin, end)
    return {step: schedule(step) for step in sorted({*range(begin, end + 1, method.every), end})}


@pytest.mark.parametrize("scope", ["matrix", "global"])
@pytest.mark.parametrize("every", [1, 4, 5, 100])
def test_nested_magnitude_has_nested_supports(scope: Any, every: int) -> None:
    method = Magnitude(0.7, scope=scope, every=every)
    run, events, zeros = Run(method), event_steps(method), 0
    previous = [torch.ones(shape, dtype=torch.bool) for shape in SHAPES]
    for step in run.steps():
        support = [weight.parameter.detach() != 0 for weight in run.weights]
        assert not any(bool((new & ~old).any()) for new, old in zip(support, previous, strict=True))
        if step in events:
            parts = [80, 70] if scope == "matrix" else [150]
            zeros = sum(round(events[step] * part) for part in parts)
        else:
            assert all(torch.equal(new, old) for new, old in zip(support, previous, strict=True))
        assert sum(run.zeros()) == zeros, step
        previous = support
    assert zeros == 105


def test_free_magnitude_projects_at_events_only() -> None:
    method = Magnitude(0.7, nested=False, every=5)
    run, events = Run(method), event_steps(method)
    last = max(events)
    for step in run.steps():
        if step in events:
            assert run.zeros() == [round(events[step] * 80), round(events[step] * 70)]
        else:
            assert run.zeros() == ([0, 0] if step < last else [56, 49])


@pytest.mark.parametrize(("nested", "kept"), [(True, [True, False]), (False, [False, True])])
def test_only_free_magnitude_takes_a_decision_back(nested: bool, kept: list[bool]) -> None:
    """The second weight is the smaller one at the first event (step 2), and would be the larger one at the next."""
    w = torch.nn.Parameter(torch.tensor([1.0, 0.1]))
    optimizer = SGD([w], lr=1.0)
    method = Magnitude(0.5, warmup=0.0, cooldown=0.0, every=2, nested=nested)
    method.attach([Weight("w", w)], 8)
    for step in range(8):
        w.grad = torch.tensor([0.0, -0.1 if step < 3 else -1.0])
        method.before_step(step)
        optimizer.step()
        method.after_step(step, 1.0)
        if step == 2:
            assert w.tolist() == [1.0, 0.0]
    assert method.finish()["w"].tolist() == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity 1\.0"),
        ({"sparsity": 0.5, "warmup": 0.7}, "their sum < 1"),
        ({"sparsity": 0.5, "every": 0}, "every 0"),
        ({"sparsity": 0.5, "scope": "layer"}, "scope 'layer'"),
    ],
)
def test_magnitude_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Magnitude(**options)


# RPP


class Box(Dense):
    """The published form written out: AdamW step, soft threshold at learning rate * strength * factor, reweighting."""

    def __init__(self, options: RPP) -> None:
        super().__init__()
        self.options = options
        assert options.strength is not None
        self.strength = options.strength
        self.begin, self.end = Phases(options.warmup, options.cooldown).steps(TOTAL)
        self.masks: list[Tensor] = []
        self.pruned_by_prox = 0

    def attach(self, weights: Any, total_steps: int) -> None:
        super().attach(weights, total_steps)
        self.matrices = [weight.parameter.data for weight in weights]
        self.factors = [torch.ones_like(w) for w in self.matrices]

    def before_step(self, step: int) -> None:
        for weight, mask in zip(self._weights, self.masks, strict=False):
            weight.parameter.grad.mul_(mask)  # type: ignore[union-attr]
        rounds, options = step - self.begin, self.options
        if self.begin <= step <= self.end and rounds % options.reweight_every == 0:
            if rounds or not options.plain_first_round:
                self.factors = [1 / (w.abs() + options.eps_rw) for w in self.matrices]
            if options.normalise:
                self.factors = [f * (1 / f).mean() for f in self.factors]

    def after_step(self, step: int, learning_rate: float) -> None:
        if self.begin <= step <= self.end:
            for w, factor in zip(self.matrices, self.factors, strict=True):
                w.copy_(w.sign() * (w.abs() - learning_rate * self.strength * factor).clamp(min=0))
        if step == self.end:
            self.pruned_by_prox = sum(int((w == 0).sum()) for w in self.matrices)
            for w in self.matrices:
                smallest = w.abs().flatten().topk(round(self.options.sparsity * w.numel()), largest=False).indices
                self.masks.append(torch.ones(w.numel(), dtype=torch.bool).index_fill_(0, smallest, False).view_as(w))
        for w, mask in zip(self.matrices, self.masks, strict=False):
            w.mul_(mask)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("plain_first_round", [True, False])
def test_rpp_is_its_algorithm_box(normalise: bool, plain_first_round: bool) -> None:
    method = RPP(
        0.6,
        metric="decoupled",
        strength=0.1,
        eps_rw=0.05,
        relative_eps=False,
        normalise=normalise,
        reweight_every=6,
        plain_first_round=plain_first_round,
    )
    box = Box(method)
    run, reference = Run(method, dtype=torch.float64), Run(box, dtype=torch.float64)
    for step in run.steps():
        reference.step(step)
        for weight, w in zip(run.weights, box.matrices, strict=True):
            # float64 roundings of the same formulas in another order, over 40 steps.
            torch.testing.assert_close(weight.parameter.detach(), w, rtol=1e-9, atol=1e-11)
    # The prox did a part of the work, and the report says what was left of it.
    assert 0 < box.pruned_by_prox < 90
    assert method.report()["prox_sparsity"] == pytest.approx(box.pruned_by_prox / 150, rel=1e-12)
    assert method.report()["top_up"] == 90 - box.pruned_by_prox


@pytest.mark.parametrize("scope", ["matrix", "global"])
@pytest.mark.parametrize(
    "options", [{"metric": "metric"}, {"metric": "decoupled"}, {"metric": "constant", "prox_step": 0.1}]
)
def test_rpp_with_the_controller_needs_no_top_up(scope: Any, options: dict[str, Any]) -> None:
    method = RPP(0.6, scope=scope, **options)
    run = Run(method, dtype=torch.float64)
    begin, end = Phases(method.warmup, method.cooldown).steps(TOTAL)
    for step in run.steps():
        if step < begin:
            assert run.zeros() == [0, 0]
        if step == end - 1:
            # The prox alone is on its way along the schedule; 150 entries are sampled whole.
            assert sum(run.zeros()) == pytest.approx(150 * CubicSparsity(0.6, begin, end)(step), abs=1)
    assert method.report() == {"prox_sparsity": pytest.approx(0.6), "top_up": 0}
    assert sum(run.zeros()) == 90


def test_rpp_reports_what_a_weak_strength_left_to_magnitude() -> None:
    method = RPP(0.6, strength=1e-9)
    run = finished(method)
    assert run.zeros() == [48, 42]
    assert method.report() == {"prox_sparsity": 0.0, "top_up": 90}


def test_rpp_warns_of_a_strength_that_leaves_nothing_to_choose_from() -> None:
    with pytest.warns(UserWarning, match=r"strength 10 made 99\.3% of the entries zero, .* 60\.0% are asked"):
        finished(RPP(0.6, strength=10.0))


def test_rpp_reweights_at_its_steps_only() -> None:
    method = RPP(0.5, reweight_every=5, plain_first_round=True)
    run = Run(method)
    begin, end = Phases(method.warmup, method.cooldown).steps(TOTAL)
    optimizer = run.optimizer
    assert isinstance(optimizer, ProximalOptimizer)
    previous = optimizer.regularizers
    for step in run.steps(0, end):
        current = optimizer.regularizers
        due = step > begin and (step - begin) % 5 == 0
        assert (current is not previous) == due, step
        if due:
            for new, old in zip(current, previous, strict=True):
                assert isinstance(new, WeightedL1)
                assert isinstance(new.factors, Tensor)
                assert isinstance(old, WeightedL1)
                # Between rounds every weight moves, so every factor does.
                assert float((new.factors / old.factors - 1).abs().median()) > 1e-3
        previous = current
    assert len({id(regularizer) for regularizer in previous}) == 2


def test_rpp_counts_what_regrows() -> None:
    """A prox without absorbing zeros: weights at zero at the last reweighting are alive again a few steps later."""

    def start() -> Run:
        run = Run(RPP(0.5, strength=1e-3, eps_rw=10.0, reweight_every=100, warmup=0.0))
        with torch.no_grad():
            run.weights[0].parameter[:, :4] = 0
        return run

    run = start()
    assert run.method.logs() == {"sparsity": pytest.approx(40 / 150)}
    run.step(0)
    logs = run.method.logs()
    assert logs["regrown"] == 40
    assert logs["strength_min"] == logs["strength_max"] == 1e-3
    assert logs["penalty"] > 0
    assert logs["sparsity"] == zero_fraction(run.weights)
    # A resumed run goes on counting from the same round.
    resumed = start()
    resumed.load(run.save())
    for one in (run, resumed):
        one.step(1)
    assert resumed.method.logs() == run.method.logs()
    assert run.method.logs()["regrown"] > 30


def test_rpp_does_not_depend_on_the_scale_of_a_matrix() -> None:
    """relative_eps and normalise: a matrix in other units gets the factors of the same matrix in these."""
    factors = []
    for unit in (1.0, 100.0):
        method = RPP(0.5, warmup=0.0)
        run = Run(method, dtype=torch.float64)
        with torch.no_grad():
            run.weights[0].parameter.mul_(unit)
        method.attach(run.weights, TOTAL)
        optimizer = method.wrap_optimizer(AdamW(run.parameters, lr=RATE))
        method.before_step(0)
        assert isinstance(optimizer, ProximalOptimizer)
        regularizer = optimizer.regularizers[0]
        assert isinstance(regularizer, WeightedL1)
        factors.append(regularizer.factors)
    torch.testing.assert_close(factors[0], factors[1], rtol=1e-12, atol=0)


def test_rpp_on_a_matrix_of_zeros() -> None:
    method = RPP(0.5)
    run = Run(method)
    with torch.no_grad():
        run.weights[1].parameter.zero_()
    method.attach(run.weights, TOTAL)
    run.optimizer = method.wrap_optimizer(AdamW(run.parameters, lr=RATE))
    for _ in run.steps():
        pass
    assert all(bool(parameter.isfinite().all()) for parameter in run.parameters)
    assert [int(mask.sum()) for mask in run.finish().values()] == [40, 35]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": -0.1}, r"sparsity -0\.1"),
        ({"sparsity": 0.5, "strength": -1.0}, r"rpp: strength -1\.0"),
        ({"sparsity": 0.5, "strength": float("nan")}, "rpp: strength nan"),
        ({"sparsity": 0.5, "prox_step": 0.1}, "only 'constant' takes one"),
        ({"sparsity": 0.5, "metric": "constant"}, "only 'constant' takes one"),
        ({"sparsity": 0.5, "eps_rw": 0.0}, r"eps 0\.0"),
        ({"sparsity": 0.5, "reweight_every": 0}, "reweight_every 0"),
        ({"sparsity": 0.5, "scope": "layer"}, "scope 'layer'"),
        ({"sparsity": 0.5, "cooldown": 1.0}, "their sum < 1"),
    ],
)
def test_rpp_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RPP(**options)


def test_an_unknown_metric_is_refused_before_the_run() -> None:
    method = RPP(0.5, metric="euclidean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="choose one of decoupled, constant, metric"):
        Run(method)
