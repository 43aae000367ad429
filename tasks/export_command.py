"""`argprune export`: a finished run as a model to use: dense, structurally smaller, sparse, or ONNX.

What is written is loaded back, compared with the masked model on the same inputs, and timed against it. The model of a
low-rank run has no zeros: it is compared with the dense model that its factors multiply out to.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from argprune._version import __version__
from argprune.models import load_tokenizer
from argprune.models.export import (
    EXPORT,
    OnnxModel,
    choose_formats,
    example_inputs,
    export_onnx,
    interleaved_seconds,
    largest_difference,
    load_shrunk,
    load_sparse,
    median_milliseconds,
    read_logits,
    save_configs,
    save_sparse,
    shrink,
)
from argprune.models.factorised import is_low_rank, load_low_rank, merge_factors
from argprune.tasks.model_card import CARD, model_card
from argprune.tasks.outputs import make_folder
from argprune.tasks.runs import MODEL, RunDirectory, RunError, write_json

FORMATS = ("dense", "structured", "sparse", "onnx")
# Of the logits' largest size: float32 rounding over the depth of a model, and no more.
_TOLERANCE = 1e-5
_ONNX = "model.onnx"

Predict = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Export:
    """What to export, and how: the options of the command line.

    run: a finished run directory. format: one of `FORMATS`. output: the folder to make. batch, length: texts and tokens
    of the inputs that are timed; formats are chosen and logits compared at the first batch. regular: structured only;
    shapes that plain `from_pretrained` loads, even where a layer could lose more. overwrite: replace an earlier export
    in `output`.
    """

    run: Path
    format: str
    output: Path
    batch: tuple[int, ...] = (1, 8)
    length: int = 128
    threads: int = 2
    repetitions: int = 9
    regular: bool = False
    overwrite: bool = False

    def check(self) -> None:
        """Raise ValueError in one line unless this can be done, as far as can be told without loading the model."""
        if self.format not in FORMATS:
            raise ValueError(f"Unknown format {self.format!r}. Known: {', '.join(FORMATS)}.")
        counts = [("batch", batch) for batch in self.batch]
        counts += [(name, getattr(self, name)) for name in ("length", "threads", "repetitions")]
        for name, count in counts:
            if count < 1:
                raise ValueError(f"--{name} {count}; give at least 1.")
        if self.regular and self.format != "structured":
            raise ValueError(f"--regular is of --format structured, not of {self.format}.")
        if not RunDirectory(self.run).finished:
            raise ValueError(f"{self.run} is no finished run (no metrics.json); give a folder of argprune prune.")
        if os.path.exists(self.output) and not os.path.isdir(self.output):
            raise ValueError(f"Output {self.output} is a file; give a folder.")
        if os.path.isdir(self.output) and os.listdir(self.output):
            if not (self.output / EXPORT).is_file():
                raise ValueError(f"Output {self.output} exists and is no export (no {EXPORT}); give a new folder.")
            if not self.overwrite:
                raise ValueError(f"Output {self.output} holds an export; give --overwrite to replace it.")


def export_command(export: Export, *, quiet: bool = False) -> int:
    """Export a run and print what came of it; 0. Raises ValueError for bad input, RunError where outputs differ."""
    export.check()
    logging.disable_progress_bar()
    folder = export.run / MODEL
    low_rank = is_low_rank(folder)
    if low_rank and export.format == "sparse":
        raise ValueError(f"{export.run} is a low-rank run, without zeros; give --format dense, structured or onnx.")
    # Where a link leads to: a folder can be replaced, a link to one cannot.
    output = Path(os.path.realpath(export.output))
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    # A kill may have left one of the same process number.
    shutil.rmtree(temporary, ignore_errors=True)
    make_folder(temporary, export.output)
    threads = torch.get_num_threads()
    torch.set_num_threads(export.threads)
    try:
        model = load_low_rank(folder) if low_rank else load_shrunk(folder)
        tokenizer = load_tokenizer(str(folder))
        inputs = [example_inputs(model, batch, export.length) for batch in export.batch]
        facts = (_LOW_RANK_WRITERS if low_rank else _WRITERS)[export.format](export, model, temporary)
        if low_rank:
            merge_factors(model)
        tokenizer.save_pretrained(temporary)
        predict = _load(export, temporary)
        facts |= _compare(export, model, predict, inputs)
        facts["reference"] = "dense" if low_rank else "masked"
        facts["bytes"] = {"masked": _bytes(model) if low_rank else _size(folder), "exported": _size(temporary)}
        write_json(temporary / EXPORT, facts)
        (temporary / CARD).write_text(model_card(RunDirectory(export.run), facts), encoding="utf-8")
        if output.is_dir():
            shutil.rmtree(output)
        os.replace(temporary, output)
    finally:
        torch.set_num_threads(threads)
        shutil.rmtree(temporary, ignore_errors=True)
    if not quiet:
        print(_summary(export, facts))
    return 0


def _write_dense(export: Export, model: PreTrainedModel, folder: Path) -> dict[str, Any]:
    model.save_pretrained(folder)
    return _facts(export, f"transformers.{type(model).__name__}.from_pretrained(folder)")


def _write_structured(export: Export, model: PreTrainedModel, folder: Path) -> dict[str, Any]:
    small = shrink(model, regular=export.regular)
    # Irregular shapes are loaded by the parameters' names; transformers saves some architectures under others.
    small.model.save_pretrained(folder, save_original_format=small.regular)
    plain = f"transformers.{type(model).__name__}.from_pretrained(folder)"
    facts = _facts(export, plain if small.regular else "argprune.models.load_shrunk(folder)")
    units = {kind: {name: list(pair) for name, pair in layers.items()} for kind, layers in small.units.items()}
    count = {"masked": model.num_parameters(), "exported": small.model.num_parameters()}
    return {**facts, "regular": small.regular, "units": units, "parameters": count}


def _write_sparse(export: Export, model: PreTrainedModel, folder: Path) -> dict[str, Any]:
    choices = choose_formats(model, batch=export.batch[0], length=export.length, threads=export.threads)
    save_sparse(model, folder, choices)
    layers = [choice.to_dict() for choice in choices]
    return {**_facts(export, "argprune.models.load_sparse(folder)"), "layers": layers}


def _write_onnx(export: Export, model: PreTrainedModel, folder: Path) -> dict[str, Any]:
    small = shrink(model)
    export_onnx(small.model, folder / _ONNX)
    save_configs(small.model, folder)
    return _facts(export, f"argprune.models.export.OnnxModel(folder / {_ONNX!r})")


_WRITERS: Mapping[str, Callable[[Export, PreTrainedModel, Path], dict[str, Any]]] = {
    "dense": _write_dense,
    "structured": _write_structured,
    "sparse": _write_sparse,
    "onnx": _write_onnx,
}


def _write_merged(export: Export, model: PreTrainedModel, folder: Path) -> dict[str, Any]:
    dense = copy.deepcopy(model)
    merge_factors(dense)
    return _write_dense(export, dense, folder)


def _write_factors(export: Export, model: PreTrainedModel, folder: Path) -> dict[str, Any]:
    model.save_pretrained(folder)
    load = f"import argprune.models; transformers.{type(model).__name__}.from_pretrained(folder)"
    return _facts(export, load)


def _write_factors_onnx(export: Export, model: PreTrainedModel, folder: Path) -> dict[str, Any]:
    export_onnx(model, folder / _ONNX)
    save_configs(model, folder)
    return _facts(export, f"argprune.models.export.OnnxModel(folder / {_ONNX!r})")


_LOW_RANK_WRITERS: Mapping[str, Callable[[Export, PreTrainedModel, Path], dict[str, Any]]] = {
    "dense": _write_merged,
    "structured": _write_factors,
    "onnx": _write_factors_onnx,
}


def _facts(export: Export, load: str) -> dict[str, Any]:
    return {
        "format": export.format,
        "run": str(export.run),
        "threads": export.threads,
        "load": load,
        "versions": {"argprune": __version__, "torch": torch.__version__},
    }


def _load(export: Export, folder: Path) -> Predict:
    if export.format == "onnx":
        return OnnxModel(folder / _ONNX, threads=export.threads)
    if export.format == "sparse":
        model = load_sparse(folder)
    else:
        model = load_low_rank(folder) if is_low_rank(folder) else load_shrunk(folder)
    return lambda inputs: read_logits(model, inputs)


def _compare(
    export: Export, model: PreTrainedModel, predict: Predict, inputs: Sequence[Mapping[str, Tensor]]
) -> dict[str, Any]:
    wanted = read_logits(model, inputs[0])
    error = largest_difference(predict(inputs[0]), wanted)
    scale = max(1.0, *(float(value.abs().max()) for value in wanted.values()))
    if not error <= _TOLERANCE * scale:
        raise RunError(
            f"The {export.format} export's logits differ from the run's model's by {error:.1e}, more than "
            f"{_TOLERANCE * scale:.1e}; nothing was written. Please report the model."
        )
    latency = []
    for batch, each in zip(export.batch, inputs, strict=True):
        calls: dict[str, Callable[[], object]] = {
            "masked": partial(read_logits, model, each),
            "exported": partial(predict, each),
        }
        times = median_milliseconds(interleaved_seconds(calls, export.repetitions))
        latency.append({"batch": batch, "length": export.length, **times})
    return {"largest_difference": error, "latency": latency}


def _size(folder: Path) -> int:
    """Bytes of the tensors' files: what differs between the formats."""
    return sum(file.stat().st_size for pattern in ("*.safetensors", "*.onnx*") for file in folder.glob(pattern))


def _bytes(model: PreTrainedModel) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _summary(export: Export, facts: Mapping[str, Any]) -> str:
    size, reference = facts["bytes"], facts["reference"]
    lines = [
        f"{export.format}: {size['masked'] / 1e6:.1f} MB {reference}, {size['exported'] / 1e6:.1f} MB exported "
        f"({size['masked'] / size['exported']:.2f}x smaller)",
        *(
            f"latency at batch {row['batch']}, length {row['length']}, {export.threads} threads: "
            f"{row['masked']:.1f} ms {reference}, {row['exported']:.1f} ms exported "
            f"({row['masked'] / row['exported']:.2f}x faster)"
            for row in facts["latency"]
        ),
        f"logits: largest difference {facts['largest_difference']:.1e}",
    ]
    for kind, layers in facts.get("units", {}).items():
        kept, before = (sum(pair[index] for pair in layers.values()) for index in (0, 1))
        lines.append(f"{kind}: {kept} of {before} kept")
    if "layers" in facts:
        kinds = [layer["kind"] for layer in facts["layers"]]
        lines.append("layers: " + ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)))
    return "\n".join([*lines, f"Folder: {export.output}; load it with {facts['load']}"])
