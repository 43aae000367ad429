"""0-1 selection programs."""

from argprune.solvers.ilp.closed_form import keep_largest as keep_largest
from argprune.solvers.ilp.closed_form import kth_largest as kth_largest
