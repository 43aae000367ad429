"""Layer solvers by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from argprune.solvers.admm.alps import ALPS
from argprune.solvers.admm.gradual import GradualADMM
from argprune.solvers.admm.greedy import OBS
from argprune.solvers.admm.layer import LayerSolver
from argprune.solvers.admm.scored import Magnitude, Wanda
from argprune.solvers.admm.shrunk import ShrunkADMM
from argprune.solvers.admm.sparsegpt import SparseGPT

SOLVERS: Mapping[str, type[LayerSolver]] = MappingProxyType(
    {
        "admm": GradualADMM,
        "alps": ALPS,
        "magnitude": Magnitude,
        "obs": OBS,
        "shrunk-admm": ShrunkADMM,
        "sparsegpt": SparseGPT,
        "wanda": Wanda,
    }
)


def named(name: str) -> LayerSolver:
    """The solver of that name, with its default options. Raises ValueError for an unknown one."""
    if name not in SOLVERS:
        close = difflib.get_close_matches(name, SOLVERS, n=1)
        hint = f" Closest: {close[0]!r}." if close else ""
        raise ValueError(f"No layer solver {name!r}. Known: {', '.join(SOLVERS)}.{hint}")
    return SOLVERS[name]()
