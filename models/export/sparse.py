"""A folder of a sparse model: the compressed tensors, and the format that each layer runs in."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from argprune.models.export.choose import Choice, apply_formats
from argprune.models.export.compressed import Size, load_compressed, save_compressed

EXPORT = "export.json"


def save_sparse(
    model: PreTrainedModel, folder: str | os.PathLike[str], choices: Sequence[Choice], **facts: Any
) -> Size:
    """Write a pruned model, and in export.json what was chosen for its layers with all times.

    model: pruned and dense in storage, as `choose_formats` took it. folder: to write into. choices: what it gave.
    facts: further entries of export.json, plain data.
    """
    size = save_compressed(model, folder)
    table = {**facts, "layers": [choice.to_dict() for choice in choices]}
    (Path(folder) / EXPORT).write_text(json.dumps(table, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return size


def load_sparse(folder: str | os.PathLike[str]) -> PreTrainedModel:
    """Load what `save_sparse` wrote, every layer in the format chosen for it; for inference only.

    On another machine other formats may be faster: take `load_compressed`, `choose_formats` and `apply_formats` there.
    Raises ValueError, one line, for a folder that is damaged or of another kind.
    """
    path = Path(folder) / EXPORT
    try:
        layers = json.loads(path.read_text(encoding="utf-8"))["layers"]
        choices = [Choice(**layer) for layer in layers]
    except FileNotFoundError as error:
        raise ValueError(f"There is no {path}. Give a folder of a sparse export.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no table of formats: {error}. Export the model anew.") from error
    model = load_compressed(folder)
    apply_formats(model, choices)
    return model
