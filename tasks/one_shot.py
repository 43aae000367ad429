"""One-shot pruning as a run: which rows calibrate, and what every layer lost.

The network is that of the dense reference, as it ended. Calibration rows are drawn from the training split by the run's
seed; the rows on which errors are measured besides are the validation split's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from argprune.models.layerwise import LayerReport, Layerwise, prune_layerwise
from argprune.solvers.groups import Weight
from argprune.solvers.methods import OneShot
from argprune.tasks.encoded import Encoded
from argprune.tasks.progress import Progress
from argprune.tasks.ranks import Ranks
from argprune.tasks.runs import RunDirectory
from argprune.tasks.settings import Settings


@dataclass(frozen=True, eq=False)
class Pruned:
    """Masks by weight name, the layers' reports, what metrics.json says of them, and the rows that were looked at."""

    masks: Mapping[str, Tensor]
    layers: Sequence[LayerReport]
    seconds: float
    rows: Mapping[str, int]

    def report(self) -> dict[str, Any]:
        """Means over all layers, and over those of each kind; seconds are sums."""
        kinds: dict[str, list[LayerReport]] = {}
        for layer in self.layers:
            kinds.setdefault(layer_kind(layer.name), []).append(layer)
        return {
            **_means(self.layers),
            "solver_seconds": sum(layer.seconds for layer in self.layers),
            "kinds": {kind: _means(layers) for kind, layers in kinds.items()},
        }

    def details(self) -> list[dict[str, Any]]:
        """Every layer's report as plain data."""
        return [{**asdict(layer), "shape": list(layer.shape)} for layer in self.layers]


def check_one_shot(method: OneShot, data: Mapping[str, Encoded], batch_size: int) -> None:
    """Raise ValueError where there are too few rows to calibrate on."""
    if method.calibration > len(data["train"]):
        raise ValueError(f"calibration {method.calibration}, but there are {len(data['train'])} training rows.")
    if method.folds > 1 and method.calibration <= batch_size:
        raise ValueError(
            f"folds {method.folds}, but {method.calibration} calibration rows are one batch of {batch_size}, and folds "
            f"are of whole batches; give more rows, or a smaller batch_size."
        )


def prune_one_shot(
    model: PreTrainedModel,
    weights: Sequence[Weight],
    method: OneShot,
    data: Mapping[str, Encoded],
    collate: Callable[[list[dict[str, Any]]], Mapping[str, Tensor]],
    settings: Settings,
    run: RunDirectory,
    progress: Progress,
    ranks: Ranks | None = None,
) -> Pruned:
    """Prune a model in place by a method that is attached to its weights; a line of log.jsonl a layer.

    Several processes compute the same, each for itself; the first one's result is everybody's.
    """
    ranks = ranks or Ranks()
    calibration = drawn(data["train"], method.calibration, settings.seed)
    unseen = drawn(data["validation"], min(method.unseen, len(data["validation"])), settings.seed)
    done = 0

    def say(layer: LayerReport) -> None:
        nonlocal done
        done += 1
        numbers = {key: value for key, value in asdict(layer).items() if key not in ("report", "shape", "name")}
        if ranks.is_first:
            run.append_log({"step": done, "layer": layer.name, **numbers})
        progress.advance(done)
        progress.report({"step": done, "sparsity": layer.sparsity})

    ranks.first(lambda: run.truncate_log(0))
    progress.start(len(weights), 0)
    try:
        found: Layerwise = prune_layerwise(
            model,
            batches(data["train"], calibration, collate, settings.batch_size),
            weights,
            method.solve,
            held_out=batches(data["validation"], unseen, collate, settings.batch_size),
            order=method.order,
            target=method.target,
            damping=method.refit_damping,
            folds=method.folds,
            progress=say,
        )
    finally:
        progress.stop()
    ranks.copy_first([*model.parameters(), *found.masks.values()])
    method.hold(found.masks)
    rows = {"calibration": len(calibration), "unseen": len(unseen)}
    return Pruned(found.masks, found.layers, found.seconds, rows)


def layer_kind(name: str) -> str:
    """What a weight is called in every block: its name after the block's number.

    >>> layer_kind("bert.encoder.layer.3.attention.self.query.weight")
    'attention.self.query'
    """
    return re.sub(r"^.*?\.\d+\.", "", name, count=1).removesuffix(".weight")


def _means(layers: Sequence[LayerReport]) -> dict[str, float]:
    """Of the errors, and of the bounds and gaps where there are some."""
    unseen = [layer.held_out for layer in layers if layer.held_out is not None]
    bounds = [layer.bound for layer in layers if layer.bound is not None]
    values = {"error": [layer.error for layer in layers], "held_out": unseen, "bound": bounds}
    return {name: sum(parts) / len(parts) for name, parts in values.items() if parts}


def drawn(data: Encoded, count: int, seed: int) -> list[int]:
    """So many rows, drawn by the seed, in order of length, which saves padding."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[:count], key=data.lengths.__getitem__)


def batches(
    data: Encoded, rows: Sequence[int], collate: Callable[[list[dict[str, Any]]], Mapping[str, Tensor]], size: int
) -> list[dict[str, Tensor]]:
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [dict(collate([data[row] for row in part])) for part in parts]
