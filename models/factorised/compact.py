"""From gates to smaller matrices: closed components go, and factors that take more than one matrix become one.

Q diag(gate) P   ->   Q' P',  Q' = Q[:, kept] diag(gate[kept]),  P' = P[kept]     where r' (i + o) < i o
                 ->   one matrix Q' P'                                          elsewhere
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from argprune.models.factorised.checkpoint import describe
from argprune.models.factorised.embedding import FactorisedEmbedding
from argprune.models.factorised.gated import check_index
from argprune.models.factorised.linear import FactorisedLinear
from argprune.models.factorised.places import find_factors, restore, retie
from argprune.models.timing import median_seconds
from argprune.solvers.low_rank import Factors, stored_size

# What one matrix must gain over two factors to be taken: less than that is the noise of measuring.
_GAIN = 0.05


@dataclass(frozen=True)
class Compacted:
    """What became of the factors of a model.

    ranks: name of the dense weight -> components left, or None where they were multiplied into one matrix. size: the
    numbers that the weights take now, dense_size: as dense ones; biases not counted. milliseconds: name -> medians of
    the layer as one matrix and as two factors, where they were measured.
    """

    ranks: Mapping[str, int | None]
    size: int
    dense_size: int
    milliseconds: Mapping[str, tuple[float, float]]

    @property
    def sparsity(self) -> float:
        """The share of the dense weights' numbers that is saved, at most 1."""
        return 1 - self.size / self.dense_size


def compact(
    model: nn.Module,
    kept: Mapping[str, Tensor] | None = None,
    *,
    measure: bool = False,
    tokens: int = 128,
    repetitions: int = 7,
) -> Compacted:
    """Make the factors of `model` as small as their gates allow, in place; the outputs are those of the gated model.

    kept: name of a dense weight -> its components to keep: a boolean mask (r,), or int64 indices. Where it names none,
    those whose gate is not zero, at least one. Gates are multiplied into the factors that are left.
    Factors that take as many numbers as one matrix, or more, become one: the module that they stand for comes back,
    with the product as its weight. measure: so do those of linear layers that as one matrix are faster by 5 % on
    `tokens` random inputs, medians over `repetitions`, with torch's threads as they are.
    Optimizers are to be made anew. Raises ValueError for names, masks or indices that the model does not have, and for
    counts below 1.
    """
    if tokens < 1 or repetitions < 1:
        raise ValueError(f"compact: tokens {tokens}, repetitions {repetitions}; both are at least 1.")
    found = find_factors(model)
    indices = _kept(found, kept)
    dense_size = sum(outputs * inputs for outputs, inputs in (factors.shape for factors in found))
    ranks: dict[str, int | None] = {}
    milliseconds: dict[str, tuple[float, float]] = {}
    size = 0
    for factors, index in zip(found, indices, strict=True):
        factors.keep(index)
        outputs, inputs = factors.shape
        layer = factors.layer
        whole = factors.rank * factors.unit_size >= outputs * inputs
        if measure and not whole and isinstance(layer, FactorisedLinear):
            whole_seconds, seconds = _seconds(layer, tokens, repetitions)
            milliseconds[factors.name] = 1e3 * whole_seconds, 1e3 * seconds
            whole = whole_seconds < (1 - _GAIN) * seconds
        ranks[factors.name] = None if whole else factors.rank
        size += outputs * inputs if whole else factors.rank * factors.unit_size
        if whole:
            assert isinstance(layer, FactorisedLinear | FactorisedEmbedding)
            restore(model, layer)
    retie(model)
    describe(model)
    return Compacted(ranks, size, dense_size, milliseconds)


def compact_size(model: nn.Module, kept: Mapping[str, Tensor] | None = None) -> int:
    """The numbers that the factorised weights of `model` would take once compact; kept: as for `compact`."""
    found = find_factors(model)
    indices = _kept(found, kept)
    return sum(stored_size(len(index), *factors.shape) for factors, index in zip(found, indices, strict=True))


def _kept(found: list[Factors], kept: Mapping[str, Tensor] | None) -> list[Tensor]:
    """The components of each that stay, ascending."""
    if not found:
        raise ValueError("compact: the model has no factors; factorise it first.")
    given = dict(kept or {})
    indices = []
    for factors in found:
        chosen = given.pop(factors.name, None)
        if chosen is None:
            index = torch.arange(factors.rank) if factors.gate is None else factors.gate.detach().nonzero().flatten()
            # All closed: one component, times its gate of zero.
            indices.append(index if len(index) else torch.arange(1))
            continue
        if chosen.dtype == torch.bool:
            if chosen.shape != (factors.rank,):
                raise ValueError(
                    f"compact: mask of {factors.name!r} is {tuple(chosen.shape)}; it has {factors.rank} components."
                )
            chosen = chosen.nonzero().flatten()
        check_index(chosen, factors.rank, f"compact: {factors.name!r}")
        indices.append(chosen.sort().values)
    if given:
        raise ValueError(f"compact: no factors of {min(given)!r} in this model. See find_factors(model).")
    return indices


@torch.inference_mode()
def _seconds(layer: FactorisedLinear, tokens: int, repetitions: int) -> tuple[float, float]:
    """Median seconds of the layer as one matrix, and as two factors."""
    dtype, device = layer.second.dtype, layer.second.device
    sizes = layer.in_features, layer.out_features
    whole = nn.Linear(*sizes, bias=layer.bias is not None, dtype=dtype, device=device)
    whole.weight.copy_(layer.product())
    x = torch.randn(tokens, layer.in_features, dtype=dtype, device=device)
    seconds = median_seconds({"whole": whole, "factors": layer}, x, repetitions)
    # Factors that are hopelessly slow are not timed to the end.
    return seconds["whole"], seconds.get("factors", math.inf)
