"""The teacher of self-regularization: a copy of the model that is being trained, as it was when the method asked."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model

from argprune.models.outputs import read_outputs
from argprune.solvers.methods.base import Method
from argprune.solvers.methods.outputs import Outputs

TEACHER = "teacher.safetensors"


class Snapshots:
    """Keeps the teacher: asks the method after every step, copies the model, answers for it on a batch.

    evaluate: the score of the model as it is on "held-out" or "dev", larger = better.
    """

    def __init__(self, method: Method, model: torch.nn.Module, evaluate: Any) -> None:
        self._method, self._model, self._evaluate = method, model, evaluate
        self._teacher: torch.nn.Module | None = None
        self.best = -float("inf")
        self.taken = 0

    def ask(self, step: int) -> None:
        """After optimizer step `step` (-1 before the first): renew the teacher if the method wants it."""
        answer = self._method.snapshot(step)
        if answer == "no":
            return
        if answer != "take":
            score = self._evaluate(answer)
            if not score > self.best:
                return
            self.best = score
        self._take()
        self.taken += 1

    def _take(self) -> None:
        self._copy().load_state_dict(self._model.state_dict())

    @torch.no_grad()
    def outputs(self, inputs: Mapping[str, Any]) -> Outputs | None:
        """The teacher's outputs on a batch; None before there is one."""
        return None if self._teacher is None else read_outputs(self._teacher(**inputs), inputs)

    def collect(self) -> None:
        """Called by all processes before the first one's `save`."""

    def save(self, folder: Path) -> dict[str, float]:
        """Write the teacher into a checkpoint; returns the numbers that `load` wants back."""
        if self.taken:
            self._write(folder / TEACHER)
        return {"taken": self.taken, **({"best": self.best} if self.best > -float("inf") else {})}

    def load(self, folder: Path, numbers: Mapping[str, float]) -> None:
        """Restore what `save` wrote."""
        self.taken, self.best = int(numbers["taken"]), numbers.get("best", -float("inf"))
        if self.taken:
            self._read(folder / TEACHER)

    def _write(self, path: Path) -> None:
        save_model(self._copy(), str(path))

    def _read(self, path: Path) -> None:
        load_model(self._copy(), str(path))

    def _copy(self) -> torch.nn.Module:
        if self._teacher is None:
            self._teacher = copy.deepcopy(self._model).eval().requires_grad_(False)
        return self._teacher
