"""Preprocessing that is done once: examples in Arrow files, under a name that is a hash of all that they depend on.

    FOLDER/<sha256 of task, rows, tokenizer, length and versions>.arrow

The folder is that of the environment variable ARGPRUNE_CACHE; without it nothing is kept. A file is written beside its
place and moved there whole, so that a reader sees all of it or nothing, whatever dies when; what is read back is equal
to what was made. Files are never out of date, and may be removed at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = "ARGPRUNE_CACHE"
# A number to change with what the examples of a kind hold.
_FORMAT = 2

Examples = list[dict[str, Any]]


def cached(options: Sequence[Any], rows: Sequence[Any], tokenizer: Any, encode: Callable[[], Examples]) -> Examples:
    """What `encode` gives, from the cache where it is there already, and into it where not.

    options: whatever the examples depend on besides rows and tokenizer, as plain data or frozen dataclasses.
    Raises ValueError for a file in the cache that cannot be read, and a folder that cannot be written to.
    """
    folder = os.environ.get(FOLDER)
    if not folder:
        return encode()
    path = Path(folder).expanduser() / f"{_key(options, rows, tokenizer)}.arrow"
    if not path.is_file():
        _write(path, encode())
    return _read(path)


def _key(options: Sequence[Any], rows: Sequence[Any], tokenizer: Any) -> str:
    versions = {name: version(name) for name in ("transformers", "tokenizers")}
    digest = hashlib.sha256(json.dumps([_FORMAT, versions, repr(options), _description(tokenizer)]).encode())
    for row in rows:
        # Rows are dataclasses of plain data; a separator, so that no two lists of rows are spelled alike.
        digest.update(f"{row!r}\x00".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _description(tokenizer: Any) -> list[str]:
    known: Any = tokenizer.get_vocab()
    if tokenizer.is_fast:
        known = json.loads(tokenizer.backend_tokenizer.to_str())
        # What the last call asked for stays with the tokenizer until the next one.
        known |= {"truncation": None, "padding": None}
    settings = type(tokenizer).__name__, repr(tokenizer.init_kwargs), repr(tokenizer.special_tokens_map)
    return [*settings, json.dumps(known, sort_keys=True)]


def _write(path: Path, examples: Examples) -> None:
    import pyarrow
    from pyarrow import feather

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        feather.write_feather(pyarrow.Table.from_pylist(examples), str(temporary))
        os.replace(temporary, path)
    except OSError as error:
        raise ValueError(f"{FOLDER} is {path.parent}, in which nothing can be written: {error}") from error


def _read(path: Path) -> Examples:
    import pyarrow
    from pyarrow import feather

    try:
        examples: Examples = feather.read_table(str(path), memory_map=False).to_pylist()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ValueError(f"{path}: cannot be read ({str(error).splitlines()[0]}); remove it.") from error
    return examples
