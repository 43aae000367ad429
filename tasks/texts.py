"""Classification of texts: rows, splits, and the check that makes bad data fail before any training."""

from __future__ import annotations

import random
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


def hold_out(rows: Sequence[Row], seed: int, fraction: float = 0.1) -> tuple[list[Row], list[Row]]:
    """The rows without a random slice, and the slice: a fraction of them, at least one.

    Raises ValueError where nothing would be left to train on.
    """
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} training rows; holding a slice out needs at least 2.")
    held = set(random.Random(seed).sample(range(len(rows)), max(1, round(fraction * len(rows)))))
    return [row for i, row in enumerate(rows) if i not in held], [rows[i] for i in sorted(held)]
