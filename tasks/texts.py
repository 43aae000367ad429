"""What a task is to the harness, and classification of texts: rows, splits, and the check that bad data fail early."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
from torch import Tensor

from argprune.tasks.cache import cached
from argprune.tasks.metrics import class_scores, correlations, require

SPLITS = ("train", "validation", "test")
T = TypeVar("T")


class Task(Protocol):
    """Data in three splits, and how a model learns and is measured on them: train fits, validation picks, test reports.

    kind: of the model, a key of `argprune.models.KINDS`. metric: the measure that counts; larger_is_better: which way.
    splits: what the rows are is the task's own affair; train, validation and test have some, and more splits are more
    tests.
    """

    larger_is_better: ClassVar[bool]

    @property
    def kind(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def metric(self) -> str: ...

    @property
    def splits(self) -> Mapping[str, Sequence[Any]]: ...

    def model_options(self) -> dict[str, Any]:
        """What `load_model` must know besides the kind."""

    def encode(self, rows: Sequence[Any], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
        """Examples of at most `max_length` tokens each, as a model's forward takes them, with their labels.

        What an example has under "about" is for `measure`: plain data that no model sees.
        """

    def collator(self, tokenizer: Any) -> Any:
        """What makes a batch of some examples."""

    def reduce(self, logits: Any, labels: Any) -> Any:
        """Of a batch, what `measure` needs, (rows, ...): not more, since it is held for a whole split."""

    def measure(self, prediction: Any) -> dict[str, float]:
        """The metric by its name, and others, from a `transformers.EvalPrediction` of what `reduce` gave, and labels.

        prediction: its `inputs` are the `Encoded` rows that were predicted, in that order.
        """


@runtime_checkable
class Writes(Protocol):
    """A task whose models are measured by what they write: it stands in for the logits."""

    def generate(self, model: Any, inputs: Mapping[str, Tensor], tokenizer: Any) -> Tensor:
        """Tokens for a batch, (rows, tokens), padded behind with -100."""


@runtime_checkable
class Judges(Protocol):
    """A task that can say how each example was done, so that two runs can be compared example by example."""

    def judge(self, prediction: Any) -> Any:
        """Of each row, in the order of the split, its metric, float (rows,); None where the metric is no mean of such.

        prediction: as of `measure`.
        """


@runtime_checkable
class DrawsAnew(Protocol):
    """A collator that draws at random: the same in every evaluation, and anew in every epoch of training."""

    def of_epochs(self, epoch: Callable[[], int]) -> Callable[[list[Any]], dict[str, Any]]:
        """The collator of training; epoch: the number of the one that is being trained, from 0."""


@dataclass(frozen=True)
class Row:
    """One example: a text, perhaps a second one (pair tasks), and the index of its label."""

    text: str
    label: int
    pair: str | None = None


@dataclass(frozen=True)
class Graded:
    """One example of regression: a text, perhaps a second one, and the number that is to be told of it."""

    text: str
    label: float
    pair: str | None = None


@dataclass(frozen=True)
class Classification:
    """A text-classification task: train fits, validation picks, test reports.

    labels: the label names, in index order; splits: rows by split name, every one non-empty. measures: what is
    measured, by the names of `argprune.tasks.metrics.class_scores`, the metric among them.
    """

    name: str
    labels: Sequence[str]
    splits: Mapping[str, Sequence[Row]]
    metric: str = "accuracy"
    measures: Sequence[str] = ("accuracy",)
    kind: ClassVar[str] = "classification"
    larger_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self.measures)
        check_splits(self.name, self.splits)
        for split, rows in self.splits.items():
            unseen = {row.label for row in rows} - set(range(len(self.labels)))
            if unseen:
                known = f"0 to {len(self.labels) - 1}"
                raise ValueError(f"task {self.name}: split {split!r} has labels {sorted(unseen)}; known: {known}.")

    def model_options(self) -> dict[str, Any]:
        """The labels."""
        return {"labels": tuple(self.labels)}

    def encode(self, rows: Sequence[Row], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
        """`encode_rows`."""
        return encode_rows(rows, tokenizer, max_length)

    def collator(self, tokenizer: Any) -> Any:
        """Padding to the longest text of the batch."""
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(tokenizer)

    def reduce(self, logits: Any, labels: Tensor) -> Tensor:
        """The logits."""
        return first_output(logits)

    def measure(self, prediction: Any) -> dict[str, float]:
        """`class_scores` of the class with the largest logit."""
        return class_scores(prediction.predictions.argmax(-1), prediction.label_ids, self.measures)

    def judge(self, prediction: Any) -> Any:
        """1 where the class told is right, 0 elsewhere; None where another measure than accuracy counts."""
        if self.metric != "accuracy":
            return None
        right = np.empty(len(prediction.label_ids), np.float32)
        right[prediction.inputs.order] = prediction.predictions.argmax(-1) == prediction.label_ids
        return right


@dataclass(frozen=True)
class Regression:
    """A task of telling a number of a text, measured by how the numbers told vary with the right ones."""

    name: str
    splits: Mapping[str, Sequence[Graded]]
    metric: str = "combined_score"
    kind: ClassVar[str] = "regression"
    larger_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_splits(self.name, self.splits)

    def model_options(self) -> dict[str, Any]:
        """None: a number."""
        return {}

    def encode(self, rows: Sequence[Graded], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
        """`encode_rows`."""
        return encode_rows(rows, tokenizer, max_length)

    def collator(self, tokenizer: Any) -> Any:
        """Padding to the longest text of the batch."""
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(tokenizer)

    def reduce(self, logits: Any, labels: Tensor) -> Tensor:
        """The number, (rows,)."""
        return first_output(logits).squeeze(-1)

    def measure(self, prediction: Any) -> dict[str, float]:
        """Pearson and Spearman correlation, and their mean."""
        return correlations(prediction.predictions, prediction.label_ids)


def first_output(outputs: Any) -> Tensor:
    """What a model predicts, which some give with their states behind it: encoder-decoders do."""
    first: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
    return first


def encode_rows(rows: Sequence[Row | Graded], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """Tokenised texts (or pairs), cut to `max_length`, with their labels."""

    def encode() -> list[dict[str, Any]]:
        pairs = [row.pair for row in rows] if any(row.pair is not None for row in rows) else None
        texts = [row.text for row in rows]
        encoded = tokenizer(texts, pairs, truncation=True, max_length=max_length)
        return [{**{name: encoded[name][i] for name in encoded}, "labels": row.label} for i, row in enumerate(rows)]

    return cached(["texts", max_length], rows, tokenizer, encode)


def check_splits(name: str, splits: Mapping[str, Sequence[Any]]) -> None:
    """Raise ValueError unless every split has rows."""
    for split in dict.fromkeys((*SPLITS, *splits)):
        if not splits.get(split, ()):
            raise ValueError(f"task {name}: split {split!r} is empty; every split needs rows.")


def hold_out(rows: Sequence[T], seed: int, fraction: float = 0.1) -> tuple[list[T], list[T]]:
    """The rows without a random slice, and the slice: a fraction of them, at least one.

    Raises ValueError where nothing would be left to train on.
    """
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} training rows; holding a slice out needs at least 2.")
    held = set(random.Random(seed).sample(range(len(rows)), max(1, round(fraction * len(rows)))))
    return [row for i, row in enumerate(rows) if i not in held], [rows[i] for i in sorted(held)]
