"""The tokens of documents, and how much of the text each of them stands for.

    characters(token) = what lies between the end of the token before it and its own end, in code points

So every character of a document belongs to one token, blanks that a tokenizer drops included: they go to the token
after them, and those at the end of a document to its end token, which stands for nothing else. A character that is
several tokens belongs to the first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.int64]
# Documents that are handed to a tokenizer at once: what it returns takes a hundred times the text's memory.
_BATCH = 32


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens in a row: ids, and the characters and UTF-8 bytes that each stands for, int64 (tokens,).

    characters, bytes: None where the tokenizer does not say where in the text its tokens lie.
    """

    ids: Array
    characters: Array | None
    bytes: Array | None


def read_tokens(documents: Sequence[str], tokenizer: Any) -> Tokens:
    """The tokens of all documents, an end token after each. ValueError for a tokenizer without an end token."""
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token (eos_token); give one with it.")
    table = byte_ids(tokenizer)
    parts = list(_by_tokenizer(documents, tokenizer) if table is None else _by_bytes(documents, tokenizer, table))
    located = [part for part in parts if part.characters is not None and part.bytes is not None]
    return Tokens(
        np.concatenate([part.ids for part in parts] or [np.empty(0, np.int64)]),
        np.concatenate([part.characters for part in located]) if len(located) == len(parts) > 0 else None,
        np.concatenate([part.bytes for part in located]) if len(located) == len(parts) > 0 else None,
    )


def byte_ids(tokenizer: Any) -> Array | None:
    """The token of each byte, int64 (256,), of a tokenizer that knows single bytes only; None for any other."""
    if not tokenizer.is_fast:
        return None
    vocabulary = tokenizer.get_vocab()
    letters = byte_letters()
    if set(vocabulary) - set(tokenizer.all_special_tokens) != set(letters):
        return None
    return np.array([vocabulary[letter] for letter in letters])


def byte_letters() -> list[str]:
    """What byte-level tokenizers write for the bytes 0 to 255: letters that can be seen."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    return [letters[byte] for byte in range(256)]


class Extents:
    """How much text the predicted tokens of texts stand for, by the tokens themselves.

    A metric sees no more of a text than its labels, so what is known of it is kept under their digest.
    """

    def __init__(self) -> None:
        self._tokenizer: Any = None
        # Of each text: characters, bytes, and how often it was seen.
        self._known: dict[bytes, Array] = {}

    def remember(self, tokenizer: Any, texts: Array, characters: Array, bytes_: Array) -> None:
        """Note texts, (texts, length): each one's first token is given, the others are predicted.

        characters, bytes_: of every token, (texts, length). What was noted with another tokenizer is forgotten.
        """
        if tokenizer is not self._tokenizer:
            self._tokenizer = tokenizer
            self._known.clear()
        extents = np.stack([characters[:, 1:].sum(1), bytes_[:, 1:].sum(1), np.ones(len(texts), np.int64)], axis=1)
        for text, extent in zip(texts, extents, strict=True):
            # Blanks that a tokenizer drops may differ between texts of the same tokens.
            key = _digest(text)
            self._known[key] = self._known[key] + extent if key in self._known else extent

    def total(self, texts: Array) -> tuple[float, float] | None:
        """Characters and bytes of the predicted tokens of texts, (texts, length); None if one was not remembered."""
        found = [self._known.get(_digest(text)) for text in texts]
        known = [extent for extent in found if extent is not None]
        if len(known) < len(found) or not known:
            return None
        extents = np.stack(known)
        characters, bytes_ = (extents[:, :2] / extents[:, 2:]).sum(0)
        return float(characters), float(bytes_)


def _digest(text: Array) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(text, np.int64).tobytes(), digest_size=16).digest()


def _by_bytes(documents: Sequence[str], tokenizer: Any, table: Array) -> Iterator[Tokens]:
    """As the tokenizer itself would, but for special tokens spelled out in a text, and at a hundredth of its cost."""
    for document in documents:
        raw = np.frombuffer(document.encode(), np.uint8)
        # Bytes 10xxxxxx go on with a character.
        begins = (raw & 0xC0) != 0x80
        yield Tokens(
            np.append(table[raw], tokenizer.eos_token_id),
            np.append(begins, False).astype(np.int64),
            np.append(np.ones_like(raw), 0).astype(np.int64),
        )


def _by_tokenizer(documents: Sequence[str], tokenizer: Any) -> Iterator[Tokens]:
    for start in range(0, len(documents), _BATCH):
        batch = list(documents[start : start + _BATCH])
        encoded = tokenizer(
            batch, add_special_tokens=False, verbose=False, return_offsets_mapping=bool(tokenizer.is_fast)
        )
        for number, document in enumerate(batch):
            ids = np.array([*encoded["input_ids"][number], tokenizer.eos_token_id], np.int64)
            if not tokenizer.is_fast:
                yield Tokens(ids, None, None)
                continue
            offsets = np.array(encoded["offset_mapping"][number], np.int64).reshape(-1, 2)
            ends = np.maximum.accumulate(np.append(offsets[:, 1], len(document)))
            yield Tokens(ids, np.diff(ends, prepend=0), np.diff(_byte_positions(document)[ends], prepend=0))


def _byte_positions(document: str) -> Array:
    """Where in the document's UTF-8 each character begins, and where the last ends: int64 (characters + 1,)."""
    points = np.frombuffer(document.encode("utf-32-le"), np.uint32)
    lengths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([[0], lengths.cumsum()])
