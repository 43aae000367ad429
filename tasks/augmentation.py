"""More training texts: copies in which words are replaced by others that could stand there, offline.

    for each text, `copies` times:
        each whole word, with probability `rate`  <-  one of its `candidates` best replacements, drawn evenly

Replacements are the nearest words by the cosine of the model's own word embeddings, or what a masked language model
finds likeliest in the word's place. A word is one token of letters only; stop words stay, and the answer of a question.
Copies keep the number of tokens, the labels and all places. Source: the tool of TinyBERT, which SparseBERT uses;
dossier paper-pins-sparsebert, section 2.2. Words of several tokens stay here, for which it takes GloVe's neighbours.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from argprune.models import load_model, load_tokenizer
from argprune.tasks.encoded import Encoded
from argprune.tasks.settings import Augment
from argprune.tasks.texts import Task

# Tasks whose labels are of the text, or of places in it that stay.
_KINDS = ("classification", "regression", "question-answering")
# What tokens of a vocabulary start with: word pieces that go on, byte pairs and sentence pieces that begin a word.
_MARKS = ("##", "\u0120", "\u2581")
# Masked copies of a text that are read at once.
_BATCH = 64
_STOPS = """
    a about after again all also am an and any are as at be because been before being between both but by can could
    did do does doing down during each few for from further had has have having he her here hers him his how i if in
    into is it its itself just me more most my no nor not now of off on once only or other our out over own same she
    should so some such than that the their them then there these they this those through to too under until up very
    was we were what when where which while who whom why will with would you your
"""
STOP_WORDS = frozenset(re.findall(r"\w+", _STOPS))


def augment(options: Augment, data: Encoded, task: Task, model: PreTrainedModel, tokenizer: Any, seed: int) -> Encoded:
    """The texts of a split, and the altered copies of each after it; duplicates are left out.

    model: the run's, whose word embeddings are read. Raises ValueError, one line, for a task whose labels go with the
    words, texts without a word to replace, and a masked language model of another vocabulary.
    """
    if task.kind not in _KINDS:
        raise ValueError(
            f"augment: task {task.name} is of kind {task.kind}; words are replaced in {', '.join(_KINDS)}."
        )
    words = Words(tokenizer)
    proposals: Proposals = (
        Predictions(str(options.model), tokenizer, words, options.candidates)
        if options.by == "mlm"
        else Neighbours(model, words, options.candidates)
    )
    items: list[dict[str, Any]] = []
    for index in range(len(data)):
        items.append(data[index])
        items += _copies(data[index], words, proposals, options, random.Random(f"{seed} {index}"))
    if len(items) == len(data):
        raise ValueError(f"augment: no text of task {task.name} has a word of letters only, in one token, to replace.")
    return Augmented(data, items)


class Augmented(Encoded):
    """Encoded rows that are more than those of a split."""

    def __init__(self, data: Encoded, items: list[dict[str, Any]]) -> None:
        self.rows, self.tokenizer = data.rows, data.tokenizer
        self._items = items
        self.lengths = [len(item["input_ids"]) for item in items]
        self.about = [None] * len(items)


class Words:
    """What tokens are words: of word pieces, of byte pairs or sentence pieces, or of a tokenizer of whole words."""

    def __init__(self, tokenizer: Any) -> None:
        tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        special = set(tokenizer.all_special_tokens)
        counts = {mark: sum(token.startswith(mark) for token in tokens) for mark in _MARKS}
        # What has the mark of another kind of vocabulary is text: "##" is a byte pair of many programs.
        mark = max(_MARKS, key=counts.__getitem__)
        self._mark = mark if counts[mark] > 1 else ""
        self._pieces = self._mark == "##"
        # The word that a token is by itself, in lower case; None for all else.
        self.of = [None if token in special else self._word(token) for token in tokens]
        self._goes_on = [token not in special and self._continues(token) for token in tokens]
        numbers = [number for number, word in enumerate(self.of) if word is not None]
        self.ids = torch.tensor(numbers, dtype=torch.long)

    def places(self, item: Mapping[str, Any]) -> list[int]:
        """Where a text has a word that may be replaced."""
        ids = list(map(int, item["input_ids"]))
        answer = range(int(item.get("start_positions", 0)), int(item.get("end_positions", -1)) + 1)
        return [
            place
            for place, (number, following) in enumerate(zip(ids, [*ids[1:], None], strict=True))
            if self.of[number] is not None
            and self.of[number] not in STOP_WORDS
            and (following is None or not self._goes_on[following])
            and place not in answer
        ]

    def _word(self, token: str) -> str | None:
        if self._continues(token):
            return None
        word = token if self._pieces else token.removeprefix(self._mark)
        # Tokenizers of whole words have numbers in their names; a word has a letter, at least.
        letters = word.isalpha() if self._mark else any(letter.isalpha() for letter in word)
        return word.lower() if letters else None

    def _continues(self, token: str) -> bool:
        if not self._mark:
            return False
        return token.startswith("##") if self._pieces else not token.startswith(self._mark) and token[:1].isalnum()


class Proposals(Protocol):
    """Tokens that could stand in the places of a text."""

    def propose(self, ids: Sequence[int], places: Sequence[int]) -> list[list[int]]:
        """For each place the tokens that could stand there, best first."""


class Neighbours:
    """The nearest words by a model's word embeddings, whatever stands around them."""

    def __init__(self, model: PreTrainedModel, words: Words, count: int) -> None:
        table: Any = model.get_input_embeddings()
        self._embeddings = functional.normalize(table.weight.detach()[words.ids].float(), dim=-1)
        self._row = {number: row for row, number in enumerate(words.ids.tolist())}
        self._words, self._count = words, count
        self._known: dict[int, list[int]] = {}

    def propose(self, ids: Sequence[int], places: Sequence[int]) -> list[list[int]]:
        """For each place the words nearest to the one there."""
        unknown = [number for number in dict.fromkeys(ids[place] for place in places) if number not in self._known]
        likeness = self._embeddings[[self._row[number] for number in unknown]] @ self._embeddings.t()
        for number, row in zip(unknown, likeness, strict=True):
            self._known[number] = _best(row, number, self._words, self._count)
        return [self._known[ids[place]] for place in places]


class Predictions:
    """What a masked language model finds likeliest in a word's place."""

    def __init__(self, name: str, tokenizer: Any, words: Words, count: int) -> None:
        own = load_tokenizer(name)
        if own.get_vocab() != tokenizer.get_vocab():
            raise ValueError(
                f"augment: {name} has not the vocabulary of the run's model; both must read the same tokens."
            )
        if tokenizer.mask_token_id is None:
            raise ValueError(f"augment: the tokenizer of {name} has no mask token; take `neighbours`.")
        self._model = load_model(name, kind="masked-lm", complete=True)
        self._mask, self._words, self._count = tokenizer.mask_token_id, words, count

    @torch.no_grad()
    def propose(self, ids: Sequence[int], places: Sequence[int]) -> list[list[int]]:
        """For each place what is predicted where it is masked."""
        found = []
        for start in range(0, len(places), _BATCH):
            part = torch.tensor(places[start : start + _BATCH])
            masked = torch.tensor(ids).repeat(len(part), 1)
            rows = torch.arange(len(part))
            masked[rows, part] = self._mask
            logits = self._model(input_ids=masked, attention_mask=torch.ones_like(masked)).logits[rows, part]
            likely = logits[:, self._words.ids]
            found += [
                _best(row, ids[place], self._words, self._count)
                for row, place in zip(likely, part.tolist(), strict=True)
            ]
        return found


def _best(values: Tensor, number: int, words: Words, count: int) -> list[int]:
    """The words of largest value, without the word itself in whatever spelling."""
    # Spellings of a word: lower case, upper case, capitalised.
    order = values.topk(min(count + 3, len(values))).indices
    found = [int(other) for other in words.ids[order] if words.of[int(other)] != words.of[number]]
    return found[:count]


def _copies(
    item: Mapping[str, Any], words: Words, proposals: Proposals, options: Augment, draw: random.Random
) -> list[dict[str, Any]]:
    ids, places = list(map(int, item["input_ids"])), words.places(item)
    proposed = [found for found in zip(places, proposals.propose(ids, places), strict=True) if found[1]]
    seen, copies = {tuple(ids)}, []
    for _ in range(options.copies):
        altered = list(ids)
        for place, candidates in proposed:
            if draw.random() < options.rate:
                altered[place] = draw.choice(candidates)
        if tuple(altered) not in seen:
            seen.add(tuple(altered))
            copies.append({**item, "input_ids": altered})
    return copies
