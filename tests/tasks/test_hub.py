"""Tasks of the hub, from local datasets of the hub's own columns: the same code reads them, through `datasets`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from argprune.tasks.data import load_task
from argprune.tasks.hub import HUB
from argprune.tasks.kinds import Answer, DataToText, Entities, Question, Sentence, SpanExtraction
from argprune.tasks.kinds.glue import GLUE
from argprune.tasks.texts import SPLITS, Classification, Regression, Row


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a dataset where `load_dataset` looks first: a folder of its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(path: str, config: str, splits: dict[str, list[dict[str, Any]]]) -> None:
        folder = tmp_path / path
        (folder / config).mkdir(parents=True)
        files = []
        for split, rows in splits.items():
            (folder / config / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            files.append(f"  - split: {split}\n    path: {config}/{split}.jsonl\n")
        (folder / "README.md").write_text(
            f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{''.join(files)}---\n"
        )

    return write


def glue(**columns: str) -> list[dict[str, Any]]:
    return [{**{name: f"{kind} {i}" for name, kind in columns.items()}, "label": i % 2, "idx": i} for i in range(40)]


def test_glue(hub: Any, tmp_path: Path) -> None:
    rows = glue(sentence1="one", sentence2="two")
    hub("nyu-mll/glue", "rte", {"train": rows, "validation": rows, "test": [row | {"label": -1} for row in rows]})
    task = load_task("rte")
    assert isinstance(task, Classification)
    assert task.labels == ("entailment", "not_entailment")
    # Without labels the hub's test is none: validation reports, and a tenth of train validates.
    assert len(task.splits["test"]) == 40
    assert len(task.splits["train"]) + len(task.splits["validation"]) == 40
    assert task.splits["test"][1] == Row("one 1", 1, "two 1")
    # What a folder of the same rows gives.
    folder = tmp_path / "data" / "rte"
    folder.mkdir(parents=True)
    for part in ("train", "dev"):
        text = "".join(
            json.dumps({"text": row["sentence1"], "text_pair": row["sentence2"], "label": row["label"]}) + "\n"
            for row in rows
        )
        (folder / f"{part}.jsonl").write_text(text)
    assert load_task("rte", tmp_path / "data") == task


def test_mnli_has_two_tests(hub: Any) -> None:
    rows = [row | {"label": row["idx"] % 3} for row in glue(premise="p", hypothesis="h")]
    parts = {"train": rows, "validation_matched": rows[:6], "validation_mismatched": rows[6:9]}
    hub("nyu-mll/glue", "mnli", parts)
    task = load_task("mnli")
    assert list(task.splits) == [*SPLITS, "test_mismatched"]
    assert [len(task.splits[split]) for split in ("test", "test_mismatched")] == [6, 3]


def test_stsb_is_a_regression(hub: Any) -> None:
    rows = [row | {"label": row["idx"] / 10} for row in glue(sentence1="one", sentence2="two")]
    hub("nyu-mll/glue", "stsb", {"train": rows, "validation": rows, "test": [row | {"label": -1.0} for row in rows]})
    task = load_task("stsb")
    assert isinstance(task, Regression)
    assert task.splits["test"][3].label == 0.3


def test_squad(hub: Any) -> None:
    rows = [
        {
            "id": str(i),
            "title": "t",
            "context": f"number {i} it is",
            "question": "which?",
            "answers": {"text": [str(i)] * (i % 2), "answer_start": [7] * (i % 2)},
        }
        for i in range(60)
    ]
    hub("rajpurkar/squad_v2", "squad_v2", {"train": rows, "validation": rows})
    task = load_task("squad_v2")
    assert isinstance(task, SpanExtraction)
    assert task.with_null
    assert task.splits["test"][:2] == [
        Question("which?", "number 0 it is", ()),
        Question("which?", "number 1 it is", (Answer("1", 7),)),
    ]


def test_entities_and_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which the hub has copies in a branch, which a folder has not: what `load_dataset` would give stands in."""
    names = datasets.Sequence(datasets.ClassLabel(names=["O", "B-person", "I-person"]))
    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": names})
    tagged = datasets.Dataset.from_list([{"tokens": ["a", "b"], "ner_tags": [0, 1]}], features=features)
    texts = datasets.Dataset.from_list([{"meaning_representation": "name[x]", "human_reference": "x."}])
    given = {"leondz/wnut_17": tagged, "tuetschek/e2e_nlg": texts}

    def load_dataset(path: str, config: str | None, revision: str | None) -> Any:
        assert revision == "refs/convert/parquet"
        return dict.fromkeys(SPLITS, given[path])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    entities, written = load_task("wnut17"), load_task("e2e")
    assert isinstance(entities, Entities)
    assert isinstance(written, DataToText)
    assert entities.splits["test"] == [Sentence(("a", "b"), ("O", "B-person"))]
    assert written.splits["test"][0].texts == ("x.",)


def test_what_is_refused(hub: Any) -> None:
    rows = glue(sentence="one")
    hub("nyu-mll/glue", "cola", {"train": rows, "validation": [*rows, {"sentence": "x", "label": 7, "idx": 9}]})
    with pytest.raises(ValueError, match=r"split 'test' has labels \[7\]; known: 0 to 1"):
        load_task("cola")
    with pytest.raises(ValueError, match=r"^Task 'qqp' cannot be read from the hub \(nyu-mll/glue\): .*ARGPRUNE_DATA"):
        load_task("qqp")
    assert set(GLUE) < set(HUB)


def test_bad_rows_say_where_they_are(hub: Any) -> None:
    rows = glue(sentence="one")
    hub("nyu-mll/glue", "sst2", {"train": [*rows, {"sentence": None, "label": 1, "idx": 9}], "validation": rows})
    with pytest.raises(ValueError, match=r"nyu-mll/glue sst2, train, row 41: text holds None, which is no string"):
        load_task("sst2")
