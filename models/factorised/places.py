"""Where a weight stands in a network, and how factors take its place and give it back.

A weight may stand in several modules: tied embeddings and heads, or one layer used twice. All of them then compute with
one pair of factors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from argprune.models.factorised.embedding import FactorisedEmbedding, TiedFactorisedEmbedding, TiedFactorisedHead
from argprune.models.factorised.gated import Gated
from argprune.models.factorised.linear import FactorisedLinear
from argprune.solvers.low_rank import Factors

_WEIGHT = ".weight"


def find_factors(model: nn.Module) -> list[Factors]:
    """The factors in `model`, in module order, each once; named after the dense weights that they stand for."""
    return [Factors(f"{path}{_WEIGHT}", module) for path, module in layers(model)]


def layers(model: nn.Module) -> Iterator[tuple[str, FactorisedLinear | FactorisedEmbedding]]:
    """The modules that hold factors, by the first of their paths."""
    for path, module in model.named_modules():
        if isinstance(module, FactorisedLinear | FactorisedEmbedding):
            yield path, module


def word_embeddings(model: Any) -> str:
    """The name of the table of word embeddings. Raises ValueError where there is none, or it is factorised already."""
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    path = next((path for path, module in model.named_modules() if module is embedding), None)
    if not isinstance(embedding, nn.Embedding) or path is None:
        raise ValueError(f"{type(model).__name__} has no table of word embeddings; leave embeddings out.")
    return f"{path}.weight"


def holders(model: nn.Module, name: str, *, declared: bool = False) -> list[str]:
    """The paths of all modules whose weight is the parameter `name`, that of `name` itself first.

    declared: count what the model only says to be tied, as before its weights are loaded. Raises ValueError for a name
    that is no weight of the model, or is also something else.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if name not in parameters or not f".{name}".endswith(_WEIGHT):
        raise ValueError(f"{name!r} is no weight of this {type(model).__name__}; give what find_weights finds in it.")
    names = {other for other, parameter in parameters.items() if parameter is parameters[name]}
    if declared and isinstance(model, PreTrainedModel):
        ties: dict[str, str] = model.all_tied_weights_keys
        source = next((ties[other] for other in names if other in ties), name)
        names |= {source} | {target for target, own in ties.items() if own == source}
    odd = [other for other in names if not f".{other}".endswith(_WEIGHT)]
    if odd:
        raise ValueError(f"{name!r} is also {odd[0]!r}, which is no layer's weight; it cannot be factorised.")
    paths = [other.removesuffix("weight").removesuffix(".") for other in parameters if other in names]
    own = name.removesuffix("weight").removesuffix(".")
    return [own, *(path for path in paths if path != own)]


def check(model: nn.Module, paths: Sequence[str]) -> None:
    """Raise ValueError unless the weight that stands in these modules is that of a linear layer or an embedding."""
    modules = [model.get_submodule(path) for path in paths]
    first = modules[0]
    for path, module in zip(paths, modules, strict=True):
        if not path:
            raise ValueError(f"The model is itself a {type(module).__name__}; give one that holds it.")
        if not isinstance(module, nn.Linear | Conv1D | nn.Embedding):
            raise ValueError(
                f"{path!r} is a {type(module).__name__}; factors take the place of nn.Linear, Conv1D and nn.Embedding."
            )
        plain = type(module).forward in (nn.Linear.forward, Conv1D.forward, nn.Embedding.forward)
        scaled = isinstance(module, nn.Embedding) and isinstance(getattr(module, "embed_scale", None), int | float)
        if not plain and not scaled:
            raise ValueError(f"{path!r} is a {type(module).__name__}, which does more than to multiply by its weight.")
        if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq):
            raise ValueError(f"{path!r} changes its rows or their gradients as it looks them up; it has no factors.")
    if isinstance(first, nn.Embedding):
        odd = [p for p, m in zip(paths, modules, strict=True) if isinstance(m, Conv1D)]
        if odd:
            raise ValueError(f"{odd[0]!r} shares the table of {paths[0]!r}, but multiplies by its transpose.")
        return
    for path, module in zip(paths, modules, strict=True):
        if module is not first and (type(module) is not type(first) or module.bias is not first.bias):
            raise ValueError(
                f"{path!r} shares the weight of {paths[0]!r}, but is of another type or has another bias; exclude it."
            )


def install(model: nn.Module, paths: Sequence[str], first: Tensor, second: Tensor) -> Gated:
    """Put factors in the place of the weight that stands in the modules of `paths`, which `check` has passed.

    first: P (r, inputs), for an embedding T (words, r). second: Q (outputs, r). They get gradients as the weight did.
    """
    modules: list[Any] = [model.get_submodule(path) for path in paths]
    owner, needs_grad = modules[0], modules[0].weight.requires_grad
    layer: FactorisedLinear | FactorisedEmbedding
    if isinstance(owner, nn.Embedding):
        layer = FactorisedEmbedding(first, second, owner.padding_idx, _scale(owner), owner)
    else:
        layer = FactorisedLinear(first, second, owner.bias, owner)
    for parameter in (layer.first, layer.second):
        parameter.requires_grad_(needs_grad)
    for path, module in zip(paths, modules, strict=True):
        put: nn.Module = layer
        if module is not owner and isinstance(layer, FactorisedEmbedding):
            if isinstance(module, nn.Embedding):
                put = TiedFactorisedEmbedding(layer, module, module.padding_idx, _scale(module))
            else:
                put = TiedFactorisedHead(layer, module, module.bias)
        _put(model, path, put.train(module.training))
    return layer


def restore(model: nn.Module, layer: FactorisedLinear | FactorisedEmbedding) -> None:
    """Multiply the factors back into one weight, gates included, in all the modules that they stand for."""
    product = layer.product()
    if layer.transposed or isinstance(layer.template, Conv1D):
        product = product.t().contiguous()
    weight = nn.Parameter(product, requires_grad=layer.second.requires_grad)
    for path, module in list(model.named_modules(remove_duplicate=False)):
        tied = isinstance(module, TiedFactorisedEmbedding | TiedFactorisedHead) and module.embedding is layer
        if not tied and module is not layer:
            continue
        template: Any = module.template
        template.register_parameter("weight", weight)
        if "bias" in module._parameters:
            template.bias = module.bias
        _put(model, path, template.train(module.training))


def retie(model: nn.Module) -> None:
    """Tell transformers which parameters are tied now: it saves tied ones once, and ties them as it loads.

    What a class says of its embeddings and heads no longer holds where these share factors; where one factorised layer
    stands in several places, its parameters have several names.
    """
    # From the inside out: what a model says of itself counts in those that hold it.
    for part in reversed([part for part in model.modules() if isinstance(part, PreTrainedModel)]):
        parameters = dict(part.named_parameters(remove_duplicate=False))
        # Some, such as Marian, say it of one model alone.
        said = vars(part).setdefault("_tied_weights_keys_when_dense", part._tied_weights_keys) or {}
        aliases = _aliases(part)
        ties = {target: source for target, source in said.items() if _names(parameters, target, source)} | aliases
        part._tied_weights_keys = ties
        expanded = part.get_expanded_tied_weights_keys(all_submodels=True) | aliases
        part.all_tied_weights_keys = {
            target: source
            for target, source in expanded.items()
            # Before the weights are loaded nothing is tied yet; afterwards what differs was not meant to be.
            if parameters.get(target) is parameters.get(source) or any(p.is_meta for p in parameters.values())
        }


def _names(parameters: Mapping[str, Any], *patterns: str) -> bool:
    """Whether each of the patterns begins the name of a parameter."""
    return all(any(re.match(pattern, name) for name in parameters) for pattern in patterns)


def _aliases(model: nn.Module) -> dict[str, str]:
    """The further names of the parameters of factorised layers that stand in several places -> the first one."""
    found: dict[str, str] = {}
    first: dict[int, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, FactorisedLinear):
            for key, parameter in module.named_parameters(recurse=False):
                name = f"{path}.{key}"
                if first.setdefault(id(parameter), name) != name:
                    found[name] = first[id(parameter)]
    return found


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _scale(module: nn.Module) -> float:
    """What an embedding multiplies its rows by: BART's kin have it as a number."""
    return float(getattr(module, "embed_scale", 1.0))
