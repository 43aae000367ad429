"""Prox operators compiled into one pass over the weights: C++ on the CPU, Triton on CUDA, both by torch.compile.

The operators' own code is what is compiled, so that nothing is written twice. Where this machine cannot compile (no
C++ compiler, say), the same expressions run eagerly, with a warning.
"""

from __future__ import annotations

import functools
import itertools
import types
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from argprune.solvers.prox.base import Formula, apply_prox_, check_step, formula_of, fresh

_numbers = itertools.count()


class Fused:
    """A regularizer whose prox is one compiled pass; everything else is the regularizer's own.

    regularizer: one with a `formula`: every separable one of the catalogue, and those of group norms.
    The first call of a kind compiles for some seconds (the result is cached on disk); numbers that change from step
    to step, and tensors of factors, compile nothing anew. float32 and float64 tensors in one piece of memory are
    fused; what else the regularizer takes runs as it does without. Results agree to rounding.
    Raises ValueError for a regularizer without a formula.
    """

    def __init__(self, regularizer: Any) -> None:
        if formula_of(regularizer) is None:
            raise ValueError(f"Fused: {type(regularizer).__name__} has no formula to compile; use it as it is.")
        self.regularizer = regularizer

    def __getattr__(self, name: str) -> Any:
        # Before __init__, as in unpickling, there is nothing to ask.
        if name == "regularizer":
            raise AttributeError(name)
        return getattr(self.regularizer, name)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """The regularizer's prox, a new tensor."""
        check_step(step)
        w = w.detach()
        formula = formula_of(self.regularizer)
        if formula is None or not fusible(formula, w, step):
            result: Tensor = self.regularizer.prox(w, step)
            return result
        out = fresh(w)
        run(formula, w, step, out)
        return out

    def prox_(self, w: Tensor, step: float | Tensor, part: slice | None = None) -> Tensor:
        """The same, in place; `part` as every separable regularizer takes it."""
        check_step(step)
        formula = formula_of(self.regularizer)
        if part is not None:
            self.regularizer.prox_(w, step, part)
        elif formula is not None and fusible(formula, w, step):
            run(formula, w.detach(), step, None)
        else:
            apply_prox_(self.regularizer, w, step)
        return w


def fusible(formula: Formula, w: Tensor, step: float | Tensor) -> bool:
    """Whether the compiled pass takes these tensors: a dtype computed in, contiguous, one step or one an entry."""
    if w.dtype not in (torch.float32, torch.float64) or not w.is_contiguous() or w.numel() == 0:
        return False
    # Steps of 0 leave entries as they are, which the regularizers' own code sees to.
    if not isinstance(step, Tensor):
        return step > 0
    same = step.dim() == 0 or (formula.entrywise and step.shape == w.shape and step.is_contiguous())
    return same and step.dtype == w.dtype and bool((step > 0).all())


def prox_each_(regularizers: Sequence[Any], tensors: Sequence[Tensor], steps: Sequence[float]) -> None:
    """Replace every tensor by its regularizer's prox at its step; all that can be fused in one compiled call.

    regularizers, tensors, steps: one each, steps >= 0. The call is compiled for these shapes, which takes longer the
    more tensors there are (6 s for the 36 matrices of MiniLM), and saves what a call a tensor costs.
    Raises ValueError where the lengths differ or a step is no prox step.
    """
    layout: list[tuple[Callable[..., Tensor], int]] = []
    inputs: list[Tensor] = []
    alone = []
    for regularizer, w, step in zip(regularizers, tensors, steps, strict=True):
        check_step(step)
        formula, data = formula_of(regularizer), w.detach()
        if formula is None or not fusible(formula, data, step):
            alone.append((regularizer, data, step))
            continue
        layout.append((formula.function, len(formula.constants)))
        inputs += [formula.view(data), torch.tensor(step, dtype=torch.float64), *formula.constants]
    for regularizer, data, step in alone:
        apply_prox_(regularizer, data, step)
    if layout:
        kernel(_each, tuple(layout), dynamic=False)(*inputs)


def run(formula: Formula, w: Tensor, step: float | Tensor, out: Tensor | None) -> None:
    """Write formula(w, step) to `out`, or over w."""
    view = formula.view
    tau = step if isinstance(step, Tensor) else torch.tensor(step, dtype=torch.float64)
    inputs = (view(w), view(tau) if tau.dim() else tau, *formula.constants)
    if out is None:
        kernel(_over, formula.function)(*inputs)
    else:
        kernel(_into, formula.function)(view(out), *inputs)


def _into(function: Callable[..., Tensor], out: Tensor, w: Tensor, tau: Tensor, *constants: Tensor) -> None:
    out.copy_(function(w, tau, *constants))


def _over(function: Callable[..., Tensor], w: Tensor, tau: Tensor, *constants: Tensor) -> None:
    w.copy_(function(w, tau, *constants))


def _each(layout: Sequence[tuple[Callable[..., Tensor], int]], *inputs: Tensor) -> None:
    start = 0
    for function, count in layout:
        w, tau, *constants = inputs[start : start + 2 + count]
        w.copy_(function(w, tau, *constants))
        start += 2 + count


@functools.cache
def kernel(body: Callable[..., None], *functions: Hashable, dynamic: bool = True) -> Kernel:
    """body(*functions, ...) compiled: one kernel for equal functions, and where not `dynamic` for the shapes met."""
    return Kernel(body, functions, dynamic)


class Kernel:
    """A compiled function that writes to its arguments; eager from the first failure to compile on."""

    def __init__(self, body: Callable[..., None], functions: tuple[Any, ...], dynamic: bool) -> None:
        def call(*tensors: Tensor) -> None:
            body(*functions, *tensors)

        # torch limits the recompilations of a code object, which all kernels would share.
        code = call.__code__.replace(co_name=f"{body.__name__}_{next(_numbers)}")
        own = types.FunctionType(code, call.__globals__, code.co_name, None, call.__closure__)
        self._eager = own
        # As many threads as torch has when it runs: a kernel found in the cache on disk may be another process's.
        options: dict[str, Any] = {"cpp.dynamic_threads": True}
        self._compiled: Any = torch.compile(own, dynamic=dynamic, fullgraph=True, options=options)

    @torch.no_grad()
    def __call__(self, *tensors: Tensor) -> None:
        """Run; inputs that compile the first time take seconds."""
        if self._compiled is None:
            self._eager(*tensors)
            return
        from torch._dynamo.exc import TorchDynamoException

        try:
            self._compiled(*tensors)
        except TorchDynamoException as error:
            # Nothing has been written yet: what failed is the compilation.
            reason = str(error).strip().splitlines()[0]
            warnings.warn(f"fused operators run eagerly, since nothing compiles here: {reason}", stacklevel=2)
            self._compiled = None
            self._eager(*tensors)
