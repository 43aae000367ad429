"""Tuning: what is searched, what is chosen and from what, that nothing hangs on kills or on what runs beside what."""

from __future__ import annotations

import csv
import json
import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from argprune.tasks.studies import Ended, Job, Study, StudyOutcome, collect, load_study, run_study
from argprune.tasks.studies.search import Choice, Range, Tuning, read_tuning, tuning_to_data
from argprune.tasks.studies.suggest import Database, Scored
from argprune.tasks.studies.tuning import resolved_points

optuna = pytest.importorskip("optuna", reason="needs the extra `tune`")

BASE = {"model": "minilm", "task": "stdlib-docs"}
SPACE = {"learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}}


class Measured:
    """An executor whose runs score by their learning rate: best at 1e-3 on validation, at 1e-5 on test."""

    def __init__(
        self,
        slots: int = 1,
        *,
        chance: random.Random | None = None,
        stop_after: int | None = None,
        fails: str = "$^",
        score: float | None = None,
        loss: bool = False,
    ) -> None:
        self.slots, self.chance, self.stop_after = slots, chance, stop_after
        self.fails, self.score, self.loss = fails, score, loss
        self.running: list[Job] = []
        self.started: list[str] = []

    def start(self, job: Job) -> None:
        self.running.append(job)
        self.started.append(job.name)

    def wait(self, timeout: float) -> Ended | None:
        if self.stop_after is not None and self.stop_after <= 0:
            raise KeyboardInterrupt
        job = self.running.pop(self.chance.randrange(len(self.running)) if self.chance else 0)
        if self.stop_after is not None:
            self.stop_after -= 1
        options = yaml.safe_load(Path(job.arguments[2]).read_text())
        rate = float(options.get("learning_rate", 1e-4))
        if re.search(self.fails, job.name) or rate > float(options.get("diverges_above", 1)):
            return Ended(job.name, 1, "argprune: error: loss is nan")
        folder = Path(job.arguments[4])
        folder.mkdir(parents=True, exist_ok=True)
        validation = -abs(rate - 1e-3) if self.score is None else self.score
        metrics = {
            **{key: options[key] for key in ("task", "model", "seed")},
            "method": options["method"],
            "metric": "perplexity" if self.loss else "accuracy",
            "pruned": {"validation": {}, "test": {}},
            "dense": {"validation": {}, "test": {}},
            "sparsity": {"target": options["sparsity"]},
            "config": options,
        }
        metrics["pruned"]["validation"][metrics["metric"]] = validation
        metrics["pruned"]["test"][metrics["metric"]] = -abs(rate - 1e-5)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        return Ended(job.name, 0, "")

    def stop(self) -> None:
        self.running.clear()


def study(output: Path, tune: dict[str, Any], grid: Any = None, **base: Any) -> Study:
    grid = grid or {"method": ["rpp", "magnitude"], "sparsity": [0.5, 0.9], "seed": [1, 2]}
    return Study(output / "runs", grid=grid, base={**BASE, **base}, tune=read_tuning(tune))


def record(the_study: Study) -> dict[str, Any]:
    return dict(json.loads((the_study.output / "tuning.json").read_text()))


def values(the_study: Study) -> dict[str, list[Any]]:
    return {
        search["options"]["method"]: [trial["values"] for trial in search["trials"]]
        for search in record(the_study)["searches"]
    }


def test_the_best_on_validation_serves_the_points(tmp_path: Path) -> None:
    rates = [1e-4, 1e-3, 5e-3]
    the_study = study(tmp_path, {"space": {"learning_rate": rates}, "sampler": "grid", "at": {"sparsity": 0.9}})
    executor = Measured()
    outcome = run_study(the_study, executor=executor)
    assert outcome.ok
    # Eight points and two references; the trials, and the reference of their seed, are for tuning alone.
    assert len(outcome.finished) == 10
    assert len(executor.started) == len(set(executor.started)) == 10 + 2 * 3 + 1
    assert values(the_study) == {method: [{"learning_rate": rate} for rate in rates] for method in ("rpp", "magnitude")}
    assert [search["chosen"] for search in record(the_study)["searches"]] == [1, 1]
    points = resolved_points(the_study)
    assert {point.name for point in points} == set(outcome.finished)
    assert {point.options.get("learning_rate") for point in points} == {None, 1e-3}
    rows = collect(the_study, tmp_path / "table.csv")
    assert len(rows) == 10
    assert {row["option.learning_rate"] for row in rows if row["method"] == "rpp"} == {1e-3}
    with (the_study.output / "tuning.csv").open(newline="") as file:
        trials = list(csv.DictReader(file))
    assert [trial["chosen"] for trial in trials] == ["", "yes", ""] * 2
    assert [float(trial["validation"]) for trial in trials[:2]] == [pytest.approx(-9e-4), 0]


def test_trials_are_points_where_they_agree(tmp_path: Path) -> None:
    tune = {"space": {"learning_rate": [1e-3, 1e-4]}, "sampler": "grid", "at": {"sparsity": 0.9, "seed": 1}}
    executor = Measured()
    assert run_study(study(tmp_path, tune), executor=executor).ok
    assert len(executor.started) == 10 + 2, "the trials that won are points of the grid at this sparsity and seed"


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_trials_hang_on_nothing_but_the_study(tmp_path: Path, sampler: str) -> None:
    space = {**SPACE, "warmup": [0, 0.1, None], "weight": {"low": 8, "high": 32, "int": True, "log": True}}
    tune = {"space": space, "trials": 7, "sampler": sampler, "batch": 3, "at": {"sparsity": 0.9}}
    grid = {"method": ["rpp", "magnitude"], "sparsity": [0.5], "seed": [1]}
    whole = study(tmp_path / "whole", tune, grid)
    assert run_study(whole, executor=Measured()).ok
    for number in range(2):
        chance = random.Random(number)
        other = study(tmp_path / str(number), tune, grid)
        for stop_after in (2, 6, None):
            executor = Measured(1 + 2 * number, chance=chance, stop_after=stop_after)
            if stop_after is None:
                assert run_study(other, executor=executor).ok
            else:
                with pytest.raises(KeyboardInterrupt):
                    run_study(other, executor=executor)
        for file in ("tuning.json", "tuning.csv"):
            assert (other.output / file).read_text() == (whole.output / file).read_text()
        assert [p.name for p in resolved_points(other)] == [p.name for p in resolved_points(whole)]
    tried = values(whole)
    assert {len(trials) for trials in tried.values()} == {7}
    assert tried["rpp"] != tried["magnitude"]
    for trial in tried["rpp"]:
        assert 1e-5 <= trial["learning_rate"] <= 1e-2
        assert trial["learning_rate"] == float(f"{trial['learning_rate']:.3g}")
        assert isinstance(trial["weight"], int)
        assert trial["warmup"] in (0, 0.1, None)
    database = f"sqlite:///{whole.output / 'tuning.db'}"
    names = optuna.get_all_study_names(database)
    assert len(names) == 2
    for name in names:
        trials = optuna.load_study(study_name=name, storage=database).trials
        assert [trial.state.name for trial in trials] == 7 * ["COMPLETE"]


def test_tpe_learns(tmp_path: Path) -> None:
    tune = {"space": SPACE, "trials": 24, "at": {"sparsity": 0.9}}
    the_study = study(tmp_path, tune, {"method": "rpp", "sparsity": 0.9})
    run_study(the_study, executor=Measured(4))
    (search,) = record(the_study)["searches"]
    assert search["trials"][search["chosen"]]["values"]["learning_rate"] == pytest.approx(1e-3, rel=0.3)


def test_ties_go_to_the_earlier_and_losses_to_the_smaller(tmp_path: Path) -> None:
    tune = {"space": {"learning_rate": [1e-4, 1e-3, 5e-3]}, "sampler": "grid"}
    for name, executor, chosen in (
        ("tie", Measured(score=0.5), 0),
        ("loss", Measured(loss=True), 2),
        ("score", Measured(), 1),
    ):
        the_study = study(tmp_path / name, tune, {"method": "rpp", "sparsity": 0.9})
        run_study(the_study, executor=executor)
        assert [search["chosen"] for search in record(the_study)["searches"]] == [chosen]


def test_dense_references_are_tuned_where_they_are_named(tmp_path: Path) -> None:
    rates = {"learning_rate": [1e-4, 1e-3]}
    tune = {"methods": {"dense": rates, "rpp": {"learning_rate": [1e-3, 2e-3]}}, "sampler": "grid"}
    the_study = study(tmp_path, tune, {"method": "rpp", "sparsity": 0.5, "seed": [0, 1]})
    executor = Measured(9)
    outcome = run_study(the_study, executor=executor)
    assert outcome.ok
    points = resolved_points(the_study)
    assert len(points) == 4
    assert all(point.reference is None or point.reference.options["learning_rate"] == 1e-3 for point in points)
    # The trials of rpp wait for those of dense, and are compared with what these have chosen.
    assert [name.partition("-")[0] for name in executor.started[:4]] == ["dense", "dense", "dense", "rpp"]
    # Two trials of dense, one reference more; two of rpp, of which one is a point, and one point more.
    assert len(executor.started) == 2 + 1 + 2 + 1


def test_a_grid_counts_the_methods_of_the_study(tmp_path: Path) -> None:
    rates = {"learning_rate": [1e-3, 2e-3, 4e-3]}
    # Two rates for any other method, but there is none.
    tune = {"space": {"learning_rate": [1e-3, 2e-3]}, "methods": {"rpp": rates, "magnitude": rates}, "sampler": "grid"}
    the_study = study(tmp_path, tune, {"method": ["rpp", "magnitude"], "sparsity": 0.5})
    assert run_study(the_study, executor=Measured(9)).ok
    assert sorted(len(tried) for tried in values(the_study).values()) == [3, 3]
    with pytest.raises(ValueError, match="tune: 3 combinations for magnitude, but 2 trials for each"):
        study(tmp_path, tune, {"method": ["rpp", "magnitude", "admm"], "sparsity": 0.5})


def test_failed_trials_are_no_choice(tmp_path: Path) -> None:
    tune = {"space": {"learning_rate": [5e-3, 1e-4, 1e-3]}, "sampler": "grid", "at": {"seed": 7}}
    the_study = study(tmp_path, tune, {"method": "rpp", "sparsity": 0.5, "seed": [0, 1]}, diverges_above=5e-4)
    outcome = run_study(the_study, executor=Measured())
    assert outcome.ok
    assert str(outcome) == "4 finished, 0 failed, 0 left; 2 failed trials"
    (search,) = record(the_study)["searches"]
    assert [trial["status"] for trial in search["trials"]] == ["failed", "finished", "failed"]
    assert (search["chosen"], search["trials"][0]["error"]) == (1, "loss is nan")
    again = Measured()
    assert run_study(the_study, executor=again) == outcome
    assert not again.started
    retried = Measured()
    assert run_study(the_study, executor=retried, retry=True) == outcome
    assert len(retried.started) == 2


def test_where_all_trials_fail_the_points_do(tmp_path: Path) -> None:
    tune = {"space": SPACE, "trials": 2, "at": {"sparsity": 0.9}}
    the_study = study(tmp_path, tune)
    outcome = run_study(the_study, executor=Measured(fails="^rpp"))
    assert (len(outcome.finished), len(outcome.failed), outcome.left) == (6, 4, ())
    reason = next(iter(outcome.failed.values()))
    assert re.fullmatch(r"none of the 2 trials that tune it finished; rpp-s0.9-seed0-\w+: loss is nan", reason)
    # Repaired and retried, the search goes on with what it had suggested.
    suggested = values(the_study)
    assert run_study(the_study, executor=Measured(), retry=True).ok
    assert values(the_study) == suggested
    database = f"sqlite:///{the_study.output / 'tuning.db'}"
    studies = [optuna.load_study(study_name=n, storage=database) for n in optuna.get_all_study_names(database)]
    assert {trial.state.name for one in studies for trial in one.trials} == {"COMPLETE"}


def test_killed_trials_leave_their_points(tmp_path: Path) -> None:
    class Killed(Measured):
        def wait(self, timeout: float) -> Ended | None:
            ended = super().wait(timeout)
            return Ended(ended.name, -9, "") if ended and ended.exit_status else ended

    the_study = study(tmp_path, {"space": SPACE, "trials": 2}, {"method": "rpp", "sparsity": 0.9})
    outcome: StudyOutcome = run_study(the_study, executor=Killed(fails="^rpp"))
    assert (len(outcome.finished), len(outcome.failed), len(outcome.left)) == (1, 0, 3)
    assert run_study(the_study, executor=Measured()).ok


def test_nothing_suggested_is_lost_with_another_optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune = {"space": SPACE, "trials": 4, "at": {"sparsity": 0.9}}
    the_study = study(tmp_path, tune, {"method": "rpp", "sparsity": 0.9})
    with pytest.raises(KeyboardInterrupt):
        run_study(the_study, executor=Measured(stop_after=3))
    before = values(the_study)["rpp"][:2]
    monkeypatch.setattr("argprune.tasks.studies.tuning.suggest", lambda *_: {"learning_rate": 2e-3})
    run_study(the_study, executor=Measured())
    assert values(the_study)["rpp"][:2] == before
    assert values(the_study)["rpp"][2:] == 2 * [{"learning_rate": 2e-3}]


# What is refused

GOOD = "output: runs\nbase: {model: minilm, task: stdlib-docs, method: rpp}\ngrid: {sparsity: [0.5]}\n"


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ("3", "tune: 3 is not a mapping"),
        ("{spaces: {}}", "tune: unknown key 'spaces'. Did you mean 'space'?"),
        ("{trials: 3}", "tune: nothing to search"),
        ("{space: {warmup: [1]}}", "tune: trials None; give a whole number >= 1"),
        ("{space: {warmup: [1]}, trials: true}", "tune: trials True"),
        ("{space: {warmup: [1]}, trials: 0}", "tune: trials 0"),
        ("{space: {warmup: [1]}, trials: 1, sampler: cma}", "tune: sampler 'cma'; choose of tpe, random, grid"),
        ("{space: {warmup: [1]}, trials: 1, batch: 0}", "tune: batch 0"),
        ("{space: {warmup: 3}, trials: 1}", "tune: space: 'warmup': 3; give a list"),
        ("{space: {warmup: []}, trials: 1}", "tune: space: 'warmup': an empty list"),
        ("{space: {warmup: {low: 1}}, trials: 1}", "tune: space: 'warmup': a range needs low and high"),
        ("{space: {warmup: {lo: 1}}, trials: 1}", "tune: space: 'warmup': unknown key 'lo'"),
        ("{space: {warmup: {low: 2, high: 1}}, trials: 1}", "low 2 is not below high 1"),
        ("{space: {warmup: {low: 0, high: 1, log: true}}, trials: 1}", "low 0 of a log-uniform range"),
        ("{space: {warmup: {low: a, high: 1}}, trials: 1}", "low 'a'; give a finite number"),
        ("{space: {warmup: {low: 0.5, high: 2, int: true}}, trials: 1}", "low 0.5 of whole numbers"),
        ("{space: {sparsity: [0.5]}, trials: 1}", "tune: space: 'sparsity' is not searched, but fixed"),
        ("{space: {warmup: [1]}, trials: 1, at: {method: rpp}}", "tune: at: every method has its own trials"),
        ("{space: {warmup: [1]}, trials: 1, at: {output: x}}", "tune: at: 'output' is set by the study"),
        ("{space: {epochs: [1]}, trials: 1}", "tune: space: 'epochs' is shared with the dense reference"),
        ("{space: {a.b: [1]}, trials: 1}", "tune: space: 'a.b': dots are for"),
        ("{methods: {rrp: {warmup: [1]}}, trials: 1}", "tune: methods: 'rrp' is not in the grid, which has dense, rpp"),
        ("{space: {warmup: [1, 2]}, methods: {rpp: {biases: [1, 2]}}, sampler: grid, trials: 2}", "4 combinations"),
        ("{space: {warmup: {low: 1, high: 2}}, sampler: grid}", "sampler grid needs lists, but 'warmup' is a range"),
        ("{space: {bad: [1]}, trials: 1}", "bad is no option"),
        ("{space: {learning_rate: {low: 1, high: 99}}, trials: 1}", "learning_rate 99: it must be < 50"),
    ],
)
def test_bad_tuning(tmp_path: Path, tune: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def check_options(options: dict[str, Any]) -> None:
        if "bad" in options:
            raise ValueError("bad is no option")
        if float(options.get("learning_rate", 1)) >= 50:
            raise ValueError(f"learning_rate {options['learning_rate']:g}: it must be < 50.")

    monkeypatch.setitem(sys.modules, "argprune.tasks.prune", SimpleNamespace(check_options=check_options))
    path = tmp_path / "study.yaml"
    path.write_text(f"{GOOD}tune: {tune}\n")
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_study(path)
    assert "\n" not in str(caught.value)


def test_what_is_tuned_is_not_given(tmp_path: Path) -> None:
    tune = {"space": {"learning_rate": [1, 2], "method.eps_rw": [1]}, "trials": 1}
    for grid, key in (
        ({"method": "rpp", "sparsity": 0.5, "learning_rate": 3}, "learning_rate"),
        ({"method": {"name": "rpp", "eps_rw": 1}, "sparsity": 0.5}, "method.eps_rw"),
        ({"method": "rpp", "sparsity": 0.5, "method.eps_rw": [3]}, "method.eps_rw"),
    ):
        with pytest.raises(ValueError, match=rf"grid: '{key}' of method rpp is tuned"):
            study(tmp_path, tune, grid)
    # Of base it is the default, which the choice replaces.
    assert study(tmp_path, tune, {"method": "rpp", "sparsity": 0.5}, learning_rate=3)


def test_yaml_says_the_same() -> None:
    tuning = Tuning(
        {"learning_rate": Range(1e-5, 1e-3, log=True), "warmup": Choice((0.1, None, ["a"]))},
        {"rpp": {"method.steps": Range(1, 9, integer=True)}},
        trials=5,
        at={"sparsity": 0.9},
        sampler="random",
        seed=3,
    )
    assert read_tuning(yaml.safe_load(yaml.safe_dump(tuning_to_data(tuning)))) == tuning


def test_without_optuna_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"tune needs Optuna: pip install 'argprune\[tune\]'"):
        run_study(study(tmp_path, {"space": SPACE, "trials": 1}), executor=Measured())


def test_a_broken_database_is_refused(tmp_path: Path) -> None:
    the_study = study(tmp_path, {"space": SPACE, "trials": 1})
    the_study.output.mkdir()
    (the_study.output / "tuning.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(ValueError, match=r"tuning\.db: cannot be used as the database of tuning .*Remove it\."):
        run_study(the_study, executor=Measured())


def test_what_was_suggested_after_a_trial_that_is_run_again_stays(tmp_path: Path) -> None:
    space = {"learning_rate": Choice((1e-4, 3e-4, 1e-3))}
    trials = [Scored({"learning_rate": rate}, score) for rate, score in ((1e-4, None), (3e-4, 0.5), (1e-3, 0.7))]
    database = Database(tmp_path / "tuning.db")
    database.write("rpp", space, trials)
    for first in (trials[:1], [Scored({"learning_rate": 1e-4}, 0.6)]):
        database.write("rpp", space, first)
        assert [values["learning_rate"] for values in database.suggested("rpp", space)] == [1e-4, 3e-4, 1e-3]
