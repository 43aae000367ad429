"""Preprocessing kept on disk is what would have been made, and is made again where anything differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import pytest
from transformers import PreTrainedTokenizerFast

from argprune.models import load_tokenizer
from argprune.tasks.kinds import Answer, DataToText, Described, Entities, MaskedLanguage, Question, Sentence
from argprune.tasks.kinds.spans import SpanExtraction
from argprune.tasks.texts import SPLITS, Classification, Graded, Regression, Row, Task

T = TypeVar("T")


@pytest.fixture(scope="module")
def tokenizer(tiny_model: str) -> Any:
    source = load_tokenizer(tiny_model)
    assert isinstance(source, PreTrainedTokenizerFast)
    names = ("pad", "unk", "cls", "sep", "mask")
    special: dict[str, Any] = {f"{name}_token": f"[{name.upper()}]" for name in names}
    return PreTrainedTokenizerFast(tokenizer_object=source.backend_tokenizer, eos_token="[SEP]", **special)


def splits(*rows: T) -> dict[str, list[T]]:
    """The same rows in every split."""
    return {split: list(rows) for split in SPLITS}


CONTEXT = " ".join(f"w{i}" for i in range(40))
TASKS: dict[str, tuple[Task, list[Any]]] = {
    "classes": (
        task := Classification("t", ["a"], splits(Row("w1 w2", 0), Row("w3", 0))),
        [Row("w9", 0), Row("w8 w7", 0)],
    ),
    "pairs": (task, [Row("w1", 0, "w2"), Row("w1 w7 w8", 1, "w3")]),
    "numbers": (Regression("t", splits(Graded("w1", 0.1))), [Graded("w1", 1 / 3), Graded("w2", 5.0)]),
    "entities": (
        Entities("t", ["O", "B-x"], splits(Sentence(("w1",), ("O",)))),
        [Sentence(("w1", "w2"), ("O", "B-x")), Sentence(("w3",), ("O",))],
    ),
    "questions": (
        SpanExtraction("t", splits(Question("w1", CONTEXT, ()))),
        [Question("w1", CONTEXT, (Answer("w30", CONTEXT.index("w30")),)), Question("w2", "w3", ())],
    ),
    "texts": (
        DataToText("t", splits(Described("w1", ("w2",)))),
        [Described("w1 w2", ("w3",)), Described("w4", ("w5 w6", "w7"))],
    ),
    "masked": (MaskedLanguage("t", splits("w1")), [CONTEXT, "w1 w2"]),
}


@pytest.mark.parametrize("name", TASKS)
def test_with_and_without(
    name: str, tokenizer: Any, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, rows = TASKS[name]
    plain = task.encode(rows, tokenizer, 16)
    monkeypatch.setenv("ARGPRUNE_CACHE", str(tmp_path))
    assert task.encode(rows, tokenizer, 16) == plain
    (kept,) = tmp_path.iterdir()
    assert kept.suffix == ".arrow"
    written = kept.stat().st_mtime_ns
    # Read back, in the same types, and not written again.
    again = task.encode(rows, tokenizer, 16)
    assert again == plain
    assert [type(value) for item in again for value in item.values()] == [
        type(value) for item in plain for value in item.values()
    ]
    assert kept.stat().st_mtime_ns == written
    # Whatever differs is another file: length, rows, or tokenizer.
    task.encode(rows, tokenizer, 17)
    task.encode(rows[:1], tokenizer, 16)
    other = PreTrainedTokenizerFast.from_pretrained(tiny_model)
    other.add_special_tokens({"mask_token": "[MASK]", "eos_token": "[SEP]", "additional_special_tokens": ["w1"]})
    task.encode(rows, other, 16)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_file_that_is_no_arrow_file(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, rows = TASKS["classes"]
    monkeypatch.setenv("ARGPRUNE_CACHE", str(tmp_path))
    task.encode(rows, tokenizer, 16)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:40])
    with pytest.raises(ValueError, match=rf"{kept.name}: cannot be read .*; remove it"):
        task.encode(rows, tokenizer, 16)


def test_a_folder_that_cannot_be_made_is_one_line(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ARGPRUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"ARGPRUNE_CACHE is .*file, in which nothing can be written"):
        TASKS["classes"][0].encode(TASKS["classes"][1], tokenizer, 8)
