"""The constraint set of every matrix: one set for all, or one whose count follows from a sparsity and the shape."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from argprune.solvers import registry
from argprune.solvers.admm.splitting import Projection
from argprune.solvers.groups import Weight
from argprune.solvers.methods.base import keep_count
from argprune.solvers.methods.structures import Structure
from argprune.solvers.prox.sets import SupportSet
from argprune.solvers.prox.structured_sets import KGroups, KPerGroup


class MatrixSets:
    """The sets that a method's `constraint` and `structure` name.

    constraint: a name, or a mapping of `name` and constructor options; None: at most so many nonzeros, or groups with
    nonzeros. structure: of the groups. owner: the method, for errors.

    Raises ValueError for structures that are tied across matrices, and groups for a set that has its own or none.
    """

    def __init__(self, constraint: str | Mapping[str, Any] | None, structure: Structure, owner: str) -> None:
        if structure.kinds:
            raise ValueError(
                f"{owner}: structure {structure.name!r} is tied across matrices, which are projected one by one; "
                f"choose rows, columns, block-rows, block-columns or blocks."
            )
        grouped = structure.name != "elements"
        spec: dict[str, Any] = (
            dict(constraint)
            if isinstance(constraint, Mapping)
            else {"name": constraint or ("k_groups" if grouped else "l0_ball")}
        )
        parameters = inspect.signature(registry.resolve("constraints", str(spec.get("name")))).parameters
        if grouped:
            if "groups" not in parameters or "groups" in spec:
                raise ValueError(
                    f"{owner}: structure {structure.name!r} with constraint {constraint!r}, which has "
                    f"{'its own' if 'groups' in spec else 'no'} groups; leave one of the two out."
                )
            spec["groups"] = structure.groups()
        # Whether the sparsity decides the count.
        self.counted = "keep" in parameters and "keep" not in spec
        self._spec = spec
        # The set itself; where the sparsity decides, one of its kind.
        self.final: Any = registry.build("constraints", {**spec, "keep": 0} if self.counted else spec)

    @property
    def supports(self) -> bool:
        """Whether the sets say which entries are nonzero, and no more."""
        return isinstance(self.final, SupportSet)

    def of(self, weight: Weight, sparsity: float) -> Any:
        """The set of one matrix at a sparsity."""
        if not self.counted:
            return self.final
        matrix = weight.matrix
        if isinstance(self.final, KGroups):
            size = len(self.final.groups.split(matrix))
        elif isinstance(self.final, KPerGroup):
            size = self.final.groups.split(matrix).shape[1]
        else:
            size = matrix.numel()
        return registry.build("constraints", {**self._spec, "keep": keep_count(size, sparsity)})

    def projection(self, weight: Weight, sparsity: float) -> Projection:
        """Projection of a tensor of the parameter's layout, transposed or not, on the set of that matrix."""
        members = self.of(weight, sparsity)

        def project(w: Tensor) -> Tensor:
            return weight.oriented(members.prox(weight.oriented(w), 1.0)).contiguous()

        return project
