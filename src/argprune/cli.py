"""The command line: `argprune prune`, `verify`, `study`, `export`, `report`, `analyse`, `list`.

Errors are one line that says what was wrong and what would be right.
Exit status: 0, 1 for a failed run and for what the system refuses, 2 for bad usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from yaml import YAMLError

from argprune._version import __version__
from argprune.messages import one_line
from argprune.plug_in_options import plug_ins
from argprune.prune_command import prune

LISTS = ("methods", "regularizers", "reweightings", "criteria", "constraints", "tasks", "models")


class _Parser(argparse.ArgumentParser):
    """Raises what is wrong, for `main` to print; argparse would print its usage too, and end the process."""

    def error(self, message: str) -> NoReturn:
        """Raise ValueError with the message."""
        raise ValueError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: this process's) and return its exit status."""
    if not _world_size().strip():
        # Empty is how some shells unset it, and no number to the libraries that read it.
        del os.environ["WORLD_SIZE"]
    # No fork happens after the tokenizer was used; without this, tokenizers warns that one might.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if _is_one_of_several():
        # DDP would warn, from every process, that it looks for weights without a gradient; most models have none.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _check_world_size()
        return _dispatch(arguments)
    except (argparse.ArgumentError, ValueError, ImportError, YAMLError) as error:
        return _complain(f"error: {one_line(error)}", 2)
    except (_run_error(), OSError) as error:
        return _complain(f"error: {one_line(error)}", getattr(error, "exit_status", 1))
    except KeyboardInterrupt:
        return _complain("interrupted; go on with the same command and --resume.", 130)
    except Exception as error:
        if not _is_one_of_several():
            raise
        from argprune.tasks.ranks import lost_connection, may_complain

        if lost_connection(error):
            return _complain("error: another process of this run has ended; go on with --resume.", 1)
        if may_complain():
            raise
        return 1


def _is_one_of_several() -> bool:
    """Whether torchrun, or accelerate launch, started this process with others."""
    size = _world_size()
    return size.isdecimal() and int(size) > 1


def _world_size() -> str:
    """How many processes were started together, as the launcher says it."""
    return os.environ.get("WORLD_SIZE", "1")


def _check_world_size() -> None:
    if not _world_size().isdecimal():
        raise ValueError(f"WORLD_SIZE {_world_size()!r} is no number of processes; unset it, or launch with torchrun.")


def _complain(what: str, status: int) -> int:
    """Print the line that ends a command, of several processes the first to meet an error alone; the exit status."""
    if _is_one_of_several():
        from argprune.tasks.ranks import may_complain

        if not may_complain():
            return status
    print(f"argprune: {what}", file=sys.stderr)
    return status


def _run_error() -> type[Exception]:
    from argprune.tasks.runs import RunError

    return RunError


def _dispatch(arguments: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "prune": prune,
        "verify": _verify,
        "study": _study,
        "export": _export,
        "report": _report,
        "analyse": _analyse,
        "list": _list,
    }
    top = _Parser(prog="argprune", description=__doc__.splitlines()[0])
    top.add_argument("--version", action="version", version=f"argprune {__version__}")
    top.add_argument("command", choices=commands, help="what to do; `argprune COMMAND --help` says more")
    if not arguments or arguments[0] in ("-h", "--help"):
        top.print_help()
        return 0 if arguments else 2
    if arguments[0] not in commands and not arguments[0].startswith("-"):
        raise ValueError(f"Unknown command {arguments[0]!r}. Known: {', '.join(commands)}.")
    namespace = top.parse_args(arguments[:1])
    if namespace.command != "prune" and _is_one_of_several():
        raise ValueError(f"{namespace.command} works in one process; start it without torchrun or accelerate launch.")
    return commands[namespace.command](arguments[1:])


def _verify(arguments: list[str]) -> int:
    if arguments[:1] == ["criteria"]:
        return _verify_criteria(arguments[1:])
    arguments, regularizers = plug_ins(arguments, "regularizer")
    parser = _Parser(
        prog="argprune verify",
        description="Check operators against independent solvers, or criteria: argprune verify criteria --help.",
        epilog="--regularizer NAME|module:Class|file.py:Class (repeatable; default: all), --regularizer.OPTION VALUE",
    )
    parser.add_argument("what", choices=("prox", "criteria"))
    parser.add_argument("--json", metavar="FILE", help="write every check with its worst error")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--seed", type=int, default=0, help="of the random inputs")
    parser.add_argument("--no-speed", action="store_true", help="do not time the operators")
    parser.add_argument("-q", "--quiet", action="store_true", help="failures only")
    parsed = parser.parse_args(arguments)
    if parsed.what == "criteria":
        raise ValueError("verify: options before 'criteria'; give `argprune verify criteria` first.")

    from argprune.tasks.verify_command import verify_command

    return verify_command(
        regularizers,
        json_file=parsed.json,
        jobs=parsed.jobs,
        seed=parsed.seed,
        speed=not parsed.no_speed,
        quiet=parsed.quiet,
    )


def _verify_criteria(arguments: list[str]) -> int:
    arguments, criteria = plug_ins(arguments, "criterion")
    parser = _Parser(
        prog="argprune verify criteria",
        description="Judge criteria on small blocks of a model's weights: the masks they choose against the exact "
        "optimum of each surrogate of the loss, and against the best of all masks in the true loss.",
        epilog="--criterion NAME|module:Class|file.py:Class (repeatable; default: all), --criterion.OPTION VALUE",
    )
    option = partial(parser.add_argument, default=argparse.SUPPRESS)
    count = partial(option, metavar="N", type=int)
    option(
        "--model",
        help="minilm, a hub id, or a folder, such as RUN/model of a dense run; one without a trained head is "
        "fine-tuned first (see --dense)",
    )
    option("--task", help="stdlib-docs, or a task of the data folder")
    parser.add_argument("--data-dir", default=os.environ.get("ARGPRUNE_DATA"), help="folder of data sets")
    option(
        "--dense",
        metavar="RUN",
        help="run directory to fine-tune in, or of a finished dense run (default: runs/verify/MODEL-TASK-seedN)",
    )
    option("--pretrained", action="store_true", help="take a model without a trained head as it is")
    option(
        "--layer",
        dest="layers",
        metavar="PATTERN",
        action="append",
        help="weights by name, repeatable (default: three over the depth)",
    )
    count("--blocks", help="blocks of each layer, drawn at random (default: 4)")
    count("--size", help="units of a block; every mask of up to 20 is known (default: 16)")
    count("--keep", help="units kept (default: half)")
    count("--rows", help="a unit is a column of so many rows (default: 1, a single weight)")
    count("--examples", help="held-out texts of the true loss (default: 64)")
    count("--calibration", help="training texts that criteria see (default: 256)")
    count("--max-length", help="tokens a text is cut to (default: 24)")
    option(
        "--curvature",
        choices=("hessian", "fisher", "inputs"),
        help="of the diagonal and the quadratic surrogate (default: hessian); refits take the Fisher, or inputs",
    )
    option("--learning-rate", type=float, help="of the step that criteria see (default: 3e-4)")
    option("--seed", type=int, help="of blocks, texts and fine-tuning (default: 0)")
    option("--exhaustive", action="store_true", help="evaluate every mask, none by its neighbours")
    option(
        "--no-matrix",
        dest="matrix",
        action="store_false",
        help="blocks only: do not also prune whole weights to the same density",
    )
    parser.add_argument("--json", metavar="FILE", help="write every number")
    parser.add_argument("--csv", metavar="FILE", help="write a row a block and criterion")
    parser.add_argument("--plot", metavar="FILE", help="draw the true regrets and their parts (.svg, .png, .pdf)")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress and no table")
    options = vars(parser.parse_args(arguments))
    files = {f"{name}_file": options.pop(name) for name in ("json", "csv", "plot")}
    quiet = options.pop("quiet")

    from argprune.tasks.criteria_command import Check, criteria_command

    return criteria_command(Check(**options, criteria=criteria), **files, quiet=quiet)


def _study(arguments: list[str]) -> int:
    parser = _Parser(
        prog="argprune study",
        description="Run every point of a study, or what is left of it.",
    )
    parser.add_argument("study", metavar="STUDY.yaml", help="grid of options; see docs/how-to/studies.md")
    parser.add_argument(
        "--backend",
        choices=("local", "ray"),
        default="local",
        help="where: processes of this machine, or a Ray cluster",
    )
    parser.add_argument("--jobs", metavar="N", type=int, help="runs side by side (default: 1; ray: what fits)")
    parser.add_argument(
        "--cpus", metavar="N", type=int, help="threads of each run (default: the machine's cores shared out; ray: 1)"
    )
    parser.add_argument("--gpus", metavar="N", type=float, help="ray: GPUs of each run; 0.5: two share one")
    parser.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="ray: of a running cluster; auto: on this machine (default: RAY_ADDRESS, or else a cluster of its own)",
    )
    parser.add_argument("--collect", metavar="FILE.csv", help="write one row a run; others that are there stay")
    parser.add_argument("--retry", action="store_true", help="run failed points again")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress and no table")
    parsed = parser.parse_args(arguments)

    from argprune.tasks.studies.command import study_command

    return study_command(parsed)


def _export(arguments: list[str]) -> int:
    parser = _Parser(
        prog="argprune export",
        description="Write a finished run as a model to use, compare it with the masked model, and time both.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a finished run directory")
    parser.add_argument(
        "--format",
        required=True,
        choices=("dense", "structured", "sparse", "onnx"),
        help="dense: as it is; structured: without its zero heads and neurons; sparse: compressed on disk, each layer "
        "in the format measured fastest; onnx: the structured model for onnxruntime",
    )
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="the folder to make")
    parser.add_argument(
        "--batch", metavar="N", type=int, nargs="+", default=[1, 8], help="texts of the timed inputs (default: 1 8)"
    )
    parser.add_argument("--length", metavar="L", type=int, default=128, help="tokens of each (default: 128)")
    parser.add_argument("--threads", metavar="N", type=int, default=2, help="threads while timing (default: 2)")
    parser.add_argument(
        "--regular",
        action="store_true",
        help="structured: equal sizes in all layers, so that plain from_pretrained loads them",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in DIR")
    parser.add_argument("-q", "--quiet", action="store_true", help="no summary")
    options = vars(parser.parse_args(arguments))
    quiet = options.pop("quiet")

    from argprune.tasks.export_command import Export, export_command

    return export_command(Export(**{**options, "batch": tuple(options["batch"])}), quiet=quiet)


def _report(arguments: list[str]) -> int:
    parser = _Parser(
        prog="argprune report",
        description="One page of any set of runs: scores, tests, layers, training, certificates, commands.",
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        type=Path,
        nargs="+",
        help="run directories, exports, folders of these, a study's YAML, JSON of verify criteria",
    )
    parser.add_argument(
        "--output", metavar="FILE.html", type=Path, required=True, help="the page; tables are written beside it"
    )
    parser.add_argument("--title", default="Pruning report", help="of the page")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier report")
    parser.add_argument("-q", "--quiet", action="store_true", help="no summary")
    options = vars(parser.parse_args(arguments))
    quiet = options.pop("quiet")

    from argprune.tasks.report import Report, report_command

    return report_command(Report(**options), quiet=quiet)


def _analyse(arguments: list[str]) -> int:
    parser = _Parser(
        prog="argprune analyse",
        description="What a run's masks look like: rows, columns and heads against a random mask, and a picture.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a finished run directory")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="the folder for numbers and picture")
    parser.add_argument("--picture", default="svg", choices=("svg", "png", "none"), help="of what (default: svg)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier analysis in DIR")
    parser.add_argument("-q", "--quiet", action="store_true", help="no table")
    options = vars(parser.parse_args(arguments))
    quiet = options.pop("quiet")

    from argprune.tasks.analysis_command import Analysis, analysis_command

    return analysis_command(Analysis(**options), quiet=quiet)


def _list(arguments: list[str]) -> int:
    parser = _Parser(prog="argprune list", description="What is registered, embedded or installed.")
    parser.add_argument("kind", choices=LISTS)
    parser.add_argument(
        "--data_dir",
        "--data-dir",
        default=os.environ.get("ARGPRUNE_DATA"),
        help="folder of data sets, for tasks",
    )
    parsed = parser.parse_args(arguments)
    for name, summary in _listing(parsed.kind, parsed.data_dir):
        print(f"{name:<24}{summary}".rstrip())
    return 0


def _listing(kind: Any, data_dir: str | None) -> list[tuple[str, str]]:
    if kind == "tasks":
        from argprune.tasks.data import list_tasks

        return [(task.name, task.summary) for task in list_tasks(data_dir)]
    if kind == "models":
        from argprune.models import MODELS

        return [*MODELS.items(), ("any other name", "a hub id or a folder of save_pretrained")]
    from argprune.solvers import registry

    rows = [
        (name, (entry.cls.__doc__ or "").strip().partition("\n")[0])
        for name, entry in registry.registered(kind).items()
    ]
    return rows + [(name, f"plug-in {point.value}") for name, point in registry.installed(kind).items()]
