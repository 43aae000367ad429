"""What may be said of a task besides its name: its columns, its objective, how many of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

Objective = Literal["classification", "regression", "causal-lm", "seq2seq-lm", "masked-lm"]


@dataclass(frozen=True)
class TaskOptions:
    """Options of a task; None: the task's own default.

    text_column, pair_column, label_column: of rows of texts, where they are not called text, text_pair and label.
    objective: of rows of texts, classification or regression (default: regression where labels are numbers with a
    point in JSON); of text, causal-lm or masked-lm; of data-to-text, seq2seq-lm or causal-lm.
    train_rows, eval_rows: so many first rows of train, and of every other split, and no more.
    beams, new_tokens: of what a data-to-text model writes. null_threshold: of questions without an answer.
    """

    text_column: str | None = None
    pair_column: str | None = None
    label_column: str | None = None
    objective: Objective | None = None
    train_rows: int | None = None
    eval_rows: int | None = None
    beams: int | None = None
    new_tokens: int | None = None
    null_threshold: float | None = None

    def __post_init__(self) -> None:
        if self.objective is not None and self.objective not in get_args(Objective):
            raise ValueError(f"objective {self.objective!r}; choose of {', '.join(get_args(Objective))}.")
        for name in ("train_rows", "eval_rows", "beams", "new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} {value}: it must be at least 1.")

    @staticmethod
    def of(settings: Any) -> TaskOptions:
        """Those in settings, or in the config of a run, which may be older than some options."""
        values = settings if isinstance(settings, Mapping) else vars(settings)
        return TaskOptions(**{field.name: values.get(field.name) for field in fields(TaskOptions)})

    def given(self, *names: str) -> dict[str, Any]:
        """Those of some options that are not left to the task."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def refuse(self, kind: str, *but: str) -> None:
        """Raise ValueError where an option was given that a kind of task does not have."""
        own = {*but, "train_rows", "eval_rows"}
        for field in fields(self):
            if field.name not in own and getattr(self, field.name) is not None:
                raise ValueError(f"{field.name} {getattr(self, field.name)!r} is no option of {kind}; leave it out.")


DEFAULTS = TaskOptions()
