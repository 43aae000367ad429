"""What a study leaves on disk for every point, and what that says about where the point stands.

OUTPUT/NAME/metrics.json   the run finished        (written by `argprune prune`, atomically, last)
OUTPUT/NAME/error.json     the run failed          {"error", "exit_status", "time"}
neither                    to run, or to resume
OUTPUT/NAME.yaml           the options given to `argprune prune`
OUTPUT/NAME.log            its output, every attempt
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from argprune.tasks.runs import METRICS, RunDirectory, write_json, write_yaml

State = Literal["finished", "failed", "left"]


@dataclass(frozen=True)
class StudyRun:
    """The files of one point of a study."""

    output: Path
    name: str

    @property
    def folder(self) -> Path:
        """The run directory, written by `argprune prune`."""
        return self.output / self.name

    @property
    def config(self) -> Path:
        """The options of the point, as YAML."""
        return self.output / f"{self.name}.yaml"

    @property
    def log(self) -> Path:
        """Standard output and standard error of every attempt."""
        return self.output / f"{self.name}.log"

    @property
    def _error(self) -> Path:
        return self.folder / "error.json"

    def state(self) -> State:
        """Where the run stands; one that finished is finished, whatever happened before."""
        if RunDirectory(self.folder).finished:
            return "finished"
        return "failed" if self._error.exists() else "left"

    def metrics(self) -> dict[str, Any]:
        """What the finished run measured. Raises ValueError where the file cannot be read."""
        return _read_json(self.folder / METRICS)

    def error(self) -> dict[str, Any]:
        """Why the run failed: "error", "exit_status" (None: it was never started) and "time"."""
        return _read_json(self._error)

    def options(self) -> dict[str, Any] | None:
        """The options that the point was given, None where it has not come to that."""
        try:
            return dict(yaml.safe_load(self.config.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def write_options(self, options: Mapping[str, Any]) -> None:
        """Write what `argprune prune --config` reads."""
        write_yaml(self.config, options)

    def write_error(self, error: str, exit_status: int | None) -> None:
        """Record that the run failed; exit_status is None where it was never started."""
        self.folder.mkdir(parents=True, exist_ok=True)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(self._error, {"error": error, "exit_status": exit_status, "time": now})

    def clear_error(self) -> None:
        """Forget a failure: the run is to be tried again."""
        self._error.unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}). Remove it to run the point again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a JSON object. Remove it to run the point again.")
    return content
