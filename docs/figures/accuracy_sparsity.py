"""Draw docs/figures/accuracy-sparsity.svg from docs/results/stdlib-docs.csv: mean over seeds, and the range.

.venv/bin/python docs/figures/accuracy_sparsity.py
"""

import csv
from collections import defaultdict
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parents[1]
# The learning rates that tuning kept; the other rows are the tuning's.
TUNED = {"dense": "0.0003", "magnitude": "0.001", "rpp": "0.001"}
COLOURS = {"magnitude": "#b35806", "rpp": "#2166ac"}


def main() -> None:
    """Draw and save the figure."""
    scores: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    with (DOCS / "results" / "stdlib-docs.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            kept = row["option.learning_rate"] == TUNED[row["method"]]
            if row["status"] == "finished" and kept:
                scores[row["method"]][float(row["sparsity_target"])].append(100 * float(row["test_accuracy"]))
    plt.rcParams.update({"svg.hashsalt": "argprune", "svg.fonttype": "none", "font.family": "sans-serif"})
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    dense = scores["dense"][0.0]
    axes.axhspan(min(dense), max(dense), color="0.9", zorder=0)
    axes.axhline(mean(dense), color="0.4", linewidth=1, label=f"dense (mean and range of {len(dense)} seeds)")
    for method, colour in COLOURS.items():
        points = sorted(scores[method].items())
        sparsities = [100 * sparsity for sparsity, _ in points]
        means = [mean(values) for _, values in points]
        axes.fill_between(
            sparsities, [min(v) for _, v in points], [max(v) for _, v in points], color=colour, alpha=0.2, linewidth=0
        )
        axes.plot(sparsities, means, marker="o", color=colour, label=method)
    axes.set(xlabel="encoder sparsity (%)", ylabel="test accuracy (%)", title="MiniLM on stdlib-docs, equal steps")
    axes.legend(loc="lower left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / "figures" / "accuracy-sparsity.svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
