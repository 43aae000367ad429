"""The embedded tasks: tell from a docstring which standard-library package it documents; predict docstrings' tokens.

The texts are those of the Python that runs this, read with `ast` and never imported, so that nothing is downloaded.
They differ a little from one Python version to the next; `metrics.json` records the version, and `model/config.json`
the labels, which are fewer where a Linux distribution ships Python without tkinter or idlelib.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from argprune.tasks.language import Language
from argprune.tasks.texts import Classification, Row

PACKAGES = ("tkinter", "idlelib", "asyncio", "email", "importlib", "logging", "xml", "multiprocessing")
MASK = "_"
_MIN_WORDS = 5
# Of the standard library's folder, what is no documentation: other people's packages, and tests.
_NO_TEXT = ("site-packages", "dist-packages", "test", "idle_test")


def read_stdlib_docs(root: Path | None = None) -> Classification:
    """The task from the standard library under `root` (default: this Python's).

    A text is kept once (the first package to hold it has it), if it has at least five words; the package's own name
    is masked in it. A text's hash decides its split: 70 % train, 15 % validation, 15 % test.
    A package that is missing, as tkinter and idlelib are from some Linux distributions' Pythons, is left out of the
    labels with a warning. Raises ValueError where fewer than two packages are there.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    labels = tuple(package for package in PACKAGES if (root / package).is_dir())
    if len(labels) < 2:
        raise ValueError(f"stdlib-docs: {root} holds {len(labels)} of {', '.join(PACKAGES)}; use a whole Python.")
    if labels != PACKAGES:
        missing = ", ".join(package for package in PACKAGES if package not in labels)
        warnings.warn(
            f"stdlib-docs: this Python lacks {missing}: {len(labels)} labels instead of {len(PACKAGES)}, so the "
            "accuracies do not compare with those of a whole Python.",
            stacklevel=2,
        )
    rows: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    seen: set[str] = set()
    for label, package in enumerate(labels):
        folder = root / package
        own_name = re.compile(re.escape(package), re.IGNORECASE)
        for docstring in _docstrings(folder):
            text = own_name.sub(MASK, " ".join(docstring.split()))
            if len(text.split()) >= _MIN_WORDS and text not in seen:
                seen.add(text)
                rows[_split(text)].append(Row(text, label))
    return Classification("stdlib-docs", labels, rows)


def read_stdlib_lm(root: Path | None = None) -> Language:
    """Every docstring of at least five words of the standard library under `root` (default: this Python's), tests' but.

    Line breaks are kept. A text is kept once; its hash decides its split, as in `read_stdlib_docs`.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    splits: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for text in dict.fromkeys(_docstrings(root, _NO_TEXT)):
        if len(text.split()) >= _MIN_WORDS:
            splits[_split(text)].append(text)
    return Language("stdlib-lm", splits)


def _docstrings(folder: Path, without: Sequence[str] = ()) -> Iterator[str]:
    """Docstrings of the modules below a folder, but for those in folders of some names."""
    for path in sorted(folder.rglob("*.py")):
        if not set(path.relative_to(folder).parts).isdisjoint(without):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError:
            # idlelib and others ship test inputs that are wrong on purpose.
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node)
                if docstring:
                    yield docstring


def _split(text: str) -> str:
    share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
    return "train" if share < 0.7 else "validation" if share < 0.85 else "test"
