"""Causal language modelling: documents, cut into texts of equal length, and the perplexity of predicting their tokens.

    perplexity = exp( - mean over predicted tokens t of  log p(token t | the tokens before it in its text) )

The first token of a text is given, not predicted. Perplexities compare only between models of one tokenizer and length.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from argprune.tasks.texts import check_splits

_PARTS = {"train": "train", "validation": "valid", "test": "test"}
# A line of a file that begins a document: " = Title = ", and not the " = = Section = = " of one.
_TITLE = re.compile(r"\s*= [^=].* =\s*$")
END = "<|endoftext|>"


@dataclass(frozen=True)
class Language:
    """A language-modelling task: documents by split name, every split non-empty."""

    name: str
    splits: Mapping[str, Sequence[str]]
    metric: str = "perplexity"
    kind: ClassVar[str] = "causal-lm"
    larger_is_better: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_splits(self.name, self.splits)

    def model_options(self) -> dict[str, Any]:
        """None: the vocabulary is the model's."""
        return {}

    def encode(self, rows: Sequence[str], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
        """All documents in a row, each with an end token, cut into texts of `max_length`; a shorter last one goes.

        Raises ValueError for a tokenizer without an end token, and for documents that fill no text.
        """
        end = tokenizer.eos_token_id
        if end is None:
            raise ValueError(f"task {self.name}: the tokenizer has no end-of-text token (eos_token); give one with it.")
        encoded = tokenizer(list(rows), add_special_tokens=False, verbose=False)["input_ids"]
        tokens = list(chain.from_iterable([*document, end] for document in encoded))
        texts = [tokens[start : start + max_length] for start in range(0, len(tokens) - max_length + 1, max_length)]
        if not texts:
            raise ValueError(
                f"task {self.name}: {len(tokens)} tokens fill no text of max_length {max_length}; lower it."
            )
        return [{"input_ids": text, "attention_mask": [1] * max_length, "labels": text} for text in texts]

    def collator(self, tokenizer: Any) -> Any:
        """Texts are of one length: nothing is padded."""
        from transformers import default_data_collator

        return default_data_collator

    @torch.no_grad()
    def reduce(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of each text the sum of the predicted tokens' negative log-likelihoods, and their number: (rows, 2)."""
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none"
        )
        return torch.stack([losses.sum(1), (labels[:, 1:] != -100).sum(1).to(losses)], dim=1)

    def measure(self, prediction: Any) -> dict[str, float]:
        """The perplexity."""
        losses, counts = torch.as_tensor(prediction.predictions).double().sum(0)
        return {"perplexity": float((losses / counts).exp())}


def language_tasks(data_dir: Path) -> list[str]:
    """Names of the language-modelling tasks in a data folder: <name>/train.txt.gz, valid.txt.gz, test.txt.gz."""
    folders = sorted(data_dir.iterdir()) if data_dir.is_dir() else []
    return [folder.name for folder in folders if all((folder / f"{part}.txt.gz").is_file() for part in _PARTS.values())]


def read_language(folder: Path) -> Language:
    """The task in a folder: UTF-8 text in which title lines, " = Title = " between blank ones, begin documents.

    Raises ValueError with the file for what is no gzip of UTF-8 text.
    """
    return Language(folder.name, {split: _documents(folder / f"{part}.txt.gz") for split, part in _PARTS.items()})


def train_tokenizer(task: Language, vocab_size: int) -> Any:
    """A byte-level BPE of at most `vocab_size` tokens, learned from the training split; `END` ends and pads.

    Raises ValueError for a vocabulary too small to hold the 256 bytes and the end token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size <= len(alphabet):
        raise ValueError(f"vocab_size {vocab_size}; it holds the {len(alphabet)} bytes and {END}, so give more.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(task.splits["train"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END, bos_token=END)


def make_causal_lm(
    task: Language,
    folder: Path,
    *,
    vocab_size: int = 4096,
    layers: int = 4,
    width: int = 256,
    heads: int = 4,
    positions: int = 128,
    seed: int = 0,
) -> None:
    """Write an untrained GPT-2 with a tokenizer of the task's own into a folder, for `--model FOLDER`.

    layers, width, heads: of the network; positions: tokens it reads at most; seed: of its weights.
    Raises ValueError for a folder that is there already, or sizes that do not fit.
    """
    from transformers import GPT2Config, GPT2LMHeadModel, set_seed

    if folder.exists():
        raise ValueError(f"{folder} is there already; give a new folder, or remove it.")
    if min(layers, width, heads, positions) < 1 or width % heads:
        raise ValueError(
            f"layers {layers}, width {width}, heads {heads}, positions {positions}; heads divide the width."
        )
    tokenizer = train_tokenizer(task, vocab_size)
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=positions,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    set_seed(seed)
    model = GPT2LMHeadModel(config)
    # The weights last: a folder that holds them is whole.
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _documents(path: Path) -> list[str]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines = file.readlines()
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: {error}") from error
    blank = [not line.strip() for line in lines]
    # Between blank lines, or at an end of the file: lines of formulas and tables may look like titles.
    around = zip([True, *blank], [*blank[1:], True], strict=False)
    starts = [
        number
        for number, ((above, below), line) in enumerate(zip(around, lines, strict=False))
        if above and below and _TITLE.match(line)
    ]
    # Blank lines at the top belong to the first document.
    bounds = [0, *(start for start in starts if not all(blank[:start])), len(lines)]
    documents = ["".join(lines[start:end]) for start, end in pairwise(bounds)]
    return [document for document in documents if document.strip()]
