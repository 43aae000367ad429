"""The units of a transformer that can be removed whole, as ties between the matrices of its blocks.

    head h of an attention layer:     rows of query, key and value that compute it, columns of the output that read it
    neuron n of a feed-forward layer: row of the first matrix (and of its gate) and column of the second

With query heads that share a key and value head, the unit is that head with all its queries. A unit whose tied entries
are zero adds nothing to its layer's output, whatever its biases are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from argprune.models.prunable import find_weights
from argprune.solvers.groups import Blocks, Groups, Part, Runs, Stacked, Tied, Weight

Kind = Literal["heads", "neurons"]


@dataclass(frozen=True)
class _Layout:
    """Where a unit's entries lie, by names relative to one module.

    writers: matrices whose rows compute the unit, and how many matrices of equal shape are stacked in each.
    reader: the matrix whose columns read it.
    """

    writers: tuple[tuple[str, int], ...]
    reader: str

    def __str__(self) -> str:
        return f"{' + '.join(name for name, _ in self.writers)} -> {self.reader}"


def _layout(writers: str, reader: str) -> _Layout:
    return _Layout(tuple((name, 1) for name in writers.split()), reader)


# The first that fits a module counts.
_LAYOUTS: Mapping[Kind, tuple[_Layout, ...]] = {
    "heads": (
        _layout("self.query self.key self.value", "output.dense"),
        _layout("query key value", "dense"),
        _layout("q_lin k_lin v_lin", "out_lin"),
        _layout("q_proj k_proj v_proj", "out_proj"),
        _layout("q_proj k_proj v_proj", "o_proj"),
        _layout("q k v", "o"),
        # GPT-2 fuses: key and value of the cross-attention, query, key and value of the self-attention.
        _Layout((("q_attn", 1), ("c_attn", 2)), "c_proj"),
        _Layout((("c_attn", 3),), "c_proj"),
    ),
    "neurons": (
        _layout("intermediate.dense", "output.dense"),
        _layout("lin1", "lin2"),
        _layout("fc1", "fc2"),
        _layout("gate_proj up_proj", "down_proj"),
        _layout("up_proj", "down_proj"),
        _layout("wi_0 wi_1", "wo"),
        _layout("wi", "wo"),
        _layout("c_fc", "c_proj"),
        _layout("ffn", "ffn_output"),
    ),
}
_NOUNS: Mapping[Kind, str] = {"heads": "attention heads", "neurons": "feed-forward neurons"}
_HEAD_SIZES = ("attention_head_size", "head_dim", "key_value_proj_dim")


def find_heads(model: nn.Module, *, biases: bool = False) -> list[Tied]:
    """Find the attention heads of `model`: one `Tied` for each attention layer, in module order.

    model: as for `find_weights`. biases: tie the entries of the query, key and value biases too, where there are any.
    Result: ties named after the module that holds the four matrices; their weights are those of `find_weights`, and
    group h is head h: a block of rows of query, key and value, a block of columns of the output. Where query heads
    share keys and values, a group is a key and value head with its queries. Layers that share all their matrices have
    one tie, of the first layer's name.
    Raises ValueError where no attention layer is of a known layout, naming what the blocks hold, where a norm over all
    heads makes them depend on each other, and where layers share some of their matrices only.
    """
    return _find(model, "heads", biases)


def find_neurons(model: nn.Module, *, biases: bool = False) -> list[Tied]:
    """Find the neurons of the feed-forward layers of `model`: one `Tied` for each layer, in module order.

    model: as for `find_weights`. biases: tie the entries of the first matrix's bias too, where there is one.
    Result: ties named after the module that holds the matrices; group n is neuron n: a row of the first matrix and of
    its gate, if it has one, and a column of the second.
    Raises ValueError as `find_heads` does.
    """
    return _find(model, "neurons", biases)


def find_ties(model: nn.Module, kinds: Sequence[Kind], weights: Sequence[Weight]) -> list[Tied]:
    """The heads and neurons, as `kinds` says, that the given weights make up.

    weights: of `model`, as `find_weights` selected them; units of other weights are left out.
    Raises ValueError for an unknown kind, where some weights of a unit are given and others are not, where a weight
    lies in no unit, and as `find_heads` does.
    """
    given = {id(weight.parameter) for weight in weights}
    ties = []
    for kind in kinds:
        if kind not in get_args(Kind):
            raise ValueError(f"find_ties: kind {kind!r}; choose of {', '.join(get_args(Kind))}.")
        for tie in _find(model, kind, biases=any(weight.parameter.ndim == 1 for weight in weights)):
            missing = [weight.name for weight in tie.weights if id(weight.parameter) not in given]
            if len(missing) == len(tie.parts):
                continue
            if missing:
                raise ValueError(
                    f"{tie.name}: the {kind} lie in {len(tie.parts)} weights, and {missing[0]!r} is not among the "
                    f"weights to prune. Include all of them, or none."
                )
            ties.append(tie)
    tied = {id(weight.parameter) for tie in ties for weight in tie.weights}
    others = [weight for weight in weights if id(weight.parameter) not in tied]
    outside = [weight.name for weight in others]
    if outside and all(weight.parameter.ndim == 1 for weight in others):
        raise ValueError(
            f"{outside[0]!r}, as {len(outside)} biases in all, is what a layer adds that reads {' or '.join(kinds)}: "
            "it belongs to none of them. Set biases to false."
        )
    if outside:
        raise ValueError(
            f"{len(outside)} of the {len(weights)} weights to prune, such as {outside[0]!r}, hold no "
            f"{' or '.join(kinds)}. Choose by include and exclude the weights that do."
        )
    return ties


def _find(model: nn.Module, kind: Kind, biases: bool) -> list[Tied]:
    prunable = {id(weight.parameter): weight for weight in find_weights(model)}
    found: list[Tied] = []
    owners: dict[int, str] = {}
    for path, module in model.named_modules():
        layout = next((layout for layout in _LAYOUTS[kind] if _fits(layout, module, prunable)), None)
        if layout is None:
            continue
        tie = _tie(kind, path, module, layout, prunable, biases)
        matrices = [id(weight.parameter) for weight in tie.weights if weight.parameter.ndim > 1]
        sharing = {owners[matrix] for matrix in matrices if matrix in owners}
        if not sharing:
            found.append(tie)
        elif not all(matrix in owners for matrix in matrices):
            raise ValueError(f"{path} shares some of its matrices with {min(sharing)}, and not all of them.")
        owners |= dict.fromkeys(matrices, path)
    if not found:
        raise ValueError(_nothing_found(model, kind, list(prunable.values())))
    return found


def _fits(layout: _Layout, module: nn.Module, prunable: Mapping[int, Weight]) -> bool:
    names = (*(name for name, _ in layout.writers), layout.reader)
    found = [prunable.get(id(getattr(_descendant(module, name), "weight", None))) for name in names]
    weights = [weight for weight in found if weight is not None]
    if len(weights) < len(found):
        return False
    # GPT-BigCode's c_attn, not transposed as GPT-2's is, has its matrices head by head, or one key and value for all.
    if any(stacked > 1 and not w.transposed for (_, stacked), w in zip(layout.writers, weights, strict=False)):
        return False
    # The reader's columns are the units' entries and nothing else; queries may come with a gate.
    return weights[0].matrix.shape[0] // layout.writers[0][1] % weights[-1].matrix.shape[1] == 0


def _descendant(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        found = module._modules.get(name)
        if found is None:
            return None
        module = found
    return module


def _tie(
    kind: Kind, path: str, module: nn.Module, layout: _Layout, prunable: Mapping[int, Weight], biases: bool
) -> Tied:
    matrices = {name: module.get_submodule(name) for name, _ in layout.writers}
    weights = {name: prunable[id(matrix.weight)] for name, matrix in matrices.items()}
    heights = {name: weights[name].matrix.shape[0] // stacked for name, stacked in layout.writers}
    widths = {name: weight.matrix.shape[1] for name, weight in weights.items()}
    size = _head_size(path, module) if kind == "heads" else 1
    # The least, which is that of keys and values where queries share them.
    count = min(heights.values()) // size
    for name, child in module.named_children():
        if _mixes(kind, name, child, size, count, max(widths.values())):
            raise ValueError(
                f"{path}.{name} normalises over all {_NOUNS[kind]} together, so that none is removable by itself."
            )
    reader = prunable[id(module.get_submodule(layout.reader).weight)]
    parts = [
        Part(weights[n], _stacked(Blocks(heights[n] // count, widths[n]), stacked)) for n, stacked in layout.writers
    ]
    parts.append(Part(reader, Blocks(reader.matrix.shape[0], reader.matrix.shape[1] // count)))
    for name, stacked in layout.writers if biases else ():
        if isinstance(bias := matrices[name].bias, nn.Parameter):
            weight = Weight(f"{weights[name].name.removesuffix('.weight')}.bias", bias)
            parts.append(Part(weight, _stacked(Runs(heights[name] // count), stacked)))
    return Tied(path, parts)


def _stacked(groups: Groups, count: int) -> Groups:
    return groups if count == 1 else Stacked(groups, count)


def _head_size(path: str, module: nn.Module) -> int:
    for owner in (module, *module.children()):
        for name in _HEAD_SIZES:
            if isinstance(size := getattr(owner, name, None), int):
                return size
    raise ValueError(f"{path}: {type(module).__name__} has no {', '.join(_HEAD_SIZES)} that tells its heads' size.")


def _mixes(kind: Kind, name: str, child: nn.Module, size: int, count: int, width: int) -> bool:
    """Whether a child is a norm over all units at once, as OLMo 2 has of queries and Kosmos-2 of neurons."""
    weight = getattr(child, "weight", None)
    if any(child.children()) or "norm" not in type(child).__name__.lower() or weight is None:
        return False
    if kind == "heads":
        # The norm of ALBERT's layer comes after the output; others are of one head's entries, or mix them.
        return name != "LayerNorm" and weight.shape[-1] != size
    return bool(weight.shape[-1] == count != width)


def _nothing_found(model: nn.Module, kind: Kind, weights: Sequence[Weight]) -> str:
    kinds = list(dict.fromkeys(re.sub(r"\.\d+\b", ".#", weight.name.removesuffix(".weight")) for weight in weights))
    known = "; ".join(str(layout) for layout in _LAYOUTS[kind])
    return (
        f"No {_NOUNS[kind]} of a known layout in {type(model).__name__}. Its blocks hold {', '.join(kinds)}. "
        f"Known layouts: {known}."
    )
