"""Matrices as products of two thin ones: factorisations, their sizes, and ranks within a size."""

from argprune.solvers.low_rank.allocation import Ranks as Ranks
from argprune.solvers.low_rank.allocation import allocate_ranks as allocate_ranks
from argprune.solvers.low_rank.allocation import kept_whole as kept_whole
from argprune.solvers.low_rank.allocation import shares_of_squares as shares_of_squares
from argprune.solvers.low_rank.factorisation import Factorisation as Factorisation
from argprune.solvers.low_rank.factorisation import component_values as component_values
from argprune.solvers.low_rank.factorisation import factorise_random as factorise_random
from argprune.solvers.low_rank.factorisation import factorise_svd as factorise_svd
from argprune.solvers.low_rank.factorisation import factorise_whitened as factorise_whitened
from argprune.solvers.low_rank.factors import FactoredLayer as FactoredLayer
from argprune.solvers.low_rank.factors import Factors as Factors
from argprune.solvers.low_rank.sizes import break_even_rank as break_even_rank
from argprune.solvers.low_rank.sizes import stored_size as stored_size
