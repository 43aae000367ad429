"""Adapters to Hugging Face transformers: prunable weights, their sparsity, and pretrained models by name."""

from argprune.models.accounting import Count, Sparsity, SparsityDict, measure_sparsity
from argprune.models.adaptive import find_clusters
from argprune.models.adaptive.transformer import AdaptiveTransformerConfig, AdaptiveTransformerForCausalLM
from argprune.models.export import (
    load_compressed,
    load_shrunk,
    load_sparse,
    save_compressed,
    shrink,
)
from argprune.models.factorised import compact, factorise, find_factors, input_grams
from argprune.models.inputs import add_padding, longest_text
from argprune.models.loading import KINDS, MODELS, load_model, load_tokenizer, resolve_model
from argprune.models.prunable import find_weights
from argprune.models.recurrent import RecurrentConfig, RecurrentForCausalLM
from argprune.models.structure import find_heads, find_neurons, find_ties

__all__ = [
    "KINDS",
    "MODELS",
    "AdaptiveTransformerConfig",
    "AdaptiveTransformerForCausalLM",
    "Count",
    "RecurrentConfig",
    "RecurrentForCausalLM",
    "Sparsity",
    "SparsityDict",
    "add_padding",
    "compact",
    "factorise",
    "find_clusters",
    "find_factors",
    "find_heads",
    "find_neurons",
    "find_ties",
    "find_weights",
    "input_grams",
    "load_compressed",
    "load_model",
    "load_shrunk",
    "load_sparse",
    "load_tokenizer",
    "longest_text",
    "measure_sparsity",
    "resolve_model",
    "save_compressed",
    "shrink",
]
