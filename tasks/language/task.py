"""Causal language modelling: documents, cut into texts of equal length, and how well their tokens are predicted.

    bits                = - sum over predicted tokens t of  log2 p(token t | the tokens before it in its text)
    perplexity          = 2 ^ (bits / predicted tokens)
    bits per character  = bits / characters that the predicted tokens stand for         (bits per byte alike)

The first token of a text is given, not predicted. Perplexities compare only between models of one tokenizer and length;
bits per character, of one text, compare between tokenizers, as long as none of their tokens is an unknown one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from argprune.tasks.language.tokens import Extents, read_tokens
from argprune.tasks.texts import check_splits


@dataclass(frozen=True)
class Language:
    """A language-modelling task.

    splits: documents by the split's name, none empty. metric: "perplexity" or "bits_per_character".
    """

    name: str
    splits: Mapping[str, Sequence[str]]
    metric: str = "perplexity"
    kind: ClassVar[str] = "causal-lm"
    larger_is_better: ClassVar[bool] = False
    _extents: Extents = field(default_factory=Extents, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_splits(self.name, self.splits)

    def model_options(self) -> dict[str, Any]:
        """None: the vocabulary is the model's."""
        return {}

    def encode(self, rows: Sequence[str], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
        """All documents in a row, each with an end token, cut into texts of `max_length`; a shorter last one goes.

        Raises ValueError for a tokenizer without an end token, and for documents that fill no text.
        """
        try:
            tokens = read_tokens(rows, tokenizer)
        except ValueError as error:
            raise ValueError(f"task {self.name}: {error}") from error
        count = len(tokens.ids) // max_length
        if not count:
            raise ValueError(
                f"task {self.name}: {len(tokens.ids)} tokens fill no text of max_length {max_length}; lower it."
            )

        def cut(values: Any) -> Any:
            return values[: count * max_length].reshape(count, max_length)

        texts = cut(tokens.ids)
        if tokens.characters is not None and tokens.bytes is not None:
            self._extents.remember(tokenizer, texts, cut(tokens.characters), cut(tokens.bytes))
        # Views of one array: lists of numbers would take four times the memory.
        kept = np.ones(max_length, np.int64)
        return [{"input_ids": text, "attention_mask": kept, "labels": text} for text in texts]

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
        """The perplexity, and bits per character and per byte.

        The latter two only of texts that `encode` made with its last tokenizer, and if this says where in a text its
        tokens lie, as all of the library `tokenizers` do.
        """
        losses, counts = torch.as_tensor(prediction.predictions).double().sum(0)
        measured = {"perplexity": float((losses / counts).exp())}
        total = self._extents.total(np.asarray(prediction.label_ids))
        if total is not None and min(total) > 0:
            characters, bytes_ = total
            bits = float(losses) / math.log(2)
            measured |= {"bits_per_character": bits / characters, "bits_per_byte": bits / bytes_}
        return measured
