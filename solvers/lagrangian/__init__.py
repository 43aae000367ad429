"""Random gates with a differentiable count, for methods that meet a budget by multipliers."""

from argprune.solvers.lagrangian.hard_concrete import HardConcrete as HardConcrete
