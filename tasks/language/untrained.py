"""Untrained causal language models, with tokenizers of a task's own, to be trained from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from argprune.tasks.language.task import Language
from argprune.tasks.language.tokenizers import TokenizerKind, train_tokenizer

Architecture = Literal["gpt2", "lstm", "gru"]


def make_causal_lm(
    task: Language,
    folder: Path,
    *,
    architecture: Architecture = "gpt2",
    tokenizer: TokenizerKind = "bpe",
    vocab_size: int = 4096,
    layers: int = 4,
    width: int = 256,
    heads: int = 4,
    positions: int = 128,
    dropout: float = 0.1,
    cutoffs: Sequence[int] | None = None,
    div_value: float = 4.0,
    seed: int = 0,
) -> None:
    """Write an untrained language model with a tokenizer of the task's own into a folder, for `--model FOLDER`.

    architecture: "gpt2", or "lstm" or "gru" (`RecurrentForCausalLM`). tokenizer, vocab_size: as for `train_tokenizer`.
    layers, width: of the network; heads, positions: of GPT-2, the latter the tokens it reads at most; dropout: in
    [0, 1), of embeddings and layers. cutoffs: tokens at which clusters of rarer ones begin, each of `div_value` times
    fewer dimensions, for adaptive embeddings and softmax (GPT-2 becomes an `AdaptiveTransformerForCausalLM`); tokens
    should then be words. seed: of the weights.
    Raises ValueError for a folder that is there already, or sizes that do not fit.
    """
    from transformers import set_seed

    if folder.exists():
        raise ValueError(f"{folder} is there already; give a new folder, or remove it.")
    if architecture not in get_args(Architecture):
        raise ValueError(f"architecture {architecture!r}; choose of {', '.join(get_args(Architecture))}.")
    if min(layers, width, heads, positions) < 1 or (architecture == "gpt2" and width % heads):
        raise ValueError(
            f"layers {layers}, width {width}, heads {heads}, positions {positions}; heads divide the width."
        )
    trained = train_tokenizer(task, vocab_size, tokenizer)
    end = trained.eos_token_id
    tokens: dict[str, Any] = {
        "vocab_size": len(trained),
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    tables = {"hidden_size": width, "cutoffs": cutoffs, "div_value": div_value, "dropout": dropout}
    set_seed(seed)
    if architecture != "gpt2":
        model = _recurrent(architecture, layers, tokens | tables)
    elif cutoffs is not None:
        model = _adaptive_transformer(layers, heads, positions, tokens | tables)
    else:
        model = _gpt2(layers, width, heads, positions, dropout, tokens)
    # The weights last: a folder that holds them is whole.
    trained.save_pretrained(folder)
    model.save_pretrained(folder)


def _recurrent(cell: Literal["lstm", "gru"], layers: int, options: dict[str, Any]) -> Any:
    from argprune.models import RecurrentConfig, RecurrentForCausalLM

    return RecurrentForCausalLM(RecurrentConfig(cell=cell, num_hidden_layers=layers, **options))


def _adaptive_transformer(layers: int, heads: int, positions: int, options: dict[str, Any]) -> Any:
    from argprune.models import AdaptiveTransformerConfig, AdaptiveTransformerForCausalLM

    config = AdaptiveTransformerConfig(
        num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=positions, **options
    )
    return AdaptiveTransformerForCausalLM(config)


def _gpt2(layers: int, width: int, heads: int, positions: int, dropout: float, tokens: dict[str, Any]) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_positions=positions,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        **tokens,
    )
    return GPT2LMHeadModel(config)
