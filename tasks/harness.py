"""The training harness: a transformers.Trainer whose optimizer, loss and batches are a method's and a run's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Sampler
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_pt_utils import nested_concat, nested_numpify
from transformers.trainer_utils import EvalLoopOutput

from argprune.models.outputs import count_terms, read_outputs
from argprune.solvers.methods.base import Method
from argprune.solvers.processes import average_over_processes
from argprune.tasks.bridge import PruningBridge, load_method_state, read_marker
from argprune.tasks.encoded import Encoded, LengthGroupedSampler
from argprune.tasks.parts import Parts, Shares, scaled
from argprune.tasks.progress import Progress
from argprune.tasks.ranks import Ranks
from argprune.tasks.runs import RunDirectory, RunError
from argprune.tasks.settings import Settings
from argprune.tasks.snapshots import Snapshots
from argprune.tasks.texts import DrawsAnew, Task, Writes


class PruningTrainer(Trainer):
    """A Trainer whose optimizer, loss and batches are the method's and the run's."""

    # Whether all processes must take part in every pass through the model.
    computes_together: ClassVar[bool] = False

    def __init__(
        self,
        *args: Any,
        task: Task,
        method: Method,
        bridge: PruningBridge,
        train_lengths: Sequence[int],
        batch_size: int,
        ranks: Ranks,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.compute_metrics, self.preprocess_logits_for_metrics = self.measure, task.reduce
        self._task, self._method, self.bridge = task, method, bridge
        self._evaluated: Encoded | None = None
        self._train_lengths = train_lengths
        self._terms: dict[str, list[float]] = {}
        # Outputs are taken apart, and a teacher asked, only for methods that have terms to add.
        self._adds_terms = type(method).loss_terms is not Method.loss_terms
        if task.kind == "causal-lm":
            # Trainer tells by the names of classes, and GPT-2's does not say it: it would count first tokens, which no
            # model predicts, among what the loss is the mean over.
            self._loss_shifts_labels = True
        self._batch_size, self.ranks = batch_size, ranks
        self._parts = ranks.size * self.args.gradient_accumulation_steps
        self._shares: Shares | None = None
        if self._parts > 1:
            self._shares = Shares(ranks, len(train_lengths), batch_size, self._count_terms)
            # Trainer scales by what models say of themselves, and those that take the number of items need not use it.
            self.model_accepts_loss_kwargs, self.loss_is_scaled_for_ga = False, True

    def _count_terms(self, inputs: Mapping[str, Any]) -> dict[str, int]:
        distiller = self.bridge.distiller
        causal = distiller is not None and distiller.causal
        return count_terms(inputs, next_token=self._task.kind == "causal-lm", causal=causal)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The usual optimizer, as the method wraps it."""
        if self.optimizer is None:
            self.optimizer = self._method.wrap_optimizer(self._plain_optimizer(model))
        return self.optimizer

    def _plain_optimizer(self, model: Any) -> torch.optim.Optimizer:
        return super().create_optimizer(model)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return LengthGroupedSampler(self._train_lengths, self._batch_size, self.args.seed, self._epoch)

    def _epoch(self) -> int:
        return self.state.global_step // math.ceil(len(self._train_lengths) / self._batch_size)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The usual one; of batches in parts, one whose parts add up to the batches of a single process."""
        collator = self.data_collator
        if isinstance(collator, DrawsAnew):
            self.data_collator = collator.of_epochs(self._epoch)
        try:
            return self._train_dataloader()
        finally:
            self.data_collator = collator

    def _train_dataloader(self) -> DataLoader[Any]:
        if self._parts == 1:
            return super().get_train_dataloader()
        loader: DataLoader[Any] = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=Parts(self._get_train_sampler(), len(self._train_lengths), self._batch_size, self._parts),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The parts of a step that this process computes, weighed against those of the others."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._shares is not None:
            self._shares.open(self.state.global_step, batches)
        return batches, items

    def _clip_grad_norm(self, model: Any) -> Any:
        # What is outside of the model's computation has gradients that DDP does not see.
        if self.ranks.size > 1 and self.bridge.distiller is not None:
            average_over_processes([p.grad for p in self.bridge.distiller.parameters() if p.grad is not None])
        return super()._clip_grad_norm(model)

    def renew_reducer(self) -> None:
        """Have DDP look at parameters anew whose shapes have changed."""
        if isinstance(self.model_wrapped, DistributedDataParallel):
            # As after unpickling, which makes the buckets of gradients; nothing else does.
            self.model_wrapped.__setstate__(self.model_wrapped.__getstate__())

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The task's loss plus the method's terms, and the teacher's; a loss that is not finite ends the run."""
        distiller = self.bridge.distiller if model.training else None
        with nullcontext(inputs) if distiller is None else distiller.watching(inputs) as watched:
            loss, outputs = super().compute_loss(
                model, watched, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        if model.training:
            terms = self._loss_terms(outputs, inputs)
            bases: Mapping[str, str] = {}
            if distiller is not None:
                loss = distiller.options.task_loss * loss
                terms |= distiller.terms(outputs, inputs)
                bases = distiller.BASES
            shares = None if self._shares is None else self._shares.next()
            if shares is not None:
                loss = scaled(loss, shares["targets"])
                terms = {name: scaled(term, shares[bases.get(name, "targets")]) for name, term in terms.items()}
            for name, term in terms.items():
                self._terms.setdefault(name, []).append(float(term.detach()))
                loss = loss + term
            if not bool(torch.isfinite(loss)):
                raise RunError(self.failure(f"loss is {float(loss.detach())} at step {self.state.global_step + 1}"))
        return (loss, outputs) if return_outputs else loss

    def _loss_terms(self, outputs: Any, inputs: Any) -> dict[str, Tensor]:
        if not self._adds_terms:
            return {}
        return self._method.loss_terms(read_outputs(outputs, inputs), self.bridge.snapshots.outputs(inputs))

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """The usual loop, which remembers what it evaluates: `measure` needs more of it than labels.

        Several processes share the batches of one, and each has the results of all: to the bit those of one process.
        """
        self._evaluated = dataloader.dataset
        if self.ranks.size == 1:
            return super().evaluation_loop(dataloader, *args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        assert self.model is not None
        if not self.accelerator._models:
            # As the usual loop does; precision is set there.
            self.accelerator.prepare_model(self.model, evaluation_mode=True)
        losses, predictions, labels = self._predict_all(dataloader.dataset)
        measured = {**self.measure(EvalPrediction(predictions, labels)), "loss": float(losses.mean())}
        metrics = {f"{prefix}_{name}": value for name, value in measured.items()}
        return EvalLoopOutput(predictions, labels, metrics, len(dataloader.dataset))

    def _predict_all(self, data: Encoded) -> tuple[np.ndarray[Any, Any], Any, Any]:
        """Each row's loss (its batch's), reduced outputs and labels of a split, batches shared by the processes."""
        assert self.model is not None
        assert self.data_collator is not None
        was_training, batch = self.model.training, self.args.eval_batch_size
        self.model.eval()
        own = []
        for first in range(0, len(data), batch * self.ranks.size):
            start = first + batch * self.ranks.rank
            is_over = start >= len(data)
            if is_over and not self.computes_together:
                break
            # With nothing left of its own, a process helps to compute the first batch of this round.
            begin = first if is_over else start
            rows = self.data_collator([data[index] for index in range(begin, min(begin + batch, len(data)))])
            loss, outputs, labels = self.prediction_step(self.model, rows, prediction_loss_only=False)
            if is_over:
                break
            seen = nested_numpify((self._task.reduce(outputs, labels), labels))
            # NumPy has no bfloat16.
            wide = loss.to(torch.promote_types(loss.dtype, torch.float32))
            losses = np.repeat(wide.cpu().numpy(), min(batch, len(data) - start))
            own.append((start, losses, seen))
        self.model.train(was_training)
        parts = sorted((part for share in self.ranks.gather(own) for part in share), key=lambda part: part[0])
        # Reduced outputs and labels, each perhaps several arrays.
        together = parts[0][2]
        for _, _, seen in parts[1:]:
            together = nested_concat(together, seen)
        return np.concatenate([losses for _, losses, _ in parts]), *together

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        """Loss, outputs and labels of a batch; what a task's models write stands in for their outputs."""
        loss, outputs, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if isinstance(self._task, Writes) and not prediction_loss_only:
            assert self._evaluated is not None
            with self.compute_loss_context_manager():
                outputs = self._task.generate(model, self._prepare_inputs(inputs), self._evaluated.tokenizer)
        return loss, outputs, labels

    def measure(self, prediction: EvalPrediction) -> dict[str, float]:
        """What the task measures of the data that was predicted last."""
        return self._task.measure(
            EvalPrediction(prediction.predictions, prediction.label_ids, inputs=self._evaluated)  # type: ignore[arg-type]
        )

    def score(self, data: Encoded) -> float:
        """The task's metric on a split, of the model as it is; negated where a smaller one is better."""
        self._evaluated = data
        _, *seen = self._predict_all(data)
        value = self.measure(EvalPrediction(*seen))[self._task.metric]
        return value if self._task.larger_is_better else -value

    def fit(self, checkpoint: Path | None) -> float:
        """Train from the start or a complete checkpoint; returns the seconds of training, earlier parts included."""
        self.bridge.resume_from(checkpoint)
        done = 0 if checkpoint is None else read_marker(checkpoint)["step"]
        if checkpoint is not None:
            self._method.reshape(load_method_state(checkpoint))
        if checkpoint is not None and done >= self.args.max_steps:
            # Trainer would take one step more; there is nothing left but to load what was trained.
            self._load_from_checkpoint(str(checkpoint))
            self.create_optimizer()
            self._method.load_state_dict(self.load_method_state(checkpoint))
        else:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return self.bridge.seconds()

    def check_agreement(self) -> None:
        """Raise RunError unless all processes have the same weights."""
        assert self.model is not None
        self.ranks.check_agreement(self.model.parameters(), f"after step {self.state.global_step}")

    def check_finite(self) -> None:
        """Raise RunError where a parameter has NaN or Inf."""
        assert self.model is not None
        for name, parameter in self.model.named_parameters():
            if not bool(torch.isfinite(parameter.detach().sum(dtype=torch.float32))):
                self.refuse(name)

    def refuse(self, name: str) -> NoReturn:
        """Raise RunError for a parameter, by its name, that is not finite any more."""
        raise RunError(self.failure(f"{name} has NaN or Inf after step {self.state.global_step}"))

    def method_state(self) -> dict[str, Any]:
        """What the first process writes of the method's state; all processes must call this."""
        return self._method.state_dict()

    def load_method_state(self, checkpoint: Path) -> dict[str, Any]:
        """What this process's method had at a checkpoint."""
        return load_method_state(checkpoint)

    def make_snapshots(self, evaluate: Callable[[str], float]) -> Snapshots:
        """What keeps the method's snapshots of the model. evaluate: see `Snapshots`."""
        assert self.model is not None
        return Snapshots(self._method, self.model, evaluate)

    def failure(self, what: str) -> str:
        """One line that says what went wrong and where the last good checkpoint is."""
        last = self.bridge.run.last_checkpoint()
        kept = f"last good checkpoint: {last}" if last else "no checkpoint was written yet"
        return f"{what}; {kept}. Lower learning_rate, or check the data."

    def pop_terms(self) -> dict[str, float]:
        """Mean of each of the method's loss terms since the last call, over steps; all processes must call this."""
        accumulated = self.args.gradient_accumulation_steps
        means = {name: accumulated * sum(values) / len(values) for name, values in self._terms.items()}
        self._terms.clear()
        everywhere = self.ranks.gather(means)
        return {f"loss_{name}": sum(each[name] for each in everywhere) / len(everywhere) for name in means}


def total_steps(settings: Settings, rows: int) -> int:
    """Optimizer steps of a run on `rows` training rows."""
    if settings.max_steps is not None:
        return settings.max_steps
    return math.ceil(settings.epochs * steps_per_epoch(settings, rows))


def steps_per_epoch(settings: Settings, rows: int) -> int:
    """Optimizer steps of an epoch of `rows` training rows; copies of texts, and a slice held out, change nothing."""
    return math.ceil(rows / settings.batch_size)


def make_trainer(
    model: PreTrainedModel,
    tokenizer: Any,
    task: Task,
    data: Mapping[str, Encoded],
    method: Method,
    settings: Settings,
    steps: int,
    epoch_steps: int,
    run: RunDirectory,
    progress: Progress,
    ranks: Ranks | None = None,
    kind: Callable[..., PruningTrainer] = PruningTrainer,
) -> PruningTrainer:
    """The trainer of a run, of a kind, with the bridge in place; the method must be attached already.

    steps, epoch_steps: optimizer steps of the run, and of one of its epochs.
    """
    ranks = ranks or Ranks()
    accumulated = settings.gradient_accumulation_steps or 1
    args = TrainingArguments(
        output_dir=str(run.path),
        max_steps=steps,
        per_device_train_batch_size=math.ceil(settings.batch_size / (ranks.size * accumulated)),
        gradient_accumulation_steps=accumulated,
        per_device_eval_batch_size=4 * settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=0 if method.constant_rate else round(settings.lr_warmup * steps),
        lr_scheduler_type="constant" if method.constant_rate else "linear",
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",
        seed=settings.seed,
        bf16=settings.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_steps=settings.log_every,
        # The filter would hide a NaN loss from the log; the trainer stops on it instead.
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.checkpoint_every,
        # Two, because the older one must outlive the moment in which the newer one is written.
        save_total_limit=2,
        # Not "epoch": the loader's epochs go over copies of texts too.
        eval_strategy="steps" if settings.evaluate_each_epoch else "no",
        eval_steps=epoch_steps,
        report_to=list(settings.report_to) or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        # A model may have weights that its task does not reach, such as a pooler's.
        ddp_find_unused_parameters=True,
    )
    bridge = PruningBridge(method, run, progress)
    trainer = kind(
        model=model,
        args=args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        data_collator=task.collator(tokenizer),
        callbacks=[bridge],
        task=task,
        method=method,
        bridge=bridge,
        train_lengths=data["train"].lengths,
        batch_size=settings.batch_size,
        ranks=ranks,
    )
    bridge.trainer = trainer
    slices = {"held-out": "held-out", "dev": "validation"}
    bridge.snapshots = trainer.make_snapshots(lambda name: trainer.score(data[slices[name]]))
    # The bridge reports; Trainer's own printer would repeat every line as a dict.
    for callback in [c for c in trainer.callback_handler.callbacks if type(c).__name__ == "PrinterCallback"]:
        trainer.remove_callback(callback)
    return trainer
