"""Other libraries' proximal operators, as functions to time; a library that is not installed is left out.

pyproximal 0.13, jaxopt (compiled), ProxTorch, torchao's PAT, skglm (in a compiled parallel loop, as its solvers call
it). All are on the package index; `pip install --no-deps` leaves torch alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

# Shared by all sides. Groups are rows of 768 normal entries, whose norms are about 28.
STRENGTH, STEP = 0.7, 0.5
GROUP_STRENGTH = 56.0
RADIUS, KEPT = 1e3, 0.1

Side = tuple[str, Callable[[], object]]


def peers(name: str, w: torch.Tensor) -> list[Side]:
    """Every library's version of an operator, on w: flat, or for groups and singular values a matrix."""
    libraries = {
        "torch": _torch,
        "pyproximal": _pyproximal,
        "jaxopt (jit)": _jaxopt,
        "proxtorch": _proxtorch,
        "torchao PAT": _pat,
        "skglm": _skglm,
    }
    found = {library: make(name, w) for library, make in libraries.items()}
    return [(library, action) for library, action in found.items() if action is not None]


@cache
def _optional(module: str) -> Any:
    """The module, or None where it is not installed or does not import beside this torch."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        print(f"without {module}: {error}")
        return None


def _torch(name: str, w: torch.Tensor) -> Callable[[], object] | None:
    actions = {
        "l1": lambda: torch.nn.functional.softshrink(w, STRENGTH * STEP),
        "l0": lambda: torch.nn.functional.hardshrink(w, (2 * STRENGTH * STEP) ** 0.5),
        "box": lambda: w.clamp(-1, 1),
    }
    return actions.get(name)


def _pyproximal(name: str, w: torch.Tensor) -> Callable[[], object] | None:
    library = _optional("pyproximal")
    if library is None:
        return None
    size = w.numel()
    operators = {
        "l1": lambda: library.L1(sigma=STRENGTH),
        "l0": lambda: library.L0(sigma=STRENGTH),
        "squared_l2": lambda: library.L2(sigma=STRENGTH),
        "scad": lambda: library.SCAD(STRENGTH, 3.7),
        "huber": lambda: library.Huber(alpha=STRENGTH),
        "geman": lambda: library.Geman(STRENGTH, 0.5),
        "log_sum": lambda: library.Log1(STRENGTH, 0.5),
        "group_lasso": lambda: library.L21(ndim=w.shape[-1], sigma=GROUP_STRENGTH),
        "l0_ball": lambda: library.L0Ball(int(KEPT * size)),
        "l1_ball": lambda: library.L1Ball(size, RADIUS),
        "l2_ball": lambda: library.EuclideanBall(0.0, RADIUS),
        "simplex": lambda: library.Simplex(size, RADIUS),
        "box": lambda: library.Box(-1.0, 1.0),
        "nuclear": lambda: library.Nuclear(tuple(w.shape), STRENGTH),
    }
    if name not in operators:
        return None
    operator = operators[name]()
    # L21 takes the groups' entries one behind the other: the transpose.
    array = w.numpy().T.copy().ravel() if name == "group_lasso" else w.numpy().ravel()
    return lambda: operator.prox(array, STEP)


def _jaxopt(name: str, w: torch.Tensor) -> Callable[[], object] | None:
    library = _optional("jaxopt")
    if library is None:
        return None
    import jax

    prox, projection = library.prox, library.projection
    functions = {
        "l1": lambda v: prox.prox_lasso(v, STRENGTH, STEP),
        "elastic_net": lambda v: prox.prox_elastic_net(v, (STRENGTH, 1.0), STEP),
        "squared_l2": lambda v: prox.prox_ridge(v, STRENGTH, STEP),
        "nonnegative_l1": lambda v: prox.prox_non_negative_lasso(v, STRENGTH, STEP),
        "group_lasso": lambda v: jax.vmap(lambda row: prox.prox_group_lasso(row, GROUP_STRENGTH, STEP))(v),
        "l1_ball": lambda v: projection.projection_l1_ball(v, RADIUS),
        "l2_ball": lambda v: projection.projection_l2_ball(v, RADIUS),
        "simplex": lambda v: projection.projection_simplex(v, RADIUS),
        "box": lambda v: projection.projection_box(v, (-1.0, 1.0)),
    }
    if name not in functions:
        return None
    compiled, x = jax.jit(functions[name]), jax.numpy.asarray(w.numpy())
    return lambda: compiled(x)


def _proxtorch(name: str, w: torch.Tensor) -> Callable[[], object] | None:
    homes = {
        "l1": ("operators.l1", "L1", (STRENGTH,)),
        "elastic_net": ("operators.elastic_net", "ElasticNet", (STRENGTH, 0.5)),
        "squared_l2": ("operators.l2", "L2", (STRENGTH,)),
        "huber": ("operators.huber", "Huber", (STRENGTH, 1.0)),
        "nuclear": ("operators.tracenorm", "TraceNorm", (STRENGTH,)),
        "l0_ball": ("constraints.l0ball", "L0Ball", (int(KEPT * w.numel()),)),
        "l1_ball": ("constraints.l1ball", "L1Ball", (RADIUS,)),
        "l2_ball": ("constraints.l2ball", "L2Ball", (RADIUS,)),
        "box": ("constraints.box", "Box", (-1.0, 1.0)),
    }
    if name not in homes:
        return None
    module, cls, options = homes[name]
    library = _optional(f"proxtorch.{module}")
    if library is None:
        return None
    operator = getattr(library, cls)(*options)
    step = (STEP,) if module.startswith("operators") else ()
    # Some of its operators write into their input.
    return lambda: operator.prox(w.clone() if name == "huber" else w, *step)


def _pat(name: str, w: torch.Tensor) -> Callable[[], object] | None:
    maps = {
        "l1": ("lasso", "ProxLasso", (STRENGTH,)),
        "group_lasso": ("group_lasso", "ProxGroupLassoVectorized", (GROUP_STRENGTH, 1)),
    }
    if name not in maps:
        return None
    module, cls, options = maps[name]
    library = _optional(f"torchao.prototype.pat.optim.{module}")
    if library is None:
        return None
    mapping = getattr(library, cls)(*options)
    # In place; the copy is what makes the result a new array, as it is on the other sides.
    return lambda: mapping.apply_(w.clone(), STEP)


def _skglm(name: str, w: torch.Tensor) -> Callable[[], object] | None:
    library = _optional("skglm.utils.prox_funcs")
    if library is None:
        return None
    import numba
    import numpy as np

    array = w.numpy()
    if name == "slope":
        factors = STRENGTH * STEP * (1 - 0.5 * np.arange(w.numel()) / (w.numel() - 1))

        def slope() -> Any:
            # It takes sorted magnitudes, and leaves order and signs to the caller.
            order = np.argsort(-np.abs(array))
            result = np.empty_like(array)
            result[order] = library.prox_SLOPE(np.abs(array)[order], factors)
            return np.copysign(result, array)

        return slope
    scalar = {
        "l1": (library.ST, (STRENGTH * STEP,)),
        "mcp": (library.prox_MCP, (STEP, STRENGTH, 3.0)),
        "scad": (library.prox_SCAD, (STEP, STRENGTH, 3.7)),
        "l_half": (library.prox_05, (STRENGTH * STEP,)),
        "l_two_thirds": (library.prox_2_3, (STRENGTH * STEP,)),
        "log_sum": (library.prox_log_sum, (STRENGTH * STEP, 0.5)),
        "box": (library.box_proj, (-1.0, 1.0)),
    }
    if name not in scalar:
        return None
    function, options = scalar[name]

    @numba.njit(parallel=True)
    def loop(x: Any) -> Any:
        result = np.empty_like(x)
        for i in numba.prange(x.size):
            result[i] = function(x[i], *options)
        return result

    try:
        loop(array[:64])
    except numba.NumbaError as error:
        print(f"without skglm {name}: {str(error).splitlines()[0]}")
        return None
    return lambda: loop(array)
