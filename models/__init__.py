"""Adapters to Hugging Face transformers: prunable weights, their sparsity, and pretrained models by name."""

from argprune.models.accounting import Count, Sparsity, SparsityDict, measure_sparsity
from argprune.models.loading import KINDS, MODELS, load_model, load_tokenizer, resolve_model
from argprune.models.prunable import find_weights

__all__ = [
    "KINDS",
    "MODELS",
    "Count",
    "Sparsity",
    "SparsityDict",
    "find_weights",
    "load_model",
    "load_tokenizer",
    "measure_sparsity",
    "resolve_model",
]
