"""Regularizers, projections, reweighting, and the proximal optimizer."""

from argprune.solvers.prox.base import Regularizer as Regularizer
from argprune.solvers.prox.calibration import magnitude_cut as magnitude_cut
from argprune.solvers.prox.calibration import total_for_sparsity as total_for_sparsity
from argprune.solvers.prox.optimizer import ProximalOptimizer as ProximalOptimizer
from argprune.solvers.prox.reweighting import LogReweighting as LogReweighting
from argprune.solvers.prox.separable import L1 as L1
from argprune.solvers.prox.separable import WeightedL1 as WeightedL1
from argprune.solvers.prox.separable import soft_threshold_ as soft_threshold_
from argprune.solvers.prox.sets import FixedSupport as FixedSupport
from argprune.solvers.prox.sets import L0Ball as L0Ball
