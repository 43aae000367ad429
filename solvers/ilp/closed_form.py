"""Closed form of the 0-1 program max sum_i s_i m_i subject to sum_i m_i = k: keep the k largest scores.

Over several tensors without concatenating them: a sample brackets the k-th largest score, one pass counts, and only
the entries inside the bracket are sorted. Exactly k are kept; ties go to the smaller flat index.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from argprune.solvers.ilp import digits
from argprune.solvers.ilp.bracket import bracket, evenly
from argprune.solvers.sampling import stride_of

# Up to this many entries are selected from directly; the bracket for more is read off a sample of the second size.
_DIRECT = 1 << 20
_SAMPLE = 1 << 12


def keep_largest(scores: Sequence[Tensor], keep: int) -> list[Tensor]:
    """Masks (True = kept) of the `keep` largest entries over all tensors together.

    scores: floating tensors of any shapes on one device, larger = keep; infinities are ordered as numbers.
    keep: 0 <= keep <= total number of entries. Ties are broken by position: earlier tensor, then smaller flat index.
    Returns boolean tensors of the same shapes. Raises ValueError on NaN or a count out of range.

    >>> keep_largest([torch.tensor([1.0, 3.0]), torch.tensor([3.0, 2.0])], keep=2)
    [tensor([False,  True]), tensor([ True, False])]
    """
    total = sum(score.numel() for score in scores)
    if not 0 <= keep <= total:
        raise ValueError(f"keep {keep} of {total} entries; need 0 <= keep <= {total}.")
    if any(_has_nan(score) for score in scores):
        raise ValueError("scores contain NaN; every entry needs a score that can be ordered.")
    if keep in (0, total):
        return [torch.full_like(score, keep > 0, dtype=torch.bool) for score in scores]
    threshold = kth_largest(scores, keep)
    at_least = [score >= threshold for score in scores]
    if sum(int(mask.count_nonzero()) for mask in at_least) == keep:
        return at_least
    # More entries than wanted share the threshold's value: the first of them are kept.
    # Contiguous: a comparison keeps the strides of a transposed score, and `view` below needs flat memory.
    above = [(score > threshold).contiguous() for score in scores]
    missing = keep - sum(int(mask.sum()) for mask in above)
    for mask, score in zip(above, scores, strict=True):
        if missing == 0:
            break
        ties = (score == threshold).flatten().nonzero().flatten()[:missing]
        mask.view(-1)[ties] = True
        missing -= len(ties)
    return above


def kth_largest(scores: Sequence[Tensor], k: int) -> Tensor:
    """The k-th largest entry (1-based) over all tensors together, as a 0-dim tensor; no NaN allowed.

    scores: floating tensors of any shapes on one device and of one dtype; 1 <= k <= total number of entries.
    """
    total = sum(score.numel() for score in scores)
    rank = total - k + 1
    if total <= _DIRECT:
        return _kth_smallest(_flat(scores), rank)
    flat = [score.detach().reshape(-1) for score in scores]
    low, high = bracket(evenly(flat, stride_of(total, _SAMPLE)), rank, total)
    below = sum(int((score < low).sum()) for score in flat)
    inside = torch.cat([score[(score >= low) & (score <= high)] for score in flat])
    if not below < rank <= below + len(inside):
        # The sample missed: rare, and the answer must be exact all the same.
        found = digits.narrow(lambda prefix: digits.count(flat, prefix), flat[0].dtype, rank)
        return flat[0].new_tensor(found.low)
    return _kth_smallest(inside, rank - below)


def _flat(scores: Sequence[Tensor]) -> Tensor:
    return scores[0].flatten() if len(scores) == 1 else torch.cat([score.flatten() for score in scores])


def _kth_smallest(flat: Tensor, k: int) -> Tensor:
    """The k-th smallest entry (1-based). NumPy's partition is several times as fast as torch's kthvalue."""
    if flat.device.type == "cpu" and flat.dtype in (torch.float32, torch.float64):
        return flat.new_tensor(np.partition(flat.detach().numpy(), k - 1)[k - 1])
    return flat.kthvalue(k).values


def _has_nan(score: Tensor) -> bool:
    # A sum without NaN had no NaN in it, and costs a tenth of a look at every entry.
    return bool(score.sum().isnan()) and bool(score.isnan().any())
