"""Untrained models that write texts, with tokenizers of a task's own, to be trained from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from argprune.tasks.kinds.generation import DataToText
from argprune.tasks.language import Language, make_causal_lm, train_tokenizer


def make_writer(
    task: DataToText,
    folder: Path,
    *,
    vocab_size: int = 4096,
    layers: int = 4,
    width: int = 256,
    heads: int = 4,
    positions: int = 256,
    dropout: float = 0.1,
    seed: int = 0,
) -> None:
    """Write an untrained model for a data-to-text task into a folder, for `--model FOLDER`.

    T5 for encoder-decoders, with so many layers in both, GPT-2 for causal models, as the task's kind says; with byte
    pairs of the training split. layers, width, heads: of the network; positions: tokens that GPT-2 reads at most, T5
    has no limit; dropout: in [0, 1); seed: of the weights.
    Raises ValueError for a folder that is there already, or sizes that do not fit.
    """
    corpus = Language(
        task.name,
        {split: [f"{row.source}\n{text}" for row in rows for text in row.texts] for split, rows in task.splits.items()},
    )
    if task.kind == "causal-lm":
        make_causal_lm(
            corpus,
            folder,
            vocab_size=vocab_size,
            layers=layers,
            width=width,
            heads=heads,
            positions=positions,
            dropout=dropout,
            seed=seed,
        )
        return
    if folder.exists():
        raise ValueError(f"{folder} is there already; give a new folder, or remove it.")
    if min(layers, width, heads) < 1 or width % heads:
        raise ValueError(f"layers {layers}, width {width}, heads {heads}; heads divide the width.")
    tokenizer = train_tokenizer(corpus, vocab_size)
    model = _t5(tokenizer, layers, width, heads, dropout, seed)
    # The weights last: a folder that holds them is whole.
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _t5(tokenizer: Any, layers: int, width: int, heads: int, dropout: float, seed: int) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration, set_seed

    end = tokenizer.eos_token_id
    tokens: dict[str, Any] = {"pad_token_id": end, "eos_token_id": end, "decoder_start_token_id": end}
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // heads,
        d_ff=4 * width,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=heads,
        dropout_rate=dropout,
        **tokens,
    )
    set_seed(seed)
    return T5ForConditionalGeneration(config)
