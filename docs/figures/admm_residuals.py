"""Draw docs/figures/admm_residuals.svg: residuals and changes of the support in three short runs of `admm`.

The runs differ in the rule for rho alone: MiniLM on stdlib-docs, 120 steps, 67 % of the encoder's weights. They go to
the folder given (some minutes each on two cores) and are not repeated where they are there.

.venv/bin/python docs/figures/admm_residuals.py [FOLDER]
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from argprune.tasks.prune import prune

HERE = Path(__file__).parent
RULES = {"constant": "#b35806", "growth": "#2166ac", "relative-balance": "#1b7837"}
PANELS = {
    "relative_primal_residual": r"primal residual, relative: $\|W - Z\|$ / max($\|W\|$, $\|Z\|$)",
    "dual_residual": r"dual residual: $\rho\, \|Z - Z_{old}\|$",
    "support_changed": "fraction of entries that changed sides",
}


def lines(folder: Path, rule: str) -> list[dict[str, Any]]:
    """The log of the run with a rule, from its first Z-step on."""
    run = prune(
        "minilm",
        "stdlib-docs",
        method={"name": "admm", "rho_rule": rule, "z_every": 4},
        sparsity=0.67,
        output=folder / rule,
        dense=folder / "dense",
        resume=True,
        quiet=True,
        max_steps=120,
        max_length=40,
        learning_rate=6e-4,
        log_every=4,
    )
    logged = (json.loads(line) for line in (run.path / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in logged if "primal_residual" in line]


def main() -> None:
    """Run what is missing, draw and save."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parents[1] / "runs" / "admm-residuals"
    plt.rcParams.update({"svg.hashsalt": "argprune", "svg.fonttype": "none", "font.family": "sans-serif"})
    figure, axes = plt.subplots(1, len(PANELS), figsize=(10.8, 3.2), layout="constrained")
    for rule, colour in RULES.items():
        logged = lines(folder, rule)
        steps = [line["step"] for line in logged]
        for panel, name in zip(axes, PANELS, strict=True):
            panel.plot(steps, [line[name] for line in logged], marker="o", markersize=3, color=colour, label=rule)
    for panel, title in zip(axes, PANELS.values(), strict=True):
        panel.set_title(title, fontsize="small")
        panel.set(xlabel="optimizer step")
        panel.spines[["top", "right"]].set_visible(False)
    axes[1].set_yscale("log")
    axes[0].legend(frameon=False, title="rho", fontsize="small")
    figure.savefig(HERE / "admm_residuals.svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
