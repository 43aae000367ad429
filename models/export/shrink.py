"""Structured masks to smaller matrices: heads and neurons that are zero are cut out, with the same outputs.

    y = W_2 act(W_1 x + b_1) + b_2;  column n of W_2 zero:  drop n
                                     row n of W_1 zero:     drop n, b_2 += W_2[:, n] act(b_1[n])

and the same for heads: one whose values do not depend on the input gives W_o b_v at every position, since attention
weights sum to one.
"""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from argprune.models.blocks import evaluating
from argprune.models.export.inputs import example_inputs, largest_difference, read_logits
from argprune.models.export.loading import SHAPES
from argprune.models.export.units import KINDS, axis_entries, find_units, keep_units, owner, writers
from argprune.models.inputs import longest_text
from argprune.models.structure import Kind
from argprune.solvers.groups import Part, Stacked, Tied

_ACTIVATIONS = ("intermediate_act_fn", "activation_fn", "act_fn", "activation", "act")
# The keys by which configs say how many units every layer has.
_COUNTS: Mapping[Kind, tuple[str, ...]] = {
    "heads": ("num_attention_heads", "num_heads", "n_head", "n_heads", "num_key_value_heads"),
    "neurons": ("intermediate_size", "ffn_dim", "n_inner", "hidden_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim"),
}


@dataclass(frozen=True)
class Shrunk:
    """A model without its zero units.

    units: kind -> name of the layer -> (kept, before). regular: whether plain `from_pretrained` loads what
    `model.save_pretrained` writes; otherwise `load_shrunk` does.
    """

    model: PreTrainedModel
    units: Mapping[Kind, Mapping[str, tuple[int, int]]]
    regular: bool

    @property
    def removed(self) -> int:
        """Heads and neurons that were cut out."""
        return sum(before - kept for layers in self.units.values() for kept, before in layers.values())


def shrink(model: PreTrainedModel, *, regular: bool = False) -> Shrunk:
    """Cut the heads and neurons that are zero out of a copy of `model`.

    model: with its masks applied; any of the architectures that `find_heads` and `find_neurons` know. regular: keep so
    many units in every layer that plain `from_pretrained` loads the result, as many as the fullest layer needs; heads
    of models whose config gives no head size (BERT, GPT-2, OPT) are then left as they are.
    Result: a model in evaluation mode, on the same device and of the same dtype, whose outputs are those of `model` up
    to rounding. A unit goes where the columns that read it are zero, or where it does not depend on the input and its
    constant fits into the next bias. Every layer keeps at least one unit. Dropout is that of inference: none.
    Where a short random text shows that a kind of units cannot be cut out of this architecture (heads with parameters
    of their own, say), it stays, with a UserWarning.
    Raises ValueError where the model has no units of a known layout.
    """
    find_units(model)
    text = _short_text(model)
    refused = False
    for kinds in (KINDS, ("neurons",), ("heads",)):
        attempt = _shrunk(model, kinds, level=regular)
        if regular and not attempt.regular:
            continue
        if _agrees(attempt.model, model, text):
            if refused:
                _warn_of_kinds_that_stay(model, [kind for kind in KINDS if kind not in kinds])
            return attempt
        refused = True
    if refused:
        _warn_of_kinds_that_stay(model, KINDS)
    return _shrunk(model, (), level=regular)


def _short_text(model: PreTrainedModel) -> dict[str, Tensor] | None:
    if "input_ids" not in inspect.signature(model.forward).parameters:
        return None
    return example_inputs(model, 2, min(8, longest_text(model) or 8))


def _agrees(small: PreTrainedModel, model: PreTrainedModel, text: Mapping[str, Tensor] | None) -> bool:
    """Whether both predict the same of a text, up to rounding."""
    if text is None:
        return True
    with evaluating(model):
        wanted = read_logits(model, text)
    try:
        found = read_logits(small, text)
    except (RuntimeError, ValueError, IndexError, AssertionError):
        return False
    scale = max(float(value.abs().max()) for value in wanted.values())
    return largest_difference(found, wanted) <= math.sqrt(torch.finfo(model.dtype).eps) * scale


def _warn_of_kinds_that_stay(model: PreTrainedModel, kinds: Sequence[Kind]) -> None:
    warnings.warn(
        f"The {' and '.join(kinds)} of {type(model).__name__} stay: without those that are zero its outputs differ.",
        UserWarning,
        stacklevel=3,
    )


@torch.no_grad()
def _shrunk(model: PreTrainedModel, kinds: Sequence[Kind], *, level: bool) -> Shrunk:
    small = copy.deepcopy(model).eval()
    units: dict[Kind, dict[str, tuple[int, int]]] = {}
    for kind, ties in find_units(small).items():
        if kind not in kinds:
            continue
        added = [_added(small, kind, tie) for tie in ties]
        kept = [_at_least_one(constant.isnan().any(1)) for constant in added]
        if level:
            kept = _levelled(kept)
        for tie, constant, keep in zip(ties, added, kept, strict=True):
            _fold(owner(small, tie.reader.weight), constant[~keep])
            keep_units(small, kind, tie, keep.nonzero().flatten())
            units.setdefault(kind, {})[tie.name] = (int(keep.sum()), tie.count)
    config = _plain_config(small, units)
    if config is not None:
        small.config = config
    else:
        counts = {kind: {name: kept for name, (kept, _) in layers.items()} for kind, layers in units.items()}
        setattr(small.config, SHAPES, counts)
    return Shrunk(small, units, config is not None)


def _added(model: nn.Module, kind: Kind, tie: Tied) -> Tensor:
    """What each unit adds to the layer's output, float64 (units, outputs); NaN where it depends on the input."""
    last = tie.reader
    matrix = last.weight.matrix.double()
    read = matrix[:, axis_entries(last, 1).to(matrix.device)].permute(1, 0, 2)
    unread = ~read.flatten(1).any(1)
    constants = _constant_heads(model, tie) if kind == "heads" else _constant_neurons(model, tie)
    constants = constants.repeat(1, read.shape[2] // constants.shape[1])
    added = (read @ constants[:, :, None]).squeeze(2)
    if owner(model, last.weight).bias is None:
        # Nowhere to put it, unless it is nothing.
        added[added.ne(0).any(1)] = torch.nan
    added[unread] = 0
    return added


def _constant_heads(model: nn.Module, tie: Tied) -> Tensor:
    """The output of each head before it is read, (heads, head size); NaN where its values depend on the input."""
    *_, value = writers(tie)
    rows, bias = _rows_and_bias(model, value)
    if isinstance(value.groups, Stacked):
        size = rows.shape[1] // value.groups.count
        rows, bias = rows[:, -size:], bias[:, -size:]
    constants = bias.clone()
    constants[_depends(value, rows)] = torch.nan
    return constants


def _constant_neurons(model: nn.Module, tie: Tied) -> Tensor:
    """The output of each neuron, (neurons, 1); NaN where it depends on the input."""
    first, *gated = writers(tie)
    rows, bias = _rows_and_bias(model, first)
    activation = _activation(model.get_submodule(tie.name))
    constants = torch.full_like(bias, torch.nan) if activation is None else activation(bias)
    constants[_depends(first, rows)] = torch.nan
    for up in gated:
        rows, bias = _rows_and_bias(model, up)
        factor = bias.clone()
        factor[_depends(up, rows)] = torch.nan
        # Zero times anything is zero, whichever of the two it is.
        constants = torch.where(constants.eq(0) | factor.eq(0), torch.zeros_like(bias), constants * factor)
    return constants


def _rows_and_bias(model: nn.Module, part: Part) -> tuple[Tensor, Tensor]:
    """The rows of each unit in a matrix, and the float64 bias there, both (units, rows of a unit)."""
    device = part.weight.parameter.device
    rows = axis_entries(part, 0).to(device)
    bias = owner(model, part.weight).bias
    return rows, torch.zeros(rows.shape, dtype=torch.float64, device=device) if bias is None else bias.double()[rows]


def _depends(part: Part, rows: Tensor) -> Tensor:
    return part.weight.matrix[rows].flatten(1).any(1)


def _activation(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    for holder in (module, *module.children()):
        for name in _ACTIVATIONS:
            found: Any = getattr(holder, name, None)
            if callable(found):
                return found
    return None


def _fold(module: Any, constants: Tensor) -> None:
    if module.bias is not None and len(constants):
        module.bias.copy_(module.bias.double() + constants.sum(0))


def _at_least_one(kept: Tensor) -> Tensor:
    # Attention cannot tell how many heads of no entries there are.
    if not kept.any():
        kept[0] = True
    return kept


def _levelled(kept: Sequence[Tensor]) -> list[Tensor]:
    """As many units in every layer as the fullest one needs: the first of those that could go stay."""
    most = max(int(keep.sum()) for keep in kept)
    levelled = []
    for keep in kept:
        spare = (~keep).nonzero().flatten()[: most - int(keep.sum())]
        levelled.append(keep.index_fill(0, spare, True))
    return levelled


def _plain_config(model: PreTrainedModel, units: Mapping[Kind, Mapping[str, tuple[int, int]]]) -> Any:
    """A config with which transformers builds a model of the same shapes; None where it has no such config."""
    config = copy.deepcopy(model.config)
    if hasattr(config, SHAPES):
        delattr(config, SHAPES)
    keys = config.to_dict()
    for kind, layers in units.items():
        if len(set(layers.values())) > 1:
            return None
        for kept, before in set(layers.values()):
            for key in _COUNTS[kind]:
                if isinstance(keys.get(key, ""), int | None):
                    setattr(config, key, kept if keys[key] is None else keys[key] // before * kept)
    try:
        with torch.device("meta"):
            built = type(model)(config)
    except ValueError:
        # transformers checks the numbers of a config against each other; ours is then none of its own.
        return None
    shapes = [{name: tensor.shape for name, tensor in m.state_dict().items()} for m in (built, model)]
    return config if shapes[0] == shapes[1] else None
