"""Which weights of a network may be pruned: the matrices of its repeated blocks.

    prunable(model) = { W of nn.Linear and Conv1D : W lies in a block, and nowhere else }

One structural rule serves every architecture, so that no table of model names has to be kept up to date.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from fnmatch import fnmatchcase

from torch import nn
from transformers.pytorch_utils import Conv1D

from argprune.solvers.groups import Weight

_MATRICES = (nn.Linear, Conv1D)


def find_weights(
    model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = (), *, biases: bool = False
) -> list[Weight]:
    """Find the prunable matrices of `model`, in module order.

    model: any module built from Hugging Face blocks, bare or under a task head, on any device, meta included.
    include, exclude: fnmatch patterns, case sensitive, on the parameter name, such as "*.attention.*"; a
    weight is kept if some pattern of `include` and none of `exclude` matches it. biases: after each matrix, its
    bias too (rank 1), where it has one of its own.

    The rule. Blocks are the children of an `nn.ModuleList`, even of a single one, that (a) are not matrices
    themselves, (b) hold matrices, and (c) normalise, inside or by norms listed beside them, as XLM does;
    (a) and (c) are what a list of heads lacks. Only outermost lists count: whatever is nested in a block
    (experts, sub-layers, the down-sampling of a hierarchical model's stages) belongs to it. A weight is
    found if it is the 2-D floating `weight` of an `nn.Linear` or `Conv1D` in a block. What follows from it:

    - embeddings, relative position tables, norms, biases, convolutions, poolers, classifiers and LM heads are
      never found; DeBERTa's projections of relative positions, matrices of its blocks, are;
    - a parameter with several names is found only if each of them is a matrix in a block: once, under the
      first name. If it is tied to an embedding, a head or anything else outside the blocks, it is left out,
      since pruning it would prune that too;
    - ALBERT reuses one block for all layers: its matrices are found once, as they are stored once;
    - stacked tensors are not matrices: the experts of Mixtral and its kin, 3-D parameters since
      transformers 5, are left out, and so are quantised (integer) weights and 3-D attention weights such as
      XLNet's;
    - a router stored as `nn.Linear` is found: `exclude=["*.router.*"]` spares it.

    Result: `Weight`s of rank 2 (biases: 1); `transposed` for Conv1D, which stores (inputs, outputs).
    Raises ValueError if the model has no such blocks, if a pattern matches no weight, or if none is left;
    TypeError if a pattern list is a bare string, each letter of which would be a pattern.
    """
    for argument, patterns in (("include", include), ("exclude", exclude)):
        if isinstance(patterns, str):
            raise TypeError(f"{argument} is the string {patterns!r}. Pass a list of patterns: [{patterns!r}].")
    found = _block_matrices(model)
    if not found:
        raise ValueError(_nothing_found(model))
    names = [weight.name for weight in found]
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"No weight matches {pattern!r} in {type(model).__name__}. "
                f"Closest: {_closest(pattern, names)}. See argprune.models.find_weights(model)."
            )
    kept = [
        weight
        for weight in found
        if any(fnmatchcase(weight.name, pattern) for pattern in include)
        and not any(fnmatchcase(weight.name, pattern) for pattern in exclude)
    ]
    if not kept:
        raise ValueError(
            f"include={list(include)} and exclude={list(exclude)} leave none of the {len(found)} weights of "
            f"{type(model).__name__}. Widen include or narrow exclude."
        )
    return _with_biases(model, kept) if biases else kept


def block_prefixes(model: nn.Module) -> tuple[str, ...]:
    """How the names in each outermost module list of blocks begin; "" if `model` is itself such a list."""
    prefixes: list[str] = []
    for path, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, nn.ModuleList) or path.startswith(tuple(prefixes)):
            continue
        # Some models keep the parts of a block in parallel lists; the norms then have one of their own.
        parent = model.get_submodule(path.rpartition(".")[0])
        beside = [entry for child in parent.children() if isinstance(child, nn.ModuleList) for entry in child]
        if _holds_blocks(module) and (_normalises(module.modules()) or _normalises(beside)):
            prefixes.append(f"{path}." if path else "")
    return tuple(prefixes)


def _with_biases(model: nn.Module, weights: Sequence[Weight]) -> list[Weight]:
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    found = []
    for weight in weights:
        found.append(weight)
        path = weight.name.removesuffix(".weight")
        bias = model.get_submodule(path).bias
        if isinstance(bias, nn.Parameter) and uses[id(bias)] == 1:
            found.append(Weight(f"{path}.bias", bias))
    return found


def _block_matrices(model: nn.Module) -> list[Weight]:
    blocks = block_prefixes(model)
    found: dict[int, Weight] = {}
    used_elsewhere: set[int] = set()
    # Duplicates included: if a shared module or parameter showed one name only, its ties would go unnoticed.
    for path, module in model.named_modules(remove_duplicate=False):
        for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            is_matrix = isinstance(module, _MATRICES) and key == "weight" and parameter.ndim == 2
            if is_matrix and parameter.is_floating_point() and path.startswith(blocks):
                weight = Weight(f"{path}.weight", parameter, transposed=isinstance(module, Conv1D))
                found.setdefault(id(parameter), weight)
            else:
                used_elsewhere.add(id(parameter))
    return [weight for key, weight in found.items() if key not in used_elsewhere]


def _holds_blocks(entries: nn.ModuleList) -> bool:
    is_matrix_list = any(isinstance(entry, _MATRICES) for entry in entries)
    return not is_matrix_list and any(isinstance(module, _MATRICES) for module in entries.modules())


def _normalises(modules: Iterable[nn.Module]) -> bool:
    # By name: most models bring a norm class of their own (LlamaRMSNorm, T5LayerNorm, MobileBERT's NoNorm).
    # Leaves only: whole blocks carry the word too (RobertaPreLayerNormLayer).
    return any("norm" in type(module).__name__.lower() and not any(module.children()) for module in modules)


def _closest(pattern: str, names: Sequence[str], most: int = 3) -> str:
    """The names most alike to the pattern, one for all layers: they differ in the layer's number only."""
    kinds = {re.sub(r"\d+", "#", name): name for name in reversed(names)}
    alike = sorted(kinds.values(), key=lambda name: SequenceMatcher(None, name, pattern).ratio(), reverse=True)
    return ", ".join(repr(name) for name in alike[:most])


def _nothing_found(model: nn.Module) -> str:
    counts = Counter(type(m).__name__ for m in model.modules() if isinstance(m, nn.ModuleList) or not any(m.children()))
    listing = ", ".join(f"{count} {kind}" for kind, count in counts.most_common(8))
    return (
        f"No repeated blocks with weight matrices in {type(model).__name__}. Found: {listing}. "
        f"Prunable are the nn.Linear and Conv1D in nn.ModuleList blocks that normalise."
    )
