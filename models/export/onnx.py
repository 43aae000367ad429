"""ONNX files of dense and shrunk models, run by onnxruntime."""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from argprune.models.export.inputs import example_inputs, read_logits

# protobuf cannot hold a message of 2 GiB; larger models put their tensors into a file beside it.
_MOST_INSIDE = 2**31 - 2**26


class OnnxModel:
    """An ONNX file as a callable: tensors by name in, logits by name out.

    file: written by `export_onnx`. threads: of onnxruntime. Raises ModuleNotFoundError without onnxruntime, and
    ValueError for a file that it cannot read.
    """

    def __init__(self, file: str | os.PathLike[str], *, threads: int = 2) -> None:
        runtime = _needed("onnxruntime")
        path = Path(file)
        if not path.is_file():
            raise ValueError(f"There is no {path}. Give a file written by export_onnx.")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        # Errors only: onnxruntime warns of what its own optimizer does.
        options.log_severity_level = 3
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            # onnxruntime's errors have no common base of their own.
            raise ValueError(f"{path} cannot be read by onnxruntime: {str(error).splitlines()[0]}") from error
        self.inputs = [entry.name for entry in self._session.get_inputs()]
        self.outputs = [entry.name for entry in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run. Raises ValueError for a missing input."""
        missing = [name for name in self.inputs if name not in inputs]
        if missing:
            raise ValueError(f"Input {missing[0]!r} is missing; the model takes {', '.join(self.inputs)}.")
        found = self._session.run(self.outputs, {name: inputs[name].cpu().numpy() for name in self.inputs})
        return {name: torch.from_numpy(value) for name, value in zip(self.outputs, found, strict=True)}


def export_onnx(model: PreTrainedModel, file: str | os.PathLike[str]) -> None:
    """Write `model` as an ONNX file whose batch and length are free; large ones get a second file, FILE.data.

    model: dense or shrunk, in evaluation mode; not one with sparse layers. Its inputs are those of `example_inputs`,
    its outputs all logits, without a cache of keys and values.
    Raises ModuleNotFoundError without the packages onnx and onnxscript; ValueError where torch cannot export the model.
    """
    _needed("onnx")
    _needed("onnxscript")
    # Two texts of eight tokens: sizes of one would be taken for always one.
    inputs = example_inputs(model, 2, 8)
    names = list(inputs)
    outputs = list(read_logits(model, inputs))
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    with _quiet(), _eager_attention(model):
        try:
            torch.onnx.export(
                _Positional(model, names, outputs),
                tuple(inputs.values()),
                os.fspath(file),
                dynamo=True,
                dynamic_shapes=(tuple(dict(free) for _ in names),),
                input_names=names,
                output_names=outputs,
                external_data=size > _MOST_INSIDE,
                verbose=False,
            )
        except (torch.onnx.OnnxExporterError, torch.onnx.errors.UnsupportedOperatorError) as error:
            reason = " ".join(str(error.__cause__ or error).split())[:300]
            raise ValueError(f"torch.onnx cannot export {type(model).__name__}: {reason}") from error


class _Positional(nn.Module):
    """The model with its inputs by position and only its logits as outputs, which is what the exporter can trace."""

    def __init__(self, model: PreTrainedModel, names: list[str], outputs: list[str]) -> None:
        super().__init__()
        self.model, self.names, self.outputs = model, names, outputs
        self.options: dict[str, Any] = {"use_cache": False} if hasattr(model.config, "use_cache") else {}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.names, inputs, strict=True))
        found = self.model(**given, **self.options, return_dict=True)
        return tuple(found[name] for name in self.outputs)


@contextmanager
def _eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Attention written out, which the exporter can trace for every model; the fused one it cannot for T5."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _needed(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"ONNX needs the package {package}, which is not installed. Run: pip install 'argprune[export]'",
            name=package,
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on packages that it could use, and on its own use of deprecated functions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logger.setLevel(level)
