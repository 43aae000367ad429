"""Metrics against the values that official scripts and their libraries' documentation give."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from argprune.tasks.metrics import (
    answer_scores,
    class_scores,
    correlations,
    entity_scores,
    normalise,
    require,
    text_scores,
)

# What was said, the right answers, and (exact match, F1) by evaluate-v1.1.py and by evaluate-v2.0.py, recorded.
ANSWERS = [
    ("the Denver Broncos.", ["Denver Broncos", "Broncos"], (1.0, 1.0), (1.0, 1.0)),
    ("Carolina Panthers team", ["Panthers", "Carolina Panthers"], (0.0, 0.8), (0.0, 0.8)),
    ("Café", ["café"], (1.0, 1.0), (1.0, 1.0)),
    ("naïve—idea", ["naïve idea"], (0.0, 0.0), (0.0, 0.0)),
    ("日本", ["日本 ", "Japan"], (1.0, 1.0), (1.0, 1.0)),
    ("U.S.A.", ["usa"], (1.0, 1.0), (1.0, 1.0)),
    ("twenty-one", ["twenty one"], (0.0, 0.0), (0.0, 0.0)),
    ("theatre", ["the atre"], (0.0, 0.0), (0.0, 0.0)),
    ("$5 million", ["5 million dollars"], (0.0, 0.8), (0.0, 0.8)),
    ("new new york", ["new york new"], (0.0, 1.0), (0.0, 1.0)),
    ("in 1066 AD", ["1066", "the year 1066"], (0.0, 0.5), (0.0, 0.5)),
    ("", ["nothing"], (0.0, 0.0), (0.0, 0.0)),
    # Answers of nothing but articles: version 1.1 has an exact match without a common token.
    ("a", ["the"], (1.0, 0.0), (1.0, 1.0)),
    ("the", ["The!"], (1.0, 0.0), (1.0, 1.0)),
]


@pytest.mark.parametrize(("said", "answers", "first", "second"), ANSWERS)
def test_answers_are_scored_as_by_the_official_scripts(
    said: str, answers: list[str], first: tuple[float, float], second: tuple[float, float]
) -> None:
    assert answer_scores(said, answers, with_null=False) == first
    assert answer_scores(said, answers, with_null=True) == second


def test_questions_without_an_answer() -> None:
    assert answer_scores("", [], with_null=True) == (1.0, 1.0)
    assert answer_scores("x", [], with_null=True) == (0.0, 0.0)


@given(st.text(), st.lists(st.text(), min_size=1, max_size=3), st.booleans())
def test_answer_scores_are_ordered_shares(said: str, answers: list[str], with_null: bool) -> None:
    exact, f1 = answer_scores(said, answers, with_null=with_null)
    assert exact in (0.0, 1.0)
    assert 0 <= f1 <= 1
    if normalise(said):
        assert f1 >= exact
    # More right answers never lower a score, nor does their order change it.
    assert answer_scores(said, [*answers[::-1], said], with_null=with_null) >= (exact, f1)


def test_classes() -> None:
    # The example of scikit-learn's matthews_corrcoef: -1/3.
    labels, predicted = np.array([1, 1, 1, 0]), np.array([1, 0, 1, 1])
    scores = class_scores(predicted, labels, ["matthews_correlation", "accuracy", "f1", "combined_score"])
    assert scores["matthews_correlation"] == pytest.approx(-1 / 3)
    assert (scores["accuracy"], scores["f1"]) == (0.5, pytest.approx(2 / 3))
    assert scores["combined_score"] == pytest.approx((0.5 + 2 / 3) / 2)
    assert list(class_scores(predicted, labels, ["accuracy"])) == ["accuracy"]


def test_classes_of_a_network_that_says_one_thing() -> None:
    labels = np.array([0, 1, 0])
    measures = ["matthews_correlation", "f1"]
    assert class_scores(np.zeros(3, int), labels, measures) == {"matthews_correlation": 0.0, "f1": 0.0}


def test_correlations() -> None:
    # The examples of scipy's pearsonr and spearmanr.
    assert correlations([1, 2, 3, 4, 5], [10, 9, 2.5, 6, 4])["pearson"] == pytest.approx(-0.74261065)
    scores = correlations([1, 2, 3, 4, 5], [5, 6, 7, 8, 7])
    assert scores["spearman"] == pytest.approx(0.82078268)
    assert scores["combined_score"] == pytest.approx((scores["pearson"] + scores["spearman"]) / 2)
    assert correlations([3.0, 3.0], [1, 2]) == {"pearson": 0.0, "spearman": 0.0, "combined_score": 0.0}


def test_entities() -> None:
    # The example of seqeval's own page: F1 0.50.
    tags = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    predicted = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    assert entity_scores(predicted, tags) == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    # As conlleval: an entity that begins with I-, as in CoNLL-2003's own files, is one.
    assert entity_scores([["I-PER", "I-PER", "O"]], [["B-PER", "I-PER", "O"]])["f1"] == 1.0
    nothing = [["O", "O"]]
    assert entity_scores(nothing, nothing) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_texts() -> None:
    # The example of sacrebleu's own page, BLEU 48.53 and chrF2 59.73.
    references = [
        ["The dog bit the man.", "The dog had bit the man."],
        ["It was not unexpected.", "No one was surprised."],
        ["The man bit him first.", "The man had bitten the dog."],
    ]
    written = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    scores = text_scores(written, references)
    assert scores["bleu"] == pytest.approx(0.4853082701)
    assert scores["chrf"] == pytest.approx(0.5972751783)
    # The example of rouge-score's own page: five words in order, of 8 and of 9.
    rouge = text_scores(
        ["The quick brown dog jumps on the log."], [["The quick brown fox jumps over the lazy dog", "x"]]
    )["rouge_l"]
    assert rouge == pytest.approx(2 * 5 / (8 + 9))
    # Texts with fewer references than others: what is not there takes nothing away.
    assert text_scores(written, [references[0][:1], *references[1:]])["bleu"] == pytest.approx(scores["bleu"], abs=0.02)
    assert text_scores(["a b c d", ""], [["a b c d"], ["x", "y"]])["bleu"] > 0
    assert math.isfinite(text_scores([""], [["x"]])["chrf"])


def test_nist_is_that_of_doddington() -> None:
    # Of four reference tokens a is two, b and c one each: 1, 2 and 2 bits; "a b" after a 1 bit, "b a" after b none.
    right = [["a b a"], ["c"]]
    assert text_scores(["A b x", "c"], right)["nist"] == pytest.approx((1 + 2 + 2) / 4 + 1 / 2)
    # A quarter too short; two thirds of the references' length would cost a half.
    penalty = 0.5 ** (math.log(3 / 4) / math.log(2 / 3)) ** 2
    assert text_scores(["a b", "c"], right)["nist"] == pytest.approx(penalty * ((1 + 2 + 2) / 3 + 1 / 1))
    assert text_scores(["", ""], right)["nist"] == text_scores(["z", "z"], right)["nist"] == 0


def test_nist_takes_all_references_of_a_text_together() -> None:
    # Six reference tokens, a twice, the others once: log2 3 and twice log2 6 bits. "a b" is of the second one, 1 bit.
    right = [["a x c", "a b y"]]
    bits = math.log2(3) + 2 * math.log2(6)
    assert text_scores(["a b c"], right)["nist"] == pytest.approx(bits / 3 + 1 / 2)
    # As long as the references are on average: (2 + 4) / 2 = 3 words. Of six tokens a is two; "a a" is not there.
    assert text_scores(["a z z"], [["a b", "c d e a"]])["nist"] == pytest.approx(math.log2(3) / 3)
    # A word counts as often as the one reference that has it most often, not as all together.
    assert text_scores(["a a a"], [["a a b", "a c d"]])["nist"] == pytest.approx(2 * 1 / 3 + math.log2(3) / 2)


@given(st.lists(st.tuples(*[st.text("abcd ", min_size=1).filter(str.strip)] * 2), min_size=1, max_size=5))
def test_nist_of_single_references_is_nltks(pairs: list[tuple[str, str]]) -> None:
    from nltk.translate.nist_score import corpus_nist

    written, right = [one for one, _ in pairs], [[other] for _, other in pairs]
    # nltk divides by the number of n-grams written, which may be none.
    longest = max(len(text.split()) for text in written)
    texts, words = [[text.split() for text in texts] for texts in right], [text.split() for text in written]
    expected = corpus_nist(texts, words, min(5, longest))
    assert text_scores(written, right)["nist"] == pytest.approx(expected)


def test_a_library_that_is_missing_is_named_before_any_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"'entity_f1' needs seqeval.*pip install 'argprune\[metrics\]'"):
        require(["accuracy", "entity_f1"])
