"""docs/results/flop-lm.csv: a row a finished run of a study: perplexity, numbers stored, milliseconds.

    python studies/flop_lm.py [STUDY.yaml] [--output FILE.csv] [--batch N] [--length N] [--threads N] [--repetitions N]

parameters: entries of the saved model that are not zero. train_ms: of a step, as the study ran it. inference_ms: the
median over turns in which all models take part; of a model with zeros, each layer is in the format that is fastest.
speedup: of inference, the medians of dense / model. Rows of other tasks stay in the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from merged_table import write_merged
from transformers import AutoModelForCausalLM, PreTrainedModel

from argprune.models import find_factors
from argprune.models.export import (
    apply_formats,
    choose_formats,
    example_inputs,
    interleaved_seconds,
    median_milliseconds,
    read_logits,
)
from argprune.tasks.studies.grid import DENSE, Point, load_study
from argprune.tasks.studies.records import StudyRun

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs" / "results" / "flop-lm.csv"


def row_of(point: Point, run: StudyRun, model: PreTrainedModel) -> dict[str, Any]:
    """What is known of a run without running its model."""
    metrics, method = run.metrics(), point.options["method"]
    options = {key: value for key, value in method.items() if key != "name"} if isinstance(method, dict) else {}
    return {
        "task": metrics["task"],
        "method": point.method,
        "options": json.dumps(options) if options else "",
        "model": Path(str(point.options["model"])).name,
        "seed": metrics["seed"],
        "sparsity": metrics["sparsity"]["target"],
        "parameters": sum(int(torch.count_nonzero(parameter)) for parameter in model.parameters()),
        "validation_perplexity": metrics["pruned"]["validation"]["perplexity"],
        "test_perplexity": metrics["pruned"]["test"]["perplexity"],
        "steps": metrics["steps"],
        "train_ms": 1e3 * metrics["seconds"]["train"] / metrics["steps"],
    }


def main() -> int:
    """Write the table; 1 where the dense reference or all others have not finished."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="?", type=Path, default=HERE / "flop-lm.yaml", metavar="STUDY.yaml")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    study = load_study(options.study)
    rows: dict[str, dict[str, Any]] = {}
    models: dict[str, PreTrainedModel] = {}
    for point in study.points:
        run = StudyRun(study.output, point.name)
        if run.state() == "finished":
            models[point.name] = AutoModelForCausalLM.from_pretrained(run.folder / "model").eval()
            rows[point.name] = row_of(point, run, models[point.name])
    dense = {point.reference.name for point in study.points if point.reference is not None} & rows.keys()
    if len(dense) != 1 or len(rows) == 1:
        print(f"{options.study}: finish the dense reference, and a run beside it, first.", file=sys.stderr)
        return 1
    for model in models.values():
        if find_factors(model):
            continue
        size = {"batch": options.batch, "length": options.length, "threads": options.threads}
        apply_formats(model, choose_formats(model, **size))
    actions = {}
    for name, model in models.items():
        actions[name] = partial(read_logits, model, example_inputs(model, options.batch, options.length))
    seconds = interleaved_seconds(actions, options.repetitions)
    reference = seconds[dense.pop()]
    for name, milliseconds in median_milliseconds(seconds).items():
        ratios = [theirs / own for theirs, own in zip(reference, seconds[name], strict=True)]
        rows[name] |= {"inference_ms": milliseconds, "speedup": statistics.median(ratios)}
    ordered = sorted(rows.values(), key=lambda row: (row["method"] != DENSE, row["sparsity"], row["test_perplexity"]))
    written = write_merged(options.output, ordered, "task")
    left = len(study.points) - len(rows)
    print(f"{options.output}: {written} rows, {len(rows)} of {options.study}; {left} runs are left.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
