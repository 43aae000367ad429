"""A teacher's answers on disk: the same bits, whole whatever dies, and no more than fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification

from argprune.models import load_model
from argprune.models.teacher import Teacher, Wanted
from argprune.tasks import teacher_cache
from argprune.tasks.teacher_cache import Cache, Live, answer_bytes, cache_key, estimated_bytes, open_answers


@pytest.fixture(scope="module")
def folder(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a classifier."""
    torch.manual_seed(0)
    made = str(tmp_path_factory.mktemp("teacher"))
    BertForSequenceClassification(BertConfig.from_pretrained(tiny_model, num_labels=2)).save_pretrained(made)
    return made


class Counts(Teacher):
    """A teacher that counts its answers."""

    asked = 0

    def answer(self, text: Any) -> dict[str, torch.Tensor]:
        self.asked += 1
        return super().answer(text)


@pytest.fixture
def teacher(folder: str) -> Counts:
    return Counts(load_model(folder, num_labels=2), Wanted())


def texts(*lengths: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(4, 60, (length,), generator=generator)} for length in lengths]


def test_cached_answers_are_the_live_ones(teacher: Counts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_cache, "_SHARD_TEXTS", 2)
    asked = texts(3, 5, 9, 5, 1)
    live = Live(teacher, "to compare").answers(asked)
    teacher.asked = 0
    cache = Cache(teacher, tmp_path / "key")
    # Computed, from memory, and from shards: in any order, any number of times, by any process.
    first = cache.answers(asked)
    second = cache.answers(asked[::-1])[::-1]
    cache.close()
    third = Cache(teacher, tmp_path / "key").answers(asked)
    assert teacher.asked == len(asked)
    for answers in (first, second, third):
        for found, wanted in zip(answers, live, strict=True):
            assert set(found) == set(wanted)
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)
            assert all(found[name].dtype == wanted[name].dtype for name in wanted)
    assert len(list((tmp_path / "key").iterdir())) == 3


def test_what_a_kill_leaves_is_whole(teacher: Counts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    cache = Cache(teacher, tmp_path / "key")
    cache.answers(texts(3, 4))
    monkeypatch.setattr(teacher_cache.os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        cache.close()
    monkeypatch.undo()
    again = Cache(teacher, tmp_path / "key")
    again.answers(texts(3, 4))
    assert again.report() == {"cached": True, "asked": 2, "computed": 2}


def test_shards_that_cannot_be_read_are_named(teacher: Counts, tmp_path: Path) -> None:
    cache = Cache(teacher, tmp_path / "key")
    cache.answers(texts(3))
    cache.close()
    [shard] = (tmp_path / "key").iterdir()
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"^Teacher's answers {shard} cannot be read: .*Remove the file\.$"):
        Cache(teacher, tmp_path / "key")
    save_file({"x": torch.zeros(1)}, shard)
    with pytest.raises(ValueError, match="cannot be read"):
        Cache(teacher, tmp_path / "key")


def test_sizes_are_known_beforehand(teacher: Counts) -> None:
    asked = texts(3, 5, 9, 5, 1, 16)
    answers = [teacher.answer(text) for text in asked]
    lengths = [len(text["input_ids"]) for text in asked]
    exact = sum(answer_bytes(answer) for answer in answers)
    for answer, length in zip(answers, lengths, strict=True):
        assert estimated_bytes(answer, length, lengths) == pytest.approx(exact, abs=1)


def test_what_would_not_fit_is_computed_every_time(
    teacher: Counts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [sample] = texts(5)
    size = estimated_bytes(teacher.answer(sample), 5, [5] * 100)

    def opened(limit: float) -> Any:
        return open_answers(teacher, tmp_path / "a" / "b", [5] * 100, sample, limit, remove=None)

    assert opened(size).report()["cached"]
    refused = opened(size - 1)
    assert refused.report()["reason"].startswith("answers to 100 texts take 0.0 GiB of 0.0 GiB allowed")
    assert refused.answers([sample])[0]["logits"].shape == (2,)
    usage = type("Usage", (), {"free": size})
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda _: usage)
    assert "free in" in opened(size).report()["reason"]


def test_a_key_is_of_the_weights_and_of_what_is_wanted(folder: str, tmp_path: Path) -> None:
    def key(model: Any, wanted: Wanted = Wanted()) -> str:  # noqa: B008
        return cache_key(model, wanted, torch.device("cpu"))

    model = load_model(folder, num_labels=2)
    model.save_pretrained(tmp_path / "copy")
    assert key(load_model(str(tmp_path / "copy"), num_labels=2)) == key(model)
    keys = {key(model), key(model, Wanted(scores=False)), key(model, Wanted(layers=(0,)))}
    keys.add(key(model.double()))
    with torch.no_grad():
        next(model.float().parameters())[3, 1] += 1e-6
    keys.add(key(model))
    assert len(keys) == 5
