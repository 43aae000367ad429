"""The training harness: transformers.Trainer, and one bridge through which it drives a `Method`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset, Sampler
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

from argprune.models.outputs import read_outputs
from argprune.solvers.methods.base import Method
from argprune.tasks.progress import Progress
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

    def __init__(
        self, *args: Any, task: Task, method: Method, bridge: PruningBridge, train_lengths: Sequence[int], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.compute_metrics, self.preprocess_logits_for_metrics = self.measure, task.reduce
        self._task, self._method, self.bridge = task, method, bridge
        self._evaluated: Encoded | None = None
        self._train_lengths = train_lengths
        self._terms: dict[str, list[float]] = {}
        # Outputs are taken apart, and a teacher asked, only for methods that have terms to add.
        self._adds_terms = type(method).loss_terms is not Method.loss_terms

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The usual optimizer, as the method wraps it."""
        if self.optimizer is None:
            self.optimizer = self._method.wrap_optimizer(super().create_optimizer(model))
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        batch = self.args.train_batch_size
        steps_per_epoch = math.ceil(len(self._train_lengths) / batch)
        return LengthGroupedSampler(
            self._train_lengths, batch, self.args.seed, lambda: self.state.global_step // steps_per_epoch
        )

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
            if distiller is not None:
                loss = distiller.options.task_loss * loss
                terms |= distiller.terms(outputs, inputs)
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
        """The usual loop, which remembers what it evaluates: `measure` needs more of it than labels."""
        self._evaluated = dataloader.dataset
        return super().evaluation_loop(dataloader, *args, **kwargs)

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
        assert self.model is not None
        assert self.data_collator is not None
        was_training, batch = self.model.training, self.args.eval_batch_size
        self.model.eval()
        self._evaluated = data
        # Reduced outputs and labels, each perhaps several arrays.
        seen: Any = None
        for start in range(0, len(data), batch):
            rows = self.data_collator([data[index] for index in range(start, min(start + batch, len(data)))])
            _, outputs, labels = self.prediction_step(self.model, rows, prediction_loss_only=False)
            part = nested_numpify((self._task.reduce(outputs, labels), labels))
            seen = part if seen is None else nested_concat(seen, part)
        self.model.train(was_training)
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
            self._method.load_state_dict(load_method_state(checkpoint))
        else:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return self.bridge.seconds()

    def failure(self, what: str) -> str:
        """One line that says what went wrong and where the last good checkpoint is."""
        last = self.bridge.run.last_checkpoint()
        kept = f"last good checkpoint: {last}" if last else "no checkpoint was written yet"
        return f"{what}; {kept}. Lower learning_rate, or check the data."

    def pop_terms(self) -> dict[str, float]:
        """Mean of each of the method's loss terms since the last call."""
        means = {f"loss_{name}": sum(values) / len(values) for name, values in self._terms.items()}
        self._terms.clear()
        return means


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
        self.run.truncate_log(step)

    def seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return self._earlier + time.monotonic() - self._began

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # The optimizer is there and weights are loaded only now.
        if self._checkpoint is not None:
            self._method.load_state_dict(load_method_state(self._checkpoint))
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
        assert self.trainer.optimizer is not None
        self._method.after_step(state.global_step, float(self.trainer.optimizer.param_groups[0]["lr"]))
        self.snapshots.ask(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._progress.advance(state.global_step)
        # Trainer writes the checkpoint after this hook: weights that are not finite must not become one.
        if control.should_save or state.global_step >= state.max_steps:
            assert self.trainer.model is not None
            for name, parameter in self.trainer.model.named_parameters():
                if not bool(torch.isfinite(parameter.detach().sum(dtype=torch.float32))):
                    raise RunError(self.trainer.failure(f"{name} has NaN or Inf after step {state.global_step}"))

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
        self.run.append_log(line)
        self._progress.report(line)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        folder = self.run.path / f"checkpoint-{state.global_step}"
        values = self._method.state_dict()
        save_file(
            {name: value.contiguous() for name, value in values.items() if isinstance(value, Tensor)},
            folder / _METHOD_TENSORS,
        )
        numbers = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
        write_json(
            folder / CHECKPOINT_DONE,
            {
                "step": state.global_step,
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
) -> PruningTrainer:
    """The trainer of a run, with the bridge in place; the method must be attached already."""
    args = TrainingArguments(
        output_dir=str(run.path),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
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
    )
    bridge = PruningBridge(method, run, progress)
    trainer = PruningTrainer(
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
    )
    bridge.trainer = trainer
    slices = {"held-out": "held-out", "dev": "validation"}
    bridge.snapshots = Snapshots(method, model, lambda name: trainer.score(data[slices[name]]))
    # The bridge reports; Trainer's own printer would repeat every line as a dict.
    for callback in [c for c in trainer.callback_handler.callbacks if type(c).__name__ == "PrinterCallback"]:
        trainer.remove_callback(callback)
    return trainer
