"""docs/results/one-shot.csv: a row a run and kind of layer, of what one-shot.yaml and one-shot-lm.yaml have finished.

    python studies/one_shot.py [STUDY.yaml ...] [--output FILE.csv]

Errors are means over the blocks of ||X (W - V)^T||^2 / ||X W^T||^2, on calibration and on held-out tokens; layer `all`
is the mean over all matrices. seconds: of the solver, summed. The metric is repeated in every row of its run. Rows
of other runs stay in the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from merged_table import write_merged

from argprune.tasks.one_shot import layer_kind
from argprune.tasks.studies.grid import load_study
from argprune.tasks.studies.records import StudyRun

HERE = Path(__file__).parent
STUDIES = (HERE / "one-shot.yaml", HERE / "one-shot-lm.yaml")
RESULTS = HERE.parent / "docs" / "results" / "one-shot.csv"


def rows_of(metrics: Mapping[str, Any], run: str) -> Iterator[dict[str, Any]]:
    """The rows of a finished one-shot run, in order of execution, then all together."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for layer in metrics["layers"]:
        kinds.setdefault(layer_kind(layer["name"]), []).append(layer)
    method, metric = metrics["config"]["method"], metrics["metric"]
    for kind, layers in {**kinds, "all": metrics["layers"]}.items():
        yield {
            "task": metrics["task"],
            "method": metrics["method"],
            "sparsity": metrics["sparsity"]["target"],
            "pattern": method["pattern"],
            "seed": metrics["seed"],
            "layer": kind,
            "matrices": len(layers),
            "tokens": layers[0]["tokens"],
            "error": fmean(layer["error"] for layer in layers),
            "held_out": fmean(layer["held_out"] for layer in layers),
            "seconds": sum(layer["seconds"] for layer in layers),
            "metric": metric,
            "validation": metrics["pruned"]["validation"][metric],
            "test": metrics["pruned"]["test"][metric],
            "dense_test": metrics["dense"]["test"][metric],
            "run": run,
        }


def main() -> int:
    """Write the table; 1 where no run has finished yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="*", type=Path, default=STUDIES, metavar="STUDY.yaml")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    left = 0
    for study in map(load_study, options.studies):
        for point in study.points:
            run = StudyRun(study.output, point.name)
            if point.method == "dense":
                continue
            if run.state() == "finished":
                rows += rows_of(run.metrics(), run.name)
            else:
                left += 1
    if not rows:
        print("No run has finished yet; start `argprune study` on the studies.", file=sys.stderr)
        return 1
    written = write_merged(options.output, rows, "run")
    print(f"{options.output}: {written} rows, {len(rows)} of these studies; {left} runs are left.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
