"""Write an untrained causal language model with a tokenizer of a task's own, for `argprune prune --model FOLDER`.

python scripts/make_causal_lm.py --task wikitext2 --output runs/models/wikitext2-gpt2
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import get_args

from argprune.tasks.data import load_task
from argprune.tasks.language import Architecture, Language, TokenizerKind, make_causal_lm


def main() -> int:
    """Write the folder; 2 for bad usage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="stdlib-lm", help="stdlib-lm (embedded), one of the data folder, or a path")
    parser.add_argument("--data-dir", default=os.environ.get("ARGPRUNE_DATA"), help="folder of data sets")
    parser.add_argument("--output", type=Path, required=True, help="the folder to make")
    parser.add_argument("--architecture", choices=get_args(Architecture), default="gpt2")
    parser.add_argument("--tokenizer", choices=get_args(TokenizerKind), default="bpe", help="byte needs no vocab-size")
    parser.add_argument("--vocab-size", type=int, default=4096, help="tokens at most")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4, help="of gpt2")
    parser.add_argument("--positions", type=int, default=128, help="tokens that gpt2 reads at most")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--cutoffs", type=int, nargs="*", help="where clusters of rarer words begin; adaptive tables")
    parser.add_argument(
        "--div-value", type=float, default=4.0, help="each cluster has this many times fewer dimensions"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    options = vars(parser.parse_args())
    name, data_dir, output = (options.pop(key) for key in ("task", "data_dir", "output"))
    try:
        task = load_task(name, data_dir)
        if not isinstance(task, Language):
            raise ValueError(f"Task {name!r} is of kind {task.kind}; give one of language modelling.")
        make_causal_lm(task, output, **options)
    except ValueError as error:
        print(f"make_causal_lm: error: {error}", file=sys.stderr)
        return 2
    print(f"{output}: {options['architecture']}, {options['layers']} layers, {options['width']} wide")
    return 0


if __name__ == "__main__":
    sys.exit(main())
