"""A user's own CSV, TSV or JSON lines as a task, by the names of its columns; and what is said of bad files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argprune import prune
from argprune.cli import main
from argprune.tasks.data import EMBEDDED, list_tasks, load_task
from argprune.tasks.task_options import TaskOptions
from argprune.tasks.texts import SPLITS, Classification, Graded, Regression, Row

COLUMNS = TaskOptions(text_column="review", label_column="stars")


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def load(path: Path, options: TaskOptions = COLUMNS) -> Any:
    return load_task(str(path), options=options)


def parts(folder: Path, ending: str, text: str) -> Path:
    for part in ("train", "dev", "test"):
        write(folder / f"{part}.{ending}", text)
    return folder


def test_the_same_rows_in_every_format(tmp_path: Path) -> None:
    rows = [("good, really", "pos"), ('a "bad" one', "neg"), ("so so", "pos")]
    table = io.StringIO()
    csv.writer(table).writerows([("review", "stars"), *rows])
    formats = {
        "csv": table.getvalue(),
        "csv.gz": "\ufeff" + table.getvalue(),
        "tsv": "review\tstars\n" + "".join(f"{text}\t{label}\n" for text, label in rows),
        "jsonl": "\n".join(json.dumps({"stars": label, "review": text}) for text, label in rows) + "\n\n",
    }
    for ending, text in formats.items():
        task = load(parts(tmp_path / ending, ending, text))
        assert isinstance(task, Classification)
        assert (task.labels, task.metric, task.name) == (["neg", "pos"], "accuracy", ending)
        for split in SPLITS:
            assert task.splits[split] == [Row(text, int(label == "pos")) for text, label in rows]


def test_numbers_may_be_classes_or_values(tmp_path: Path) -> None:
    folder = parts(tmp_path / "stars", "csv", "review,other,stars\na,x,10\nb,y,9\nc,z,10\n")
    assert load(folder).labels == ["9", "10"]
    options = TaskOptions(text_column="review", label_column="stars", pair_column="other", objective="regression")
    task = load(folder, options)
    assert isinstance(task, Regression)
    assert task.splits["test"][0] == Graded("a", 10.0, "x")
    with pytest.raises(ValueError, match="objective 'masked-lm' of texts with labels; choose classification"):
        load(folder, TaskOptions(objective="masked-lm"))


@pytest.mark.parametrize(
    ("ending", "labels", "regression"),
    [
        ("csv", ["1", "2.5", "4"], True),
        ("csv", ["0.0", "1.0", "1.0"], False),
        ("csv", ["1", "2.5", "many"], False),
        ("csv", ["1", "2.5", "nan"], False),
        ("jsonl", [5, 3.8, 2], True),
        ("jsonl", [1.0, 2.0, 1.0], True),
        ("jsonl", [0, 1, 2], False),
    ],
)
def test_labels_with_a_fraction_are_numbers(tmp_path: Path, ending: str, labels: list[Any], regression: bool) -> None:
    """Wherever they stand; in a table "1.0" may be a class."""
    rows = [
        f"t{i},{label}" if ending == "csv" else json.dumps({"text": f"t{i}", "label": label})
        for i, label in enumerate(labels)
    ]
    head = "text,label\n" if ending == "csv" else ""
    task = load(parts(tmp_path, ending, head + "\n".join(rows)), TaskOptions())
    if regression:
        assert isinstance(task, Regression)
        assert [row.label for row in task.splits["train"]] == [float(label) for label in labels]
    else:
        assert task.labels == sorted({str(label) for label in labels})


def test_glues_tasks_have_glues_labels(tmp_path: Path) -> None:
    """Also where a file has some of them only, or whole numbers where values are meant."""
    task = load(parts(tmp_path / "mrpc", "csv", "text,text_pair,label\na,b,1\n"), TaskOptions())
    assert (task.metric, task.splits["test"], len(task.labels)) == ("combined_score", [Row("a", 1, "b")], 2)
    named = load(parts(tmp_path / "rte", "csv", "text,text_pair,label\na,b,not_entailment\n"), TaskOptions())
    assert named.splits["test"] == [Row("a", 1, "b")]
    for ending, text in (
        ("csv", "text,text_pair,label\na,b,3\n"),
        ("jsonl", '{"text": "a", "text_pair": "b", "label": 3}'),
    ):
        graded = load(parts(tmp_path / ending / "stsb", ending, text), TaskOptions())
        assert isinstance(graded, Regression)
        assert graded.splits["test"] == [Graded("a", 3.0, "b")]


def test_all_rows_have_a_second_text_or_none(tmp_path: Path) -> None:
    pair, single = '{"text": "a", "text_pair": "b", "label": 0}\n', '{"text": "a", "label": 0}\n'
    null = '{"text": "a", "text_pair": null, "label": 0}\n'
    for name, text, message in (
        ("missing", pair + single, r"train\.jsonl, line 2: column 'text_pair' is missing"),
        ("null", pair + null, r"train\.jsonl, line 2: text_pair holds None, which is no string"),
        ("there", null + pair, r"line 2: text_pair is there, but the first row of train has none; give all rows one"),
    ):
        with pytest.raises(ValueError, match=message):
            load(parts(tmp_path / name, "jsonl", text), TaskOptions())
    folder = parts(tmp_path / "dev", "jsonl", pair)
    write(folder / "dev.jsonl", single)
    with pytest.raises(ValueError, match=r"dev\.jsonl, line 1: column 'text_pair' is missing"):
        load(folder, TaskOptions())


def test_a_folder_in_the_data_folder_is_read_before_the_hub_is_asked(tmp_path: Path) -> None:
    parts(tmp_path / "reviews", "csv", "review,stars\na,1\nb,2\n")
    assert load_task("reviews", tmp_path, COLUMNS).splits["test"] == [Row("a", 0), Row("b", 1)]
    parts(tmp_path / "sst2", "tsv", "sentence\tlabel\na\t1\n")
    with pytest.raises(ValueError, match=r"sst2/train\.tsv, line 2: column 'text' is missing; found label, sentence"):
        load_task("sst2", tmp_path)
    write(tmp_path / "cola" / "train.jsonl", '{"text": "a", "label": 1}')
    with pytest.raises(ValueError, match=r"cola: needs a train part and a dev part.*; has train"):
        load_task("cola", tmp_path)
    write(parts(tmp_path / "empty", "csv", "text,label\na,1\n") / "train.csv", "")
    with pytest.raises(ValueError, match=r"empty: part 'train' is empty"):
        load_task("empty", tmp_path)


def test_a_folder_that_cannot_be_read_takes_no_other_with_it(tmp_path: Path) -> None:
    parts(tmp_path / "good", "csv", "text,label\na,1\n")
    twice = parts(tmp_path / "twice", "jsonl", '{"text": "a", "label": 1}')
    write(twice / "train.jsonl.gz", '{"text": "a", "label": 1}')
    assert {"good", "twice"} < {info.name for info in list_tasks(tmp_path)}
    assert load_task("good", tmp_path).name == "good"
    with pytest.raises(ValueError, match="are both part 'train'; keep one of them"):
        load_task("twice", tmp_path)


def test_one_file_is_cut_by_a_hash_of_its_texts(tmp_path: Path) -> None:
    text = "review,stars\n" + "".join(f"example {i},{i % 3}\n" for i in range(600))
    task = load(write(tmp_path / "all.csv", text))
    sizes = [len(task.splits[split]) for split in SPLITS]
    assert sum(sizes) == 600
    # Three standard deviations of a hash split.
    assert sizes == [pytest.approx(480, abs=30), pytest.approx(60, abs=22), pytest.approx(60, abs=22)]
    # The order of the rows makes no difference to where they are.
    lines = text.splitlines()
    other = load(write(tmp_path / "other.csv", "\n".join([lines[0], *lines[:0:-1]])))
    assert {row.text for row in other.splits["test"]} == {row.text for row in task.splits["test"]}


def test_first_rows(tmp_path: Path) -> None:
    folder = parts(tmp_path, "csv", "text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(9)))
    task = load(folder, TaskOptions(train_rows=4, eval_rows=2))
    assert [len(task.splits[split]) for split in SPLITS] == [4, 2, 2]
    assert task.splits["train"][3].text == "t3"


@pytest.mark.parametrize(
    ("ending", "text", "message"),
    [
        ("csv", "review,rating\na,1\n", r"train\.csv, line 2: column 'stars' is missing; found rating, review"),
        ("csv", "review,stars\na,1\nb\n", r"train\.csv, line 3: 1 cells, but there are 2 columns: review, stars"),
        ("csv", "review,stars,stars\na,1,2\n", r"train\.csv, line 1: column 'stars' is there twice"),
        ("csv", 'review,stars\n"a\nb,1\n', r"train\.csv, line 3: unexpected end of data"),
        ("csv", "review,stars\na, \n", r"train\.csv, line 2: label ' ' is neither a text nor a whole number"),
        ("csv", b"review,stars\nok,1\n\xff,1\n", r"train\.csv, line 3: byte 0xff is no UTF-8 \(invalid start byte\)"),
        ("tsv", "review\tstars\na\tb\tc\n", r"train\.tsv, line 2: 3 cells, but there are 2 columns"),
        ("jsonl", '{"review": "a", "stars": null}\n', r"train\.jsonl, line 1: label None is neither a text nor"),
        ("jsonl", "[" * 9999 + "\n", r"train\.jsonl, line 1: (values are nested too deep|Expecting value)"),
        ("jsonl", '{"review": "\\ud800", "stars": 1}\n', r"train\.jsonl, line 1: .*surrogates not allowed"),
        ("csv.gz", b"no gzip", r"train\.csv\.gz, line 1: Not a gzipped file"),
        ("csv", "review,stars\n", r"part 'train' is empty; every part needs rows"),
        ("csv", "", r"part 'train' is empty; every part needs rows"),
    ],
)
def test_bad_files(tmp_path: Path, ending: str, text: str | bytes, message: str) -> None:
    parts(tmp_path, ending, "review,stars\na,1\n")
    path = tmp_path / f"train.{ending}"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_labels_that_train_lacks(tmp_path: Path) -> None:
    parts(tmp_path, "csv", "review,stars\na,good\nb,bad\n")
    write(tmp_path / "dev.csv", "review,stars\na,good\nb,fair\n")
    with pytest.raises(ValueError, match=r"dev\.csv, line 3: label 'fair' is not among those of train: bad, good"):
        load(tmp_path)


def test_messages_stay_short(tmp_path: Path) -> None:
    parts(tmp_path, "csv", "text,label\n" + "".join(f"t{i},label {i:03} {'x' * 99}\n" for i in range(50)))
    write(tmp_path / "dev.csv", f"text,label\na,{'y' * 9999}\n")
    with pytest.raises(ValueError, match=r"line 2: label .yyy.*among those of train: label 000 .*, \.\.\.$") as caught:
        load(tmp_path, TaskOptions())
    assert len(str(caught.value)) < 1000


def test_what_is_no_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"all\.xlsx: rows are in files that end with \.jsonl\.gz, "):
        load(write(tmp_path / "all.xlsx", "x"))
    with pytest.raises(ValueError, match=r"needs a train part and a dev part.*; has train"):
        load(write(tmp_path / "one" / "train.csv", "review,stars\na,b\n").parent)
    folder = parts(tmp_path / "twice", "csv", "review,stars\na,b\n")
    write(folder / "train.tsv", "review\tstars\na\tb\n")
    with pytest.raises(ValueError, match=r"train\.csv and train\.tsv are both part 'train'; keep one of them"):
        load(folder)
    with pytest.raises(ValueError, match=r"objective 'dreaming'; choose of classification, regression"):
        TaskOptions(objective="dreaming")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="eval_rows 0: it must be at least 1"):
        TaskOptions(eval_rows=0)
    with pytest.raises(ValueError, match="beams 4 is no option of texts with labels; leave it out"):
        load(parts(tmp_path / "beams", "csv", "text,label\na,b\n"), TaskOptions(beams=4))
    embedded = Classification("stdlib-docs", ["a"], dict.fromkeys(SPLITS, (Row("text", 0),)))
    monkeypatch.setitem(EMBEDDED, "stdlib-docs", ("", lambda: embedded))
    with pytest.raises(ValueError, match="text_column 'x' is no option of task stdlib-docs; leave it out"):
        load_task("stdlib-docs", options=TaskOptions(text_column="x"))


def outcome(folder: Path) -> tuple[str, Any]:
    """What is said of a folder's files, or their task."""
    try:
        return "", load_task(str(folder))
    except ValueError as error:
        return str(error), None


@given(st.binary(max_size=60), st.sampled_from(["csv", "tsv", "jsonl", "conll", "jsonl.gz"]), st.booleans())
def test_whatever_a_file_holds_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, ending: str, headed: bool
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    head = {"csv": b"text,label\n", "tsv": b"text\tlabel\n", "jsonl": b'{"text": "a", "label": 1}\n'}
    content = head.get(ending, b"a O\n") + data if headed else data
    for part in ("train", "dev", "test"):
        (folder / f"{part}.{ending}").write_bytes(content)
    error, task = outcome(folder)
    if task is None:
        assert re.fullmatch(r"[^\n]*(line \d+: .|is empty; every)[^\n]*", error)
    else:
        assert all(task.splits[split] for split in SPLITS)


def test_the_command_line(tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        tmp_path / "mine.csv", "question,reply,kind\n" + "".join(f"w{i},w{i % 7},{'ab'[i % 2]}\n" for i in range(60))
    )
    columns = ["--text-column", "question", "--pair-column", "reply", "--label-column", "kind", "--train-rows", "20"]
    run = ["--max-steps", "2", "--batch-size", "4", "--max-length", "12", "-q", "--output", str(tmp_path / "run")]
    model = ["--model", tiny_model, "--method", "magnitude", "--sparsity", "0.5"]
    assert main(["prune", "--task", str(path), *model, *columns, *run]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["rows"]["train"] == 20
    assert metrics["config"]["pair_column"] == "reply"
    # The options are part of the run: its configuration repeats it, and another column is another run.
    config = tmp_path / "run" / "config.yaml"
    again = ["prune", "--config", str(config), "--output", str(tmp_path / "again"), "-q", "--dense"]
    assert main([*again, str(tmp_path / "run" / "dense")]) == 0
    assert json.loads((tmp_path / "again" / "metrics.json").read_text())["pruned"] == metrics["pruned"]
    with pytest.raises(ValueError, match="has pair_column 'reply', this run None; they must agree"):
        prune(
            tiny_model,
            str(path),
            method="magnitude",
            sparsity=0.5,
            output=tmp_path / "third",
            dense=tmp_path / "run" / "dense",
            **{key: value for key, value in metrics["config"].items() if key in ("text_column", "label_column")},
            **{key: metrics["config"][key] for key in ("max_steps", "batch_size", "max_length", "train_rows")},
        )
    assert main(["prune", "--task", str(path), *model, *run[:-1], str(tmp_path / "fourth")]) == 2
    assert "mine.csv, line 2: column 'label' is missing; found kind, question, reply" in capsys.readouterr().err
