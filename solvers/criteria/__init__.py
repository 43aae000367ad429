"""Criteria: importance scores, each with the surrogate of the loss that it minimises; importing registers them."""

from argprune.solvers.criteria.base import Criterion as Criterion
from argprune.solvers.criteria.base import Elementwise as Elementwise
from argprune.solvers.criteria.base import Evidence as Evidence
from argprune.solvers.criteria.base import Smoothing as Smoothing
from argprune.solvers.criteria.base import build as build
from argprune.solvers.criteria.chance import Random as Random
from argprune.solvers.criteria.curvature import OBS as OBS
from argprune.solvers.criteria.elementwise import OBD as OBD
from argprune.solvers.criteria.elementwise import Magnitude as Magnitude
from argprune.solvers.criteria.elementwise import Movement as Movement
from argprune.solvers.criteria.elementwise import Pins as Pins
from argprune.solvers.criteria.elementwise import Platon as Platon
from argprune.solvers.criteria.elementwise import SecondOrder as SecondOrder
from argprune.solvers.criteria.elementwise import SoftMovement as SoftMovement
from argprune.solvers.criteria.elementwise import Taylor as Taylor
from argprune.solvers.criteria.layerwise import OBC as OBC
from argprune.solvers.criteria.layerwise import Layerwise as Layerwise
from argprune.solvers.criteria.layerwise import SparseGPT as SparseGPT
from argprune.solvers.criteria.layerwise import Wanda as Wanda
from argprune.solvers.criteria.layerwise import removals as removals
