"""The trainer of a sharded model: what `PruningTrainer` does with whole weights, done with every process's rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from argprune.models.outputs import read_outputs
from argprune.solvers.methods import Method
from argprune.solvers.methods.outputs import Outputs
from argprune.tasks.bridge import load_method_state
from argprune.tasks.harness import PruningTrainer
from argprune.tasks.ranks import Ranks
from argprune.tasks.sharding import Sharding
from argprune.tasks.snapshots import TEACHER, Snapshots


class ShardedTrainer(PruningTrainer):
    """A `PruningTrainer` of a sharded model. load: loads the model anew, for snapshots of it."""

    computes_together = True

    def __init__(self, *args: Any, sharding: Sharding, load: Callable[[], PreTrainedModel], **kwargs: Any) -> None:
        self._sharding, self._load = sharding, load
        super().__init__(*args, **kwargs)
        # No DDP around the model, and it is where it belongs; what is left to prepare is autocast.
        prepare = self.accelerator.prepare_model
        self.accelerator.prepare_model = lambda model, **_: prepare(model, device_placement=False, evaluation_mode=True)

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        # It is there since it was sharded.
        return

    def _plain_optimizer(self, model: Any) -> torch.optim.Optimizer:
        optimizer = super()._plain_optimizer(model)
        self._sharding.take_over(optimizer)
        return optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The usual step; the gradients of the step before are let go before it needs the memory."""
        self._sharding.drop_gradients()
        return super().training_step(*args, **kwargs)

    def _clip_grad_norm(self, model: Any) -> Tensor:
        # Called before every step: settings refuse a max_grad_norm of 0, which would leave it out.
        self._sharding.take_gradients()
        return self._sharding.clip(self.args.max_grad_norm)

    def check_agreement(self) -> None:
        """Nothing: no process has what another has."""

    def check_finite(self) -> None:
        """Raise RunError, on all processes, where a parameter has NaN or Inf on any."""
        names = [name for name in self.ranks.gather(self._sharding.first_with_nan()) if name is not None]
        if names:
            self.refuse(names[0])

    def method_state(self) -> dict[str, Any]:
        """The method's state, whole, on the first process."""
        return self._sharding.method_state(self._method.state_dict())

    def load_method_state(self, checkpoint: Path) -> dict[str, Any]:
        """This process's part of the method's state at a checkpoint."""
        return self._sharding.method_shares(load_method_state(checkpoint))

    def make_snapshots(self, evaluate: Callable[[str], float]) -> Snapshots:
        """Snapshots that are sharded as the model is. evaluate: see `Snapshots`."""
        precision = "bf16" if self.args.bf16 else "fp32"
        return _ShardedSnapshots(self._method, self._sharding, evaluate, self._load, self.ranks, precision)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        whole = self._sharding.state_dict()
        if self.args.should_save:
            super()._save(output_dir, state_dict=whole)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        state = self._sharding.optimizer_state(self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._sharding.load(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        # Mapped: each process reads its rows alone.
        state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True, mmap=True)
        self._sharding.load_optimizer_state(self.optimizer, state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))


class _ShardedSnapshots(Snapshots):
    """`Snapshots` of a sharded model. load: loads the model anew, to be sharded alike and given the rows."""

    def __init__(
        self,
        method: Method,
        student: Sharding,
        evaluate: Callable[[str], float],
        load: Callable[[], PreTrainedModel],
        ranks: Ranks,
        precision: str,
    ) -> None:
        super().__init__(method, student.model, evaluate)
        self._student, self._load, self._ranks, self._precision = student, load, ranks, precision
        self._shards: Sharding | None = None
        self._whole: dict[str, Tensor] = {}

    def _take(self) -> None:
        self._copy_of_model().copy(self._student)

    @torch.no_grad()
    def outputs(self, inputs: Any) -> Outputs | None:
        """The teacher's outputs on a batch; None before there is one."""
        return None if self._shards is None else read_outputs(self._shards.model(**inputs), inputs)

    def collect(self) -> None:
        """Put the teacher together on the first process, for `save`."""
        self._whole = {} if self._shards is None else self._shards.state_dict()

    def _write(self, path: Path) -> None:
        # Each tensor once: safetensors does not hold tied ones.
        once = {id(value): (name, value) for name, value in reversed(self._whole.items())}
        save_file(dict(once.values()), path)
        self._whole = {}

    def _read(self, path: Path) -> None:
        self._copy_of_model().load(path.parent, TEACHER)

    def _copy_of_model(self) -> Sharding:
        if self._shards is None:
            # A head that is drawn anew must not change what the training draws.
            with torch.random.fork_rng(devices=[]):
                teacher = self._load().eval().requires_grad_(False)
            self._shards = Sharding(teacher, [], self._ranks, self._precision)
        return self._shards
