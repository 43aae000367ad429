"""Criteria that know a layer's inputs X (tokens, columns): what pruning changes in the layer's outputs, row by row.

Replacing a row w of the weight by v changes the outputs by

    ||X (w - v)||^2 / tokens  =  (w - v)^T H (w - v) / 2,   H = 2 X^T X / tokens, the same for all rows.

Sources: dossier paper-pins-sparsebert, sections 3 and 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from argprune.solvers.criteria.base import Accumulators, Criterion, Evidence, Need, Scope, Surrogate
from argprune.solvers.criteria.curvature import factorise
from argprune.solvers.registry import register

# Entries of the rows' inverse Hessians that OBC holds at a time: 32 MiB in float64.
_CHUNK = 1 << 22


class Layerwise(Criterion):
    """A criterion that reads second moments of a layer's inputs: the mean over all tokens of all batches, float64."""

    needs: ClassVar[frozenset[Need]] = frozenset({"inputs"})

    def moment(self, inputs: Tensor) -> Tensor:
        """What the tokens of a batch, (tokens, columns) in float64, add to the sum: X^T X."""
        return inputs.t() @ inputs

    def start(self, weight: Tensor) -> Accumulators:
        """The sum of moments, and the number of tokens. Raises ValueError unless the weight is a matrix."""
        if weight.dim() != 2:
            raise ValueError(
                f"{type(self).__name__}: a weight of shape {tuple(weight.shape)}; give a matrix (rows, columns)."
            )
        nothing = torch.zeros(0, weight.shape[1], dtype=torch.float64, device=weight.device)
        return {"moments": self.moment(nothing), "tokens": torch.zeros((), dtype=torch.int64)}

    def update(self, accumulators: Accumulators, evidence: Evidence) -> None:
        """Add the tokens of a batch. Raises ValueError where there are no inputs, or not as many as columns."""
        self.require(evidence)
        assert evidence.inputs is not None
        inputs, columns = evidence.inputs.detach(), evidence.weight.shape[-1]
        if inputs.dim() != 2 or inputs.shape[1] != columns:
            raise ValueError(
                f"{type(self).__name__}: inputs of shape {tuple(inputs.shape)} for a weight of {columns} columns; "
                f"give (tokens, {columns})."
            )
        accumulators["moments"] += self.moment(inputs.double())
        accumulators["tokens"] += len(inputs)

    def mean(self, accumulators: Mapping[str, Tensor]) -> Tensor:
        """The mean moment. Raises ValueError before the first token, and where inputs were not finite."""
        tokens = int(accumulators["tokens"])
        if tokens == 0:
            raise ValueError(f"{type(self).__name__}: scores before the first batch; update it with one.")
        mean = accumulators["moments"] / tokens
        if not bool(mean.isfinite().all()):
            raise ValueError(f"{type(self).__name__}: inputs with NaN or an infinity; every one must be finite.")
        return mean


@register("criteria", "wanda")
@dataclass(frozen=True)
class Wanda(Layerwise):
    """|w_j| times the root mean square of input j: the square root of what removing entry j alone changes.

    The changes of several removals add up where inputs are uncorrelated. The published norm over tokens is the same up
    to one factor for the matrix. Source: Sun et al. 2024.
    """

    surrogate: ClassVar[Surrogate] = "diagonal"
    scope: ClassVar[Scope] = "row"
    formula: ClassVar[str] = "|w_j| sqrt(mean x_j^2)"

    def moment(self, inputs: Tensor) -> Tensor:
        """The sums of squares, (columns,)."""
        return inputs.square().sum(0)

    def scores(self, accumulators: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        """|w_j| sqrt(mean x_j^2), float32."""
        return (weight.detach().double().abs() * self.mean(accumulators).sqrt()).float()


@dataclass(frozen=True)
class _Damped(Layerwise):
    """Scores from H = 2 X^T X / tokens + damping mean(diagonal) I. damping: a share of the mean, >= 0.

    An input that is always 0 costs nothing to remove: its weights score lowest, and the mean leaves it out.
    """

    damping: float = 0.01

    def __post_init__(self) -> None:
        if not self.damping >= 0:
            raise ValueError(f"{type(self).__name__}: damping {self.damping}; it must be >= 0.")

    def hessian(self, accumulators: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(columns, columns) H, and which inputs are alive, (columns,). Raises ValueError for a singular H."""
        hessian = 2 * self.mean(accumulators)
        diagonal = hessian.diagonal()
        alive = diagonal > 0
        mean = float(diagonal[alive].mean()) if bool(alive.any()) else 1.0
        # A dead input's row and column are 0: what stands on its diagonal touches no other entry.
        diagonal.copy_(torch.where(alive, diagonal + self.damping * mean, mean))
        if not bool(factorise(hessian)[1]):
            raise ValueError(
                f"{type(self).__name__}: {int(accumulators['tokens'])} tokens of {len(hessian)} inputs leave H "
                f"singular at damping {self.damping:g}; raise the damping, or give more tokens."
            )
        return hessian, alive


@register("criteria", "sparsegpt")
@dataclass(frozen=True)
class SparseGPT(_Damped):
    """w_j^2 / U_jj^2, H^-1 = U^T U with U upper triangular: removing j with the columns after it refitted, times two.

    U_jj^2 is the first entry of the inverse of H's rows and columns from j on: columns before j are taken as fixed,
    since SparseGPT goes through them from left to right. The score is of the weight given, not of one that removals
    before have updated; published masks are of the updated weight, block by block.
    block: columns that the authors rank together, over all rows; >= 1, and no part of the score.
    Source: Frantar, Alistarh 2023.
    """

    block: int = 128
    surrogate: ClassVar[Surrogate] = "refit"
    scope: ClassVar[Scope] = "block"
    formula: ClassVar[str] = "w_j^2 / U_jj^2, H^-1 = U^T U"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block < 1:
            raise ValueError(f"SparseGPT: block {self.block}; it is a number of columns, at least 1.")

    def scores(self, accumulators: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        """w_j^2 / U_jj^2, float32."""
        hessian, alive = self.hessian(accumulators)
        # Backwards, H = L L^T has L_jj = 1 / U_jj: no inverse is needed.
        root: Tensor = torch.linalg.cholesky(hessian.flip(0, 1)).diagonal().flip(0)
        return (weight.detach().double() * root * alive).square_().float()


@register("criteria", "obc")
@dataclass(frozen=True)
class OBC(_Damped):
    """Exact greedy removal in every row, survivors refitted after each: the loss of the removal that takes the entry.

    The trace of losses makes rows comparable. It may fall along a row; scores do not: an entry scores at least a
    rounding step more than those removed before it, so that the largest k of a row are what greedy leaves of it.
    rows x columns^3 / 3 multiplications: 6 s for 384 x 384 on one core, 4 min for 384 x 1536.
    Source: Frantar, Singh, Alistarh 2022.
    """

    surrogate: ClassVar[Surrogate] = "refit"
    scope: ClassVar[Scope] = "matrix"
    formula: ClassVar[str] = "w_j^2 / (2 [H^-1]_jj) at its removal"

    def scores(self, accumulators: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        """The running maximum of the losses, made strict, float32."""
        hessian, alive = self.hessian(accumulators)
        order, losses = removals(hessian, weight.detach().double() * alive)
        ranked = losses.float()
        infinity = ranked.new_tensor(torch.inf)
        for step in range(1, ranked.shape[1]):
            ranked[:, step] = ranked[:, step].maximum(ranked[:, step - 1].nextafter(infinity))
        return torch.empty_like(ranked).scatter_(1, order, ranked)


def removals(hessian: Tensor, weight: Tensor, pattern: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Greedy removal of all entries of every row, survivors refitted: the order, and what each adds to the loss.

    hessian: (columns, columns), positive definite, of the loss (w - v)^T H (w - v) / 2 of a row w; weight: (rows,
    columns); both float64. Returns columns in the order of removal and losses, both (rows, removals). The losses of the
    first s add up to w_P^T ([H^-1]_PP)^-1 w_P / 2, P being their columns. Ties go to the smaller column.
    pattern: (n, m), m a divisor of columns: entries that would leave fewer than n of m adjacent ones are passed over,
    and n of every m are left.

    >>> order, losses = removals(torch.eye(3).double(), torch.tensor([[2.0, 1.0, 3.0]]).double())
    >>> order.tolist(), losses.tolist()
    ([[1, 0, 2]], [[0.5, 2.0, 4.5]])
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    parts = torch.split(weight, max(1, _CHUNK // max(1, weight.shape[1] ** 2)))
    orders, losses = zip(*(_remove(inverse, part, pattern) for part in parts), strict=True)
    return torch.cat(orders), torch.cat(losses)


def _remove(inverse: Tensor, weight: Tensor, pattern: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """`removals` for rows that fit in memory together, each with an inverse of its own that shrinks."""
    rows, columns = weight.shape
    each = torch.arange(rows, device=weight.device)
    inverses, w = inverse.repeat(rows, 1, 1), weight.clone()
    # The survivors are the first entries of every row; where they are in the weight:
    at = torch.arange(columns, device=weight.device).repeat(rows, 1)
    least, width = pattern or (0, columns)
    steps = columns - columns // width * least
    order, losses = torch.empty_like(at[:, :steps]), torch.empty_like(w[:, :steps])
    # How many of every `width` adjacent entries are not removed.
    left = torch.full((rows, columns // width), width, device=weight.device)
    for step in range(steps):
        last = columns - step - 1
        alive = slice(last + 1)
        loss = w[:, alive].square() / inverses.diagonal(dim1=1, dim2=2)[:, alive] / 2
        if least:
            loss = loss.masked_fill(left.gather(1, at[:, alive] // width) == least, torch.inf)
        ties = loss == loss.amin(1, keepdim=True)
        place = torch.where(ties, at[:, alive], columns).argmin(1)
        order[:, step], losses[:, step] = at[each, place], loss[each, place]
        left[each, order[:, step] // width] -= 1
        removed, column = w[each, place], inverses[each, place, alive]
        pivot = column[each, place]
        # The last survivor takes the removed one's place.
        end = inverses[:, last, alive].clone()
        end[each, place] = end[:, last].clone()
        inverses[each, place, :last] = end[:, :last]
        inverses[each, :last, place] = end[:, :last]
        column[each, place] = column[:, last].clone()
        w[each, place] = w[:, last].clone()
        at[each, place] = at[:, last].clone()
        # Eliminating the removed one refits the others, and leaves the inverse of their own Hessian.
        column = column[:, :last]
        move = column / pivot[:, None]
        w[:, :last] -= move * removed[:, None]
        inverses[:, :last, :last].addcmul_(column[:, :, None], move[:, None, :], value=-1)
    return order, losses
