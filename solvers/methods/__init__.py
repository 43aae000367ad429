"""Pruning methods, one file each; importing this package registers them."""

from argprune.solvers.methods.base import Method as Method
from argprune.solvers.methods.dense import Dense as Dense
from argprune.solvers.methods.l0 import L0 as L0
from argprune.solvers.methods.magnitude import Magnitude as Magnitude
from argprune.solvers.methods.movement import Movement as Movement
from argprune.solvers.methods.outputs import Outputs as Outputs
from argprune.solvers.methods.outputs import Prediction as Prediction
from argprune.solvers.methods.pins import PINS as PINS
from argprune.solvers.methods.platon import PLATON as PLATON
from argprune.solvers.methods.proximal import Proximal as Proximal
from argprune.solvers.methods.rpp import RPP as RPP
from argprune.solvers.methods.soft_movement import SoftMovement as SoftMovement
