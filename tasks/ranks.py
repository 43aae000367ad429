"""Several processes that carry out one run: the first alone writes, all of them fail together.

They are those that `torchrun` or `accelerate launch` started, one a rank. Tensors of the training go over the process
group that Trainer uses; what is here goes over a group of its own on the CPU, which waits as long as it takes: for
another run's lock, or until the first process has written a large model. A process that dies ends all the others.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from argprune.tasks.runs import RunError

T = TypeVar("T")

_PATIENCE = timedelta(days=30)
# In the store that processes met at: how many of them have failed.
_FAILURES = "argprune/failures"


def was_launched() -> bool:
    """Whether this process is one of several that were started to work together."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


class Ranks:
    """The processes of a run, in order of rank; each method is called by all of them, with the same arguments."""

    def __init__(self, rank: int = 0, size: int = 1, group: dist.ProcessGroup | None = None) -> None:
        self.rank, self.size, self._group = rank, size, group

    @property
    def group(self) -> dist.ProcessGroup | None:
        """What the processes talk over on the CPU; None of a single one."""
        return self._group

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """What each process gave, in order of rank."""
        if self.size == 1:
            return [value]
        result: list[Any] = [None] * self.size
        dist.all_gather_object(result, value, self._group)
        return result

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.gather(None)

    def first(self, job: Callable[[], T]) -> T:
        """What a job gives that the first process alone does. What it raises, all raise."""
        if self.size == 1:
            return job()
        box: list[Any] = [None, None]
        own: Exception | None = None
        if self.is_first:
            try:
                box[0] = job()
            except Exception as error:
                own, box[1] = error, _portable(error)
        dist.broadcast_object_list(box, 0, self._group)
        value, problem = box
        if problem is not None:
            raise own or problem
        return value

    def all(self, job: Callable[[], T]) -> T:
        """What a job gives that every process does for itself. What one of them raises, all raise."""
        if self.size == 1:
            return job()
        value: Any = None
        own: Exception | None = None
        try:
            value = job()
        except Exception as error:
            own = error
        for problem in self.gather(None if own is None else _portable(own)):
            if problem is not None:
                raise own or problem
        return value

    @contextmanager
    def holding(self, enter: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
        """Within, the first process is in a context, such as a lock, that it alone enters; others wait for that."""
        context = None

        def go_in() -> None:
            nonlocal context
            context = enter()
            context.__enter__()

        self.first(go_in)
        try:
            yield
        finally:
            if context is not None:
                context.__exit__(None, None, None)

    def check_same(self, options: Mapping[str, Any]) -> None:
        """Raise ValueError where the processes were given different options."""
        for rank, given in enumerate(self.gather(dict(options))):
            for key, value in options.items():
                if given.get(key) != value:
                    raise ValueError(
                        f"{key}: {given.get(key)!r} on rank {rank}, {value!r} on rank {self.rank}; start all processes "
                        f"with the same options."
                    )

    def check_agreement(self, tensors: Iterable[Tensor], when: str) -> None:
        """Raise RunError unless tensors are the same to the bit on all processes."""
        if self.size == 1:
            return
        digests = self.gather(digest(tensors))
        if len(set(digests)) > 1:
            differing = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
            raise RunError(
                f"the weights of ranks 0 and {differing} differ {when}; run all processes on equal hardware, with "
                f"equal versions and numbers of threads (OMP_NUM_THREADS)."
            )

    @torch.no_grad()
    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's values of tensors on the training's device."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.data, 0)

    def add_up(self, counts: Tensor) -> Tensor:
        """The sum of all processes' counts, on the CPU."""
        if self.size > 1:
            dist.all_reduce(counts, group=self._group)
        return counts


@cache
def open_ranks() -> Ranks:
    """The processes of this run; one, where nothing started several. Raises ValueError for accelerate's FSDP."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1"):
        raise ValueError(
            "FSDP of accelerate (--use_fsdp) hides the shards from methods, and on CPUs it is DDP; launch without it, "
            "and give argprune --fsdp."
        )
    if not was_launched():
        return Ranks()
    from accelerate import PartialState  # type: ignore[import-untyped]

    # Trainer takes over the processes as they are here.
    PartialState(cpu=not torch.cuda.is_available())
    group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    return Ranks(dist.get_rank(), dist.get_world_size(), group)


def close_ranks() -> None:
    """Take leave of the other processes, once all are here; the last that a process does with them.

    One that ends with its connections open now and then aborts, with all its work done ("terminate called").
    """
    if was_launched() and dist.is_initialized():
        open_ranks().wait()
        open_ranks.cache_clear()
        dist.destroy_process_group()


def may_complain() -> bool:
    """Whether this process shall print the error that ends the run: it is the first of all that met one."""
    if not was_launched():
        return True
    if not dist.is_initialized():
        # Nothing but the arguments was read, and those are the same for all.
        return os.environ["RANK"] == "0"
    try:
        return dist.distributed_c10d._get_default_store().add(_FAILURES, 1) == 1
    except RuntimeError:
        # It ended with the process that failed first.
        return False


def lost_connection(error: BaseException) -> bool:
    """Whether an error says that another process is gone."""
    told = str(error).lower()
    signs = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")
    return isinstance(error, RuntimeError) and any(sign in told for sign in signs)


def _portable(error: Exception) -> Exception:
    """The error as other processes can read it."""
    if isinstance(error, RunError) or type(error) in (ValueError, ImportError):
        return error
    return RunError(f"{type(error).__name__}: {error}")


def digest(tensors: Iterable[Tensor]) -> int:
    """A number that differs where any bit of any of the tensors does, but for chance."""
    found = 0
    for tensor in tensors:
        found = zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data, found)
    return found
