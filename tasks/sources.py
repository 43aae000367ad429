"""Where a task's rows come from, and how they become three splits; every kind of task reads them by the same code.

A source has parts, such as train and dev. With a test part, dev validates. Without one, dev is the test (it reports,
and never trains), and a tenth of train, by a hash of the text, validates. A source of one part alone is cut by the same
hash: 80 % train, 10 % validate, 10 % test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from argprune.tasks.rows import ENDINGS, Parse, first_row, read_rows

T = TypeVar("T")

# What a part may be called; the first that is there counts.
TRAIN = ("train", "train_10k", "train_rebuilt")
DEV = ("dev", "dev_matched", "valid", "validation")
TEST = ("test",)
# A second test set, of texts unlike those of training: it is measured beside the first.
MORE_TESTS: Mapping[str, str] = {"dev_mismatched": "test_mismatched"}
# The part that a single file is.
ALL = "all"
_PARTS = frozenset({*TRAIN, *DEV, *TEST, *MORE_TESTS})
# CoNLL-2003's own names, which have no ending.
_CONLL: Mapping[str, str] = {"eng.train": "train", "eng.testa": "dev", "eng.testb": "test"}


class Source(Protocol):
    """Rows in parts."""

    @property
    def name(self) -> str:
        """The task's."""

    @property
    def place(self) -> str:
        """Where it is, for messages."""

    @property
    def parts(self) -> Sequence[str]:
        """Their names."""

    def read(self, part: str, parse: Parse[T]) -> list[T]:
        """Every row of a part as `parse` takes it; ValueError says where a bad one is."""

    def first(self, part: str) -> Mapping[str, Any] | None:
        """The first row of a part as it is; None where it has none."""


@dataclass(frozen=True)
class Files:
    """Rows in files: one a part, by the parts' names."""

    name: str
    place: str
    paths: Mapping[str, Path]

    @staticmethod
    def of(path: Path) -> Files:
        """Those of a folder, by their names without endings, or a single file, which is the part `ALL`.

        Raises ValueError for two files of one part, and a file of no known format.
        """
        if path.is_file() and not path.name.endswith(ENDINGS):
            raise ValueError(f"{path}: rows are in files that end with {', '.join(ENDINGS)}; text is in folders.")
        if path.is_file():
            return Files(_stem(path), str(path), {ALL: path})
        found: dict[str, Path] = {}
        for file in sorted(path.iterdir()) if path.is_dir() else []:
            if (file.name.endswith(ENDINGS) or file.name in _CONLL) and file.is_file():
                part = _stem(file)
                twin = found.setdefault(part, file)
                if twin is not file and part in _PARTS:
                    raise ValueError(f"{path}: {twin.name} and {file.name} are both part {part!r}; keep one of them.")
        return Files(path.name, str(path), found)

    @property
    def parts(self) -> Sequence[str]:
        """Their names."""
        return list(self.paths)

    def read(self, part: str, parse: Parse[T]) -> list[T]:
        """`read_rows`."""
        return read_rows(self.paths[part], parse)

    def first(self, part: str) -> Mapping[str, Any] | None:
        """`first_row`."""
        return first_row(self.paths[part])


def holds_rows(folder: Path) -> bool:
    """Whether a folder has a part of rows, and so is no folder of text, unless it has train.txt."""
    if not folder.is_dir() or any((folder / f"train.txt{packed}").is_file() for packed in ("", ".gz")):
        return False
    return any(
        (file.name.endswith(ENDINGS) or file.name in _CONLL) and _stem(file) in _PARTS for file in folder.iterdir()
    )


def part_of(source: Source, names: Sequence[str]) -> str | None:
    """The first of some parts that a source has."""
    return next((name for name in names if name in source.parts), None)


def training_part(source: Source) -> str:
    """The part that trains. Raises ValueError where a source has no parts to train on and to report."""
    if list(source.parts) == [ALL]:
        return ALL
    train, dev = part_of(source, TRAIN), part_of(source, DEV)
    if train is None or dev is None:
        given = ", ".join(source.parts) or "none"
        raise ValueError(
            f"{source.name}: needs a train part and a dev part, such as train.csv and dev.csv; has {given}."
        )
    return train


def read_splits(source: Source, parse: Parse[T], text: Callable[[T], str]) -> dict[str, list[T]]:
    """Train, validation and test, and more tests where a source has them, by the rule that the module states.

    text: of a row, what decides its split; rows that share it stay together.
    Raises ValueError as `training_part` does, and with the place of a bad row.
    """
    train = source.read(training_part(source), parse)
    if list(source.parts) == [ALL]:
        return cut(train, text, (0.8, 0.9))
    dev, test = part_of(source, DEV), part_of(source, TEST)
    assert dev is not None
    splits = {"train": train, "validation": source.read(dev, parse)}
    if test is not None:
        splits["test"] = source.read(test, parse)
    else:
        splits = {**cut(train, text, (0.9, 1.0)), "test": splits["validation"]}
    more = {split: source.read(part, parse) for part, split in MORE_TESTS.items() if part in source.parts}
    return splits | more


def cut(rows: Sequence[T], text: Callable[[T], str], ends: tuple[float, float]) -> dict[str, list[T]]:
    """Rows in three splits by a hash of their text; ends: the shares at which train and validation end."""
    splits: dict[str, list[T]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        share = hash_share(text(row))
        splits["train" if share < ends[0] else "validation" if share < ends[1] else "test"].append(row)
    return splits


def hash_share(text: str) -> float:
    """A number in [0, 1) that is a text's own."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4], "big") / 2**32


def _stem(path: Path) -> str:
    if path.name in _CONLL:
        return _CONLL[path.name]
    name = path.name.removesuffix(".gz")
    return next((name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending)), name)
