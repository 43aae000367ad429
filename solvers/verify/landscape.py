"""The true loss of every mask of a block, from as few evaluations of it as the proof of the best one needs.

A loss can only be evaluated. Where a block is small beside the network, its loss is nearly a polynomial of low degree
in the mask: one is fitted on random masks, its error is measured on others, and every mask that the error leaves in
play is evaluated itself. Where too many are left the degree rises, and at last all masks are evaluated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from argprune.solvers.ilp.quadratic import Floats, Indices
from argprune.solvers.verify.surrogates import ENUMERABLE, all_masks

# Boolean masks (m, n), True = kept -> (m,) float64: their loss, less the loss of the whole block.
Loss = Callable[[Tensor], Tensor]
Proof = Literal["exhaustive", "screened", "best known"]

# Masks that a fitted polynomial's error is measured on, and how many times that error leaves a mask in play.
_TESTS = 64
_SAFETY = 3.0
# Masks left in play that are evaluated before the degree rises.
_IN_PLAY = 256
# Random masks a coefficient of the polynomial.
_SAMPLES = 2.5
# Rows of features built at a time.
_CHUNK = 1 << 13


class Known:
    """A loss that is never evaluated twice at the same mask; `evaluations` counts those made."""

    def __init__(self, loss: Loss) -> None:
        self._loss = loss
        self._values: dict[bytes, float] = {}

    def __call__(self, masks: Tensor) -> Tensor:
        """(m,) float64. Raises ValueError where a loss is not finite."""
        keys = [row.tobytes() for row in masks.cpu().numpy()]
        new = {key: place for place, key in enumerate(keys) if key not in self._values}
        if new:
            values = self._loss(masks[list(new.values())]).detach().cpu().double()
            if not bool(values.isfinite().all()):
                raise ValueError("A mask's loss is NaN or infinite; look for overflow in the model with that mask.")
            self._values.update(zip(new, values.tolist(), strict=True))
        return torch.tensor([self._values[key] for key in keys], dtype=torch.float64)

    @property
    def evaluations(self) -> int:
        """How many masks were evaluated."""
        return len(self._values)


@dataclass(frozen=True, eq=False)
class Landscape:
    """The loss over the masks of a block.

    masks: (m, n), all of them, or the evaluated ones where there are too many. values: (m,) float64; exact: (m,), which
    were evaluated; the others are the polynomial's. best: the place of the least evaluated one. error: the largest
    error of the polynomial at any evaluated mask that it was not fitted to, 0 without one. degree: of the polynomial,
    0 without one. proof: "exhaustive", all evaluated; "screened", every mask within three times `error` of the best
    was; "best known", neither. evaluations: of the loss.
    """

    masks: Tensor
    values: Tensor
    exact: Tensor
    best: int
    error: float
    degree: int
    proof: Proof
    evaluations: int

    @property
    def complete(self) -> bool:
        """Whether every mask is there."""
        return self.proof != "best known"


def explore(loss: Known, n: int, keep: int, candidates: Tensor, *, direct: bool = False, seed: int = 0) -> Landscape:
    """The loss over all masks of n <= 20 units with `keep` ones; of more units, the best that exchanges reach.

    candidates: (c, n) masks that are evaluated in any case, c >= 1. direct: evaluate every mask, whatever it costs.
    Raises ValueError where direct is asked for more than 20 units. Polynomials of degree 1 and 2 with least squares of
    least norm, on random masks.

    >>> linear = Known(lambda masks: (~masks).double() @ torch.arange(4.0).double())
    >>> found = explore(linear, 4, 2, torch.tensor([[True, True, False, False]]))
    >>> found.masks[found.best].tolist(), float(found.values[found.best]), found.proof
    ([False, False, True, True], 1.0, 'exhaustive')
    """
    check_units(n, direct=direct)
    if n > ENUMERABLE:
        return _improved(loss, candidates)
    masks = all_masks(n, keep)
    if not direct:
        place = {row.tobytes(): index for index, row in enumerate(masks.numpy())}
        known = torch.tensor([place[row.tobytes()] for row in candidates.cpu().numpy()])
        for degree in (1, 2):
            found = _screened(loss, masks, known, degree, seed)
            if found is not None:
                return found
    values = loss(masks)
    exact = torch.ones(len(masks), dtype=torch.bool)
    return Landscape(masks, values, exact, int(values.argmin()), 0.0, 0, "exhaustive", loss.evaluations)


def check_units(n: int, *, direct: bool) -> None:
    """Raise ValueError where every mask of more than 20 units is to be evaluated."""
    if direct and n > ENUMERABLE:
        raise ValueError(f"size {n} has too many masks to evaluate each; give at most {ENUMERABLE}, or no exhaustive.")


def _screened(loss: Known, masks: Tensor, known: Tensor, degree: int, seed: int) -> Landscape | None:
    """The landscape from a polynomial of a degree; None where that takes about as much as evaluating every mask."""
    n = masks.shape[1]
    terms = [term for d in range(degree + 1) for term in itertools.combinations(range(n), d)]
    samples = math.ceil(_SAMPLES * len(terms))
    if 2 * (samples + _TESTS + _IN_PLAY) > len(masks):
        return None
    chosen = torch.randperm(len(masks), generator=torch.Generator().manual_seed(seed))[: samples + _TESTS]
    fit, test = chosen[:samples], chosen[samples:]
    coefficients = np.linalg.lstsq(next(_features(masks[fit], terms, samples)), loss(masks[fit]).numpy())[0]
    surface = torch.from_numpy(np.concatenate([rows @ coefficients for rows in _features(masks, terms, _CHUNK)]))
    exact = torch.zeros(len(masks), dtype=torch.bool)
    exact[fit] = True
    values, new = surface.clone(), torch.cat([test, known])
    values[fit] = loss(masks[fit])
    error = 0.0
    while len(new):
        values[new] = loss(masks[new])
        unseen = new[~exact[new]]
        error = max(error, float((values[unseen] - surface[unseen]).abs().max()) if len(unseen) else 0.0)
        exact[new] = True
        least = float(values[exact].min())
        new = ((surface <= least + _SAFETY * error) & ~exact).nonzero().flatten()
        if len(new) > _IN_PLAY:
            return None
    best = int(torch.where(exact, values, math.inf).argmin())
    return Landscape(masks, values, exact, best, error, degree, "screened", loss.evaluations)


def _features(masks: Tensor, terms: list[tuple[int, ...]], rows: int) -> Iterator[Floats]:
    """Products of the signs (+1 kept, -1 pruned) in each term, some rows at a time."""
    for part in torch.split(masks, rows):
        signs: Floats = 2.0 * part.numpy() - 1.0
        yield np.stack([signs[:, list(term)].prod(1) for term in terms], axis=1)


def _improved(loss: Known, candidates: Tensor) -> Landscape:
    """The best candidate, improved by exchanges of one kept for one pruned unit until none gains."""
    masks = candidates
    values = loss(masks)
    while True:
        best = masks[int(values.argmin())]
        kept, pruned = best.nonzero().flatten(), (~best).nonzero().flatten()
        neighbours = best.repeat(len(kept) * len(pruned), 1)
        each: Indices = np.arange(len(neighbours))
        neighbours[each, kept.repeat_interleave(len(pruned))] = False
        neighbours[each, pruned.repeat(len(kept))] = True
        near = loss(neighbours)
        gained = bool(len(near)) and float(near.min()) < float(values.min())
        masks, values = torch.cat([masks, neighbours]), torch.cat([values, near])
        if not gained:
            break
    exact = torch.ones(len(masks), dtype=torch.bool)
    return Landscape(masks, values, exact, int(values.argmin()), 0.0, 0, "best known", loss.evaluations)
