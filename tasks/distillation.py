"""Distillation as a run: who the teacher is, which of its layers teach, and what that adds to the loss of a batch.

The teacher is asked about each text alone, in evaluation mode, and so gives the same bits live and from the cache. Only
the released SparseBERT's teacher, whose dropout is on, is asked about whole batches, and never from a cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from argprune.models import load_model, load_tokenizer
from argprune.models.attention_scores import Scores, collect_scores, handing_out_scores
from argprune.models.outputs import read_outputs, read_states
from argprune.models.teacher import Teacher, Wanted, compute_states, join_answers, pick, split_texts
from argprune.solvers.distillation import Distillation, Projections, layer_losses, map_layers
from argprune.solvers.methods import PINS, Dense, Method, OneShot
from argprune.tasks.ranks import Ranks
from argprune.tasks.settings import Distill, Settings
from argprune.tasks.teacher_cache import Cache, Live, cache_key, open_answers
from argprune.tasks.texts import Task

# The module that a student has while it learns, and the folder of a run for answers that end with it.
_PROJECTIONS = "distillation_projections"
_ANSWERS = "teacher-answers"
# The most rows on which layers are matched and projections fitted.
CALIBRATION = 64


def find_distillation(settings: Settings, method: Method) -> Distill | None:
    """What a run learns from a teacher: as its settings say, or its method; None: nothing.

    Raises ValueError where settings and method do not go together.
    """
    own = method.distillation
    options = settings.distill
    assert not isinstance(options, bool)
    if options is None:
        return None if own is None else Distill(**asdict(own))
    if own is not None and own.literal:
        options = replace(options, literal=True)
    if isinstance(method, OneShot):
        raise ValueError("distill: a one-shot method trains nothing; leave distill out, or give a method that trains.")
    if isinstance(method, Dense) and options.teacher is None:
        raise ValueError(
            "distill: a dense run has no dense reference to learn from; give a teacher (distill.teacher), or leave "
            "distill out (of a study's references: `reference: {distill: null}`)."
        )
    if isinstance(method, PINS) and method.self_regularization != "none" and options.task_loss != 1:
        raise ValueError(
            f"distill task_loss {options.task_loss}, but self_regularization {method.self_regularization!r} weighs the "
            "snapshot against the task's loss; give self_regularization none, or task_loss 1."
        )
    return options


@torch.no_grad()
def check_student(options: Distill, student: PreTrainedModel, batch: Mapping[str, Any]) -> None:
    """Raise ValueError unless the student gives what is to be compared; batch: a few of its texts."""
    if student.config.is_encoder_decoder:
        raise ValueError("distill: encoder-decoder models cannot be distilled yet; leave distill out.")
    raw, _ = compute_states(student, batch, _wanted(options))
    read_outputs(raw, batch)
    split_texts(batch)


@dataclass(frozen=True, eq=False)
class Matched:
    """A teacher for a student: which of its layers teach, if any, and projections where widths differ."""

    teacher: Teacher
    layers: tuple[int, ...] | None
    projections: Projections | None = None


def match_teacher(
    options: Distill, name: str, student: PreTrainedModel, tokenizer: Any, task: Task, batch: Mapping[str, Any]
) -> Matched:
    """Load a teacher and match its layers to those of a student that has not learned yet.

    name: a folder or hub id. batch: at most `CALIBRATION` training rows, on which layers are matched and projections
    fitted. Raises ValueError, one line, for a teacher that cannot be one: another vocabulary, other numbers of
    heads where scores are compared, layers that the map cannot match.
    """
    model = load_model(name, kind=task.kind, **task.model_options())
    module: torch.nn.Module = model
    module.to(student.device)
    batch = {key: value.to(student.device) for key, value in batch.items()}
    if load_tokenizer(name).get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"Teacher {name}: its vocabulary is not that of the run's model; both must read the same tokens."
        )
    layers, projections = None, None
    own, held = student.config, model.config
    if options.attention and own.num_attention_heads != held.num_attention_heads:
        raise ValueError(
            f"Teacher {name} has {held.num_attention_heads} attention heads, the student {own.num_attention_heads}; "
            "scores are compared head by head. Set attention to 0."
        )
    if options.hidden or options.attention:
        layers = _match_layers(options, student, model, batch)
    wanted = replace(_wanted(options), layers=layers)
    if options.wants_hidden and own.hidden_size != held.hidden_size:
        with torch.no_grad():
            _, seen = compute_states(student, batch, replace(wanted, scores=False, layers=None))
            _, shown = compute_states(model, batch, replace(wanted, scores=False))
        projections = Projections(seen, shown)
    return Matched(Teacher(model, wanted, dropout=options.literal), layers, projections)


def _match_layers(
    options: Distill, student: PreTrainedModel, teacher: PreTrainedModel, batch: Mapping[str, Any]
) -> tuple[int, ...]:
    losses = None
    if options.layers == "learned":
        with torch.no_grad():
            states = [compute_states(model, batch, Wanted(scores=False))[1] for model in (student, teacher)]
        losses = layer_losses(*states)
    return map_layers(options.layers, student.config.num_hidden_layers, teacher.config.num_hidden_layers, losses)


def open_distiller(
    options: Distill,
    matched: Matched,
    student: PreTrainedModel,
    task: Task,
    batch: Mapping[str, Any],
    lengths: Sequence[int],
    run: Path,
    ranks: Ranks | None = None,
) -> Distiller:
    """The distiller of a run. batch: some texts; lengths: tokens of those that the run will see; run: its folder."""
    ranks = ranks or Ranks()
    answers: Cache | Live
    if options.literal:
        answers = Live(matched.teacher, "a teacher with dropout answers differently every time (literal)")
    elif task.kind == "masked-lm":
        answers = Live(
            matched.teacher, "other tokens are hidden in every batch, so that no text comes twice (masked-lm)"
        )
    elif options.cache is False:
        answers = Live(matched.teacher, "cache is false")
    else:
        own = run / _ANSWERS if options.cache is True else None
        folder = own or Path(str(options.cache)).expanduser()
        answers = open_answers(
            matched.teacher,
            folder / cache_key(matched.teacher.model, matched.teacher.wanted, student.device),
            lengths,
            split_texts(batch)[0],
            options.cache_gib * 2**30,
            remove=own if ranks.is_first else None,
        )
    return Distiller(options, matched, student, answers, ranks)


class Distiller:
    """Adds to a student's loss what its teacher has to say of the same batch."""

    # What terms are means over, where it is not targets; see `count_terms`.
    BASES: ClassVar[Mapping[str, str]] = {
        "distill_embedding": "tokens",
        "distill_hidden": "tokens",
        "distill_attention": "pairs",
    }

    def __init__(
        self, options: Distill, matched: Matched, student: PreTrainedModel, answers: Cache | Live, ranks: Ranks
    ) -> None:
        self.options, self._matched, self._student, self._answers = options, matched, student, answers
        self._ranks = ranks
        self._objective = Distillation(**{each.name: getattr(options, each.name) for each in fields(Distillation)})
        self._wanted = _wanted(options)
        self._scores: Scores | None = None

    @contextmanager
    def teaching(self) -> Iterator[None]:
        """Around all of a student's training: it hands out its scores, and has the projections as a part of its own.

        As a part of the model they are trained, clipped, saved in checkpoints and loaded again like the rest of it.
        """
        with ExitStack() as stack:
            if self._wanted.scores:
                stack.enter_context(handing_out_scores(self._student))
            if self._matched.projections is not None:
                self._student.add_module(_PROJECTIONS, self._matched.projections.to(self._student.device))
                # The model's own computation does not reach them; the trainer averages their gradients.
                names = [f"{_PROJECTIONS}.{name}" for name, _ in self._matched.projections.named_parameters()]
                DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self._student, names)
            try:
                yield
            finally:
                if self._matched.projections is not None:
                    delattr(self._student, _PROJECTIONS)
        if not self._ranks.is_first:
            self._answers.close()
        self._ranks.wait()
        # The first may remove what all have written.
        if self._ranks.is_first:
            self._answers.close()

    def parameters(self) -> list[nn.Parameter]:
        """What is trained beside the student: projections."""
        projections = self._matched.projections
        return [] if projections is None else list(projections.parameters())

    @contextmanager
    def watching(self, inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Around one computation of the student: what to give it instead of the batch, so that its states are seen."""
        watched = dict(inputs)
        if self._wanted.hidden or self._wanted.embedding:
            watched["output_hidden_states"] = True
        with ExitStack() as stack:
            self._scores = stack.enter_context(collect_scores()) if self._wanted.scores else None
            yield watched

    def terms(self, raw: Any, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The loss terms of the batch that was watched last, by name; raw: what the student gave for it."""
        states = pick(read_states(raw, inputs, self._scores), self._wanted, type(self._student).__name__)
        student = replace(read_outputs(raw, inputs), states=states)
        self._scores = None
        if self.options.literal:
            teacher = self._matched.teacher.answer_batch(inputs)
        else:
            teacher = join_answers(self._answers.answers(split_texts(inputs)), inputs, type(raw))
        terms = self._objective.terms(student, teacher, self._matched.projections)
        return {f"distill_{name}": term for name, term in terms.items()}

    def report(self) -> dict[str, Any]:
        """What metrics.json says: which teacher layers taught, and how often all processes asked the teacher."""
        layers, answers = self._matched.layers, self._answers.report()
        for other in self._ranks.gather(answers)[1:]:
            for name, value in other.items():
                if not isinstance(value, bool | str) and name in answers:
                    answers[name] += value
        return {"layers": None if layers is None else list(layers), "answers": answers}


def _wanted(options: Distillation) -> Wanted:
    return Wanted(options.embedding > 0, options.hidden > 0, options.wants_scores)
