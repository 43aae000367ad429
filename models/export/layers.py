"""Linear layers for inference that skip zeros, each fast for other patterns.

    dense    y = x W' + b                                  any
    compact  y[rows] = x[columns] W[rows, columns]' + b    rows and columns that are zero from end to end
    csr      torch's compressed rows (MKL)                 few entries
    bsr      torch's compressed 16 x 16 blocks (MKL)       few blocks
    strips   16 rows with the same columns (strips.py)     blocks and block columns
    rows     every row by itself (strips.py)               few entries, in any place
    2:4      torch's semi-structured, CUDA only            two of every four entries of a row

All take what the layer took that they replace, and hold no parameters: none of them can be trained.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from argprune.models.export.kernels import NoCompiler
from argprune.models.export.strips import make_strips, multiply

_BLOCK = 16


class Unsuitable(ValueError):
    """A layer that a format cannot hold, or this machine cannot run; the message says why."""


class SparseLinear(nn.Module):
    """What the sparse layers share: sizes and bias. A subclass makes itself of (matrix, bias) and has `forward`.

    matrix: float (outputs, inputs) with its zeros; bias: (outputs,) or None. Raises Unsuitable where it does not apply.
    """

    kind: str
    bias: Tensor | None

    def __init__(self, matrix: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = matrix.shape
        with torch.inference_mode(False):
            self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class CompactLinear(SparseLinear):
    """The dense submatrix of the rows and columns that are not zero, between a gather and a scatter."""

    kind = "compact"
    weight: Tensor
    rows: Tensor | None
    columns: Tensor | None

    def __init__(self, matrix: Tensor, bias: Tensor | None) -> None:
        super().__init__(matrix, bias)
        kept = matrix.ne(0)
        rows, columns = kept.any(1), kept.any(0)
        if rows.all() and columns.all():
            raise Unsuitable("compact: no row and no column is zero from end to end.")
        self.register_buffer("rows", None if rows.all() else rows.nonzero().flatten())
        self.register_buffer("columns", None if columns.all() else columns.nonzero().flatten())
        self.register_buffer("weight", matrix[rows][:, columns].clone())
        if bias is not None and self.rows is not None:
            self.register_buffer("read_bias", bias.detach()[rows].clone())
        else:
            self.read_bias = self.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        y = linear(x if self.columns is None else x.index_select(-1, self.columns), self.weight, self.read_bias)
        if self.rows is None:
            return y
        shape = (*x.shape[:-1], self.out_features)
        whole = y.new_zeros(shape) if self.bias is None else self.bias.expand(shape).contiguous()
        return whole.index_copy_(-1, self.rows, y)


class CompressedLinear(SparseLinear):
    """torch's sparse matrices, CSR or BSR, times the transposed input."""

    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        flat = x.reshape(-1, self.in_features)
        y = (self.weight @ flat.t().contiguous()).t()
        y = y.contiguous() if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], self.out_features)


class CSRLinear(CompressedLinear):
    """Compressed rows: the values and their columns, row by row."""

    kind = "csr"

    def __init__(self, matrix: Tensor, bias: Tensor | None) -> None:
        super().__init__(matrix, bias)
        with _quiet():
            self.register_buffer("weight", matrix.contiguous().to_sparse_csr())


class BSRLinear(CompressedLinear):
    """Compressed rows of 16 x 16 blocks."""

    kind = "bsr"

    def __init__(self, matrix: Tensor, bias: Tensor | None) -> None:
        super().__init__(matrix, bias)
        if matrix.shape[0] % _BLOCK or matrix.shape[1] % _BLOCK:
            raise Unsuitable(f"bsr: {tuple(matrix.shape)} does not divide into blocks of {_BLOCK} x {_BLOCK}.")
        with _quiet():
            self.register_buffer("weight", matrix.contiguous().to_sparse_bsr((_BLOCK, _BLOCK)))


class StripLinear(SparseLinear):
    """Strips of 16 rows, which keep the same columns; dense from the first failure to compile on."""

    kind = "strips"
    height = 16

    def __init__(self, matrix: Tensor, bias: Tensor | None) -> None:
        super().__init__(matrix, bias)
        try:
            self.strips = make_strips(matrix, self.height)
        except ValueError as error:
            raise Unsuitable(f"{self.kind}: {error}") from error
        self._dense: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """Stored values, of the matrix's dtype, for code that asks a layer for it."""
        return self.strips.values

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        if self._dense is None:
            try:
                return multiply(self.strips, x, self.bias)
            except NoCompiler as error:
                warnings.warn(f"sparse layers run as dense ones, since nothing compiles here: {error}", stacklevel=2)
                self._dense = self.strips.to_dense()
        return linear(x, self._dense, self.bias)


class RowLinear(StripLinear):
    """Rows with columns of their own."""

    kind = "rows"
    height = 1


class SemiStructuredLinear(SparseLinear):
    """Two of every four entries of a row, by the sparse tensor cores of a GPU."""

    kind = "2:4"
    weight: Tensor

    def __init__(self, matrix: Tensor, bias: Tensor | None) -> None:
        super().__init__(matrix, bias)
        if matrix.device.type != "cuda" or matrix.dtype not in (torch.float16, torch.bfloat16):
            raise Unsuitable(f"2:4: {matrix.dtype} on {matrix.device.type}; give float16 or bfloat16 on cuda.")
        if matrix.shape[1] % 4 or int(matrix.ne(0).reshape(-1, 4).sum(1).max()) > 2:
            raise Unsuitable("2:4: some four entries of a row hold more than two that are not zero.")
        try:
            with _quiet():
                self.register_buffer("weight", torch.sparse.to_sparse_semi_structured(matrix.contiguous()))
        except (RuntimeError, ValueError) as error:
            raise Unsuitable(f"2:4: {str(error).strip().splitlines()[0]}") from error

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        y = linear(x.reshape(-1, self.in_features), self.weight, self.bias)
        return y.reshape(*x.shape[:-1], self.out_features)


FORMATS: Mapping[str, Callable[[Tensor, Tensor | None], SparseLinear]] = {
    layer.kind: layer for layer in (CompactLinear, CSRLinear, BSRLinear, StripLinear, RowLinear, SemiStructuredLinear)
}


def sparse_layer(module: nn.Module, kind: str) -> SparseLinear:
    """The sparse layer of a kind that computes what a Linear or Conv1D computes.

    Raises ValueError for an unknown kind or another module, Unsuitable where the kind cannot hold this layer.
    """
    if kind not in FORMATS:
        raise ValueError(f"Unknown format {kind!r}. Known: {', '.join(FORMATS)}.")
    if not isinstance(module, nn.Linear | Conv1D):
        raise ValueError(f"{type(module).__name__} is no linear layer; give an nn.Linear or a Conv1D.")
    weight = module.weight.detach()
    return FORMATS[kind](weight.t() if isinstance(module, Conv1D) else weight, module.bias)


class _quiet(warnings.catch_warnings):
    """Without torch's note that its sparse tensors are in beta."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", message=".*(beta|prototype) state.*", category=UserWarning)
