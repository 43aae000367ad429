"""The papers' tasks from the Hugging Face hub, through `datasets`; rows are brought to the columns of a data folder.

What a folder is read by reads them: see `argprune.tasks.folder`. Parts without labels, as GLUE's tests, are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from argprune.tasks.rows import Parse

T = TypeVar("T")
Shape = Callable[[Mapping[str, Any], Any], Mapping[str, Any]]


@dataclass(frozen=True)
class HubTask:
    """Where a task is: dataset, configuration, and which of its splits our parts are.

    shape: makes of one of its rows, and its features, one of ours.
    """

    path: str
    config: str | None
    shape: Shape
    parts: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "dev": "validation", "test": "test"})
    revision: str | None = None


@dataclass(frozen=True)
class Hub:
    """A source of rows on the hub."""

    name: str
    task: HubTask
    data: Mapping[str, Any]

    @staticmethod
    def load(name: str) -> Hub:
        """A task of `HUB`. Raises ValueError in one line where the hub cannot be reached or has it no more."""
        import datasets

        task = HUB[name]
        datasets.disable_progress_bars()
        try:
            data = datasets.load_dataset(task.path, task.config, revision=task.revision)
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise ValueError(
                f"Task {name!r} cannot be read from the hub ({task.path}): {str(error).strip().splitlines()[0]} For a "
                "folder of data give --data_dir or set ARGPRUNE_DATA."
            ) from error
        return Hub(name, task, data)

    @property
    def place(self) -> str:
        """Dataset and configuration."""
        return f"{self.task.path} {self.task.config}" if self.task.config else self.task.path

    @property
    def parts(self) -> Sequence[str]:
        """Those whose rows have labels."""
        return [part for part, split in self.task.parts.items() if split in self.data and self._labelled(part)]

    def read(self, part: str, parse: Parse[T]) -> list[T]:
        """Every row as `parse` takes it; ValueError says the row's number, from 1 on."""
        rows = []
        for number, row in enumerate(self.data[self.task.parts[part]], 1):
            try:
                rows.append(parse(self._shaped(part, row)))
            except ValueError as error:
                raise ValueError(f"{self.place}, {self.task.parts[part]}, row {number}: {error}") from error
        return rows

    def first(self, part: str) -> Mapping[str, Any] | None:
        """The first row; None where there is none."""
        split = self.data[self.task.parts[part]]
        return self._shaped(part, split[0]) if len(split) else None

    def _shaped(self, part: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.task.shape(row, self.data[self.task.parts[part]].features)

    def _labelled(self, part: str) -> bool:
        row = self.first(part)
        return row is not None and row.get("label") != -1


def _columns(**names: str) -> Shape:
    """Ours by theirs."""
    return lambda row, features: {ours: row[theirs] for ours, theirs in names.items()}


def _question(row: Mapping[str, Any], features: Any) -> Mapping[str, Any]:
    """A question a row: a paragraph of one question."""
    found = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
    answers = [{"text": text, "start": start} for text, start in found]
    return {"context": row["context"], "qas": [{"question": row["question"], "answers": answers}]}


def _tags(row: Mapping[str, Any], features: Any) -> Mapping[str, Any]:
    """Tags by their numbers, whose names the features know."""
    names = features["ner_tags"].feature.names
    return {"tokens": row["tokens"], "tags": [names[tag] for tag in row["ner_tags"]]}


_ONE = _columns(text="sentence", label="label")
_PAIR = _columns(text="sentence1", text_pair="sentence2", label="label")
_MNLI = {"train": "train", "dev_matched": "validation_matched", "dev_mismatched": "validation_mismatched"}
# Of datasets that were programs, which are no longer run, the hub keeps a copy in this branch.
_COPY = "refs/convert/parquet"


def _glue(config: str, shape: Shape, **parts: Any) -> HubTask:
    return HubTask("nyu-mll/glue", config, shape, **parts)


HUB: Mapping[str, HubTask] = {
    "cola": _glue("cola", _ONE),
    "sst2": _glue("sst2", _ONE),
    "mrpc": _glue("mrpc", _PAIR),
    "stsb": _glue("stsb", _PAIR),
    "qqp": _glue("qqp", _columns(text="question1", text_pair="question2", label="label")),
    "mnli": _glue("mnli", _columns(text="premise", text_pair="hypothesis", label="label"), parts=_MNLI),
    "qnli": _glue("qnli", _columns(text="question", text_pair="sentence", label="label")),
    "rte": _glue("rte", _PAIR),
    "wnli": _glue("wnli", _PAIR),
    "squad": HubTask("rajpurkar/squad", None, _question),
    "squad_v2": HubTask("rajpurkar/squad_v2", None, _question),
    "wnut17": HubTask("leondz/wnut_17", "wnut_17", _tags, revision=_COPY),
    "conll2003": HubTask("eriktks/conll2003", "conll2003", _tags, revision=_COPY),
    "e2e": HubTask(
        "tuetschek/e2e_nlg", None, _columns(mr="meaning_representation", ref="human_reference"), revision=_COPY
    ),
}
