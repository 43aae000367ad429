"""Data-to-text: what a model is given, what it learns, what it writes, and what that is measured against."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from argprune.models import load_model, load_tokenizer
from argprune.tasks.data import load_task
from argprune.tasks.encoded import Encoded
from argprune.tasks.kinds import DataToText, Described
from argprune.tasks.kinds.generation import Architecture
from argprune.tasks.kinds.untrained import make_writer
from argprune.tasks.texts import SPLITS

ROWS = [Described(f"name[n{i}], area[a{i % 3}]", (f"n{i} is in a{i % 3}", f"in a{i % 3} is n{i}")) for i in range(12)]
KINDS: tuple[Architecture, ...] = ("seq2seq-lm", "causal-lm")


def task(kind: Architecture, rows: list[Described] = ROWS, **options: Any) -> DataToText:
    return DataToText("t", dict.fromkeys(SPLITS, rows), kind, **options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = tmp_path_factory.mktemp("writers")
    for kind in KINDS:
        make_writer(task(kind), path / kind, vocab_size=300, layers=1, width=16, heads=2, positions=96)
    return {kind: str(path / kind) for kind in KINDS}


texts = st.text("abc ", min_size=1, max_size=40).filter(str.strip)


@given(st.lists(st.builds(Described, texts, st.tuples(texts)), min_size=1, max_size=4), st.integers(8, 40))
def test_examples(folders: dict[str, str], rows: list[Described], length: int) -> None:
    tokenizer = load_tokenizer(folders["causal-lm"])
    end = tokenizer.eos_token_id
    for kind in KINDS:
        items = task(kind).encode(rows, tokenizer, length)
        for at, (item, row) in enumerate(zip(items, rows, strict=True)):
            assert item["about"] == {"row": at}
            assert max(len(item["input_ids"]), len(item["labels"])) <= length
            learned = [token for token in item["labels"] if token != -100]
            assert learned[-1] == end
            whole = len(tokenizer(row.texts[0])["input_ids"]) + 1 == len(learned)
            assert not whole or tokenizer.decode(learned[:-1]) == row.texts[0]
            if kind == "causal-lm":
                # Source, end token, target, end token, of which the latter two are learned.
                given = item["input_ids"][: -len(learned)]
                assert (item["input_ids"][-len(learned) :], given[-1]) == (learned, end)
                assert row.source.startswith(str(tokenizer.decode(given[:-1])))
                assert len(given) > 1


@given(texts, texts, texts, st.integers(8, 40), st.integers(1, 60))
def test_what_a_causal_model_is_given_does_not_depend_on_the_text(
    folders: dict[str, str], source: str, one: str, other: str, length: int, room: int
) -> None:
    tokenizer = load_tokenizer(folders["causal-lm"])
    rows = [Described(source, (text,)) for text in (one, other)]
    given = []
    for item in task("causal-lm", rows, new_tokens=room).encode(rows, tokenizer, length):
        assert len(item["input_ids"]) <= length
        given.append(item["input_ids"][: item["labels"].count(-100)])
    whole = tokenizer(source)["input_ids"]
    assert given[0] == given[1] == [*whole[: len(given[0]) - 1], tokenizer.eos_token_id]
    assert len(given[0]) - 1 == min(len(whole), length - 2 - min(room, (length - 2) // 2))


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_model_writes_does_not_depend_on_its_batch(folders: dict[str, str], kind: Architecture) -> None:
    """Nor on padding: each row alone, by transformers' own greedy search, writes the same."""
    tokenizer, model = load_tokenizer(folders[kind]), load_model(folders[kind], kind=kind)
    rows = [Described("x", ("y",)), *ROWS[:3], Described("name[n1], area[a1], food[f1], price[p1]", ("abc",))]
    writer = task(kind, rows, new_tokens=6)
    items = [{key: item[key] for key in item if key != "about"} for item in writer.encode(rows, tokenizer, 64)]
    batch = writer.collator(tokenizer)(items)
    written = writer.generate(model, batch, tokenizer)
    assert written.shape[0] == len(rows)
    assert written.shape[1] <= 6
    end = tokenizer.eos_token_id
    for row, tokens in zip(rows, written.tolist(), strict=True):
        prompt = tokenizer(row.source)["input_ids"] + ([end] if kind == "causal-lm" else [])
        ids = torch.tensor([prompt])
        alone = model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=end
        )[0, 1 if kind == "seq2seq-lm" else len(prompt) :].tolist()
        assert [token for token in tokens if token != -100] == (
            alone[: alone.index(end) + 1] if end in alone else alone
        )


def test_all_texts_of_a_source_count(folders: dict[str, str]) -> None:
    tokenizer = load_tokenizer(folders["seq2seq-lm"])
    writer = task("seq2seq-lm")
    data = Encoded(ROWS, tokenizer, 64, by_length=True, encode=writer.encode)
    # The second reference of each, in the order of the data, and an end token with padding behind it.
    written = [tokenizer(ROWS[about["row"]].texts[1])["input_ids"] for about in data.about]
    longest = max(map(len, written))
    padded = [[*row, tokenizer.eos_token_id, *[-100] * (longest - len(row))] for row in written]
    prediction = SimpleNamespace(inputs=data, predictions=torch.tensor(padded).numpy(), label_ids=None)
    assert writer.texts(prediction) == [ROWS[about["row"]].texts[1] for about in data.about]
    scores = writer.measure(prediction)
    assert scores.pop("nist") > 1
    assert scores == pytest.approx({"bleu": 1.0, "chrf": 1.0, "rouge_l": 1.0})


def test_rows_of_a_folder(tmp_path: Path, write_rows: Any) -> None:
    """Training learns one text after another; evaluation has one row a source, with all its texts."""
    rows = [{"mr": f"m[{i // 2}]", "ref": f"text {i}"} for i in range(6)]
    triples = [{"triples": ["A_b | is | c", "d | is | e"], "refs": ["one", "two"]}]
    for part in ("train", "dev", "test"):
        write_rows(tmp_path / "e2e" / f"{part}.jsonl.gz", rows)
        write_rows(tmp_path / "webnlg" / f"{part}.jsonl.gz", triples)
    task = load_task("e2e", tmp_path)
    assert [row.texts for row in task.splits["train"]] == [(f"text {i}",) for i in range(6)]
    assert task.splits["test"][2] == Described("m[2]", ("text 4", "text 5"))
    assert load_task("webnlg", tmp_path).splits["test"] == [Described("A b | is | c && d | is | e", ("one", "two"))]
    assert len(load_task("webnlg", tmp_path).splits["train"]) == 2


def test_what_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="objective 'masked-lm'; choose seq2seq-lm or causal-lm"):
        DataToText("t", dict.fromkeys(SPLITS, ROWS), "masked-lm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="beams 0, new_tokens 80; at least 1 of each"):
        task("causal-lm", beams=0)
    with pytest.raises(ValueError, match="no end-of-text token"):
        task("causal-lm").encode(ROWS, SimpleNamespace(eos_token_id=None), 16)
    with pytest.raises(ValueError, match="none of them empty"):
        Described("a", (" ",))
    with pytest.raises(ValueError, match="is there already"):
        make_writer(task("seq2seq-lm"), Path(folders["seq2seq-lm"]))
    with pytest.raises(ValueError, match="heads divide the width"):
        make_writer(task("seq2seq-lm"), tmp_path / "new", width=10, heads=3)


def test_real_texts(data_dir: Path) -> None:
    e2e, webnlg = load_task("e2e", data_dir), load_task("webnlg", data_dir)
    assert [len(e2e.splits[split]) for split in SPLITS[1:]] == [547, 630]
    assert sum(len(row.texts) for row in webnlg.splits["test"]) == pytest.approx(4928, abs=50)
