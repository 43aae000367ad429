"""The settings of one run: what `argprune prune` takes besides the method, and what `config.yaml` records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch

from argprune.solvers.distillation import Distillation
from argprune.tasks.task_options import Objective, TaskOptions

Precision = Literal["auto", "fp32", "bf16"]
Replacement = Literal["neighbours", "mlm"]
Options = TypeVar("Options")

# The settings that a run and its dense reference share: what is learned, from which start, on which budget.
SHARED = (
    *("model", "task", "data_dir", "seed", "epochs", "max_steps", "batch_size", "max_length"),
    *(field.name for field in fields(TaskOptions)),
)


@dataclass(frozen=True)
class Distill(Distillation):
    """`Distillation`, and where the teacher is and what becomes of its answers.

    Args:
        teacher: of the outputs, a model fine-tuned on the task: a folder or a hub id (default: the dense reference).
        cache: true keeps the teacher's answers on disk during the run, so that it is asked once about each text; false
            asks it every time; a folder keeps them there for other runs too.
        cache_gib: what the answers may take on disk, in a folder of several teachers together; where they would take
            more, the teacher is asked every time.
    """

    teacher: str | None = None
    cache: bool | str = True
    cache_gib: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher is not None and (not isinstance(self.teacher, str) or not self.teacher):
            raise ValueError(f"distill teacher {self.teacher!r}; give a folder or a hub id, or leave it out.")
        if not isinstance(self.cache, bool | str) or self.cache == "":
            raise ValueError(f"distill cache {self.cache!r}; give true, false or a folder.")
        if isinstance(self.cache_gib, bool | str) or not 0 < self.cache_gib < math.inf:
            raise ValueError(
                f"distill cache_gib {self.cache_gib!r}: it must be finite and > 0; cache: false keeps none."
            )


@dataclass(frozen=True)
class Augment:
    """More training texts, in which words are replaced by others that fit; offline, the same for a seed.

    Args:
        by: `neighbours`, words nearest by the model's own word embeddings, or `mlm`, what a masked language model
            predicts in the word's place.
        model: the masked language model: a folder or a hub id, with the tokenizer of the run's model.
        copies: new texts from each.
        rate: the probability with which a word is replaced.
        candidates: words that one is drawn from.
    """

    by: Replacement = "neighbours"
    model: str | None = None
    copies: int = 10
    rate: float = 0.4
    candidates: int = 15

    def __post_init__(self) -> None:
        if self.by not in get_args(Replacement):
            raise ValueError(f"augment by {self.by!r}; choose one of {', '.join(get_args(Replacement))}.")
        if (self.by == "mlm") != (self.model is not None):
            needed = "give the folder or hub id of one" if self.by == "mlm" else "it takes none"
            raise ValueError(f"augment by {self.by!r} with masked language model {self.model!r}; {needed} (model).")
        for name in ("copies", "candidates"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"augment {name} {value!r}: at least 1.")
        if isinstance(self.rate, bool | str) or not 0 < self.rate <= 1:
            raise ValueError(f"augment rate {self.rate!r}: a probability in (0, 1].")


@dataclass(frozen=True)
class Settings:
    """How to train and what to prune; frozen, checked once.

    Args:
        model: `minilm` (embedded), a hub id, or a folder of `save_pretrained`.
        task: `stdlib-docs` (embedded), the name of a task in `data_dir` or on the hub, or the path of a folder or file.
        data_dir: folder of data sets (default: the environment variable ARGPRUNE_DATA).
        text_column: of rows with labels, the column of the text (default: text).
        pair_column: the column of the second text (default: text_pair, where there is one).
        label_column: the column of the label (default: label).
        objective: what is learned of rows with labels, of text, or of data-to-text, where there is a choice.
        train_rows: only so many first rows of the training split.
        eval_rows: only so many first rows of every other split.
        beams: of the search when a data-to-text model writes (default: 1, greedy).
        new_tokens: that a data-to-text model may write (default: 80).
        null_threshold: by how much no answer must be better than the best (question answering; default: 0).
        seed: seeds initialisation, data order and dropout.
        epochs: passes over the training split; 0 takes the model as it is (methods dense and one-shot ones).
        max_steps: optimizer steps, in place of `epochs`.
        batch_size: examples per optimizer step, of all processes together.
        gradient_accumulation_steps: parts that a process computes its examples of a step in (default: 1).
        fsdp: shard weights and optimizer over the processes (FSDP2); for methods that work by entries or rows.
        learning_rate: AdamW's peak learning rate; warmed up, then linear to 0.
        weight_decay: AdamW's decoupled weight decay, on matrices.
        lr_warmup: fraction of the steps during which the learning rate rises.
        max_grad_norm: gradients are clipped to this l2 norm.
        max_length: tokens a text (or pair) is cut to.
        precision: `fp32`, `bf16` (autocast, fp32 master weights), or `auto`: bf16 where the hardware computes in it.
        include: patterns of weight names to prune (fnmatch).
        exclude: patterns of weight names to leave dense.
        biases: prune the biases of these weights' layers too; they then count in every sparsity.
        distill: learn from a teacher: true, or a mapping of what and how (default: as the method does); false: from the
            labels alone. See docs/theory/distillation.md.
        augment: train on altered copies of the texts too: true, or a mapping of how.
        checkpoint_every: optimizer steps between checkpoints.
        log_every: optimizer steps between lines of log.jsonl.
        evaluate_each_epoch: measure the validation split after every epoch.
        keep_checkpoints: keep the checkpoints of a finished run.
        report_to: trackers of transformers.Trainer, such as `tensorboard` or `wandb`.
    """

    model: str = "minilm"
    task: str = "stdlib-docs"
    data_dir: str | None = None
    text_column: str | None = None
    pair_column: str | None = None
    label_column: str | None = None
    objective: Objective | None = None
    train_rows: int | None = None
    eval_rows: int | None = None
    beams: int | None = None
    new_tokens: int | None = None
    null_threshold: float | None = None
    seed: int = 0
    epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 16
    gradient_accumulation_steps: int | None = None
    fsdp: bool | None = None
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    lr_warmup: float = 0.06
    max_grad_norm: float = 1.0
    max_length: int = 64
    precision: Precision = "auto"
    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    biases: bool = False
    distill: Distill | bool | None = None
    augment: Augment | bool | None = None
    checkpoint_every: int = 100
    log_every: int = 10
    evaluate_each_epoch: bool = False
    keep_checkpoints: bool = False
    report_to: Sequence[str] = ()

    def __post_init__(self) -> None:
        TaskOptions.of(self)
        # False is not None, which leaves it to the method whether to learn from a teacher.
        if self.distill is not False:
            object.__setattr__(self, "distill", _options("distill", Distill, self.distill))
        object.__setattr__(self, "augment", _options("augment", Augment, self.augment))
        if not isinstance(self.fsdp, bool | None):
            raise ValueError(f"fsdp {self.fsdp!r}; give true or false.")
        # As configurations of before this option have it.
        object.__setattr__(self, "fsdp", self.fsdp or None)
        if not 0 <= self.epochs < float("inf"):
            raise ValueError(f"epochs {self.epochs}: it must be finite and >= 0.")
        for name in (
            "batch_size",
            "learning_rate",
            "max_grad_norm",
            "max_length",
            "checkpoint_every",
            "log_every",
        ):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} {getattr(self, name)}: it must be finite and > 0.")
        if self.gradient_accumulation_steps is not None and self.gradient_accumulation_steps < 1:
            raise ValueError(f"gradient_accumulation_steps {self.gradient_accumulation_steps}: at least 1.")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps {self.max_steps}: a run has at least one step.")
        if not 0 <= self.lr_warmup < 1:
            raise ValueError(f"lr_warmup {self.lr_warmup}: it is a fraction of the run, in [0, 1).")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay {self.weight_decay}: it must be finite and >= 0.")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision {self.precision!r}; choose auto, fp32 or bf16.")


def _options(name: str, kind: type[Options], value: Any) -> Options | None:
    """Options as such: True stands for the defaults, False for none, a mapping for those that it gives."""
    if value is None or value is False:
        return None
    if isinstance(value, kind):
        return value
    given = {} if value is True else value
    if not isinstance(given, Mapping):
        raise ValueError(f"{name} {value!r}; give true, false, or a mapping of options.")
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for key in given:
        if key not in known:
            raise ValueError(f"{name} has no option {key!r}. It has: {', '.join(known)}.")
    return kind(**given)


def resolve_precision(precision: Precision) -> Literal["fp32", "bf16"]:
    """What `auto` means on this machine; the other choices stand."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    # Without these instructions bf16 is emulated, and several times slower than fp32.
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.is_file() else []
    return "bf16" if {"avx512_bf16", "amx_bf16"} & set(flags) else "fp32"
