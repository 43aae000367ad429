"""What a teacher adds to a training step: its answers from the cache, and computed live, against a plain step.

Copies of the embedded model take turns on the same batches of random tokens: forward, backward, AdamW. The teacher is
another copy; its answers are on disk before the first step, as they are from the second epoch of a run on. "all" learns
outputs, embedding, layers and attention scores, "logits" the outputs only. The ratio is the median of the turns' ratios
to the plain step of the same turn.

    python benchmarks/distillation.py [--quick] [--length N ...] [--repetitions N] [--threads N] [--json FILE]
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import turns
from torch import Tensor

from argprune.models import load_model
from argprune.models.teacher import Teacher, Wanted
from argprune.tasks.distillation import Distiller, Matched
from argprune.tasks.ranks import Ranks
from argprune.tasks.settings import Distill
from argprune.tasks.teacher_cache import Cache, Live

BATCH, BATCHES, CLASSES = 16, 8, 8
OPTIONS = {"all": Distill(), "logits": Distill(hidden=0, attention=0, embedding=0)}


@dataclass(frozen=True)
class Row:
    """One kind of step at one length; milliseconds are medians, the ratio is the median of the turns' ratios."""

    length: int
    learns: str
    teacher: str
    step_ms: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    answer_mib: float
    turns: int


class Student:
    """A model and its optimizer, which learn from labels, or from a teacher as the harness has it."""

    def __init__(self, batches: Iterator[dict[str, Tensor]]) -> None:
        torch.manual_seed(0)
        self.model = load_model("minilm", num_labels=CLASSES).train()
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self._batches = batches

    def step(self, distiller: Distiller | None = None) -> None:
        """One optimizer step on the next batch."""
        batch = next(self._batches)
        if distiller is None:
            loss = self.model(**batch).loss
        else:
            with distiller.watching(batch) as watched:
                outputs = self.model(**watched)
            loss = distiller.options.task_loss * outputs.loss
            for term in distiller.terms(outputs, batch).values():
                loss = loss + term
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self.model.zero_grad()


def make_batches(length: int) -> list[dict[str, Tensor]]:
    """Batches of texts of one length."""
    return [
        {
            "input_ids": torch.randint(1000, 20000, (BATCH, length)),
            "attention_mask": torch.ones(BATCH, length, dtype=torch.long),
            "labels": torch.randint(0, CLASSES, (BATCH,)),
        }
        for _ in range(BATCHES)
    ]


@contextmanager
def prepared(
    batches: list[dict[str, Tensor]], learns: str, cached: bool, folder: Path
) -> Iterator[tuple[Callable[[], None], float]]:
    """A step with a teacher, and the mebibytes that an answer takes on disk; a cache has been filled."""
    options = OPTIONS[learns]
    student = Student(itertools.cycle(batches))
    torch.manual_seed(1)
    wanted = Wanted(options.embedding > 0, options.hidden > 0, options.attention > 0)
    teacher = Teacher(load_model("minilm", num_labels=CLASSES), wanted)
    answers: Cache | Live = Cache(teacher, folder / learns) if cached else Live(teacher, "live")
    distiller = Distiller(options, Matched(teacher, None), student.model, answers, Ranks())
    with distiller.teaching():
        if cached:
            for _ in batches:
                student.step(distiller)
            answers.close()
        size = sum(path.stat().st_size for path in (folder / learns).glob("*")) / (BATCH * BATCHES) / 2**20
        yield lambda: student.step(distiller), size


def measure(length: int, repetitions: int, folder: Path) -> list[Row]:
    """One row for each way to learn, after one for the plain step."""
    torch.manual_seed(0)
    batches = make_batches(length)
    plain = Student(itertools.cycle(batches))
    sides: dict[str, Callable[[], None]] = {"labels none": plain.step}
    sizes = {"labels none": 0.0}
    with ExitStack() as stack:
        for learns, teacher in (("all", "cached"), ("all", "live"), ("logits", "cached")):
            step, size = stack.enter_context(prepared(batches, learns, teacher == "cached", folder))
            sides[f"{learns} {teacher}"], sizes[f"{learns} {teacher}"] = step, size
        seconds = turns.in_turns(sides, repetitions, 2)
    rows = []
    for name in sides:
        ratio, quartiles = turns.ratio(seconds, name, "labels none")
        learns, teacher = name.split()
        step_ms = turns.milliseconds(seconds, name)
        rows.append(Row(length, learns, teacher, step_ms, ratio, quartiles, sizes[name], repetitions))
    return rows


def main() -> None:
    """Print one row a comparison; write all of them where asked."""
    parser = turns.parser("What a teacher adds to a training step.", "few turns", 31, 7)
    parser.add_argument("--length", nargs="+", type=int, default=[32, 64], help="tokens of a text (default: 32 64)")
    options = turns.parse(parser)
    rows = []
    print(f"torch {torch.__version__}, {options.threads} threads, {options.repetitions} turns, batches of {BATCH}")
    print(f"{'tokens':>6}  {'learns':8}{'teacher':8}{'step ms':>9}{'ratio':>8}  {'quartiles':13}{'MiB a text':>10}")
    for length in options.length:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(length, options.repetitions, Path(folder))
        rows += found
        for row in found:
            low, high = row.ratio_quartiles
            timing = f"{row.step_ms:9.1f}{row.ratio:8.3f}  {low:.3f}-{high:.3f}"
            print(f"{row.length:6}  {row.learns:8}{row.teacher:8}{timing}  {row.answer_mib:10.2f}", flush=True)
    turns.write(options.json, rows, options.threads)


if __name__ == "__main__":
    main()
