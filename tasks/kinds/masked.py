"""Masked language modelling, the objective that encoders are pre-trained with: tell the tokens that were hidden.

    minimise  - mean over hidden tokens t of  log p(token t | the text with its hidden tokens hidden)

15 % of a text's tokens are chosen: 80 % of them become [MASK], 10 % another token, 10 % stay (Devlin et al., 2019).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor

from argprune.tasks.cache import cached
from argprune.tasks.texts import check_splits

_IGNORED = -100


@dataclass(frozen=True)
class MaskedLanguage:
    """A task of documents by split name; share: of the tokens that are hidden, in (0, 1)."""

    name: str
    splits: Mapping[str, Sequence[str]]
    metric: str = "perplexity"
    share: float = 0.15
    kind: ClassVar[str] = "masked-lm"
    larger_is_better: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_splits(self.name, self.splits)
        if not 0 < self.share < 1:
            raise ValueError(f"task {self.name}: share {self.share} of the tokens to hide; it is in (0, 1).")

    def model_options(self) -> dict[str, Any]:
        """None: the vocabulary is the model's."""
        return {}

    def encode(self, rows: Sequence[str], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
        """All documents in a row, separated, cut into texts of `max_length` with their special tokens; the rest goes.

        Raises ValueError for a tokenizer without mask and separator tokens, and for documents that fill no text.
        """
        first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
        if tokenizer.mask_token_id is None or first is None or last is None:
            raise ValueError(f"task {self.name}: the tokenizer lacks a mask, a first or a separator token; give them.")
        if max_length < 3:
            raise ValueError(f"task {self.name}: max_length {max_length}; a text has its special tokens and one more.")

        def encode() -> list[dict[str, Any]]:
            tokens = tokenizer(list(rows), add_special_tokens=False, verbose=False)["input_ids"]
            row = list(chain.from_iterable([*document, last] for document in tokens))
            own = max_length - 2
            texts = [row[start : start + own] for start in range(0, len(row) - own + 1, own)]
            return [{"input_ids": [first, *text, last], "attention_mask": [1] * max_length} for text in texts]

        texts = cached([type(self).__name__, max_length], rows, tokenizer, encode)
        if not texts:
            raise ValueError(f"task {self.name}: its documents fill no text of max_length {max_length}; lower it.")
        return texts

    def collator(self, tokenizer: Any) -> Any:
        """What hides tokens, by the text: see `Hiding`."""
        return Hiding(tokenizer, self.share)

    @torch.no_grad()
    def reduce(self, logits: Any, labels: Tensor) -> Tensor:
        """Of each text: the sum of the hidden tokens' negative log-likelihoods, their number, those told: (rows, 3)."""
        losses = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), labels, ignore_index=_IGNORED, reduction="none"
        )
        told = (logits.argmax(-1) == labels).sum(1)
        return torch.stack([losses.sum(1), (labels != _IGNORED).sum(1).to(losses), told.to(losses)], dim=1)

    def measure(self, prediction: Any) -> dict[str, float]:
        """Perplexity of the hidden tokens, and the share of them that was told."""
        losses, counts, told = torch.as_tensor(prediction.predictions).double().sum(0)
        return {"perplexity": float((losses / counts).exp()), "accuracy": float(told / counts)}


class Hiding:
    """Hides tokens at random, and at least one of every text.

    Which ones depends on the text alone, so that an evaluation hides the same every time, whichever model and batch it
    is of; in training also on the epoch, so that a resumed run sees what an uninterrupted one does.
    """

    def __init__(self, tokenizer: Any, share: float, epoch: Callable[[], int] | None = None) -> None:
        from transformers import DataCollatorForLanguageModeling

        self._tokenizer, self._share, self._epoch = tokenizer, share, epoch
        self._collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=share)
        self._special = torch.tensor(sorted(tokenizer.all_special_ids))

    def of_epochs(self, epoch: Callable[[], int]) -> Hiding:
        """What hides other tokens in every epoch; epoch: the number of the one that is being trained."""
        return Hiding(self._tokenizer, self._share, epoch)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A batch of texts of one length, with the tokens that are to be told as labels."""
        turn = None if self._epoch is None else self._epoch()
        rows = [self._hidden(example, turn) for example in examples]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _hidden(self, example: Mapping[str, Any], turn: int | None) -> dict[str, Tensor]:
        digest = hashlib.sha256(repr((turn, list(example["input_ids"]))).encode()).digest()
        self._collator.generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        row: dict[str, Tensor] = dict(self._collator([dict(example)]))
        labels, ids = row["labels"][0], row["input_ids"][0]
        # Without a hidden token a text has no loss, and a batch of such texts none at all.
        if bool((labels == _IGNORED).all()):
            chance = torch.rand(ids.shape, generator=self._collator.generator)
            at = int(chance.masked_fill(torch.isin(ids, self._special), -1.0).argmax())
            labels[at], ids[at] = ids[at].clone(), self._tokenizer.mask_token_id
        return row
