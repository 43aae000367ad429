"""Between transformers.Trainer and a `Method`: calls around every step, the log, and what checkpoints have besides."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from argprune.solvers.methods.base import Method
from argprune.tasks.progress import Progress
from argprune.tasks.runs import CHECKPOINT_DONE, RunDirectory, write_json
from argprune.tasks.snapshots import Snapshots

if TYPE_CHECKING:
    # At run time these would be circles: the trainer calls back, and what a teacher is matched on is encoded rows.
    from argprune.tasks.distillation import Distiller
    from argprune.tasks.harness import PruningTrainer

_METHOD_TENSORS = "method.safetensors"


class PruningBridge(TrainerCallback):
    """Calls the method around every optimizer step, writes the log, completes checkpoints with the method's state."""

    def __init__(self, method: Method, run: RunDirectory, progress: Progress) -> None:
        self._method, self.run, self._progress = method, run, progress
        self.trainer: PruningTrainer
        self.snapshots: Snapshots
        self.distiller: Distiller | None = None
        self._checkpoint: Path | None = None
        self._earlier, self._began = 0.0, time.monotonic()

    def resume_from(self, checkpoint: Path | None) -> None:
        """Say where the coming training starts: at a complete checkpoint, or from nothing."""
        self._checkpoint, self._earlier, self._began = checkpoint, 0.0, time.monotonic()
        step = 0
        if checkpoint is not None:
            marker = read_marker(checkpoint)
            self._earlier, step = marker["seconds"], marker["step"]
        self.trainer.ranks.first(lambda: self.run.truncate_log(step))

    def seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return self._earlier + time.monotonic() - self._began

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Restore what the method had at the checkpoint, or give each process noise of its own."""
        ranks = self.trainer.ranks
        if self._checkpoint is None and not ranks.is_first:
            # Every process draws a dropout of its own. What methods draw is the same for all: seeded before.
            torch.manual_seed(args.seed + 1_000_003 * ranks.rank)
        if self.distiller is not None:
            ranks.copy_first(self.distiller.parameters())
        # The optimizer is there and weights are loaded only now.
        if self._checkpoint is not None:
            self._method.load_state_dict(self.trainer.load_method_state(self._checkpoint))
            self.snapshots.load(self._checkpoint, read_marker(self._checkpoint)["snapshots"])
        else:
            self.snapshots.ask(-1)
        self._progress.start(state.max_steps, state.global_step)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._method.before_step(state.global_step)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The method's `after_step`, at the learning rate of the step just made."""
        assert self.trainer.optimizer is not None
        assert self.trainer.model is not None
        shapes = [parameter.shape for parameter in self.trainer.model.parameters()]
        self._method.after_step(state.global_step, float(self.trainer.optimizer.param_groups[0]["lr"]))
        if [parameter.shape for parameter in self.trainer.model.parameters()] != shapes:
            self.trainer.renew_reducer()
        self.snapshots.ask(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._progress.advance(state.global_step)
        # Trainer writes the checkpoint after this hook: weights that are not finite must not become one.
        if control.should_save or state.global_step >= state.max_steps:
            self.trainer.check_finite()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Any = None,
        **_: Any,
    ) -> None:
        """Trainer's line with the method's numbers, into the log and to the reader."""
        if "train_runtime" in logs:
            return
        line = {"step": state.global_step, **logs, **self._method.logs(), **self.trainer.pop_terms()}
        if self.trainer.ranks.is_first:
            self.run.append_log(line)
        self._progress.report(line)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Add to Trainer's checkpoint what the method needs, and last the marker that it is complete."""
        self.trainer.check_agreement()
        # Once all have written what is theirs: the checkpoint is complete with the marker.
        values = self.trainer.method_state()
        self.snapshots.collect()
        self.trainer.ranks.wait()
        if self.trainer.ranks.is_first:
            self._complete(self.run.path / f"checkpoint-{state.global_step}", state.global_step, values)

    def _complete(self, folder: Path, step: int, values: Mapping[str, Any]) -> None:
        save_file(
            {name: value.contiguous() for name, value in values.items() if isinstance(value, Tensor)},
            folder / _METHOD_TENSORS,
        )
        numbers = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
        write_json(
            folder / CHECKPOINT_DONE,
            {
                "step": step,
                "seconds": self.seconds(),
                "method": numbers,
                "snapshots": self.snapshots.save(folder),
            },
        )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._progress.stop()


def load_method_state(checkpoint: Path) -> dict[str, Any]:
    """What `Method.state_dict` gave at a checkpoint."""
    return {**load_file(checkpoint / _METHOD_TENSORS), **read_marker(checkpoint)["method"]}


def read_marker(checkpoint: Path) -> dict[str, Any]:
    """What the file that makes a checkpoint complete says: "step", "seconds", "method" and "snapshots"."""
    marker: dict[str, Any] = json.loads((checkpoint / CHECKPOINT_DONE).read_text(encoding="utf-8"))
    return marker
