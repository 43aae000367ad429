import gzip
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from argprune.tasks.data import list_tasks, load_classification, load_task
from argprune.tasks.stdlib_docs import MASK, PACKAGES, read_stdlib_docs
from argprune.tasks.texts import SPLITS, Classification, Row

WriteRows = Callable[[Path, list[dict[str, Any]]], None]


@pytest.fixture(scope="module")
def docs() -> Classification:
    return read_stdlib_docs()


def test_stdlib_docs_is_the_same_every_time(docs: Classification) -> None:
    assert read_stdlib_docs() == docs


def test_stdlib_docs_splits_are_disjoint_and_sized(docs: Classification) -> None:
    texts = {split: {row.text for row in docs.splits[split]} for split in SPLITS}
    assert not texts["train"] & texts["validation"]
    assert not texts["train"] & texts["test"]
    assert not texts["validation"] & texts["test"]
    total = sum(len(part) for part in texts.values())
    # Every Python so far has 2,700 to 3,100 such docstrings; three standard deviations of a hash split are 2.6 %.
    assert total > 2000
    assert abs(len(texts["train"]) / total - 0.7) < 0.03


def test_stdlib_docs_rows(docs: Classification) -> None:
    assert docs.labels == tuple(name for name in PACKAGES if importlib.util.find_spec(name))
    for split in SPLITS:
        assert {row.label for row in docs.splits[split]} == set(range(len(docs.labels)))
        for row in docs.splits[split]:
            assert len(row.text.split()) >= 5
            assert docs.labels[row.label].lower() not in row.text.lower()


def test_stdlib_docs_reads_what_is_there_and_imports_nothing(tmp_path: Path) -> None:
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        for i in range(40):
            body = f'"""{package} number {i} does {package.title()} things and more."""\nraise SystemExit\n'
            (tmp_path / package / f"m{i}.py").write_text(body)
    (tmp_path / "xml" / "wrong.py").write_text("def (:\n")
    (tmp_path / "xml" / "short.py").write_text('"""Only four words here"""\n')
    task = read_stdlib_docs(tmp_path)
    texts = [row.text for split in SPLITS for row in task.splits[split]]
    # The masked texts are the same in all packages, so the first package has them all.
    assert sorted(texts) == sorted(f"{MASK} number {i} does {MASK} things and more." for i in range(40))


def test_stdlib_docs_of_a_python_without_tkinter(tmp_path: Path) -> None:
    names = PACKAGES[2:]
    for name in names:
        (tmp_path / name).mkdir()
        for i in range(40):
            (tmp_path / name / f"m{i}.py").write_text(f'"""Text number {i} about what the {len(name)} does."""\n')
    with pytest.warns(UserWarning, match="lacks tkinter, idlelib: 6 labels instead of 8"):
        task = read_stdlib_docs(tmp_path)
    assert task.labels == names
    assert {row.label for split in SPLITS for row in task.splits[split]} < set(range(6))


def test_stdlib_docs_without_packages(tmp_path: Path) -> None:
    (tmp_path / "xml").mkdir()
    with pytest.raises(ValueError, match=r"holds 1 of tkinter, .*; use a whole Python"):
        read_stdlib_docs(tmp_path)


def test_folder_task(tiny_data: str) -> None:
    task = load_classification("words", tiny_data)
    assert {split: len(task.splits[split]) for split in SPLITS} == {
        "train": 160,
        "validation": 40,
        "test": 40,
    }
    assert task.labels == ["0", "1"]
    assert [info.name for info in list_tasks(tiny_data)] == ["stdlib-docs", "stdlib-lm", "words"]


def test_folder_task_without_test_part_holds_out_training_rows(tmp_path: Path, write_rows: WriteRows) -> None:
    train = [{"text": f"a {i}", "text_pair": "b", "label": i % 2} for i in range(400)]
    dev = [{"text": f"dev {i}", "text_pair": "b", "label": i % 2} for i in range(10)]
    write_rows(tmp_path / "pairs" / "train.jsonl.gz", train)
    write_rows(tmp_path / "pairs" / "dev.jsonl.gz", dev)
    task = load_task("pairs", tmp_path)
    assert [row.text for row in task.splits["test"]] == [row["text"] for row in dev]
    assert len(task.splits["train"]) + len(task.splits["validation"]) == 400
    assert 20 < len(task.splits["validation"]) < 60
    assert task.splits["train"][0].pair == "b"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", r"train.jsonl.gz, line 3: Expecting property name"),
        ('{"label": 1}', "line 3: column 'text' is missing; found label"),
        ('["a", 1]', "line 3: a row is a JSON object"),
        ('{"text": "a", "label": "x"}', "line 3: label 'x' is not an integer"),
        ('{"text": 5, "label": 1}', "line 3: text holds 5, which is no string"),
    ],
)
def test_corrupt_rows_name_file_and_line(tmp_path: Path, write_rows: WriteRows, line: str, message: str) -> None:
    write_rows(tmp_path / "t" / "dev.jsonl.gz", [{"text": "a", "label": 0}])
    good = '{"text": "a b", "label": 0}\n'
    with gzip.open(tmp_path / "t" / "train.jsonl.gz", "wt") as file:
        file.write(good + good + line + "\n")
    with pytest.raises(ValueError, match=message):
        load_task("t", tmp_path)


def test_truncated_gzip_names_file(tmp_path: Path, write_rows: WriteRows) -> None:
    write_rows(tmp_path / "t" / "dev.jsonl.gz", [{"text": "a", "label": 0}])
    path = tmp_path / "t" / "train.jsonl.gz"
    write_rows(path, [{"text": f"text {i} {hash(i)}", "label": 0} for i in range(500)])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"train.jsonl.gz, line \d+: "):
        load_task("t", tmp_path)


def test_a_task_of_another_kind_is_refused_where_labels_are_needed() -> None:
    with pytest.raises(ValueError, match=r"Task 'stdlib-lm' is of kind causal-lm; give one of classification"):
        load_classification("stdlib-lm")


def test_unknown_task_suggests(tiny_data: str) -> None:
    with pytest.raises(ValueError, match=r"Unknown task 'word'\. Did you mean 'words'"):
        load_task("word", tiny_data)
    with pytest.raises(ValueError, match="ARGPRUNE_DATA"):
        load_task("mrpc")


def test_empty_split_and_unseen_label() -> None:
    row = Row("a", 0)
    with pytest.raises(ValueError, match="split 'test' is empty"):
        Classification("t", ["x"], {"train": [row], "validation": [row]})
    with pytest.raises(ValueError, match=r"split 'test' has labels \[3\]"):
        Classification("t", ["x"], {"train": [row], "validation": [row], "test": [Row("a", 3)]})


@pytest.mark.parametrize(("name", "train", "test"), [("mrpc", 3668, 1725), ("rte", None, 277), ("cola", None, 1043)])
def test_real_data(data_dir: Path, name: str, train: int | None, test: int) -> None:
    task = load_task(name, data_dir)
    assert len(task.splits["test"]) == test
    assert train is None or len(task.splits["train"]) == train
