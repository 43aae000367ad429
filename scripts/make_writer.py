"""Write an untrained model that writes texts, with a tokenizer of a data-to-text task's own, for `argprune prune`.

python scripts/make_writer.py --task e2e --output runs/models/e2e-t5
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from argprune.tasks.data import load_task
from argprune.tasks.kinds import DataToText
from argprune.tasks.kinds.untrained import make_writer
from argprune.tasks.task_options import TaskOptions


def main() -> int:
    """Write the folder; 2 for bad usage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="e2e", help="one of the data folder or of the hub, or a path")
    parser.add_argument("--data-dir", default=os.environ.get("ARGPRUNE_DATA"), help="folder of data sets")
    parser.add_argument("--output", type=Path, required=True, help="the folder to make")
    parser.add_argument(
        "--objective", choices=("seq2seq-lm", "causal-lm"), default="seq2seq-lm", help="T5, or GPT-2; as of the task"
    )
    parser.add_argument("--vocab-size", type=int, default=4096, help="tokens at most")
    parser.add_argument("--layers", type=int, default=4, help="of an encoder and of a decoder")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--positions", type=int, default=256, help="tokens that GPT-2 reads at most")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    options = vars(parser.parse_args())
    name, data_dir, objective, output = (options.pop(key) for key in ("task", "data_dir", "objective", "output"))
    try:
        task = load_task(name, data_dir, TaskOptions(objective=objective))
        if not isinstance(task, DataToText):
            raise ValueError(f"Task {name!r} is of kind {task.kind}; give one of data-to-text.")
        make_writer(task, output, **options)
    except ValueError as error:
        print(f"make_writer: error: {error}", file=sys.stderr)
        return 2
    print(f"{output}: {objective}, {options['layers']} layers, {options['width']} wide")
    return 0


if __name__ == "__main__":
    sys.exit(main())
