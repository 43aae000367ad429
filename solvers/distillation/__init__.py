"""Learning from a teacher: what is compared of two networks, layer by layer, and how. Tensors in, tensors out."""

from argprune.solvers.distillation.layers import LAYER_RULES as LAYER_RULES
from argprune.solvers.distillation.layers import LayerRule as LayerRule
from argprune.solvers.distillation.layers import layer_losses as layer_losses
from argprune.solvers.distillation.layers import map_layers as map_layers
from argprune.solvers.distillation.losses import prediction_loss as prediction_loss
from argprune.solvers.distillation.losses import score_loss as score_loss
from argprune.solvers.distillation.losses import soft_cross_entropy as soft_cross_entropy
from argprune.solvers.distillation.losses import state_loss as state_loss
from argprune.solvers.distillation.objective import Distillation as Distillation
from argprune.solvers.distillation.projections import Projections as Projections
from argprune.solvers.distillation.projections import fit_projection as fit_projection
from argprune.solvers.distillation.states import States as States
