"""The figure of `argprune verify criteria`: every criterion's true regret, and the parts that it splits into."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from argprune.solvers.verify.summary import Mean
from argprune.tasks.criteria_table import Results

_SUFFIXES = (".svg", ".png", ".pdf")
_PARTS = {"solver gap": "#b2182b", "sampling error": "#fdae61", "model error": "#4575b4"}


def check_file(file: str) -> None:
    """Raise ValueError for a suffix that is not drawn, ImportError without matplotlib."""
    if Path(file).suffix not in _SUFFIXES:
        raise ValueError(f"--plot {file}: give a file that ends in {', '.join(_SUFFIXES)}.")
    if find_spec("matplotlib") is None:
        raise ImportError("--plot needs matplotlib: pip install 'argprune[report]'.")


def draw(results: Results, file: str) -> None:
    """Save the figure: parts stacked by sign, a dot for their sum with its spread over blocks, best on top."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    summaries = [summary for summary in reversed(results.criteria) if summary.truth is not None]
    style: Any = {"svg.hashsalt": "argprune", "svg.fonttype": "none", "font.family": "sans-serif"}
    with matplotlib.rc_context(style):
        figure, axes = plt.subplots(figsize=(7.2, 1.2 + 0.28 * len(summaries)), layout="constrained")
        for row, summary in enumerate(summaries):
            left = {True: 0.0, False: 0.0}
            parts = (summary.solver_gap, summary.sampling_error, summary.model_error)
            for colour, part in zip(_PARTS.values(), parts, strict=True):
                width = _mean(part)
                axes.barh(row, width, left=left[width > 0], height=0.6, color=colour, linewidth=0)
                left[width > 0] += width
            assert summary.truth is not None
            error = summary.truth.spread
            axes.errorbar(summary.truth.mean, row, xerr=error, fmt="o", color="black", markersize=4, linewidth=1)
        for name, colour in _PARTS.items():
            axes.barh(0, 0, color=colour, label=name)
        axes.axvline(1, color="0.5", linewidth=1, linestyle=":")
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(summaries)), [summary.name for summary in summaries])
        axes.set(
            xlabel="true regret (0: best mask, 1: random masks; whiskers: spread over blocks)",
            title=f"{Path(results.check.model).name} on {results.check.task}",
        )
        figure.legend(loc="outside lower center", ncols=len(_PARTS), frameon=False)
        axes.spines[["top", "right", "left"]].set_visible(False)
        figure.savefig(file, metadata={"Date": None, "Creator": None} if file.endswith(".svg") else None)
        plt.close(figure)


def _mean(mean: Mean | None) -> float:
    return 0.0 if mean is None else mean.mean
