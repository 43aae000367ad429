"""Rows of a file, plain or gzipped; whatever is wrong in one is said with file and line.

.jsonl      one object a line
.csv        the first line names the columns
.tsv        the same, without quotes, as GLUE's files
.conll      a token a line, its tag last; a blank line ends a sentence, which is a row of tokens and tags
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar, cast

T = TypeVar("T")
Parse = Callable[[Mapping[str, Any]], T]

_FORMATS = (".jsonl", ".csv", ".tsv", ".conll")
_BROKEN = (ValueError, OSError, EOFError, zlib.error, csv.Error, RecursionError)
ENDINGS = tuple(f"{ending}{packed}" for ending in _FORMATS for packed in (".gz", ""))


def read_rows(path: Path, parse: Parse[T]) -> list[T]:
    """Every row of a file as `parse` takes it; blank lines are passed over.

    parse: gets a row's values by column, of CSV and TSV all strings; raises ValueError for what it cannot take.
    Raises ValueError, "file, line n: what", for rows that are broken, bytes that are no UTF-8, and what `parse` raises.
    """
    lines = _Lines(path)
    try:
        return [parse(row) for row in _parsed(path, lines)]
    except _BROKEN as error:
        raise _located(path, lines, error) from error


def first_row(path: Path) -> Mapping[str, Any] | None:
    """The first row of a file; None where it has none. Raises ValueError, as `read_rows`, where it is broken."""
    lines = _Lines(path)
    try:
        return next(_parsed(path, lines), None)
    except _BROKEN as error:
        raise _located(path, lines, error) from error


class _Lines:
    """The lines of a file, decoded; `number` is that of the last one, `whole` false while one is being read."""

    def __init__(self, path: Path) -> None:
        self._path, self.number, self.whole = path, 0, False

    def __iter__(self) -> Iterator[str]:
        with _open(self._path) as file:
            for line in file:
                self.number, self.whole = self.number + 1, True
                # Excel begins its files with a byte order mark.
                yield line.decode("utf-8-sig" if self.number == 1 else "utf-8")
                self.whole = False
        self.whole = True


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.name.endswith(".gz") else path.open("rb")


def _parsed(path: Path, lines: _Lines) -> Iterator[Mapping[str, Any]]:
    name = path.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        return _objects(lines)
    if name.endswith(".csv"):
        return _records(csv.reader(lines, strict=True))
    if name.endswith(".tsv"):
        return _records(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    return _sentences(lines)


def _objects(lines: _Lines) -> Iterator[Mapping[str, Any]]:
    for line in lines:
        if line.strip():
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError(f"a row is a JSON object, not {type(value).__name__}")
            yield value


def _records(reader: Iterator[list[str]]) -> Iterator[Mapping[str, Any]]:
    columns = next((cells for cells in reader if cells), [])
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise ValueError(f"column {twice[0]!r} is there twice")
    for cells in reader:
        if cells and len(cells) != len(columns):
            raise ValueError(f"{len(cells)} cells, but there are {len(columns)} columns: {', '.join(columns)}")
        if cells:
            yield dict(zip(columns, cells, strict=True))


def _sentences(lines: _Lines) -> Iterator[Mapping[str, Any]]:
    tokens: list[str] = []
    tags: list[str] = []
    for line in lines:
        cells = _cells(line)
        # CoNLL-2003 begins its documents with a line of this.
        if cells and cells[0] != "-DOCSTART-":
            if len(cells) < 2:
                raise ValueError(f"token {cells[0]!r} without a tag")
            tokens.append(cells[0])
            tags.append(cells[-1])
        elif tokens:
            yield {"tokens": tokens, "tags": tags}
            tokens, tags = [], []
    if tokens:
        yield {"tokens": tokens, "tags": tags}


def _cells(line: str) -> list[str]:
    """What tabs separate, or spaces where there is no tab; Unicode's other blanks are of a token."""
    content = line.strip(" \t\r\n") if line.strip() else ""
    cells = (cell.strip(" ") for cell in content.split("\t" if "\t" in content else " "))
    return [cell for cell in cells if cell]


def _located(path: Path, lines: _Lines, error: Exception) -> ValueError:
    # Past the last line that was read whole where the file itself breaks off.
    line = lines.number + (not lines.whole)
    return ValueError(f"{path}, line {line}: {_reason(error)}")


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        return f"byte 0x{byte:02x} is no UTF-8 ({error.reason}); convert the file"
    if isinstance(error, RecursionError):
        return "values are nested too deep"
    return str(error)
