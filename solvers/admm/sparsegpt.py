"""SparseGPT: prune column by column from left to right, the columns to the right making up for what is lost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from argprune.solvers.admm.layer import Layer, Pruned
from argprune.solvers.admm.supports import NM, Grouped, Support, Unstructured
from argprune.solvers.criteria.layerwise import SparseGPT as Scores
from argprune.solvers.groups import Blocks, Columns, Elements, Groups, Rows
from argprune.solvers.prox.sets import L0Ball, SupportSet
from argprune.solvers.prox.structured_sets import KGroups, KPerGroup


@dataclass(frozen=True)
class SparseGPT:
    """With H^-1 = U^T U, U upper triangular: pruning w_j moves the columns after it by -(w_j / U_jj) U_j.

    Masks are chosen a block of columns at a time, by w^2 / U_jj^2 of the weight as updated so far: over the whole block
    (over each of its rows in scope "row"), N:M at the group's first column. Columns to the right of the block are
    updated once it is done. Every block prunes its share, to the nearest whole number that makes the total exact, so
    that a budget is spent evenly along the columns. Weights of dead inputs become 0.
    damping: share of the mean diagonal, >= 0. block: columns, >= 1. Of groups it takes blocks and columns.
    Source: Frantar, Alistarh 2023; dossier paper-pins-sparsebert, section 3.
    """

    damping: float = 0.01
    block: int = 128

    def __post_init__(self) -> None:
        # The criterion refuses options that make no sense.
        Scores(self.damping, self.block)

    def prune(self, layer: Layer) -> Pruned:
        """One pass over the columns. Raises ValueError for groups that reach over all columns, as rows do."""
        support, columns = layer.support, layer.dense.shape[1]
        self.check(support)
        moments = {"moments": layer.gram.double(), "tokens": torch.ones((), dtype=torch.int64)}
        hessian, alive = Scores(self.damping, self.block).hessian(moments)
        root = inverse_root(hessian).to(layer.dense)
        weight = layer.dense * alive
        mask = torch.empty_like(weight, dtype=torch.bool)
        for start in range(0, columns, self.block):
            end = min(start + self.block, columns)
            part, upper = weight[:, start:end], root[start:end, start:end]
            kept = mask[:, start:end]
            if not isinstance(support, NM):
                kept.copy_(_share(support, layer.dense, start, end).select(part.abs() / upper.diagonal()))
            errors = torch.empty_like(part)
            for j in range(end - start):
                if isinstance(support, NM) and j % support.m == 0:
                    group = slice(j, j + support.m)
                    kept[:, group] = support.select(part[:, group].abs() / upper.diagonal()[group])
                errors[:, j] = torch.where(kept[:, j], 0, part[:, j]) / upper[j, j]
                part[:, j:].addr_(errors[:, j], upper[j, j:], alpha=-1)
            part.mul_(kept)
            weight[:, end:].addmm_(errors, root[start:end, end:], alpha=-1)
        return Pruned(weight, mask, {})

    def check(self, support: Support) -> None:
        """Raise ValueError where a group does not lie within a block of columns."""
        groups = support.groups if isinstance(support, Grouped) else Elements()
        if not isinstance(groups, Elements | Blocks | Columns):
            raise ValueError(
                f"SparseGPT: {groups}; columns are done one by one. Give Blocks or Columns, or take 'alps'."
            )
        width = support.m if isinstance(support, NM) else groups.columns if isinstance(groups, Blocks) else 1
        if self.block % width:
            raise ValueError(f"SparseGPT: block {self.block}, groups {width} columns wide. Give a multiple of {width}.")


def _share(support: Support, weight: Tensor, start: int, end: int) -> SupportSet:
    """What a support leaves to the columns from start to end: as many as keep the total up to `end` exact."""
    assert isinstance(support, Unstructured | Grouped)
    groups: Groups = support.groups if isinstance(support, Grouped) else Elements()
    each = weight[:1] if isinstance(support, Unstructured) and support.scope == "row" else weight
    before, through = (len(groups.split(each[:, :column])) for column in (start, end))
    keep = through - before - round(support.sparsity * through) + round(support.sparsity * before)
    if isinstance(support, Grouped):
        return KGroups(keep, groups)
    return KPerGroup(keep, Rows()) if support.scope == "row" else L0Ball(keep)


def inverse_root(hessian: Tensor) -> Tensor:
    """U, upper triangular, with U^T U = H^-1 for a positive definite (n, n) H."""
    # Backwards, H = L L^T; forwards that is H = R R^T with R upper triangular, and U = R^-1.
    root = torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1)
    inverse: Tensor = torch.linalg.solve_triangular(root, torch.eye(len(root)).to(root), upper=True)
    return inverse
