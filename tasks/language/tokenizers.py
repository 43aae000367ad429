"""Tokenizers of a task's own: byte pairs, single bytes, or words."""

from __future__ import annotations

from typing import Any, Literal, get_args

from argprune.tasks.language.task import Language
from argprune.tasks.language.tokens import byte_letters

TokenizerKind = Literal["bpe", "byte", "word"]
END = "<|endoftext|>"
# WikiText's own spelling of a word that is not in its vocabulary.
UNKNOWN = "<unk>"


def train_tokenizer(task: Language, vocab_size: int = 4096, kind: TokenizerKind = "bpe") -> Any:
    """A tokenizer of the task's training split; `END`, token 0, ends and pads.

    vocab_size: tokens at most, those of `END` and `UNKNOWN` included.
    kind: "bpe", byte pairs, falls back to bytes, so that no text is unknown to it. "byte" knows the 256 bytes and `END`
    and learns nothing, so that vocab_size says nothing. "word" takes what stands between blanks, and each line break,
    for a word: the most frequent ones, by falling frequency, as adaptive softmaxes need them; others are `UNKNOWN`.

    Raises ValueError for an unknown kind, and a vocabulary too small to hold what every one of its kind does.
    """
    if kind not in get_args(TokenizerKind):
        raise ValueError(f"tokenizer kind {kind!r}; choose of {', '.join(get_args(TokenizerKind))}.")
    from transformers import PreTrainedTokenizerFast

    make = {"bpe": _byte_pairs, "byte": _bytes, "word": _words}[kind]
    unknown = {"unk_token": UNKNOWN} if kind == "word" else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=make(task, vocab_size), eos_token=END, pad_token=END, bos_token=END, **unknown
    )


def _byte_pairs(task: Language, vocab_size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = byte_letters()
    if vocab_size <= len(alphabet):
        raise ValueError(f"vocab_size {vocab_size}; it holds the {len(alphabet)} bytes and {END}, so give more.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(task.splits["train"], trainer)
    return tokenizer


def _bytes(task: Language, vocab_size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {END: 0, **{letter: byte + 1 for byte, letter in enumerate(byte_letters())}}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _words(task: Language, vocab_size: int) -> Any:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    if vocab_size < 3:
        raise ValueError(f"vocab_size {vocab_size}; it holds {END}, {UNKNOWN} and a word, so give at least 3.")
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), "isolated"),
            pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed"),
        ]
    )
    # Two words more than are taken, without special tokens: one that a text spells out would get two numbers.
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=[], show_progress=False)
    tokenizer.train_from_iterator(task.splits["train"], trainer)
    counted = tokenizer.get_vocab()
    words = [word for word in sorted(counted, key=counted.__getitem__) if word not in (END, UNKNOWN)]
    numbers = {word: number for number, word in enumerate([END, UNKNOWN, *words][:vocab_size])}
    tokenizer.model = models.WordLevel(numbers, unk_token=UNKNOWN)
    return tokenizer
