"""What a model can be given: texts of how many tokens, and what fills up the shorter ones of a batch."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What transformers calls tables of learned positions.
_TABLES = ("position_embeddings", "embed_positions", "positions_embed", "wpe")


def longest_text(model: nn.Module) -> int | None:
    """Tokens of a text for which a model has learned positions; None where it has no table of them."""
    tables = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _TABLES
    ]
    if not tables:
        return None
    # Some tables are longer than what a model says and can take: Nystromformer's has two rows for padding.
    said = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return min([*map(_usable, tables), *([said] if isinstance(said, int) else [])])


def _usable(table: nn.Embedding) -> int:
    # RoBERTa counts positions from the one behind the padding's, BART from an offset.
    before = 0 if table.padding_idx is None else table.padding_idx + 1
    return table.num_embeddings - before - int(getattr(table, "offset", 0))


def add_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Have a tokenizer without a padding token pad with its end token, and the model know which token it is.

    Attention masks hide the padding. Raises ValueError where there is no end token either.
    """
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"The tokenizer of {model.name_or_path!r} has neither a padding token nor an end token; give it one."
            )
        tokenizer.pad_token = tokenizer.eos_token
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id
