"""Tags of words and of their pieces, and files as CoNLL-2003 and WNUT-17 have them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import BertTokenizer

from argprune.tasks.data import load_task
from argprune.tasks.encoded import Encoded
from argprune.tasks.kinds import Entities, Sentence
from argprune.tasks.kinds.entities import tag_names
from argprune.tasks.texts import SPLITS

TAGS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
# A control character: of this word no piece is left.
DROPPED = "\x07"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Word pieces: one letter each; it drops control characters."""
    letters = [chr(ord("a") + at) for at in range(26)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    path = tmp_path_factory.mktemp("pieces") / "vocab.txt"
    path.write_text("\n".join(pieces))
    return BertTokenizer(vocab=str(path))


sentences = st.lists(
    st.tuples(st.text("abc", min_size=1, max_size=4) | st.just(DROPPED), st.sampled_from(TAGS)), min_size=1, max_size=12
).map(lambda pairs: Sentence(*map(tuple, zip(*pairs, strict=True))))


def task(rows: list[Sentence]) -> Entities:
    return Entities("t", TAGS, dict.fromkeys(SPLITS, rows))


@given(st.lists(sentences, min_size=1, max_size=4), st.integers(4, 24))
def test_first_pieces_bear_the_tags(tokenizer: Any, rows: list[Sentence], length: int) -> None:
    assume(any(word != DROPPED for row in rows for word in row.words[:1]))
    entities = task(rows)
    data = Encoded(rows, tokenizer, length, by_length=True, encode=entities.encode)
    for item, about in zip((data[at] for at in range(len(data))), data.about, strict=True):
        row = rows[about["row"]]
        labels = [label for label in item["labels"] if label != -100]
        assert [TAGS[label] for label in labels] == [row.tags[word] for word in about["words"]]
        pieces = tokenizer.convert_ids_to_tokens(item["input_ids"])
        firsts = [piece for piece, label in zip(pieces, item["labels"], strict=True) if label != -100]
        assert firsts == [row.words[word][0] for word in about["words"]]
        assert len(pieces) <= length
    # A network that is right about all it sees: what it does not see, it takes for no entity.
    labels = [np.array(data[at]["labels"]) for at in range(len(data))]
    scores = entities.measure(SimpleNamespace(inputs=data, predictions=labels, label_ids=labels))
    seen = {(about["row"], word) for about in data.about for word in about["words"]}
    unseen = [
        tag for at, row in enumerate(rows) for word, tag in enumerate(row.tags) if (at, word) not in seen and tag != "O"
    ]
    assert scores["accuracy"] == pytest.approx(1 - len(unseen) / sum(len(row.words) for row in rows))
    if not unseen and any(tag != "O" for row in rows for tag in row.tags):
        assert scores["f1"] == 1


def test_words_that_are_cut_off_count(tokenizer: Any) -> None:
    row = Sentence(("ab", "c", "de"), ("B-LOC", "O", "B-PER"))
    entities = task([row])
    data = Encoded([row], tokenizer, 5, encode=entities.encode)
    assert data.about == [{"row": 0, "words": [0, 1]}]
    labels = [np.array(data[0]["labels"])]
    scores = entities.measure(SimpleNamespace(inputs=data, predictions=labels, label_ids=labels))
    assert (scores["precision"], scores["recall"]) == (1.0, 0.5)


def test_sentences_without_pieces_are_not_trained_on_but_scored(tokenizer: Any) -> None:
    """A batch of them alone would have a loss of NaN."""
    rows = [Sentence((DROPPED,), ("B-LOC",)), Sentence(("ab",), ("B-PER",))]
    entities = task(rows)
    data = Encoded(rows, tokenizer, 8, encode=entities.encode)
    assert data.about == [{"row": 1, "words": [0]}]
    labels = [np.array(data[0]["labels"])]
    scores = entities.measure(SimpleNamespace(inputs=data, predictions=labels, label_ids=labels))
    assert (scores["precision"], scores["recall"], scores["accuracy"]) == (1.0, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"task t: of 1 sentences the tokenizer keeps no word \(max_length 8\)"):
        entities.encode(rows[:1], tokenizer, 8)


def test_padding(tokenizer: Any) -> None:
    rows = [Sentence(("ab",), ("B-LOC",)), Sentence(("c", "d", "e"), ("O", "O", "I-PER"))]
    entities = task(rows)
    batch = entities.collator(tokenizer)(
        [{key: value for key, value in item.items() if key != "about"} for item in entities.encode(rows, tokenizer, 9)]
    )
    assert batch["labels"].tolist() == [[-100, 1, -100, -100, -100], [-100, 0, 0, 4, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_conll_files(tmp_path: Path) -> None:
    """CoNLL-2003's four columns and marks of documents, and WNUT's two."""
    train = "-DOCSTART- -X- -X- O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\n\n\nPeter NNP I-NP B-PER\n"
    (tmp_path / "eng.train").write_text(train)
    (tmp_path / "eng.testa").write_text("-DOCSTART- -X- -X- O\n\nBonn NNP I-NP B-ORG\n")
    (tmp_path / "eng.testb").write_text("Peter\tI-PER\n \nEU\tO\n")
    found = load_task(str(tmp_path))
    assert isinstance(found, Entities)
    assert found.splits["train"] == [Sentence(("EU", "rejects"), ("I-ORG", "O")), Sentence(("Peter",), ("B-PER",))]
    assert found.splits["validation"] == [Sentence(("Bonn",), ("B-ORG",))]
    assert found.splits["test"] == [Sentence(("Peter",), ("I-PER",)), Sentence(("EU",), ("O",))]
    assert found.labels == ["O", "B-ORG", "I-ORG", "B-PER", "I-PER"]
    assert tag_names([Sentence(("a",), ("O",))]) == ["O"]
    (tmp_path / "eng.testb").write_text("10\u00a0000 x B-ORG\r\n\u3000\nMr. Li \tO\n")
    assert load_task(str(tmp_path)).splits["test"] == [
        Sentence(("10\u00a0000",), ("B-ORG",)),
        Sentence(("Mr. Li",), ("O",)),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("EU B-ORG\nx\n", r"test.conll, line 2: token 'x' without a tag"),
        ("EU B-ORG\n\nx ORG\n\n", r"test.conll, line 4: tag 'ORG'; a tag is O, B-TYPE or I-TYPE"),
        ("x B-GPE\n", r"test.conll, line 1: tag 'B-GPE' is of no type in train; known: O, B-ORG, I-ORG"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    for part in ("train", "dev"):
        (tmp_path / f"{part}.conll").write_text("EU B-ORG\n")
    (tmp_path / "test.conll").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_task(str(tmp_path))


def test_sentences_are_checked() -> None:
    with pytest.raises(ValueError, match="2 tokens, but 1 tags"):
        Sentence(("a", "b"), ("O",))
    with pytest.raises(ValueError, match="a sentence without tokens"):
        Sentence((), ())


def test_wnut(data_dir: Path) -> None:
    found = load_task("wnut17", data_dir)
    assert isinstance(found, Entities)
    counts = [sum(len(row.words) for row in found.splits[split]) for split in SPLITS]
    assert counts == [62_730, 15_733, 23_394]
    assert len(found.labels) == 13
