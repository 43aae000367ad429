"""The official metrics of the tasks, computed by the libraries that the field uses; every one but NIST is a share.

accuracy, F1, Matthews correlation by scikit-learn, Pearson and Spearman by scipy, entity F1 by seqeval, BLEU and chrF
by sacrebleu, ROUGE-L by rouge-score (extra `metrics`). Exact match and token F1 of SQuAD follow its official scripts,
and NIST follows mteval-v13a.pl: of the ones there is no library, and nltk's NIST takes the best reference of a text
alone, where the script takes all. What the libraries give in percent is divided by 100: BLEU 0.652 is what papers call
65.2.
"""

from __future__ import annotations

import importlib.util
import math
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

# What is measured -> the module that measures it, where that is in the extra `metrics`.
_MODULES: Mapping[str, str] = {
    "f1": "sklearn",
    "matthews_correlation": "sklearn",
    "entity_f1": "seqeval",
    "bleu": "sacrebleu",
    "nist": "sacrebleu",
    "rouge_l": "rouge_score",
}
_NIST_ORDER = 5
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)


def require(measures: Sequence[str]) -> None:
    """Raise ModuleNotFoundError in one line, before any training, where a measure's library is not installed."""
    for measure in measures:
        module = _MODULES.get(measure)
        if module is not None and importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(
                f"Metric {measure!r} needs {module}, which is not installed. Run: pip install 'argprune[metrics]'",
                name=module,
            )


def class_scores(predicted: Any, labels: Any, measures: Sequence[str]) -> dict[str, float]:
    """Shares of classes told right, by the measures' names.

    predicted, labels: int (rows,). measures: of "accuracy", "f1" (of label 1, the positive one of two),
    "matthews_correlation", and "combined_score", GLUE's mean of accuracy and F1.
    Matthews correlation of predictions that are all one class is 0, and F1 where label 1 is neither there nor
    predicted.
    """
    scores: dict[str, float] = {"accuracy": float((predicted == labels).mean())}
    if "f1" in measures:
        from sklearn.metrics import f1_score

        scores["f1"] = float(f1_score(labels, predicted, pos_label=1, zero_division=0.0))
    if "matthews_correlation" in measures:
        from sklearn.metrics import matthews_corrcoef

        scores["matthews_correlation"] = float(matthews_corrcoef(labels, predicted))
    if "combined_score" in measures:
        scores["combined_score"] = (scores["accuracy"] + scores["f1"]) / 2
    return {measure: scores[measure] for measure in measures}


def correlations(predicted: Any, values: Any) -> dict[str, float]:
    """Pearson and Spearman correlation, and GLUE's mean of both, "combined_score"; float (rows,) each."""
    from scipy.stats import pearsonr, spearmanr

    predicted, values = np.asarray(predicted, np.float64), np.asarray(values, np.float64)
    if np.ptp(predicted) == 0 or np.ptp(values) == 0:
        # Undefined; but a network that says the same of all texts has learned nothing, which a run must be able to say.
        pearson = spearman = 0.0
    else:
        pearson, spearman = float(pearsonr(predicted, values)[0]), float(spearmanr(predicted, values)[0])
    return {"pearson": pearson, "spearman": spearman, "combined_score": (pearson + spearman) / 2}


def entity_scores(predicted: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of entities, as conlleval counts them: type and both ends must be right.

    predicted, tags: BIO tags of every token of every sentence. A measure whose denominator is 0 is 0.
    """
    from seqeval.metrics import f1_score, precision_score, recall_score

    given: dict[str, Any] = {"y_true": [*map(list, tags)], "y_pred": [*map(list, predicted)], "zero_division": 0}
    return {
        "precision": float(precision_score(**given)),
        "recall": float(recall_score(**given)),
        "f1": float(f1_score(**given)),
    }


def text_scores(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Corpus BLEU, chrF and NIST over all references of a text, and the mean ROUGE-L F-measure with the best of them.

    sacrebleu's defaults: 13a tokens, exponential smoothing, chrF2. ROUGE-L without stemming. NIST, in bits and not a
    share, of up to five of the 13a tokens in lower case, as mteval-v13a.pl takes them.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF

    most = max(map(len, references))
    # sacrebleu wants the first reference of every text, then the second; None stands for one that is not there.
    streams = [[texts[at] if at < len(texts) else None for texts in references] for at in range(most)]
    given: Any = (list(predicted), streams)
    scorer = RougeScorer(["rougeL"])
    rouge = [
        max(scorer.score(reference, text)["rougeL"].fmeasure for reference in texts)
        for text, texts in zip(predicted, references, strict=True)
    ]
    return {
        "bleu": BLEU().corpus_score(*given).score / 100,
        "chrf": CHRF().corpus_score(*given).score / 100,
        "rouge_l": float(np.mean(rouge)),
        "nist": _nist(predicted, references),
    }


def _nist(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Doddington (2002), eq. 3 and 4, as mteval-v13a.pl computes it.

        sum over n <= 5 of  information of the n-grams written that a reference has / number of n-grams written,
        information of w_1 ... w_n = log2( count of w_1 ... w_{n-1} / count of w_1 ... w_n ) in all references,

    a matching n-gram counting as often as the reference with most of it has it; times a penalty for texts that are
    together shorter than their references are on average: 1/2 where they have two thirds of the words.
    """
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenizer = Tokenizer13a()
    written = [tokenizer(text.lower()).split() for text in predicted]
    texts = [[tokenizer(text.lower()).split() for text in right] for right in references]
    counts = Counter[tuple[str, ...]]()
    for text in chain.from_iterable(texts):
        for n in range(_NIST_ORDER + 1):
            counts.update(_ngrams(text, n))
    score = 0.0
    for n in range(1, _NIST_ORDER + 1):
        found, total = 0.0, 0
        for words, right in zip(written, texts, strict=True):
            own, most = _ngrams(words, n), Counter[tuple[str, ...]]()
            for text in right:
                most |= _ngrams(text, n)
            found += sum(times * math.log2(counts[gram[:-1]] / counts[gram]) for gram, times in (own & most).items())
            total += own.total()
        score += found / total if total else 0.0
    length = sum(map(len, written)) / sum(sum(map(len, right)) / len(right) for right in texts)
    if not length:
        return 0.0
    return score * math.exp(math.log(0.5) * (math.log(min(1.0, length)) / math.log(2 / 3)) ** 2)


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each run of n words stands there; the empty one, as often as there are words."""
    if n == 0:
        return Counter({(): len(words)})
    return Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))


def answer_scores(predicted: str, answers: Sequence[str], *, with_null: bool) -> tuple[float, float]:
    """Exact match and token F1 of one answer, each with the best of the right ones, as SQuAD's official scripts do.

    predicted: "" for no answer. answers: the right ones; none of an unanswerable question.
    with_null: as version 2's script has it: right answers of nothing but articles and punctuation do not count, and
    empty answers match each other. Version 1.1's has no such rules: an answer "the" is worth F1 0 whatever is said.

    >>> answer_scores("the cat", ["A cat!", "the black cat"], with_null=False)
    (1.0, 1.0)
    """
    if with_null:
        answers = [answer for answer in answers if normalise(answer)] or [""]
    exact = max(float(normalise(predicted) == normalise(answer)) for answer in answers)
    return exact, max(_token_f1(predicted, answer, with_null=with_null) for answer in answers)


def normalise(answer: str) -> str:
    """Lower case, without punctuation (ASCII's), without articles, blanks made one: what SQuAD compares.

    >>> normalise("The  U.S.A., an  example")
    'usa example'
    """
    kept = "".join(character for character in answer.lower() if character not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", kept).split())


def _token_f1(predicted: str, answer: str, *, with_null: bool) -> float:
    said, right = normalise(predicted).split(), normalise(answer).split()
    if with_null and not (said and right):
        return float(said == right)
    common = sum((Counter(said) & Counter(right)).values())
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(right)
    return 2 * precision * recall / (precision + recall)
