"""PLATON: keep the weights of largest smoothed sensitivity, times the uncertainty of it.

    for each step t of the pruning phase:
        W <- AdamW step on f;    I <- mean over a window of |g * W|
        at an event:  I_bar <- beta I_bar + (1 - beta) I;    U_bar <- beta_2 U_bar + (1 - beta_2) |I - I_bar|
                      support <- the k(t) entries of largest I_bar * U_bar, over all matrices

Reference: Zhang et al., "PLATON: Pruning Large Transformer Models with Upper Confidence Bound of Weight Importance"
(ICML 2022), as its released code computes it: dossier paper-pins-sparsebert, sections 1.3 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from argprune.solvers.criteria.elementwise import Platon as Sensitivity
from argprune.solvers.methods.scored import Masks, Scored
from argprune.solvers.registry import register


@register("methods", "platon", examples=[{"sparsity": 0.6, "every": 2}, {"sparsity": 0.6, "masks": "persistent"}])
@dataclass
class PLATON(Scored):
    """Sensitivity smoothed over steps, times its uncertainty, ranked over all matrices.

    sparsity: fraction of zeros over the prunable weights at the end, in [0, 1); exact.
    every: steps between events. window: how many of the last of these are averaged; None for all.
    beta, uncertainty: of the two moving averages over windows. scope: "global" or "matrix".
    masks: "soft", pruned weights move freely between events (the released code), "persistent" or "nested".
    warmup, cooldown: fractions of the run before the first and after the last event; the support is fixed at the end.
    """

    sparsity: float
    every: int = 8
    window: int | None = None
    beta: float = 0.85
    uncertainty: float | None = 0.95
    scope: Literal["global", "matrix"] = "global"
    masks: Masks = "soft"
    warmup: float = 0.06
    cooldown: float = 0.4

    def __post_init__(self) -> None:
        self.examples = 1
        self._check("platon")

    def _criterion(self) -> Sensitivity:
        return Sensitivity()
