"""Matrices of a network as products of two thin ones, with gates, and their way back to smaller dense ones."""

from argprune.models.factorised.checkpoint import METHOD as METHOD
from argprune.models.factorised.checkpoint import LowRankConfig as LowRankConfig
from argprune.models.factorised.checkpoint import LowRankQuantizer as LowRankQuantizer
from argprune.models.factorised.checkpoint import describe as describe
from argprune.models.factorised.compact import Compacted as Compacted
from argprune.models.factorised.compact import compact as compact
from argprune.models.factorised.compact import compact_size as compact_size
from argprune.models.factorised.convert import factorise as factorise
from argprune.models.factorised.embedding import FactorisedEmbedding as FactorisedEmbedding
from argprune.models.factorised.embedding import TiedFactorisedEmbedding as TiedFactorisedEmbedding
from argprune.models.factorised.embedding import TiedFactorisedHead as TiedFactorisedHead
from argprune.models.factorised.grams import input_grams as input_grams
from argprune.models.factorised.linear import FactorisedLinear as FactorisedLinear
from argprune.models.factorised.merging import is_low_rank as is_low_rank
from argprune.models.factorised.merging import load_low_rank as load_low_rank
from argprune.models.factorised.merging import merge_factors as merge_factors
from argprune.models.factorised.places import find_factors as find_factors
