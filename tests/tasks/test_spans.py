"""Questions on contexts: windows, where answers stand in them, and which span answers."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from argprune.models import load_tokenizer
from argprune.tasks.data import load_task
from argprune.tasks.encoded import Encoded
from argprune.tasks.kinds import Answer, Question, SpanExtraction
from argprune.tasks.kinds.spans import places_of
from argprune.tasks.metrics import answer_scores
from argprune.tasks.task_options import TaskOptions
from argprune.tasks.texts import SPLITS


@pytest.fixture(scope="module")
def tokenizer(tiny_model: str) -> Any:
    return load_tokenizer(tiny_model)


def question(words: list[str], first: int, count: int, *, asked: str = "w1 w2") -> Question:
    """One on a context of some words, a blank or more between them, answered by `count` of them."""
    context = "  ".join(words)
    start = len("  ".join(words[:first])) + (2 if first else 0)
    text = "  ".join(words[first : first + count])
    return Question(asked, context, (Answer(text, start),) if count else ())


def task(rows: list[Question], **options: Any) -> SpanExtraction:
    return SpanExtraction("t", dict.fromkeys(SPLITS, rows), **options)


def encoded(questions: SpanExtraction, tokenizer: Any, length: int = 24) -> Encoded:
    return Encoded(questions.splits["test"], tokenizer, length, by_length=True, encode=questions.encode)


def predicted(data: Encoded, starts: list[Any], ends: list[Any]) -> Any:
    return SimpleNamespace(inputs=data, predictions=(starts, ends), label_ids=None)


def at_targets(data: Encoded) -> Any:
    """The logits of a network that is right: 1 at the target of every window, and more where it is an answer's."""
    parts: list[list[Any]] = [[], []]
    for item, about in zip(data, data.about, strict=True):  # type: ignore[call-overload]
        for part, name in zip(parts, ("start_positions", "end_positions"), strict=True):
            logits = np.zeros(len(item["input_ids"]))
            logits[item[name]] = 1.0 if item[name] == about["null"] else 5.0
            part.append(logits)
    return predicted(data, *parts)


contexts = st.lists(st.integers(0, 59).map("w{}".format), min_size=1, max_size=60)


@given(contexts, st.data())
def test_windows_cover_a_context_and_hold_its_answer(tokenizer: Any, words: list[str], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(words) - 1))
    row = question(words, first, data.draw(st.integers(1, min(6, len(words) - first))))
    questions = task([row], max_answer_length=6)
    windows = encoded(questions, tokenizer)
    seen = set()
    for item, about in zip(windows, windows.about, strict=True):  # type: ignore[call-overload]
        assert len(item["input_ids"]) <= 24
        places = places_of(about)
        seen.update(places)
        # Every context token stands where the tokenizer says it does.
        for at, (start, end) in enumerate(places):
            token = item["input_ids"][about["first"] + at]
            assert tokenizer.convert_ids_to_tokens(token) == row.context[start:end]
        if item["start_positions"] != about["null"]:
            begin = places[item["start_positions"] - about["first"]][0]
            end = places[item["end_positions"] - about["first"]][1]
            assert row.context[begin:end] == row.answers[0].text
    assert len(seen) == len(words)
    # Six words at most fit into what two windows share, so some window holds them all.
    assert questions.measure(at_targets(windows)) == {"exact_match": 1.0, "f1": 1.0}


def test_long_questions_leave_room(tokenizer: Any) -> None:
    row = question([f"w{i}" for i in range(40)], 30, 2, asked=" ".join(["w7"] * 50))
    questions = task([row])
    assert questions.measure(at_targets(encoded(questions, tokenizer)))["exact_match"] == 1.0
    with pytest.raises(ValueError, match="max_length 8 leaves a context no room"):
        questions.encode([row], tokenizer, 8)


def test_places_hold_with_a_tokenizer_that_pads_in_front(tokenizer: Any) -> None:
    front = copy.deepcopy(tokenizer)
    front.padding_side = "left"
    questions = task([question(["w3", "w4", "w5"], 1, 1), question([f"w{i}" for i in range(12)], 4, 2)])
    data = encoded(questions, front)
    batch = questions.collator(front)([data[index] for index in range(len(data))])
    # The shorter one comes first.
    for ids, start, end, answer in zip(
        batch["input_ids"], batch["start_positions"], batch["end_positions"], ("w4", "w4 w5"), strict=True
    ):
        assert tokenizer.decode(ids[start : end + 1]) == answer
    assert batch["attention_mask"][0].tolist() == sorted(batch["attention_mask"][0].tolist(), reverse=True)
    assert front.padding_side == "left"


def test_a_tokenizer_that_says_no_places_is_refused() -> None:
    with pytest.raises(ValueError, match="need a fast tokenizer"):
        task([question(["w1"], 0, 1)]).encode([], SimpleNamespace(is_fast=False), 32)


def test_contexts_without_any_token_are_refused(tokenizer: Any) -> None:
    rows = [question(["w1"], 0, 1), Question("w1", " ", ())]
    assert len(task(rows).encode(rows, tokenizer, 32)) == 2
    with pytest.raises(ValueError, match="task t: of 1 contexts the tokenizer keeps no token"):
        task(rows).encode(rows[1:], tokenizer, 32)


def test_n_best(tokenizer: Any) -> None:
    questions = task([question(["w10", "w11", "w12", "w13"], 1, 1)], n_best=3, max_answer_length=2)
    data = encoded(questions, tokenizer)
    first, count = data.about[0]["first"], len(data[0]["input_ids"])
    start, end = np.zeros(count), np.zeros(count)
    start[first : first + 4], end[first : first + 4] = [1, 4, 3, 0], [9, 0, 2, 8]
    spans, null = questions.answers(predicted(data, [start], [end]))[0]
    # 4 + 8 would be three words long, and 9 stands before all starts but the first.
    assert [(span.text, span.score) for span in spans] == [("w12  w13", 11.0), ("w10", 10.0), ("w11  w12", 6.0)]
    assert null == 0


def test_the_best_window_answers_and_the_least_sure_null_counts(tokenizer: Any) -> None:
    words = [f"w{i}" for i in range(10, 50)]
    questions = task([question(words, 30, 1), question(words, 2, 0)])
    data = encoded(questions, tokenizer)
    own = [at for at, about in enumerate(data.about) if about["row"] == 0]
    assert len(own) > 2
    starts = [np.zeros(len(data[at]["input_ids"])) for at in range(len(data))]
    for rank, at in enumerate(own):
        starts[at][data.about[at]["first"]] = rank
        starts[at][data.about[at]["null"]] = -rank
    spans, null = questions.answers(predicted(data, starts, [np.zeros_like(each) for each in starts]))[0]
    place = places_of(data.about[own[-1]])[0]
    assert spans[0].text == questions.splits["test"][0].context[place[0] : place[1]]
    assert null == 1 - len(own)


@given(
    st.lists(
        st.tuples(st.integers(-40, 40), st.booleans(), st.booleans()), min_size=2, max_size=12, unique_by=lambda x: x[0]
    ).filter(lambda rows: not all(answerable for _, answerable, _ in rows)),
    st.integers(-50, 50),
)
def test_null_threshold(tokenizer: Any, cases: list[tuple[int, bool, bool]], threshold: int) -> None:
    """Against the scores of every threshold, counted one by one."""
    rows = [question(["w10", "w11"], 0, int(answerable)) for _, answerable, _ in cases]
    questions = task(rows, null_threshold=float(threshold), max_answer_length=1)
    data = encoded(questions, tokenizer)
    starts = []
    for item, about in zip(data, data.about, strict=True):  # type: ignore[call-overload]
        margin, _, right = cases[about["row"]]
        logits = np.full(len(item["input_ids"]), -100.0)
        logits[about["first"] + (0 if right else 1)] = 0.0
        logits[about["null"]] = margin
        starts.append(logits)
    scores = questions.measure(predicted(data, starts, [np.zeros_like(each) for each in starts]))

    def f1(at: float) -> float:
        said = ["" if margin > at else ("w10" if right else "w11") for margin, _, right in cases]
        right = [[answer.text for answer in row.answers] for row in rows]
        return float(np.mean([answer_scores(*pair, with_null=True)[1] for pair in zip(said, right, strict=True)]))

    assert scores["f1"] == pytest.approx(f1(threshold))
    assert scores["best_f1"] == pytest.approx(max(map(f1, (-100, *(margin for margin, _, _ in cases)))))
    assert scores["best_f1"] == pytest.approx(f1(scores["best_f1_threshold"]))


def test_squad(data_dir: Path) -> None:
    """A network that is right answers nearly all: some answers end within a word piece."""
    found = load_task("squad", data_dir, TaskOptions(train_rows=60, eval_rows=120))
    assert isinstance(found, SpanExtraction)
    assert not found.with_null
    data = encoded(found, load_tokenizer("minilm"), 128)
    assert len(data) > len(found.splits["test"])
    scores = found.measure(at_targets(data))
    assert scores["exact_match"] > 0.97
    assert scores["f1"] > 0.98


def test_bad_answers() -> None:
    with pytest.raises(ValueError, match="answer 'w2' does not stand at character 0 of the context"):
        Question("w1", "w1 w2", (Answer("w2", 0),))
    with pytest.raises(ValueError, match="an answer without text"):
        Question("w1", "w1 w2", (Answer("", 0),))
