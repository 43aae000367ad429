"""`argprune prune`: its options are those of a run's settings and of the method that it names."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import yaml

from argprune.messages import one_line
from argprune.plug_in_options import plug_in

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

DEFAULT_METHOD = "rpp"


def prune(arguments: list[str]) -> int:
    """Run `argprune prune` and return its exit status."""
    from argprune.tasks.options import method_class, plan

    arguments = _spelled_out(arguments)
    parser = _parser(_typed(method_class(_method_name(arguments))))
    options = parser.parse_args(arguments).as_dict()
    controls = {key: options.pop(key) for key in ("resume", "overwrite", "quiet")}
    options.pop("config")
    output = options.pop("output")
    if output is None:
        raise ValueError("No output. Give --output RUN, the folder to make.")

    from argprune.tasks.progress import print_summary
    from argprune.tasks.prune import execute
    from argprune.tasks.ranks import close_ranks, open_ranks

    run = execute(plan(options), Path(output), **controls)
    if not controls["quiet"] and open_ranks().is_first:
        print_summary([run.metrics])
        print(f"Run directory: {output}")
    close_ranks()
    return 0


def typed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a run as `argprune prune --config` reads them; those that nobody knows stay as they are.

    Raises ValueError, one line with the option and its value, where a value is of another type.
    """
    from argprune.tasks.options import method_class, method_mapping

    name, own = method_mapping(options.get("method"))
    parser = _parser(_typed(method_class(name)))
    known = set(parser.get_defaults().keys())
    given = {key: value for key, value in options.items() if key in known}
    given["method"] = {"name": name, **{key: value for key, value in own.items() if f"method.{key}" in known}}
    try:
        read = parser.parse_object(given).as_dict()
    except argparse.ArgumentError as error:
        raise ValueError(one_line(error).removeprefix("--")) from error
    return {**options, **{key: read[key] for key in given}, "method": {**own, **read["method"]}}


@cache
def _parser(method: type) -> ArgumentParser:
    """The parser of a run's options, with those of its method, whose types it finds."""
    from jsonargparse import ArgumentParser, set_loader

    from argprune.tasks.settings import Settings

    set_loader("argprune", _load_config, (yaml.YAMLError,))
    parser = ArgumentParser(
        prog="argprune prune",
        description="Fine-tune a model on a task while a method prunes it; everything ends in a run directory.",
        exit_on_error=False,
        parser_mode="argprune",
    )
    parser.add_argument("--config", action="config", help="YAML file of options; a run's config.yaml is one")
    parser.add_argument("--output", type=str, help="the run directory to make (required)")
    parser.add_argument(
        "--sparsity",
        type=float | None,
        default=None,
        help="fraction of zeros over the prunable weights, in [0, 1)",
    )
    parser.add_argument(
        "--method.name",
        type=str,
        default=DEFAULT_METHOD,
        metavar="NAME",
        help="--method NAME: `argprune list methods`, or module:Class",
    )
    parser.add_class_arguments(method, "method", skip={"sparsity"}, instantiate=False)
    parser.add_class_arguments(Settings, None, as_group=False)
    parser.add_argument(
        "--dense",
        type=str | None,
        default=None,
        help="run directory of the dense reference (default: OUTPUT/dense)",
    )
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished run; return a finished one")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in OUTPUT")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress and no table")
    return parser


def _spelled_out(arguments: list[str]) -> list[str]:
    """The arguments as the parser knows them: what is short for another option in full, plug-ins as one value."""
    # `--sign` is the option of the criterion that bears the name of a method, and short for it.
    arguments = [re.sub(r"^--sign(?==|$)", "--criterion.sign", argument) for argument in arguments]
    # A switch of the methods that can be run as their authors did.
    arguments = ["--method.literal=true" if argument == "--literal" else argument for argument in arguments]
    # So is this one, where no value follows.
    following = [*arguments, "--"][1:]
    arguments = [
        "--fsdp=true" if argument == "--fsdp" and after.startswith("-") else argument
        for argument, after in zip(arguments, following, strict=True)
    ]
    plugged = {}
    for kind in ("regularizer", "criterion"):
        arguments, plugged[kind] = plug_in(arguments, kind)
    arguments = [re.sub(r"^--method(?==|$)", "--method.name", _underscored(argument)) for argument in arguments]
    for kind, spec in plugged.items():
        if spec is not None:
            # After the config files, which it overrides.
            arguments += [f"--method.{kind}", json.dumps(spec)]
    return arguments


def _underscored(argument: str) -> str:
    """--data-dir=x is --data_dir=x."""
    key, equals, value = argument.partition("=")
    return key[:2] + key[2:].replace("-", "_") + equals + value if key.startswith("--") else argument


def _typed(cls: type) -> type:
    """The class, with the types of its options where jsonargparse finds them.

    It looks for those of a dataclass's bases in the module of the dataclass; what it does not find, it does not check.
    """
    if is_dataclass(cls):
        hints, constructor = get_type_hints(cls), cls.__init__
        constructor.__annotations__.update({name: hints[name] for name in constructor.__annotations__ if name in hints})
    return cls


def _method_name(arguments: Sequence[str]) -> str:
    """The method that the command line or, failing that, its last config file names: it decides which options exist."""
    from_config = DEFAULT_METHOD
    for position, argument in enumerate(arguments):
        key, has_value, value = argument.partition("=")
        if not has_value:
            value = arguments[position + 1] if position + 1 < len(arguments) else ""
        if key == "--method.name" and value:
            return value
        if key == "--config" and Path(value).is_file():
            loaded = _read_config(Path(value))
            if loaded is not None and isinstance(loaded.get("method"), Mapping):
                from_config = loaded["method"].get("name", from_config)
    return from_config


def _read_config(path: Path) -> Any:
    """What a config file holds. Raises ValueError that names the file where it holds no options."""
    try:
        loaded = _load_config(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path}: not valid YAML: {_yaml_problem(error)}; give a file of options.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--config {path}: not UTF-8 text; give a YAML file of options.") from error
    if not isinstance(loaded, Mapping | None):
        raise ValueError(f"--config {path}: holds a {type(loaded).__name__}; give a mapping of options.")
    return loaded


def _yaml_problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return one_line(error)


def _load_config(text: str) -> Any:
    """YAML, in which `method: NAME` is short for `method: {name: NAME}`."""
    loaded = yaml.safe_load(text)
    if isinstance(loaded, dict) and isinstance(loaded.get("method"), str):
        loaded["method"] = {"name": loaded["method"]}
    return loaded
