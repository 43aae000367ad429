"""Cut heads and neurons out of the matrices that hold them.

    W_in  <- W_in[rows of the kept units],    W_out <- W_out[:, columns of the kept units]

The modules stay those of transformers; only their sizes change, and the head counts that their attention goes by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from argprune.models.structure import Kind, find_heads, find_neurons
from argprune.solvers.groups import Part, Tied, Weight

KINDS: tuple[Kind, ...] = ("heads", "neurons")
_FIND = {"heads": find_heads, "neurons": find_neurons}
# What attention layers call the number of their heads, of their keys' and values' heads, and the width of all heads.
_HEADS = ("num_attention_heads", "num_heads", "n_heads")
_KEY_HEADS = ("num_key_value_heads",)
_WIDTHS = ("all_head_size", "inner_dim", "split_size", "embed_dim")


def find_units(model: nn.Module) -> dict[Kind, list[Tied]]:
    """The heads and neurons of `model` that can be cut out, by kind; a kind that it does not have is left out.

    Attention layers with position biases of their own for every head (T5) are left out: layers share those tables; so
    are layers that share their matrices. Raises ValueError where the model has neither kind.
    """
    found: dict[Kind, list[Tied]] = {}
    refusals = []
    holders = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    shared = {parameter for parameter, count in holders.items() if count > 1}
    for kind in KINDS:
        try:
            ties = _FIND[kind](model, biases=True)
        except ValueError as error:
            # One kind alone is worth cutting; where there is none, the reasons are reported below.
            refusals.append(str(error))
            continue
        if kind == "heads":
            ties = [tie for tie in ties if not _has_position_table(model.get_submodule(tie.name))]
        own = [tie for tie in ties if not any(id(weight.parameter) in shared for weight in tie.weights)]
        if len(own) < len(ties):
            refusals.append(f"Some of its {kind} are of several layers, which share their matrices.")
            ties = own
        if ties:
            found[kind] = ties
    if not found:
        raise ValueError(f"{type(model).__name__} has no units to cut out. {' '.join(refusals)}".strip())
    return found


def writers(tie: Tied) -> list[Part]:
    """The matrices that compute the units, in the order of their layout; biases are left out."""
    return [part for part in tie.parts if part.weight.parameter.ndim == 2][:-1]


def owner(model: nn.Module, weight: Weight) -> Any:
    """The Linear or Conv1D that holds a weight or its bias."""
    return model.get_submodule(weight.name.rpartition(".")[0])


def axis_entries(part: Part, axis: int) -> Tensor:
    """Rows (axis 0) or columns (axis 1) of each group, int64 (groups, entries of the axis that a group touches)."""
    shape = part.weight.matrix.shape
    index = torch.arange(shape.numel()).reshape(shape)
    index = index if len(shape) == 1 else (index // shape[1] if axis == 0 else index % shape[1])
    stack = part.groups.split(index).sort(1).values
    first = torch.ones_like(stack, dtype=torch.bool)
    first[:, 1:] = stack[:, 1:] != stack[:, :-1]
    return stack[first].reshape(len(stack), -1)


@torch.no_grad()
def keep_units(model: nn.Module, kind: Kind, tie: Tied, kept: Tensor) -> None:
    """Cut all but the kept units of one tie out of `model`, in place.

    tie: of this model, with biases. kept: int64 indices of units, ascending, at least one. The tie is stale afterwards.
    """
    last = tie.reader
    for part in tie.parts:
        axis = 1 if part is last else 0
        entries = axis_entries(part, axis)[kept].flatten().sort().values.to(part.weight.parameter.device)
        _cut(owner(model, part.weight), part.weight, entries, axis)
    if kind == "heads":
        _set_head_counts(model.get_submodule(tie.name), len(kept), tie.count)


def resize(model: nn.Module, shapes: Mapping[str, Mapping[str, int]]) -> None:
    """Give `model` the unit counts of a shrunk one, in place; which units are left out does not matter.

    shapes: kind -> name of a tie -> number of units.
    Raises ValueError for kinds, names or counts that the model does not have.
    """
    found = find_units(model)
    unknown = set(shapes) - set(found)
    if unknown:
        raise ValueError(f"argprune_shapes: {type(model).__name__} has no {min(unknown)}; it has {', '.join(found)}.")
    for kind, members in found.items():
        ties = {tie.name: tie for tie in members}
        for name, count in shapes.get(kind, {}).items():
            if name not in ties:
                raise ValueError(f"argprune_shapes: {type(model).__name__} has no {kind} in {name!r}.")
            if not isinstance(count, int) or not 1 <= count <= ties[name].count:
                raise ValueError(f"argprune_shapes: {count!r} {kind} in {name!r}; give 1 to {ties[name].count}.")
            keep_units(model, kind, ties[name], torch.arange(count))


def _cut(module: Any, weight: Weight, entries: Tensor, axis: int) -> None:
    parameter = weight.parameter
    stored = 1 - axis if weight.transposed else axis
    data = parameter.detach().index_select(0 if parameter.ndim == 1 else stored, entries).contiguous()
    setattr(module, weight.name.rpartition(".")[2], nn.Parameter(data, requires_grad=parameter.requires_grad))
    if isinstance(module, Conv1D):
        module.nx, module.nf = module.weight.shape
    else:
        module.out_features, module.in_features = module.weight.shape


def _set_head_counts(module: nn.Module, kept: int, total: int) -> None:
    for layer in (module, *module.children()):
        for names in (_HEADS, _KEY_HEADS, _WIDTHS):
            for name in names:
                size = getattr(layer, name, None)
                if isinstance(size, int):
                    # A multiple of the units: queries of a shared key, entries of a head.
                    setattr(layer, name, size // total * kept)


def _has_position_table(module: nn.Module) -> bool:
    return any(
        isinstance(child, nn.Embedding) or hasattr(child, "has_relative_attention_bias") for child in module.modules()
    )
