"""Sparse matrix times dense matrix for patterns that no library is fast at, on the CPU.

    y[t, r, :] = sum_k values[r, k] x[t, columns[r, k], :]      t: a tile of 32 tokens, the last axis

A strip of rows keeps the same columns, so that what is read of x serves each of them: two rows of a 16 x 16 block or of
a block column, or a single row where nothing is shared. The loop is written in torch and compiled by torch.compile into
eight sums held in registers, two rows by four vectors of tokens, over contiguous memory. Strips differ in how many
columns they keep: sorted by that and cut into five bands, they are padded to the longest of their band. All bands are
in one compiled call, since to call compiled code costs as much as a small product.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

TILE = 32
_LANES = 8
_ROWS = 2
_BANDS = 5


@dataclass(frozen=True)
class Band:
    """Strips of nearly equal length, two rows side by side.

    values: (pairs, columns kept, 2), zero where a strip is shorter. columns: int32 (pairs, columns kept, 1) where both
    rows keep the same, (pairs, columns kept, 2) where each has its own.
    """

    values: Tensor
    columns: Tensor


@dataclass(frozen=True)
class Strips:
    """A sparse matrix as five bands. height: rows of a strip, 1 or 2. position: of each strip among the sorted ones."""

    shape: tuple[int, int]
    height: int
    bands: tuple[Band, ...]
    position: Tensor

    @property
    def entries(self) -> int:
        """Stored values, padding and zeros inside of strips included."""
        return sum(band.values.numel() for band in self.bands)

    def to_dense(self) -> Tensor:
        """The matrix that it was made of."""
        rows, columns = self.shape
        sorted_rows = []
        for values, kept in ((band.values, band.columns) for band in self.bands):
            dense = values.new_zeros(values.shape[0], _ROWS, columns)
            index = kept.long().transpose(1, 2).expand(-1, _ROWS, -1)
            # Added, since padding may name a column a second time, with the value zero.
            sorted_rows.append(dense.scatter_add_(2, index, values.transpose(1, 2)))
        strips = torch.cat(sorted_rows).view(-1, self.height, columns)
        return strips[self.position].reshape(rows, columns)


@torch.inference_mode(False)
def make_strips(matrix: Tensor, height: int) -> Strips:
    """A dense matrix, zeros included, as strips; never as inference tensors, for which kernels are compiled apart.

    matrix: float (rows, columns), rows even and at least 4, at least 2 columns. height: 1, every row by itself, or 2,
    rows in pairs. Raises ValueError for other sizes or another height.
    """
    rows, columns = matrix.shape
    if height not in (1, _ROWS) or rows % _ROWS or rows < 2 * _ROWS or columns < 2:
        raise ValueError(
            f"make_strips: {rows} x {columns} in strips of {height} rows; give an even number of rows from 4 on, "
            f"2 columns at least, and height 1 or 2."
        )
    strips = matrix.reshape(rows // height, height, columns)
    kept = strips.ne(0).any(1)
    lengths = kept.sum(1)
    order = lengths.argsort(descending=True, stable=True)
    each = _ROWS // height
    bands = []
    for first, last in _cut(lengths[order][::each].clamp(min=2).numpy(), _ROWS):
        chosen = order[first * each : last * each]
        length = max(2, int(lengths[chosen[0]]))
        # The columns that are kept come first, in order; the rest of a row is padding, where all values are zero.
        index = kept[chosen].byte().argsort(dim=1, descending=True, stable=True)[:, :length]
        values = strips[chosen].gather(2, index[:, None, :].expand(-1, height, -1))
        bands.append(
            Band(
                values.reshape(-1, _ROWS, length).transpose(1, 2).contiguous(),
                # Of a last size of 1 `contiguous` would keep the stride, for which the kernel is then compiled anew.
                index.int().reshape(-1, each, length).transpose(1, 2).clone(memory_format=torch.contiguous_format),
            )
        )
    while len(bands) < _BANDS:
        # The kernel has five; nothing points to what this one gives.
        bands.append(Band(matrix.new_zeros(2, 2, _ROWS), torch.zeros(2, 2, each, dtype=torch.int32)))
    return Strips((rows, columns), height, tuple(bands), order.argsort())


@torch.no_grad()
def multiply(strips: Strips, x: Tensor, bias: Tensor | None) -> Tensor:
    """x W' + bias for the matrix W of `strips`.

    x: (..., columns), of the matrix's dtype, on the CPU. The first call in a process compiles, or finds what an earlier
    one compiled on disk. Raises torch's TorchDynamoException where nothing can be compiled.
    """
    rows, columns = strips.shape
    flat = x.reshape(-1, columns)
    tokens = flat.shape[0]
    spare = -tokens % TILE
    if spare:
        flat = torch.nn.functional.pad(flat, (0, 0, 0, spare))
    texts = flat.view(-1, TILE, columns)
    # What torch.compile would compile anew for: each gets a function of its own, so that no limit is reached.
    case = (len(texts) == 1, torch.is_inference_mode_enabled(), torch.get_num_threads())
    tables = [table for band in strips.bands for table in (band.values, band.columns)]
    y = _kernel("shared" if strips.height == _ROWS else "own", *case)(texts, *tables)
    y = y.view(len(texts), -1, strips.height * TILE).index_select(1, strips.position)
    y = _kernel("untile", *case)(y.view(-1, rows, TILE), _zeros(rows) if bias is None else bias)
    return y.view(-1, rows)[:tokens].reshape(*x.shape[:-1], rows)


@torch.inference_mode(False)
def _zeros(size: int) -> Tensor:
    return torch.zeros(size)


def _cut(lengths: np.ndarray, least: int) -> list[tuple[int, int]]:
    """Bands of falling lengths, as (first, last + 1), that need the fewest padded entries; each of at least `least`."""
    size = len(lengths)
    # Between equal lengths no cut can pay.
    starts = np.flatnonzero(np.r_[True, lengths[1:] != lengths[:-1]])
    starts = starts[(starts == 0) | ((starts >= least) & (size - starts >= least))]
    edges = np.r_[starts, size]
    cost = np.full((_BANDS + 1, len(edges)), np.inf)
    cost[0, 0] = 0
    origin = np.zeros(cost.shape, dtype=int)
    for bands in range(1, _BANDS + 1):
        for end in range(1, len(edges)):
            wide = edges[end] - edges[:end]
            costs = cost[bands - 1, :end] + np.where(wide >= least, lengths[edges[:end]] * wide, np.inf)
            origin[bands, end] = costs.argmin()
            cost[bands, end] = costs[origin[bands, end]]
    bands, end, found = int(cost[:, -1].argmin()), len(edges) - 1, []
    while end:
        begin = origin[bands, end]
        found.append((int(edges[begin]), int(edges[end])))
        bands, end = bands - 1, begin
    return found[::-1]


def _shared(texts: Tensor, *tables: Tensor) -> Tensor:
    return _products(texts, tables, lambda tiles, columns, row: tiles[:, columns[:, :, 0]])


def _own(texts: Tensor, *tables: Tensor) -> Tensor:
    return _products(texts, tables, lambda tiles, columns, row: tiles[:, columns[:, :, row]])


def _products(texts: Tensor, tables: Sequence[Tensor], read: Callable[[Tensor, Tensor, int], Tensor]) -> Tensor:
    count, _, width = texts.shape
    tiles = texts.transpose(1, 2).contiguous()
    # Without this the compiler would not write the tiles down, but transpose anew whatever it reads.
    tiles = tiles.as_strided((count, width, TILE), (width * TILE, TILE, 1))
    bands = []
    for values, columns in zip(tables[::2], tables[1::2], strict=True):
        # Separate sums, which the compiler puts into one loop and keeps in registers.
        sums = [
            (read(tiles, columns, row)[..., start : start + _LANES] * values[:, :, row, None]).sum(2)
            for row in range(_ROWS)
            for start in range(0, TILE, _LANES)
        ]
        bands.append(torch.stack(sums, 2).view(count, -1, TILE))
    return torch.cat(bands, 1)


def _untile(y: Tensor, bias: Tensor) -> Tensor:
    return y.transpose(1, 2).contiguous() + bias


_BODIES: Mapping[str, Any] = {"untile": _untile, "shared": _shared, "own": _own}


@functools.cache
def _kernel(name: str, single: bool, inference: bool, threads: int) -> Callable[..., Tensor]:
    body = _BODIES[name]
    code = body.__code__.replace(co_name=f"{body.__name__}_{int(single)}{int(inference)}_{threads}")
    own: Any = types.FunctionType(code, body.__globals__, code.co_name)
    compiled: Callable[..., Tensor] = torch.compile(own, dynamic=True, fullgraph=True, options=dict(_OPTIONS))
    compiled(*_examples(name, 1 if single else 5))
    return compiled


_OPTIONS: Mapping[str, Any] = {
    # As many threads as torch has when it runs: a kernel found in the cache on disk may be another process's.
    "cpp.dynamic_threads": True,
    # Multiply and add in one instruction.
    "cpp.enable_floating_point_contract_flag": "fast",
    # The columns come from make_strips, which knows how many there are.
    "assert_indirect_indexing": False,
}


def _examples(name: str, count: int) -> tuple[Tensor, ...]:
    """Inputs to compile with. torch takes equal sizes for always equal, and small ones for not worth a thread."""
    if name == "untile":
        return torch.zeros(count, 776, TILE), _zeros(776)
    tables = []
    with torch.inference_mode(False):
        for pairs, length in ((104, 47), (132, 38), (160, 29), (188, 23), (216, 17)):
            columns = torch.zeros(pairs, length, 1 if name == "shared" else _ROWS, dtype=torch.int32)
            tables += [torch.zeros(pairs, length, _ROWS), columns]
    return torch.zeros(count, TILE, 776), *tables
