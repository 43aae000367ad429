"""Methods on factors: a small network, exact sizes, resumed bits, and each algorithm against what it says."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from argprune.models.factorised import FactorisedLinear
from argprune.solvers.groups import Weight
from argprune.solvers.lagrangian import HardConcrete
from argprune.solvers.low_rank import Factors, break_even_rank, factorise_svd, stored_size
from argprune.solvers.methods import FactorPlan, Flop, LowRank, Svd
from argprune.solvers.registry import registered

TOTAL, RATE, SHAPES = 60, 0.01, ((24, 20), (18, 24))
EXAMPLES = [
    pytest.param(entry.cls, dict(kwargs), id=f"{name}-{index}")
    for name, entry in registered("methods").items()
    if issubclass(entry.cls, LowRank)
    for index, kwargs in enumerate(entry.examples)
]
methods = pytest.mark.parametrize(("cls", "kwargs"), EXAMPLES)


class Run:
    """Two matrices of a network fitted to the outputs of one of low rank; the batch depends on the step's number."""

    def __init__(self, method: LowRank, seed: int = 0, total: int = TOTAL, whole: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.truth = [
            torch.randn(o, 4, generator=generator) @ torch.randn(4, i, generator=generator) / 8 for o, i in SHAPES
        ]
        self.factors, layers = [], []
        for index, (outputs, inputs) in enumerate(SHAPES):
            matrix = self.truth[index] + 0.4 * torch.randn(outputs, inputs, generator=generator)
            full = min(outputs, inputs)
            rank = full if method.wants_factors.rank == "full" else break_even_rank(outputs, inputs)
            found = factorise_svd(matrix, rank)
            layers.append(FactorisedLinear(found.first, found.second, torch.zeros(outputs)))
            self.factors.append(Factors(f"layers.{index}.weight", layers[-1], found.values))
        self.network = nn.Sequential(layers[0], nn.ReLU(), layers[1])
        self.method, self.total = method, total
        method.take_factors(self.factors)
        method.attach([Weight("whole.weight", nn.Parameter(torch.zeros(1, whole)))] if whole else [], total)
        self.optimizer = method.wrap_optimizer(AdamW(self.network.parameters(), lr=RATE))

    def step(self, step: int) -> float:
        x = torch.randn(16, SHAPES[0][1], generator=torch.Generator().manual_seed(1000 + step))
        wanted = torch.relu(x @ self.truth[0].t()) @ self.truth[1].t()
        loss: Tensor = (self.network(x) - wanted).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        rate = RATE * (1 - step / self.total)
        self.optimizer.param_groups[0]["lr"] = rate
        self.method.before_step(step)
        self.optimizer.step()
        self.method.after_step(step, rate)
        return float(loss.detach())

    def steps(self, begin: int = 0, end: int | None = None) -> Iterator[float]:
        for step in range(begin, self.total if end is None else end):
            yield self.step(step)

    def stored(self) -> int:
        return sum(stored_size(factors.rank, *factors.shape) for factors in self.factors)

    def save(self) -> bytes:
        file = io.BytesIO()
        torch.save([self.network.state_dict(), self.optimizer.state_dict(), self.method.state_dict()], file)
        return file.getvalue()

    def load(self, saved: bytes) -> None:
        network, optimizer, method = torch.load(io.BytesIO(saved), weights_only=True)
        self.method.reshape(method)
        self.network.load_state_dict(network)
        self.optimizer.load_state_dict(optimizer)
        self.method.load_state_dict(method)


DENSE = sum(outputs * inputs for outputs, inputs in SHAPES)


@methods
@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
def test_the_size_is_met_within_one_component(cls: Any, kwargs: dict[str, Any], sparsity: float) -> None:
    run = Run(cls(**{**kwargs, "sparsity": sparsity}))
    losses = list(run.steps())
    masks = run.method.finish()
    wanted = (1 - sparsity) * DENSE
    assert wanted - max(sum(shape) for shape in SHAPES) <= run.stored() <= wanted + 0.5
    report = run.method.report()
    assert report["size"] == run.stored()
    assert report["dense_size"] == DENSE
    for factors in run.factors:
        assert int(masks[factors.name].sum()) == factors.rank == dict(report["ranks"])[factors.name]
        assert factors.gate is None
    assert run.method.logs()["sparsity"] == pytest.approx(1 - run.stored() / DENSE)
    if sparsity < 0.8:
        assert sum(losses[-5:]) < sum(losses[:5])


@methods
@pytest.mark.parametrize("stop", [2, 20, 40])
def test_a_killed_run_goes_on_to_the_same_bits(cls: Any, kwargs: dict[str, Any], stop: int) -> None:
    """Stopped before there are gates, among them, and after components were dropped."""
    whole = Run(cls(**kwargs))
    list(whole.steps())
    first = Run(cls(**kwargs))
    list(first.steps(0, stop))
    again = Run(cls(**kwargs))
    again.load(first.save())
    assert again.method.logs() == first.method.logs()
    list(again.steps(stop))
    masks = whole.method.finish()
    for name, mask in again.method.finish().items():
        assert torch.equal(mask, masks[name])
    for name, value in again.network.state_dict().items():
        assert torch.equal(value, whole.network.state_dict()[name]), name
    assert again.method.report() == whole.method.report()


@methods
def test_dropped_components_take_their_moments_along(cls: Any, kwargs: dict[str, Any]) -> None:
    run = Run(cls(**kwargs))
    list(run.steps())
    for factors in run.factors:
        for parameter in (factors.first, factors.second):
            assert run.optimizer.state[parameter]["exp_avg"].shape == parameter.shape


@pytest.mark.parametrize("noise", [False, True])
def test_flop_expects_its_target_on_every_seed(noise: bool) -> None:
    """Before anything is rounded, and along the way: what multipliers and the final shift are for."""
    for sparsity in (0.2, 0.5, 0.8):
        for seed in range(3):
            run = Run(Flop(sparsity, multiple=1, noise=noise), seed, total=200)
            list(run.steps())
            assert run.method.report()["expected_sparsity"] == pytest.approx(sparsity, abs=0.005)


@pytest.mark.parametrize("noise", [False, True])
def test_flop_ends_with_the_components_that_are_most_probably_open(noise: bool) -> None:
    method = Flop(0.5, multiple=1, noise=noise)
    run = Run(method)
    _, end = method._phases.steps(TOTAL)
    list(run.steps(0, end))
    gates = HardConcrete(method.temperature)
    before = [(f.first.detach().clone(), f.second.detach().clone()) for f in run.factors]
    run.step(end)
    scores = method._training.log_alphas
    kept = [method.finish()[f.name] for f in run.factors]
    least = min(float(gates.open_probability(a[k]).min()) for a, k in zip(scores, kept, strict=True))
    dropped = [gates.open_probability(a[~k]) for a, k in zip(scores, kept, strict=True)]
    # But for the one that no longer fits.
    assert sum(int((p > least + 1e-6).sum()) for p in dropped) <= 1
    for factors, (first, second), score, mask in zip(run.factors, before, scores, kept, strict=True):
        assert factors.first.shape == first[mask].shape
        # A step of the optimizer lies between the copy and the end; Q was scaled by the gate.
        gate = gates.mean(score).float() if noise else gates.sample(score, torch.full_like(score, 0.5))
        torch.testing.assert_close(factors.second.detach(), second[:, mask] * gate[mask], rtol=0, atol=3 * RATE)


def test_gates_without_noise_are_their_medians_and_learn_by_their_slope() -> None:
    method = Flop(0.5, informed=0, noise=False)
    run = Run(method)
    begin, _ = method._phases.steps(TOTAL)
    run.step(begin)
    gates, scores = HardConcrete(method.temperature), method._training.log_alphas
    for factors, score in zip(run.factors, scores, strict=True):
        assert factors.gate is not None
        stretched = 1.2 * torch.sigmoid(score / method.temperature) - 0.1
        torch.testing.assert_close(factors.gate.detach(), stretched.clamp(0, 1))
        at = score.detach().clone().requires_grad_()
        (1.2 * torch.sigmoid(at / method.temperature) - 0.1).clamp(0, 1).sum().backward()
        torch.testing.assert_close(gates.slope(factors.gate.detach()), at.grad)


def test_flop_finds_the_components_that_matter() -> None:
    """The truth has rank 4 of 10 and more; the gates of its components stay open."""
    run = Run(Flop(0.6, multiple=1), total=300)
    losses = list(run.steps())
    assert sum(losses[-10:]) < 0.05 * sum(losses[:10])


@pytest.mark.parametrize("method", [Flop(0.5, multiple=1), Svd(0.5, scope="global", multiple=1)])
def test_what_stays_whole_counts_in_the_size(method: LowRank) -> None:
    """A matrix of 200 numbers that is not factored: the others make up for it."""
    run = Run(method, total=200, whole=200)
    list(run.steps())
    run.method.finish()
    wanted = 0.5 * (DENSE + 200)
    assert wanted - max(sum(shape) for shape in SHAPES) <= run.stored() + 200 <= wanted + 0.5
    report = run.method.report()
    assert (report["size"], report["dense_size"], report["whole"]) == (
        run.stored() + 200,
        DENSE + 200,
        ["whole.weight"],
    )
    assert report.get("expected_sparsity", 0.5) == pytest.approx(0.5, abs=0.005)
    assert run.method.logs()["sparsity"] == pytest.approx(1 - report["size"] / report["dense_size"])


def test_too_much_whole_is_refused_before_the_run() -> None:
    with pytest.raises(
        ValueError, match=r"sparsity 0\.5: all weights together would keep \d+ numbers, and what stays whole"
    ):
        Run(Flop(0.5), whole=5000)


def gates_of(method: Flop) -> Tensor:
    """log_alpha of all gates."""
    return torch.cat(Run(method).method._training.log_alphas)  # type: ignore[attr-defined]


def test_informed_gates_start_in_the_order_of_what_their_components_are_worth() -> None:
    worths = []
    for factors in Run(Flop(0.5)).factors:
        assert factors.values is not None
        squares = factors.values.double().square()
        worths.append((squares / squares.sum() / factors.unit_size).log())
    logs = torch.cat(worths)
    wanted = HardConcrete().initial(0.05) + (logs - logs.mean()) / logs.std(correction=0)
    # The noise that tells gates apart has a standard deviation of 0.01.
    starts = gates_of(Flop(0.5, informed=1.0)).double()
    torch.testing.assert_close(starts, wanted.clamp(-4, 4), rtol=0, atol=0.05)
    # Of random factors the values are no worth.
    for alike in (Flop(0.5, informed=0.0), Flop(0.5, initial="random")):
        gates = gates_of(alike)
        assert float(gates.max() - gates.min()) < 0.1


@pytest.mark.parametrize(("options", "noisy"), [({}, False), ({"informed": 0.0}, True), ({"initial": "random"}, True)])
def test_gates_that_start_alike_are_told_apart_by_noise(options: dict[str, Any], noisy: bool) -> None:
    method = Flop(0.5, **options)
    run = Run(method)
    run.step(method._phases.steps(TOTAL)[0])
    first, second = (method._training.gates() for _ in range(2))
    assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True)) == noisy


def test_a_single_matrix_without_values_brings_the_noise_back() -> None:
    """As the clusters of adaptive embeddings are, which were factors before anybody took their singular values."""
    method = Flop(0.5)
    run = Run(method)
    method.take_factors([replace(run.factors[0], values=None), run.factors[1]])
    method.attach([], TOTAL)
    method.wrap_optimizer(run.optimizer)
    assert not torch.equal(method._training.gates()[1], method._training.gates()[1])


def test_informed_gates_meet_the_target_within_the_clamp() -> None:
    assert float(gates_of(Flop(0.8, informed=10.0)).abs().max()) == 4.0
    run = Run(Flop(0.8, informed=10.0, multiple=1), total=200)
    list(run.steps())
    assert run.method.report()["expected_sparsity"] == pytest.approx(0.8, abs=0.005)


def test_svd_keeps_the_largest_singular_values() -> None:
    run = Run(Svd(0.5, multiple=1))
    masks = run.method.finish()
    for mask in masks.values():
        rank = int(mask.sum())
        assert bool(mask[:rank].all())
    per_matrix = [int(mask.sum()) for mask in masks.values()]
    assert per_matrix == [(o * i // 2) // (o + i) for o, i in SHAPES]
    relative = []
    for factors in run.factors:
        assert factors.values is not None
        squares = factors.values.square()
        relative.append(float(squares[int(masks[factors.name].sum()) :].sum() / squares.sum()))
    assert run.method.report()["dropped_worth"] == pytest.approx(sum(relative), rel=1e-4)
    shared = Run(Svd(0.5, scope="global", multiple=1)).method.report()
    assert shared["dropped_worth"] <= sum(relative) + 1e-6
    assert shared["status"] in ("optimal", "feasible")


def test_factors_must_come_first() -> None:
    with pytest.raises(ValueError, match="take_factors"):
        Flop(0.5).attach([], 10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Flop(1.0), "sparsity 1.0"),
        (lambda: Flop(0.5, initial="qr"), "initial 'qr'"),  # type: ignore[arg-type]
        (lambda: Flop(0.5, rank=0), "rank 0"),
        (lambda: Flop(0.5, rank="half"), "rank 'half'"),  # type: ignore[arg-type]
        (lambda: Flop(0.5, multiple=0), "multiple 0"),
        (lambda: Flop(0.5, informed=-1.0), "informed -1.0"),
        (lambda: Flop(0.5, informed=float("nan")), "informed nan"),
        (lambda: Flop(0.5, droprate_init=0.0), "droprate 0.0"),
        (lambda: Flop(0.5, score_rate=0.0), "score_rate 0.0"),
        (lambda: Flop(0.5, clamp=float("inf")), "clamp inf"),
        (lambda: Flop(0.5, kind="about"), "kind 'about'"),  # type: ignore[arg-type]
        (lambda: Flop(0.5, dual_rate=0.0), "rate 0.0"),
        (lambda: Flop(0.5, settle=2.0), "settle 2.0"),
        (lambda: Flop(0.5, target_warmup=-0.1), "target_warmup -0.1"),
        (lambda: Svd(0.5, initial="random"), "initial 'random'"),  # type: ignore[arg-type]
        (lambda: Svd(0.5, scope="layer"), "scope 'layer'"),  # type: ignore[arg-type]
        (lambda: Svd(0.5, multiple=0), "multiple 0"),
        (lambda: FactorPlan(rank=True), "rank True"),
        (lambda: FactorPlan("random", whole=0.5), "whole 0.5, initial 'random'"),
        (lambda: FactorPlan(whole=1.0), "whole 1.0"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
