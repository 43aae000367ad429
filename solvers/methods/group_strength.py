"""The strength at which the prox of the weighted group lasso zeroes a wanted number of groups: a quantile.

Group g becomes zero iff strength * factors_g >= ||a_g / tau_g||, with a what the optimizer's step gave and tau its prox
steps, one for the group or one an entry.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from argprune.solvers.ilp.closed_form import kth_largest
from argprune.solvers.methods.base import keep_count
from argprune.solvers.methods.structures import Scope, closest_count


def critical_strengths(stack: Tensor, tau: float | Tensor, factors: Tensor) -> Tensor:
    """The strength at which each group becomes zero, float64 (groups,); infinite where no strength does.

    stack: (groups, size), padding 0. tau: prox steps at strength 1, a number, (groups, 1) or (groups, size).
    factors: (groups,), > 0.
    """
    if isinstance(tau, Tensor) and tau.shape[1] > 1:
        # Padding has a step of 0, and nothing to zero.
        quotients = torch.where(stack != 0, stack.double() / tau.double(), 0)
        lengths: Tensor = torch.linalg.vector_norm(quotients, dim=1)
        return lengths / factors
    norms: Tensor = torch.linalg.vector_norm(stack, dim=1, dtype=torch.float64)
    tau = tau.squeeze(1) if isinstance(tau, Tensor) else torch.full_like(norms, tau)
    return torch.where(norms > 0, norms / (tau * factors), 0)


def strengths_for(critical: Sequence[Tensor], sizes: Sequence[Tensor], sparsity: float, scope: Scope) -> list[float]:
    """For each tie the strength at which the wanted groups are zero and, up to rounding, not one more.

    critical, sizes: of the groups of each tie. scope: "matrix", all but `keep_count` groups of each tie; "global", one
    strength for all, at which the entries left come closest to `keep_count` of all.
    """
    if scope == "matrix":
        return [_between([c], len(c) - keep_count(len(c), sparsity)) for c in critical]
    together = torch.cat(list(sizes))
    order = torch.cat(list(critical)).sort(descending=True, stable=True).indices
    kept = closest_count(together[order], keep_count(int(together.sum()), sparsity))
    return [_between(critical, len(together) - kept)] * len(critical)


def _between(critical: Sequence[Tensor], zeros: int) -> float:
    """A strength above the `zeros` smallest critical ones and below the others, halfway; 0 for none."""
    if zeros == 0:
        return 0.0
    total = sum(len(c) for c in critical)
    last = float(kth_largest(critical, total - zeros + 1))
    # Where all shall vanish there is no survivor; anything well above the last will do.
    first = float(kth_largest(critical, total - zeros)) if zeros < total else 2 * last
    strength = last + (first - last) / 2
    # At a learning rate of 0 no strength zeroes anything, and the prox is the identity.
    return strength if strength < float("inf") else 0.0
