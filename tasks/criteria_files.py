"""What `argprune verify criteria` writes: every number as JSON, and a row a block and criterion as CSV."""

from __future__ import annotations

import csv
import io
import platform
from typing import Any

import torch

from argprune._version import __version__
from argprune.solvers.verify.surrogates import KINDS
from argprune.tasks.criteria_blocks import CURVED
from argprune.tasks.criteria_table import Results, reading
from argprune.tasks.settings import Settings


def results_dict(results: Results) -> dict[str, Any]:
    """Every number as plain data for JSON."""
    check = results.check
    options = {name: getattr(check, name) for name in check.__dataclass_fields__ if name not in ("keep", "kept")}
    refit = "inputs" if check.curvature == "inputs" else "fisher"
    return {
        **options,
        "layers": [
            {
                "name": layer.name,
                "shape": list(layer.shape),
                "blocks": [report.to_dict() for report in layer.reports],
                "criteria": [summary.to_dict() for summary in layer.criteria],
                "references": [summary.to_dict() for summary in layer.references],
                "matrix": layer.matrix,
            }
            for layer in results.layers
        ],
        "keep": check.kept,
        "patterns": list(check.layers),
        "criteria": [{"formula": results.formulas[s.name], **s.to_dict()} for s in results.criteria],
        "references": [summary.to_dict() for summary in results.references],
        "source": results.source,
        "surrogates": {
            "curvature": check.curvature,
            "curvature_examples": min(CURVED, check.calibration) if check.curvature == "hessian" else check.calibration,
            "refit": f"{refit} of {check.calibration} examples + 0.01 of its diagonal",
            "step": f"AdamW, weight decay {Settings.weight_decay}, moments over all calibration batches, no clipping",
        },
        "reading": reading(results),
        "seconds": round(results.seconds, 1),
        "versions": {
            "argprune": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        },
    }


def results_csv(results: Results) -> str:
    """One row a block and criterion or reference, and one a layer and criterion on the whole weight."""
    rows: list[dict[str, Any]] = []
    for layer in results.layers:
        for number, report in enumerate(layer.reports):
            for kind, judged_list in (("criterion", report.criteria), ("reference", report.references)):
                for judged in judged_list:
                    row = {"layer": layer.name, "block": number, "kind": kind, "name": judged.name}
                    row |= {"surrogate": judged.surrogate, "loss": judged.truth.objective}
                    row |= {"regret": judged.truth.regret, "share": judged.truth.share}
                    if judged.split is not None:
                        row |= {"solver_gap": judged.split.solver_gap, "sampling_error": judged.split.sampling_error}
                        row |= {"model_error": judged.split.model_error}
                    row |= {"certified": judged.certified, "correlation": judged.correlation}
                    for surrogate in KINDS:
                        row[f"{surrogate}_objective"] = judged.prices[surrogate].objective
                        row[f"{surrogate}_regret"] = judged.prices[surrogate].regret
                        row[f"{surrogate}_share"] = judged.prices[surrogate].share
                    rows.append(row)
        rows += [
            {"layer": layer.name, "kind": "matrix", "name": name, "loss": loss} for name, loss in layer.matrix.items()
        ]
    text = io.StringIO()
    # The first row is a criterion's; only those with a surrogate have every column.
    columns = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _short(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
