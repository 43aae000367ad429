"""Extractive question answering: where in a context does the answer of a question stand?

    score(s, e) = start logit of token s + end logit of token e,        s <= e < s + max_answer_length
    no answer   where  start logit of [CLS] + end logit of [CLS]  >  best score + null_threshold      (SQuAD v2)

A context that is too long is read in windows that overlap; the best span of all windows answers. A window that does not
hold the answer has [CLS] for its target.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, ClassVar

import numpy as np

from argprune.tasks.cache import cached
from argprune.tasks.metrics import answer_scores
from argprune.tasks.texts import check_splits

# Of a window: what a question may take, and what two windows share.
_QUESTION, _STRIDE = 1 / 4, 1 / 3


@dataclass(frozen=True)
class Answer:
    """Text of a context, and the character at which it starts."""

    text: str
    start: int


@dataclass(frozen=True)
class Question:
    """A question on a context; no answers: it has none there; certain: where the first one stands is no guess."""

    question: str
    context: str
    answers: tuple[Answer, ...]
    certain: bool = True

    def __post_init__(self) -> None:
        for answer in self.answers:
            end = answer.start + len(answer.text)
            if not answer.text:
                raise ValueError("an answer without text; leave it out")
            if answer.start < 0 or self.context[answer.start : end] != answer.text:
                raise ValueError(f"answer {answer.text!r} does not stand at character {answer.start} of the context")


@dataclass(frozen=True)
class SpanExtraction:
    """A task of questions on contexts, as SQuAD.

    splits: questions by split name; where some have no answer, it is scored as SQuAD v2 is. n_best: starts, and ends,
    of a window that are looked at; max_answer_length: tokens of an answer at most; null_threshold: by how much "no
    answer" must be better than the best one.
    """

    name: str
    splits: Mapping[str, Sequence[Question]]
    metric: str = "f1"
    n_best: int = 20
    max_answer_length: int = 30
    null_threshold: float = 0.0
    kind: ClassVar[str] = "question-answering"
    larger_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_splits(self.name, self.splits)

    @property
    def with_null(self) -> bool:
        """Whether some question has no answer."""
        return any(not row.answers for rows in self.splits.values() for row in rows)

    def model_options(self) -> dict[str, Any]:
        """None: a start and an end."""
        return {}

    def encode(self, rows: Sequence[Question], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
        """Windows of at most `max_length` tokens, a third of which the next one repeats, with the first answer's place.

        A question takes a quarter of a window at most. "about": the row, the token of no answer, the first context
        token, and the `gaps` and lengths of what the context tokens stand for.
        Raises ValueError for a tokenizer that does not say where its tokens stand, a window without room, and where no
        context has a token.
        """
        if not tokenizer.is_fast:
            raise ValueError(f"task {self.name}: its answers need a fast tokenizer, which says where tokens stand.")
        if max_length < 16:
            raise ValueError(f"task {self.name}: max_length {max_length} leaves a context no room; give at least 16.")
        windows = cached(
            [type(self).__name__, max_length], rows, tokenizer, lambda: list(_windows(rows, tokenizer, max_length))
        )
        if not any(window["about"]["gaps"] for window in windows):
            raise ValueError(f"task {self.name}: of {len(rows)} contexts the tokenizer keeps no token.")
        return windows

    def collator(self, tokenizer: Any) -> Any:
        """Padding to the longest window of the batch, behind: places are counted from a window's first token."""
        from transformers import DataCollatorWithPadding

        behind = copy.deepcopy(tokenizer)
        behind.padding_side = "right"
        return DataCollatorWithPadding(behind)

    def reduce(self, logits: Any, labels: Any) -> Any:
        """Start and end logits."""
        return logits[:2]

    def measure(self, prediction: Any) -> dict[str, float]:
        """Exact match and token F1 of the answers, by SQuAD's official rules.

        prediction: its `inputs` are the `Encoded` windows that were predicted. Where questions have no answers, also
        F1 over those that have one and those that have none, and the best F1 that any threshold would give, as the
        official script says it: `best_f1` at `best_f1_threshold`.
        """
        rows, with_null = prediction.inputs.rows, self.with_null
        judged = []
        for row, (spans, null) in self.answers(prediction).items():
            right = [answer.text for answer in rows[row].answers] or [""]
            best = spans[0] if spans else Span(-math.inf, "")
            said = answer_scores(best.text, right, with_null=with_null)
            judged.append(_Judged(null - best.score, said, bool(rows[row].answers)))
        if not with_null:
            return {"exact_match": _mean(each.said[0] for each in judged), "f1": _mean(each.said[1] for each in judged)}
        return _null_scores(judged, self.null_threshold)

    def answers(self, prediction: Any) -> dict[int, tuple[list[Span], float]]:
        """By row: the `n_best` spans of all its windows, best first, and the least score of "no answer" among them."""
        windows, (starts, ends) = prediction.inputs, prediction.predictions
        found: dict[int, tuple[list[Span], float]] = {}
        for about, start, end in zip(windows.about, starts, ends, strict=True):
            spans, null = found.get(about["row"], ([], math.inf))
            spans = spans + self._spans(about, windows.rows[about["row"]].context, start, end)
            spans.sort(key=lambda span: -span.score)
            null = min(null, float(start[about["null"]] + end[about["null"]]))
            found[about["row"]] = spans[: self.n_best], null
        return found

    def _spans(self, about: Mapping[str, Any], context: str, start: Any, end: Any) -> list[Span]:
        """The best spans of one window."""
        first, places = about["first"], places_of(about)
        start, end = start[first : first + len(places)], end[first : first + len(places)]
        starts, ends = (np.argsort(-part, kind="stable")[: self.n_best] for part in (start, end))
        length = ends[None] - starts[:, None]
        scores = np.where(
            (length >= 0) & (length < self.max_answer_length), start[starts][:, None] + end[ends], -np.inf
        )
        order = np.argsort(-scores, axis=None, kind="stable")[: self.n_best]
        pairs = [(int(starts[at // len(ends)]), int(ends[at % len(ends)]), float(scores.flat[at])) for at in order]
        return [Span(score, context[places[s][0] : places[e][1]]) for s, e, score in pairs if score > -math.inf]


@dataclass(frozen=True)
class Span:
    """A possible answer: the sum of its logits, and its text."""

    score: float
    text: str


@dataclass(frozen=True)
class _Judged:
    """A question: by how much no answer is better than the best, what that scores (exact match, F1), and the truth."""

    margin: float
    said: tuple[float, float]
    answerable: bool

    @property
    def silent(self) -> tuple[float, float]:
        """What no answer scores."""
        return (float(not self.answerable),) * 2

    def at(self, threshold: float) -> tuple[float, float]:
        return self.silent if self.margin > threshold else self.said


def _null_scores(judged: Sequence[_Judged], threshold: float) -> dict[str, float]:
    scores = {
        "exact_match": _mean(each.at(threshold)[0] for each in judged),
        "f1": _mean(each.at(threshold)[1] for each in judged),
    }
    for name, answerable in (("has_answer_f1", True), ("no_answer_f1", False)):
        part = [each.at(threshold)[1] for each in judged if each.answerable == answerable]
        if part:
            scores[name] = _mean(part)
    # From silence throughout, answer one question after another, those first that are surest to have an answer.
    order = sorted(judged, key=lambda each: each.margin)
    totals = np.cumsum([sum(each.silent[1] for each in order), *(each.said[1] - each.silent[1] for each in order)])
    # Between questions of one margin there is no threshold.
    ends = [0, *(at for at in range(1, len(order) + 1) if at == len(order) or order[at].margin > order[at - 1].margin)]
    best = max(ends, key=lambda at: totals[at])
    scores["best_f1"] = float(totals[best]) / len(judged)
    scores["best_f1_threshold"] = order[best - 1].margin if best else order[0].margin - 1
    return scores


def _windows(rows: Sequence[Question], tokenizer: Any, max_length: int) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows):
        encoded = tokenizer(
            _shortened(row.question.strip(), tokenizer, int(_QUESTION * max_length)),
            row.context,
            truncation="only_second",
            max_length=max_length,
            stride=int(_STRIDE * max_length),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        offsets = encoded.pop("offset_mapping")
        encoded.pop("overflow_to_sample_mapping")
        for window in range(len(offsets)):
            ids = encoded["input_ids"][window]
            own = [at for at, part in enumerate(encoded.sequence_ids(window)) if part == 1]
            places = [list(offsets[window][at]) for at in own]
            null = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
            first = own[0] if own else 0
            start, end = _target(row, places)
            yield {
                **{name: values[window] for name, values in encoded.items()},
                "start_positions": null if start is None else first + start,
                "end_positions": null if end is None else first + end,
                "about": {"row": number, "null": null, "first": first, "gaps": _gaps(places)},
            }


def places_of(about: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The characters at which each context token of a window starts and ends."""
    ends = np.cumsum(np.asarray(about["gaps"], np.int64)).tolist()
    return list(zip(ends[::2], ends[1::2], strict=True))


def _gaps(places: Sequence[Sequence[int]]) -> list[int]:
    """By turns, the characters from the end of a token to the start of the next, and those of the token.

    Python has small numbers once: as places, those of a large data set would take gigabytes.
    """
    bounds = [0, *chain.from_iterable(places)]
    return [after - before for before, after in pairwise(bounds)]


def _shortened(text: str, tokenizer: Any, most: int) -> str:
    """As much of a text as so many tokens hold."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return text if len(offsets) <= most else text[: offsets[most - 1][1]]


def _target(row: Question, places: Sequence[Sequence[int]]) -> tuple[int, int] | tuple[None, None]:
    """The tokens of a window at which the first answer starts and ends; none where the window does not hold it all."""
    if not row.answers or not places:
        return None, None
    begin, end = row.answers[0].start, row.answers[0].start + len(row.answers[0].text)
    if places[0][0] > begin or places[-1][1] < end:
        return None, None
    # Blanks belong to no token: the last one that starts by then, the first one that reaches so far.
    first = max(at for at, (start, _) in enumerate(places) if start <= begin)
    last = min(at for at, (_, stop) in enumerate(places) if stop >= end)
    return first, last


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
