"""0-1 selection programs."""

from argprune.solvers.ilp.budget_certificate import BudgetCertificate as BudgetCertificate
from argprune.solvers.ilp.certificate import Certificate as Certificate
from argprune.solvers.ilp.closed_form import keep_largest as keep_largest
from argprune.solvers.ilp.closed_form import kth_largest as kth_largest
from argprune.solvers.ilp.group_certificate import GroupCertificate as GroupCertificate
from argprune.solvers.ilp.knapsack import Levels as Levels
from argprune.solvers.ilp.knapsack import choose_levels as choose_levels
from argprune.solvers.ilp.problem import Selection as Selection
from argprune.solvers.ilp.problem import Solution as Solution
from argprune.solvers.ilp.quadratic import Quadratic as Quadratic
from argprune.solvers.ilp.quadratic import QuadraticSolution as QuadraticSolution
from argprune.solvers.ilp.quadratic_exact import solve_quadratic as solve_quadratic
from argprune.solvers.ilp.sharded import solve_sharded as solve_sharded
from argprune.solvers.ilp.solve import solve as solve
from argprune.solvers.ilp.streamed import Shards as Shards
from argprune.solvers.ilp.streamed import StreamedSolution as StreamedSolution
from argprune.solvers.ilp.streamed import solve_streamed as solve_streamed
from argprune.solvers.ilp.transposable import TransposableCertificate as TransposableCertificate
from argprune.solvers.ilp.transposable import solve_transposable as solve_transposable
