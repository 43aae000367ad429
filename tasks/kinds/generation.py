"""Data-to-text: a network that writes the text of a meaning representation, or of RDF triples, as E2E and WebNLG.

An encoder-decoder reads the source and writes the target. A causal model reads

    source, end token, target, end token

and learns the target and its end. What counts is what a model writes by itself, against all references of a source.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from argprune.tasks.cache import cached
from argprune.tasks.metrics import require, text_scores
from argprune.tasks.texts import check_splits

Architecture = Literal["seq2seq-lm", "causal-lm"]
_IGNORED = -100


@dataclass(frozen=True)
class Described:
    """A source, and texts that say what it says: the first is learned, all are references."""

    source: str
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.source.strip() or not self.texts or not all(text.strip() for text in self.texts):
            raise ValueError("a source and at least one text, none of them empty, are needed")


@dataclass(frozen=True)
class DataToText:
    """A task of writing texts.

    kind: of the models it is for, encoder-decoders or causal ones. beams: of the search, 1 = greedy; new_tokens: that a
    text may have at most.
    """

    name: str
    splits: Mapping[str, Sequence[Described]]
    kind: Architecture = "seq2seq-lm"
    metric: str = "bleu"
    beams: int = 1
    new_tokens: int = 80
    larger_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(["bleu", "nist", "rouge_l"])
        check_splits(self.name, self.splits)
        if self.kind not in ("seq2seq-lm", "causal-lm"):
            raise ValueError(f"task {self.name}: objective {self.kind!r}; choose seq2seq-lm or causal-lm.")
        if min(self.beams, self.new_tokens) < 1:
            raise ValueError(f"task {self.name}: beams {self.beams}, new_tokens {self.new_tokens}; at least 1 of each.")

    def model_options(self) -> dict[str, Any]:
        """None: the vocabulary is the model's."""
        return {}

    def encode(self, rows: Sequence[Described], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
        """Sources and first texts as tokens.

        Encoder-decoder: each of them cut to `max_length`. Causal: the source to what leaves room for `new_tokens`, or
        to half where that is less, whatever the text, which is cut to what the source leaves. "about": the row.
        Raises ValueError for a tokenizer without an end token.
        """
        if tokenizer.eos_token_id is None:
            raise ValueError(f"task {self.name}: the tokenizer has no end-of-text token (eos_token); give one with it.")
        options = [type(self).__name__, self.kind, max_length, self._room(max_length)]
        one = self._pair if self.kind == "seq2seq-lm" else self._sequence
        return cached(
            options,
            rows,
            tokenizer,
            lambda: [one(row, tokenizer, max_length) | {"about": {"row": at}} for at, row in enumerate(rows)],
        )

    def collator(self, tokenizer: Any) -> Any:
        """Padding to the longest source, and the longest text, of the batch."""
        from transformers import DataCollatorForSeq2Seq

        return DataCollatorForSeq2Seq(_padding(tokenizer))

    def reduce(self, logits: Any, labels: Any) -> Any:
        """What was written: `generate` has come before."""
        return logits

    @torch.no_grad()
    def generate(self, model: Any, inputs: Mapping[str, Tensor], tokenizer: Any) -> Tensor:
        """The tokens that a model writes for a batch, int64 (rows, at most new_tokens), padded behind with -100."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        if self.kind == "causal-lm":
            ids, mask = _prompts(ids, mask, inputs["labels"])
        # An encoder-decoder begins with its start token, a causal model with what it was given.
        begun = 1 if self.kind == "seq2seq-lm" else ids.shape[1]
        room = getattr(model.config, "max_position_embeddings", begun + self.new_tokens) - begun
        written = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max(1, min(self.new_tokens, room)),
            num_beams=self.beams,
            do_sample=False,
            pad_token_id=_padding(tokenizer).pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        written = written[:, begun:]
        ends = (written == tokenizer.eos_token_id).int()
        # What stands behind the first end token is padding.
        return written.masked_fill(ends.cumsum(1) > ends, _IGNORED)

    def measure(self, prediction: Any) -> dict[str, float]:
        """BLEU, chrF, NIST and ROUGE-L of what was written, against all texts of each source.

        prediction: its `inputs` are the `Encoded` sources that were predicted.
        """
        references = [prediction.inputs.rows[about["row"]].texts for about in prediction.inputs.about]
        return text_scores(self.texts(prediction), references)

    def texts(self, prediction: Any) -> list[str]:
        """What was written, as text."""
        tokenizer = prediction.inputs.tokenizer
        kept = [[int(token) for token in row if token != _IGNORED] for row in prediction.predictions]
        return [text.strip() for text in tokenizer.batch_decode(kept, skip_special_tokens=True)]

    def _pair(self, row: Described, tokenizer: Any, max_length: int) -> dict[str, Any]:
        end = tokenizer.eos_token_id
        source = tokenizer(row.source, truncation=True, max_length=max_length)
        target = tokenizer(text_target=row.texts[0], truncation=True, max_length=max_length)["input_ids"]
        # Some tokenizers end a text by themselves, others do not.
        target = target if target[-1:] == [end] else [*target[: max_length - 1], end]
        return {**source, "labels": target}

    def _sequence(self, row: Described, tokenizer: Any, max_length: int) -> dict[str, Any]:
        end = tokenizer.eos_token_id
        source, target = (
            tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in (row.source, row.texts[0])
        )
        # Not by the text's length: what a model is given must not depend on what is right.
        source = source[: max_length - 2 - self._room(max_length)]
        target = target[: max_length - 2 - len(source)]
        ids = [*source, end, *target, end]
        learned = [_IGNORED] * (len(source) + 1) + [*target, end]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": learned}

    def _room(self, max_length: int) -> int:
        """Tokens of a causal sequence that its source leaves to the text, besides both end tokens."""
        return min(self.new_tokens, (max_length - 2) // 2)


def _prompts(ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The sources of causal sequences with their end tokens, padded in front, where a causal model does not begin."""
    given = mask.bool() & (labels == _IGNORED)
    longest = int(given.sum(1).max())
    # Stable: what is given comes last, in its order.
    order = given.int().argsort(dim=1, stable=True)[:, -longest:]
    return ids.gather(1, order), given.gather(1, order).to(mask)


def _padding(tokenizer: Any) -> Any:
    """A tokenizer that pads: with its end token where it has no other, which masks make no difference to."""
    if tokenizer.pad_token_id is not None:
        return tokenizer
    other = copy.deepcopy(tokenizer)
    other.pad_token = tokenizer.eos_token
    return other
