"""Pruned matrices on disk: a bit for every entry and the values that are not zero, or the submatrix that is left.

    bitmask    ceil(n / 8) bytes + nonzeros        any pattern, worth it from 1 zero in 32 entries on (float32)
    submatrix  row and column numbers + its entries  rows and columns that are zero from end to end
    plain      as it is                            where neither is smaller

Exact: an entry is left out only if all its bits are zero, so that -0.0 and NaN come back as they were.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from argprune.models.export.loading import build_model, load_state, save_configs
from argprune.models.factorised import find_factors

FILE = "model.compressed.safetensors"
_FORMAT = "argprune-compressed-1"
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Size:
    """Bytes of all tensors: dense, as in memory, and compressed, as in the file, header and checksums included."""

    dense: int
    compressed: int

    @property
    def ratio(self) -> float:
        """dense / compressed."""
        return self.dense / self.compressed


def save_compressed(model: PreTrainedModel, folder: str | os.PathLike[str]) -> Size:
    """Write `model` into a folder, made if missing: its configs, and all tensors in one safetensors file.

    model: with its zeros in place, of any dtype; a shrunk one too. Tensors with several names are stored once.
    Result: the sizes before and after. Raises ValueError, before anything is written, for a model with factors.
    """
    if find_factors(model):
        raise ValueError(
            f"{type(model).__name__} has factors, which are small already; merge_factors makes one matrix of each."
        )
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    stored: dict[str, Tensor] = {}
    layouts: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()
    dense = 0
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        data = tensor.detach().cpu().contiguous()
        dense += data.nbytes
        layout, parts = _smallest(data)
        keys = {part: f"{name}::{part}" for part in parts} if layout != "plain" else {"values": name}
        stored |= {keys[part]: value for part, value in parts.items()}
        layouts[name] = {
            "layout": layout,
            "shape": list(data.shape),
            "dtype": str(data.dtype).removeprefix("torch."),
            "crc32": {part: _checksum(value) for part, value in parts.items()},
        }
    text = json.dumps(layouts)
    save_configs(model, path)
    metadata = {"format": _FORMAT, "tensors": text, "crc32": str(zlib.crc32(text.encode()))}
    save_file(stored, path / FILE, metadata=metadata)
    return Size(dense, (path / FILE).stat().st_size)


def load_compressed(folder: str | os.PathLike[str]) -> PreTrainedModel:
    """Load what `save_compressed` wrote, in evaluation mode: the same tensors to the bit.

    Raises ValueError, one line, for a folder or file of another kind, and where anything in it was cut or changed.
    """
    path = Path(folder)
    model = build_model(path)
    load_state(model, read_compressed(path / FILE), path / FILE)
    return model


def read_compressed(file: Path) -> dict[str, Tensor]:
    """The tensors of a compressed file by name, dense. Raises ValueError as `load_compressed` does."""
    if not file.is_file():
        raise ValueError(f"There is no {file}. Give a folder written by save_compressed.")
    try:
        with safe_open(file, framework="pt") as opened:
            layouts = _layouts(opened.metadata() or {}, file)
            parts = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, KeyError) as error:
        raise ValueError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    return {name: _expanded(name, layout, parts, file) for name, layout in layouts.items()}


def _layouts(metadata: Mapping[str, str], file: Path) -> dict[str, Any]:
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{file}: format {metadata.get('format')!r}, expected {_FORMAT!r}. Export the model anew.")
    text = metadata.get("tensors", "")
    if str(zlib.crc32(text.encode())) != metadata.get("crc32"):
        raise ValueError(f"{file}: the table of tensors was changed; its checksum differs. Export the model anew.")
    return dict(json.loads(text))


def _smallest(data: Tensor) -> tuple[str, dict[str, Tensor]]:
    """The smallest layout of a tensor, and what it stores."""
    candidates = {"plain": {"values": data}}
    if data.dim() and data.numel():
        bits = data.reshape(-1).view(_INTEGERS[data.element_size()]) != 0
        candidates["bitmask"] = {"bits": _packed(bits), "values": data.reshape(-1)[bits]}
        if data.dim() == 2:
            mask = bits.reshape(data.shape)
            rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
            candidates["submatrix"] = {
                "rows": rows.int(),
                "columns": columns.int(),
                "values": data[rows][:, columns].contiguous(),
            }
    layout = min(candidates, key=lambda key: sum(part.nbytes for part in candidates[key].values()))
    return layout, candidates[layout]


def _expanded(name: str, layout: Mapping[str, Any], parts: Mapping[str, Tensor], file: Path) -> Tensor:
    expand, wanted = _LAYOUTS[layout["layout"]]
    found = {}
    for part in (*wanted, "values"):
        key = f"{name}::{part}" if wanted else name
        if key not in parts:
            raise ValueError(f"{file}: {key!r} is missing. Export the model anew.")
        if _checksum(parts[key]) != layout["crc32"][part]:
            raise ValueError(f"{file}: {key!r} was changed; its checksum differs. Export the model anew.")
        found[part] = parts[key]
    shape, dtype = layout["shape"], getattr(torch, layout["dtype"])
    if found["values"].dtype != dtype:
        raise ValueError(f"{file}: {name!r} has {found['values'].dtype} values, expected {dtype}.")
    try:
        return expand(shape=shape, **found)
    except _Misfit as error:
        raise ValueError(f"{file}: {name!r}: {error}. Export the model anew.") from error


class _Misfit(Exception):
    """Parts of a tensor that do not belong together."""


def _plain(values: Tensor, shape: list[int]) -> Tensor:
    if list(values.shape) != shape:
        raise _Misfit(f"shape {tuple(values.shape)}, expected {tuple(shape)}")
    return values


def _from_bits(bits: Tensor, values: Tensor, shape: list[int]) -> Tensor:
    count = math.prod(shape)
    if bits.dtype != torch.uint8 or bits.shape != (-(-count // 8),):
        raise _Misfit(f"a bitmask of {bits.numel()} {bits.dtype} for {count} entries")
    unpacked = np.unpackbits(bits.numpy(), bitorder="little")
    if unpacked[count:].any():
        raise _Misfit(f"the bitmask goes on after its {count} entries")
    mask = torch.from_numpy(unpacked[:count].view(np.bool_))
    kept = int(mask.sum())
    if values.shape != (kept,):
        raise _Misfit(f"{values.numel()} values for {kept} bits that are set")
    dense = torch.zeros(count, dtype=values.dtype)
    dense[mask] = values
    return dense.reshape(shape)


def _from_submatrix(rows: Tensor, columns: Tensor, values: Tensor, shape: list[int]) -> Tensor:
    for what, index, size in (("rows", rows, shape[0]), ("columns", columns, shape[1])):
        rising = bool((index[1:] > index[:-1]).all())
        if not rising or (len(index) and not 0 <= int(index[0]) <= int(index[-1]) < size):
            raise _Misfit(f"{what} that are not rising numbers below {size}")
    if values.shape != (len(rows), len(columns)):
        raise _Misfit(f"a submatrix of {tuple(values.shape)} for {len(rows)} rows and {len(columns)} columns")
    dense = torch.zeros(shape, dtype=values.dtype)
    dense[rows.long()[:, None], columns.long()] = values
    return dense


# Layout -> how it becomes dense again, and which parts it stores besides the values.
_LAYOUTS: Mapping[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "plain": (_plain, ()),
    "bitmask": (_from_bits, ("bits",)),
    "submatrix": (_from_submatrix, ("rows", "columns")),
}


def _packed(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.numpy(), bitorder="little"))


def _checksum(tensor: Tensor) -> int:
    """Of the bytes, the dtype and the shape: a changed header is found as well as a changed value."""
    kind = f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    return zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, zlib.crc32(kind))
