"""What measurements side by side share: encoders' shapes, options, turns, ratios of them, and the file with the rows.

All sides take one turn after the other in one process, and ratios are of the same turn, so that whatever else the
machine does meets both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

# name: layers, hidden width, intermediate width
ENCODERS = {"minilm-l6": (6, 384, 1536), "bert-base": (12, 768, 3072)}

Seconds = Mapping[str, Sequence[float]]


def encoder_shapes(model: str, layers: int | None = None) -> list[tuple[int, int]]:
    """Shapes of an encoder's prunable matrices, or of those of its first layers."""
    of_all, hidden, intermediate = ENCODERS[model]
    return ([(hidden, hidden)] * 4 + [(intermediate, hidden), (hidden, intermediate)]) * (layers or of_all)


def parser(description: str, quick: str, default: int, quick_default: int) -> argparse.ArgumentParser:
    """The options that all have; quick: what it means; then the timed turns by default, and with --quick."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--quick", action="store_true", help=f"{quick}: for a look, not for a report")
    turns = f"timed turns, at least 2 (default {default}; quick {quick_default})"
    result.add_argument("--repetitions", type=int, help=turns)
    result.add_argument("--threads", type=int, default=2, help="torch threads (default %(default)s)")
    result.add_argument("--json", type=Path, metavar="FILE", help="write the rows and the versions here")
    result.set_defaults(turns=(default, quick_default))
    return result


def parse(options: argparse.ArgumentParser) -> argparse.Namespace:
    """The options given, `repetitions` among them in any case; sets torch's threads and its seed."""
    given = options.parse_args()
    given.repetitions = given.turns[given.quick] if given.repetitions is None else given.repetitions
    if given.repetitions < 2:
        options.error(f"--repetitions {given.repetitions}: quartiles need at least 2.")
    torch.manual_seed(0)
    torch.set_num_threads(given.threads)
    return given


def in_turns(
    sides: Mapping[str, Callable[[], object]],
    turns: int,
    warm: int,
    *,
    before: Callable[[str], None] = lambda name: None,
    after: Callable[[str, Any], None] = lambda name, result: None,
) -> dict[str, list[float]]:
    """Seconds of each side's timed turns, after `warm` untimed ones; device work is waited for.

    before, after: called untimed around each, with the side's name, and what it returned.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(warm + turns):
        # The order rotates: what one leaves in the caches must not always favour the same next.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            before(name)
            start = _now()
            result = sides[name]()
            elapsed = _now() - start
            after(name, result)
            # Freed here, or what the last one returned would be freed in the next one's time.
            del result
            if turn >= warm:
                seconds[name].append(elapsed)
    return seconds


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def milliseconds(seconds: Seconds, name: str) -> float:
    """The median of a side's turns."""
    return 1e3 * statistics.median(seconds[name])


def ratio(seconds: Seconds, name: str, base: str) -> tuple[float, tuple[float, float]]:
    """The median of the turns' ratios of one side to another, and their quartiles."""
    ratios = [own / other for own, other in zip(seconds[name], seconds[base], strict=True)]
    lower, middle, upper = statistics.quantiles(ratios, n=4)
    return middle, (lower, upper)


def write(file: Path | None, rows: Sequence[Any], threads: int, **versions: str) -> None:
    """The rows, which are dataclasses, and the versions as JSON, where a file is asked for."""
    if file is not None:
        report = {
            "versions": {"torch": torch.__version__, **versions, "threads": threads},
            "rows": [asdict(row) for row in rows],
        }
        file.write_text(json.dumps(report, indent=1) + "\n")
