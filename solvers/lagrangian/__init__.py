"""Random gates with a differentiable count, and dual ascent that drives them to a size."""

from argprune.solvers.lagrangian.constraints import Ascent as Ascent
from argprune.solvers.lagrangian.constraints import SizeConstraint as SizeConstraint
from argprune.solvers.lagrangian.constraints import SizeLagrangian as SizeLagrangian
from argprune.solvers.lagrangian.expected_size import ExpectedSize as ExpectedSize
from argprune.solvers.lagrangian.expected_size import Gated as Gated
from argprune.solvers.lagrangian.hard_concrete import HardConcrete as HardConcrete
from argprune.solvers.lagrangian.multipliers import Multipliers as Multipliers
from argprune.solvers.lagrangian.training import GateOptions as GateOptions
from argprune.solvers.lagrangian.training import GateTraining as GateTraining
from argprune.solvers.lagrangian.training import prefixed as prefixed
