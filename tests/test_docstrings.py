"""Every public name has a docstring: one line, and a word on each parameter, of its own or of what it inherits."""

from __future__ import annotations

import importlib
import inspect
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PretrainedConfig, PreTrainedModel
from transformers.quantizers import HfQuantizer

ROOT = Path(__file__).parents[1]
SITE = runpy.run_path(str(ROOT / "docs" / "conf.py"))


def public() -> Iterator[Any]:
    """The names of the API reference that are ours to explain; what transformers calls has transformers' parameters."""
    for package in SITE["PACKAGES"]:
        module = importlib.import_module(package)
        for name in SITE["public_names"](module):
            value = getattr(module, name)
            if not (inspect.isclass(value) and issubclass(value, (PretrainedConfig, PreTrainedModel, HfQuantizer))):
                yield pytest.param(value, id=f"{package}.{name}")


def documented(value: Any) -> str:
    """The docstring, with those of the classes that the parameters may come from."""
    classes = value.__mro__[:-1] if inspect.isclass(value) else [value]
    return "\n".join(each.__doc__ or "" for each in classes)


@pytest.mark.parametrize("value", [*public()])
def test_docstring(value: Any) -> None:
    doc = inspect.getdoc(value) or ""
    summary = doc.partition("\n\n")[0]
    assert summary.rstrip().endswith((".", ":")), "a first line"
    if getattr(value, "_is_protocol", False) or (inspect.isclass(value) and issubclass(value, (Exception, dict))):
        return
    text = documented(value)
    missing = [name for name in inspect.signature(value).parameters if not re.search(rf"\b{name}\b", text)]
    assert not missing, f"the docstring says nothing of {', '.join(missing)}"


@pytest.mark.parametrize("value", [*public()])
def test_docstrings_of_methods(value: Any) -> None:
    if not inspect.isclass(value):
        return
    bare = [
        n
        for n, f in vars(value).items()
        if inspect.isfunction(f) and n[0] != "_" and not inspect.getdoc(getattr(value, n))
    ]
    assert not bare, f"without a docstring: {', '.join(bare)}"
