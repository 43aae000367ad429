"""How entries are tied, within a matrix and across matrices: which of them are kept or pruned together."""

from argprune.solvers.groups.base import Columns as Columns
from argprune.solvers.groups.base import Elements as Elements
from argprune.solvers.groups.base import Groups as Groups
from argprune.solvers.groups.base import Rows as Rows
from argprune.solvers.groups.base import Weight as Weight
from argprune.solvers.groups.base import Whole as Whole
from argprune.solvers.groups.base import group_norms as group_norms
from argprune.solvers.groups.base import group_sizes as group_sizes
from argprune.solvers.groups.blocks import BlockColumns as BlockColumns
from argprune.solvers.groups.blocks import BlockRows as BlockRows
from argprune.solvers.groups.blocks import Blocks as Blocks
from argprune.solvers.groups.blocks import Runs as Runs
from argprune.solvers.groups.blocks import Stacked as Stacked
from argprune.solvers.groups.blocks import Transposed as Transposed
from argprune.solvers.groups.tied import Part as Part
from argprune.solvers.groups.tied import Tied as Tied
