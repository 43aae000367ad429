"""The table of a study's results."""

from __future__ import annotations

import csv
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fake_runs import BASE, Instant, run, study

from argprune.tasks.studies import Study, collect, run_study, table
from argprune.tasks.studies.table import read_table


def finished(folder: Path, name: str, *, seed: int = 0, score: float = 0.5, **config: Any) -> None:
    """A run's folder, with as much in it as the table reads."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    content = {
        "method": "rpp",
        "seed": seed,
        "dense": None,
        "pruned": {"test": {"accuracy": score}},
        "sparsity": {"target": 0.5},
        "config": {**BASE, "output": name, "dense": None, **config},
    }
    (folder / name / "metrics.json").write_text(json.dumps(content))


def failed(folder: Path, name: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "error.json").write_text(json.dumps({"error": "it broke", "exit_status": 1}))


def scores(path: Path) -> list[tuple[str, str, str]]:
    return [(row["run"], row["precision"], row["test_accuracy"]) for row in read_table(path)]


def test_runs_made_by_hand(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 1)):
        finished(tmp_path, name, seed=seed, method={"name": "rpp", "eps_rw": seed})
    rows = collect(tmp_path, tmp_path / "table.csv")
    assert [(row["run"], row["seed"], row["option.method.eps_rw"]) for row in rows] == [
        ("one", 0, 0),
        ("two", 1, 1),
    ]
    (tmp_path / "two" / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"two/metrics\.json: not valid JSON"):
        collect(tmp_path, tmp_path / "table.csv")
    (tmp_path / "two" / "metrics.json").write_text("[]")
    with pytest.raises(ValueError, match="not a JSON object"):
        collect(tmp_path, tmp_path / "table.csv")


def test_rows_of_other_runs_stay(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    finished(tmp_path / "a", "one", score=0.1, precision="fp32")
    finished(tmp_path / "a", "two", score=0.2, seed=1, precision="fp32", epochs=2)
    collect(tmp_path / "a", path)
    finished(tmp_path / "b", "one", score=0.3, precision="fp32")
    finished(tmp_path / "b", "three", score=0.4, seed=2, precision="fp32", steps=9)
    assert [row["run"] for row in collect(tmp_path / "b", path)] == ["one", "three"]
    assert scores(path) == [("one", "fp32", "0.3"), ("two", "fp32", "0.2"), ("three", "fp32", "0.4")]
    rows = read_table(path)
    assert [row["option.epochs"] for row in rows] == ["", "2", ""]
    assert [row["option.steps"] for row in rows] == ["", "", "9"]
    before = path.read_bytes()
    collect(tmp_path / "b", path)
    assert path.read_bytes() == before


def test_what_is_collected_at_the_same_time_is_all_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, between = tmp_path / "table.csv", threading.Event()
    for name in ("a", "b"):
        finished(tmp_path / name, name, precision="fp32")
    write = table._write

    def slowly(*arguments: Any) -> None:
        between.set()
        time.sleep(0.5)
        write(*arguments)

    with ThreadPoolExecutor() as pool:
        monkeypatch.setattr(table, "_write", slowly)
        first = pool.submit(collect, tmp_path / "a", path)
        assert between.wait(60)
        monkeypatch.setattr(table, "_write", write)
        collect(tmp_path / "b", path)
        first.result()
    assert [run for run, *_ in scores(path)] == ["a", "b"]


def test_a_run_in_another_precision_is_another_row(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    for precision, score in (("fp32", 0.1), ("bf16", 0.2), ("bf16", 0.3)):
        finished(tmp_path / "a", "one", score=score, precision=precision)
        collect(tmp_path / "a", path)
    assert sorted(scores(path)) == [("one", "bf16", "0.3"), ("one", "fp32", "0.1")]


def test_a_failed_run_is_replaced_when_it_finished(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    failed(tmp_path / "a", "one")
    assert collect(tmp_path / "a", path)[0]["status"] == "failed"
    finished(tmp_path / "b", "one", precision="bf16")
    collect(tmp_path / "b", path)
    assert scores(path) == [("one", "bf16", "0.5")]


def test_a_run_that_fails_where_it_had_finished_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    finished(tmp_path / "a", "one", precision="fp32")
    collect(tmp_path / "a", path)
    failed(tmp_path / "b", "one")
    for _ in range(2):
        collect(tmp_path / "b", path)
    assert sorted(row["status"] for row in read_table(path)) == ["failed", "finished"]
    assert ("one", "fp32", "0.5") in scores(path)


def test_nothing_to_collect_leaves_the_table(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    finished(tmp_path / "a", "one", precision="fp32")
    collect(tmp_path / "a", path)
    assert collect(Study(tmp_path / "none", grid={"seed": 0}, base=BASE), path) == []
    assert scores(path) == [("one", "fp32", "0.5")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no column 'run'"),
        (b"name,value\nx,1\n", "no column 'run'"),
        (b"\xff\xfe", "not a table of a study: 'utf-8'"),
        (b"run,task,model,method,sparsity_target,seed,precision,status\nx,y\n", "row 2 has another number of cells"),
    ],
)
def test_another_file_is_not_touched(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    finished(tmp_path / "a", "one")
    with pytest.raises(ValueError, match=said):
        collect(tmp_path / "a", path)
    assert path.read_bytes() == content


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot write the table: Is a directory"):
        collect(Study(tmp_path / "runs", grid={"seed": 0}, base=BASE), tmp_path)


def test_rows_are_sorted_as_numbers(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    for seed in (10, 9):
        finished(tmp_path / str(seed), f"seed{seed}", seed=seed)
        collect(tmp_path / str(seed), path)
    with path.open(newline="") as file:
        assert [row["seed"] for row in csv.DictReader(file)] == ["9", "10"]


def test_collect(tmp_path: Path, fake: list[str]) -> None:
    grid = [
        {"method": {"name": "rpp", "eps_rw": 0.1}, "method.eps_rw": [0.2, 0.1], "sparsity": [0.9, 0.5]},
        {"fake": "fail", "include": [["a", "b"]]},
    ]
    the_study = study(tmp_path, grid, base={"epochs": 2})
    run(the_study, fake)
    rows = collect(the_study, tmp_path / "new" / "table.csv")
    read = read_table(tmp_path / "new" / "table.csv")
    assert [row["run"] for row in read] == [row["run"] for row in rows]
    assert [(row["method"], row["sparsity_target"], row["status"]) for row in read] == [
        ("dense", "0.0", "finished"),
        ("magnitude", "0.5", "failed"),
        *[("rpp", sparsity, "finished") for sparsity in ("0.5", "0.5", "0.9", "0.9")],
    ]
    assert list(read[0]) == [
        *("run", "method", "task", "model", "seed"),
        *(
            "sparsity_target",
            "sparsity_encoder",
            "sparsity_model",
            "compression_encoder",
            "compression_model",
        ),
        *("test_accuracy", "test_f1", "validation_accuracy"),
        *("dense_test_accuracy", "dense_test_f1", "dense_validation_accuracy"),
        *("steps", "seconds_train", "precision", "option.fake", "option.include", "option.method.eps_rw"),
        *("report.resumed", "status", "error"),
    ]
    last = read[-1]
    assert (last["sparsity_model"], last["compression_encoder"], last["compression_model"]) == (
        "0.45",
        "2.0",
        "",
    )
    assert (last["test_accuracy"], last["dense_test_accuracy"], last["seconds_train"]) == (
        "0.81",
        "0.88",
        "1.5",
    )
    assert sorted(row["option.method.eps_rw"] for row in read) == ["", "", "0.1", "0.1", "0.2", "0.2"]
    assert (read[1]["error"], read[1]["option.include"], read[1]["steps"]) == ("it [broke]", '["a", "b"]', "")
    assert collect(the_study.output, tmp_path / "again.csv") == rows
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "new" / "table.csv").read_text()


def test_collect_has_no_row_for_what_is_left(tmp_path: Path) -> None:
    the_study = study(tmp_path, {"seed": [0, 1]})
    assert collect(the_study, tmp_path / "table.csv") == []
    assert read_table(tmp_path / "table.csv") == []
    with pytest.raises(ValueError, match=r"runs: no such folder\."):
        collect(the_study.output, tmp_path / "table.csv")
    run_study(the_study, executor=Instant(killed="dense"))
    with pytest.raises(ValueError, match=r"runs: no finished or failed run"):
        collect(the_study.output, tmp_path / "table.csv")
