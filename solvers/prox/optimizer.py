"""A proximal optimizer around any torch optimizer: its step on the smooth part, then a prox on chosen weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from argprune.solvers.groups import Elements, Weight
from argprune.solvers.prox.base import LONG_CHUNK, Formula, Regularizer, apply_prox_, formula_of
from argprune.solvers.prox.fused import prox_each_
from argprune.solvers.prox.fused_step import adam_and_prox_, metric_prox_, takes

Metric = Literal["decoupled", "constant", "metric"]
Strength = float | Sequence[float] | Callable[["ProximalOptimizer"], Sequence[float]]


class ProximalOptimizer(Optimizer):
    """Minimise f(W) + strength * sum_j R_j(W_j): `optimizer` steps on f, then each W_j is replaced by its prox.

    optimizer: any torch optimizer; learning-rate schedules act on it through the shared `param_groups`.
    weights: the W_j, as parameters of that optimizer or `Weight`s (whose groups then shape what the prox sees).
    regularizer: one for all weights, or a sequence of one each.
    metric: the prox step tau_t.
        "decoupled": the weight's learning rate, the l1 analogue of AdamW's weight decay;
        "constant": `step`, whatever the learning rate;
        "metric": learning rate / (sqrt(v_hat) + eps) with the optimizer's own second moments v, entry by entry: the
        exact proximal-gradient step in Adam's metric, the only one whose fixed points minimise the objective above.
    step: the constant's prox step, > 0; for "constant" only.
    strength: >= 0, a number for all weights or a sequence of one each; or a controller, called between the wrapped
    optimizer's step and the prox, that returns such a sequence. May be reassigned between steps.
    fused: AdamW's step and the prox in one compiled pass, where optimizer and regularizers have one.

    Raises ValueError where a weight is not in the optimizer, where `step` and `metric` disagree, and, at the first
    step, where "metric" meets an optimizer without second moments.
    Reference: Guo et al. (2019), algorithm 1; see docs/theory/rpp.md for what each metric converges to.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        weights: Iterable[Weight | torch.nn.Parameter],
        regularizer: Regularizer | Sequence[Regularizer],
        *,
        metric: Metric = "decoupled",
        step: float | None = None,
        strength: Strength = 1.0,
        fused: bool = False,
    ) -> None:
        # Optimizer.__init__ is not called: parameters and state stay those of the wrapped optimizer.
        if metric not in get_args(Metric):
            raise ValueError(f"metric {metric!r}; choose one of {', '.join(get_args(Metric))}.")
        if (metric == "constant") != (step is not None) or (step is not None and not step > 0):
            raise ValueError(f"step {step} with metric {metric!r}; 'constant' needs a step > 0, the others take none.")
        if not isinstance(optimizer, Optimizer):
            raise ValueError(f"optimizer {optimizer!r}; give one of torch's, around some parameters.")
        self.optimizer = optimizer
        self._share_hooks()
        self.metric = metric
        self.step_size = step
        self.weights = [w if isinstance(w, Weight) else Weight("", w) for w in weights]
        groups = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        for weight in self.weights:
            if id(weight.parameter) not in groups:
                shape = tuple(weight.parameter.shape)
                raise ValueError(f"weight {weight.name or shape} is not a parameter of the {type(optimizer).__name__}.")
        if len({id(weight.parameter) for weight in self.weights}) < len(self.weights):
            raise ValueError(f"some of the {len(self.weights)} weights are the same parameter; give each once.")
        self._group_of = [groups[id(weight.parameter)] for weight in self.weights]
        # A string is a sequence too, of things without a prox.
        self.regularizers = regularizer if isinstance(regularizer, Sequence) else [regularizer] * len(self.weights)
        self.strength = strength
        self.fused = fused

    @property
    def regularizers(self) -> Sequence[Regularizer]:
        """One regularizer a weight; assign a new sequence to change them, as reweighting does."""
        return self._regularizers

    @regularizers.setter
    def regularizers(self, regularizers: Sequence[Regularizer]) -> None:
        if len(regularizers) != len(self.weights):
            raise ValueError(f"{len(regularizers)} regularizers for {len(self.weights)} weights; give one each.")
        wrong = [regularizer for regularizer in regularizers if not callable(getattr(regularizer, "prox", None))]
        if wrong:
            raise ValueError(f"regularizer {wrong[0]!r} has no prox; give one that has, such as L1(0.1).")
        self._regularizers = list(regularizers)

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of the wrapped optimizer, then the prox; returns what the wrapped step returns."""
        if self.fused and closure is None and not callable(self._strength):
            return self._fused_step()
        result = self.optimizer.step(closure)
        self.prox_()
        return result

    def _fused_step(self) -> Any:
        """The same; weights that can be fused are hidden from the wrapped optimizer and stepped with their prox."""
        strengths = self.strengths()
        groups = [self.param_groups[group] for group in self._group_of]
        # The prox step times the strength; for "metric" its numerator. Formulas are for steps > 0.
        steps = [strength * self.constant_step(index) for index, strength in enumerate(strengths)]
        formulas = {
            index: formula
            for index, weight in enumerate(self.weights)
            if steps[index] > 0
            and weight.parameter.numel()
            and takes(self.optimizer, groups[index], weight.parameter)
            and (formula := self._formula(index)) is not None
        }
        gradients = {index: self.weights[index].parameter.grad for index in formulas}
        for index in formulas:
            self.weights[index].parameter.grad = None
        try:
            result = self.optimizer.step()
        finally:
            for index, gradient in gradients.items():
                self.weights[index].parameter.grad = gradient
        for index, formula in formulas.items():
            parameter = self.weights[index].parameter
            assert parameter.grad is not None
            state, metric = self.optimizer.state[parameter], self.metric == "metric"
            adam_and_prox_(parameter, parameter.grad, state, groups[index], formula, steps[index], metric)
        self._prox_of_([index for index in range(len(self.weights)) if index not in formulas], strengths)
        return result

    def _formula(self, index: int) -> Formula | None:
        """The compilable prox of a weight of untied entries."""
        weight = self.weights[index]
        formula = formula_of(self._regularizers[index]) if isinstance(weight.groups, Elements) else None
        wanted = formula is not None and (formula.entrywise or self.metric != "metric")
        return formula if wanted and weight.parameter.is_contiguous() else None

    @property
    def strength(self) -> Strength:
        """The strength, as it was set."""
        return self._strength

    @strength.setter
    def strength(self, strength: Strength) -> None:
        if not callable(strength):
            _check_strengths(strength if isinstance(strength, Sequence) else [strength], len(self.weights))
        self._strength = strength

    def strengths(self) -> list[float]:
        """The strength of each weight for the next prox; asks the controller where there is one."""
        strength = self._strength(self) if callable(self._strength) else self._strength
        if isinstance(strength, Sequence):
            _check_strengths(strength, len(self.weights))
            return list(strength) if len(strength) == len(self.weights) else list(strength) * len(self.weights)
        return [strength] * len(self.weights)

    @torch.no_grad()
    def prox_(self) -> None:
        """Apply the prox to every weight, with the prox step that the metric prescribes now."""
        self._prox_of_(range(len(self.weights)), self.strengths())

    @torch.no_grad()
    def _prox_of_(self, indices: Iterable[int], strengths: Sequence[float]) -> None:
        indices = list(indices)
        if self.fused and self.metric != "metric":
            together = [
                index
                for index in indices
                if strengths[index] > 0 and self.weights[index].parameter.numel() and self._formula(index) is not None
            ]
            prox_each_(
                [self._regularizers[index] for index in together],
                [self.weights[index].parameter.data for index in together],
                [strengths[index] * self.constant_step(index) for index in together],
            )
            indices = [index for index in indices if index not in together]
        for index in indices:
            weight, strength, regularizer = self.weights[index], strengths[index], self._regularizers[index]
            # A process may hold no row of a sharded weight.
            nothing = strength == 0 or not weight.parameter.numel()
            if nothing or (self.fused and self._fused_prox_(index, strength)):
                continue
            if self.metric == "metric" and _goes_by_chunks(weight, regularizer):
                self._prox_by_chunks_(index, strength)
                continue
            step = self.prox_step(index)
            step = step.mul_(strength) if isinstance(step, Tensor) else step * strength
            if isinstance(weight.groups, Elements):
                apply_prox_(regularizer, weight.parameter.data, step)
                continue
            if isinstance(step, Tensor):
                step = weight.groups.split(step.t() if weight.transposed else step)
            matrix = weight.matrix
            result = regularizer.prox(weight.groups.split(matrix), step)
            matrix.copy_(weight.groups.join(result, matrix.shape))

    def _fused_prox_(self, index: int, strength: float) -> bool:
        """Apply the prox of a weight in Adam's metric in one compiled pass; False where that is not possible."""
        formula, w = self._formula(index), self.weights[index].parameter.data
        if self.metric != "metric" or formula is None or w.dtype != torch.float32:
            return False
        second, correction, group = self._second_moments(index)
        if not second.is_contiguous() or group["lr"] == 0:
            return False
        metric_prox_(w, second, float(group["lr"]) * strength, float(group["eps"]), correction**0.5, formula)
        return True

    def constant_step(self, index: int) -> float:
        """The prox step, or for "metric" its numerator, at strength 1."""
        return self.step_size if self.step_size is not None else float(self.param_groups[self._group_of[index]]["lr"])

    def _prox_by_chunks_(self, index: int, strength: float) -> None:
        """The metric prox of a separable regularizer, by pieces that stay in the cache from metric to threshold."""
        regularizer: Any = self._regularizers[index]
        w = self.weights[index].parameter.data.view(-1)
        second, correction, group = self._second_moments(index)
        second, rate = second.view(-1), float(group["lr"]) * strength
        buffer = w.new_empty(min(LONG_CHUNK, w.numel()))
        for start in range(0, w.numel(), LONG_CHUNK):
            part = slice(start, start + LONG_CHUNK)
            piece = w[part]
            step = _metric_step(second[part], correction, group["eps"], rate, out=buffer[: len(piece)])
            regularizer.prox_(piece, step, part)

    def prox_step(self, index: int, stride: int | None = None, start: int = 0) -> float | Tensor:
        """The prox step tau of one weight at strength 1: a float, or for "metric" a tensor of the parameter's shape.

        stride: compute only every stride-th entry of the flattened parameter from entry `start` on, for controllers
        that sample.
        """
        rate = self.constant_step(index)
        if self.metric != "metric":
            return rate
        second, correction, group = self._second_moments(index)
        second = second if stride is None else second.flatten()[start::stride]
        out = torch.empty_like(second, dtype=self.weights[index].parameter.dtype)
        return _metric_step(second, correction, group["eps"], rate, out=out)

    def _second_moments(self, index: int) -> tuple[Tensor, float, dict[str, Any]]:
        """Adam's second moments of a weight, their bias correction, and the weight's parameter group."""
        parameter, group = self.weights[index].parameter, self.param_groups[self._group_of[index]]
        state = self.optimizer.state.get(parameter, {})
        second = state.get("max_exp_avg_sq", state.get("exp_avg_sq"))
        if second is None or "betas" not in group or second.shape != parameter.shape:
            name = type(self.optimizer).__name__
            raise ValueError(
                f"{self.weights[index].name or 'a weight'}: metric 'metric' needs Adam's second moments, and "
                f"{name} has none; choose 'decoupled', or give the weight a gradient first."
            )
        return second, 1 - float(group["betas"][1]) ** float(state["step"]), group

    # What follows makes the wrapper stand in for the optimizer it wraps.

    def _share_hooks(self) -> None:
        """Hooks on the state are the wrapped optimizer's; those on steps are called around the step with its prox."""
        for kind in ("state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post"):
            name = f"_optimizer_{kind}_hooks"
            setattr(self, name, getattr(self.optimizer, name))
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()
        self._patch_step_function()

    def __getstate__(self) -> dict[str, Any]:
        # A learning rate schedule puts a step of its own on an optimizer; that of the copy is anew the class's.
        return {name: value for name, value in vars(self).items() if name != "step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._patch_step_function()

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The wrapped optimizer's parameter groups."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The wrapped optimizer's state."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The wrapped optimizer's defaults."""
        return self.optimizer.defaults

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer; its parameters have no regularizer."""
        self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state; strength and regularizers belong to whoever sets them."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        self.optimizer.load_state_dict(state_dict)

    def __repr__(self) -> str:
        return f"ProximalOptimizer({self.optimizer!r}, {len(self.weights)} weights, metric={self.metric!r})"


def _goes_by_chunks(weight: Weight, regularizer: Regularizer) -> bool:
    w = weight.parameter
    separable = getattr(regularizer, "separable", False) and hasattr(regularizer, "prox_")
    return separable and isinstance(weight.groups, Elements) and w.device.type == "cpu" and w.is_contiguous()


def _metric_step(second: Tensor, correction: float, eps: float, rate: float, out: Tensor) -> Tensor:
    """rate / (sqrt(second / correction) + eps), into `out`."""
    root = correction**0.5
    if out.dtype == second.dtype:
        torch.sqrt(second, out=out)
    else:
        out.copy_(second.sqrt())
    return torch.div(out.new_tensor(rate * root), out.add_(eps * root), out=out)


def _check_strengths(strengths: Sequence[float], count: int) -> None:
    if len(strengths) not in (1, count):
        raise ValueError(f"{len(strengths)} strengths for {count} weights; give one, or one each.")
    for strength in strengths:
        if not strength >= 0:
            raise ValueError(f"strength {strength}; it must be >= 0.")
