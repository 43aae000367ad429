"""The tasks of GLUE (Wang et al., 2019): their labels, and the official metric of each.

The metric of a task with two measures is their mean, by which GLUE ranks; both are measured. Labels are numbered as the
hub's `nyu-mll/glue` numbers them. GLUE's test sets have no public labels: docs/how-to/data.md says what stands in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True)
class Glue:
    """labels: in index order; metric: that counts; measures: all. Of stsb there are no labels, but numbers."""

    labels: Sequence[str] = ()
    metric: str = "accuracy"
    measures: Sequence[str] = ("accuracy",)


_BOTH = ("accuracy", "f1", "combined_score")

GLUE: Mapping[str, Glue] = {
    "cola": Glue(("unacceptable", "acceptable"), "matthews_correlation", ("matthews_correlation", "accuracy")),
    "sst2": Glue(("negative", "positive")),
    "mrpc": Glue(("not_equivalent", "equivalent"), "combined_score", _BOTH),
    "stsb": Glue(metric="combined_score", measures=("pearson", "spearman", "combined_score")),
    "qqp": Glue(("not_duplicate", "duplicate"), "combined_score", _BOTH),
    "mnli": Glue(("entailment", "neutral", "contradiction")),
    "qnli": Glue(_ENTAILMENT),
    "rte": Glue(_ENTAILMENT),
    "wnli": Glue(("not_entailment", "entailment")),
}
