"""Language modelling of text files in a folder: which file becomes which split, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import os
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argprune.tasks.data import list_tasks, load_task
from argprune.tasks.language import Language, read_language
from argprune.tasks.texts import SPLITS


def write(path: Path, text: str | bytes) -> Path:
    """A file, or with such a name a gzip, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def load(name: str, data_dir: Path | None = None) -> Language:
    task = load_task(name, data_dir)
    assert isinstance(task, Language)
    return task


def test_a_file_a_split(tmp_path: Path) -> None:
    first, second = (
        " \n = First = \n \n one two \n = x = \n\n = = Part = = \n\n a = b \n\n",
        " = Second = \n\n three \n",
    )
    write(tmp_path / "wiki" / "train.txt.gz", first + second)
    write(tmp_path / "wiki" / "valid.txt.gz", "no title at all\n")
    write(tmp_path / "wiki" / "test.txt.gz", " = T = \n text \n")
    assert [info.name for info in list_tasks(tmp_path)] == ["stdlib-docs", "stdlib-lm", "wiki"]
    task = load("wiki", tmp_path)
    assert list(task.splits["train"]) == [first, second]
    assert list(task.splits["validation"]) == ["no title at all\n"]
    assert (task.name, task.kind, task.metric, task.larger_is_better) == ("wiki", "causal-lm", "perplexity", False)


def test_a_path_is_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain or packed, and whatever else lies there."""
    for name in ("train.txt", "validation.txt.gz", "test.txt", "notes.txt", "deeper/more.txt"):
        write(tmp_path / "mine" / name, f"Text of {name}.\r\n")
    expected = {
        split: [f"Text of {name}.\r\n"]
        for split, name in zip(SPLITS, ("train.txt", "validation.txt.gz", "test.txt"), strict=True)
    }
    assert load(str(tmp_path / "mine")).splits == expected
    monkeypatch.chdir(tmp_path / "mine")
    assert load(".").splits == load("../mine").splits == expected
    assert load(".").name == "mine"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("~/mine").splits == expected
    with pytest.raises(ValueError, match=r"No folder '\./none'\. Give the folder of a task"):
        load_task("./none")


def test_a_path_may_be_of_classification(tiny_data: str) -> None:
    task = load_task(os.path.join(tiny_data, "words"))
    assert (task.kind, task.name) == ("classification", "words")


def test_form_feeds_stand_between_documents(tmp_path: Path) -> None:
    for part in ("valid", "test"):
        write(tmp_path / f"{part}.txt", "a")
    write(tmp_path / "train.txt", "one\n\f\ntwo \f two\n \f\n\n\f\n\n = Three = \n\nthree\n\n = Four = \n\nfour")
    assert load(str(tmp_path)).splits["train"] == [
        "one\n",
        "two \f two\n",
        "\n = Three = \n\nthree\n\n",
        " = Four = \n\nfour",
    ]


@given(st.text("aé日\N{GRINNING FACE}\n", min_size=60, max_size=300))
def test_one_file_is_cut_by_its_bytes(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    text = f"x{text}y{'z' * (len(text.encode()) // 8 + 4)}"
    folder = tmp_path_factory.mktemp("one")
    write(folder / "enwik8", text)
    task = read_language(folder)
    pieces = [document for split in SPLITS for document in task.splits[split]]
    assert len(pieces) == 3
    assert "".join(pieces) == text
    total, end = len(text.encode()), 0
    for piece, share in zip(pieces, (0.9, 0.95), strict=False):
        end += len(piece.encode())
        # A cut within a character moves behind it.
        assert int(share * total) <= end <= share * total + 3


def test_tiny_shakespeare(data_dir: Path) -> None:
    task = load("shakespeare", data_dir)
    assert [len("".join(task.splits[split])) for split in SPLITS] == [1_003_854, 55_770, 55_770]


@given(st.lists(st.text("abc ", min_size=1, max_size=9).filter(str.strip), min_size=3, max_size=40, unique=True))
def test_many_files_are_split_by_their_contents(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder, other = tmp_path_factory.mktemp("many"), tmp_path_factory.mktemp("other")
    for number, text in enumerate(texts):
        write(folder / f"{number}.txt", text)
        write(other / f"{len(texts) - number}.txt.gz", text)
    write(other / "copy.txt", texts[0])
    task = read_language(folder)
    assert read_language(other).splits == task.splits
    assert sorted(chain.from_iterable(task.splits.values())) == sorted(texts)
    held = (len(texts) + 19) // 20
    assert [len(task.splits[split]) for split in SPLITS[1:]] == pytest.approx([held, held], abs=1)
    first, last = (
        hashlib.sha256(task.splits[split][at].encode()).digest() for split, at in (("train", -1), ("test", 0))
    )
    assert first < last


def test_files_that_are_no_data(tmp_path: Path) -> None:
    """A folder of rows with their licence is no text; a readme is none either."""
    write(tmp_path / "rows" / "train.jsonl.gz", '{"text": "a", "label": "x"}')
    write(tmp_path / "rows" / "terms.txt", "You may not.")
    write(tmp_path / "about" / "SOURCE-README.txt", "Read me.")
    write(tmp_path / "about" / "LICENSE", "You may.")
    write(tmp_path / "text" / "all.txt", "a" * 100)
    write(tmp_path / "text" / "LICENSE.txt", "You may.")
    write(tmp_path / "text" / "licence.txt.gz", "You may.")
    assert {info.name for info in list_tasks(tmp_path)} == {"stdlib-docs", "stdlib-lm", "text"}
    assert "".join(chain.from_iterable(load("text", tmp_path).splits.values())) == "a" * 100
    with pytest.raises(ValueError, match=r"about: no text\. Give train\.txt, valid\.txt and test\.txt"):
        load_task(str(tmp_path / "about"))


def test_articles_about_licences_are_data(tmp_path: Path) -> None:
    names = ["driver-license-renewal", "noticeboard", "copying-machines", "readmes"]
    for name in names:
        write(tmp_path / "articles" / f"{name}.txt", f"Of {name}.")
    splits = load("articles", tmp_path).splits
    assert sorted(chain.from_iterable(splits.values())) == sorted(f"Of {name}." for name in names)


def test_what_is_refused(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write(tmp_path / f"{part}.txt", "text\n")
    with pytest.raises(ValueError, match=r"has train\.txt, but no valid\.txt or validation\.txt"):
        load_task(str(tmp_path))
    valid = write(tmp_path / "valid.txt.gz", " \n\n")
    with pytest.raises(ValueError, match=r"valid\.txt\.gz: holds no text"):
        load_task(str(tmp_path))
    valid.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"valid\.txt\.gz: Not a gzipped file"):
        load_task(str(tmp_path))
    valid.write_bytes(gzip.compress(b"some text " * 100)[:-9])
    with pytest.raises(ValueError, match=r"valid\.txt\.gz: Compressed file ended"):
        load_task(str(tmp_path))
    write(valid, b"one\ntwo \xff three\n")
    with pytest.raises(ValueError, match=r"valid\.txt\.gz, line 2: byte 0xff is no UTF-8 \(invalid start byte\)"):
        load_task(str(tmp_path))
    write(tmp_path / "validation.txt", "more")
    with pytest.raises(ValueError, match=r"valid\.txt\.gz and validation\.txt are both split 'validation'; keep one"):
        load_task(str(tmp_path))


def test_what_is_refused_of_one_file_and_of_few(tmp_path: Path) -> None:
    write(tmp_path / "one" / "all.txt", "a")
    with pytest.raises(ValueError, match=r"all\.txt: of its 1 bytes, those of split 'train' hold no text"):
        load_task(str(tmp_path / "one"))
    # The line counts from the file's top, not from where its piece begins.
    write(tmp_path / "one" / "all.txt", b"abc\n" * 100 + b"\xc3(\n")
    with pytest.raises(ValueError, match=r"all\.txt, line 101: byte 0xc3 is no UTF-8 \(invalid continuation byte\)"):
        load_task(str(tmp_path / "one"))
    for name in ("a", "b", "c"):
        write(tmp_path / "few" / f"{name}.txt", "same" if name > "a" else "other")
    with pytest.raises(ValueError, match=r"few: 3 text files, 2 of them different, such as a\.txt\. Name them as"):
        load_task(str(tmp_path / "few"))
