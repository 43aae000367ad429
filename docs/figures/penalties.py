"""Draw docs/figures/penalties.svg: separable penalties and their proximal operators at step 1, drawn by the operators.

.venv/bin/python docs/figures/penalties.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch

from argprune.solvers import prox

PENALTIES = {
    "l1": prox.L1(1.0),
    "mcp": prox.MCP(1.0, 2.0),
    "scad": prox.SCAD(1.0),
    "log_sum": prox.LogSum(1.0, 0.5),
    "l_half": prox.LHalf(1.0),
    "l0": prox.L0(1.0),
    "elastic_net": prox.ElasticNet(1.0),
}


def main() -> None:
    """Draw and save the figure."""
    plt.rcParams.update({"svg.hashsalt": "argprune", "svg.fonttype": "none", "font.family": "sans-serif"})
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained")
    w = torch.linspace(-4, 4, 1601, dtype=torch.float64)
    right.plot(w, w, color="0.8", linewidth=1)
    for name, penalty in PENALTIES.items():
        left.plot(w, [float(penalty.value(x[None])) for x in w], label=name, linewidth=1.3)
        shrunk = penalty.prox(w, 1.0)
        # A jump of the operator is a gap in its picture.
        shrunk[1:][(shrunk[1:] - shrunk[:-1]).abs() > 0.1] = torch.nan
        right.plot(w, shrunk, label=name, linewidth=1.3)
    left.set(xlabel="w", title="value", ylim=(0, 4.5))
    right.set(xlabel="w", title="prox, step 1", ylim=(-4, 4))
    left.legend(frameon=False, fontsize="small", ncols=2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).with_name("penalties.svg"), metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
