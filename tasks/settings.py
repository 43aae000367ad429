"""The settings of one run: what `argprune prune` takes besides the method, and what `config.yaml` records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]

# The settings that a run and its dense reference share: what is learned, from which start, on which budget.
SHARED = ("model", "task", "data_dir", "seed", "epochs", "max_steps", "batch_size", "max_length")


@dataclass(frozen=True)
class Settings:
    """How to train and what to prune; frozen, checked once.

    Args:
        model: `minilm` (embedded), a hub id, or a folder of `save_pretrained`.
        task: `stdlib-docs` (embedded) or the name of a task in `data_dir`.
        data_dir: folder of data sets (default: the environment variable ARGPRUNE_DATA).
        seed: seeds initialisation, data order and dropout.
        epochs: passes over the training split; 0 takes the model as it is (methods dense and one-shot ones).
        max_steps: optimizer steps, in place of `epochs`.
        batch_size: examples per optimizer step.
        learning_rate: AdamW's peak learning rate; warmed up, then linear to 0.
        weight_decay: AdamW's decoupled weight decay, on matrices.
        lr_warmup: fraction of the steps during which the learning rate rises.
        max_grad_norm: gradients are clipped to this l2 norm.
        max_length: tokens a text (or pair) is cut to.
        precision: `fp32`, `bf16` (autocast, fp32 master weights), or `auto`: bf16 where the hardware computes in it.
        include: patterns of weight names to prune (fnmatch).
        exclude: patterns of weight names to leave dense.
        biases: prune the biases of these weights' layers too; they then count in every sparsity.
        checkpoint_every: optimizer steps between checkpoints.
        log_every: optimizer steps between lines of log.jsonl.
        evaluate_each_epoch: measure the validation split after every epoch.
        keep_checkpoints: keep the checkpoints of a finished run.
        report_to: trackers of transformers.Trainer, such as `tensorboard` or `wandb`.
    """

    model: str = "minilm"
    task: str = "stdlib-docs"
    data_dir: str | None = None
    seed: int = 0
    epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 16
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    lr_warmup: float = 0.06
    max_grad_norm: float = 1.0
    max_length: int = 64
    precision: Precision = "auto"
    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    biases: bool = False
    checkpoint_every: int = 100
    log_every: int = 10
    evaluate_each_epoch: bool = False
    keep_checkpoints: bool = False
    report_to: Sequence[str] = ()

    def __post_init__(self) -> None:
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
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps {self.max_steps}: a run has at least one step.")
        if not 0 <= self.lr_warmup < 1:
            raise ValueError(f"lr_warmup {self.lr_warmup}: it is a fraction of the run, in [0, 1).")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay {self.weight_decay}: it must be finite and >= 0.")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision {self.precision!r}; choose auto, fp32 or bf16.")


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
