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
# Of a message: labels, and characters of one.
_MOST_NAMED, _MOST_SHOWN = 10, 60


@dataclass(frozen=True)
class Columns:
    """Where a row has its text, its second text, and its label; paired: whether it has a second one."""

    text: str
    pair: str
    label: str
    paired: bool

    @staticmethod
    def of(options: TaskOptions, first: Mapping[str, Any]) -> Columns:
        """Those that options name; without a name for second texts there are some if the first training row has one."""
        text, label = options.text_column or _TEXT, options.label_column or _LABEL
        pair = options.pair_column or _PAIR
        found = pair not in (text, label) and first.get(pair) is not None
        return Columns(text, pair, label, paired=options.pair_column is not None or found)

    def texts(self, row: Mapping[str, Any]) -> tuple[str, str | None]:
        """Text and second text of a row. ValueError for a column that is missing, and what is no text."""
        missing = sorted({self.text, self.label, *([self.pair] if self.paired else [])} - set(row))
        if missing:
            raise ValueError(f"column {missing[0]!r} is missing; found {', '.join(sorted(row))}")
        text, second = row[self.text], row[self.pair] if self.paired else None
        if not self.paired and self.pair not in (self.text, self.label) and row.get(self.pair) is not None:
            raise ValueError(f"{self.pair} is there, but the first row of train has none; give all rows one, or none")
        return _string(self.text, text), _string(self.pair, second) if self.paired else None


def read_labelled(source: Source, options: TaskOptions) -> Classification | Regression:
    """The task of a source's rows. Raises ValueError with the place of a bad row; one may have a label train lacks."""
    options.refuse("texts with labels", "text_column", "pair_column", "label_column", "objective")
    first = source.first(training_part(source)) or {}
    columns = Columns.of(options, first)
    objective = options.objective or _objective(source, columns, first)
    if objective == "regression":
        return Regression(source.name, read_splits(source, lambda row: _graded(row, columns), _text))
    if objective != "classification":
        raise ValueError(
            f"{source.place}: objective {objective!r} of texts with labels; choose classification or regression."
        )
    spec = GLUE.get(source.name, Glue())
    if isinstance(first.get(columns.label), int) and options.label_column is None:
        splits = read_splits(source, lambda row: _numbered(row, columns), _text)
        labels = [str(label) for label in range(_count(source, splits))]
        known = len(labels) <= len(spec.labels)
    else:
        labels, numbers = _label_names(source, columns), [str(label) for label in range(len(spec.labels))]
        official = next((names for names in (spec.labels, numbers) if set(labels) <= set(names)), None)
        known = official is not None
        index = {label: at for at, label in enumerate(official or labels)}
        splits = read_splits(source, lambda row: _named(row, columns, index), _text)
    if known:
        return Classification(source.name, spec.labels, splits, spec.metric, spec.measures)
    return Classification(source.name, labels, splits)


def _objective(source: Source, columns: Columns, first: Mapping[str, Any]) -> str:
    if source.name in GLUE and columns.label == _LABEL:
        return "classification" if GLUE[source.name].labels else "regression"
    if not _is_number(first.get(columns.label)):
        return "classification"
    labels = source.read(training_part(source), lambda row: row.get(columns.label))
    if not all(map(_is_number, labels)):
        return "classification"
    # JSON says which numbers have a point; in the text of a table, "1.0" may be a class as well as a number.
    fractions = (isinstance(label, float) or (isinstance(label, str) and float(label) % 1 > 0) for label in labels)
    return "regression" if any(fractions) else "classification"


def _is_number(label: Any) -> bool:
    try:
        return not isinstance(label, bool) and math.isfinite(float(label))
    except (TypeError, ValueError, OverflowError):
        return False


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
        raise ValueError(f"label {_short(repr(label))} is not an integer from 0 on")
    if label >= _MOST_LABELS:
        raise ValueError(f"label {label} is no class of a text; labels are numbered from 0 on, below {_MOST_LABELS}")
    return Row(text, label, pair)


def _graded(row: Mapping[str, Any], columns: Columns) -> Graded:
    text, pair = columns.texts(row)
    label = row[columns.label]
    if not _is_number(label):
        raise ValueError(f"label {_short(repr(label))} is not a finite number")
    return Graded(text, float(label), pair)


def _named(row: Mapping[str, Any], columns: Columns, index: Mapping[str, int]) -> Row:
    text, pair = columns.texts(row)
    label = _label_name(row, columns)
    if label not in index:
        known = ", ".join([*map(_short, [*index][:_MOST_NAMED]), *["..."] * (len(index) > _MOST_NAMED)])
        raise ValueError(f"label {_short(repr(label))} is not among those of train: {known}")
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
        raise ValueError(f"label {_short(repr(label))} is neither a text nor a whole number")
    return str(label).strip()


def _string(column: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{column} holds {_short(repr(value))}, which is no string")
    # JSON can spell halves of characters, which no tokenizer takes.
    value.encode()
    return value


def _short(value: str) -> str:
    return value if len(value) <= _MOST_SHOWN else f"{value[:_MOST_SHOWN]}..."
