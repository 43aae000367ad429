"""Pictures of what masks keep: the density of every matrix of a run in one small PNG."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from argprune.models.patterns import density_map
from argprune.tasks.report.tables import split_name
from argprune.tasks.runs import MASKS

_CELLS, _GAP = 24, 2
# Viridis at 15 places; the colour before them is of the gaps.
_COLOURS = (
    *("440154", "481b6d", "46327e", "3f4788", "365c8d", "2e6e8e", "277f8e", "21918c"),
    *("1fa187", "2db27d", "4ac16d", "73d056", "a0da39", "d0e11c", "fde725"),
)
_BACKGROUND = "808890"


@dataclass(frozen=True)
class Picture:
    """A PNG as a data: address, its size in pixels, and what it shows: layers down, matrices across."""

    source: str
    width: int
    height: int
    layers: int
    kinds: tuple[str, ...]
    most: float


def draw_masks(run: Path) -> Picture | None:
    """The picture of a run's masks of matrices, brightest where most is kept; None where none prunes anything.

    Matrices lie as they are stored. Raises what reading the file raises.
    """
    maps: dict[tuple[str, str], NDArray[np.float32]] = {}
    with safe_open(run / MASKS, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            mask: torch.Tensor = file.get_tensor(name)
            if mask.ndim == 2 and mask.dtype == torch.bool:
                maps[split_name(name)] = density_map(mask, _CELLS).numpy()
    if not maps or min(float(found.min()) for found in maps.values()) == 1:
        return None
    layers = sorted({layer for layer, _ in maps}, key=_natural)
    kinds = list(dict.fromkeys(kind for _, kind in sorted(maps, key=lambda key: _place(key, maps))))
    most = max(float(found.max()) for found in maps.values()) or 1.0
    step = _CELLS + _GAP
    pixels = np.zeros((len(layers) * step - _GAP, len(kinds) * step - _GAP), np.uint8)
    for (layer, kind), found in maps.items():
        top, left = layers.index(layer) * step, kinds.index(kind) * step
        shades = 1 + np.minimum((found / most * len(_COLOURS)).astype(np.uint8), len(_COLOURS) - 1)
        # A matrix smaller than a cell is stretched to fill it.
        rows, columns = (np.arange(_CELLS) * length // _CELLS for length in shades.shape)
        pixels[top : top + _CELLS, left : left + _CELLS] = shades[rows][:, columns]
    source = "data:image/png;base64," + base64.b64encode(png(pixels, (_BACKGROUND, *_COLOURS))).decode()
    return Picture(source, pixels.shape[1], pixels.shape[0], len(layers), tuple(kinds), most)


def png(pixels: NDArray[np.uint8], colours: Sequence[str]) -> bytes:
    """A PNG of 16 colours or fewer. pixels: (height, width), places in colours; colours: rrggbb. W3C (2003)."""
    height, width = pixels.shape
    even = np.pad(pixels, ((0, 0), (0, width % 2)))
    packed = even[:, 0::2] << 4 | even[:, 1::2]
    # Filter 0 before each row.
    rows = np.pad(packed, ((0, 0), (1, 0)))
    header = struct.pack(">IIBBBBB", width, height, 4, 3, 0, 0, 0)
    chunks = [
        (b"IHDR", header),
        (b"PLTE", bytes.fromhex("".join(colours))),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _natural(name: str) -> tuple[str, int]:
    words, _, number = name.rpartition(" ")
    return (words, int(number)) if number.isdigit() else (name, -1)


def _place(key: tuple[str, str], maps: dict[tuple[str, str], NDArray[np.float32]]) -> tuple[int, str]:
    """Attention before what follows it, as data flow; files of tensors are in alphabetical order."""
    attention = ("query", "q_", "key", "k_", "value", "v_", "c_attn", "attention.output", "attn")
    order = (*attention, "intermediate", "fc", "mlp")
    rank = next((at for at, word in enumerate(order) if word in key[1]), len(order))
    return rank, key[1]
