"""Second moments of a layer's inputs, streamed: all that layer-wise reconstruction knows of the calibration tokens.

For a weight W with one row an output, ||X (W - V)^T||^2 / tokens = tr (W - V) G (W - V)^T with G = X^T X / tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """The sum of x x^T over tokens, kept apart in folds so that what is fitted on some can be tried on the others.

    columns: inputs of the layer, >= 1. folds: batches go to them in turn, >= 1; whole batches, since tokens of one text
    resemble each other more than other texts'. dtype: of the sums, float64 or float32. device: where the sums are kept.
    Takes folds x columns^2 numbers.

    >>> moments = Moments(2, folds=2)
    >>> for batch in (torch.eye(2), 3 * torch.eye(2)):
    ...     moments.update(batch)
    >>> moments.tokens, moments.gram(0).diagonal().tolist(), moments.gram().diagonal().tolist()
    (4, [0.5, 0.5], [2.5, 2.5])
    """

    def __init__(
        self,
        columns: int,
        folds: int = 1,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        for name, value in (("columns", columns), ("folds", folds)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"Moments: {name} {value}; it is a whole number, at least 1.")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"Moments: dtype {dtype}; sums over tokens need torch.float32 or torch.float64.")
        self._sums = torch.zeros(folds, columns, columns, dtype=dtype, device=device)
        self._counts = [0] * folds
        self._batches = 0

    @property
    def columns(self) -> int:
        """Number of inputs."""
        return self._sums.shape[1]

    @property
    def folds(self) -> int:
        """Number of folds that hold tokens."""
        return sum(count > 0 for count in self._counts)

    @property
    def tokens(self) -> int:
        """Number of tokens over all folds."""
        return sum(self._counts)

    @property
    def dtype(self) -> torch.dtype:
        """Of the sums, and of what is computed from them."""
        return self._sums.dtype

    @property
    def device(self) -> torch.device:
        """Where the sums are."""
        return self._sums.device

    @property
    def dead(self) -> Tensor:
        """(columns,) boolean: the inputs that were 0 in every token."""
        return self._sums.diagonal(dim1=1, dim2=2).sum(0) == 0

    def update(self, inputs: Tensor) -> None:
        """Add the tokens of a batch, (..., columns) and floating, to the next fold. ValueError unless all are finite.

        An empty batch is none: it does not take a fold's turn.
        """
        if inputs.dim() == 0 or inputs.shape[-1] != self.columns:
            raise ValueError(f"Moments: inputs of shape {tuple(inputs.shape)}; give (..., {self.columns}).")
        tokens = inputs.detach().reshape(-1, self.columns).to(self._sums)
        if not len(tokens):
            return
        # A sum of finite numbers may overflow, but one of NaN or infinities is never finite.
        if not bool(tokens.sum().isfinite()) and not bool(tokens.isfinite().all()):
            raise ValueError("Moments: inputs with NaN or an infinity; every one must be finite.")
        fold = self._batches % len(self._counts)
        self._sums[fold].addmm_(tokens.t(), tokens)
        self._counts[fold] += len(tokens)
        self._batches += 1

    def gram(self, fold: int | None = None) -> Tensor:
        """(columns, columns) mean of x x^T over the tokens of one fold, or of all; ValueError where there are none."""
        if fold is None:
            self._require(self.tokens, "tokens")
            return self._sums.sum(0) / self.tokens
        self._require(self._counts[fold], f"tokens in fold {fold}")
        return self._sums[fold] / self._counts[fold]

    def gram_without(self, fold: int) -> Tensor:
        """(columns, columns) mean of x x^T over the tokens of all folds but one; ValueError where there are none."""
        left = self.tokens - self._counts[fold]
        self._require(left, f"tokens outside fold {fold}")
        return (self._sums.sum(0) - self._sums[fold]) / left

    def _require(self, tokens: int, what: str) -> None:
        if tokens == 0:
            raise ValueError(f"Moments: no {what}; update with batches of inputs first, at least one a fold.")
