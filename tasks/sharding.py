"""A model whose weights are sharded over the processes of a run (FSDP2), and what a training on the shards needs.

`fully_shard` cuts every parameter along its first dimension: in a forward or backward pass a block's weights are put
together, and let go afterwards. Between passes each process holds its rows alone. Optimizer and method work on these:
ordinary parameters that share the shards' memory. What leaves the run (checkpoints, models, masks) is whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.optim import Optimizer

from argprune.models.prunable import block_prefixes
from argprune.solvers.groups import Weight
from argprune.solvers.methods import Method
from argprune.solvers.shards import Shard, ShardGroup
from argprune.tasks.ranks import Ranks, digest
from argprune.tasks.runs import RunError
from argprune.tasks.settings import Settings
from argprune.tasks.texts import Task, Writes


def check_shardable(settings: Settings, name: str, method: Method, distills: bool) -> None:
    """Raise ValueError where settings ask for sharded weights (fsdp) and the method, or a teacher, needs whole ones.

    name: of the method, for the message. distills: whether a teacher teaches.
    """
    if not settings.fsdp:
        return
    reason = method.needs_whole_weights
    if reason is not None:
        raise ValueError(
            f"fsdp: method {name!r} needs whole weights ({reason}); leave fsdp out: without it every method runs on "
            f"several processes (DDP)."
        )
    if distills:
        raise ValueError("fsdp: a teacher is not sharded, and distillation needs one; leave fsdp or distill out.")


def check_task(settings: Settings, task: Task, ranks: Ranks) -> None:
    """Raise ValueError where settings ask for sharded weights, but the task or the number of processes rules it out."""
    if not settings.fsdp:
        return
    if ranks.size == 1:
        raise ValueError("fsdp: there is one process, and nothing to share the weights with; use torchrun, or no fsdp.")
    if isinstance(task, Writes):
        raise ValueError(
            f"fsdp: task {settings.task!r} is measured by texts that the model writes, for which every process needs "
            f"whole weights; leave fsdp out (DDP)."
        )


@dataclass(frozen=True, eq=False)
class _Part:
    """A parameter: its names in the model (several if it is tied), as FSDP has it, this process's rows, its shape."""

    names: tuple[str, ...]
    sharded: nn.Parameter
    local: nn.Parameter
    whole: torch.Size


class Sharding:
    """Shards a model in place over all processes, block by block; each method is called by all of them.

    model: on any device, the same on all processes; its parameters must not be kept elsewhere, or they stay in memory.
    weights: those of the model that a method prunes. ranks: more than one. precision: "bf16" puts weights together in
    bf16, for passes under autocast; shards, gradients and all that is done with them keep the model's own precision.
    """

    def __init__(self, model: nn.Module, weights: Sequence[Weight], ranks: Ranks, precision: str) -> None:
        assert ranks.group is not None
        self.model, self._ranks, self._group = model, ranks, ShardGroup(ranks.group)
        policy = MixedPrecisionPolicy()
        if precision == "bf16":
            # Whole weights in single precision, and their copies by autocast, would stay until the backward pass. What
            # passes between modules is left to autocast: masks of float32's range have none in bf16.
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        of_weights = [names[id(weight.parameter)][0] for weight in weights]
        mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (ranks.size,))
        for block in _blocks(model, names):
            fully_shard(block, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
        # The root too lets its weights go after every pass: between passes, all that is there are shards.
        fully_shard(model, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
        sharded = dict(model.named_parameters(remove_duplicate=False))
        self._parts = [_part(tuple(each), sharded[each[0]]) for each in names.values()]
        parts = {part.names[0]: part for part in self._parts}
        self.weights = [
            replace(weight, parameter=parts[name].local, shard=self._shard(parts[name].whole))
            for name, weight in zip(of_weights, weights, strict=True)
        ]

    def parameters(self) -> list[nn.Parameter]:
        """This process's rows of every parameter, in the model's order; a tensor may have none."""
        return [part.local for part in self._parts]

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """The same with their names in the model."""
        return ((part.names[0], part.local) for part in self._parts)

    def take_over(self, optimizer: Optimizer) -> None:
        """Have a new optimizer, made of the model's parameters, step on this process's rows instead."""
        assert not optimizer.state, "an optimizer that has stepped has moments of other tensors"
        local = {id(part.sharded): part.local for part in self._parts}
        for group in optimizer.param_groups:
            group["params"] = [local[id(parameter)] for parameter in group["params"]]

    def take_gradients(self) -> None:
        """Give this process's rows the gradients that the backward passes have left, without copying them."""
        for part in self._parts:
            gradient: Any = part.sharded.grad
            part.local.grad = None if gradient is None else gradient.to_local()

    def drop_gradients(self) -> None:
        """Let go of the gradients that were taken."""
        for part in self._parts:
            part.local.grad = None

    @torch.no_grad()
    def clip(self, most: float) -> Tensor:
        """Scale the gradients that were taken to an l2 norm of at most `most`; the norm that they had, of all rows."""
        gradients = [part.local.grad for part in self._parts if part.local.grad is not None]
        own = torch.nn.utils.get_total_norm(gradients)
        [squared] = self._group.add_up([float(own) ** 2])
        total = torch.tensor(math.sqrt(squared), dtype=own.dtype, device=own.device)
        torch.nn.utils.clip_grads_with_norm_(self.parameters(), most, total)
        return total

    def first_with_nan(self) -> str | None:
        """The name of a parameter with NaN or Inf in this process's rows, if there is one."""
        for name, parameter in self.named_parameters():
            if not bool(torch.isfinite(parameter.detach().sum(dtype=torch.float32))):
                return name
        return None

    def gather(self, rows: Tensor, whole: torch.Size) -> Tensor | None:
        """A tensor of shape `whole` on the first process, on the CPU, from the rows of all; None on the others."""
        most, size = self._rows(whole), self._ranks.size
        padded = rows.detach().new_zeros((most, *whole[1:]))
        padded[: len(rows)] = rows.detach()
        # As bytes, which go over any process group, whatever the type is.
        own = padded.cpu().view(-1).view(torch.uint8)
        parts = [torch.empty_like(own) for _ in range(size)] if self._ranks.is_first else None
        dist.gather(own, parts, dst=0, group=self._group.group)
        if parts is None:
            return None
        together = torch.cat(parts).view(rows.dtype).view(most * size, *whole[1:])
        return together if len(together) == whole[0] else together[: whole[0]].clone()

    def state_dict(self) -> dict[str, Tensor]:
        """The whole model's `state_dict`, on the CPU of the first process; empty on the others."""
        values = {name: self.gather(part.local, part.whole) for part in self._parts for name in part.names[:1]}
        if not self._ranks.is_first:
            return {}
        first_names = {name: part.names[0] for part in self._parts for name in part.names}
        found: dict[str, Tensor] = {}
        for name, value in self.model.state_dict().items():
            whole = values[first_names[name]] if name in first_names else value.cpu()
            assert whole is not None
            found[name] = whole
        return found

    @torch.no_grad()
    def load(self, folder: Path, pattern: str = "model*.safetensors") -> None:
        """Read this process's rows of all parameters, and the buffers, from a folder's files of whole tensors.

        Raises RunError where a parameter is in none of them.
        """
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(path, "pt")) for path in sorted(folder.glob(pattern))]
            holder = {name: file for file in files for name in file.keys()}  # noqa: SIM118, it is no mapping
            for part in self._parts:
                name = next((name for name in part.names if name in holder), None)
                if name is None:
                    raise RunError(f"{folder}: {pattern} has no weight {part.names[0]!r}; remove the checkpoint.")
                if len(part.local):
                    part.local.copy_(self._own_rows(holder[name].get_slice(name), part))
            for name, buffer in self.model.named_buffers():
                if name in holder:
                    buffer.copy_(holder[name].get_tensor(name))

    @torch.no_grad()
    def copy(self, other: Sharding) -> None:
        """Take over the values of another model of the same kind, sharded alike."""
        for own, given in zip(self._parts, other._parts, strict=True):
            own.local.copy_(given.local)
        for buffer, value in zip(self.model.buffers(), other.model.buffers(), strict=True):
            buffer.copy_(value)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """What the optimizer of whole tensors would save, on the first process; on the others its groups alone."""
        saved = optimizer.state_dict()
        state: dict[int, dict[str, Any]] = {}
        for index, part in self._stepped(optimizer, saved):
            values = saved["state"].get(index, {})
            state[index] = {name: self._whole(value, part.local, part.whole) for name, value in values.items()}
        return {**saved, "state": state if self._ranks.is_first else {}}

    def load_optimizer_state(self, optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
        """Restore what `optimizer_state` gave on the first process."""
        state = {
            index: {name: self._share(value, part) for name, value in saved["state"].get(index, {}).items()}
            for index, part in self._stepped(optimizer, saved)
        }
        optimizer.load_state_dict({**saved, "state": {index: values for index, values in state.items() if values}})

    def method_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A method's state with whole tensors, on the first process; empty on the others.

        Raises RunError where what is not sharded differs between the processes.
        """
        shards = {weight.name: weight for weight in self.weights}
        found: dict[str, Any] = {}
        common: dict[str, Any] = {}
        for key, value in state.items():
            weight = shards.get(key.partition(".")[2])
            if weight is not None and isinstance(value, Tensor) and value.shape == weight.parameter.shape:
                assert weight.shard is not None
                found[key] = self.gather(value, weight.shard.whole)
            else:
                found[key] = value
                common[key] = digest([value]) if isinstance(value, Tensor) else value
        for rank, other in enumerate(self._group.gather(common)):
            for key, value in common.items():
                if other.get(key) != value:
                    raise RunError(
                        f"the method's {key} differs between ranks {self._ranks.rank} and {rank}; run all processes on "
                        f"equal hardware, with equal versions."
                    )
        return found if self._ranks.is_first else {}

    def method_shares(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """This process's part of what `method_state` gave on the first process."""
        parts = {weight.name: self._part_of(weight) for weight in self.weights}
        found = {}
        for key, value in state.items():
            part = parts.get(key.partition(".")[2])
            found[key] = value if part is None else self._share(value, part)
        return found

    def masks(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Masks of whole weights on the first process, from those of all processes' rows; empty on the others."""
        shards = {weight.name: weight.shard for weight in self.weights}
        found = {}
        for name, mask in masks.items():
            shard = shards[name]
            assert shard is not None
            whole = self.gather(mask, shard.whole)
            if whole is not None:
                found[name] = whole
        return found

    def _rows(self, whole: torch.Size) -> int:
        """How many rows of a tensor the first process has; the last may have fewer, or none."""
        return math.ceil(whole[0] / self._ranks.size)

    def _shard(self, whole: torch.Size) -> Shard:
        return Shard(self._group, whole, self._first_row(whole) * math.prod(whole[1:]))

    def _first_row(self, whole: torch.Size) -> int:
        return min(self._ranks.rank * self._rows(whole), whole[0])

    def _own_rows(self, values: Any, part: _Part) -> Any:
        """This process's rows of a whole tensor, or of a slice of a file."""
        start = self._first_row(part.whole)
        return values[start : start + len(part.local)]

    def _whole(self, value: Any, local: Tensor, whole: torch.Size) -> Any:
        return self.gather(value, whole) if isinstance(value, Tensor) and value.shape == local.shape else value

    def _share(self, value: Any, part: _Part) -> Any:
        is_whole = isinstance(value, Tensor) and value.shape == part.whole
        return self._own_rows(value, part).clone() if is_whole else value

    def _part_of(self, weight: Weight) -> _Part:
        return next(part for part in self._parts if part.local is weight.parameter)

    def _stepped(self, optimizer: Optimizer, saved: Mapping[str, Any]) -> Iterable[tuple[int, _Part]]:
        """What an optimizer steps on, by the numbers that its state gives the parameters."""
        parts = {id(part.local): part for part in self._parts}
        for group, numbered in zip(optimizer.param_groups, saved["param_groups"], strict=True):
            for parameter, index in zip(group["params"], numbered["params"], strict=True):
                yield index, parts[id(parameter)]


def _part(names: tuple[str, ...], sharded: nn.Parameter) -> _Part:
    rows: Any = sharded.detach()
    local = nn.Parameter(rows.to_local(), requires_grad=sharded.requires_grad)
    return _Part(names, sharded, local, sharded.shape)


def _blocks(model: nn.Module, names: Mapping[int, Sequence[str]]) -> list[nn.Module]:
    """The transformer blocks of a model, but for those that share parameters with anything else."""
    found = []
    for prefix in block_prefixes(model):
        for child, block in model.get_submodule(prefix.removesuffix(".")).named_children():
            own = [names[id(parameter)] for parameter in block.parameters()]
            if own and all(name.startswith(f"{prefix}{child}.") for each in own for name in each):
                found.append(block)
    return found
