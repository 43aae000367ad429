"""`argprune verify criteria`: criteria on blocks of a real model's weights, against exact optima and the true loss."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from torch import nn
from transformers import PreTrainedModel, set_seed

from argprune.models import find_weights, load_model, load_tokenizer
from argprune.solvers import registry
from argprune.solvers.criteria import Criterion, build
from argprune.solvers.groups import Rows, Weight
from argprune.solvers.ilp import Selection, solve
from argprune.solvers.verify.criteria import BlockReport, check_criteria, scores_of
from argprune.solvers.verify.landscape import check_units
from argprune.solvers.verify.summary import summarise
from argprune.tasks.criteria_blocks import (
    CURVED,
    Curvature,
    Seen,
    draw_places,
    evidence_of,
    look,
    make_block,
    matrix_losses,
    matrix_of,
)
from argprune.tasks.criteria_files import results_csv, results_dict
from argprune.tasks.criteria_suffix import BATCH_SIZE, Batch, Suffix, make_batches
from argprune.tasks.criteria_table import Layer, Results, print_results
from argprune.tasks.data import load_classification
from argprune.tasks.encoded import Encoded
from argprune.tasks.outputs import check_target
from argprune.tasks.prune import prune
from argprune.tasks.runs import MODEL, RunDirectory, write_atomic, write_json
from argprune.tasks.settings import Settings
from argprune.tasks.texts import Classification


@dataclass(frozen=True)
class Check:
    """What `argprune verify criteria` is asked; checked once, before anything is loaded.

    model: `minilm`, a hub id or a folder; one without a trained head is fine-tuned first, in the run directory `dense`
    (default: runs/verify/MODEL-TASK-seedN), unless `pretrained`. layers: patterns of weight names; empty for three over
    the depth. blocks: of each layer. size: units (columns) of a block; keep: of them (default: half); rows: of a unit.
    examples: held-out rows that the true loss is the mean over; calibration: training rows that criteria and surrogates
    see; max_length: tokens a text is cut to. criteria: names with options; empty for all. exhaustive: evaluate every
    mask. matrix: also prune whole weights to the same density. learning_rate: of the step that criteria see.
    """

    model: str = "minilm"
    task: str = "stdlib-docs"
    data_dir: str | None = None
    layers: Sequence[str] = ()
    blocks: int = 4
    size: int = 16
    keep: int | None = None
    rows: int = 1
    examples: int = 64
    calibration: int = 256
    max_length: int = 24
    curvature: Curvature = "hessian"
    criteria: Sequence[Mapping[str, Any]] = ()
    exhaustive: bool = False
    matrix: bool = True
    learning_rate: float = Settings.learning_rate
    seed: int = 0
    dense: str | None = None
    pretrained: bool = False
    kept: int = field(init=False)

    def __post_init__(self) -> None:
        for name, least in {
            "blocks": 1,
            "size": 2,
            "rows": 1,
            "examples": 1,
            "calibration": 1,
            "max_length": 3,
        }.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)}; give at least {least}.")
        if self.calibration > BATCH_SIZE and self.calibration % BATCH_SIZE:
            # Criteria average over batches, surrogates over examples: of equal batches both are one mean.
            raise ValueError(f"calibration {self.calibration}; give a multiple of the batch size, {BATCH_SIZE}.")
        object.__setattr__(self, "kept", self.size // 2 if self.keep is None else self.keep)
        if not 0 < self.kept < self.size:
            raise ValueError(f"keep {self.kept} of {self.size} units; need 0 < keep < size.")
        if self.curvature not in get_args(Curvature):
            raise ValueError(f"curvature {self.curvature!r}; choose one of {', '.join(get_args(Curvature))}.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate {self.learning_rate}; it must be finite and > 0.")
        if self.pretrained and self.dense is not None:
            raise ValueError("--pretrained and --dense; a model is taken as it is, or fine-tuned first.")
        check_units(self.size, direct=self.exhaustive)


def criteria_command(
    check: Check, *, json_file: str | None, csv_file: str | None, plot_file: str | None, quiet: bool
) -> int:
    """Carry out a check, print its tables, write its files; 0. Raises ValueError for bad input before the long work."""
    for option, file in (("json", json_file), ("csv", csv_file), ("plot", plot_file)):
        if file is not None:
            check_target(option, file)
    if plot_file is not None:
        from argprune.tasks.criteria_plot import check_file

        check_file(plot_file)
    console = Console(stderr=True, soft_wrap=True, highlight=False)

    def say(text: str) -> None:
        if not quiet:
            console.print(text, markup=False)

    results = run_check(check, say, quiet=quiet)
    if not quiet:
        print_results(results, Console(width=None if sys.stdout.isatty() else 160))
    if json_file is not None:
        write_json(Path(json_file), results_dict(results))
    if csv_file is not None:
        write_atomic(Path(csv_file), results_csv(results))
    if plot_file is not None:
        from argprune.tasks.criteria_plot import draw

        draw(results, plot_file)
    return 0


def run_check(check: Check, say: Callable[[str], None] = lambda _: None, *, quiet: bool = True) -> Results:
    """Carry out a check; `say` hears one line a block. Raises ValueError for bad input, before the long work."""
    began = time.perf_counter()
    criteria = named_criteria(check.criteria)
    task = load_classification(check.task, check.data_dir)
    model, source = _load(check, task, say, quiet=quiet)
    weights = choose_weights(model, check.layers)
    places = [
        draw_places(weight, check.size, check.rows, check.blocks, 1000 * check.seed + index)
        for index, weight in enumerate(weights)
    ]
    tokenizer = load_tokenizer(source)
    train, held = (
        Encoded(task.splits[split], tokenizer, check.max_length, by_length=split == "validation")
        for split in ("train", "validation")
    )
    batches = make_batches(train, tokenizer, _drawn("calibration", check.calibration, train, "training", check.seed))
    # In order of length, which saves padding.
    held_rows = sorted(_drawn("examples", check.examples, held, "validation", check.seed))
    tests = make_batches(held, tokenizer, held_rows)
    modules = [model.get_submodule(weight.name.removesuffix(".weight")) for weight in weights]
    seen, heldout = look(model, modules, batches), look(model, modules, tests)
    everything = make_batches(held, tokenizer, range(len(held))) if check.matrix else []
    layers = []
    for index, (weight, module) in enumerate(zip(weights, modules, strict=True)):
        curved = [Suffix(model, module, batch) for batch in _first(batches, CURVED)]
        tested = [Suffix(model, module, batch) for batch in tests]
        reports: list[BlockReport] = []
        for number, place in enumerate(places[index]):
            block = make_block(
                f"{weight.name}[{_listed(place.rows.tolist())}, {_listed(place.columns.tolist())}]",
                place,
                seen[index],
                heldout[index],
                curved,
                tested,
                keep=check.kept,
                curvature=check.curvature,
                learning_rate=check.learning_rate,
                weight_decay=Settings.weight_decay,
            )
            reports.append(check_criteria(block, criteria, direct=check.exhaustive, seed=check.seed))
            say(f"[{index * check.blocks + number + 1}/{len(weights) * check.blocks}] {_progress(weight, reports[-1])}")
        whole = _whole(check, model, module, weight, criteria, seen[index], everything) if check.matrix else {}
        if whole:
            say(f"{weight.name} as a whole: {min(whole, key=whole.__getitem__)} loses least")
        layers.append(Layer(weight.name, tuple(matrix_of(weight).shape), tuple(reports), *summarise(reports), whole))
    overall, references = summarise([report for layer in layers for report in layer.reports])
    formulas = {name: criterion.formula for name, criterion in criteria.items()}
    return Results(check, source, tuple(layers), overall, references, formulas, time.perf_counter() - began)


def named_criteria(specs: Sequence[Mapping[str, Any]]) -> dict[str, Criterion]:
    """Criteria by the name to report; without specs every registered one, in every variant of its examples."""
    given: list[Mapping[str, Any]] = [
        {"name": name, **example}
        for name, entry in registry.registered("criteria").items()
        for example in entry.examples
    ]
    named: dict[str, Criterion] = {}
    for spec in specs or given:
        options = ", ".join(f"{key}={value}" for key, value in spec.items() if key != "name")
        label = f"{spec['name']} {options}".strip()
        if label in named:
            raise ValueError(f"Criterion {label!r} is given twice; give each once, or other options.")
        named[label] = build(spec)
    return named


def choose_weights(model: nn.Module, patterns: Sequence[str]) -> list[Weight]:
    """The weights that match, or the first, middle and last of one kind: the blocks' last square one, or their last."""
    if patterns:
        return find_weights(model, patterns)
    kinds: dict[str, list[Weight]] = {}
    for weight in find_weights(model):
        kinds.setdefault(re.sub(r"\d+", "#", weight.name), []).append(weight)
    square = [kind for kind in kinds.values() if len(set(kind[0].parameter.shape)) == 1]
    chosen = (square or list(kinds.values()))[-1]
    return [chosen[index] for index in sorted({0, len(chosen) // 2, len(chosen) - 1})]


def _load(
    check: Check, task: Classification, say: Callable[[str], None], *, quiet: bool
) -> tuple[PreTrainedModel, str]:
    """The frozen model, fine-tuned first where it has no trained head, and the folder or name it came from."""
    set_seed(check.seed)
    source = check.model
    model = load_model(source, num_labels=len(task.labels))
    trained = any("ForSequenceClassification" in name for name in model.config.architectures or ())
    if not trained and not check.pretrained:
        folder = Path(check.dense or f"runs/verify/{Path(check.model).name}-{check.task}-seed{check.seed}")
        source = _fine_tuned(check, folder, say, quiet=quiet)
        model = load_model(source, num_labels=len(task.labels))
    return model.eval().requires_grad_(False), source


def _fine_tuned(check: Check, folder: Path, say: Callable[[str], None], *, quiet: bool) -> str:
    """The model of the dense run in a folder: a finished one as it is, otherwise one of default settings."""
    run = RunDirectory(folder)
    if run.finished:
        _check_agrees(check, run)
        say(f"{check.model} has no trained head: taking that of the run {folder} (--pretrained: take it as is).")
        return str(folder / MODEL)
    say(f"{check.model} has no trained head: fine-tuning on {check.task} in {folder} (--pretrained: take it as is).")
    prune(
        check.model,
        check.task,
        method="dense",
        sparsity=0.0,
        output=folder,
        resume=True,
        quiet=quiet,
        seed=check.seed,
        data_dir=check.data_dir,
    )
    return str(folder / MODEL)


def _check_agrees(check: Check, run: RunDirectory) -> None:
    """Raise ValueError unless a finished run is a dense one of the same model on the same task."""
    metrics = run.metrics()
    for name, wanted in (("method", "dense"), ("model", check.model), ("task", check.task)):
        found = metrics.get(name)
        if found != wanted and not (name == "model" and _same_folder(str(found), wanted)):
            raise ValueError(f"{run.path} is a run of {name} {found!r}, not {wanted!r}; give --dense another folder.")


def _same_folder(first: str, second: str) -> bool:
    folders = [Path(name).expanduser() for name in (first, second)]
    return all(map(os.path.isdir, folders)) and os.path.samefile(*folders)


def _drawn(name: str, count: int, data: Encoded, split: str, seed: int) -> list[int]:
    if count > len(data):
        raise ValueError(f"{name} {count}, but the {split} split has {len(data)} rows; give at most that.")
    return torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count].tolist()


def _first(batches: Sequence[Batch], examples: int) -> list[Batch]:
    """The first batches that hold so many examples, or all."""
    sizes = torch.tensor([len(batch.labels) for batch in batches]).cumsum(0)
    return list(batches[: int((sizes < examples).sum()) + 1])


def _listed(numbers: Sequence[int], most: int = 3) -> str:
    shown = " ".join(str(number) for number in numbers[:most])
    return shown if len(numbers) <= most else f"{shown} .. ({len(numbers)})"


def _progress(weight: Weight, report: BlockReport) -> str:
    found = {
        "exhaustive": f"best of all {report.masks} masks",
        "screened": f"best of {report.masks} masks, {report.evaluations} evaluated",
        "best known": f"best of {report.evaluations} masks evaluated",
    }[report.proof]
    return (
        f"{weight.name}: {found}: {report.best:+.2e}, random {report.random:+.2e} on {report.base:.4f}; "
        f"{report.seconds:.0f} s"
    )


def _whole(
    check: Check,
    model: PreTrainedModel,
    module: nn.Module,
    weight: Weight,
    criteria: Mapping[str, Criterion],
    seen: Sequence[Seen],
    batches: Sequence[Batch],
) -> dict[str, float]:
    """What the whole weight loses on the whole validation split, by criterion, every row at the blocks' density."""
    matrix = matrix_of(weight)
    keep = round(matrix.shape[1] * check.kept / check.size)
    evidence = evidence_of(seen, matrix, check.learning_rate, Settings.weight_decay)
    masks = [
        solve(Selection(-scores_of(criterion, matrix, evidence), keep=keep, groups=Rows()), certify=False).masks[0]
        for criterion in criteria.values()
    ]
    distinct, which = torch.stack(masks).unique(dim=0, return_inverse=True)
    losses = matrix_losses(model, module, matrix, batches, distinct)[which]
    return dict(zip(criteria, losses.tolist(), strict=True))
