"""Pruning a transformer is an argmin over supports: methods, exact solvers, certificates.

The public names are loaded when first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from argprune._version import __version__ as __version__

if TYPE_CHECKING:
    from argprune.models import find_weights as find_weights
    from argprune.models import measure_sparsity as measure_sparsity
    from argprune.solvers.prox import L1 as L1
    from argprune.solvers.prox import FixedSupport as FixedSupport
    from argprune.solvers.prox import ProximalOptimizer as ProximalOptimizer
    from argprune.solvers.prox import WeightedL1 as WeightedL1
    from argprune.tasks.prune import Run as Run
    from argprune.tasks.prune import prune as prune

_HOMES = {
    "FixedSupport": "argprune.solvers.prox",
    "L1": "argprune.solvers.prox",
    "ProximalOptimizer": "argprune.solvers.prox",
    "Run": "argprune.tasks.prune",
    "WeightedL1": "argprune.solvers.prox",
    "find_weights": "argprune.models",
    "measure_sparsity": "argprune.models",
    "prune": "argprune.tasks.prune",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'argprune' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
