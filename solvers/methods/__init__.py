"""Pruning methods, one file each; importing this package registers them."""

from argprune.solvers.methods.admm import ADMM as ADMM
from argprune.solvers.methods.base import Method as Method
from argprune.solvers.methods.block_lasso import BlockLasso as BlockLasso
from argprune.solvers.methods.dense import Dense as Dense
from argprune.solvers.methods.flop import Flop as Flop
from argprune.solvers.methods.l0 import L0 as L0
from argprune.solvers.methods.low_rank import FactorPlan as FactorPlan
from argprune.solvers.methods.low_rank import LowRank as LowRank
from argprune.solvers.methods.magnitude import Magnitude as Magnitude
from argprune.solvers.methods.movement import Movement as Movement
from argprune.solvers.methods.one_shot import ALPS as ALPS
from argprune.solvers.methods.one_shot import OBS as OBS
from argprune.solvers.methods.one_shot import OneShot as OneShot
from argprune.solvers.methods.one_shot import OneShotADMM as OneShotADMM
from argprune.solvers.methods.one_shot import OneShotMagnitude as OneShotMagnitude
from argprune.solvers.methods.one_shot import ShrunkADMM as ShrunkADMM
from argprune.solvers.methods.one_shot import SparseGPT as SparseGPT
from argprune.solvers.methods.one_shot import Wanda as Wanda
from argprune.solvers.methods.outputs import Outputs as Outputs
from argprune.solvers.methods.outputs import Prediction as Prediction
from argprune.solvers.methods.pins import PINS as PINS
from argprune.solvers.methods.platon import PLATON as PLATON
from argprune.solvers.methods.proximal import Proximal as Proximal
from argprune.solvers.methods.rpp import RPP as RPP
from argprune.solvers.methods.soft_movement import SoftMovement as SoftMovement
from argprune.solvers.methods.svd import Svd as Svd
