"""What a transformers model predicted, row by row, for methods that know no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from argprune.solvers.methods.outputs import Outputs, Prediction

_IGNORED = -100


def read_outputs(outputs: Any, inputs: Mapping[str, Any]) -> Outputs:
    """The predictions in a model's outputs, with their targets from the batch that it was given.

    Classification (B, C) and regression (B, 1) of texts, token classification and language models (B, T, C), and spans
    (start and end, (B, T) each). Positions without a label (-100), and span targets outside of the text, are left out;
    causal language models predict the next token. Raises ValueError for outputs of any other kind.
    """
    if getattr(outputs, "start_logits", None) is not None:
        mask = inputs.get("attention_mask")
        spans = (
            _span(outputs.start_logits, inputs["start_positions"], mask),
            _span(outputs.end_logits, inputs["end_positions"], mask),
        )
        return Outputs(spans, outputs)
    logits, labels = getattr(outputs, "logits", None), inputs.get("labels")
    if logits is None or labels is None:
        raise ValueError(
            f"{type(outputs).__name__} has no logits, or its batch no labels; self-regularization and "
            "distillation need both."
        )
    if logits.dim() == 3:
        if "CausalLM" in type(outputs).__name__:
            logits, labels = logits[:, :-1], labels[:, 1:]
        labelled = labels != _IGNORED
        return Outputs((Prediction(logits[labelled], labels[labelled]),), outputs)
    if logits.shape[-1] == 1 or labels.is_floating_point():
        return Outputs((Prediction(logits.flatten(), labels.flatten().float()),), outputs)
    return Outputs((Prediction(logits, labels),), outputs)


def _span(logits: Tensor, positions: Tensor, mask: Tensor | None) -> Prediction:
    inside = (positions >= 0) & (positions < logits.shape[-1])
    return Prediction(logits[inside], positions[inside], None if mask is None else mask[inside].bool())
