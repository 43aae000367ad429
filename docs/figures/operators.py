"""Draw one picture for each family of operators, values and proximal operators computed by the operators themselves.

Writes separable.svg, grouped.svg, spectral.svg, sets.svg and reweighting.svg beside this file, for docs/theory.

.venv/bin/python docs/figures/operators.py
"""

import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from torch import Tensor

from argprune.solvers import prox
from argprune.solvers.groups import Blocks, Rows

SEPARABLE: dict[str, dict[str, Any]] = {
    "convex": {
        "l1": prox.L1(1.0),
        "elastic_net": prox.ElasticNet(1.0),
        "squared_l2": prox.SquaredL2(1.0),
        "huber": prox.Huber(1.0),
        "nonnegative_l1": prox.NonNegativeL1(1.0),
        "box_l1": prox.BoxL1(1.0, -1.5, 1.5),
    },
    "folded concave, and l0": {
        "mcp": prox.MCP(1.0, 2.0),
        "scad": prox.SCAD(1.0),
        "capped_l1": prox.CappedL1(1.0, 2.0),
        "l0": prox.L0(1.0),
    },
    "smooth concave, and powers": {
        "log_sum": prox.LogSum(1.0, 0.5),
        "geman": prox.Geman(2.0, 0.5),
        "laplace": prox.Laplace(2.0, 0.5),
        "transformed_l1": prox.TransformedL1(1.0),
        "l_half": prox.LHalf(1.0),
        "l_two_thirds": prox.LTwoThirds(1.0),
    },
}
# Each for a pair of entries that are one group.
PAIRS: dict[str, Any] = {
    "group_lasso": prox.GroupLasso(1.0),
    "group_linf": prox.GroupLInf(1.0),
    "sparse_group_lasso": prox.SparseGroupLasso(1.0),
    "slope": prox.SLOPE(1.0),
    "exclusive_lasso": prox.ExclusiveLasso(0.5),
    "group_mcp": prox.GroupMCP(1.0, 2.0),
    "group_log_sum": prox.GroupLogSum(1.0, 0.5),
}
# Each for ten entries that are one group.
LONG: dict[str, Any] = {
    "l1": prox.L1(0.8),
    "group_lasso": prox.GroupLasso(2.4),
    "group_linf": prox.GroupLInf(4.0),
    "slope": prox.SLOPE(0.8, shape="linear", amount=0.0),
    "exclusive_lasso": prox.ExclusiveLasso(0.1),
    "k_support, k = 4": prox.KSupport(1.0, k=4),
}
SPECTRAL: dict[str, Any] = {
    "nuclear": prox.Nuclear(1.0),
    "weighted_nuclear": prox.WeightedNuclear(1.0, (0.5, 1.5)),
    "spectral_norm": prox.SpectralNorm(1.0),
    "rank": prox.Rank(1.0),
    "rank_ball, rank 3": prox.RankBall(3),
}
CONVEX_SETS: dict[str, Any] = {
    "l1_ball": prox.L1Ball(1.0),
    "l2_ball": prox.L2Ball(1.0),
    "simplex": prox.Simplex(1.0),
    "box": prox.Box(-1.0, 0.5),
    "intersection\n(l2_ball, box)": prox.Intersection(prox.L2Ball(1.0), prox.Box(-1.0, 0.5)),
    "l0_ball\n(not convex)": prox.L0Ball(1),
}
SUPPORTS: dict[str, Any] = {
    "l0_ball, 16": prox.L0Ball(16),
    "k_per_group,\n2 a row": prox.KPerGroup(2, Rows()),
    "k_groups,\n4 blocks 2 x 2": prox.KGroups(4, Blocks(2, 2)),
    "n_m,\n2:4 along rows": prox.NM(2, 4),
    "row_column,\n2 and 2": prox.RowColumn(2, 2),
    "transposable_n_m,\n2:4": prox.TransposableNM(2, 4),
}


def separable() -> Figure:
    """Values and prox of one weight, a row for each sort of penalty."""
    figure, rows = plt.subplots(len(SEPARABLE), 2, figsize=(8.4, 9.6), layout="constrained")
    w = torch.linspace(-4, 4, 401, dtype=torch.float64)
    for (left, right), (sort, penalties) in zip(rows, SEPARABLE.items(), strict=True):
        right.plot(w[[0, -1]], w[[0, -1]], color="0.8", linewidth=1)
        for index, (name, penalty) in enumerate(penalties.items()):
            # Thinner and thinner, so that a line under another one is seen.
            width = 2.6 - 0.3 * index
            values = torch.stack([penalty.value(x[None]) for x in w])
            left.plot(w, _with_gaps(values, 0.5), label=name, linewidth=width)
            right.plot(w, _with_gaps(penalty.prox(w, 1.0), 0.1), linewidth=width)
        left.set(xlabel="w", title=f"value: {sort}", ylim=(-0.1, 6 if sort == "convex" else 4.5))
        right.set(xlabel="w", title="prox, step 1", ylim=(-4, 4))
        left.legend(frameon=False, fontsize="small", loc="upper center", ncols=2)
        for axes in (left, right):
            axes.set(xticks=range(-4, 5, 2), yticks=range(-4 if axes is right else 0, 5, 2))
    return figure


def grouped() -> Figure:
    """Level sets and prox of pairs of entries, and the prox of one group of ten."""
    figure = plt.figure(figsize=(8.4, 7.0), layout="constrained")
    grid = figure.add_gridspec(3, 4)
    for index, (name, penalty) in enumerate({"l1, for comparison": prox.L1(1.0), **PAIRS}.items()):
        axes = figure.add_subplot(grid[index // 4, index % 4])
        _levels(axes, penalty.value, [0.75, 1.5], torch.linspace(0, 3, 25))
        ticks = torch.arange(0.4, 3.0, 0.8, dtype=torch.float64)
        _moves(axes, torch.cartesian_prod(ticks, ticks), penalty)
        axes.set(title=name, xlim=(-0.1, 3), ylim=(-0.1, 3), aspect="equal", xticks=[0, 1, 2, 3], yticks=[0, 1, 2, 3])
        axes.label_outer()
    axes = figure.add_subplot(grid[2, :])
    w = torch.tensor([[4.0, 3.7, 3.5, 2.6, 2.2, 1.7, 1.4, 1.0, 0.6, 0.3]], dtype=torch.float64)
    entries = range(1, 1 + w.numel())
    axes.bar(entries, w[0], color="0.9", label="w")
    for offset, (name, penalty) in enumerate(LONG.items()):
        places = [place + 0.13 * (offset - 2.5) for place in entries]
        axes.plot(places, penalty.prox(w, 1.0)[0], "o", markersize=4, label=name)
    axes.set(title="prox of one group of ten entries, step 1", xticks=entries, xlabel="entry")
    axes.legend(frameon=False, fontsize="small", ncols=2)
    return figure


def spectral() -> Figure:
    """Unit level sets over two singular values, and the prox of a matrix with eight."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.9), layout="constrained")
    ticks = torch.linspace(-2, 2, 81)
    for index, (name, penalty) in enumerate(SPECTRAL.items()):
        if name in ("nuclear", "weighted_nuclear", "spectral_norm"):
            _levels(left, _of_diagonal(penalty), [1.0], ticks, f"C{index}")
    left.set(title="R = 1 over diagonal matrices", xlabel="first entry", ylabel="second entry", aspect="equal")
    generator = torch.Generator().manual_seed(0)
    before = torch.tensor([3.6, 3.2, 2.6, 2.1, 1.7, 1.2, 0.8, 0.4], dtype=torch.float64)
    bases = (torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    w = next(bases) @ before.diag() @ next(bases)
    right.plot([0, 4], [0, 4], color="0.8", linewidth=1)
    for index, (name, penalty) in enumerate(SPECTRAL.items()):
        after = torch.linalg.svdvals(penalty.prox(w, 1.0))
        # Beside each other, so that equal values are seen.
        right.plot(before + 0.04 * (index - 2), after, "o", markersize=4.5, label=name)
    right.set(title="prox, step 1", xlabel="singular value before", ylabel="singular value after", ylim=(-0.1, 4))
    right.legend(frameon=False, fontsize="small")
    return figure


def sets() -> Figure:
    """Projections of pairs of entries, and the entries that sets of supports keep of a matrix."""
    figure, (top, bottom) = plt.subplots(2, 6, figsize=(9.6, 3.8), layout="constrained")
    angles = torch.arange(16, dtype=torch.float64) * (2 * torch.pi / 16) + 0.1
    points = 1.8 * torch.stack([angles.cos(), angles.sin()], dim=1)
    for axes, (name, members) in zip(top, CONVEX_SETS.items(), strict=True):
        axes.axhline(0, color="0.85", linewidth=0.8)
        axes.axvline(0, color="0.85", linewidth=0.8)
        _moves(axes, points, members)
        axes.set_title(name, fontsize="small")
        axes.set(xlim=(-2, 2), ylim=(-2, 2), aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
        axes.label_outer()
    w = torch.randn(8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for axes, (name, members) in zip(bottom, SUPPORTS.items(), strict=True):
        kept = members.prox(w, 1.0) != 0
        _squares(axes, w, ~kept, "0.8")
        _squares(axes, w, kept, "C0")
        axes.set_title(name, fontsize="small")
        axes.set(xlim=(-0.5, 7.5), ylim=(7.5, -0.5), aspect="equal", xticks=[], yticks=[])
    return figure


def reweighting() -> Figure:
    """Factors, penalties with their majorisers at one weight, and the prox that rounds of reweighted l1 lead to."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.6, 3.5), layout="constrained")
    rules: dict[str, Any] = {
        "log; group, of the norm": prox.LogReweighting(0.5, normalise=False),
        "power, 1/2": prox.PowerReweighting(0.5, power=0.5),
        "squared (of $w^2$)": prox.SquaredReweighting(0.5),
        "quantile 0.2 (of 0 to 4)": prox.QuantileReweighting(0.2),
    }
    w, at = torch.linspace(0, 4, 161, dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    for index, (name, rule) in enumerate(rules.items()):
        left.plot(w, rule.factors(w), color=f"C{index}", label=name, linewidth=1.3)
        if name.startswith("quantile"):
            continue
        sizes = (lambda x: x.square()) if rule.surrogate == "squared-l2" else torch.abs
        middle.plot(w, [float(rule.majorised(x[None])) for x in w], color=f"C{index}", linewidth=1.3)
        majoriser = rule.majorised(at) + rule.factors(at) * (sizes(w) - sizes(at))
        middle.plot(w, majoriser, "--", color=f"C{index}", linewidth=1)
        middle.plot(at, rule.majorised(at), "o", color=f"C{index}", markersize=4)
    left.set(title="factors", xlabel="|w|", ylim=(0, 4.2))
    left.legend(frameon=False, fontsize="small")
    middle.set(title="penalty, and its majoriser at 1 (dashed)", xlabel="|w|", ylim=(0, 4.5))
    rule = rules["log; group, of the norm"]
    right.plot(w, w, color="0.8", linewidth=1)
    x = w
    for turn in range(1, 201):
        x = prox.Reweighted(prox.L1(1.0), rule.factors(x)).prox(w, 1.0)
        if turn in (1, 3, 200):
            label = f"{turn} round{'s' if turn > 1 else ''} of reweighted l1"
            right.plot(w, _with_gaps(x, 0.2), label=label, linewidth=1.3)
    right.plot(w, _with_gaps(prox.LogSum(1.0, 0.5).prox(w, 1.0), 0.2), "k:", label="prox of log_sum")
    right.set(title="rounds from w, step 1", xlabel="w", ylim=(-0.1, 4))
    right.legend(frameon=False, fontsize="small")
    return figure


def _with_gaps(values: Tensor, jump: float) -> Tensor:
    """The values, with NaN where a jump is, which a line then leaves open."""
    values = values.clone()
    values[1:][(values[1:] - values[:-1]).abs() > jump] = torch.nan
    return values


def _levels(
    axes: Axes, value: Callable[[Tensor], Tensor], levels: list[float], ticks: Tensor, colour: str = "0.65"
) -> None:
    """Level sets of a function of pairs, over the square of the ticks."""
    ticks = ticks.double()
    values = [[float(value(torch.stack([x, y]))) for x in ticks] for y in ticks]
    axes.contour(ticks, ticks, values, levels=levels, colors=colour, linewidths=1)


def _of_diagonal(penalty: Any) -> Callable[[Tensor], Tensor]:
    """The value of the diagonal matrix with a pair of entries."""
    return lambda pair: penalty.value(pair.diag())


def _moves(axes: Axes, points: Tensor, operator: Any) -> None:
    """A line from each point to where the prox at step 1 moves it, and a dot there."""
    moved = torch.stack([operator.prox(point, 1.0) for point in points])
    gap = torch.full_like(points, torch.nan)
    lines = torch.stack([points, moved, gap], dim=1).reshape(-1, 2)
    axes.plot(*lines.T, color="C0", linewidth=0.7, alpha=0.7)
    axes.plot(*moved.T, "o", color="C3", markersize=2.5, clip_on=False)


def _squares(axes: Axes, w: Tensor, chosen: Tensor, colour: str) -> None:
    """A square for each chosen entry of a matrix, its side by the root of the magnitude."""
    sides = (w.abs() / w.abs().max()).sqrt()
    squares = []
    for row, column in chosen.nonzero().tolist():
        half = 0.47 * float(sides[row, column])
        corners = [(column + a * half, row + b * half) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1))]
        squares.append(Outline(corners, closed=True))
    axes.add_patch(PathPatch(Outline.make_compound_path(*squares), facecolor=colour, edgecolor="none"))


FAMILIES: Mapping[str, Callable[[], Figure]] = {
    "separable": separable,
    "grouped": grouped,
    "spectral": spectral,
    "sets": sets,
    "reweighting": reweighting,
}


def main() -> None:
    """Draw and save the pictures."""
    plt.rcParams.update(
        {
            "svg.hashsalt": "argprune",
            "svg.fonttype": "none",
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],
            "axes.titlesize": "medium",
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    for name, draw in FAMILIES.items():
        file = io.StringIO()
        draw().savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        Path(__file__).with_name(f"{name}.svg").write_text(_shortened(file.getvalue()), encoding="utf-8")


def _shortened(svg: str) -> str:
    """The picture in fewer bytes: hundredths of a point, no indents, nothing that is understood without being said."""
    svg = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    return re.sub(r"\n +", "\n", svg).replace(" \nL ", " ")


if __name__ == "__main__":
    main()
