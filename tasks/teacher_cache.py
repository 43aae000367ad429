"""A teacher's answers on disk, so that it is asked once about each text.

    FOLDER/<sha256 of the teacher's weights, what is wanted of it and what its arithmetic depends on>/*.safetensors

An answer is found by its text's tokens, which stand for data and tokenizer: runs on other rows, orders or batches share
a folder, and add to it what it lacks. Answers are those of `Teacher.answer`, in its dtype, to the bit. A shard is
written beside its place and moved there whole, under a name that no other process takes: nothing has to be locked, and
what a killed run leaves is complete or absent. Answers that wait for their shard are in memory; a killed run loses
them, and computes the same ones again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from argprune.models.teacher import Answer, Conventions, Teacher, Text, text_key

# A number to change with what files hold.
_FORMAT = 1
# A shard is written when it holds so many answers, or so many bytes.
_SHARD_TEXTS, _SHARD_BYTES = 256, 64 << 20
# What a file has for a tensor besides its numbers, at the most: name, type, shape, place, and the text's key.
_HEADER = 160
# How many of an answer's dimensions are tokens; logits have one where they have two dimensions.
_TOKEN_DIMS = {"start_logits": 1, "end_logits": 1, "embedding": 1, "layers": 1, "scores": 2}


class Live:
    """Answers that are computed whenever they are asked for.

    reason: why, for the report. remove: as of `Cache`; a run that was killed may have left it.
    """

    def __init__(self, teacher: Teacher, reason: str, *, remove: Path | None = None) -> None:
        self._teacher, self._reason, self._remove = teacher, reason, remove

    def answers(self, texts: Sequence[Text]) -> list[Answer]:
        """The teacher's answers, one a text."""
        return [self._teacher.answer(text) for text in texts]

    def close(self) -> None:
        """Nothing is open; remove what there is to remove."""
        _remove(self._remove)

    def report(self) -> dict[str, Any]:
        """What metrics.json says."""
        return {"cached": False, "reason": self._reason}


class Cache:
    """Answers from a folder; those that it lacks are computed, and kept in it.

    folder: that of one key, made with the first shard. remove: a folder that `close` removes, with all of it. Raises
    ValueError for a shard that cannot be read.
    """

    def __init__(self, teacher: Teacher, folder: Path, *, remove: Path | None = None) -> None:
        self._teacher, self._folder, self._remove = teacher, folder, remove
        # The open shard in which a text's answer is.
        self._shards: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self._open(path)
        self._waiting: dict[str, dict[str, Tensor]] = {}
        self._waiting_bytes = 0
        self.asked, self.computed = 0, 0

    def answers(self, texts: Sequence[Text]) -> list[Answer]:
        """The teacher's answers, one a text."""
        return [self._answer(text) for text in texts]

    def lacking(self, texts: Iterable[Text]) -> Iterator[Text]:
        """Of some texts those whose answers are not on disk, each once."""
        known = set(self._shards)
        for text in texts:
            key = text_key(text)
            if key not in known:
                known.add(key)
                yield text

    def close(self) -> None:
        """Write what waits, or remove all."""
        if self._remove is None:
            self._write()
        else:
            self._shards.clear()
            _remove(self._remove)

    def report(self) -> dict[str, Any]:
        """What metrics.json says: how often the teacher was asked, and how often it had to compute."""
        return {"cached": True, "asked": self.asked, "computed": self.computed}

    def _answer(self, text: Text) -> Answer:
        key = text_key(text)
        self.asked += 1
        if key in self._shards:
            return {name: self._shards[key].get_tensor(f"{key}.{name}") for name in self._names(key)}
        if key not in self._waiting:
            self.computed += 1
            answer = {name: value.cpu().contiguous() for name, value in self._teacher.answer(text).items()}
            self._waiting[key] = answer
            self._waiting_bytes += answer_bytes(answer)
            if len(self._waiting) >= _SHARD_TEXTS or self._waiting_bytes >= _SHARD_BYTES:
                self._write()
            return answer
        return self._waiting[key]

    def _names(self, key: str) -> list[str]:
        return json.loads(self._shards[key].metadata()["names"])

    def _write(self) -> None:
        if not self._waiting:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{uuid.uuid4().hex}.safetensors"
        tensors = {f"{key}.{name}": value for key, answer in self._waiting.items() for name, value in answer.items()}
        names = list(next(iter(self._waiting.values())))
        metadata = {"keys": json.dumps(list(self._waiting)), "names": json.dumps(names)}
        temporary = path.with_suffix(".tmp")
        save_file(tensors, temporary, metadata)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        self._waiting, self._waiting_bytes = {}, 0
        self._open(path)

    def _open(self, path: Path) -> None:
        try:
            shard = safe_open(path, "pt")
            keys = json.loads(shard.metadata()["keys"])
        except (SafetensorError, OSError, TypeError, KeyError) as error:
            raise ValueError(f"Teacher's answers {path} cannot be read: {error}. Remove the file.") from error
        self._shards |= dict.fromkeys(keys, shard)


def open_answers(
    teacher: Teacher, folder: Path, texts: Iterable[Text], limit: float, *, remove: Path | None
) -> Cache | Live:
    """The cache in a folder, where what is to come fits; answers computed every time where it does not.

    folder: see `Cache`; those of all keys lie side by side. texts: those that will be asked about; the answers that are
    not there yet are estimated by one of them. limit: bytes that all keys may take together; nine tenths of what is
    free on the disk is a limit to what is not there yet. remove: see `Cache`.
    """
    cache = Cache(teacher, folder, remove=remove)
    lacking = cache.lacking(texts)
    sample = next(lacking, None)
    if sample is None:
        return cache
    tokens = len(sample["input_ids"])
    lengths = [tokens, *(len(text["input_ids"]) for text in lacking)]
    answer = teacher.answer(sample)
    size = estimated_bytes(answer, tokens, lengths) + len(lengths) * len(answer) * _HEADER
    held = sum(path.stat().st_size for path in folder.parent.glob("*/*.safetensors"))
    existing = _existing(folder)
    free = shutil.disk_usage(existing).free
    what = f"answers to {len(lengths)} texts take {_gib(size)}"
    if held + size > limit:
        beside = f" beside {_gib(held)} that are there," if held else ""
        return Live(teacher, f"{what}{beside} of {_gib(limit)} allowed (cache_gib)", remove=remove)
    if size > 0.9 * free:
        return Live(teacher, f"{what} of {_gib(free)} free in {existing}", remove=remove)
    return cache


def check_folder(folder: Path) -> None:
    """Raise ValueError, one line, where a folder for answers cannot be made or written to."""
    existing = _existing(folder)
    if not existing.is_dir():
        raise ValueError(f"distill cache {folder}: {existing} is a file; give a folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"distill cache {folder}: {existing} cannot be written to; give another folder.")


def cache_key(teacher: Teacher, device: torch.device) -> str:
    """What an answer's bits depend on besides its text, as a sha256."""
    digest, model = hashlib.sha256(), teacher.model
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    depends = {
        "format": _FORMAT,
        "config": _configuration(model),
        "wanted": asdict(teacher.wanted),
        # Only where there are some: teachers without have the keys that they had before there were any.
        **({} if teacher.conventions == Conventions() else {"conventions": asdict(teacher.conventions)}),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        # Sums depend on their number in the last bits.
        "threads": torch.get_num_threads(),
    }
    digest.update(json.dumps(depends, sort_keys=True).encode())
    return digest.hexdigest()


def answer_bytes(answer: Answer) -> int:
    """The size of an answer."""
    return sum(value.numel() * value.element_size() for value in answer.values())


def estimated_bytes(answer: Answer, tokens: int, lengths: Sequence[int]) -> int:
    """The size of the answers to texts of given lengths, by one answer, to a text of `tokens`."""
    total = 0.0
    for name, value in answer.items():
        power = value.dim() - 1 if name == "logits" else _TOKEN_DIMS[name]
        size = value.numel() * value.element_size()
        total += sum(size * (length / tokens) ** power for length in lengths)
    return round(total)


def _configuration(model: Any) -> Mapping[str, Any]:
    # Where the folder was, and who wrote it, decides nothing.
    values = model.config.to_dict()
    return {key: value for key, value in values.items() if key not in ("_name_or_path", "transformers_version")}


def _existing(path: Path) -> Path:
    """A path, or what there is of the way to it."""
    # Not `Path.exists`, which raises where a folder on the way may not be read.
    while not os.path.exists(path):
        path = path.parent
    return path


def _remove(folder: Path | None) -> None:
    if folder is not None and folder.exists():
        shutil.rmtree(folder)


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
