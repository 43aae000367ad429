"""Adapters to Hugging Face transformers: prunable weights, their sparsity, and pretrained models by name."""

from argprune.models.accounting import Count, Sparsity, SparsityDict, measure_sparsity
from argprune.models.export import (
    load_compressed,
    load_shrunk,
    load_sparse,
    save_compressed,
    shrink,
)
from argprune.models.loading import KINDS, MODELS, load_model, load_tokenizer, resolve_model
from argprune.models.prunable import find_weights
from argprune.models.structure import find_heads, find_neurons, find_ties

__all__ = [
    "KINDS",
    "MODELS",
    "Count",
    "Sparsity",
    "SparsityDict",
    "find_heads",
    "find_neurons",
    "find_ties",
    "find_weights",
    "load_compressed",
    "load_model",
    "load_shrunk",
    "load_sparse",
    "load_tokenizer",
    "measure_sparsity",
    "resolve_model",
    "save_compressed",
    "shrink",
]
