"""One run, from what its options say to the files that it leaves: load and check, train and prune, measure, save."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import EvalPrediction, PreTrainedModel, set_seed
from transformers.trainer_utils import PredictionOutput

from argprune._version import __version__
from argprune.models import (
    add_padding,
    find_ties,
    find_weights,
    load_model,
    load_tokenizer,
    longest_text,
    measure_sparsity,
)
from argprune.models.teacher import Text
from argprune.solvers.groups import Weight
from argprune.solvers.methods import Dense, LowRank, Method, OneShot
from argprune.tasks.augmentation import augment
from argprune.tasks.certificate import SELECTION, certify, certify_size
from argprune.tasks.data import load_task
from argprune.tasks.distillation import (
    CALIBRATION,
    Matched,
    check_student,
    find_distillation,
    match_teacher,
    open_distiller,
    read_texts,
)
from argprune.tasks.encoded import Encoded, LengthGroupedSampler
from argprune.tasks.harness import PruningTrainer, make_trainer, steps_per_epoch, total_steps
from argprune.tasks.low_rank import DenseSizes, factor, merge
from argprune.tasks.one_shot import batches, check_one_shot, drawn, prune_one_shot
from argprune.tasks.options import Plan
from argprune.tasks.progress import Progress, make_progress
from argprune.tasks.ranks import Ranks
from argprune.tasks.runs import CERTIFICATE, MASKS, METRICS, MODEL, SCORES, RunDirectory, write_json
from argprune.tasks.settings import Augment, Settings
from argprune.tasks.sharded_trainer import ShardedTrainer
from argprune.tasks.sharding import Sharding, check_shardable, check_task
from argprune.tasks.task_options import TaskOptions
from argprune.tasks.texts import Judges, Task, hold_out

# Kinds whose tasks see to padding themselves, or need none.
_UNPADDED = frozenset({"causal-lm", "seq2seq-lm", "masked-lm"})
# What Trainer measures of itself.
_OF_TRAINER = frozenset({"runtime", "samples_per_second", "steps_per_second", "model_preparation_time"})


@dataclass(frozen=True)
class Job:
    """A run with all that can fail on bad input already loaded."""

    planned: Plan
    task: Task
    tokenizer: Any
    model: PreTrainedModel
    weights: list[Weight]
    data: Mapping[str, Encoded]
    steps: int
    steps_per_epoch: int
    ranks: Ranks
    # Of a low-rank run, before the weights became factors.
    dense_sizes: DenseSizes | None = None
    # Of a run with fsdp, once it begins: until then the model is whole.
    sharding: Sharding | None = None
    # Of a run with a teacher of its own; the dense reference becomes one only when it is trained.
    matched: Matched | None = None

    @staticmethod
    def prepare(planned: Plan, ranks: Ranks) -> Job:
        """Load and check everything, and attach the method. Raises ValueError for bad input; writes nothing."""
        settings, method = planned.settings, planned.method
        task = load_task(settings.task, settings.data_dir, TaskOptions.of(settings))
        check_task(settings, task, ranks)
        tokenizer = load_tokenizer(settings.model)
        set_seed(settings.seed)
        model = load_model(settings.model, kind=task.kind, **task.model_options())
        limit = getattr(model.config, "max_position_embeddings", settings.max_length)
        if task.kind == "causal-lm" and settings.max_length > limit:
            # Every text is as long as that; of other kinds few are.
            raise ValueError(f"max_length {settings.max_length}, but {settings.model} reads at most {limit} tokens.")
        if task.kind not in _UNPADDED:
            add_padding(model, tokenizer)
        weights = find_weights(model, settings.include, settings.exclude, biases=settings.biases)
        if method.wants_ties:
            method.tie(find_ties(model, method.wants_ties, weights))

        def encoded(rows: Sequence[Any], *, by_length: bool) -> Encoded:
            return Encoded(rows, tokenizer, settings.max_length, by_length=by_length, encode=task.encode)

        data = {split: encoded(rows, by_length=split != "train") for split, rows in task.splits.items()}
        _check_lengths(model, data, settings)
        # A slice held out costs a method rows, not steps, and copies of texts take none.
        steps, each = total_steps(settings, len(data["train"])), steps_per_epoch(settings, len(data["train"]))
        if method.holds_out:
            train, held = hold_out(task.splits["train"], settings.seed)
            data |= {"train": encoded(train, by_length=False), "held-out": encoded(held, by_length=True)}
        if isinstance(settings.augment, Augment):
            data["train"] = augment(settings.augment, data["train"], task, model, tokenizer, settings.seed)
        if isinstance(method, OneShot):
            check_one_shot(method, data, settings.batch_size)
        sizes = None
        if isinstance(method, LowRank):
            sizes = factor(model, weights, method, data["train"], task.collator(tokenizer), settings)
        # Now, so that weights which the method cannot prune are refused before a reference is trained for it.
        method.attach(weights, steps)
        check_shardable(settings, planned.method_name, method, distills=False)
        job = Job(planned, task, tokenizer, model, weights, data, steps, each, ranks, sizes)
        distill = find_distillation(settings, method)
        if distill is not None:
            check_student(distill, model, job.batch(2))
            if distill.teacher is not None:
                return replace(job, matched=job.match(distill.teacher))
        return job

    def batch(self, rows: int) -> Mapping[str, Any]:
        """At most so many training rows, drawn by the seed, as a batch."""
        drawn_rows = drawn(self.data["train"], rows, self.planned.settings.seed)
        [batch] = batches(self.data["train"], drawn_rows, self.task.collator(self.tokenizer), rows)
        return batch

    def _texts(self) -> Iterator[Text]:
        """The training texts that the run comes to see: all, or those of the first steps of an epoch."""
        data, settings = self.data["train"], self.planned.settings
        order = LengthGroupedSampler(data.lengths, settings.batch_size, settings.seed, lambda: 0)
        rows = list(islice(order, self.steps * settings.batch_size))
        return read_texts(data, rows, self.task.collator(self.tokenizer))

    def match(self, teacher: str) -> Matched:
        """A teacher matched to the student, which has not learned yet."""
        distill = find_distillation(self.planned.settings, self.planned.method)
        assert distill is not None
        longest = max(self.data["train"].lengths)
        batch = self.batch(CALIBRATION)
        return match_teacher(distill, teacher, self.model, self.tokenizer, self.task, batch, longest)

    def starting_from(self, folder: Path) -> Job:
        """The same with the model of a folder, to whose weights the method is attached."""
        settings = self.planned.settings
        model = load_model(str(folder), kind=self.task.kind, **self.task.model_options())
        weights = find_weights(model, settings.include, settings.exclude)
        self.planned.method.attach(weights, self.steps)
        return replace(self, model=model, weights=weights)

    def ready(self) -> Job:
        """The same, with the model sharded where the settings say so; the one it is called on is of no use then."""
        if not self.planned.settings.fsdp:
            return self
        sharding = Sharding(self.model, self.weights, self.ranks, self.planned.settings.precision)
        self.planned.method.attach(sharding.weights, self.steps)
        return replace(self, weights=sharding.weights, sharding=sharding)

    def load(self) -> PreTrainedModel:
        """The model as it was before the run."""
        return load_model(self.planned.settings.model, kind=self.task.kind, **self.task.model_options())

    def run(
        self, run: RunDirectory, dense: Mapping[str, Any] | None, reference: Path | None, *, quiet: bool
    ) -> dict[str, Any]:
        """Train, prune, measure and save; what metrics.json says. Raises RunError where training fails.

        dense: the metrics of the dense reference, and reference its folder; None for a dense run.
        """
        method, began = self.planned.method, time.monotonic()
        title = self.planned.method_name + (f" {method.sparsity:.0%}" if method.sparsity else "")
        progress = make_progress(title, quiet=quiet)
        trainer = self._trainer(run, progress)
        self.ranks.first(run.remove_incomplete)
        checkpoint = self.ranks.first(run.last_checkpoint)
        if isinstance(method, OneShot):
            assert dense is not None
            seconds, facts = self._prune_at_once(method, run, dense, progress)
        else:
            seconds, facts = self._train(trainer, checkpoint, run, reference)
        masks, sizes = method.finish(), self.dense_sizes
        ratios = None if sizes is None else merge(self.model, sizes, method.sparsity)
        trainer.check_agreement()
        measured = time.monotonic()
        predicted = {split: trainer.predict(self.data[split]) for split in self.task.splits if split != "train"}
        scores = {split: _score(output) for split, output in predicted.items()}
        seconds["evaluate"] = time.monotonic() - measured
        report = {"method_report": method.report(), **facts}
        state: Mapping[str, Tensor] = {}
        if self.sharding is not None:
            masks, state = self.sharding.masks(masks), self.sharding.state_dict()

        def write() -> dict[str, Any]:
            model, weights = self.whole(state)
            _save(run.path, model, self.tokenizer, masks)
            if isinstance(self.task, Judges):
                _save_scores(run.path, self.task, self.data["test"], predicted["test"])
            metrics = {
                **self._facts(scores, dense),
                **(ratios or _sparsity(model, weights, method)),
                "seconds": {**seconds, "total": time.monotonic() - began},
                **report,
            }
            self._certify(run, metrics["method_report"])
            write_json(run.path / METRICS, metrics)
            if not self.planned.settings.keep_checkpoints:
                run.remove_checkpoints()
            return metrics

        return self.ranks.first(write)

    def _trainer(self, run: RunDirectory, progress: Progress) -> PruningTrainer:
        planned = self.planned
        kind: Callable[..., PruningTrainer] = PruningTrainer
        if self.sharding is not None:
            kind = partial(ShardedTrainer, sharding=self.sharding, load=self.load)
        return make_trainer(
            self.model,
            self.tokenizer,
            self.task,
            self.data,
            planned.method,
            planned.settings,
            self.steps,
            self.steps_per_epoch,
            run,
            progress,
            self.ranks,
            kind,
        )

    def _prune_at_once(
        self, method: OneShot, run: RunDirectory, dense: Mapping[str, Any], progress: Progress
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Seconds, and what metrics.json says of it; training was the reference's."""
        collator, settings = self.task.collator(self.tokenizer), self.planned.settings
        pruned = prune_one_shot(
            self.model, self.weights, method, self.data, collator, settings, run, progress, self.ranks
        )
        rows = {**{split: len(part) for split, part in self.data.items()}, **pruned.rows}
        seconds = {"train": dense["seconds"]["train"], "prune": pruned.seconds}
        return seconds, {"rows": rows, "method_report": pruned.report(), "layers": pruned.details()}

    def _train(
        self, trainer: PruningTrainer, checkpoint: Path | None, run: RunDirectory, reference: Path | None
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Seconds, and what metrics.json says of it."""
        settings = self.planned.settings
        facts: dict[str, Any] = {"rows": {split: len(part) for split, part in self.data.items()}}
        distill = find_distillation(settings, self.planned.method)
        if distill is None or not self.steps:
            return {"train": trainer.fit(checkpoint) if self.steps else 0.0}, facts
        matched = self.matched or self.match(str(reference and reference / MODEL))
        distiller = open_distiller(distill, matched, self.model, self.task, self._texts(), run.path, self.ranks)
        trainer.bridge.distiller = distiller
        with distiller.teaching():
            seconds = {"train": trainer.fit(checkpoint)}
        return seconds, facts | {"distillation": distiller.report()}

    def _facts(self, scores: Mapping[str, Mapping[str, float]], dense: Mapping[str, Any] | None) -> dict[str, Any]:
        """What metrics.json says of the run, whatever its method did."""
        planned = self.planned
        return {
            "task": planned.settings.task,
            "method": planned.method_name,
            "model": planned.settings.model,
            "seed": planned.settings.seed,
            "metric": self.task.metric,
            "larger_is_better": self.task.larger_is_better,
            "steps": self.steps,
            "dense": scores if isinstance(planned.method, Dense) else dense and dense["pruned"],
            "pruned": scores,
            "versions": _versions(self.ranks),
            "config": planned.to_options(),
        }

    def _certify(self, run: RunDirectory, report: Mapping[str, Any]) -> None:
        """Write the certificate of what was saved, with the selection's, if the method reports one."""
        method, sizes = self.planned.method, self.dense_sizes
        certificate = (
            certify(run.path, method.sparsity, method.tolerance)
            if sizes is None
            else certify_size(run.path, method.sparsity, sizes.weights, method.tolerance)
        )
        if selection := report.get("certificate"):
            certificate[SELECTION] = selection
        write_json(run.path / CERTIFICATE, certificate)

    def whole(self, state: Mapping[str, Tensor]) -> tuple[PreTrainedModel, list[Weight]]:
        """The model and its weights to prune; of a sharded one, a whole model with the values of its state (state)."""
        if self.sharding is None:
            return self.model, self.weights
        settings, model = self.planned.settings, self.load()
        model.load_state_dict(state)
        # Training writes into it.
        model.config = self.model.config
        return model, find_weights(model, settings.include, settings.exclude, biases=settings.biases)


def _check_lengths(model: PreTrainedModel, data: Mapping[str, Encoded], settings: Settings) -> None:
    limit = longest_text(model)
    longest = max(length for split in data.values() for length in split.lengths)
    if limit is not None and longest > limit:
        raise ValueError(
            f"max_length {settings.max_length} lets a text have {longest} tokens, but {settings.model} reads at most "
            f"{limit}; give at most that."
        )


def _score(output: PredictionOutput) -> dict[str, float]:
    """All that the task measures, and the loss."""
    assert output.metrics is not None
    named = {name.removeprefix("test_"): value for name, value in output.metrics.items()}
    return {name: value for name, value in named.items() if name not in _OF_TRAINER}


def _save_scores(path: Path, task: Judges, data: Encoded, output: PredictionOutput) -> None:
    """How each test example was done, and of which examples this is: what pairs two runs."""
    scores = task.judge(EvalPrediction(output.predictions, output.label_ids, inputs=data))  # type: ignore[arg-type]
    if scores is not None:
        digest = hashlib.sha256("\n".join(map(repr, data.rows)).encode()).hexdigest()
        save_file({"test": torch.as_tensor(scores)}, path / SCORES, metadata={"rows": digest})


def _sparsity(model: PreTrainedModel, weights: list[Weight], method: Method) -> dict[str, Any]:
    measured = measure_sparsity(model, weights)
    ratios = measured.to_dict()
    return {
        "sparsity": {"target": method.sparsity, **ratios["sparsity"]},
        "compression": ratios["compression"],
        "matrices": dict(measured.matrices),
    }


def _save(path: Path, model: PreTrainedModel, tokenizer: Any, masks: dict[str, Tensor]) -> None:
    temporary = path / ".model.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    shutil.rmtree(path / MODEL, ignore_errors=True)
    os.replace(temporary, path / MODEL)
    save_file({name: mask.cpu().contiguous() for name, mask in masks.items()}, path / f".{MASKS}.tmp")
    os.replace(path / f".{MASKS}.tmp", path / MASKS)


def _versions(ranks: Ranks) -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "transformers", "accelerate", "safetensors", "numpy")}
    return {
        "argprune": __version__,
        "python": platform.python_version(),
        **packages,
        "threads": str(torch.get_num_threads()),
        "processes": str(ranks.size),
    }
