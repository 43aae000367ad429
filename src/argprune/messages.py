"""Errors of parsers as one line that a user reads."""

from __future__ import annotations

import re

# How a user would write what jsonargparse names by its class.
_KINDS = {"NoneType": "null", "Sequence": 'a list, such as ["*.query.*"]'}
_EXPECTED = re.compile(r"Expected (?:a )?(?:<class '(?:[\w.]+\.)?(\w+)'>|typing\.Literal\[([^\]]*)\]|([^.\n]+))")


def one_line(error: BaseException) -> str:
    """What an error says, on one line; of jsonargparse's, the option, its value and what would be right."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return " ".join(f"{error.filename}: {error.strerror}.".split())
    text = str(error)
    option = _option(text)
    unknown = re.search(r"Option '([^']+)' is not accepted", text)
    if option and unknown:
        return f"--{option}.{unknown.group(1)}: there is no such option."
    # Of a value inside another, what the other could have been is not what was wrong.
    inner = re.search(r".*Expected .*Got value: .*", text)
    value = re.search(r"(?:Given|Got) value: (.*)", text)
    expected = _EXPECTED.findall(inner.group() if inner else text)
    if option and expected and value:
        kinds = " or ".join(dict.fromkeys(_kind(*found) for found in expected))
        mapping = "a mapping of options or " if "Subclass types expect" in text and not inner else ""
        return f"--{option}: {value.group(1).strip()!r} is not {mapping}{kinds}."
    return " ".join(text.split())


def _option(text: str) -> str:
    """The option that an error is about, with the names of those that it is in."""
    option = ""
    for key in re.findall(r'[Kk]ey "([^"]+)"', text):
        option = key if not option or key == option or key.startswith(f"{option}.") else f"{option}.{key}"
    return option


def _kind(cls: str, choices: str, other: str) -> str:
    if choices:
        return f"one of {choices.replace(chr(39), '')}"
    if other.startswith("dot import path"):
        return "a mapping of options"
    return _KINDS.get(cls, cls) or other
