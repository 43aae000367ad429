"""Method `admm`: runs by hand, against convex solvers, and over every set."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quadratics import SETS, Quadratic, project
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from argprune.solvers import registry
from argprune.solvers.admm import (
    GrowingRho,
    Splitting,
    SquaredDistance,
)
from argprune.solvers.groups import BlockColumns, BlockRows, Blocks, Columns, Groups, Rows, Weight, group_sizes
from argprune.solvers.methods import ADMM
from argprune.solvers.methods.base import keep_count
from argprune.solvers.prox import L0Ball
from argprune.solvers.prox.sets import SupportSet
from argprune.solvers.schedules import CubicSparsity


def drive(
    method: ADMM,
    weights: list[Weight],
    optimizer: Optimizer,
    gradient: Callable[[int, Tensor], Tensor],
    total: int,
    after: Callable[[int], None] = lambda step: None,
) -> dict[str, Tensor]:
    """A run on given gradients, of (index of the weight, its value)."""
    method.attach(weights, total)
    wrapped = method.wrap_optimizer(optimizer)
    for step in range(total):
        for index, weight in enumerate(weights):
            weight.parameter.grad = gradient(index, weight.parameter.detach())
        method.before_step(step)
        wrapped.step()
        method.after_step(step, 0.0)
        after(step)
    return method.finish()


def towards(goal: Tensor) -> Callable[[int, Tensor], Tensor]:
    """The gradient of half the squared distance to a goal."""
    return lambda _, value: value - goal


@pytest.mark.parametrize(
    ("pull", "free", "expected"),
    [
        # W, then Z and U after the Z-step. Gradient (-1, 0), learning rate 1/2, rho 1, one nonzero of two.
        (
            "gradient",
            False,
            [
                ([2.5, 0.5], [2.5, 0.0], [0.0, 0.5]),
                ([3.0, 0.0], [3.0, 0.0], [0.0, 0.5]),
                ([3.5, 0.0], None, None),
                ([4.0, 0.0], None, None),
            ],
        ),
        (
            "decoupled",
            True,
            [
                # The entry that Z keeps goes by the gradient alone; the other is (1 + 0 / 2) / 1.5, and so on.
                ([2.5, 2 / 3], [2.5, 0.0], [0.0, 2 / 3]),
                ([3.0, 2 / 9], [3.0, 0.0], [0.0, 8 / 9]),
                ([3.5, 0.0], None, None),
                ([4.0, 0.0], None, None),
            ],
        ),
        (
            "decoupled",
            False,
            [
                # ((2.5, 1) + (2, 0) / 2) / 1.5, then ((2.833, 0.667) + (2.333, -0.667) / 2) / 1.5, and so on.
                ([7 / 3, 2 / 3], [7 / 3, 0.0], [0.0, 2 / 3]),
                ([8 / 3, 2 / 9], [8 / 3, 0.0], [0.0, 8 / 9]),
                ([3.0, 0.0], None, None),
                ([3.5, 0.0], None, None),
            ],
        ),
    ],
)
def test_a_run_of_two_weights_by_hand(pull: Any, free: bool, expected: list[Any]) -> None:
    """Start Z = (2, 0), U = 0; three steps of ADMM, each with its Z-step; one step of cool-down."""
    w = torch.nn.Parameter(torch.tensor([2.0, 1.0], dtype=torch.float64))
    method = ADMM(
        0.5,
        pull=pull,
        rho=1.0,
        relative_rho=False,
        rho_rule="constant",
        z_every=1,
        gradual=False,
        dual_first=False,
        free_support=free,
        warmup=0.0,
        cooldown=0.25,
    )

    def check(step: int) -> None:
        weights, z, u = expected[step]
        assert w.tolist() == pytest.approx(weights, abs=1e-12)
        state = method.state_dict()
        assert ("z.w" in state) == (z is not None)
        if z is not None:
            assert state["z.w"].tolist() == pytest.approx(z, abs=1e-12)  # type: ignore[union-attr]
            assert state["u.w"].tolist() == pytest.approx(u, abs=1e-12)  # type: ignore[union-attr]

    masks = drive(method, [Weight("w", w)], SGD([w], lr=0.5), lambda *_: w.new_tensor([-1.0, 0.0]), 4, check)
    assert masks["w"].tolist() == [True, False]


def learn(quadratic: Quadratic, members: str, optimizer: Optimizer, total: int, **options: Any) -> Tensor:
    """The weights after a run of ADMM on a quadratic, which never masks; they lie in the set.

    optimizer: of the zeros to start from; its learning rate falls linearly to 0.
    """
    [w] = optimizer.param_groups[0]["params"]
    rate = optimizer.param_groups[0]["lr"]
    method = ADMM(
        0.0,
        {"name": members, **vars(SETS[members])},
        relative_rho=False,
        rho_rule="constant",
        z_every=1,
        warmup=0.0,
        cooldown=0.0,
        **options,
    )

    def decay(step: int) -> None:
        optimizer.param_groups[0]["lr"] = rate * (1 - (step + 1) / total)

    drive(method, [Weight("w", w)], optimizer, lambda _, value: quadratic.gradient(value), total, decay)
    assert float(SETS[members].value(w.detach())) == 0
    return w.detach()


def zeros() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.zeros(6, dtype=torch.float64))]


@pytest.mark.parametrize("members", ["box", "l1_ball"])
@pytest.mark.parametrize("pull", ["gradient", "decoupled"])
def test_training_by_plain_steps_reaches_the_convex_solvers_answer(pull: Any, members: str) -> None:
    """Inexact W-steps, one step of gradient descent each; relaxed."""
    quadratic = Quadratic()
    found = learn(quadratic, members, SGD(zeros(), lr=0.3), 600, pull=pull, rho=1.0, relaxation=1.5)
    torch.testing.assert_close(found, quadratic.minimiser(SETS[members]), rtol=0, atol=3e-5)


@pytest.mark.parametrize(
    ("pull", "members", "least", "most"),
    [
        ("metric", "l1_ball", 0.0, 1e-3),
        ("metric", "box", 0.0, 1e-3),
        # Adam's normalised gradient in the gradient's place: the same signs, which decide for a box, other lengths.
        ("decoupled", "box", 0.0, 1e-3),
        ("decoupled", "l1_ball", 0.3, 1.0),
        # Adam takes the pull for gradient and overshoots; it circles the minimiser.
        ("gradient", "l1_ball", 0.0, 0.15),
        ("gradient", "box", 0.0, 0.15),
    ],
)
def test_where_adam_leads(pull: Any, members: str, least: float, most: float) -> None:
    quadratic = Quadratic()
    found = learn(quadratic, members, AdamW(zeros(), lr=0.03, weight_decay=0.0), 800, pull=pull, rho=1.0)
    assert least <= float((found - quadratic.minimiser(SETS[members])).abs().max()) < most


EXAMPLES = [
    pytest.param({"name": name, **example}, id=f"{name}-{index}")
    for name, entry in registry.registered("constraints").items()
    for index, example in enumerate(entry.examples)
]


@pytest.mark.parametrize("pull", ["gradient", "decoupled", "metric"])
@pytest.mark.parametrize("constraint", EXAMPLES)
def test_every_registered_set_holds_at_the_end(constraint: dict[str, Any], pull: Any) -> None:
    members = registry.build("constraints", constraint)
    start = torch.randn(12, 12) / 3
    sparsity = 0.0
    if isinstance(members, SupportSet):
        kept = int(members.mask(start).sum())
        sparsity = 1 - kept / start.numel()
        if not kept:
            with pytest.raises(ValueError, match=r"sparsity 1\.0"):
                ADMM(sparsity, constraint)
            return
    w, goal = torch.nn.Parameter(start.clone()), torch.randn(12, 12)
    method = ADMM(sparsity, constraint, pull=pull, rho=3.0, z_every=2, warmup=0.1, cooldown=0.3)
    optimizer = AdamW([w], lr=0.05)
    masks = drive(method, [Weight("w", w)], optimizer, towards(goal), 30)
    assert float(members.value(w.detach())) == 0
    assert int(masks["w"].sum()) == (kept if isinstance(members, SupportSet) else w.numel())
    assert float((w.detach() - start).abs().max()) > 0.1
    report = method.report()
    assert 0 <= report["removed"] <= 1
    assert report["top_up"] == 0


@pytest.mark.parametrize("pull", ["gradient", "decoupled", "metric"])
def test_a_matrix_stored_the_other_way_round_is_pruned_alike(pull: Any) -> None:
    start, goal = torch.randn(6, 8, dtype=torch.float64), torch.randn(6, 8, dtype=torch.float64)
    results = []
    for transposed in (False, True):
        w = torch.nn.Parameter((start.t() if transposed else start).clone(memory_format=torch.contiguous_format))
        method = ADMM(0.5, {"name": "n_m", "n": 2, "m": 4}, pull=pull, z_every=2)
        weight = Weight("w", w, transposed=transposed)
        goals = goal.t() if transposed else goal
        masks = drive(method, [weight], AdamW([w], lr=0.05), towards(goals), 20)
        results.append((w.detach().t() if transposed else w.detach(), masks["w"].t() if transposed else masks["w"]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-12, atol=1e-12)
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pull", ["gradient", "decoupled", "metric"])
def test_narrow_weights_are_split_in_float32(pull: Any, dtype: torch.dtype) -> None:
    w, goal = torch.nn.Parameter(torch.randn(8, 12).to(dtype)), torch.randn(8, 12).to(dtype)
    method = ADMM(0.5, pull=pull, z_every=2, gradual=False)
    states: list[Any] = []
    drive(
        method, [Weight("w", w)], AdamW([w], lr=0.05, eps=1e-4), towards(goal), 20,
        lambda _: states.append(method.state_dict()),
    )  # fmt: skip
    assert w.dtype == dtype
    assert int(w.count_nonzero()) == 48
    assert [states[8][f"{name}.w"].dtype for name in "zu"] == [torch.float32, torch.float32]
    assert int(states[8]["z.w"].count_nonzero()) == 48


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_prox_of_narrow_weights_rounds_once(dtype: torch.dtype) -> None:
    w, center, steps = torch.randn(50).to(dtype), torch.randn(50), torch.rand(50)
    for step in (0.3, steps):
        expected = SquaredDistance(center).prox(w.float(), step).to(dtype)
        assert torch.equal(SquaredDistance(center).prox(w, step), expected)


@pytest.mark.parametrize(("response", "overshoots"), [(0.1, True), (4.0, False)])
def test_the_dual_overshoots_where_z_steps_come_too_fast(response: float, overshoots: bool) -> None:
    """Without a loss, an entry off the support is to go from 1 to 0, and U from 0 to where it rests.

    In the limit of small steps W' = -a (W + U), U' = b W, with a = rate * rho a step and b = 1 / z_every: an oscillator
    with damping ratio sqrt(a / b) / 2, critically damped at learning rate * rho * z_every = 4.
    """
    w = torch.nn.Parameter(torch.tensor([10.0, 1.0], dtype=torch.float64))
    rho = response / (0.01 * 20)
    method = ADMM(
        0.5, rho=rho, relative_rho=False, rho_rule="constant", gradual=False, z_every=20, warmup=0.0, cooldown=0.1
    )
    seen: list[float] = []
    drive(
        method, [Weight("w", w)], SGD([w], lr=0.01), lambda *_: w.new_zeros(2), 1000,
        lambda _: seen.append(float(w.detach()[1])),
    )  # fmt: skip
    assert (min(seen) < -0.5) == overshoots
    assert overshoots or min(seen) > -0.2


def test_the_gradual_target_follows_the_schedule() -> None:
    w, goal = torch.nn.Parameter(torch.randn(10, 10)), torch.randn(10, 10)
    method = ADMM(0.8, z_every=4, warmup=0.0, cooldown=0.5)
    schedule, seen = CubicSparsity(0.8, 0, 19), []

    def check(step: int) -> None:
        if step < 19 and (step + 1) % 4 == 0:
            z = method.state_dict()["z.w"]
            assert isinstance(z, Tensor)
            seen.append(int(z.count_nonzero()))
            assert seen[-1] == keep_count(100, schedule(step))

    drive(method, [Weight("w", w)], AdamW([w], lr=0.01), towards(goal), 40, check)
    assert len(seen) == 4
    assert seen == sorted(seen, reverse=True)
    assert int(w.count_nonzero()) == 20


@pytest.mark.parametrize(
    ("constraint", "kept"), [({"name": "k_groups"}, 5 * 6), ({"name": "k_per_group"}, 10 * 3), (None, 30)]
)
def test_counts_follow_from_the_sparsity(constraint: Any, kept: int) -> None:
    """Half of ten rows, of six entries of every row, of sixty entries."""
    w, goal = torch.nn.Parameter(torch.randn(10, 6)), torch.randn(10, 6)
    drive(ADMM(0.5, constraint), [Weight("w", w)], AdamW([w], lr=0.05), towards(goal), 20)
    assert int(w.count_nonzero()) == kept
    if constraint == {"name": "k_groups"}:
        assert sorted(w.count_nonzero(1).tolist()) == [0] * 5 + [6] * 5
    if constraint == {"name": "k_per_group"}:
        assert w.count_nonzero(1).tolist() == [3] * 10


def structured(start: Tensor, sparsity: float, **options: Any) -> tuple[Tensor, ADMM]:
    """The weights after a run with groups from a start that is left as it is, and the method."""
    w = torch.nn.Parameter(start.clone())
    method = ADMM(sparsity, z_every=2, **options)
    goal = torch.randn(start.shape, generator=torch.Generator().manual_seed(5))
    drive(method, [Weight("w", w)], AdamW([w], lr=0.02), towards(goal), 40)
    return w.detach(), method


@pytest.mark.parametrize(
    ("options", "groups"),
    [
        ({"structure": "rows"}, Rows()),
        ({"structure": "columns"}, Columns()),
        ({"structure": "block-rows", "width": 3}, BlockRows(width=3)),
        ({"structure": "block-columns", "height": 4}, BlockColumns(height=4)),
        ({"structure": "block-columns", "strips": 2}, BlockColumns(strips=2)),
        ({"structure": "blocks", "height": 4, "width": 3}, Blocks(4, 3)),
        # Neither size divides the matrix's.
        ({"structure": "blocks", "height": 5, "width": 5}, Blocks(5, 5, pad=True)),
    ],
)
def test_whole_groups_are_pruned_and_counted(options: dict[str, Any], groups: Groups) -> None:
    w, method = structured(torch.randn(8, 12), 0.6, **options)
    nonzero = groups.split(w) != 0
    kept = nonzero.any(1)
    assert int(kept.sum()) == keep_count(len(kept), 0.6)
    assert torch.equal(nonzero.sum(1)[kept], group_sizes(groups, w.shape)[kept])
    assert method.tolerance is not None
    assert abs(int(nonzero.sum()) - 0.4 * w.numel()) <= method.tolerance


@given(st.integers(2, 6), st.integers(2, 6), st.floats(0, 0.9))
@settings(max_examples=8)
def test_strips_of_one_and_of_all_outputs_are_entries_and_columns(height: int, width: int, sparsity: float) -> None:
    start = torch.randn(height, width)
    for options, same in [
        ({"structure": "block-columns", "height": 1}, {}),
        ({"structure": "block-columns", "height": height + 1}, {"structure": "columns"}),
        ({"structure": "block-rows", "width": width}, {"structure": "rows"}),
    ]:
        torch.testing.assert_close(
            structured(start, sparsity, **options)[0], structured(start, sparsity, **same)[0], rtol=0, atol=0
        )


@pytest.mark.parametrize(("pull", "expected"), [("decoupled", 2.0 / 0.5), ("gradient", 2.0 * 3.0 / 0.5)])
def test_rho_is_relative_to_the_matrix(pull: Any, expected: float) -> None:
    w = torch.nn.Parameter(torch.tensor([[0.5, -0.5], [0.5, 0.5]]))
    method = ADMM(0.5, pull=pull, rho=2.0, rho_growth=1.0, warmup=0.0)
    seen: list[float] = []
    gradient = torch.tensor([[3.0, 3.0], [-3.0, 3.0]])
    drive(
        method, [Weight("w", w)], SGD([w], lr=0.0), lambda *_: gradient.clone(), 10,
        lambda _: seen.append(method.logs().get("rho_max", 0.0)),
    )  # fmt: skip
    assert seen[0] == pytest.approx(expected)


def test_rho_grows_by_its_factor_over_the_phase() -> None:
    w = torch.nn.Parameter(torch.randn(4, 4))
    method = ADMM(0.5, rho=2.0, relative_rho=False, rho_growth=100.0, z_every=3, warmup=0.0, cooldown=0.5)
    seen: list[float] = []
    drive(
        method, [Weight("w", w)], SGD([w], lr=0.0), lambda _, value: value, 20,
        lambda _: seen.append(method.logs().get("rho_max", 0.0)),
    )  # fmt: skip
    # Z-steps after steps 2, 5, 8 and 9: what comes after the first is the rho of the second W-step, and so on.
    assert seen[:10] == pytest.approx([2.0, 2.0, *(2.0 * 100 ** (k / 3) for k in (1, 1, 1, 2, 2, 2, 3)), 0.0])


def test_logs_and_report_say_how_far_the_split_has_come() -> None:
    w, goal = torch.nn.Parameter(torch.randn(10, 6)), torch.randn(10, 6)
    method, lines = ADMM(0.5, rho=10.0, z_every=2, gradual=False), []
    drive(
        method, [Weight("w", w)], AdamW([w], lr=0.05), towards(goal), 50,
        lambda _: lines.append(method.logs()),
    )  # fmt: skip
    measured = [line for line in lines if "primal_residual" in line]
    assert len(lines[0]) == 1
    assert len(lines[-1]) == 1
    assert measured[-1]["relative_primal_residual"] < 0.2 * measured[0]["relative_primal_residual"]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert method.report()["primal_residual"] <= measured[-1]["primal_residual"]
    assert lines[-1]["sparsity"] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity 1\.0"),
        ({"pull": "loss"}, "pull 'loss'"),
        ({"rho_rule": "doubling"}, "rho_rule 'doubling'"),
        ({"rho": 0.0}, r"rho 0\.0"),
        ({"rho_growth": -1.0}, r"rho_growth -1\.0"),
        ({"balance_threshold": 1.0}, r"threshold 1\.0"),
        ({"balance_factor": 0.5}, r"factor 0\.5"),
        ({"z_every": 0}, "z_every 0"),
        ({"relaxation": 2.0}, r"relaxation 2\.0"),
        ({"relaxation": 0.9}, r"relaxation 0\.9"),
        ({"constraint": "l0"}, "Unknown constraint 'l0'"),
        ({"constraint": {"keep": 3}}, "Unknown constraint 'None'"),
        ({"constraint": {"name": "n_m", "n": 3, "m": 2}}, "NM"),
        ({"constraint": {"name": "l1_ball"}}, "radius"),
        ({"constraint": "rank_ball"}, "rank"),
        ({"structure": "heads"}, "structure 'heads' is tied across matrices"),
        ({"structure": "diagonals"}, "structure 'diagonals'"),
        ({"structure": "rows", "width": 4}, "width 4"),
        ({"structure": "rows", "constraint": "l0_ball"}, "has no groups"),
        ({"structure": "rows", "constraint": {"name": "k_groups", "groups": Rows()}}, "has its own groups"),
    ],
)
def test_bad_options_are_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        ADMM(**{"sparsity": 0.5, **options})
    assert "\n" not in str(raised.value)


def test_a_set_that_does_not_allow_the_sparsity_says_which_it_allows() -> None:
    w = torch.nn.Parameter(torch.randn(4, 8))
    with pytest.raises(ValueError, match=r"give sparsity 0\.500"):
        ADMM(0.6, {"name": "n_m", "n": 1, "m": 2}).attach([Weight("w", w)], 10)
    with pytest.raises(ValueError, match=r"give sparsity 0\.688"):
        ADMM(0.5, {"name": "l0_ball", "keep": 10}).attach([Weight("w", w)], 10)
    ADMM(0.5, {"name": "l0_ball", "keep": 16}).attach([Weight("w", w)], 10)


def test_the_best_support_of_a_coupled_quadratic() -> None:
    """Six variables, three nonzeros: against all twenty supports, over seeds, ADMM beats magnitude pruning."""
    better, worse, optimal = 0, 0, 0
    for seed in range(12):
        quadratic = Quadratic(seed)
        values = {}
        for support in itertools.combinations(range(6), 3):
            index = list(support)
            part = torch.linalg.solve(quadratic.hessian[index][:, index], quadratic.linear[index])
            values[support] = quadratic.value(
                torch.zeros(6, dtype=torch.float64).index_copy(0, torch.tensor(index), part)
            )
        dense = torch.linalg.solve(quadratic.hessian, quadratic.linear)
        magnitude = values[tuple(sorted(dense.abs().topk(3).indices.tolist()))]
        splitting, members = Splitting(rule=GrowingRho(1.02)), project(L0Ball(3))
        split = splitting.init(dense, 0.3, members)
        for _ in range(100):
            split, _ = splitting.step(quadratic.w_step(split), split, members)
        found = values[tuple(split.z.nonzero().flatten().tolist())]
        better += found < magnitude - 1e-12
        worse += found > magnitude + 1e-12
        optimal += found == min(values.values())
    assert better > 2 * worse
    assert optimal >= 6
