"""Block lasso against its formulas, its schedule, its objective and the methods that it contains as special cases."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from argprune.solvers.groups import BlockRows, Columns, Part, Rows, Tied, Weight
from argprune.solvers.methods import RPP, Magnitude, Method, Outputs, Proximal
from argprune.solvers.methods.base import keep_count
from argprune.solvers.methods.block_lasso import BlockLasso
from argprune.solvers.schedules import CubicSparsity, Phases

TOTAL, RATE = 30, 0.02
SHAPES = ((6, 8), (5, 6))


class Run:
    """Two matrices in a row, fitted to a linear map by AdamW; a fresh batch for every step, by the step's number."""

    def __init__(self, method: Method, *, transposed: bool = False, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        matrices = [torch.randn(shape, generator=generator, dtype=torch.float64) / 3 for shape in SHAPES]
        self.truth = torch.randn(5, 8, generator=generator, dtype=torch.float64)
        stored = [matrix.t().contiguous() if transposed else matrix for matrix in matrices]
        names = ("first", "second")
        self.weights = [
            Weight(name, torch.nn.Parameter(matrix), transposed=transposed)
            for name, matrix in zip(names, stored, strict=True)
        ]
        # The six units between the matrices: rows of the first, columns of the second.
        first, second = self.weights
        self.units = Tied("units", [Part(first, Rows()), Part(second, Columns())])
        self.method = method
        if method.wants_ties:
            method.tie([self.units])
        method.attach(self.weights, TOTAL)
        parameters = [weight.parameter for weight in self.weights]
        self.optimizer: Optimizer = method.wrap_optimizer(AdamW(parameters, lr=RATE, weight_decay=0.01))

    def step(self, step: int) -> None:
        batch = torch.randn(16, 8, generator=torch.Generator().manual_seed(100 + step), dtype=torch.float64)
        first, second = (weight.oriented(weight.parameter) for weight in self.weights)
        loss = (batch @ (first.t() @ second.t() - self.truth.t())).square().mean()
        for term in self.method.loss_terms(Outputs((), None), None).values():
            loss = loss + term
        self.optimizer.zero_grad()
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * (1 - step / TOTAL)
        self.method.before_step(step)
        self.optimizer.step()
        self.method.after_step(step, RATE * (1 - step / TOTAL))

    def steps(self, begin: int = 0, end: int = TOTAL) -> Iterator[int]:
        for step in range(begin, end):
            self.step(step)
            yield step

    def matrices(self) -> list[Tensor]:
        return [weight.matrix.clone() for weight in self.weights]


def trained(method: Method, **options: Any) -> Run:
    run = Run(method, **options)
    for _ in run.steps():
        pass
    return run


def still(method: BlockLasso, w: Tensor, steps: int, gradient: Tensor | None = None) -> torch.nn.Parameter:
    """Drive a method on weights that nothing moves but the method and, times -1, the gradient."""
    parameter = torch.nn.Parameter(w)
    optimizer = SGD([parameter], lr=1.0)
    method.attach([Weight("w", parameter)], steps)
    method.wrap_optimizer(optimizer)
    for step in range(steps):
        optimizer.zero_grad()
        terms = method.loss_terms(Outputs((), None), None)
        (sum(terms.values()) + (parameter * 0).sum()).backward()
        if gradient is not None:
            assert parameter.grad is not None
            parameter.grad += gradient
        method.before_step(step)
        optimizer.step()
        method.after_step(step, 1.0)
    return parameter


# By hand


def test_one_prox_by_hand() -> None:
    """Norms 5 and 13 in blocks of two: factors 1 / 6 and 1 / 14, thresholds 3 times that."""
    method = BlockLasso(
        0.0,
        "block-rows",
        width=2,
        metric="constant",
        prox_step=3.0,
        strength=1.0,
        eps_rw=1.0,
        relative_eps=False,
        rms=False,
        normalise=False,
        warmup=0.0,
        cooldown=0.0,
    )
    w = still(method, torch.tensor([[3.0, 4.0, 5.0, 12.0]], dtype=torch.float64), 1)
    expected = [3 * (1 - 0.5 / 5), 4 * (1 - 0.5 / 5), 5 * (1 - 3 / 14 / 13), 12 * (1 - 3 / 14 / 13)]
    assert w[0].tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rms", [True, False])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("penalty", ["norm", "squared"])
def test_factors_by_their_formula(rms: bool, normalise: bool, relative: bool, penalty: Any) -> None:
    """Groups of four entries and of one: the slopes of size log(rms + eps), of log(norm + eps), or of their squares."""
    method = BlockLasso(
        0.5,
        "block-rows",
        width=4,
        strength=1e-3,
        eps_rw=0.2,
        rms=rms,
        normalise=normalise,
        relative_eps=relative,
        penalty=penalty,
        metric="decoupled",
        warmup=0.0,
    )
    method.attach([Weight("w", torch.nn.Parameter(torch.tensor([[1.0, 1, 1, 1, 3], [2, 2, 2, 2, 0]])))], 4)
    method.before_step(0)
    norms, sizes = [2.0, 3.0, 4.0, 0.0], [4, 1, 4, 1]
    u = [n / math.sqrt(s) if rms else n for n, s in zip(norms, sizes, strict=True)]
    eps = 0.2 * (math.sqrt(sum(x * x for x in u) / 4) if relative else 1.0)
    slopes = [1 / (x + eps) if penalty == "norm" else 1 / (x * x + eps * eps) for x in u]
    if normalise:
        mean = sum(1 / slope for slope in slopes) / 4
        slopes = [slope * mean for slope in slopes]
    if rms and penalty == "norm":
        slopes = [slope * math.sqrt(size) for slope, size in zip(slopes, sizes, strict=True)]
    assert method.state_dict()["factors.w"].tolist() == pytest.approx(slopes, rel=1e-7)  # type: ignore[union-attr]


def test_the_squared_penalty_shrinks_and_selects_at_the_end() -> None:
    method = BlockLasso(
        0.5,
        "rows",
        penalty="squared",
        metric="constant",
        prox_step=0.5,
        strength=2.0,
        eps_rw=1.0,
        relative_eps=False,
        rms=False,
        normalise=False,
        reweight_every=None,
        warmup=0.0,
        cooldown=0.0,
    )
    # Squared norms 25 and 1: factors 1 / 26 and 1 / 2, divisors 1 + 2 * 2 * 0.5 * factor, twice.
    w = still(method, torch.tensor([[3.0, 4.0], [0.6, 0.8]], dtype=torch.float64), 2)
    shrunk = (1 + 2 / 26) ** -2
    assert w.tolist() == [[pytest.approx(3 * shrunk), pytest.approx(4 * shrunk)], [0.0, 0.0]]
    assert method.report()["prox_sparsity"] == 0.0
    assert method.report()["top_up"] == 1


# The literal way


@pytest.mark.parametrize("penalty", ["norm", "squared"])
@pytest.mark.parametrize("structure", ["block-rows", "block-columns", "blocks", "rows", "columns", "elements"])
def test_the_literal_penalty_has_the_gradient_of_its_formula(structure: Any, penalty: Any) -> None:
    """Never zero where the weights are not: the gradient that the authors' later code lost."""
    method = BlockLasso(
        0.5,
        structure,
        penalty=penalty,
        literal=True,
        strength=0.3,
        eps_rw=1e-3,
        relative_eps=False,
        rms=False,
        normalise=False,
        warmup=0.0,
        cooldown=0.0,
    )
    w = torch.nn.Parameter(torch.randn(20, 18, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    method.attach([Weight("w", w)], 10)
    method.wrap_optimizer(SGD([w], lr=1.0))
    method.loss_terms(Outputs((), None), None)["penalty"].backward()
    tie = method._structure.ties([Weight("w", w)], None)[0]
    stack = tie.stack()
    norms = stack.norm(dim=1, keepdim=True)
    slope = {"norm": 1 / (norms + 1e-3) / norms, "squared": 2 / (norms.square() + 1e-6)}[penalty]
    assert w.grad is not None
    assert torch.allclose(tie.split([w.grad]), 0.3 * slope * stack, rtol=1e-10)
    assert bool((w.grad != 0).all())


def test_the_literal_penalty_is_there_in_the_pruning_phase_only_and_prunes_at_its_end() -> None:
    method = BlockLasso(0.5, "rows", literal=True, strength=1e-2, reweight_every=4, warmup=0.2, cooldown=0.3)
    run = Run(method)
    begin, end = Phases(0.2, 0.3).steps(TOTAL)
    for step in range(TOTAL):
        assert set(method.loss_terms(Outputs((), None), None)) == ({"penalty"} if begin <= step <= end else set())
        run.step(step)
        zeros = [int((matrix == 0).all(1).sum()) for matrix in run.matrices()]
        assert zeros == ([3, 2] if step >= end else [0, 0]), step
    assert method.report()["prox_sparsity"] == 0.0


def test_literal_factors_change_when_they_are_refreshed() -> None:
    run = Run(BlockLasso(0.5, "rows", literal=True, strength=0.1, reweight_every=4, warmup=0.0, cooldown=0.2))
    changes = {step: run.method.logs().get("factors_change") for step in run.steps()}
    moved = [step for step in range(1, 23) if changes[step] != changes[step - 1]]
    assert moved == list(range(4, 23, 4))


# Sparsity


@pytest.mark.parametrize("metric", ["decoupled", "constant", "group-metric", "metric"])
@pytest.mark.parametrize("scope", ["matrix", "global"])
def test_the_prox_itself_zeroes_the_scheduled_number_of_groups(metric: Any, scope: Any) -> None:
    prox_step = 0.1 if metric == "constant" else None
    method = BlockLasso(0.6, "block-rows", width=2, metric=metric, scope=scope, prox_step=prox_step)
    run, (begin, end) = Run(method), Phases(0.06, 0.4).steps(TOTAL)
    schedule, groups = CubicSparsity(0.6, begin, end), BlockRows(2)
    for step in run.steps(0, end + 1):
        zeros = [int((groups.split(matrix) == 0).all(1).sum()) for matrix in run.matrices()]
        if step < begin:
            assert zeros == [0, 0]
        elif scope == "matrix":
            assert zeros == [count - keep_count(count, schedule(step)) for count in (24, 15)]
        else:
            assert abs(2 * sum(zeros) - schedule(step) * 78) <= 1.5
    assert method.report()["top_up"] == 0
    assert method.report()["prox_sparsity"] == pytest.approx(0.6, abs=0.02)
    assert method.report()["attained"] == pytest.approx(0.6, abs=0.02)


def test_the_group_metric_is_adams_where_moments_are_equal_in_a_group() -> None:
    """The step of a group is learning rate over the root mean square of sqrt(v) + e."""
    run = Run(BlockLasso(0.5, "columns", metric="group-metric", warmup=0.0))
    method = run.method
    assert isinstance(method, BlockLasso)
    for _ in run.steps(0, 3):
        pass
    tau = method._tau(0)
    assert isinstance(tau, Tensor)
    state = run.optimizer.state[run.weights[0].parameter]
    root = (state["exp_avg_sq"] / (1 - 0.999**3)).sqrt() + 1e-8
    rate = run.optimizer.param_groups[0]["lr"]
    assert torch.allclose(tau[:, 0], rate / root.square().mean(0).sqrt(), rtol=1e-10)


@pytest.mark.parametrize("kind", [BlockLasso, Magnitude])
@pytest.mark.parametrize("scope", ["matrix", "global"])
@pytest.mark.parametrize("transposed", [False, True])
def test_units_are_pruned_from_all_their_matrices(kind: Any, scope: Any, transposed: bool) -> None:
    run = trained(kind(0.5, structure="neurons", scope=scope), transposed=transposed)
    masks = run.method.finish()
    first, second = (weight.oriented(masks[weight.name]) for weight in run.weights)
    rows = first.any(1)
    assert int(rows.sum()) == 3
    assert torch.equal(first, rows[:, None].expand(6, 8))
    assert torch.equal(second, rows.expand(5, 6))
    for weight in run.weights:
        assert torch.equal(weight.parameter.detach() != 0, masks[weight.name])
    assert run.method.tolerance == (0.0 if scope == "matrix" else 7.0)


def test_a_method_with_ties_must_be_given_them() -> None:
    method = BlockLasso(0.5, "heads")
    assert method.wants_ties == ("heads",)
    with pytest.raises(ValueError, match="call `tie` before `attach`"):
        method.attach([Weight("w", torch.nn.Parameter(torch.ones(2, 2)))], 4)


# The objective


def descent(rms: bool, strength: float, reweight_every: int | None) -> tuple[list[float], list[Tensor]]:
    """f + strength * sum size log(rms + eps), or of log(norm + eps), and the factors, over 99 steps of rate 1 / L.

    f: least squares, convex; starts from its minimum.
    """
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(40, 12, generator=generator, dtype=torch.float64)
    truth = torch.zeros(6, 12, dtype=torch.float64)
    truth[:3, :6] = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    targets = inputs @ truth.t() + 0.3 * torch.randn(40, 6, generator=generator, dtype=torch.float64)
    rate, eps = float(1 / torch.linalg.eigvalsh(inputs.t() @ inputs / 40)[-1]), 0.05
    parameter = torch.nn.Parameter(torch.linalg.lstsq(inputs, targets).solution.t().contiguous())
    method = BlockLasso(
        0.5,
        "block-rows",
        width=3,
        metric="decoupled",
        strength=strength,
        eps_rw=eps,
        relative_eps=False,
        rms=rms,
        normalise=False,
        reweight_every=reweight_every,
        warmup=0.0,
        cooldown=0.0,
    )
    optimizer = SGD([parameter], lr=rate)
    method.attach([Weight("w", parameter)], 100)
    method.wrap_optimizer(optimizer)

    def loss() -> Tensor:
        return (inputs @ parameter.t() - targets).square().sum() / 80

    def objective() -> float:
        norms = BlockRows(width=3).split(parameter.detach()).norm(dim=1)
        concave = 3 * (norms / math.sqrt(3) + eps).log() if rms else (norms + eps).log()
        return float(loss().detach() + strength * concave.sum())

    values, factors = [objective()], []
    for step in range(99):
        optimizer.zero_grad()
        loss().backward()
        method.before_step(step)
        optimizer.step()
        method.after_step(step, rate)
        values.append(objective())
        saved = method.state_dict()["factors.w"]
        assert isinstance(saved, Tensor)
        factors.append(saved)
    assert method.logs()["rounds"] == (0 if reweight_every is None else 98 // reweight_every)
    return values, factors


@pytest.mark.parametrize(("rms", "strength"), [(True, 0.005), (False, 0.02)])
def test_rounds_never_increase_the_log_sum_objective(rms: bool, strength: float) -> None:
    values, factors = descent(rms, strength, 7)
    assert all(new <= old + 1e-12 for old, new in pairwise(values))
    changed = [step for step, (old, new) in enumerate(pairwise(factors), 1) if not torch.equal(old, new)]
    assert changed == list(range(7, 99, 7))
    # Factors that stay those of the start end at a worse point, however long they have.
    fixed, kept = descent(rms, strength, None)
    assert all(torch.equal(kept[0], later) for later in kept)
    assert fixed[-1] - values[-1] > 0.01 * (values[0] - values[-1])


def test_without_reweighting_the_factors_are_those_of_the_first_step() -> None:
    run = Run(BlockLasso(0.5, "block-columns", height=2, reweight_every=None, warmup=0.1))
    factors = {}
    for step in run.steps(0, 15):
        state = run.method.state_dict()
        factors[step] = state.get("factors.first")
        logs = run.method.logs()
        assert logs.get("factors_change", 0.0) == logs.get("rounds", 0) == 0
    assert [step for step, value in factors.items() if value is None] == [0, 1, 2]
    assert all(torch.equal(factors[3], factors[s]) for s in range(3, 15))  # type: ignore[arg-type]


def test_reweighting_is_in_the_log() -> None:
    run = Run(BlockLasso(0.5, "block-columns", height=2, reweight_every=4, warmup=0.0, cooldown=0.3))
    lines = {step: run.method.logs() for step in run.steps()}
    assert [lines[step]["rounds"] for step in (0, 3, 4, 8, 19)] == [0, 0, 1, 2, 4]
    assert lines[3]["factors_change"] == 0 < lines[4]["factors_change"]
    assert all(0 < lines[s]["factors_min"] < lines[s]["factors_max"] for s in range(20))
    assert 0 < lines[10]["group_sparsity"] < 0.5
    assert lines[10]["strength_max"] >= lines[10]["strength_min"] > 0
    assert lines[10]["penalty"] > 0
    assert lines[25] == {"sparsity": lines[25]["sparsity"]}


# Special cases


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"structure": "rows"}, {"structure": "block-rows", "width": 100}),
        ({"structure": "rows"}, {"structure": "block-rows", "strips": 1}),
        ({"structure": "columns"}, {"structure": "block-columns", "height": 6}),
        ({"structure": "columns"}, {"structure": "blocks", "height": 6, "width": 1}),
        ({"structure": "elements"}, {"structure": "block-rows", "width": 1}),
        ({"structure": "elements"}, {"structure": "blocks", "height": 1, "width": 1}),
    ],
)
@pytest.mark.parametrize("method", [BlockLasso, Magnitude])
def test_full_strips_are_rows_and_columns_and_strips_of_one_are_entries(
    method: Any, one: dict[str, Any], other: dict[str, Any]
) -> None:
    for first, second in zip(
        trained(method(0.5, **one)).matrices(), trained(method(0.5, **other)).matrices(), strict=True
    ):
        assert torch.allclose(first, second, rtol=1e-10, atol=1e-13)
        assert torch.equal(first != 0, second != 0)


@pytest.mark.parametrize("metric", ["decoupled", "metric"])
def test_groups_of_one_entry_are_rpp(metric: Any) -> None:
    """The two share a problem and no code for prox, factors and strength."""
    ours = trained(BlockLasso(0.6, "elements", metric=metric)).matrices()
    theirs = trained(RPP(0.6, metric=metric)).matrices()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one != 0, other != 0)
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-11)


def test_adams_metric_of_one_entry_is_its_group_metric() -> None:
    one, other = (trained(BlockLasso(0.6, "elements", metric=m)).matrices() for m in ("metric", "group-metric"))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("structure", ["rows", "block-columns", "elements"])
def test_a_transposed_weight_is_the_same_problem(structure: Any) -> None:
    height = 2 if structure == "block-columns" else None
    one = trained(BlockLasso(0.5, structure, height=height)).matrices()
    other = trained(BlockLasso(0.5, structure, height=height), transposed=True).matrices()
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-13) for a, b in zip(one, other, strict=True))


# Killed runs; the conformance suite has the registered examples.


@pytest.mark.parametrize("stop", [1, 5, 9, 17, 18, 25])
@pytest.mark.parametrize(
    "options",
    [{"structure": "neurons"}, {"structure": "neurons", "literal": True, "strength": 0.1}, {"penalty": "squared"}],
    ids=str,
)
def test_a_killed_run_goes_on_to_the_same_bits(options: dict[str, Any], stop: int) -> None:
    if options.get("penalty"):
        options = {**options, "strength": 0.1, "structure": "blocks", "height": 4, "width": 3}
    whole, killed = (Run(BlockLasso(0.5, reweight_every=4, **options)) for _ in range(2))
    for _ in killed.steps(0, stop):
        pass
    resumed = Run(BlockLasso(0.5, reweight_every=4, **options), seed=1)
    resumed.truth = whole.truth
    with torch.no_grad():
        for mine, saved in zip(resumed.weights, killed.weights, strict=True):
            mine.parameter.copy_(saved.parameter)
    resumed.optimizer.load_state_dict(killed.optimizer.state_dict())
    resumed.method.load_state_dict(killed.method.state_dict())
    logs = {step: whole.method.logs() for step in whole.steps()}
    for step in resumed.steps(stop):
        assert resumed.method.logs() == logs[step]
    assert all(torch.equal(a, b) for a, b in zip(whole.matrices(), resumed.matrices(), strict=True))
    assert whole.method.report() == resumed.method.report()


# Structures in the other methods


def test_magnitude_of_groups_by_hand() -> None:
    """Columns of norms 5, 1, 3 and 2, of which half go: 1 at step 0 (s = 1/2 at once), and 2."""
    w = torch.nn.Parameter(torch.tensor([[3.0, 1.0, 0.0, 2.0], [4.0, 0.0, 3.0, 0.0]]))
    method = Magnitude(0.5, structure="columns", warmup=0.0, cooldown=0.5, every=1)
    method.attach([Weight("w", w)], 2)
    w.grad = torch.zeros_like(w)
    for step in range(2):
        method.before_step(step)
        method.after_step(step, 0.0)
    assert w.tolist() == [[3, 0, 0, 0], [4, 0, 3, 0]]
    assert method.finish()["w"].tolist() == [[True, False, True, False]] * 2


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("regularizer", ["group_mcp", {"name": "group_log_sum", "eps": 0.3}, "group_lasso"])
@pytest.mark.parametrize(
    "structure", [{"structure": "rows"}, {"structure": "block-rows", "width": 3}, {"structure": "blocks", "height": 4}]
)
def test_any_group_penalty_prunes_whole_groups(regularizer: Any, structure: dict[str, Any], transposed: bool) -> None:
    method = Proximal(0.5, regularizer, **structure)
    run = trained(method, transposed=transposed)
    masks = method.finish()
    for weight, tie in zip(run.weights, method._structure.ties(run.weights, None), strict=True):
        kept = tie.split([masks[weight.name]]).sum(1)
        assert bool(((kept == 0) | (kept == tie.sizes())).all())
        assert int((kept > 0).sum()) == keep_count(tie.count, 0.5)
        assert torch.equal(weight.parameter.detach() != 0, masks[weight.name])
    # The prox does nearly all of it: the search may stop one group short in a matrix.
    assert method.report()["prox_sparsity"] > 0.2
    assert method.tolerance is not None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BlockLasso(1.0), r"sparsity 1\.0"),
        (lambda: BlockLasso(0.5, "strips"), "structure 'strips'; choose one of"),  # type: ignore[arg-type]
        (lambda: BlockLasso(0.5, scope="layer"), "scope 'layer'; choose one of matrix, global"),  # type: ignore[arg-type]
        (lambda: BlockLasso(0.5, penalty="l1"), "penalty 'l1'; choose one of norm"),  # type: ignore[arg-type]
        (lambda: BlockLasso(0.5, metric="adam"), "metric 'adam'; choose one of decoupled"),  # type: ignore[arg-type]
        (lambda: BlockLasso(0.5, strength=-1.0), r"strength -1\.0"),
        (lambda: BlockLasso(0.5, strength=math.nan), "strength nan"),
        (lambda: BlockLasso(0.5, literal=True), "literal makes no zeros of its own to steer by; give a strength"),
        (lambda: BlockLasso(0.5, penalty="squared"), "penalty 'squared' makes no zeros"),
        (lambda: BlockLasso(0.5, metric="constant"), "prox_step None with metric 'constant'"),
        (lambda: BlockLasso(0.5, prox_step=0.1), "prox_step 0.1 with metric 'group-metric'"),
        (lambda: BlockLasso(0.5, metric="constant", prox_step=0.0), "needs one > 0"),
        (lambda: BlockLasso(0.5, reweight_every=0), "reweight_every 0"),
        (lambda: BlockLasso(0.5, eps_rw=0.0), "eps 0"),
        (lambda: BlockLasso(0.5, warmup=0.7), "their sum < 1"),
        (lambda: Magnitude(0.5, structure="rows", width=3), "structure 'rows' with width 3"),
        (lambda: Proximal(0.5, "l1", structure="rows"), "needs a regularizer of groups, .*'l1' has none"),
        (lambda: Proximal(0.5, "group_lasso", structure="heads"), "tied across matrices"),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
