"""Build a model from a folder of ours: the class that its config names, its unit counts, its tensors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import GENERATION_CONFIG_NAME

from argprune.models.export.units import resize

SHAPES = "argprune_shapes"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


def load_shrunk(folder: str | os.PathLike[str]) -> PreTrainedModel:
    """Load a model that `shrink` made and `save_pretrained` wrote, in evaluation mode.

    Takes regular shapes, which plain `from_pretrained` loads too, and irregular ones, which are listed under the key
    `argprune_shapes` of config.json. No code of the folder is run.
    Raises ValueError, one line, where the folder is no such model or its tensors do not fit.
    """
    path = Path(folder)
    model = build_model(path)
    load_state(model, _read_weights(path), path)
    return model


def build_model(folder: Path) -> PreTrainedModel:
    """The model that a folder's configs describe, of uninitialised weights, in evaluation mode."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{folder}: {reason} Give a folder that holds a model and its config.json.") from error
    name = next(iter(config.architectures or ()), None)
    cls = getattr(transformers, name or "", None)
    if cls is None:
        raise ValueError(f"{folder}/config.json: architecture {name!r} is none of transformers; export the model anew.")
    with no_init_weights():
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

    Raises ValueError for tensors that are missing, unknown or of another shape.
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
    missing = [name for name, tensor in own.items() if id(tensor) not in filled]
    if missing:
        raise ValueError(f"{source}: {len(missing)} tensors are missing, such as {missing[0]!r}.")
    for name, tensor in state.items():
        own[name].data = tensor


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
