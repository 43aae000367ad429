"""Tuning on validation: which trials are to be run, what they choose, and the points that follow.

    arm     = a point's options with those of `at` over them, without what is searched: one search each
    trial   = arm + suggested values: a point like any other, an ordinary run directory
    choice  = the trial with the highest score on validation; of equal ones, the earlier

What is to be run is computed from where the runs stand on disk, every time anew, and so there is no state that
a kill could lose. Scores on test are not read.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from argprune.tasks.runs import write_atomic, write_json
from argprune.tasks.studies.grid import Point, Study, normalised, overlay
from argprune.tasks.studies.records import State, StudyRun
from argprune.tasks.studies.search import Space, Tuning, space_to_data
from argprune.tasks.studies.suggest import DATABASE, Database, Scored, suggest

RECORD, TABLE = "tuning.json", "tuning.csv"
# Metrics of which less is better, for runs whose metrics.json does not say.
_LOSSES = frozenset({"perplexity", "loss", "bits_per_character", "bits_per_byte"})


@dataclass(frozen=True)
class Planned:
    """What a study stands for as far as is known.

    points: to run, in the order in which they may start. trials: names of those that are run for tuning alone,
    their references included. resolved: by the name of a grid point as the file has it, the point with its options
    chosen. undecided: names of grid points whose trials go on. hopeless: names of those for which nothing can be
    chosen, and why. unknown: how many more points there will be.
    """

    points: tuple[Point, ...]
    trials: frozenset[str] = frozenset()
    resolved: Mapping[str, Point] = field(default_factory=dict)
    undecided: tuple[str, ...] = ()
    hopeless: Mapping[str, str] = field(default_factory=dict)
    unknown: int = 0


@dataclass(frozen=True)
class Arm:
    """A search: the options that its trials share, without those searched."""

    options: Mapping[str, Any]
    space: Space
    name: str

    @staticmethod
    def of(point: Point, tuning: Tuning) -> Arm | None:
        """The search that chooses a point's options; None where its method is not tuned."""
        space = tuning.space_of(point.method)
        if not space:
            return None
        options = overlay(point.options, {"seed": 0, **tuning.at}, "tune: at")
        if isinstance(options["method"], Mapping):
            options["method"] = {k: v for k, v in options["method"].items() if f"method.{k}" not in space}
        options = normalised({key: value for key, value in options.items() if key not in space}, "tune: at")
        search = [space_to_data(space), tuning.sampler, tuning.seed, tuning.batch_of(space)]
        # Changed, the search begins again: what was suggested in another one is no part of it.
        digest = hashlib.sha256(json.dumps(search, sort_keys=True).encode()).hexdigest()[:8]
        return Arm(options, space, f"{Point(options).name}-{digest}")


@dataclass(frozen=True)
class Trial:
    """A run of a search. score: on validation, larger is better; None until it has finished, and if it failed."""

    values: Mapping[str, Any]
    point: Point
    state: State
    score: float | None
    measured: float | None
    error: str = ""


class _Undecided(Exception):
    """Trials are still going on."""


class _Hopeless(Exception):
    """No trial finished: its message says why."""


class Tuner:
    """The trials of a study with a section `tune`, and what they choose."""

    def __init__(self, study: Study) -> None:
        """Opens OUTPUT/tuning.db. Raises ImportError without Optuna, ValueError where the file is no database."""
        assert study.tune is not None
        self.study, self.tuning = study, study.tune
        self._database = Database(study.output / DATABASE)
        self._suggested: dict[str, list[dict[str, Any]]] = {}
        self._trials: dict[str, list[Trial]] = {}
        self._written: dict[str, list[Scored]] = {}
        self._record = ""

    def plan(self, state_of: Callable[[Point], State]) -> Planned:
        """What is to be run now, as the runs stand. state_of: where the run of a point stands."""
        self._trials = {}
        references: dict[str, Point] = {}
        trials: dict[str, Point] = {}
        grid: dict[str, Point] = {}
        resolved: dict[str, Point] = {}
        undecided, hopeless, unknown = [], {}, 0
        # Those without a reference first: the choice among them decides about the others.
        for point in self.study.points:
            try:
                resolved[point.name] = found = self._resolve(point, state_of)
            except _Undecided:
                undecided.append(point.name)
                continue
            except _Hopeless as error:
                hopeless[point.name] = str(error)
                continue
            (grid if found.reference else references).setdefault(found.name, found)
        arms = {arm.name: arm for point in self.study.points if (arm := Arm.of(point, self.tuning))}
        for arm in arms.values():
            begun = self._trials.get(arm.name, [])
            unknown += self.tuning.trials_of(arm.space) - len(begun)
            for trial in begun:
                if trial.point.reference is not None:
                    references.setdefault(trial.point.reference.name, trial.point.reference)
                trials.setdefault(trial.point.name, trial.point)
        points = {**{name: point for name, point in trials.items() if point.reference is None}, **references}
        points |= trials | grid
        only = frozenset(points) - {point.name for point in resolved.values()}
        self._write(arms)
        return Planned(tuple(points.values()), only, resolved, tuple(undecided), hopeless, unknown + len(undecided))

    def _resolve(self, point: Point, state_of: Callable[[Point], State]) -> Point:
        """A point with what was chosen for it, and so its reference."""
        arm = Arm.of(point, self.tuning)
        if arm is not None:
            point = self.study.point(overlay(point.options, self._choice(arm, state_of).values, "tune"))
        if point.reference is not None:
            point = Point(point.options, self._resolve(point.reference, state_of))
        return point

    def _choice(self, arm: Arm, state_of: Callable[[Point], State]) -> Trial:
        trials = self._run(arm, state_of)
        if len(trials) < self.tuning.trials_of(arm.space) or any(trial.state == "left" for trial in trials):
            raise _Undecided
        finished = [trial for trial in trials if trial.score is not None]
        if not finished:
            raise _Hopeless(
                f"none of the {len(trials)} trials that tune it finished; {trials[0].point.name}: {trials[0].error}"
            )
        return max(finished, key=_score)

    def _run(self, arm: Arm, state_of: Callable[[Point], State]) -> list[Trial]:
        """The trials of an arm that are to be run by now, or have been: whole batches."""
        if arm.name in self._trials:
            return self._trials[arm.name]
        trials: list[Trial] = []
        wanted, batch = self.tuning.trials_of(arm.space), self.tuning.batch_of(arm.space)
        if arm.name not in self._suggested:
            self._suggested[arm.name] = self._database.suggested(arm.name, arm.space)[:wanted]
        suggested = self._suggested[arm.name]
        while len(trials) < wanted and all(trial.state != "left" for trial in trials):
            earlier = [Scored(trial.values, trial.score) for trial in trials]
            for index in range(len(trials), min(len(trials) + batch, wanted)):
                if index >= len(suggested):
                    suggested.append(suggest(self.tuning, arm.name, arm.space, earlier, index, suggested))
                trials.append(self._trial(arm, suggested[index], state_of))
        self._trials[arm.name] = trials
        return trials

    def _trial(self, arm: Arm, values: Mapping[str, Any], state_of: Callable[[Point], State]) -> Trial:
        point = self.study.point(overlay(arm.options, values, "tune"))
        if point.reference is not None:
            point = Point(point.options, self._resolve(point.reference, state_of))
        state, run = state_of(point), StudyRun(self.study.output, point.name)
        if state == "finished":
            measured, better = _validation(run.metrics())
            return Trial(values, point, state, measured if better else -measured, measured)
        return Trial(values, point, state, None, None, str(run.error()["error"]) if state == "failed" else "")

    def _write(self, arms: Mapping[str, Arm]) -> None:
        """Write down what has changed: tuning.json, tuning.csv and the database."""
        searches = []
        for arm in arms.values():
            trials = self._trials.get(arm.name, [])
            ended: list[Scored] = []
            for trial in trials:
                if trial.state == "left":
                    break
                ended.append(Scored(trial.values, trial.score))
            if ended and self._written.get(arm.name) != ended:
                self._database.write(arm.name, arm.space, ended)
                self._written[arm.name] = ended
            searches.append(self._search(arm, trials))
        record = {"sampler": self.tuning.sampler, "seed": self.tuning.seed, "searches": searches}
        if (text := json.dumps(record)) != self._record:
            write_atomic(self.study.output / TABLE, _table(searches))
            write_json(self.study.output / RECORD, record)
            self._record = text

    def _search(self, arm: Arm, trials: list[Trial]) -> dict[str, Any]:
        wanted = self.tuning.trials_of(arm.space)
        finished = [trial for trial in trials if trial.score is not None]
        complete = len(trials) == wanted and all(trial.state != "left" for trial in trials)
        chosen = trials.index(max(finished, key=_score)) if complete and finished else None
        return {
            "name": arm.name,
            "options": dict(arm.options),
            "space": space_to_data(arm.space),
            "trials": [
                {
                    "values": dict(trial.values),
                    "run": trial.point.name,
                    "status": trial.state,
                    "validation": trial.measured,
                    "error": trial.error,
                }
                for trial in trials
            ],
            "wanted": wanted,
            "chosen": chosen,
        }


def resolved_points(study: Study) -> tuple[Point, ...]:
    """The points of a study with the options that were chosen for them; those not yet decided are left out.

    Reads OUTPUT/tuning.json, of a study without tuning nothing. Raises ValueError where that is no such file.
    """
    tuning = study.tune
    if tuning is None:
        return study.points
    path = study.output / RECORD
    try:
        searches = json.loads(path.read_text(encoding="utf-8"))["searches"]
        choices = {s["name"]: s["trials"][s["chosen"]]["values"] for s in searches if s["chosen"] is not None}
    except FileNotFoundError:
        choices = {}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path}: not a record of tuning. Remove it and start the study again.") from error

    def resolve(point: Point) -> Point | None:
        arm = Arm.of(point, tuning)
        if arm is not None:
            if arm.name not in choices:
                return None
            point = study.point(overlay(point.options, choices[arm.name], "tune"))
        if point.reference is None:
            return point
        reference = resolve(point.reference)
        return reference and Point(point.options, reference)

    found = [resolve(point) for point in study.points]
    return tuple({point.name: point for point in found if point is not None}.values())


def _score(trial: Trial) -> float:
    assert trial.score is not None
    return trial.score


def _validation(metrics: Mapping[str, Any]) -> tuple[float, bool]:
    """A run's score on validation, and whether more of it is better."""
    metric = metrics["metric"]
    return float(metrics["pruned"]["validation"][metric]), metrics.get("larger_is_better", metric not in _LOSSES)


def _table(searches: list[dict[str, Any]]) -> str:
    """All trials as CSV: a row a trial, in the order in which they were suggested."""
    options = sorted({option for search in searches for option in search["space"]})
    columns = ["search", "trial", *options, "run", "status", "validation", "chosen", "error"]
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    for search in searches:
        for index, trial in enumerate(search["trials"]):
            values = {key: json.dumps(v) if isinstance(v, list | dict) else v for key, v in trial["values"].items()}
            facts = {name: trial[name] for name in ("run", "status", "validation", "error")}
            chosen = "yes" if index == search["chosen"] else ""
            writer.writerow({"search": search["name"], "trial": index, **values, **facts, "chosen": chosen})
    return file.getvalue()
