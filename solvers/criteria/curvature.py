"""The optimal brain surgeon's criterion: curvature from gradients, and survivors that make up for what is removed.

With the empirical Fisher F in the Hessian's place, removing entry j alone and moving the others to the best place costs

    min over d with d_j = -w_j of d^T F d / 2  =  w_j^2 / (2 [F^-1]_jj).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from argprune.solvers.criteria.base import Accumulators, Criterion, Evidence, Need, Surrogate
from argprune.solvers.registry import register

# Entries of Fisher blocks factorised at a time: 32 MiB in float64.
_CHUNK = 1 << 22


@register("criteria", "obs")
@dataclass(frozen=True)
class OBS(Criterion):
    """Optimal brain surgeon on blocks of the empirical Fisher (WoodFisher, oBERT): w_j^2 / (2 [F^-1]_jj).

    F = damping I + mean over batches of examples g g^T, over every `block` consecutive entries of the flattened weight,
    the last block being what is left. `examples` is of the batch that g is the mean over, as in `obd`; oBERT leaves it
    out, so that its damping of 1e-7 is here 1e-7 times its batch of gradients. Where the damping is far above F's own
    entries, the score is damping w^2 / 2: magnitude.
    block: entries, >= 1. damping: in units of F, > 0; fewer batches than entries in a block leave F singular without.
    Takes weights of any shape. Accumulates 8 x block bytes an entry, in float64. oBERT inverts by rank-one updates
    instead, which takes the number of batches in advance, starts from 1 / damping and, in float32, is left with two
    digits where g is of the order 0.1. Source: Kurtic et al. 2022; dossier paper-pins-sparsebert, section 3.
    """

    block: int = 50
    damping: float = 1e-7
    surrogate: ClassVar[Surrogate] = "refit"
    needs: ClassVar[frozenset[Need]] = frozenset({"gradient"})
    formula: ClassVar[str] = "w^2 / (2 [F^-1]_jj), F in blocks"

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ValueError(f"OBS: block {self.block}; it is a number of entries, at least 1.")
        if not self.damping > 0:
            raise ValueError(f"OBS: damping {self.damping}; it must be > 0.")

    def start(self, weight: Tensor) -> Accumulators:
        """The sum of examples g g^T in blocks, (blocks, block, block), and the number of batches."""
        size = self._size(weight)
        blocks = -(-weight.numel() // size)
        return {
            "fisher": torch.zeros(blocks, size, size, dtype=torch.float64, device=weight.device),
            "batches": torch.zeros((), dtype=torch.int64),
        }

    def update(self, accumulators: Accumulators, evidence: Evidence) -> None:
        """Add examples g g^T."""
        self.require(evidence)
        assert evidence.gradient is not None
        gradient = self._blocks(evidence.gradient.detach().double())
        accumulators["fisher"].baddbmm_(gradient[:, :, None], gradient[:, None, :], alpha=evidence.examples)
        accumulators["batches"] += 1

    def scores(self, accumulators: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        """w^2 / (2 [F^-1]_jj), float32. Raises ValueError where rounding leaves an F that cannot be inverted."""
        batches = int(accumulators["batches"])
        if batches == 0:
            raise ValueError("OBS: scores before the first batch; update it with one.")
        size = self._size(weight)
        parts = torch.split(accumulators["fisher"], max(1, _CHUNK // size**2))
        inverse = torch.cat([self._inverse_diagonal(part / batches) for part in parts]).flatten()[: weight.numel()]
        return (weight.detach().double().square() / (2 * inverse.view(weight.shape))).float()

    def _inverse_diagonal(self, fisher: Tensor) -> Tensor:
        """(blocks, block): the diagonals of the damped blocks' inverses."""
        fisher.diagonal(dim1=1, dim2=2).add_(self.damping)
        factor, sound = factorise(fisher)
        if not bool(sound.all()):
            most = float(fisher.diagonal(dim1=1, dim2=2).max())
            raise ValueError(
                f"OBS: F with entries up to {most:g} cannot be inverted at damping {self.damping:g}; "
                "raise the damping, or look for gradients that are not finite."
            )
        eye = torch.eye(fisher.shape[-1], dtype=fisher.dtype, device=fisher.device)
        root: Tensor = torch.linalg.solve_triangular(factor, eye.expand_as(fisher), upper=False)
        return root.square_().sum(1)

    def _size(self, weight: Tensor) -> int:
        # A weight of less than a block has one block of its own size.
        return max(1, min(self.block, weight.numel()))

    def _blocks(self, flat: Tensor) -> Tensor:
        """(blocks, block): a weight's entries in order, the last block filled up with zeros, which F leaves apart."""
        size = self._size(flat)
        return torch.nn.functional.pad(flat.flatten(), (0, -flat.numel() % size)).view(-1, size)


def factorise(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """The lower Cholesky factors of symmetric (..., n, n), and which of them, (...), are more than rounding."""
    factor, failed = torch.linalg.cholesky_ex(matrices)
    # A pivot is the diagonal less a sum of up to n terms of its size.
    rounding = matrices.shape[-1] * torch.finfo(matrices.dtype).eps * matrices.diagonal(dim1=-2, dim2=-1)
    sound = (factor.diagonal(dim1=-2, dim2=-1).square() > rounding).all(-1)
    return factor, sound & (failed == 0)
