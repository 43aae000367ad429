"""The attention scores of a transformers model before its softmax, collected while it computes.

    scores = scaling * Q K^T        (no mask, no softmax, no dropout; with gradients)

transformers asks a registry for the function that attends. The functions here compute the scores and leave attention
itself to the function that the model had, so that its outputs stay what they were, to the bit.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

_PREFIX = "argprune_scores_"


@dataclass(eq=False)
class Scores:
    """What was collected: scores (B, heads, queries, keys) in the order in which layers attended; whether causally."""

    layers: list[Tensor] = field(default_factory=list)
    causal: bool = False


_collecting: ContextVar[Scores | None] = ContextVar("collecting", default=None)


@contextmanager
def handing_out_scores(model: PreTrainedModel) -> Iterator[None]:
    """Within it, the model's attention hands out its scores to `collect_scores`; afterwards it is as before.

    Raises ValueError for a model whose attention is not that of transformers' registry.
    """
    implementation = model.config._attn_implementation
    if not implementation or not model._can_set_attn_implementation():
        raise ValueError(
            f"{type(model).__name__} keeps its attention scores to itself (its attention is not in transformers' "
            "registry). Set attention to 0."
        )
    model.set_attn_implementation(_register(implementation))
    try:
        yield
    finally:
        model.set_attn_implementation(implementation)


@contextmanager
def collect_scores() -> Iterator[Scores]:
    """Collect the scores of every attention that is computed within it by a model of `handing_out_scores`."""
    scores = Scores()
    token = _collecting.set(scores)
    try:
        yield scores
    finally:
        _collecting.reset(token)


def _register(implementation: str) -> str:
    """The name of an implementation that hands out scores and attends as the given one does."""
    if implementation.startswith(_PREFIX):
        return implementation
    name = _PREFIX + implementation
    AttentionInterface.register(name, partial(_attend, implementation))
    # Masks are made for an implementation by name; without an entry there would be none.
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[implementation])
    return name


def _attend(
    implementation: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    **options: Any,
) -> Any:
    scores = _collecting.get()
    if scores is not None:
        scaling = options.get("scaling")
        # Several heads of queries may share a head of keys.
        keys = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores.layers.append((query * (query.shape[-1] ** -0.5 if scaling is None else scaling)) @ keys.transpose(2, 3))
        causal = options.get("is_causal")
        scores.causal = bool(getattr(module, "is_causal", False) if causal is None else causal)
    # Each family of models has an eager function of its own, beside its modules.
    family = sys.modules[type(module).__module__]
    attend = family.ALL_ATTENTION_FUNCTIONS.get_interface(implementation, family.eager_attention_forward)
    return attend(module, query, key, value, attention_mask, **options)
