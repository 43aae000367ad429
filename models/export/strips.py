"""Sparse matrices in strips of rows that keep the same columns, and their products with many inputs, on the CPU.

    y[t, r] = sum_k values[k, r] x[t, kept[k]]        k: of the strip of r

A strip of 16 rows is what 16 x 16 blocks and block columns leave: what is read of x serves 16 sums, and there is no
padding. A strip of one row holds entries in any place. The products are C++ (kernels.cpp).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from argprune.models.export.kernels import kernels

HEIGHTS = (1, 16)
# Inputs that stay in a core's cache while all strips are multiplied with them, and tokens that a kernel takes at once.
_CACHED, _TOKENS, _TILE = 2**16, 6, 32


@dataclass(frozen=True)
class Strips:
    """A sparse matrix. shape: (rows, columns). height: rows of a strip, 1 or 16.

    values: float32 (columns kept of all strips, height). kept: int32 (columns kept of all strips,), rising in a strip.
    starts: int64 (strips + 1,), where each strip begins among them.
    """

    shape: tuple[int, int]
    height: int
    values: Tensor
    kept: Tensor
    starts: Tensor

    def to_dense(self) -> Tensor:
        """The matrix that it was made of."""
        strips = torch.arange(len(self.starts) - 1).repeat_interleave(self.starts.diff())
        dense = self.values.new_zeros(self.shape[0] // self.height, self.shape[1], self.height)
        dense[strips, self.kept.long()] = self.values
        return dense.transpose(1, 2).reshape(self.shape)


def make_strips(matrix: Tensor, height: int) -> Strips:
    """A dense matrix, zeros included, as strips.

    matrix: float32 on the CPU, (rows, columns), rows a multiple of height. height: 1 or 16.
    Raises ValueError for another matrix or height.
    """
    if matrix.dtype != torch.float32 or matrix.device.type != "cpu":
        raise ValueError(f"{matrix.dtype} on {matrix.device.type}; strips are float32 on the CPU.")
    rows, columns = matrix.shape
    if height not in HEIGHTS or rows % height:
        raise ValueError(f"{rows} x {columns} in strips of {height} rows; give a height of 1, or 16 that divides rows.")
    strips = matrix.detach().reshape(rows // height, height, columns)
    kept = strips.ne(0).any(1)
    strip, column = kept.nonzero(as_tuple=True)
    starts = torch.nn.functional.pad(kept.sum(1).cumsum(0), (1, 0))
    return Strips((rows, columns), height, strips.transpose(1, 2)[strip, column].contiguous(), column.int(), starts)


@torch.no_grad()
def multiply(strips: Strips, x: Tensor, bias: Tensor | None) -> Tensor:
    """x W' + bias for the matrix W of `strips`, on as many threads as torch has.

    x: float32 on the CPU, (..., columns). bias: float32 (rows,) or None. Result: (..., rows), without a gradient.
    The first call on a machine compiles. Raises NoCompiler where that fails, ValueError for another x.
    """
    rows, columns = strips.shape
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.shape[-1] != columns:
        raise ValueError(
            f"inputs {tuple(x.shape)}, {x.dtype} on {x.device.type}; give float32 (..., {columns}) on the CPU."
        )
    flat = x.reshape(-1, columns).contiguous()
    tokens = len(flat)
    y = flat.new_empty(tokens, rows)
    read = flat.new_zeros(rows) if bias is None else bias.contiguous()
    given = (flat, tokens, columns, strips.values, strips.kept, strips.starts, read, y, rows)
    pointers = [value.data_ptr() if isinstance(value, Tensor) else value for value in given]
    if strips.height == 1:
        tiles = flat.new_empty(-(-tokens // _TILE) * _TILE * columns)
        kernels().multiply_rows(*pointers, tiles.data_ptr(), torch.get_num_threads())
    else:
        chunk = max(_TOKENS, _CACHED // columns // _TOKENS * _TOKENS)
        kernels().multiply_strips(*pointers, chunk, torch.get_num_threads())
    return y.view(*x.shape[:-1], rows)
