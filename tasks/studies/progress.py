"""What a study says while it runs: nothing, plain lines, or a live table; always on standard error."""

from __future__ import annotations

import time

from rich import live
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from argprune.tasks.studies.records import State


class StudyProgress:
    """Counts a study's points and estimates the time left; prints nothing, which the others do."""

    def __init__(self) -> None:
        self.counts: dict[State, int] = {"finished": 0, "failed": 0, "left": 0}
        self._slots = 1
        self._title = ""
        self._started: dict[str, float] = {}
        self._seconds: list[float] = []

    def begin(self, title: str, counts: dict[State, int], slots: int) -> None:
        """Called once: the study's name, how many points stand where, and how many run side by side."""
        self._title, self._slots = title, slots
        self.counts = dict(counts)

    def start(self, name: str) -> None:
        """Called when a point starts."""
        self._started[name] = time.monotonic()

    def end(self, name: str, state: State, error: str = "") -> None:
        """Called when a point ended, or failed without having been started; "left" if it was killed."""
        seconds = self.elapsed(name)
        self._started.pop(name, None)
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
        verb = "killed (resumes next time)" if state == "left" else state
        took = f" after {duration(self.elapsed(name))}" if name in self._started else ""
        return f"{verb} {name}{took}" + (f": {error}" if error else "")

    def time_left(self) -> float | None:
        """Seconds to the end if every point takes this session's mean; None before the first has finished."""
        if not self._seconds:
            return None
        mean = sum(self._seconds) / len(self._seconds)
        running = [max(0.0, mean - self.elapsed(name)) for name in self._started]
        waiting = self.counts["left"] - len(running)
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

    def start(self, name: str) -> None:
        """Say what starts."""
        super().start(name)
        _print(self._console, f"started {name}")

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

    def close(self) -> None:
        """Draw the last state and leave it there."""
        super().close()
        self._live.stop()

    def table(self) -> Group:
        """What runs, for how long, under a line of counts."""
        table = Table.grid(padding=(0, 2))
        for name in list(self._started):
            table.add_row("running", name, duration(self.elapsed(name)))
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
