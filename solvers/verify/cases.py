"""The inputs that operators are tried on: random, degenerate and adversarial, each with a name and a prox step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Every registered operator takes this shape; others it may refuse with a ValueError.
SHAPE = (4, 6)
STEPS = (0.05, 0.5, 1.0, 4.0)
EXTREME_STEPS = (1e-8, 1e6)


@dataclass(frozen=True)
class Case:
    """An input and a step, with a name that says what is special about it."""

    name: str
    w: Tensor
    step: float

    @property
    def source(self) -> str:
        """Python that builds the input again, exactly."""
        return f"w = {_source(self.w)}; step = {self.step!r}"


def _source(w: Tensor) -> str:
    return f"torch.tensor({w.detach().cpu().tolist()!r}, dtype={w.dtype})"


def generator(seed: int) -> torch.Generator:
    """A CPU generator of its own, so that checks neither use nor move the global one."""
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal entries."""
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def generic(seed: int, count: int = 3) -> Iterator[Case]:
    """Inputs without ties or zeros, of the scales at which thresholds of order one bite, at ordinary steps."""
    for index in range(count):
        w = normal(seed + index, *SHAPE)
        for step in STEPS:
            yield Case(f"random {index}", w * (1.0, 2.0, 0.3)[index % 3], step)


def degenerate(seed: int) -> Iterator[Case]:
    """Zeros, ties, signs, single entries, equal rows: where branches meet and order is undecided."""
    w = normal(seed, *SHAPE)
    some = w * (normal(seed + 1, *SHAPE) > 0)
    inputs = {
        "zeros": torch.zeros_like(w),
        "negative zeros": -torch.zeros_like(w),
        "ones": torch.ones_like(w),
        "ties of both signs": w.sign(),
        "small integers": (2 * w).round(),
        "half zero": some,
        "one entry": torch.zeros_like(w).index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(1.5).double()),
        "equal rows": w[:1].expand(SHAPE).clone(),
        "equal columns": w[:, :1].expand(SHAPE).clone(),
        "rank one": w[:, :1] @ w[:1],
        "mixed scales": w * 10.0 ** torch.arange(-6, 6, 0.5, dtype=torch.float64).reshape(SHAPE),
    }
    for name, value in inputs.items():
        for step in (0.5, 1.0):
            yield Case(name, value, step)


def extreme(seed: int, dtype: torch.dtype) -> Iterator[Case]:
    """Huge, tiny and subnormal entries, and huge and tiny steps, in a dtype."""
    w = normal(seed, *SHAPE)
    tiny, huge = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    scales = {
        "huge": huge / 1024,
        "large": huge**0.6,
        "tiny": tiny * 16,
        "subnormal": tiny / 16,
        "small": tiny**0.4,
        "ordinary": 1.0,
    }
    for name, scale in scales.items():
        scaled = (w.clamp(-3, 3) * scale).to(dtype)
        for step in (1.0, *EXTREME_STEPS):
            yield Case(f"{name} {dtype}", scaled, step)


def shapes(seed: int) -> Iterator[Case]:
    """Other shapes and layouts: one element, no element, no dimension, three dimensions, strides."""
    w = normal(seed, 4, 6)
    inputs = {
        "one element": w[:1, :1].clone(),
        "0-dim": w[0, 0].clone(),
        "empty": w.new_zeros(0),
        "empty rows": w.new_zeros(0, 6),
        "1-dim": w.flatten(),
        "3-dim": w.reshape(2, 2, 6),
        "transposed": normal(seed + 1, 6, 4).t(),
        "every other column": normal(seed + 2, 4, 12)[:, ::2],
        "expanded": w[:1].expand(4, 6),
    }
    for name, value in inputs.items():
        yield Case(name, value, 0.5)
