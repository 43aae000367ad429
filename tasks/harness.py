"""The training harness: transformers.Trainer, and one bridge through which it drives a `Method`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_pt_utils import nested_concat, nested_numpify
from transformers.trainer_utils import EvalLoopOutput

from argprune.models.outputs import count_terms, read_outputs
from argprune.solvers.methods.base import Method
from argprune.solvers.processes import average_over_processes
from argprune.tasks.parts import Parts, Shares, scaled
from argprune.tasks.progress import Progress
from argprune.tasks.ranks import Ranks
from argprune.tasks.runs import CHECKPOINT_DONE, RunDirectory, RunError, write_json
from argprune.tasks.settings import Settings
from argprune.tasks.snapshots import Snapshots
from argprune.tasks.texts import Task, Writes, encode_rows

if TYPE_CHECKING:
    # At run time this would be a circle: what a teacher is matched on is drawn from encoded rows.
    from argprune.tasks.distillation import Distiller

_METHOD_TENSORS = "method.safetensors"
_POOL = 16


class Encoded(Dataset[dict[str, Any]]):
    """Tokenised rows; `lengths` are their numbers of tokens. `by_length` sorts them, which saves padding.

    encode: a task's; that of classification is the default. `about` is what examples have for the task's `measure`,
    None of those that have nothing, beside the rows and the tokenizer that they were made of and with. `order` says
    which one of `encode`'s each example is.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        tokenizer: Any,
        max_length: int,
        *,
        by_length: bool = False,
        encode: Callable[[Sequence[Any], Any, int], list[dict[str, Any]]] = encode_rows,
    ) -> None:
        self.rows, self.tokenizer = rows, tokenizer
        items = encode(rows, tokenizer, max_length)
        self.order = list(range(len(items)))
        if by_length:
            self.order.sort(key=lambda at: len(items[at]["input_ids"]))
        self._items = [items[at] for at in self.order]
        self.lengths = [len(item["input_ids"]) for item in self._items]
        self.about = [item.pop("about", None) for item in self._items]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._items[index]


class LengthGroupedSampler(Sampler[int]):
    """A seeded shuffle in which batches hold texts of like length.

    The order depends on seed and epoch alone, so that a resumed run sees the batches of an uninterrupted one.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, epoch: Callable[[], int]) -> None:
        self._lengths, self._batch_size, self._seed, self._epoch = lengths, batch_size, seed, epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch())
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        pool = self._batch_size * _POOL
        batches: list[list[int]] = []
        for start in range(0, len(order), pool):
            chunk = sorted(order[start : start + pool], key=self._lengths.__getitem__)
            batches += [chunk[i : i + self._batch_size] for i in range(0, len(chunk), self._batch_size)]
        # A short batch anywhere but at the end would shift the rest out of its length group.
        last = batches.pop()
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[index]
        yield from last


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
            count_of = partial(count_terms, next_token=task.kind == "causal-lm")
            self._shares = Shares(ranks, len(train_lengths), batch_size, count_of)
            # Trainer scales by what models say of themselves, and those that take the number of items need not use it.
            self.model_accepts_loss_kwargs, self.loss_is_scaled_for_ga = False, True

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The usual optimizer, as the method wraps it."""
        if self.optimizer is None:
            self.optimizer = self._method.wrap_optimizer(self._plain_optimizer(model))
        return self.optimizer

    def _plain_optimizer(self, model: Any) -> torch.optim.Optimizer:
        return super().create_optimizer(model)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        steps_per_epoch = math.ceil(len(self._train_lengths) / self._batch_size)
        return LengthGroupedSampler(
            self._train_lengths, self._batch_size, self.args.seed, lambda: self.state.global_step // steps_per_epoch
        )

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The usual one; of batches in parts, one whose parts add up to the batches of a single process."""
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
        done = 0 if checkpoint is None else _marker(checkpoint)["step"]
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


class PruningBridge(TrainerCallback):
    """Calls the method around every optimizer step, writes the log, completes checkpoints with the method's state."""

    def __init__(self, method: Method, run: RunDirectory, progress: Progress) -> None:
        self._method, self.run, self._progress = method, run, progress
        self.trainer: PruningTrainer
        self.snapshots: Snapshots
        self.distiller: Distiller | None = None
        self._checkpoint: Path | None = None
        self._earlier, self._began = 0.0, time.monotonic()

    def resume_from(self, checkpoint: Path | None) -> None:
        """Say where the coming training starts: at a complete checkpoint, or from nothing."""
        self._checkpoint, self._earlier, self._began = checkpoint, 0.0, time.monotonic()
        step = 0
        if checkpoint is not None:
            marker = _marker(checkpoint)
            self._earlier, step = marker["seconds"], marker["step"]
        self.trainer.ranks.first(lambda: self.run.truncate_log(step))

    def seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return self._earlier + time.monotonic() - self._began

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Restore what the method had at the checkpoint, or give each process noise of its own."""
        ranks = self.trainer.ranks
        if self._checkpoint is None and not ranks.is_first:
            # Every process draws a dropout of its own. What methods draw is the same for all: seeded before.
            torch.manual_seed(args.seed + 1_000_003 * ranks.rank)
        if self.distiller is not None:
            ranks.copy_first(self.distiller.parameters())
        # The optimizer is there and weights are loaded only now.
        if self._checkpoint is not None:
            self._method.load_state_dict(self.trainer.load_method_state(self._checkpoint))
            self.snapshots.load(self._checkpoint, _marker(self._checkpoint)["snapshots"])
        else:
            self.snapshots.ask(-1)
        self._progress.start(state.max_steps, state.global_step)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._method.before_step(state.global_step)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The method's `after_step`, at the learning rate of the step just made."""
        assert self.trainer.optimizer is not None
        assert self.trainer.model is not None
        shapes = [parameter.shape for parameter in self.trainer.model.parameters()]
        self._method.after_step(state.global_step, float(self.trainer.optimizer.param_groups[0]["lr"]))
        if [parameter.shape for parameter in self.trainer.model.parameters()] != shapes:
            self.trainer.renew_reducer()
        self.snapshots.ask(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._progress.advance(state.global_step)
        # Trainer writes the checkpoint after this hook: weights that are not finite must not become one.
        if control.should_save or state.global_step >= state.max_steps:
            self.trainer.check_finite()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Any = None,
        **_: Any,
    ) -> None:
        if "train_runtime" in logs:
            return
        line = {"step": state.global_step, **logs, **self._method.logs(), **self.trainer.pop_terms()}
        if self.trainer.ranks.is_first:
            self.run.append_log(line)
        self._progress.report(line)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Add to Trainer's checkpoint what the method needs, and last the marker that it is complete."""
        self.trainer.check_agreement()
        # Once all have written what is theirs: the checkpoint is complete with the marker.
        values = self.trainer.method_state()
        self.snapshots.collect()
        self.trainer.ranks.wait()
        if self.trainer.ranks.is_first:
            self._complete(self.run.path / f"checkpoint-{state.global_step}", state.global_step, values)

    def _complete(self, folder: Path, step: int, values: Mapping[str, Any]) -> None:
        save_file(
            {name: value.contiguous() for name, value in values.items() if isinstance(value, Tensor)},
            folder / _METHOD_TENSORS,
        )
        numbers = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
        write_json(
            folder / CHECKPOINT_DONE,
            {
                "step": step,
                "seconds": self.seconds(),
                "method": numbers,
                "snapshots": self.snapshots.save(folder),
            },
        )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._progress.stop()


def load_method_state(checkpoint: Path) -> dict[str, Any]:
    """What `Method.state_dict` gave at a checkpoint."""
    return {**load_file(checkpoint / _METHOD_TENSORS), **_marker(checkpoint)["method"]}


def _marker(checkpoint: Path) -> dict[str, Any]:
    marker: dict[str, Any] = json.loads((checkpoint / CHECKPOINT_DONE).read_text(encoding="utf-8"))
    return marker


def total_steps(settings: Settings, rows: int) -> int:
    """Optimizer steps of a run on `rows` training rows."""
    if settings.max_steps is not None:
        return settings.max_steps
    return math.ceil(settings.epochs * math.ceil(rows / settings.batch_size))


def make_trainer(
    model: PreTrainedModel,
    tokenizer: Any,
    task: Task,
    data: Mapping[str, Encoded],
    method: Method,
    settings: Settings,
    steps: int,
    run: RunDirectory,
    progress: Progress,
    ranks: Ranks | None = None,
    kind: Callable[..., PruningTrainer] = PruningTrainer,
) -> PruningTrainer:
    """The trainer of a run, of a kind, with the bridge in place; the method must be attached already."""
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
        eval_strategy="epoch" if settings.evaluate_each_epoch else "no",
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
