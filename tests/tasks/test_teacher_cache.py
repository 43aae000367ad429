"""A teacher's answers on disk: the same bits, whole whatever dies, and no more than fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification

from argprune.models import load_model
from argprune.models.teacher import Conventions, Teacher, Wanted
from argprune.tasks import teacher_cache
from argprune.tasks.teacher_cache import (
    Cache,
    Live,
    answer_bytes,
    cache_key,
    check_folder,
    estimated_bytes,
    open_answers,
)


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


def taken(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def test_what_would_not_fit_is_computed_every_time(
    teacher: Counts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = texts(*[5] * 100)
    cache = Cache(teacher, tmp_path / "measured" / "key")
    cache.answers(asked)
    cache.close()
    size = taken(tmp_path / "measured")

    def opened(limit: float) -> Any:
        return open_answers(teacher, tmp_path / "a" / "b", asked, limit, remove=None)

    # What a file has besides numbers is guessed from above.
    assert opened(1.2 * size).report()["cached"]
    refused = opened(size - 1)
    assert refused.report()["reason"].startswith("answers to 100 texts take 0.0 GiB of 0.0 GiB allowed")
    assert refused.answers(asked)[0]["logits"].shape == (2,)
    assert not (tmp_path / "a").exists()
    usage = type("Usage", (), {"free": size})
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda _: usage)
    assert "free in" in opened(2 * size).report()["reason"]


def test_a_shared_folder_grows_to_its_limit_and_no_further(teacher: Counts, tmp_path: Path) -> None:
    limit, cached = 5.5e5, []
    for seed in range(4):
        for key in "ab":
            asked = texts(*[9] * 30, seed=seed)
            answers = open_answers(teacher, tmp_path / "answers" / key, asked, limit, remove=None)
            answers.answers(asked)
            answers.close()
            cached.append(answers.report()["cached"])
            assert taken(tmp_path / "answers") <= limit
    assert cached == [True] * cached.count(True) + [False] * cached.count(False)
    assert 2 < cached.count(True) < 8
    # What is there is of use in a full folder, too.
    again = open_answers(teacher, tmp_path / "answers" / "a", texts(*[9] * 30, seed=0), limit, remove=None)
    again.answers(texts(*[9] * 30, seed=0))
    assert again.report() == {"cached": True, "asked": 30, "computed": 0}
    refused = open_answers(teacher, tmp_path / "answers" / "a", texts(*[9] * 30, seed=9), limit, remove=None)
    assert "beside 0.0 GiB that are there, of 0.0 GiB allowed" in refused.report()["reason"]


def test_a_resumed_run_counts_what_it_has(teacher: Counts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, asked = tmp_path / "run" / "teacher-answers", texts(*[5] * 100)
    monkeypatch.setattr(teacher_cache, "_SHARD_TEXTS", 10)

    def opened(asked: Any) -> Any:
        return open_answers(teacher, own / "key", asked, 1e9, remove=own)

    killed = opened(asked)
    killed.answers(asked[:90])
    size = taken(own)
    # Nine tenths are there, and a fifth of all is free.
    usage = type("Usage", (), {"free": 0.2 * size})
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda _: usage)
    resumed = opened(asked)
    resumed.answers(asked)
    assert resumed.report() == {"cached": True, "asked": 100, "computed": 10}
    # A disk that has filled up since: what is left of the run's folder goes with the run all the same.
    usage.free = 0  # type: ignore[attr-defined]
    full = opened([*asked, *texts(7)])
    assert not full.report()["cached"]
    assert own.exists()
    full.close()
    assert not own.exists()


def test_folders_that_cannot_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=rf"^distill cache {folder}: {tmp_path / 'file'} is a file; give a folder"):
            check_folder(folder)
    check_folder(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


def test_a_key_is_of_the_weights_and_of_what_is_wanted_and_read(folder: str, tmp_path: Path) -> None:
    def key(model: Any, wanted: Wanted = Wanted(), **conventions: Any) -> str:  # noqa: B008
        teacher = Teacher(model, wanted, conventions=Conventions(**conventions))
        return cache_key(teacher, torch.device("cpu"))

    model = load_model(folder, num_labels=2)
    model.save_pretrained(tmp_path / "copy")
    assert key(load_model(str(tmp_path / "copy"), num_labels=2)) == key(model)
    keys = {key(model), key(model, Wanted(scores=False)), key(model, Wanted(layers=(0,)))}
    keys |= {key(model, separator=3), key(model, order=(1, 0)), key(model, vocabulary=60)}
    keys.add(key(model.double()))
    with torch.no_grad():
        next(model.float().parameters())[3, 1] += 1e-6
    keys.add(key(model))
    assert len(keys) == 8
