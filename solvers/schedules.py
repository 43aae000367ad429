"""Schedules: functions from the step number to a float."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CubicSparsity:
    """Gradual sparsity, s(t) = final + (initial - final) (1 - (t - begin) / (end - begin))^3 between begin and end.

    begin, end: step numbers, 0 <= begin <= end; initial, final: sparsities in [0, 1).
    Constant outside the interval. Reference: Zhu and Gupta (2017), equation 1.

    >>> [round(CubicSparsity(0.8, begin=0, end=10)(step), 3) for step in (0, 5, 10, 99)]
    [0.0, 0.7, 0.8, 0.8]
    """

    final: float
    begin: int
    end: int
    initial: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.begin <= self.end:
            raise ValueError(f"CubicSparsity: begin {self.begin}, end {self.end}; need 0 <= begin <= end.")
        check_sparsity(self.final)
        check_sparsity(self.initial)

    def __call__(self, step: int) -> float:
        """Sparsity wanted after step `step` (0-based)."""
        if step < self.begin:
            return self.initial
        if step >= self.end:
            return self.final
        left = 1 - (step - self.begin) / (self.end - self.begin)
        return self.final + (self.initial - self.final) * left**3


@dataclass(frozen=True)
class Phases:
    """A run's three parts: dense warm-up, pruning, cool-down with the support fixed.

    warmup, cooldown: fractions of the run in [0, 1), together below 1.
    """

    warmup: float
    cooldown: float

    def __post_init__(self) -> None:
        if not (self.warmup >= 0 and self.cooldown >= 0 and self.warmup + self.cooldown < 1):
            raise ValueError(
                f"warmup {self.warmup} and cooldown {self.cooldown}: fractions of the run, both >= 0, their sum < 1."
            )

    def steps(self, total_steps: int) -> tuple[int, int]:
        """First and last pruning step (0-based, inclusive) of a run of `total_steps` >= 1 steps."""
        if total_steps < 1:
            raise ValueError(f"total_steps {total_steps}; a run has at least one step.")
        begin = min(round(self.warmup * total_steps), total_steps - 1)
        end = max(begin, round((1 - self.cooldown) * total_steps) - 1)
        return begin, end


def check_sparsity(sparsity: float) -> None:
    """Raise ValueError unless sparsity is in [0, 1)."""
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity {sparsity}: it is the fraction of zeros over the prunable weights, in [0, 1).")
