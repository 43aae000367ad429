"""What a transformers model predicted, row by row, and its inner states, for methods that know no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from argprune.models.attention_scores import Scores
from argprune.solvers.distillation import States
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
            f"{type(outputs).__name__} has no logits, or its batch no labels; learning from a teacher needs both."
        )
    if logits.dim() == 3:
        if "CausalLM" in type(outputs).__name__:
            logits, labels = logits[:, :-1], labels[:, 1:]
        labelled = labels != _IGNORED
        return Outputs((Prediction(logits[labelled], labels[labelled]),), outputs)
    if logits.shape[-1] == 1 or labels.is_floating_point():
        return Outputs((Prediction(logits.flatten(), labels.flatten().float()),), outputs)
    return Outputs((Prediction(logits, labels),), outputs)


def read_states(outputs: Any, inputs: Mapping[str, Any], scores: Scores | None = None) -> States:
    """The inner states in a model's outputs: hidden states, where it gave them, and scores that were collected.

    Raises ValueError where collected scores are not one of square matrices a layer.
    """
    tokens = real_tokens(inputs)
    hidden = getattr(outputs, "hidden_states", None) or ()
    if scores is None:
        return States(tokens, hidden[0] if hidden else None, hidden[1:])
    layers = len(hidden) - 1 if hidden else len(scores.layers)
    length = tokens.shape[1]
    if (
        not scores.layers
        or len(scores.layers) != layers
        or {each.shape[2:] for each in scores.layers} != {(length,) * 2}
    ):
        raise ValueError(
            f"{type(outputs).__name__}: {len(scores.layers)} attention scores from {layers} layers; attention can be "
            "learned where each layer attends once, among the text's own tokens. Set attention to 0."
        )
    return States(tokens, hidden[0] if hidden else None, hidden[1:], scores.layers, scores.causal)


def count_terms(inputs: Mapping[str, Any], *, next_token: bool = False, causal: bool = False) -> dict[str, int]:
    """Over how many of each the terms of a loss are means: "targets", real "tokens", and "pairs" of a text's tokens.

    next_token: whether each token is the target of the one before, so that the first is none. causal: whether tokens
    make pairs with themselves and those before only, as they do in models of the next token that classify, too.
    """
    lengths = real_tokens(inputs).sum(1)
    labels = inputs.get("labels")
    targets = len(lengths)
    if labels is not None and labels.dim() == 2 and not labels.is_floating_point():
        targets = int(((labels[:, 1:] if next_token else labels) != _IGNORED).sum())
    pairs = lengths * (lengths + 1) // 2 if causal else lengths.square()
    return {"targets": targets, "tokens": int(lengths.sum()), "pairs": int(pairs.sum())}


def real_tokens(inputs: Mapping[str, Any]) -> Tensor:
    """Which tokens of a padded batch are real, bool (B, T)."""
    mask, ids = inputs.get("attention_mask"), inputs["input_ids"]
    return ids.new_ones(ids.shape).bool() if mask is None else mask.bool()


def _span(logits: Tensor, positions: Tensor, mask: Tensor | None) -> Prediction:
    inside = (positions >= 0) & (positions < logits.shape[-1])
    return Prediction(logits[inside], positions[inside], None if mask is None else mask[inside].bool())
