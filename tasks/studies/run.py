"""Carrying out a study: which run starts when, and where each stands."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from filelock import FileLock, Timeout

from argprune.tasks.runs import RunDirectory, one_line, write_atomic
from argprune.tasks.studies.executor import Busy, Ended, Executor, Job
from argprune.tasks.studies.grid import Point, Study, canonical
from argprune.tasks.studies.interrupts import Interrupts
from argprune.tasks.studies.progress import StudyProgress
from argprune.tasks.studies.records import State, StudyRun
from argprune.tasks.studies.tuning import Planned, Tuner

_WAIT_SECONDS = 0.1
# How often it is looked whether a run that another process carries out has ended.
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class StudyOutcome:
    """Where the points of a study stand, by name.

    finished: which did. failed: with the error. left: killed or ended by a full disk, or waiting for a reference or a
    trial that was.
    failed_trials: runs for tuning alone that failed, with the error; the others choose.
    """

    finished: tuple[str, ...]
    failed: Mapping[str, str]
    left: tuple[str, ...]
    failed_trials: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every point finished."""
        return not self.failed and not self.left

    def __str__(self) -> str:
        trials = len(self.failed_trials)
        return f"{len(self.finished)} finished, {len(self.failed)} failed, {len(self.left)} left" + (
            f"; {trials} failed {'trial' if trials == 1 else 'trials'}" if trials else ""
        )


def run_study(
    study: Study, *, executor: Executor, retry: bool = False, progress: StudyProgress | None = None
) -> StudyOutcome:
    """Run the points of a study that have not finished, trials and dense references first.

    executor: where they run. retry: run again what failed before; otherwise it stays failed. progress: what
    is said meanwhile (None: nothing; `progress_for` chooses).

    Finished runs are skipped and killed ones resumed; those that a killed study has left behind are waited for. A
    run that fails is recorded in its folder and the others go on; a point whose reference failed fails with it,
    until the reference succeeds. The study is copied to OUTPUT/study.yaml.

    Raises ValueError where the output cannot be a folder or another study is being run in it, ImportError where it
    is tuned without Optuna, RunError where the disk is full, KeyboardInterrupt on Ctrl-C and SystemExit on SIGTERM
    and SIGHUP, each after having ended the runs that were going on; these resume next time.
    """
    try:
        study.output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(study.output / ".study.lock").acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"output {study.output}: a study is being run in it by another process. Wait for it, or end it."
        ) from error
    except OSError as error:
        raise ValueError(f"output {study.output}: {error.strerror}. Choose another folder.") from error
    with lock, one_line(study.output, "the same command"):
        RunDirectory(study.output).sweep()
        session = _Session(study, executor, progress or StudyProgress(), retry)
        write_atomic(study.output / "study.yaml", study.to_yaml())
        with Interrupts() as interrupts:
            try:
                session.begin()
                while session.advance():
                    interrupts.check()
            finally:
                executor.stop()
                session.progress.close()
        return session.outcome()


class _Session:
    """One call of `run_study`: the points' states, which the disk holds too, and what is running."""

    def __init__(self, study: Study, executor: Executor, progress: StudyProgress, retry: bool) -> None:
        self.study, self.executor, self.progress, self.retry = study, executor, progress, retry
        self.tuner = None if study.tune is None else Tuner(study)
        self.runs: dict[str, StudyRun] = {}
        self.states: dict[str, State] = {}
        self.running: set[str] = set()
        self.interrupted: set[str] = set()
        # Runs that another process carries out, and when to look again.
        self.elsewhere: dict[str, float] = {}
        self.planned = Planned(())
        self.stale = True

    def begin(self) -> None:
        self.plan()
        self.progress.begin(f"study {self.study.output}", self.counts(), self.executor.slots)

    def plan(self) -> None:
        """Find out which points there are; of a study that is tuned, more with every trial that ends."""
        if self.tuner is None:
            self.planned = Planned(self.study.points, resolved={point.name: point for point in self.study.points})
            for point in self.study.points:
                self.state_of(point)
        else:
            self.planned = self.tuner.plan(self.state_of)
            for point in self.planned.points:
                self.state_of(point)
        self.stale = False

    def state_of(self, point: Point) -> State:
        if point.name not in self.states:
            run = self.runs[point.name] = StudyRun(self.study.output, point.name)
            state = run.state()
            # What was never started failed for its reference's sake, which may be better now.
            if state == "failed" and (self.retry or run.error()["exit_status"] is None):
                run.clear_error()
                state = "left"
            self.states[point.name] = state
        return self.states[point.name]

    def counts(self) -> dict[State, int]:
        counts: dict[State, int] = {"finished": 0, "failed": 0, "left": 0}
        for point in self.planned.points:
            counts[self.states[point.name]] += 1
        counts["left"] += self.planned.unknown
        return counts

    def advance(self) -> bool:
        """Start what can start and wait a moment for something to end; False where nothing is left to do."""
        if self.stale:
            self.plan()
            self.progress.recount(self.counts())
        for point in self.planned.points:
            if self.states[point.name] != "left" or point.name in self.running | self.interrupted:
                continue
            needed = point.reference and self.states[point.reference.name]
            if point.reference and needed == "failed":
                reason = self.runs[point.reference.name].error()["error"]
                self.runs[point.name].write_options(self._options(point))
                self._fail(point.name, f"dense reference {point.reference.name} failed: {reason}", None)
            elif needed in (None, "finished") and len(self.running) < self.executor.slots:
                self._start(point)
        if not self.running:
            if self.elsewhere:
                time.sleep(_WAIT_SECONDS)
            return bool(self.elsewhere) or self.stale
        ended = self.executor.wait(_WAIT_SECONDS)
        if ended is not None:
            self._settle(ended)
        return True

    def _options(self, point: Point) -> dict[str, Any]:
        reference = point.reference and str(self.runs[point.reference.name].folder)
        # As whole numbers: to YAML 1e2 is a float, and no number of steps.
        return {**canonical(point.options), "sparsity": point.options["sparsity"], "dense": reference}

    def _start(self, point: Point) -> None:
        run, name = self.runs[point.name], point.name
        if name in self.elsewhere:
            if time.monotonic() < self.elsewhere[name]:
                return
            if run.state() == "finished":
                del self.elsewhere[name]
                self._end(name, "finished")
                return
        else:
            run.write_options(self._options(point))
        arguments = ("prune", "--config", str(run.config), "--output", str(run.folder), "--resume", "-q")
        try:
            self.executor.start(Job(name, arguments, run.log))
        except Busy:
            if name not in self.elsewhere:
                self.progress.wait(name)
            self.elsewhere[name] = time.monotonic() + _LOOK_SECONDS
            return
        self.elsewhere.pop(name, None)
        self.running.add(name)
        self.progress.start(name, run.folder)

    def _settle(self, ended: Ended) -> None:
        """Note how a job ended. That it finished is for its metrics to say, not for its exit status."""
        self.running.remove(ended.name)
        run = self.runs[ended.name]
        if run.state() == "finished":
            self._end(ended.name, "finished")
        elif ended.resumable:
            self.interrupted.add(ended.name)
            self.progress.end(ended.name, "left", _last_words(ended))
        elif ended.exit_status == 0:
            self._fail(ended.name, "exit status 0, but no metrics.json", 0)
        else:
            self._fail(ended.name, _last_words(ended), ended.exit_status)

    def _fail(self, name: str, error: str, exit_status: int | None) -> None:
        self.runs[name].write_error(error, exit_status)
        self._end(name, "failed", error)

    def _end(self, name: str, state: State, error: str = "") -> None:
        self.states[name] = state
        self.progress.end(name, state, error)
        # Without tuning, all points are known from the start.
        self.stale = self.tuner is not None

    def outcome(self) -> StudyOutcome:
        def names(state: State, *, trials: bool = False) -> tuple[str, ...]:
            at = [point.name for point in self.planned.points if self.states[point.name] == state]
            return tuple(name for name in at if (name in self.planned.trials) == trials)

        def errors(names: tuple[str, ...]) -> dict[str, str]:
            return {name: str(self.runs[name].error()["error"]) for name in names}

        left = (*names("left", trials=True), *names("left"), *self.planned.undecided)
        failed = {**errors(names("failed")), **self.planned.hopeless}
        return StudyOutcome(names("finished"), failed, left, errors(names("failed", trials=True)))


def _last_words(ended: Ended) -> str:
    """Why a job did not finish: the last line that it printed, unless a signal cut that off."""
    status = f"exit status {ended.exit_status}"
    if ended.killed:
        return status
    return ended.message.removeprefix("argprune: error: ") or f"{status}, and nothing printed"
