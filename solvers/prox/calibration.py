"""What a total amount of shrinkage removes: closed forms that calibrate the strength of reweighted l1.

`total` is S = sum over the steps of (prox step * strength), for weights that no gradient opposes. A weight becomes
zero if its magnitude is at most the cut returned here.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Refresh = Literal["never", "every-step", "plain"]


def magnitude_cut(total: float, eps: float, refresh: Refresh = "never") -> float:
    """Largest initial magnitude that `total` shrinks to zero; units of the weights.

    refresh: "never" (factors frozen at their start 1 / (|w| + eps): |w| (|w| + eps) <= S), "every-step" (factors follow
    the weights: |w|^2 / 2 + eps |w| <= S) or "plain" (factors 1: |w| <= S). Refreshing every few steps lies between.

    >>> f"{magnitude_cut(2e-4, eps=1e-3):.4f} {magnitude_cut(2e-4, eps=1e-3, refresh='every-step'):.4f}"
    '0.0137 0.0190'
    """
    if not (total >= 0 and eps > 0):
        raise ValueError(f"total {total}, eps {eps}; need total >= 0 and eps > 0.")
    if refresh == "never":
        return float((-eps + (eps**2 + 4 * total) ** 0.5) / 2)
    if refresh == "every-step":
        return float(-eps + (eps**2 + 2 * total) ** 0.5)
    return total


def total_for_sparsity(w: Tensor, sparsity: float, eps: float, refresh: Refresh = "never") -> float:
    """The total S that makes the given fraction of w zero where no gradient opposes; the inverse of `magnitude_cut`.

    sparsity: the fraction, in [0, 1]. eps, refresh: as for `magnitude_cut`.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity {sparsity}: it is the fraction of zeros, in [0, 1).")
    count = round(sparsity * w.numel())
    if count == 0:
        return 0.0
    cut = float(w.detach().abs().flatten().to(torch.float64).kthvalue(count).values)
    if refresh == "never":
        return cut * (cut + eps)
    return cut**2 / 2 + eps * cut if refresh == "every-step" else cut
