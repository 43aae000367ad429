"""What a folder's config.json says that its model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PretrainedConfig


def read_architecture(folder: Path) -> tuple[PretrainedConfig, Any]:
    """The config in a folder of `save_pretrained`, and the class of transformers, or registered with it, that it names.

    No code of the folder is run. Raises ValueError, one line, where there is no such config or class.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{folder}: {reason} Give a folder that holds a model and its config.json.") from error
    name = next(iter(config.architectures or ()), None)
    # This package's language models are registered.
    registered = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    cls = registered if getattr(registered, "__name__", None) == name else getattr(transformers, name or "", None)
    if cls is None:
        raise ValueError(f"{folder}/config.json: architecture {name!r} is none of transformers; export another run.")
    return config, cls
