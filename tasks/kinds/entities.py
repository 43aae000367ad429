"""Named entities: a tag for every word of a sentence, as WNUT-17 and CoNLL-2003 have them.

A word is its first piece: that one is labelled, and its tag is the word's. Words of which no piece is left, because the
sentence was cut or the tokenizer drops them, count as predicted to be no entity, so that scores are over all words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

from torch import Tensor

from argprune.tasks.cache import cached
from argprune.tasks.metrics import entity_scores, require
from argprune.tasks.texts import check_splits, first_output

OUTSIDE = "O"
# What a loss passes over.
_IGNORED = -100
_TAG = re.compile(r"O|[BI]-.+")


@dataclass(frozen=True)
class Sentence:
    """Words, and a tag each: O, or B-TYPE (I-TYPE) where an entity begins (goes on)."""

    words: tuple[str, ...]
    tags: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.words) != len(self.tags):
            raise ValueError(f"{len(self.words)} tokens, but {len(self.tags)} tags; every token has one")
        if not self.words:
            raise ValueError("a sentence without tokens")
        wrong = [tag for tag in self.tags if not _TAG.fullmatch(tag)]
        if wrong:
            raise ValueError(f"tag {wrong[0]!r}; a tag is O, B-TYPE or I-TYPE")


@dataclass(frozen=True)
class Entities:
    """A task of tagging entities; labels: all tags, O first."""

    name: str
    labels: Sequence[str]
    splits: Mapping[str, Sequence[Sentence]]
    metric: str = "f1"
    kind: ClassVar[str] = "token-classification"
    larger_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(["entity_f1"])
        check_splits(self.name, self.splits)

    def model_options(self) -> dict[str, Any]:
        """The tags."""
        return {"labels": tuple(self.labels)}

    def encode(self, rows: Sequence[Sentence], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
        """Pieces of the words, cut to `max_length`; the first of each word is labelled, others are -100.

        Sentences without a piece of any word, on which there is no loss, are left out. "about": the row, and the words
        whose pieces are labelled, in order. Raises ValueError for a tokenizer that does not say which word a piece is
        of, and where no sentence is left.
        """
        if not tokenizer.is_fast:
            raise ValueError(f"task {self.name}: its tags need a fast tokenizer, which says of which word a piece is.")
        options = [type(self).__name__, list(self.labels), max_length]
        return cached(options, rows, tokenizer, lambda: self._encode(rows, tokenizer, max_length))

    def collator(self, tokenizer: Any) -> Any:
        """Padding of pieces and labels to the longest sentence of the batch."""
        from transformers import DataCollatorForTokenClassification

        return DataCollatorForTokenClassification(tokenizer)

    def reduce(self, logits: Any, labels: Tensor) -> Tensor:
        """The likeliest tag of every piece."""
        return first_output(logits).argmax(-1)

    def measure(self, prediction: Any) -> dict[str, float]:
        """Precision, recall and F1 of entities, and the share of words whose tag is right.

        prediction: its `inputs` are the `Encoded` sentences that were predicted.
        """
        data = prediction.inputs
        predicted = [[OUTSIDE] * len(row.words) for row in data.rows]
        right = [row.tags for row in data.rows]
        for about, tags, labels in zip(data.about, prediction.predictions, prediction.label_ids, strict=True):
            for word, tag in zip(about["words"], tags[labels != _IGNORED], strict=True):
                predicted[about["row"]][word] = self.labels[int(tag)]
        pairs = zip(chain.from_iterable(predicted), chain.from_iterable(right), strict=True)
        told = [said == tag for said, tag in pairs]
        return {**entity_scores(predicted, right), "accuracy": sum(told) / len(told)}

    def _encode(self, rows: Sequence[Sentence], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
        index = {label: at for at, label in enumerate(self.labels)}
        examples = []
        # To byte-level tokenizers a word in a sentence begins with the blank before it; others pass over blanks.
        blank = " " if tokenizer.tokenize(" a") != tokenizer.tokenize("a") else ""
        for number, row in enumerate(rows):
            words = [blank + word for word in row.words]
            encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length)
            seen: dict[int, int] = {}
            for at, word in enumerate(encoded.word_ids()):
                if word is not None:
                    seen.setdefault(word, at)
            if not seen:
                continue
            labels = [_IGNORED] * len(encoded["input_ids"])
            for word, at in seen.items():
                labels[at] = index[row.tags[word]]
            examples.append({**encoded, "labels": labels, "about": {"row": number, "words": list(seen)}})
        if not examples:
            raise ValueError(
                f"task {self.name}: of {len(rows)} sentences the tokenizer keeps no word (max_length {max_length})."
            )
        return examples


def tag_names(rows: Sequence[Sentence]) -> list[str]:
    """The tags of all types of entities in some sentences: O, and B-TYPE and I-TYPE of each, by name."""
    types = sorted({tag[2:] for row in rows for tag in row.tags} - {""})
    return [OUTSIDE, *(f"{place}-{kind}" for kind in types for place in "BI")]
