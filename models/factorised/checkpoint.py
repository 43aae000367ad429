"""Factorised models in ordinary folders: `save_pretrained` writes them, `from_pretrained` loads them.

config.json lists the weights that are factors, with their ranks, under the key that transformers has for networks whose
layers differ from what their class builds (`quantization_config`). As a model is loaded, `LowRankQuantizer` puts
factorised layers of these ranks in their place before the tensors come. Nothing is quantised: once loaded, the model is
one like any other, to be trained, cast and saved again.

Importing this module tells transformers of the two classes; without it, transformers warns that it does not know the
method, and the factors are left out.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from argprune.models.factorised.places import check, holders, install, layers, retie

METHOD = "argprune-low-rank"


@register_quantization_config(METHOD)
class LowRankConfig(QuantizationConfigMixin):
    """The ranks of a factorised model, by the names of the dense weights.

    ranks: name -> components, >= 1. quant_method: what transformers finds it by; other names (unknown) are refused.
    Raises ValueError for anything else.
    """

    def __init__(self, ranks: Mapping[str, int], quant_method: str = METHOD, **unknown: Any) -> None:
        if unknown:
            raise ValueError(f"{METHOD}: unknown key {min(unknown)!r} in quantization_config; it has 'ranks' only.")
        if quant_method != METHOD:
            raise ValueError(f"{METHOD}: quant_method {quant_method!r} in quantization_config.")
        if not isinstance(ranks, Mapping):
            raise ValueError(f"{METHOD}: ranks {ranks!r} in quantization_config; it maps names of weights to ranks.")
        for name, rank in ranks.items():
            if not isinstance(name, str) or isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
                raise ValueError(f"{METHOD}: rank {rank!r} of {name!r} in quantization_config; give a number >= 1.")
        self.quant_method: Any = quant_method
        self._given = dict(ranks)
        self._model: weakref.ref[nn.Module] | None = None

    @staticmethod
    def of(model: nn.Module, ranks: Mapping[str, int]) -> LowRankConfig:
        """The ranks that a model has whenever they are asked for, now `ranks`: a method drops components as it goes."""
        config = LowRankConfig(ranks)
        config._model = weakref.ref(model)
        return config

    @property
    def ranks(self) -> dict[str, int]:
        """Name of the dense weight -> components."""
        model = None if self._model is None else self._model()
        return dict(self._given) if model is None else _ranks(model)

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds."""
        return {"quant_method": self.quant_method, "ranks": self.ranks}

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield from self.to_dict().items()

    def __deepcopy__(self, memo: dict[int, Any]) -> LowRankConfig:
        # A copy of the model takes a config along that tells of the copy; a copy of the config alone stays as it is.
        twin = None if self._model is None else memo.get(id(self._model()))
        return LowRankConfig(self.ranks) if twin is None else LowRankConfig.of(twin, self.ranks)

    def __reduce__(self) -> tuple[Any, ...]:
        return LowRankConfig, (self.ranks,)


@register_quantizer(METHOD)
class LowRankQuantizer(HfQuantizer):
    """Builds factorised layers before their tensors are loaded, and then leaves an ordinary model."""

    quantization_config: LowRankConfig

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse to make factors of a dense checkpoint: that is what `factorise` is for."""
        if not self.pre_quantized:
            raise ValueError(
                f"{METHOD} describes models that are factorised already; load this one, then factorise it."
            )

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        for said, rank in self.quantization_config.ranks.items():
            name = _own_name(model, said)
            if name is not None:
                paths = holders(model, name, declared=True)
                check(model, paths)
                _install_empty(model, paths, said, rank)
            # What this class is without, such as the decoder in an encoder, transformers lets pass as well.
            elif f"{said.removesuffix('weight')}first" not in _stored_names(checkpoint_files or ()):
                raise ValueError(f"{METHOD}: {said!r} in quantization_config is no weight of {type(model).__name__}.")
        retie(model)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        for path, layer in layers(model):
            for key in ("first", "second"):
                # transformers' own mark of what came from the checkpoint; it would only warn of what did not.
                if not getattr(getattr(layer, key), "_is_hf_initialized", False):
                    raise ValueError(
                        f"{METHOD}: the checkpoint lacks '{path}.{key}' of rank {layer.rank}. Its config.json and its "
                        "weights do not belong together."
                    )
        # To transformers a quantised model cannot be trained, cast or compiled. This one can.
        for name in ("hf_quantizer", "quantization_method", "is_quantized"):
            vars(model).pop(name, None)
        for part in model.modules():
            if isinstance(part, PreTrainedModel):
                vars(part.config).pop("_is_quantized", None)
        describe(model)

    def is_serializable(self) -> bool:
        """Yes."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Yes."""
        return True


def describe(model: nn.Module) -> None:
    """Let the config of `model` tell of its factors from now on, where it has a config and there are any."""
    config = getattr(model, "config", None)
    if not isinstance(model, PreTrainedModel) or config is None or foreign_method(model) is not None:
        return
    ranks = _ranks(model)
    if ranks:
        config.quantization_config = LowRankConfig.of(model, ranks)
    elif hasattr(config, "quantization_config"):
        del config.quantization_config


def _ranks(model: nn.Module) -> dict[str, int]:
    return {f"{path}.weight": layer.rank for path, layer in layers(model)}


def foreign_method(model: nn.Module) -> str | None:
    """The method by which the model is quantised, other than ours; None where it is not."""
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if config is None:
        return None
    method = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
    return None if method == METHOD else str(method)


def _own_name(model: PreTrainedModel, name: str) -> str | None:
    """The name of a weight in this model, which may be saved with a head and loaded without, or the reverse."""
    prefix = f"{model.base_model_prefix}."
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return next((own for own in (name, name.removeprefix(prefix), prefix + name) if own in parameters), None)


def _stored_names(files: Sequence[str]) -> set[str]:
    names: set[str] = set()
    for file in files:
        if file.endswith(".safetensors"):
            with safe_open(file, framework="pt") as opened:
                names.update(opened.keys())
    return names


def _install_empty(model: PreTrainedModel, paths: Sequence[str], name: str, rank: int) -> None:
    """Factors without values, where the weight is."""
    module: Any = model.get_submodule(paths[0])
    rows, columns = module.weight.shape
    if rank > min(rows, columns):
        raise ValueError(f"{METHOD}: rank {rank} of {name!r} in quantization_config; the weight is {rows} x {columns}.")
    is_embedding = isinstance(module, nn.Embedding)
    outputs, inputs = (columns, rows) if is_embedding or isinstance(module, Conv1D) else (rows, columns)
    first = module.weight.new_empty((inputs, rank) if is_embedding else (rank, inputs))
    install(model, paths, first, module.weight.new_empty(outputs, rank))
