"""Low-rank pruning as a run: weights become factors before training, one matrix again where that is smaller.

The size that counts is what the saved files hold, against the dense model's: sparsity = 1 - kept / dense numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from argprune.models.adaptive import find_clusters
from argprune.models.factorised import compact, factorise, input_grams
from argprune.solvers.groups import Weight
from argprune.solvers.methods import LowRank
from argprune.tasks.certificate import stored_size
from argprune.tasks.encoded import Encoded
from argprune.tasks.one_shot import batches, drawn
from argprune.tasks.settings import Settings

# Rows whose inputs weight the factors of a "whitened" start.
_CALIBRATION = 256


@dataclass(frozen=True)
class DenseSizes:
    """Numbers in the dense model, and in each of its weights to prune."""

    model: int
    weights: Mapping[str, int]

    @property
    def encoder(self) -> int:
        """Numbers in the dense weights."""
        return sum(self.weights.values())


def factor(
    model: PreTrainedModel,
    weights: Sequence[Weight],
    method: LowRank,
    data: Encoded,
    collate: Callable[[list[dict[str, Any]]], Mapping[str, Tensor]],
    settings: Settings,
) -> DenseSizes:
    """Factor the weights of a model in place as the method wants them, and hand it the factors.

    Raises ValueError for weights that are no matrices of linear layers.
    """
    if settings.biases:
        raise ValueError("biases: low-rank methods factor matrices; leave biases out (biases: false).")
    before, plan = model.num_parameters(), method.wants_factors
    # Adaptive embeddings are factors already, a pair for each cluster of words; of a closed one nothing is left.
    clusters = [each for each in find_clusters(model) if each.rank] if plan.embeddings else []
    embeddings = plan.embeddings and not clusters
    grams = None
    if plan.initial == "whitened":
        rows = drawn(data, min(_CALIBRATION, len(data)), settings.seed)
        grams = input_grams(model, weights, batches(data, rows, collate, settings.batch_size), embeddings=embeddings)
    factors = factorise(
        model, weights, initial=plan.initial, rank=plan.rank, grams=grams, embeddings=embeddings, whole=plan.whole
    )
    factors += clusters
    method.take_factors(factors)
    sizes = {weight.name: weight.parameter.numel() for weight in weights}
    return DenseSizes(before, sizes | {each.name: each.dense_size for each in factors})


def merge(model: PreTrainedModel, dense: DenseSizes, target: float) -> dict[str, Any]:
    """Make one matrix again of factors that take more; the entries of metrics.json that tell sparsity."""
    compact(model)
    state = model.state_dict()
    stored = {name: stored_size(name, state) for name in dense.weights}
    saved = dense.encoder - sum(stored.values())
    sizes = {"encoder": dense.encoder, "model": dense.model}
    return {
        "sparsity": {"target": target, **{name: saved / size for name, size in sizes.items()}},
        "compression": {name: size / (size - saved) for name, size in sizes.items()},
        "matrices": {name: 1 - stored[name] / numbers for name, numbers in dense.weights.items()},
    }
