"""Pruning methods, one file each; importing this package registers them."""

from argprune.solvers.methods.base import Method as Method
from argprune.solvers.methods.dense import Dense as Dense
from argprune.solvers.methods.magnitude import Magnitude as Magnitude
from argprune.solvers.methods.proximal import Proximal as Proximal
from argprune.solvers.methods.rpp import RPP as RPP
