"""The teacher: a fine-tuned network, frozen, in evaluation mode, asked about one text at a time.

A text's answer is what the network computes for that text alone, without padding. It is then a function of the text's
tokens and nothing else: the same bits in whatever batch the text comes, and whether it is computed now or was earlier.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from argprune.models.attention_scores import Scores, collect_scores, handing_out_scores
from argprune.models.outputs import read_outputs, read_states, real_tokens
from argprune.solvers.distillation import States
from argprune.solvers.methods.outputs import Outputs

# A text: its `input_ids`, and `token_type_ids` where there are some, (tokens,) each.
Text = Mapping[str, Tensor]
# A teacher's answer: logits by name, of the text or of its tokens; "embedding" (tokens, width), "layers" (layers,
# tokens, width) and "scores" (layers, heads, tokens, tokens), as far as they are wanted.
Answer = Mapping[str, Tensor]

_INPUTS = ("input_ids", "token_type_ids")
_LOGITS = ("logits", "start_logits", "end_logits")


@dataclass(frozen=True)
class Wanted:
    """Which inner states are learned: the embedding's, the layers', attention scores; of which layers, None: all."""

    embedding: bool = True
    hidden: bool = True
    scores: bool = True
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Conventions:
    """What a teacher reads and tells, where that is not what its student does.

    separator: the token after whose first occurrence a text's second segment begins, of a teacher that reads segment
    ids, which its student's batches lack. order: of the student's classes, the teacher's number of each. vocabulary: so
    many first outputs of both stand for tokens.
    """

    separator: int | None = None
    order: tuple[int, ...] | None = None
    vocabulary: int | None = None

    def read(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Texts, padded or not, as the teacher reads them."""
        if self.separator is None:
            return dict(inputs)
        ids, real = inputs["input_ids"], real_tokens(inputs)
        separators = ((ids == self.separator) & real).long()
        # Those before a token: the first separator is the first segment's own.
        before = separators.cumsum(-1) - separators
        return {**inputs, "token_type_ids": ((before > 0) & real).long()}

    def tell(self, logits: Tensor) -> Tensor:
        """The teacher's logits of classes or tokens, (..., outputs), as its student numbers them."""
        if self.order is not None:
            return logits[..., list(self.order)]
        return self.cut(logits)

    def cut(self, logits: Tensor) -> Tensor:
        """Logits of teacher or student without those that stand for no token."""
        return logits if self.vocabulary is None else logits[..., : self.vocabulary]


class Teacher:
    """A model that answers and never learns.

    wanted: the states that answers hold. dropout: True has the teacher in training mode, as the released SparseBERT had
    it: its answers are random then, and of whole batches only. conventions: where they are not the student's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        wanted: Wanted,
        *,
        dropout: bool = False,
        conventions: Conventions | None = None,
    ) -> None:
        self.model = model.requires_grad_(False).train(dropout)
        self.wanted, self.dropout, self.conventions = wanted, dropout, conventions or Conventions()

    @torch.no_grad()
    def answer(self, text: Text) -> dict[str, Tensor]:
        """What the teacher computes for a text by itself, on the text's device."""
        raw, states = self._compute({name: value[None] for name, value in text.items()})
        answer = {name: raw[name][0] for name in _LOGITS if raw.get(name) is not None}
        if "logits" in answer:
            answer["logits"] = self.conventions.tell(answer["logits"])
        if self.wanted.embedding:
            assert states.embedding is not None
            answer["embedding"] = states.embedding[0]
        if self.wanted.hidden:
            answer["layers"] = torch.stack([layer[0] for layer in states.layers])
        if self.wanted.scores:
            answer["scores"] = torch.stack([scores[0] for scores in states.scores])
        return answer

    @torch.no_grad()
    def answer_batch(self, inputs: Mapping[str, Any]) -> Outputs:
        """What it computes for a padded batch as it is, for teachers with dropout."""
        raw, states = self._compute(inputs)
        told = read_outputs(raw, inputs)
        predictions = tuple(replace(each, logits=self.conventions.tell(each.logits)) for each in told.predictions)
        return replace(told, predictions=predictions, states=states)

    def _compute(self, inputs: Mapping[str, Any]) -> tuple[Any, States]:
        read = readable(self.model, self.conventions.read(inputs))
        device = inputs["input_ids"].device
        # The student may be trained in bf16; the teacher computes in what it was loaded in.
        with torch.autocast(device.type, enabled=False):
            return compute_states(self.model.to(device), read, self.wanted)


def readable(model: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Of a batch of another model what this one takes."""
    known = inspect.signature(model.forward).parameters
    return {name: value for name, value in inputs.items() if name in known}


def compute_states(model: PreTrainedModel, inputs: Mapping[str, Any], wanted: Wanted) -> tuple[Any, States]:
    """A model's outputs on a batch, and those of its states that are wanted.

    Raises ValueError, one line, where the model does not give them.
    """
    scores: Scores | None = None
    with ExitStack() as stack:
        if wanted.scores:
            stack.enter_context(handing_out_scores(model))
            scores = stack.enter_context(collect_scores())
        extra = {"output_hidden_states": True} if wanted.hidden or wanted.embedding else {}
        raw = model(**inputs, **extra)
    return raw, pick(read_states(raw, inputs, scores), wanted, type(model).__name__)


def pick(states: States, wanted: Wanted, name: str) -> States:
    """The states that are wanted, without the others. ValueError where the model of this name did not give them."""
    if (wanted.hidden or wanted.embedding) and states.embedding is None:
        raise ValueError(f"{name} gives no hidden states. Set hidden and embedding to 0.")
    return replace(
        states,
        embedding=states.embedding if wanted.embedding else None,
        layers=_chosen(states.layers, wanted.layers) if wanted.hidden else (),
        scores=_chosen(states.scores, wanted.layers) if wanted.scores else (),
    )


def find_separator(tokenizer: Any) -> int | None:
    """The token after whose first occurrence a tokenizer begins a pair's second segment; None where there is but one.

    Raises ValueError where segments begin otherwise.
    """
    pair = tokenizer("a", "a", return_token_type_ids=True, return_tensors="pt")
    segments = pair["token_type_ids"]
    if not bool(segments.any()):
        return None
    separator = tokenizer.sep_token_id
    if separator is None or not torch.equal(Conventions(separator).read(pair)["token_type_ids"], segments):
        raise ValueError(
            f"its second segments do not begin after the first separator ({tokenizer.sep_token}), so that segment ids "
            "cannot be told from texts that come without them"
        )
    return int(separator)


def split_texts(inputs: Mapping[str, Any]) -> list[dict[str, Tensor]]:
    """The texts of a padded batch, each by itself. ValueError where padding lies within a text."""
    return [
        {name: inputs[name][row, start:end] for name in _INPUTS if name in inputs}
        for row, (start, end) in enumerate(_extents(inputs))
    ]


def text_key(text: Text) -> str:
    """A digest of a text's tokens, 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name in _INPUTS:
        if name in text:
            digest.update(name.encode() + text[name].cpu().to(torch.int64).contiguous().numpy().tobytes())
    return digest.hexdigest()


def join_answers(answers: Sequence[Answer], inputs: Mapping[str, Any], raw: type[Any]) -> Outputs:
    """The outputs on a padded batch that a teacher's answers to its texts make up; zeros at padding.

    raw: the class of the student's own outputs, which says how logits and targets belong together.
    """
    extents, length, device = _extents(inputs), inputs["input_ids"].shape[1], inputs["input_ids"].device

    def joined(name: str, dims: Sequence[int], at: int = 0) -> Tensor:
        """All answers' tensors of a name, padded in the dimensions that are tokens, stacked in a new dimension `at`."""
        shape = list(answers[0][name].shape)
        for dim in dims:
            shape[dim] = length
        shape.insert(at, len(answers))
        result = answers[0][name].new_zeros(shape, device=device)
        for row, (answer, (start, end)) in enumerate(zip(answers, extents, strict=True)):
            place = result.select(at, row)
            for dim in dims:
                place = place.narrow(dim, start, end - start)
            place.copy_(answer[name])
        return result

    first = answers[0]
    # Of a text there is one row of classes; of tokens one each, or, for spans, one number each.
    logits = {
        name: joined(name, () if name == "logits" and first[name].dim() == 1 else (0,))
        for name in _LOGITS
        if name in first
    }
    states = States(
        real_tokens(inputs),
        joined("embedding", (0,)) if "embedding" in first else None,
        joined("layers", (1,), at=1).unbind() if "layers" in first else (),
        joined("scores", (2, 3), at=1).unbind() if "scores" in first else (),
    )
    return replace(read_outputs(raw(**logits), inputs), states=states)


def _chosen(values: Sequence[Tensor], layers: tuple[int, ...] | None) -> tuple[Tensor, ...]:
    return tuple(values if layers is None else (values[layer] for layer in layers))


def _extents(inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Where each text of a padded batch begins and ends."""
    tokens = real_tokens(inputs)
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    starts, counts = tokens.int().argmax(1), tokens.sum(1)
    ends = starts + counts
    if not torch.equal((positions >= starts[:, None]) & (positions < ends[:, None]), tokens) or not bool(counts.all()):
        raise ValueError("A teacher reads texts whose padding stands before or after them, not within; found others.")
    return list(zip(starts.tolist(), ends.tolist(), strict=True))
