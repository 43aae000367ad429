"""What the Gram matrix of all tokens is likely to be, given some: eigenvalues by what held-out tokens say of them.

A weight error e costs e^T G e on tokens to come, G their Gram matrix. That is linear in G, so the best stand-in for the
unknown G is its mean given the tokens seen. The sample's own small eigenvalues are too small: a solver that looks for
errors which cost little finds directions in which the sample happens to vary little. Without prior knowledge of
directions the estimate keeps the sample's eigenvectors u_i and takes E u_i^T G u_i for the eigenvalues, which tokens that
had no part in the eigenvectors estimate without bias. Sources: Abadir, Distaso, Zikes (2014), "Design-free estimation of
variance matrices"; Lam (2016), NERCOME; Bartz (2016), "Cross-validation based nonlinear shrinkage"; Ledoit, Wolf (2020).
"""

from __future__ import annotations

import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from argprune.solvers.admm.moments import Moments


def shrunk_gram(moments: Moments, scale: Tensor, splits: int = 1) -> Tensor:
    """(columns, columns) estimate of the Gram matrix in units of `scale`, float32: the mean over some splits.

    moments: of at least 2 folds with tokens, else ValueError. scale: (columns,) > 0, by which inputs are divided;
    eigenvectors depend on it. splits: folds held out in turn, at least 1, at most the folds there are. In each the
    eigenvectors are those of the other folds, and the eigenvalues the second moments of the held-out tokens along them,
    made to rise in the order of the sample's by isotonic regression, which averages out most of their noise. One
    eigendecomposition a split.
    """
    if moments.folds < 2:
        raise ValueError(
            f"shrunk_gram: moments of {moments.folds} fold with tokens; hold some out: Moments(columns, folds=8), "
            "and as many batches."
        )
    total = torch.zeros(moments.columns, moments.columns, device=moments.device)
    count = min(splits, moments.folds)
    for fold in range(count):
        vectors = torch.linalg.eigh(_scaled(moments.gram_without(fold), scale)).eigenvectors
        seen = ((_scaled(moments.gram(fold), scale) @ vectors) * vectors).sum(0)
        values = isotonic_regression(seen.double().cpu().numpy()).x
        total += (vectors * torch.from_numpy(values).to(vectors).clamp_min(0)) @ vectors.t()
    return total / count


def _scaled(gram: Tensor, scale: Tensor) -> Tensor:
    return (gram / scale / scale[:, None]).float()
