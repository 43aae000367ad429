"""Language modelling of text files in a folder: one file a split, one file for all of them, or many files.

    FOLDER/train.txt, valid.txt (or validation.txt), test.txt       the splits
    FOLDER/<name>.txt                                               90 % of its bytes train, 5 % validate, 5 % test
    FOLDER/*.txt                                                    of the files in the order of their contents' sha256,
                                                                    the first 90 % train, the next 5 % validate, ...

Each file may be a gzip (.txt.gz). Other files, and folders in the folder, are not looked at.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import zlib
from itertools import chain, pairwise
from pathlib import Path

from argprune.tasks.language.task import Language
from argprune.tasks.texts import SPLITS

_STEMS = {"train": ("train",), "validation": ("valid", "validation"), "test": ("test",)}
_ENDINGS = (".txt", ".txt.gz")
# Texts that are passed on under a bare name.
_BARE = ("enwik8", "text8")
# Stems of files about the data, such as SOURCE-README, not driver-license; and what the data of other tasks is.
_ABOUT = re.compile(
    r"(?i:readme|licen[cs]e|notice|copying)|(?:.*[-_.])?(?:README|LICEN[CS]E|NOTICE|COPYING)(?:[-_.].*)?"
)
_ROWS = "*.jsonl.gz"
# Of 100: where training ends, and where validation does.
_SHARES = (90, 95)
# A line of a file that begins a document: " = Title = ", and not the " = = Section = = " of one.
_TITLE = re.compile(r"\s*= [^=].* =\s*$")
# A line that stands between two documents.
_FORM_FEED = re.compile(r"^[ \t]*\f[ \t]*\r?\n", re.MULTILINE)


def language_tasks(data_dir: Path) -> list[str]:
    """Names of the language-modelling tasks in a data folder (data_dir): its folders that hold text."""
    return [folder.name for folder in sorted(data_dir.iterdir()) if is_text_folder(folder)] if data_dir.is_dir() else []


def is_text_folder(folder: Path) -> bool:
    """Whether a folder is laid out as text to model; what is in the files is not looked at."""
    try:
        return folder.is_dir() and bool(_split_files(folder) or _other_files(folder))
    except OSError:
        # Such as another user's lost+found: what cannot be read is no data.
        return False


def read_language(folder: Path) -> Language:
    """The task in a folder of UTF-8 text, laid out as the module says.

    Where a file is a split, or one of many, a line of nothing but a form feed ends a document, and a title line,
    " = Title = " between blank ones, begins one; else a file is one document. The one file of all splits is cut
    between characters, byte for byte, and each piece is a document. Of many files, copies of one count once.
    Raises ValueError, with the file, and the line where there is one, for a split that is missing or has two files, no
    text, bytes that are no UTF-8, a broken gzip, and two files that are no splits.
    """
    found, others = _split_files(folder), _other_files(folder)
    if found:
        return Language(folder.name, {split: _documents(_read(_only(folder, found, split))) for split in SPLITS})
    if not others:
        raise ValueError(f"{folder}: no text. Give train.txt, valid.txt and test.txt (or .txt.gz), or *.txt to split.")
    if len(others) == 1:
        return Language(folder.name, _cut(others[0]))
    return Language(folder.name, _distributed(folder, others))


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """The files that are named as splits are, by split."""
    found = {
        split: [path for stem in stems for ending in _ENDINGS if (path := folder / f"{stem}{ending}").is_file()]
        for split, stems in _STEMS.items()
    }
    return {split: paths for split, paths in found.items() if paths}


def _other_files(folder: Path) -> list[Path]:
    if any(folder.glob(_ROWS)):
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and (path.name.endswith(_ENDINGS) or path.name in _BARE)
        and not _ABOUT.fullmatch(path.name.removesuffix(".gz").removesuffix(".txt"))
    )


def _only(folder: Path, found: dict[str, list[Path]], split: str) -> Path:
    paths = found.get(split, [])
    if not paths:
        names = " or ".join(f"{stem}.txt" for stem in _STEMS[split])
        raise ValueError(f"{folder}: has {found[next(iter(found))][0].name}, but no {names} (or .txt.gz); add it.")
    if len(paths) > 1:
        raise ValueError(f"{folder}: {paths[0].name} and {paths[1].name} are both split {split!r}; keep one of them.")
    return paths[0]


def _cut(path: Path) -> dict[str, list[str]]:
    data = _read_bytes(path)
    bounds = [0, *(_character_start(data, len(data) * share // 100) for share in _SHARES), len(data)]
    pieces = [_decoded(path, data[start:end], data[:start]) for start, end in pairwise(bounds)]
    for split, piece in zip(SPLITS, pieces, strict=True):
        if not piece.strip():
            raise ValueError(f"{path}: of its {len(data)} bytes, those of split {split!r} hold no text; give more.")
    return {split: [piece] for split, piece in zip(SPLITS, pieces, strict=True)}


def _character_start(data: bytes, position: int) -> int:
    # Bytes 10xxxxxx go on with a character; text that is no UTF-8 may have any number of them.
    while position < len(data) and data[position] & 0xC0 == 0x80:
        position += 1
    return position


def _distributed(folder: Path, paths: list[Path]) -> dict[str, list[str]]:
    """By contents, so that neither names nor copies matter; a share of the files, so that no split is empty."""
    texts = {hashlib.sha256(text.encode()).hexdigest(): text for text in map(_read, paths)}
    if len(texts) < len(SPLITS):
        raise ValueError(
            f"{folder}: {len(paths)} text files, {len(texts)} of them different, such as {paths[0].name}. Name them as "
            "the splits, train.txt, valid.txt and test.txt, or join them in one file, which is cut by its bytes."
        )
    order = sorted(texts)
    first = min(max(1, len(order) * _SHARES[0] // 100), len(order) - 2)
    second = min(max(first + 1, len(order) * _SHARES[1] // 100), len(order) - 1)
    parts = (order[:first], order[first:second], order[second:])
    return {
        split: list(chain.from_iterable(_documents(texts[key]) for key in part))
        for split, part in zip(SPLITS, parts, strict=True)
    }


def _read(path: Path) -> str:
    text = _decoded(path, _read_bytes(path))
    if not text.strip():
        raise ValueError(f"{path}: holds no text.")
    return text


def _read_bytes(path: Path) -> bytes:
    try:
        if path.name.endswith(".gz"):
            with gzip.open(path) as file:
                return file.read()
        return path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: {error}") from error


def _decoded(path: Path, data: bytes, before: bytes = b"") -> str:
    """Text of a file; before: the bytes in front of it, for their lines."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = before.count(b"\n") + data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is no UTF-8 ({error.reason}); convert the file."
        ) from error


def _documents(text: str) -> list[str]:
    documents = list(chain.from_iterable(_titled(part) for part in _FORM_FEED.split(text)))
    return [document for document in documents if document.strip()]


def _titled(text: str) -> list[str]:
    # Lines end at "\n" and nowhere else, and keep it.
    lines = io.StringIO(text, newline="\n").readlines()
    blank = [not line.strip() for line in lines]
    # Between blank lines, or at an end of the file: lines of formulas and tables may look like titles.
    around = zip([True, *blank], [*blank[1:], True], strict=False)
    starts = [
        number
        for number, ((above, below), line) in enumerate(zip(around, lines, strict=False))
        if above and below and _TITLE.match(line)
    ]
    # Blank lines at the top belong to the first document.
    bounds = [0, *(start for start in starts if not all(blank[:start])), len(lines)]
    return ["".join(lines[start:end]) for start, end in pairwise(bounds)]
