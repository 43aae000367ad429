"""What every test relies on: no network, one thread, fixed seeds, real data where there is some."""

from __future__ import annotations

import os

# Before anything imports transformers or tokenizers, which read them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import gzip
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WriteRows = Callable[[Path, list[dict[str, Any]]], None]

# No deadline: the first example of a test pays for imports. On CI the examples are the same every time.
settings.register_profile("argprune", deadline=None)
settings.register_profile("argprune-ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("argprune-ci" if os.environ.get("CI") else "argprune")


def pytest_configure() -> None:
    """One thread: sums depend on their number in the last bits, and on tensors this small more threads only wait."""
    torch.set_num_threads(1)
    # In the background of a script Ctrl-C is ignored, which tests of interruption would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random state, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real tasks (GLUE, SQuAD, ...) that ARGPRUNE_DATA names; skips where it is not set."""
    folder = os.environ.get("ARGPRUNE_DATA")
    if not folder:
        pytest.skip("needs real data: set ARGPRUNE_DATA to a folder laid out as the how-to on data says")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"ARGPRUNE_DATA is {folder!r}, which is not a folder. Correct or unset it.")
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a two-layer BERT with a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("tiny-bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(60))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def write_rows() -> WriteRows:
    """Writes one part of a task: a gzip of JSON lines."""

    def write(path: Path, rows: list[dict[str, Any]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    return write


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory, write_rows: WriteRows) -> str:
    """Data folder with the task `words`: does the text hold an even word first?"""
    folder = tmp_path_factory.mktemp("data")
    rows = [
        {
            "id": i,
            "text": " ".join(f"w{(i * 7 + j * 3) % 60}" for j in range(3 + i % 6)),
            "label": (i * 7) % 2,
        }
        for i in range(240)
    ]
    for split, part in {"train": rows[:160], "dev": rows[160:200], "test": rows[200:]}.items():
        write_rows(folder / "words" / f"{split}.jsonl.gz", part)
    return str(folder)
