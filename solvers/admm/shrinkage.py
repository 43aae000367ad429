"""What the Gram matrix of all tokens is likely to be, given some: eigenvalues by what held-out tokens say of them.

A weight error e costs e^T G e on tokens to come, G their Gram matrix. That is linear in G, so the best stand-in for the
unknown G is its mean given the tokens seen. The sample's own small eigenvalues are too small: a solver that looks for
errors which cost little finds directions in which the sample happens to vary little. Where nothing is known of
directions, the estimate keeps the sample's eigenvectors u_i and takes E u_i^T G u_i for the eigenvalues; tokens that
had no part in the eigenvectors estimate those without bias. Sources: Abadir, Distaso, Zikes (2014), "Design-free
estimation of variance matrices"; Lam (2016), "Nonparametric eigenvalue-regularized precision or covariance matrix
estimator"; Bartz (2016), "Cross-validation based nonlinear shrinkage".
"""

from __future__ import annotations

import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from argprune.solvers.admm.moments import Moments
from argprune.solvers.admm.scaling import Eigen


def shrunk_gram(moments: Moments, scale: Tensor, ridge: Tensor, splits: int = 1) -> Eigen:
    """Estimate of the Gram matrix in units of `scale` with `ridge` added to its diagonal: the mean over some splits.

    moments: of at least 2 folds with tokens, else ValueError; 16 leave most tokens to the eigenvectors. scale, ridge:
    (columns,), > 0 and >= 0; inputs are divided by the scale, on which the eigenvectors depend. splits: folds held out
    in turn, at least 1, at most the folds there are. In each the eigenvectors are those of the other folds, and the
    eigenvalues the second moments of the held-out tokens along them, made to rise in the order of the sample's by
    isotonic regression, which averages out most of their noise. One eigendecomposition a split, and one of the mean of
    several; all in float32.
    """
    if moments.folds < 2:
        raise ValueError(
            f"shrunk_gram: moments of {moments.folds} fold with tokens; hold some out: Moments(columns, folds=16), "
            "and as many batches."
        )
    count = min(splits, moments.folds)
    parts = [_split(moments, scale, ridge, fold) for fold in range(count)]
    if count == 1:
        return parts[0]
    mean = parts[0].matrix()
    for part in parts[1:]:
        mean += part.matrix()
    return Eigen.of(mean / count)


def _split(moments: Moments, scale: Tensor, ridge: Tensor, fold: int) -> Eigen:
    """The estimate that one held-out fold gives."""
    vectors = Eigen.of(_scaled(moments.gram_without(fold), scale, ridge)).vectors
    seen = ((_scaled(moments.gram(fold), scale, ridge) @ vectors) * vectors).sum(0)
    values = torch.from_numpy(isotonic_regression(seen.double().cpu().numpy()).x)
    return Eigen(values.to(vectors).clamp_min(0), vectors)


def _scaled(gram: Tensor, scale: Tensor, ridge: Tensor) -> Tensor:
    scaled = gram / scale / scale[:, None]
    scaled.diagonal().add_(ridge)
    return scaled.float()
