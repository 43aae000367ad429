"""Classification of texts: rows, splits, and the check that makes bad data fail before any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Row:
    """One example: a text, perhaps a second one (pair tasks), and the index of its label."""

    text: str
    label: int
    pair: str | None = None


@dataclass(frozen=True)
class Classification:
    """A text-classification task: train fits, validation picks, test reports.

    labels: the label names, in index order; splits: rows by split name, every one non-empty.
    """

    name: str
    labels: Sequence[str]
    splits: Mapping[str, Sequence[Row]]
    metric: str = "accuracy"

    def __post_init__(self) -> None:
        for split in SPLITS:
            rows = self.splits.get(split, ())
            if not rows:
                raise ValueError(f"task {self.name}: split {split!r} is empty; every split needs rows.")
            unseen = {row.label for row in rows} - set(range(len(self.labels)))
            if unseen:
                known = f"0 to {len(self.labels) - 1}"
                raise ValueError(f"task {self.name}: split {split!r} has labels {sorted(unseen)}; known: {known}.")
