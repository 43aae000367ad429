"""Low-rank models as the dense ones that they stand for, and how to tell them from others on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from argprune.models.architectures import read_architecture
from argprune.models.factorised.checkpoint import METHOD, describe
from argprune.models.factorised.places import layers, restore, retie


def merge_factors(model: nn.Module) -> None:
    """Multiply all factors of `model` back into one matrix each, in place, gates included; the outputs stay the same.

    The result is an ordinary model of its class, of the dense size. Optimizers are to be made anew.
    """
    for _, layer in list(layers(model)):
        restore(model, layer)
    retie(model)
    describe(model)


def is_low_rank(folder: Path) -> bool:
    """Whether a folder of `save_pretrained` holds a model with factors."""
    config = _config(folder)
    return (config.get("quantization_config") or {}).get("quant_method") == METHOD


def load_low_rank(folder: Path) -> PreTrainedModel:
    """Load such a folder as the class that its config names, in evaluation mode.

    Raises ValueError, one line, where that is no class of transformers.
    """
    _, cls = read_architecture(folder)
    model: PreTrainedModel = cls.from_pretrained(folder, use_safetensors=True)
    return model.eval()


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no config.json. Give a folder that save_pretrained wrote.")
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config
