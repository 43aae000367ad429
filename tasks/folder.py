"""Tasks of rows: from a folder, a file or the hub. What the rows hold says which kind of task they are.

    text, label (and text_pair)                 classification, or regression
    tokens, tags                                named entities
    context, qas                                extractive question answering
    mr, ref    or    triples, refs              data-to-text

docs/how-to/data.md says the same with all the formats, and `argprune.tasks.sources` how rows become splits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from argprune.tasks.kinds import Answer, DataToText, Described, Entities, Question, Sentence, SpanExtraction
from argprune.tasks.kinds.entities import tag_names
from argprune.tasks.labelled import read_labelled
from argprune.tasks.sources import DEV, TRAIN, Files, Source, holds_rows, part_of, read_splits, training_part
from argprune.tasks.task_options import DEFAULTS, TaskOptions
from argprune.tasks.texts import Task

LABELLED = "classification"


def folder_tasks(data_dir: Path) -> dict[str, str]:
    """The tasks of rows in a data folder, by name, and what kind they are."""
    kinds = {folder.name: _listed_kind(folder) for folder in sorted(data_dir.iterdir())} if data_dir.is_dir() else {}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def read_folder(path: Path, options: TaskOptions = DEFAULTS) -> Task:
    """The task in a folder or a file. Raises ValueError with file and line for a corrupt row or a missing column."""
    return read_task(Files.of(path), options)


def read_task(source: Source, options: TaskOptions) -> Task:
    """The task of a source's rows, of the kind that its first training row is of."""
    first = source.first(training_part(source))
    if first is None:
        raise ValueError(f"{source.place}: part {training_part(source)!r} is empty; every part needs rows.")
    return _READERS[_kind(first)](source, options)


def _kind(row: Mapping[str, Any]) -> str:
    for kind, columns in _COLUMNS:
        if columns <= set(row):
            return kind
    return LABELLED


def _listed_kind(folder: Path) -> str | None:
    """What a list says of a folder; None of one that is no task of rows."""
    try:
        if not holds_rows(folder):
            return None
        files = Files.of(folder)
        if not (part_of(files, TRAIN) and part_of(files, DEV)):
            return None
        row = files.first(training_part(files))
    except ValueError:
        # Reading the task says what is wrong, with the line; a list only asks whether it may be one.
        return LABELLED
    except OSError:
        return None
    if row is None:
        return None
    kind = _kind(row)
    if kind != LABELLED:
        return kind
    if not {"text", "label"} <= set(row):
        return None
    return "regression" if isinstance(row["label"], float) else LABELLED


def _read_entities(source: Source, options: TaskOptions) -> Task:
    options.refuse("named entities")
    labels = tag_names(source.read(training_part(source), _sentence))

    def parse(row: Mapping[str, Any]) -> Sentence:
        sentence = _sentence(row)
        unseen = sorted(set(sentence.tags) - set(labels))
        if unseen:
            raise ValueError(f"tag {unseen[0]!r} is of no type in train; known: {', '.join(labels)}")
        return sentence

    return Entities(source.name, labels, read_splits(source, parse, lambda row: " ".join(row.words)))


def _sentence(row: Mapping[str, Any]) -> Sentence:
    tokens, tags = (_texts(row, name) for name in ("tokens", "tags"))
    return Sentence(tuple(tokens), tuple(tags))


def _read_spans(source: Source, options: TaskOptions) -> Task:
    options.refuse("question answering", "null_threshold")
    read = read_splits(source, _paragraph, lambda questions: questions[0].context if questions else "")
    splits = {split: [row for paragraph in rows for row in paragraph] for split, rows in read.items()}
    # Where an answer stands several times, which place is meant is a guess: nothing is to be learned from it, while
    # what is measured are answers' texts.
    splits["train"] = [row for row in splits["train"] if row.certain]
    return SpanExtraction(source.name, splits, **options.given("null_threshold"))


def _paragraph(row: Mapping[str, Any]) -> list[Question]:
    context, questions = _string(row, "context"), _column(row, "qas")
    if not isinstance(questions, list):
        raise ValueError(f"qas must be a list, not {type(questions).__name__}")
    return [_question(context, question) for question in questions]


def _question(context: str, value: Any) -> Question:
    if not isinstance(value, dict):
        raise ValueError(f"qas holds {value!r}, which is no object with a question")
    text, answers = _string(value, "question"), value.get("answers", [])
    if not isinstance(answers, list):
        raise ValueError(f"question {text!r}: answers must be a list")
    certain = value.get("start_unique", True) is not False
    return Question(text, context, tuple(_answer(answer) for answer in answers), certain)


def _answer(value: Any) -> Answer:
    start = value.get("start", value.get("answer_start")) if isinstance(value, dict) else None
    if not isinstance(start, int):
        raise ValueError(f"answer {value!r} is no object with text and start")
    return Answer(_string(value, "text"), start)


def _read_representations(source: Source, options: TaskOptions) -> Task:
    return _read_texts(source, options, _representation)


def _read_triples(source: Source, options: TaskOptions) -> Task:
    return _read_texts(source, options, _triples)


def _read_texts(source: Source, options: TaskOptions, parse: Callable[[Mapping[str, Any]], Described]) -> Task:
    options.refuse("data-to-text", "objective", "beams", "new_tokens")
    splits = read_splits(source, parse, lambda row: row.source)
    grouped = {split: _grouped(rows) for split, rows in splits.items()}
    # One text after another is learned, and all of a source are what is written for it measured against.
    train = [Described(row.source, (text,)) for row in grouped["train"] for text in row.texts]
    given = options.given("beams", "new_tokens")
    if options.objective is not None:
        given["kind"] = options.objective
    return DataToText(source.name, {**grouped, "train": train}, **given)


def _grouped(rows: Sequence[Described]) -> list[Described]:
    texts: dict[str, list[str]] = {}
    for row in rows:
        texts.setdefault(row.source, []).extend(row.texts)
    return [Described(source, tuple(dict.fromkeys(own))) for source, own in texts.items()]


def _representation(row: Mapping[str, Any]) -> Described:
    return Described(_string(row, "mr"), (_string(row, "ref"),))


def _triples(row: Mapping[str, Any]) -> Described:
    triples, texts = _texts(row, "triples"), _texts(row, "refs")
    return Described(" && ".join(triple.replace("_", " ") for triple in triples), tuple(texts))


def _texts(row: Mapping[str, Any], name: str) -> list[str]:
    values = _column(row, name)
    if not isinstance(values, list):
        raise ValueError(f"{name} must be a list of strings, not {type(values).__name__}")
    return [_checked(value, name) for value in values]


def _string(row: Mapping[str, Any], name: str) -> str:
    return _checked(_column(row, name), name)


def _column(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise ValueError(f"column {name!r} is missing; found {', '.join(sorted(row))}")
    return row[name]


def _checked(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} holds {value!r}, which is no string")
    # JSON can spell halves of characters, which no tokenizer takes.
    value.encode()
    return value


_Reader = Callable[[Source, TaskOptions], Task]
_ENTITIES, _SPANS, _REPRESENTATIONS, _TRIPLES = (
    "named entities",
    "question answering",
    "data-to-text",
    "data-to-text of triples",
)
_COLUMNS: Sequence[tuple[str, frozenset[str]]] = (
    (_ENTITIES, frozenset({"tokens", "tags"})),
    (_SPANS, frozenset({"context", "qas"})),
    (_REPRESENTATIONS, frozenset({"mr", "ref"})),
    (_TRIPLES, frozenset({"triples", "refs"})),
)
_READERS: Mapping[str, _Reader] = {
    LABELLED: read_labelled,
    _ENTITIES: _read_entities,
    _SPANS: _read_spans,
    _REPRESENTATIONS: _read_representations,
    _TRIPLES: _read_triples,
}
