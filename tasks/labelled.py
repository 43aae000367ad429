"""Texts with labels or numbers, from rows whose columns may be named: GLUE's tasks, and anybody's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from argprune.tasks.kinds.glue import GLUE, Glue
from argprune.tasks.sources import ALL, TEST, Source, part_of, read_splits, training_part
from argprune.tasks.task_options import TaskOptions
from argprune.tasks.texts import SPLITS, Classification, Graded, Regression, Row

_TEXT, _PAIR, _LABEL = "text", "text_pair", "label"
# As many as a label may stand for: one that is larger is an identifier, and a head of that size a mistake.
_MOST_LABELS = 2**15


@dataclass(frozen=True)
class Columns:
    """Where a row has its text, its second text, and its label; a second text that is not named may be missing."""

    text: str = _TEXT
    pair: str | None = None
    label: str = _LABEL

    @staticmethod
    def of(options: TaskOptions) -> Columns:
        """Those that options name."""
        return Columns(options.text_column or _TEXT, options.pair_column, options.label_column or _LABEL)

    def texts(self, row: Mapping[str, Any]) -> tuple[str, str | None]:
        """Text and second text of a row. ValueError for a column that is missing, and what is no text."""
        needed = {self.text, self.label, *([self.pair] if self.pair is not None else [])}
        missing = sorted(needed - set(row))
        if missing:
            raise ValueError(f"column {missing[0]!r} is missing; found {', '.join(sorted(row))}")
        pair = self.pair or _PAIR
        text, second = row[self.text], row.get(pair) if pair not in (self.text, self.label) else None
        if not isinstance(text, str) or not isinstance(second, str | None):
            raise ValueError(f"{self.text} and {pair} must be strings")
        # JSON can spell halves of characters, which no tokenizer takes.
        for value in (text, second or ""):
            value.encode()
        return text, second


def read_labelled(source: Source, options: TaskOptions) -> Classification | Regression:
    """The task of a source's rows. Raises ValueError with the place of a bad row; one may have a label train lacks."""
    options.refuse("texts with labels", "text_column", "pair_column", "label_column", "objective")
    columns = Columns.of(options)
    objective = options.objective or _objective(source, columns)
    if objective == "regression":
        return Regression(source.name, read_splits(source, lambda row: _graded(row, columns), _text))
    if objective != "classification":
        raise ValueError(
            f"{source.place}: objective {objective!r} of texts with labels; choose classification or regression."
        )
    first = source.first(training_part(source)) or {}
    spec = GLUE.get(source.name, Glue())
    if isinstance(first.get(columns.label), int) and options.label_column is None:
        splits = read_splits(source, lambda row: _numbered(row, columns), _text)
        labels = [str(label) for label in range(_count(source, splits))]
        known = len(labels) <= len(spec.labels)
    else:
        labels = _label_names(source, columns)
        known = bool(spec.labels) and set(labels) <= {*spec.labels, *map(str, range(len(spec.labels)))}
        labels = [*spec.labels] if known and set(labels) <= set(spec.labels) else labels
        index = {label: at for at, label in enumerate(labels)}
        splits = read_splits(source, lambda row: _named(row, columns, index), _text)
    if known:
        return Classification(source.name, spec.labels, splits, spec.metric, spec.measures)
    return Classification(source.name, labels, splits)


def _objective(source: Source, columns: Columns) -> str:
    label = (source.first(training_part(source)) or {}).get(columns.label)
    return "regression" if isinstance(label, float) else "classification"


def _count(source: Source, splits: Mapping[str, Sequence[Row]]) -> int:
    """The number of classes: one more than the largest label of what trains, held out for validation or not."""
    of_train = SPLITS if list(source.parts) == [ALL] else SPLITS[: 1 if part_of(source, TEST) else 2]
    return max((row.label for split in of_train for row in splits[split]), default=-1) + 1


def _text(row: Row | Graded) -> str:
    return f"{row.text}\n{row.pair}"


def _numbered(row: Mapping[str, Any], columns: Columns) -> Row:
    text, pair = columns.texts(row)
    label = row[columns.label]
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        raise ValueError(f"label {label!r} is not an integer from 0 on")
    if label >= _MOST_LABELS:
        raise ValueError(f"label {label} is no class of a text; labels are numbered from 0 on, below {_MOST_LABELS}")
    return Row(text, label, pair)


def _graded(row: Mapping[str, Any], columns: Columns) -> Graded:
    text, pair = columns.texts(row)
    try:
        number = float(row[columns.label])
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"label {row[columns.label]!r} is not a finite number")
    return Graded(text, number, pair)


def _named(row: Mapping[str, Any], columns: Columns, index: Mapping[str, int]) -> Row:
    text, pair = columns.texts(row)
    label = _label_name(row, columns)
    if label not in index:
        raise ValueError(f"label {label!r} is not among those of train: {', '.join(index)}")
    return Row(text, index[label], pair)


def _label_names(source: Source, columns: Columns) -> list[str]:
    """The labels of train: whole numbers by size, others by name."""

    def parse(row: Mapping[str, Any]) -> str:
        columns.texts(row)
        return _label_name(row, columns)

    names = set(source.read(training_part(source), parse))
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def _label_name(row: Mapping[str, Any], columns: Columns) -> str:
    label = row[columns.label]
    if not isinstance(label, str | int) or not str(label).strip():
        raise ValueError(f"label {label!r} is neither a text nor a whole number")
    return str(label).strip()
