"""Build a model from a folder of ours: the class that its config names, its unit counts, its tensors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import GENERATION_CONFIG_NAME

from argprune.models.architectures import read_architecture
from argprune.models.export.units import resize
from argprune.models.silence import quiet

SHAPES = "argprune_shapes"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


def load_shrunk(folder: str | os.PathLike[str]) -> PreTrainedModel:
    """Load a model that `shrink` made and `save_pretrained` wrote, in evaluation mode.

    Takes regular shapes, which plain `from_pretrained` loads too, and irregular ones, which are listed under the key
    `argprune_shapes` of config.json. No code of the folder is run.
    Raises ValueError, one line, where the folder is no such model or its tensors do not fit.
    """
    path = Path(folder)
    state = _read_weights(path)
    model = build_model(path)
    try:
        load_state(model, state, path)
    except ValueError:
        # transformers saves some architectures under other names than the parameters', and loads them again.
        renamed = None if hasattr(model.config, SHAPES) else _load_renamed(type(model), path)
        if renamed is None:
            raise
        return renamed
    return model


def build_model(folder: Path) -> PreTrainedModel:
    """The model that a folder's configs describe, of uninitialised weights, in evaluation mode."""
    config, cls = read_architecture(folder)
    # What is never saved, such as Marian's sinusoids, is computed.
    with nullcontext() if cls._keys_to_ignore_on_save else no_init_weights():
        model: PreTrainedModel = cls(config)
    model.tie_weights()
    shapes = getattr(config, SHAPES, None)
    if shapes is not None:
        resize(model, _checked_shapes(shapes))
    if model.can_generate() and (folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = _generation_config(folder)
    return model.eval()


def save_configs(model: PreTrainedModel, folder: Path) -> None:
    """Write what a model is, without its tensors, into a folder: config.json and, if it generates, how it does."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def load_state(model: PreTrainedModel, state: Mapping[str, Tensor], source: Path) -> None:
    """Give `model` these tensors by name, bits and dtype as they are; what is tied to one of them may be missing.

    Parameters that the model ties are untied where their tensors differ. Raises ValueError for tensors that are
    missing, unknown or of another shape.
    """
    own = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if name not in own:
            raise ValueError(f"{source}: tensor {name!r} is none of {type(model).__name__}.")
        if own[name].shape != tensor.shape:
            raise ValueError(
                f"{source}: {name!r} is {tuple(tensor.shape)}, but {tuple(own[name].shape)} in the model that "
                f"config.json describes. Config and weights do not belong together."
            )
    filled = {id(own[name]) for name in state}
    unsaved = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_save", None) or ()]
    missing = [
        name
        for name, tensor in own.items()
        if id(tensor) not in filled and not any(pattern.search(name) for pattern in unsaved)
    ]
    if missing:
        raise ValueError(f"{source}: {len(missing)} tensors are missing, such as {missing[0]!r}.")
    given: dict[int, Tensor] = {}
    for name, tensor in state.items():
        parameter = own[name]
        if torch.equal(given.setdefault(id(parameter), tensor), tensor):
            parameter.data = tensor
        else:
            module, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(module), leaf, nn.Parameter(tensor, parameter.requires_grad))
            model.all_tied_weights_keys.pop(name, None)


def _load_renamed(cls: Any, folder: Path) -> PreTrainedModel | None:
    """The folder's model as transformers loads it; None where a tensor is missing, unknown or of another shape."""
    with quiet():
        model: PreTrainedModel
        model, info = cls.from_pretrained(
            folder,
            dtype="auto",
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    return None if any(info.values()) else model.eval()


def _read_weights(folder: Path) -> dict[str, Tensor]:
    files = [_WEIGHTS]
    if (folder / _INDEX).is_file():
        files = sorted(set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    state: dict[str, Tensor] = {}
    for name in files:
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}. Give a folder written by save_pretrained.")
        try:
            state |= load_file(folder / name)
        except SafetensorError as error:
            raise ValueError(f"{folder / name} cannot be read: {error}") from error
    return state


def _generation_config(folder: Path) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{folder}: {reason} Give a folder written by save_pretrained.") from error


def _checked_shapes(shapes: Any) -> dict[str, dict[str, int]]:
    if not isinstance(shapes, dict) or not all(isinstance(counts, dict) for counts in shapes.values()):
        raise ValueError(f"{SHAPES} in config.json is {shapes!r}; it maps heads and neurons to counts by name.")
    return shapes
