"""Dense weights to factors, in place.

W (outputs, inputs)  ->  Q P,    P (r, inputs), Q (outputs, r)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from argprune.models.factorised.checkpoint import describe, foreign_method
from argprune.models.factorised.places import check, holders, install, retie, word_embeddings
from argprune.solvers.groups import Weight
from argprune.solvers.low_rank import (
    Factorisation,
    Factors,
    break_even_rank,
    component_values,
    factorise_random,
    factorise_svd,
    factorise_whitened,
    kept_whole,
)

Initial = Literal["svd", "whitened", "random"]
Rank = Literal["break-even", "full"] | int
# Kernels are about a sixth slower at rank 614 than at 608. Below the second number a multiple would give up too much.
_ALIGNED, _LARGE = 8, 128


def factorise(
    model: nn.Module,
    weights: Sequence[Weight],
    *,
    initial: Initial = "svd",
    rank: Rank = "break-even",
    grams: Mapping[str, Tensor] | None = None,
    embeddings: bool = False,
    whole: float | None = None,
    generator: torch.Generator | None = None,
) -> list[Factors]:
    """Replace the modules of `model` that hold the `weights` by factorised ones, in place.

    model: on any device and of any floating dtype; optimizers are to be made afterwards, of the new parameters.
    weights: those of nn.Linear and Conv1D modules, as `find_weights` gives them in this very model.
    initial: "svd" keeps the best product of that rank; "whitened" the one whose outputs change least on the inputs of
    `grams`; "random" discards the weights. rank: "break-even", the largest at which the factors take no more than the
    weight, from 128 on rounded down to a multiple of 8; "full", at which an SVD is exact; or a number for all.
    grams: for "whitened", X^T X (inputs, inputs) by weight name, up to a factor; for an embedding the counts of its
    words (words,); `input_grams` makes them.
    embeddings: also the word embeddings, with the output head where it shares their table. whole: leave those weights
    as they are that `kept_whole` finds at this sparsity, in (0, 1), of the values of this start, which is an SVD; None:
    factor all. generator: for "random", by default one seeded by torch's initial seed.
    Result: the factors of each weight that has some, in order, the embeddings' last. A weight that stands in several
    modules (tied ones, one layer used twice) has one pair of factors, in all of them.
    `save_pretrained` then writes a folder that `from_pretrained` loads, wherever argprune.models was imported.
    Raises ValueError, before anything is changed, for a weight that is no matrix of a linear layer of this model, for a
    name given twice, for a rank or gram that does not fit, and for a model that is quantised.
    """
    if initial not in get_args(Initial):
        raise ValueError(f"factorise: initial {initial!r}; choose one of {', '.join(get_args(Initial))}.")
    if foreign_method(model) is not None:
        raise ValueError(f"factorise: the model is quantised ({foreign_method(model)}); give one that is not.")
    table = [word_embeddings(model)] if embeddings else []
    names = [*(weight.name for weight in weights), *table]
    if not names:
        raise ValueError("factorise: no weights given. Pass find_weights(model).")
    places: dict[str, Sequence[str]] = {}
    for name in names:
        paths = holders(model, name)
        check(model, paths)
        taken = [other for other, others in places.items() if set(others) & set(paths)]
        if taken:
            raise ValueError(f"factorise: {name!r} is {taken[0]!r} too; give it once.")
        places[name] = paths
    _check_parameters(model, weights)
    plans = {name: _plan(model, name, initial, rank, grams) for name in names}
    if whole is not None:
        stay = _whole(plans, initial, whole).difference(table)
        plans = {name: plan for name, plan in plans.items() if name not in stay}
    if generator is None:
        generator = torch.Generator().manual_seed(torch.initial_seed())
    found = []
    for name, (matrix, gram, size) in plans.items():
        parts = _factorised(matrix, size, initial, gram, generator)
        first = parts.first.t() if _is_embedding(model, name) else parts.first
        # An SVD leaves its results column by column.
        layer = install(model, places[name], first.to(matrix).contiguous(), parts.second.to(matrix).contiguous())
        found.append(Factors(name, layer, parts.values))
    retie(model)
    describe(model)
    return found


def _is_embedding(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Embedding)


def _check_parameters(model: nn.Module, weights: Sequence[Weight]) -> None:
    for weight in weights:
        if model.get_parameter(weight.name) is not weight.parameter:
            raise ValueError(f"factorise: {weight.name!r} is a weight of another model; find_weights in this very one.")
        if _is_embedding(model, weight.name):
            raise ValueError(f"factorise: {weight.name!r} is a table of words; ask for it by embeddings=True.")


def _plan(
    model: nn.Module, name: str, initial: Initial, rank: Rank, grams: Mapping[str, Tensor] | None
) -> tuple[Tensor, Tensor | None, int]:
    """The weight (outputs, inputs), its gram where asked for, and its rank."""
    module: Any = model.get_submodule(name.rpartition(".")[0])
    stored = module.weight.detach()
    matrix = stored.t() if isinstance(module, Conv1D | nn.Embedding) else stored
    if stored.dim() != 2 or not stored.is_floating_point():
        raise ValueError(f"factorise: {name!r} is of shape {tuple(stored.shape)}, {stored.dtype}; give matrices.")
    outputs, inputs = matrix.shape
    full = min(outputs, inputs)
    if rank == "break-even":
        size = break_even_rank(outputs, inputs)
        size -= size % _ALIGNED if size >= _LARGE else 0
    elif rank == "full":
        size = full
    elif isinstance(rank, bool | str) or not 1 <= rank <= full:
        raise ValueError(
            f"factorise: rank {rank!r} for {name!r} of {outputs} x {inputs}; give 1 to {full}, 'break-even' or 'full'."
        )
    else:
        size = rank
    gram = None
    if initial == "whitened":
        gram = (grams or {}).get(name)
        if gram is None:
            raise ValueError(f"factorise: no gram of {name!r}; 'whitened' needs input_grams(model, weights, batches).")
        if gram.shape not in ((inputs, inputs), (inputs,)):
            raise ValueError(f"factorise: gram of {name!r} is {tuple(gram.shape)}; give ({inputs}, {inputs}).")
    return matrix, gram, size


def _whole(plans: Mapping[str, tuple[Tensor, Tensor | None, int]], initial: Initial, sparsity: float) -> set[str]:
    """The weights that stay as they are."""
    if initial == "random" or not 0 < sparsity < 1:
        raise ValueError(f"factorise: whole {sparsity}, initial {initial!r}; give a sparsity in (0, 1), and an SVD.")
    values = [component_values(matrix, gram) for matrix, gram, _ in plans.values()]
    shapes = [(matrix.shape[0], matrix.shape[1]) for matrix, _, _ in plans.values()]
    return {name for name, stays in zip(plans, kept_whole(values, shapes, sparsity), strict=True) if stays}


def _factorised(
    matrix: Tensor, rank: int, initial: Initial, gram: Tensor | None, generator: torch.Generator
) -> Factorisation:
    if initial == "random":
        return factorise_random((matrix.shape[0], matrix.shape[1]), rank, generator)
    return factorise_svd(matrix, rank) if gram is None else factorise_whitened(matrix, gram, rank)
