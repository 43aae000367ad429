"""Criteria that look at one entry at a time: its weight w, its gradient g, and where the optimizer moved it, w + d.

Removing entry i after the step changes the loss, to first order around w, by -g_i (w_i + d_i): that is the cost of the
0-1 program of PINS, and `pins` its closed form. The others drop the step, the sign, or add curvature.
Sources: dossier paper-pins-sparsebert, sections 1.2, 1.3, 1.10 and 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from argprune.solvers.criteria.base import Elementwise, Evidence, Need, Surrogate, scaled
from argprune.solvers.registry import register

Sign = Literal["displacement", "signed", "abs"]


def _gradient(evidence: Evidence) -> Tensor:
    assert evidence.gradient is not None
    return evidence.gradient.float()


def _stepped(evidence: Evidence) -> Tensor:
    assert evidence.stepped is not None
    return evidence.stepped.float()


def _blend_product(into: Tensor, one: Tensor, other: Tensor, keep: float, factor: float) -> None:
    """into <- keep * into + factor * one * other, without a tensor in between."""
    if keep == 0:
        torch.mul(one, other, out=into)
        scaled(into, factor)
    else:
        scaled(into, keep).addcmul_(one, other, value=factor)


@register("criteria", "magnitude")
@dataclass(frozen=True)
class Magnitude(Elementwise):
    """|w|: the diagonal model with the same curvature everywhere and no gradient."""

    surrogate: ClassVar[Surrogate] = "diagonal"
    formula: ClassVar[str] = "|w|"

    def raw(self, evidence: Evidence) -> Tensor:
        """|w|."""
        return evidence.weight.detach().float().abs()


@register("criteria", "taylor", examples=[{}, {"sign": "abs"}])
@dataclass(frozen=True)
class Taylor(Elementwise):
    """First-order change of the loss, by `sign`: -g w ("signed"), or its size |g w| ("abs", Molchanov et al.)."""

    sign: Literal["signed", "abs"] = "signed"
    surrogate: ClassVar[Surrogate] = "linear"
    needs: ClassVar[frozenset[Need]] = frozenset({"gradient"})
    formula: ClassVar[str] = "-g w, |g w|"

    def __post_init__(self) -> None:
        _check_sign("taylor", self.sign, ("signed", "abs"))

    def raw(self, evidence: Evidence) -> Tensor:
        """-g w or |g w|."""
        product = _gradient(evidence) * evidence.weight.detach()
        return product.neg_() if self.sign == "signed" else product.abs_()


@register("criteria", "pins", examples=[{}, {"sign": "signed"}, {"sign": "abs"}])
@dataclass(frozen=True)
class Pins(Elementwise):
    """The 0-1 linear program of PINS: first-order change of the loss when an entry is removed after the step.

    sign: "displacement", -g (w + d) with the optimizer's own step d; "signed", -g (w - rate g) = -g w + rate g^2, the
    same for a plain gradient step; "abs", |-g w + rate g^2|, as the official code has it.
    """

    sign: Sign = "displacement"
    surrogate: ClassVar[Surrogate] = "linear"
    formula: ClassVar[str] = "-g (w + d), -g w + rate g^2, |-g w + rate g^2|"

    def __post_init__(self) -> None:
        _check_sign("pins", self.sign, ("displacement", "signed", "abs"))

    @property
    def needs(self) -> frozenset[Need]:  # type: ignore[override]
        """The gradient, and for the displacement the step."""
        return frozenset({"gradient", "step"} if self.sign == "displacement" else {"gradient"})

    def raw(self, evidence: Evidence) -> Tensor:
        """-g (w + d), or |-g (w - rate g)| with or without the bars."""
        gradient = _gradient(evidence)
        if self.sign == "displacement":
            return (gradient * _stepped(evidence)).neg_()
        moved = torch.add(evidence.weight.detach().float(), gradient, alpha=-evidence.learning_rate)
        product = moved.mul_(gradient)
        return product.neg_() if self.sign == "signed" else product.abs_()

    def blend(self, into: Tensor, evidence: Evidence, *, keep: float, factor: float) -> None:
        """The signed forms as products of what is there: the default's event costs half as much."""
        gradient = _gradient(evidence)
        if self.sign == "abs":
            super().blend(into, evidence, keep=keep, factor=factor)
        elif self.sign == "displacement":
            _blend_product(into, gradient, _stepped(evidence), keep, -factor)
        else:
            _blend_product(into, gradient, evidence.weight.detach().float(), keep, -factor)
            into.addcmul_(gradient, gradient, value=factor * evidence.learning_rate)


@register("criteria", "platon")
@dataclass(frozen=True)
class Platon(Elementwise):
    """PLATON's sensitivity |g (w + d)|, read after the step; the method smooths it and weighs it by its uncertainty."""

    surrogate: ClassVar[Surrogate] = "linear"
    needs: ClassVar[frozenset[Need]] = frozenset({"gradient", "step"})
    formula: ClassVar[str] = "|g (w + d)|"

    def raw(self, evidence: Evidence) -> Tensor:
        """|g (w + d)|."""
        return (_gradient(evidence) * _stepped(evidence)).abs_()


@register("criteria", "movement")
@dataclass(frozen=True)
class Movement(Elementwise):
    """-g w averaged over the whole run: weights that move away from zero are kept (Sanh et al. 2020, plain SGD scores).

    Of one batch it is `taylor`.
    """

    surrogate: ClassVar[Surrogate] = "linear"
    needs: ClassVar[frozenset[Need]] = frozenset({"gradient"})
    scope: ClassVar[Literal["matrix"]] = "matrix"
    formula: ClassVar[str] = "-sum g w"

    def raw(self, evidence: Evidence) -> Tensor:
        """-g w."""
        return (_gradient(evidence) * evidence.weight.detach()).neg_()


@register("criteria", "soft_movement")
@dataclass(frozen=True)
class SoftMovement(Movement):
    """The sigmoid of the movement scores: the same order in a matrix, but a threshold over all matrices at once."""

    scope: ClassVar[Literal["global"]] = "global"  # type: ignore[assignment]
    formula: ClassVar[str] = "sigmoid(-sum g w)"

    def scores(self, accumulators: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        """The sigmoid of the scores' sum."""
        super().scores(accumulators, weight)
        return accumulators["sum"].sigmoid()


@register("criteria", "obd")
@dataclass(frozen=True)
class OBD(Elementwise):
    """Optimal brain damage with the empirical Fisher's diagonal as curvature: F w^2 / 2, F = examples mean(g^2).

    The square of a mean gradient over B examples is, at a point where the gradient is noise, 1/B of the mean square.
    """

    surrogate: ClassVar[Surrogate] = "diagonal"
    needs: ClassVar[frozenset[Need]] = frozenset({"gradient"})
    formula: ClassVar[str] = "F w^2 / 2"

    def raw(self, evidence: Evidence) -> Tensor:
        """B (g w)^2 / 2."""
        product = _gradient(evidence) * evidence.weight.detach()
        return product.square_().mul_(evidence.examples / 2)


@register("criteria", "second_order")
@dataclass(frozen=True)
class SecondOrder(Elementwise):
    """PINS with curvature: -g (w + d) + F (w + d)^2 / 2, still separable, so that the closed form stays exact.

    The Taylor expansion around the stepped point, with the gradient read before it. F as in `obd`: averaged over
    batches both terms are; of a single batch the curvature is only the gradient's square again.
    """

    surrogate: ClassVar[Surrogate] = "diagonal"
    needs: ClassVar[frozenset[Need]] = frozenset({"gradient", "step"})
    formula: ClassVar[str] = "-g (w + d) + F (w + d)^2 / 2"

    def raw(self, evidence: Evidence) -> Tensor:
        """-u + B u^2 / 2 with u = g (w + d)."""
        product = _gradient(evidence) * _stepped(evidence)
        return torch.addcmul(-product, product, product, value=evidence.examples / 2)


def _check_sign(name: str, sign: str, choices: tuple[str, ...]) -> None:
    if sign not in choices:
        raise ValueError(f"{name}: sign {sign!r}; choose one of {', '.join(choices)}.")
