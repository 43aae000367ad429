"""A matrix as a product of two thin ones, W ~ Q P: what to keep at a given rank.

    minimise over Q (o, r), P (r, i)     ||W - Q P||_F^2                     truncated SVD
    minimise over Q (o, r), P (r, i)     ||(W - Q P) X^T||_F^2               SVD of W L, with L L^T = X^T X

Either way the components come in descending order of what dropping them costs, and what a truncation loses is exactly
the sum of the squares of what it drops. References: Eckart, Young (1936); Wang et al., "SVD-LLM" (2025).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Factorisation:
    """W ~ Q P.

    first: P, (r, inputs). second: Q, (outputs, r). values: (r,) >= 0 and descending, float32 or better: what dropping
    component k alone costs, as a norm, and in proportion the square of the length of column k of Q. For an SVD their
    squares add up: dropping several costs the root of the sum.
    """

    first: Tensor
    second: Tensor
    values: Tensor

    def product(self) -> Tensor:
        """Q P, (outputs, inputs)."""
        return self.second @ self.first


def factorise_svd(w: Tensor, rank: int | None = None) -> Factorisation:
    """The best approximation of W of this rank: W = U S V^T cut off, as P = S^1/2 V^T and Q = U S^1/2.

    w: (outputs, inputs), floating and finite, computed in float32 or better; the factors have its dtype. rank: 1 to
    min(outputs, inputs); None for that, where the product is W up to rounding. Raises ValueError outside.
    ||W - Q P||_F^2 is the sum of the squares of the singular values that were dropped.

    >>> found = factorise_svd(torch.diag(torch.tensor([4.0, 1.0, 9.0])), rank=2)
    >>> found.values.tolist(), found.product().round().diagonal().tolist()
    ([9.0, 4.0], [4.0, 0.0, 9.0])
    """
    matrix = _computed(w, "factorise_svd")
    rank = _checked_rank(rank, w, "factorise_svd")
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    root = values.sqrt()
    return Factorisation((root[:, None] * right).to(w), (left * root).to(w), values)


def factorise_whitened(w: Tensor, gram: Tensor, rank: int | None = None, ridge: float = 1e-6) -> Factorisation:
    """The rank-r matrix whose outputs on given inputs X are closest to those of W.

    w: (outputs, inputs), floating and finite; computed in the better of its dtype and gram's, float32 at least; the
    factors have its dtype. gram: X^T X, (inputs, inputs), positive semidefinite; or its diagonal (inputs,) where the
    rest is 0, as the counts of words are for an embedding. rank: as in `factorise_svd`, exact at full rank.
    With L L^T = X^T X and W L = U S V^T, the answer is U_r S_r V_r^T L^-1, and ||(W - Q P) X^T||_F^2 is exactly the sum
    of the squares of the values dropped. Q = c U S^1/2, with a number c that makes the factors the same for inputs of
    any strength.
    ridge: > 0, a share of gram's mean diagonal. Where a direction of the inputs has less than that, gram is taken as
    singular, and as much is added to its diagonal: what no input showed then counts a little, instead of blowing up P.
    The values are then those of the sum, and no truncation loses more. Raises ValueError outside.

    >>> w, x = torch.randn(3, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    >>> found, whole = (factorise_whitened(w, x.t() @ x, rank) for rank in (2, None))
    >>> torch.allclose((x @ (w - found.product()).t()).norm(), whole.values[2])
    True
    """
    rank = _checked_rank(rank, w, "factorise_whitened")
    weighted, root = _weighted(w, gram, ridge)
    left, values, right = torch.linalg.svd(weighted, full_matrices=False)
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    first = right / root if root.dim() == 1 else torch.linalg.solve_triangular(root, right, upper=False, left=False)
    # As if the inputs had a mean square of one: a strong input shall not make Q large and P small.
    strength = float((root.square().sum() / root.shape[0]).sqrt())
    split = (values / strength).sqrt()
    return Factorisation((split[:, None] * strength * first).to(w), (left * split).to(w), values)


def component_values(w: Tensor, gram: Tensor | None = None, ridge: float = 1e-6) -> Tensor:
    """The `values` of `factorise_svd`, or with a gram of `factorise_whitened`, at full rank: without the factors.

    w, gram, ridge, the dtype of the result and the errors are theirs.

    >>> component_values(torch.diag(torch.tensor([4.0, 1.0, 9.0]))).tolist()
    [9.0, 4.0, 1.0]
    """
    weighted = _computed(w, "component_values") if gram is None else _weighted(w, gram, ridge)[0]
    values: Tensor = torch.linalg.svdvals(weighted)
    return values


def factorise_random(
    shape: tuple[int, int], rank: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Factorisation:
    """Random factors whose product has entries of variance 1 / (3 inputs), those that `nn.Linear` begins with.

    shape: (outputs, inputs). rank: >= 1. dtype: of the factors. Both factors are normal, scaled so that the two
    vectors of a component have the same expected norm. Drawn on the generator's device, and put in order of their
    size. Raises ValueError outside.
    """
    outputs, inputs = shape
    if outputs < 1 or inputs < 1 or rank < 1:
        raise ValueError(f"factorise_random: shape {tuple(shape)}, rank {rank}; all are at least 1.")
    # r a^2 b^2 = 1 / (3 i) for deviations a of P and b of Q, with i a^2 = o b^2.
    deviation = (1 / (3 * rank * outputs * inputs**2)) ** 0.25

    def draw(rows: int, columns: int, scale: float) -> Tensor:
        return scale * torch.randn(rows, columns, generator=generator, device=generator.device)

    first = draw(rank, inputs, deviation * outputs**0.5)
    second = draw(outputs, rank, deviation * inputs**0.5)
    lengths = torch.linalg.vector_norm(first, dim=1), torch.linalg.vector_norm(second, dim=0)
    scale = (lengths[1] / lengths[0]).sqrt()
    values, order = (lengths[0] * lengths[1]).sort(descending=True, stable=True)
    return Factorisation((first * scale[:, None])[order].to(dtype), (second / scale)[:, order].to(dtype), values)


def _weighted(w: Tensor, gram: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """W L and L, with L L^T = gram; of a diagonal, L is (inputs,)."""
    matrix = _computed(w, "factorise_whitened")
    root = _root(_checked_gram(gram, w), ridge)
    matrix, root = matrix.to(torch.promote_types(matrix.dtype, root.dtype)), root.to(w.device)
    root = root.to(matrix)
    return (matrix * root if root.dim() == 1 else matrix @ root), root


def _computed(w: Tensor, caller: str) -> Tensor:
    """w, detached, in the dtype to compute in. Raises ValueError unless it is a floating, finite matrix."""
    if w.dim() != 2 or not w.is_floating_point() or w.numel() == 0:
        raise ValueError(f"{caller}: w of shape {tuple(w.shape)} and {w.dtype}; give a floating matrix with entries.")
    if not bool(w.isfinite().all()):
        raise ValueError(f"{caller}: w with NaN or an infinity; every entry must be finite.")
    return w.detach().to(torch.promote_types(w.dtype, torch.float32))


def _checked_rank(rank: int | None, w: Tensor, caller: str) -> int:
    full = min(w.shape)
    if rank is None:
        return full
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= full:
        raise ValueError(f"{caller}: rank {rank} of a matrix of {tuple(w.shape)}; give 1 to {full}, or None.")
    return rank


def _checked_gram(gram: Tensor, w: Tensor) -> Tensor:
    inputs = w.shape[1]
    if gram.shape not in ((inputs, inputs), (inputs,)) or not gram.is_floating_point():
        raise ValueError(
            f"factorise_whitened: gram of shape {tuple(gram.shape)} and {gram.dtype}; give a floating "
            f"({inputs}, {inputs}), or its diagonal."
        )
    if not bool(gram.isfinite().all()):
        raise ValueError("factorise_whitened: gram with NaN or an infinity; every entry must be finite.")
    return gram.detach().to(torch.promote_types(gram.dtype, torch.float32))


def _root(gram: Tensor, ridge: float) -> Tensor:
    """Lower triangular L with L L^T = gram, or for a diagonal its root; of gram plus the ridge where it is singular."""
    if not 0 < ridge < math.inf:
        raise ValueError(f"factorise_whitened: ridge {ridge}; it must be finite and > 0.")
    diagonal = gram if gram.dim() == 1 else gram.diagonal()
    least = ridge * float(diagonal.mean())
    if not least > 0 or float(diagonal.min()) < 0:
        raise ValueError("factorise_whitened: gram has no input, or a negative diagonal; give X^T X of some inputs.")
    if gram.dim() == 1:
        return torch.sqrt(gram if float(gram.min()) >= least else gram + least)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(gram)
    if not bool(failed) and float(factor.diagonal().min()) ** 2 >= least:
        return factor
    factor, failed = torch.linalg.cholesky_ex(gram + least * torch.eye(len(gram)).to(gram))
    if bool(failed):
        raise ValueError(
            f"factorise_whitened: gram is not positive semidefinite within ridge {ridge:g}; give X^T X summed in "
            "float64, or raise the ridge."
        )
    return factor
