"""Carrying out a study: which run starts when, and where each stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from argprune.tasks.runs import write_atomic
from argprune.tasks.studies.executor import Ended, Executor, Job
from argprune.tasks.studies.grid import Point, Study
from argprune.tasks.studies.interrupts import Interrupts
from argprune.tasks.studies.progress import StudyProgress
from argprune.tasks.studies.records import State, StudyRun

_WAIT_SECONDS = 0.1


@dataclass(frozen=True)
class StudyOutcome:
    """Where the points of a study stand, by name.

    failed: with the error. left: killed, or waiting for a reference that was.
    """

    finished: tuple[str, ...]
    failed: Mapping[str, str]
    left: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every point finished."""
        return not self.failed and not self.left

    def __str__(self) -> str:
        return f"{len(self.finished)} finished, {len(self.failed)} failed, {len(self.left)} left"


def run_study(
    study: Study, *, executor: Executor, retry: bool = False, progress: StudyProgress | None = None
) -> StudyOutcome:
    """Run the points of a study that have not finished, dense references first.

    executor: where they run. retry: run again what failed before; otherwise it stays failed. progress: what
    is said meanwhile (None: nothing; `progress_for` chooses).

    Finished runs are skipped and killed ones resumed. A run that fails is recorded in its folder and the
    others go on; a point whose reference failed fails with it, until the reference succeeds. The study is
    copied to OUTPUT/study.yaml.

    Raises ValueError where the output cannot be a folder or a point is being run by another process,
    KeyboardInterrupt on Ctrl-C and SystemExit on SIGTERM and SIGHUP, each after having ended the runs that
    were going on; these resume next time.
    """
    try:
        study.output.mkdir(parents=True, exist_ok=True)
        write_atomic(study.output / "study.yaml", study.to_yaml())
    except OSError as error:
        raise ValueError(f"output {study.output}: {error.strerror}. Choose another folder.") from error
    session = _Session(study, executor, progress or StudyProgress(), retry)
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
        self.study, self.executor, self.progress = study, executor, progress
        self.runs = {point.name: StudyRun(study.output, point.name) for point in study.points}
        self.running: set[str] = set()
        self.killed: set[str] = set()
        self.states: dict[str, State] = {name: run.state() for name, run in self.runs.items()}
        for name, run in self.runs.items():
            # What was never started failed for its reference's sake, which may be better now.
            if self.states[name] == "failed" and (retry or run.error()["exit_status"] is None):
                run.clear_error()
                self.states[name] = "left"

    def begin(self) -> None:
        counts: dict[State, int] = {"finished": 0, "failed": 0, "left": 0}
        for state in self.states.values():
            counts[state] += 1
        self.progress.begin(f"study {self.study.output}", counts, self.executor.slots)

    def advance(self) -> bool:
        """Start what can start and wait a moment for something to end; False where nothing is left to do."""
        for point in self.study.points:
            if self.states[point.name] != "left" or point.name in self.running | self.killed:
                continue
            needed = point.reference and self.states[point.reference.name]
            if point.reference and needed == "failed":
                reason = self.runs[point.reference.name].error()["error"]
                self.runs[point.name].write_options(self._options(point))
                self._fail(point.name, f"dense reference {point.reference.name} failed: {reason}", None)
            elif needed in (None, "finished") and len(self.running) < self.executor.slots:
                self._start(point)
        if not self.running:
            return False
        ended = self.executor.wait(_WAIT_SECONDS)
        if ended is not None:
            self._settle(ended)
        return True

    def _options(self, point: Point) -> dict[str, Any]:
        reference = point.reference and str(self.runs[point.reference.name].folder)
        return {**point.options, "dense": reference}

    def _start(self, point: Point) -> None:
        run = self.runs[point.name]
        run.write_options(self._options(point))
        arguments = ("prune", "--config", str(run.config), "--output", str(run.folder), "--resume", "-q")
        self.executor.start(Job(point.name, arguments, run.log))
        self.running.add(point.name)
        self.progress.start(point.name)

    def _settle(self, ended: Ended) -> None:
        """Note how a job ended. That it finished is for its metrics to say, not for its exit status."""
        self.running.remove(ended.name)
        run = self.runs[ended.name]
        if run.state() == "finished":
            self.states[ended.name] = "finished"
            self.progress.end(ended.name, "finished")
        elif ended.killed:
            self.killed.add(ended.name)
            self.progress.end(ended.name, "left", f"exit status {ended.exit_status}")
        elif ended.exit_status == 0:
            self._fail(ended.name, "exit status 0, but no metrics.json", 0)
        else:
            said = (
                ended.message.removeprefix("argprune: error: ")
                or f"exit status {ended.exit_status}, and nothing printed"
            )
            self._fail(ended.name, said, ended.exit_status)

    def _fail(self, name: str, error: str, exit_status: int | None) -> None:
        self.runs[name].write_error(error, exit_status)
        self.states[name] = "failed"
        self.progress.end(name, "failed", error)

    def outcome(self) -> StudyOutcome:
        def names(state: State) -> tuple[str, ...]:
            return tuple(name for name, at in self.states.items() if at == state)

        failed = {name: str(self.runs[name].error()["error"]) for name in names("failed")}
        return StudyOutcome(names("finished"), failed, names("left"))
