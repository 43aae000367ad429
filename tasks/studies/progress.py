"""What a study says while it runs: nothing, plain lines, or a live table; always on standard error."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich import live
from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from argprune.tasks.runs import CONFIG, LOG
from argprune.tasks.studies.records import State

_TAIL_BYTES = 1 << 13


@dataclass(frozen=True)
class Steps:
    """How far a training is: steps done, and in all (None: not known)."""

    done: int
    total: int | None


def read_steps(folder: Path) -> Steps | None:
    """How far a run's training is by its log.jsonl and config.yaml; None before the first line is written."""
    try:
        with (folder / LOG).open("rb") as file:
            file.seek(max(0, (folder / LOG).stat().st_size - _TAIL_BYTES))
            # The last line may be half-written, and the first be cut.
            lines = file.read().decode("utf-8", errors="replace").split("\n")[:-1]
        last = json.loads(lines[-1])
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        done, epoch = int(last["step"]), last.get("epoch")
        total = config.get("max_steps") or (epoch and round(done / epoch * config["epochs"]))
        return Steps(done, total or None)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, yaml.YAMLError):
        return None


class StudyProgress:
    """Counts a study's points and estimates the time left; prints nothing, which the others do."""

    def __init__(self) -> None:
        self.counts: dict[State, int] = {"finished": 0, "failed": 0, "left": 0}
        self._slots = 1
        self._title = ""
        self._started: dict[str, float] = {}
        # Of each running point: its folder, and where its training stood when this session first looked.
        self._folders: dict[str, Path] = {}
        self._first: dict[str, tuple[int, float]] = {}
        self._seconds: list[float] = []

    def begin(self, title: str, counts: dict[State, int], slots: int) -> None:
        """Called once: the study's name, how many points stand where, and how many run side by side."""
        self._title, self._slots = title, slots
        self.counts = dict(counts)

    def recount(self, counts: dict[State, int]) -> None:
        """Called where more points have come to be known than `begin` was told of."""
        self.counts = dict(counts)

    def start(self, name: str, folder: Path) -> None:
        """Called when a point starts, with its run directory."""
        self._started[name] = time.monotonic()
        self._folders[name] = folder

    def wait(self, name: str) -> None:
        """Called when a point cannot start because another process is at it."""

    def end(self, name: str, state: State, error: str = "") -> None:
        """Called when a point ended, or failed without having been started; "left" if it goes on next time."""
        seconds = self.elapsed(name)
        self._started.pop(name, None)
        self._folders.pop(name, None)
        self._first.pop(name, None)
        self.counts["left"] -= 1
        self.counts[state] += 1
        # A failure says nothing about how long the others take.
        if state == "finished":
            self._seconds.append(seconds)

    def close(self) -> None:
        """Called once, at the end or when interrupted; nothing runs any more."""
        self._started.clear()

    def elapsed(self, name: str) -> float:
        """Seconds since a running point started."""
        now = time.monotonic()
        return now - self._started.get(name, now)

    def ending(self, name: str, state: State, error: str) -> str:
        """One line on a point that is about to end."""
        verb = "ended (resumes next time)" if state == "left" else state
        took = f" after {duration(self.elapsed(name))}" if name in self._started else ""
        return f"{verb} {name}{took}" + (f": {error}" if error else "")

    def steps(self, name: str) -> Steps | None:
        """How far a running point's training is."""
        folder = self._folders.get(name)
        steps = None if folder is None else read_steps(folder)
        if steps is not None:
            self._first.setdefault(name, (steps.done, time.monotonic()))
        return steps

    def run_left(self, name: str) -> float | None:
        """Seconds that a running point takes yet, by its own pace, or else by the mean of this session."""
        steps = self.steps(name)
        if steps is not None and steps.total is not None:
            # From the first line on: what comes before is loading, and steps of an earlier session cost nothing.
            done, since = self._first.get(name, (steps.done, 0.0))
            if steps.done > done:
                return (time.monotonic() - since) / (steps.done - done) * max(0, steps.total - steps.done)
        return max(0.0, self._mean() - self.elapsed(name)) if self._seconds else None

    def _mean(self) -> float:
        return sum(self._seconds) / len(self._seconds)

    def time_left(self) -> float | None:
        """Seconds to the end if every point takes this session's mean; None before the first can be told."""
        running = [left for name in list(self._started) if (left := self.run_left(name)) is not None]
        if self._seconds:
            mean = self._mean()
        elif running and len(running) == len(self._started):
            # None has finished yet: those that wait will take as long as those that run.
            mean = sum(map(self.elapsed, list(self._started))) / len(running) + sum(running) / len(running)
        else:
            return None
        waiting = self.counts["left"] - len(self._started)
        return max([*running, (sum(running) + waiting * mean) / self._slots])

    def summary(self) -> str:
        """One line: how many points stand where."""
        return (
            f"{self._title}: {self.counts['finished']} finished, {self.counts['failed']} failed, "
            f"{len(self._started)} running, {self.counts['left'] - len(self._started)} left{self._estimate()}"
        )

    def _estimate(self) -> str:
        seconds = self.time_left()
        return f", about {duration(seconds)} to go" if seconds is not None and self.counts["left"] else ""


class Lines(StudyProgress):
    """A line when a point starts and one when it ends: for logs."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def begin(self, title: str, counts: dict[State, int], slots: int) -> None:
        """Say how much there is to do."""
        super().begin(title, counts, slots)
        _print(self._console, self.summary())

    def start(self, name: str, folder: Path) -> None:
        """Say what starts."""
        super().start(name, folder)
        _print(self._console, f"started {name}")

    def wait(self, name: str) -> None:
        """Say what another process is at."""
        _print(self._console, f"waiting for {name}, which another process runs")

    def end(self, name: str, state: State, error: str = "") -> None:
        """Say how it ended, and what is left."""
        said = self.ending(name, state, error)
        super().end(name, state, error)
        _print(self._console, said)
        _print(self._console, self.summary())


class Live(StudyProgress):
    """A table of what runs now, drawn again and again; failures stay on the screen above it."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._live = live.Live(console=console, get_renderable=self.table, refresh_per_second=2)

    def begin(self, title: str, counts: dict[State, int], slots: int) -> None:
        """Draw the table."""
        super().begin(title, counts, slots)
        self._live.start(refresh=True)

    def end(self, name: str, state: State, error: str = "") -> None:
        """Say what did not finish; the rest is in the table."""
        said = self.ending(name, state, error)
        super().end(name, state, error)
        if state != "finished":
            _print(self._live.console, said)

    def wait(self, name: str) -> None:
        """Say what another process is at."""
        _print(self._live.console, f"waiting for {name}, which another process runs")

    def close(self) -> None:
        """Draw the last state and leave it there."""
        super().close()
        self._live.stop()

    def table(self) -> Group:
        """What runs, how far it is and for how long, under a line of counts."""
        table = Table.grid(padding=(0, 2))
        for name in list(self._started):
            steps, left = self.steps(name), self.run_left(name)
            done, total = (steps.done, steps.total) if steps else (0, None)
            table.add_row(
                name,
                ProgressBar(total=total or 1, completed=done if total else 0, width=20),
                (f"step {done}/{total}" if total else f"step {done}") if steps else "",
                duration(self.elapsed(name)),
                "" if left is None else f"{duration(left)} left",
            )
        return Group(Text(self.summary(), style="bold"), table)


def progress_for(*, quiet: bool = False, console: Console | None = None) -> StudyProgress:
    """The table on a terminal, lines elsewhere, nothing if quiet. console: by default standard error."""
    if quiet:
        return StudyProgress()
    console = console or Console(stderr=True)
    return Live(console) if console.is_terminal else Lines(console)


def _print(console: Console, line: str) -> None:
    """Print a line as it is: messages hold brackets, and a log has no width."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds as people say them: `45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
