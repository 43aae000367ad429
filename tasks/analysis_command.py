"""`argprune analyse`: what a finished run's masks look like, and what became of its word embeddings.

Numbers go to OUTPUT/patterns.json, a map of each matrix's density to OUTPUT/patterns.svg (or .png).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from argprune.models import load_model
from argprune.models.factorised import is_low_rank
from argprune.models.patterns import Pattern, Spread, density_map, find_patterns, neighbour_overlap
from argprune.tasks.data import load_task
from argprune.tasks.outputs import make_folder
from argprune.tasks.runs import MASKS, MODEL, RunDirectory, write_json
from argprune.tasks.task_options import TaskOptions

NUMBERS, PICTURE = "patterns.json", "patterns.{suffix}"
_SUFFIXES = ("svg", "png")
# Words whose neighbours are compared, drawn by the run's seed.
_WORDS = 1000
_NEIGHBOURS = 10


@dataclass(frozen=True)
class Analysis:
    """What to analyse: the options of the command line.

    run: a finished run directory, with masks of matrices. output: the folder for numbers and picture, made if it is not
    there. picture: "svg", "png" or "none". overwrite: replace an earlier analysis.
    """

    run: Path
    output: Path
    picture: str = "svg"
    overwrite: bool = False

    def check(self) -> None:
        """Raise ValueError or ImportError, in one line, unless this can be done."""
        run = RunDirectory(self.run)
        if not run.finished:
            raise ValueError(f"{self.run} is no finished run (no metrics.json); give a folder of argprune prune.")
        if all(bool(mask.all()) for mask in _read_masks(self.run).values()):
            raise ValueError(f"{self.run} pruned nothing; give a run whose masks are of something.")
        if is_low_rank(self.run / MODEL):
            raise ValueError(f"{self.run} is a low-rank run: it drops components, which have no place in a matrix.")
        if self.picture not in (*_SUFFIXES, "none"):
            raise ValueError(f"--picture {self.picture!r}; give {', '.join(_SUFFIXES)} or none.")
        if self.picture != "none" and find_spec("matplotlib") is None:
            raise ImportError("A picture needs matplotlib: pip install 'argprune[report]', or give --picture none.")
        if os.path.exists(self.output) and not os.path.isdir(self.output):
            raise ValueError(f"Output {self.output} is a file; give a folder.")
        for name in (NUMBERS, PICTURE.format(suffix=self.picture)):
            if os.path.exists(self.output / name) and not self.overwrite:
                raise ValueError(f"Output {self.output} holds {name}; give --overwrite to replace it.")


def analysis_command(analysis: Analysis, *, quiet: bool = False) -> int:
    """Analyse a run, write what was found, and print a table of it; 0. Raises as `Analysis.check` does."""
    analysis.check()
    make_folder(analysis.output, analysis.output)
    logging.disable_progress_bar()
    metrics = RunDirectory(analysis.run).metrics()
    masks = _read_masks(analysis.run)
    model = _load(str(analysis.run / MODEL), metrics)
    patterns = find_patterns(model, masks)
    overlap = _overlap(model, metrics)
    if analysis.picture != "none":
        draw(patterns, masks, analysis.output / PICTURE.format(suffix=analysis.picture), metrics)
    write_json(
        analysis.output / NUMBERS,
        {
            "run": str(analysis.run),
            "method": metrics["method"],
            "sparsity": metrics["sparsity"],
            "patterns": [asdict(pattern) for pattern in patterns],
            "neighbour_overlap": overlap,
        },
    )
    if not quiet:
        _print(patterns, overlap)
        print(f"Folder: {analysis.output}")
    return 0


def _read_masks(run: Path) -> dict[str, Tensor]:
    try:
        return load_file(run / MASKS)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{run / MASKS} cannot be read: {error}") from error


def _load(name: str, metrics: Mapping[str, Any]) -> PreTrainedModel:
    config = metrics["config"]
    task = load_task(metrics["task"], config["data_dir"], TaskOptions.of(config))
    return load_model(name, kind=task.kind, **task.model_options())


def _overlap(model: PreTrainedModel, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """How many of a word's neighbours are still there, compared with the model that training began with."""
    first = _load(metrics["model"], metrics)
    before, after = (_words(each) for each in (first, model))
    generator = torch.Generator().manual_seed(metrics["seed"])
    words = torch.randperm(len(before), generator=generator)[:_WORDS].sort().values.tolist()
    neighbours = min(_NEIGHBOURS, len(before) - 1)
    return {
        "words": len(words),
        "neighbours": neighbours,
        "overlap": neighbour_overlap(before, after, neighbours=neighbours, words=words),
        "by_chance": neighbours / (len(before) - 1),
    }


def _words(model: PreTrainedModel) -> Tensor:
    embedding: Any = model.get_input_embeddings()
    weight: Tensor = embedding.weight
    return weight.detach()


def draw(patterns: Sequence[Pattern], masks: Mapping[str, Tensor], file: Path, metrics: Mapping[str, Any]) -> None:
    """A density map of each matrix: a row a layer, a column a kind of matrix."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    places = find_places([pattern.name for pattern in patterns])
    kinds = list(dict.fromkeys(place.kind for place in places))
    layers = list(dict.fromkeys(place.layer for place in places))
    maps = [density_map(m.t() if p.transposed else m).numpy() for p, m in ((p, masks[p.name]) for p in patterns)]
    style: Any = {"svg.hashsalt": "argprune", "svg.fonttype": "none", "font.family": "sans-serif"}
    with matplotlib.rc_context(style):
        size = 1.5 * len(kinds) + 1, 1.6 * len(layers) + 0.6
        figure, axes = plt.subplots(len(layers), len(kinds), figsize=size, squeeze=False, layout="constrained")
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
            # A decoder's layers have matrices that an encoder's lack.
            axis.set_visible(False)
        most = max(float(found.max()) for found in maps)
        begun_rows: set[int] = set()
        begun_columns: set[int] = set()
        for pattern, place, found in zip(patterns, places, maps, strict=True):
            row, column = layers.index(place.layer), kinds.index(place.kind)
            axis = axes[row][column]
            axis.set_visible(True)
            image = axis.imshow(found, vmin=0, vmax=most, cmap="viridis", aspect="auto", interpolation="nearest")
            title = f"{1 - pattern.density:.0%} zeros"
            axis.set_title(title if column in begun_columns else f"{place.kind}\n{title}", fontsize=6)
            if row not in begun_rows:
                axis.set_ylabel(f"layer {place.layer}" if place.layer.isdecimal() else place.layer, fontsize=7)
            begun_rows.add(row)
            begun_columns.add(column)
        figure.suptitle(f"{metrics['method']}, {metrics['sparsity']['encoder']:.0%} zeros: what is kept", fontsize=9)
        figure.colorbar(image, ax=axes, label="share kept", shrink=0.6)
        metadata: Any = {"Date": None, "Creator": None} if file.suffix == ".svg" else None
        figure.savefig(file, metadata=metadata, dpi=150)
        plt.close(figure)


@dataclass(frozen=True)
class Place:
    """Where a matrix stands: its layer, with the stack of layers where there are several, and which one of it."""

    layer: str
    kind: str


def find_places(names: Sequence[str]) -> list[Place]:
    """The places of weights, by their names; no two have the same."""
    stacks, layers, kinds = zip(*map(_split, names), strict=True)
    words = [stack.split(".") if stack else [] for stack in stacks]
    numbered = [set(own) for own in words if own]
    shared = set.intersection(*numbered) if numbered else set()
    # Of "encoder.block" and "decoder.block" the word that tells them apart.
    labels = [" ".join(word for word in own if word not in shared) for own in words]
    return [Place(f"{label} {layer}".strip(), kind) for label, layer, kind in zip(labels, layers, kinds, strict=True)]


def _split(name: str) -> tuple[str, str, str]:
    """The stack, the layer's number and the rest of a weight's name; a weight of no layer has the rest alone."""
    found = re.fullmatch(r"(.*?)\.(\d+)\.(.+)", name)
    stack, layer, kind = found.groups() if found else ("", "", name)
    return stack, layer, kind.removesuffix(".weight")


def _print(patterns: Sequence[Pattern], overlap: Mapping[str, Any]) -> None:
    table = Table(title="dispersion: 1 for a random mask of equal density; empty: by chance in brackets")
    for heading in ("layer", "matrix", "zeros", "rows", "columns", "heads", "empty rows", "empty columns"):
        is_name = heading in ("layer", "matrix")
        table.add_column(heading, justify="left" if heading == "matrix" else "right", no_wrap=is_name, overflow="fold")
    for pattern, place in zip(patterns, find_places([pattern.name for pattern in patterns]), strict=True):
        table.add_row(
            place.layer,
            place.kind,
            f"{1 - pattern.density:.1%}",
            *(_dispersion(spread) for spread in (pattern.rows, pattern.columns, pattern.heads)),
            *(f"{spread.empty} ({spread.empty_by_chance:.1f})" for spread in (pattern.rows, pattern.columns)),
        )
    Console().print(table)
    print(
        f"word embeddings: {overlap['overlap']:.1%} of the {overlap['neighbours']} nearest neighbours of "
        f"{overlap['words']} words are those of the model before training ({overlap['by_chance']:.1%} by chance)"
    )


def _dispersion(spread: Spread | None) -> str:
    return "" if spread is None or spread.dispersion is None else f"{spread.dispersion:.2f}"
