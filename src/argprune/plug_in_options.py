"""Options of plug-ins on the command line: `--regularizer NAME --regularizer.OPTION VALUE`, `--criterion` alike."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml


def plug_in(arguments: Sequence[str], kind: str) -> tuple[list[str], dict[str, Any] | None]:
    """`--KIND NAME --KIND.OPTION VALUE` as one mapping, and the arguments without them."""
    rest, found = plug_ins(arguments, kind)
    if len(found) > 1:
        raise ValueError(f"--{kind} was given {len(found)} times; give one.")
    return rest, found[0] if found else None


def plug_ins(arguments: Sequence[str], kind: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Every `--KIND NAME` with the `--KIND.OPTION VALUE`s that follow it, and the other arguments."""
    rest: list[str] = []
    found: list[dict[str, Any]] = []
    pending = iter(arguments)
    for argument in pending:
        key, equals, value = argument.partition("=")
        if key != f"--{kind}" and not key.startswith(f"--{kind}."):
            rest.append(argument)
            continue
        value = value if equals else next(pending, "")
        if not value:
            raise ValueError(f"{key} without a value.")
        if key == f"--{kind}":
            found.append({"name": value})
        elif not found:
            raise ValueError(f"{key} before --{kind} NAME, which says whose option it is.")
        else:
            option = key.partition(".")[2].replace("-", "_")
            found[-1][option] = _value(key, value)
    return rest, found


def _value(key: str, text: str) -> Any:
    # A float where YAML 1.1 sees text: 1e-4.
    if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", text):
        return float(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{key} {text!r} is not YAML; give a value, or quote the text.") from error
